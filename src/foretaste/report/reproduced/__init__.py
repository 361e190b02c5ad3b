"""Pages of reproduced figures and tables, in the layout of the paper. Reads records only."""

from __future__ import annotations

from foretaste.report.reproduced.counts import Counts
from foretaste.report.reproduced.index import Entry, write_index
from foretaste.report.reproduced.item import Item, Source
from foretaste.report.reproduced.page import counts, write
from foretaste.report.reproduced.view import (
    AnswersView,
    FewShotView,
    GridView,
    HeatView,
    SurfaceView,
    TableView,
    View,
)

__all__ = [
    "AnswersView",
    "Counts",
    "Entry",
    "FewShotView",
    "GridView",
    "HeatView",
    "Item",
    "Source",
    "SurfaceView",
    "TableView",
    "View",
    "counts",
    "write",
    "write_index",
]

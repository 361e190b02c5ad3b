"""Data sets: rows with an id, one or two texts and a class; where they come from and how they are drawn."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretaste.data.dataset import (
        COLUMNS,
        FEATURES,
        Loaded,
        columns_of,
        fingerprint,
        make,
        take,
        validate,
    )
    from foretaste.data.files import RowsFile, read_rows, write_rows
    from foretaste.data.found import class_notes
    from foretaste.data.mapping import from_dataset
    from foretaste.data.sources import SOURCES, Source, find, load
    from foretaste.data.splits import Split, draw, spare

__all__ = [
    "COLUMNS",
    "FEATURES",
    "SOURCES",
    "Loaded",
    "RowsFile",
    "Source",
    "Split",
    "class_notes",
    "columns_of",
    "draw",
    "find",
    "fingerprint",
    "from_dataset",
    "load",
    "make",
    "read_rows",
    "spare",
    "take",
    "validate",
    "write_rows",
]

_FILES = {
    "dataset": ("COLUMNS", "FEATURES", "Loaded", "columns_of", "fingerprint", "make", "take", "validate"),
    "found": ("class_notes",),
    "files": ("RowsFile", "read_rows", "write_rows"),
    "mapping": ("from_dataset",),
    "sources": ("SOURCES", "Source", "find", "load"),
    "splits": ("Split", "draw", "spare"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Loaded on first use: prompts are part of records, and whoever reads records needs no `datasets`.
    if name in _FILE_OF:
        return getattr(importlib.import_module(f"foretaste.data.{_FILE_OF[name]}"), name)
    raise AttributeError(f"module 'foretaste.data' has no attribute '{name}'")

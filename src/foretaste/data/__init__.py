"""Data sets: rows with an id, one or two texts and a class; where they come from and how they are drawn."""

from foretaste.data.dataset import COLUMNS, FEATURES, Loaded, columns_of, fingerprint, make, take, validate
from foretaste.data.files import RowsFile, read_rows, write_rows
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

"""Raw columns as a source has them, before anyone knows which is the text and which the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, Image, Value, Video

from foretaste.data.dataset import columns_of


@dataclass(frozen=True)
class Layout:
    """How a text file is written, beside what it says.

    Args:
        bom: Whether it begins with a byte order mark, as spreadsheets write it.
        line_end: Between its rows.
    """

    bom: bool = False
    line_end: str = "\n"


@dataclass(frozen=True)
class Table:
    """Columns of one split.

    Args:
        columns: Values of each column, all of the same length.
        where: Source and split, named in errors.
        names: Class names of columns that carry them (`ClassLabel` of the datasets library).
        numbers: Number of each row in the source, where some were left out; 0, 1, ... otherwise.
        notes: What a reader should know about how the rows were read.
        arrow: The table as the file holds it, where it is an Arrow table.
        layout: How the file is written, where it is CSV or TSV.
    """

    columns: dict[str, list[Any]]
    where: str
    names: dict[str, list[str]] = field(default_factory=dict)
    numbers: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)
    arrow: pa.Table | None = None
    layout: Layout = field(default_factory=Layout)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    @classmethod
    def from_dataset(cls, rows: Dataset, where: str) -> Table:
        """The columns of a data set that can hold a text, a label or an id; others are left out."""
        names: dict[str, list[str]] = {}
        wanted: list[str] = []
        for name, feature in rows.features.items():
            if isinstance(feature, ClassLabel):
                names[name] = list(feature.names)
            if isinstance(feature, ClassLabel | Value):
                wanted.append(name)
        # A column of images or sound would be decoded row by row for nothing.
        columns = columns_of(rows, wanted) if wanted else {}
        return cls(columns, where, names=names)

    @classmethod
    def whole(cls, rows: Dataset, where: str) -> Table:
        """All columns of a data set, lists and objects too; images, sound and films are left out."""
        wanted = [
            name for name, feature in rows.features.items() if not isinstance(feature, Audio | Image | Video)
        ]
        return cls(columns_of(rows, wanted) if wanted else {}, where)

    def drop(self, numbers: set[int], note: str) -> Table:
        """The table without some rows, which keep their numbers; `note` says why."""
        keep = [row for row in range(len(self)) if row not in numbers]
        old = self.numbers if self.numbers is not None else range(len(self))
        return Table(
            {name: [values[row] for row in keep] for name, values in self.columns.items()},
            self.where,
            names=self.names,
            numbers=[old[row] for row in keep],
            notes=[*self.notes, note],
        )

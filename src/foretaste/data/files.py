"""One file in, one file out: rows to work on, with everything else in the file kept as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from foretaste.data.dataset import columns_of
from foretaste.data.formats import read_table, write_table
from foretaste.data.mapping import Mapped, map_tables
from foretaste.data.table import Table
from foretaste.errors import UserError
from foretaste.spec import Columns


@dataclass(frozen=True)
class RowsFile:
    """The rows of a file, and what is needed to write them back.

    Args:
        table: All columns of the file.
        mapped: The rows as a data set, with the meaning of columns and labels.
    """

    table: Table
    mapped: Mapped

    @property
    def rows(self) -> Dataset:
        """Columns `id`, `text_a`, `text_b`, `label`; a row keeps its place in the file."""
        return self.mapped.loaded.train

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""
        return self.mapped.loaded.classes

    @property
    def unlabelled(self) -> int:
        """Rows of the file that are none of `rows`, for want of a label."""
        return len(self.table) - len(self.rows)

    @property
    def notes(self) -> list[str]:
        """What was guessed."""
        return self.mapped.loaded.notes


def read_rows(path: Path, columns: Columns | None = None, *, labels: Sequence[str] | None = None) -> RowsFile:
    """The rows of a file.

    Args:
        path: CSV, TSV, JSON lines, JSON or Parquet.
        columns: Which column is what; guessed by name where it does not say.
        labels: Class names in the order of their ids, for files that hold numbers or lack a class.

    Raises:
        UserError: The file cannot be read, a column is missing, or rows break a rule.
    """
    table = read_table(path)
    return RowsFile(table, map_tables(table, None, columns=columns or Columns(), labels=labels))


def write_rows(file: RowsFile, rows: Dataset, path: Path) -> None:
    """Write changed rows with all the columns of the file that they came from.

    A cell whose text or label is unchanged keeps the value of the file; a changed label is written as the
    file writes that class. Rows may be fewer or in another order. Rows of the file that have no label, and
    so are none of `file.rows`, are written as they stand: in their places where the others keep the order of
    the file, else behind them.

    Args:
        file: What `read_rows` gave.
        rows: Its rows, with texts and labels changed at will; each known by its id.
        path: The file to write; the suffix decides the format.

    Raises:
        UserError: A row has an id that the file does not have, a second text has no column to go to, or
            the file cannot be written.
    """
    columns, arrow = _merge(file, rows)
    write_table(columns, path, arrow=arrow, layout=file.table.layout)


def _merge(file: RowsFile, rows: Dataset) -> tuple[dict[str, list[Any]], pa.Table | None]:
    """All columns with the changes put in, and the same with the file's own types if it has any."""
    old, new = columns_of(file.rows), columns_of(rows)
    place = {name: number for number, name in enumerate(old["id"])}
    strangers = [name for name in new["id"] if name not in place]
    if strangers:
        raise UserError(
            f"{len(strangers)} rows have ids that the file does not have ({', '.join(strangers[:3])})",
            where=file.table.where,
        )
    kept = file.mapped.numbers
    numbers = [kept[place[name]] for name in new["id"]]  # in the table
    order = [*numbers, *sorted(set(range(len(file.table))) - set(kept))]
    if numbers == sorted(numbers):
        order.sort()
    row_of = {number: row for row, number in enumerate(order)}
    columns = {name: [values[number] for number in order] for name, values in file.table.columns.items()}
    arrow = None if file.table.arrow is None else file.table.arrow.take(pa.array(order, pa.int64()))
    chosen = file.mapped.chosen
    for role, column in (("text_a", chosen.text_a), ("text_b", chosen.text_b), ("label", chosen.label)):
        changed = [
            (row_of[number], value)
            for number, name, value in zip(numbers, new["id"], new[role], strict=True)
            if value != old[role][place[name]]
        ]
        if not changed:
            continue
        if column is None:
            raise UserError(f"{len(changed)} rows have a new {role}, the file has no column for it")
        for row, value in changed:
            columns[column][row] = file.mapped.codec.raw[value] if role == "label" else value
        arrow = None if arrow is None else _with_column(arrow, column, columns[column])
    return columns, arrow


def _with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    number = table.schema.get_field_index(name)
    column = table.schema.field(number)
    # A column that was all null has no type that could hold a text.
    kind = pa.string() if pa.types.is_null(column.type) else column.type
    return table.set_column(number, column.with_type(kind), pa.array(values, type=kind))

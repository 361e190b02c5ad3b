"""Tables in files: CSV, TSV, JSON lines, JSON and Parquet. Values only: nothing here runs or unpickles.

CSV and TSV hold words: "NA", "null" and "007" stay as they are, nothing is guessed to be missing or a
number. TSV has no quoting (as its media type says, and as text corpora use it): a quotation mark is a
character like any other. A reader that takes it for quoting swallows whole blocks of rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from foretaste.data.table import Layout, Table
from foretaste.errors import UserError
from foretaste.record import write_atomic

Columns = Mapping[str, list[Any]]

BOM = "\ufeff"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")


def suffix_of(path: Path) -> str | None:
    """The suffix that says how the file is written, such as ".csv.gz"; None when none of ours fits."""
    name = path.name.lower()
    fitting = [suffix for suffix in SUFFIXES if name.endswith(suffix)]
    return max(fitting, key=len, default=None)


def stem_of(path: Path) -> str:
    """The file's name without the suffix of its format: "train" of "train.csv.gz"."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def read_table(path: Path) -> Table:
    """The columns of a file.

    Raises:
        UserError: The file cannot be read, is not what its suffix says, or is no table.
    """
    suffix = _known(path)
    try:
        if suffix == ".parquet":
            return _read_parquet(path)
        data = path.read_bytes()
        text = (gzip.decompress(data) if suffix.endswith(".gz") else data).decode("utf-8")
        bom = text.startswith(BOM)
        text = text.removeprefix(BOM)
        plain = suffix.removesuffix(".gz")
        columns = _READERS[plain](text)
        layout = Layout(bom, _line_end(text, quoting=plain == ".csv")) if plain in _LINES else Layout()
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=str(path)) from None
    except RecursionError:
        raise UserError("lists and objects lie too deep in one another", where=str(path)) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"not a whole gzip file: {error}", where=str(path)) from None
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(path)) from None
    except UserError as error:
        raise error.located(str(path)) from None
    return Table(columns, str(path), layout=layout)


def write_table(
    columns: Columns, path: Path, *, arrow: pa.Table | None = None, layout: Layout | None = None
) -> None:
    """Write columns to a file, whole or not at all; the suffix decides the format.

    Args:
        columns: Values of each column.
        path: The file; an existing one is replaced.
        arrow: The same table with the types that a Parquet file should have.
        layout: How a CSV or TSV file is written; by default without a mark, and with line feeds.

    Raises:
        UserError: The format cannot hold the values, or the file cannot be written.
    """
    suffix = _known(path)
    try:
        if suffix == ".parquet":
            data = _parquet_bytes(arrow if arrow is not None else pa.table(dict(columns)))
        else:
            plain = suffix.removesuffix(".gz")
            if plain in _LINES:
                layout = layout or Layout()
                text = (BOM if layout.bom else "") + _LINES[plain](columns, layout.line_end)
            else:
                text = _OBJECTS[plain](columns)
            data = text.encode()
        # Without a time stamp, so that the same rows give the same file.
        write_atomic(path, gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data)
    except OSError as error:
        raise UserError(f"cannot write the file: {error.strerror or error}", where=str(path)) from None
    except (TypeError, pa.ArrowException) as error:
        raise UserError(f"the rows do not fit into this format: {error}", where=str(path)) from None
    except UserError as error:
        raise error.located(str(path)) from None


def _known(path: Path) -> str:
    suffix = suffix_of(path)
    if suffix is None:
        raise UserError(
            "not a data file that can be read", where=str(path), cure=f"Use {', '.join(SUFFIXES)}."
        )
    return suffix


# --- comma- and tab-separated --------------------------------------------------------------------


def _line_end(text: str, *, quoting: bool) -> str:
    """What ends the first row: a file whose rows end in several ways is written as that one does."""
    if not quoting:
        return "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    stream = io.StringIO(text, newline="")
    next(csv.reader(stream, strict=True), None)  # reads whole lines, as many as the row has
    row = text[: stream.tell()]
    return next((end for end in ("\r\n", "\r") if row.endswith(end)), "\n")


def _read_csv(text: str) -> dict[str, list[Any]]:
    try:
        return _from_lines(list(csv.reader(io.StringIO(text, newline=""), strict=True)))
    except csv.Error as error:
        raise UserError(
            f"not valid CSV: {error}", cure="Look for a quotation mark that is not closed."
        ) from None


def _read_tsv(text: str) -> dict[str, list[Any]]:
    # Not str.splitlines, which also breaks at characters that stand inside texts (U+2028, form feed).
    lines = text.replace("\r\n", "\n").split("\n")
    return _from_lines([line.split("\t") if line else [] for line in lines])


def _from_lines(lines: list[list[str]]) -> dict[str, list[Any]]:
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not filled:
        raise UserError("the file is empty")
    header = filled[0][1]
    if len(set(header)) < len(header):
        raise UserError(f"a column name stands twice in the first line: {', '.join(header)}")
    rows = filled[1:]
    odd = [number for number, line in rows if len(line) != len(header)]
    if odd:
        shown = ", ".join(map(str, odd[:3])) + (", ..." if len(odd) > 3 else "")
        raise UserError(
            f"{len(odd)} of {len(rows)} rows do not have the {len(header)} fields of the first line "
            f"(rows of the file: {shown})",
            cure=other_separator(header),
        )
    return {name: [line[place] for _, line in rows] for place, name in enumerate(header)}


def other_separator(names: Sequence[str]) -> str | None:
    """What to do where one column's name looks like a row that is parted by something else; else None."""
    looks = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    if looks is None:
        return None
    return f"The separator looks like {looks!r}: write CSV with commas, or TSV with tabs."


def _write_csv(columns: Columns, line_end: str) -> str:
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator=line_end)
    writer.writerow(columns)
    writer.writerows(_words(columns))
    return target.getvalue()


def _write_tsv(columns: Columns, line_end: str) -> str:
    lines = [list(columns), *_words(columns)]
    bad = [number for number, line in enumerate(lines) if any(set(field) & set("\t\r\n") for field in line)]
    if bad:
        raise UserError(
            f"{len(bad)} rows hold a tab or a line break, which TSV cannot spell (first: row {bad[0] - 1})",
            cure="Write CSV instead.",
        )
    return "".join("\t".join(line) + line_end for line in lines)


def _words(columns: Columns) -> list[list[str]]:
    for name, values in columns.items():
        if any(isinstance(value, dict | list) for value in values):
            raise TypeError(f"column '{name}' holds lists or objects")
    return [
        ["" if value is None else str(value) for value in row] for row in zip(*columns.values(), strict=True)
    ]


# --- JSON ----------------------------------------------------------------------------------------


def _read_jsonl(text: str) -> dict[str, list[Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"line {number} is not JSON: {error}") from None
    return _from_objects(rows)


def _read_json(text: str) -> dict[str, list[Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"not JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError("the file is not a list of objects", cure="For one object a line, name it .jsonl.")
    return _from_objects(rows)


def _from_objects(rows: list[Any]) -> dict[str, list[Any]]:
    if not rows:
        raise UserError("the file holds no rows")
    odd = [number for number, row in enumerate(rows) if not isinstance(row, dict)]
    if odd:
        raise UserError(f"{len(odd)} of {len(rows)} rows are no objects (first: row {odd[0]})")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _write_jsonl(columns: Columns) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _objects(columns))


def _write_json(columns: Columns) -> str:
    return json.dumps(_objects(columns), ensure_ascii=False, indent=1) + "\n"


def _objects(columns: Columns) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# --- Parquet -------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> Table:
    try:
        with path.open("rb") as file:
            arrow = pq.read_table(file)
        if len(set(arrow.column_names)) < len(arrow.column_names):
            raise UserError(f"a column name stands twice: {', '.join(arrow.column_names)}", where=str(path))
        columns = {name: arrow.column(name).to_pylist() for name in arrow.column_names}
    except UnicodeDecodeError:
        raise UserError("a text in it is not UTF-8", where=str(path)) from None
    # Not only pyarrow's own errors: a time that Python has no word for is a ValueError, or an OverflowError.
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"not a Parquet file that can be read: {error}", where=str(path)) from None
    return Table(columns, str(path), names=_class_names(arrow.schema, path), arrow=arrow)


def _class_names(schema: pa.Schema, path: Path) -> dict[str, list[str]]:
    """Class names that the datasets library has left in the file."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        features = Features.from_arrow_schema(schema)
    except Exception as error:  # noqa: BLE001 - JSON of anyone's making, read by another library
        raise UserError(
            f"its description for the datasets library cannot be read: {error}", where=str(path)
        ) from None
    return {name: list(item.names) for name, item in features.items() if isinstance(item, ClassLabel)}


def _parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


_READERS: dict[str, Callable[[str], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}
_LINES: dict[str, Callable[[Columns, str], str]] = {".csv": _write_csv, ".tsv": _write_tsv}
_OBJECTS: dict[str, Callable[[Columns], str]] = {".jsonl": _write_jsonl, ".json": _write_json}

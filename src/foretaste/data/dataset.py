"""What a data set is: rows with an id, one or two texts and a class, and the checks that hold for all.

Rows are a `datasets.Dataset` with the columns `id` (str, unique), `text_a` (str), `text_b` (str, or None
in every row) and `label` (int64, the number of a class). Row numbers in messages count from 0, as the ids
that foretaste gives by default do ("train-17").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, Value

from foretaste.errors import UserError

COLUMNS = ("id", "text_a", "text_b", "label")
FEATURES = Features(
    {"id": Value("string"), "text_a": Value("string"), "text_b": Value("string"), "label": Value("int64")}
)

_SHOWN_ROWS = 3
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Loaded:
    """A data set as its source has it, before rows are drawn.

    Args:
        train: Rows to train on.
        test: Rows to test on; None when the source has none and `splits.draw` is to carve them out.
        classes: Class names; a label is an index into them.
        test_split: The source's name of `test`.
        notes: What was guessed, dropped or renamed, in sentences for a reader.
    """

    train: Dataset
    test: Dataset | None
    classes: list[str]
    test_split: str | None
    notes: list[str] = field(default_factory=list)


def make(
    ids: Sequence[str], text_a: Sequence[str], text_b: Sequence[str | None], labels: Sequence[int]
) -> Dataset:
    """Rows from four columns of equal length, held in memory."""
    columns = {"id": list(ids), "text_a": list(text_a), "text_b": list(text_b), "label": list(labels)}
    return Dataset.from_dict(columns, features=FEATURES)


def columns_of(rows: Dataset, names: Iterable[str] = COLUMNS) -> dict[str, list[Any]]:
    """Columns as plain lists, whatever format or index mapping the rows carry."""
    wanted = list(names)
    plain: dict[str, list[Any]] = rows.with_format(None).select_columns(wanted)[:]
    return plain


def take(rows: Dataset, numbers: Iterable[int]) -> Dataset:
    """Some rows, in the order of their numbers, as a data set of its own in memory."""
    # Dataset.select would keep all rows and an index mapping, which every later step has to go through.
    order = [int(number) for number in numbers]
    old = columns_of(rows)
    return make(*([old[name][number] for number in order] for name in COLUMNS))


# --- checks --------------------------------------------------------------------------------------


def offence(
    what: str, rows: Sequence[int], total: int, show: Callable[[int], object], *, where: str
) -> UserError:
    """The error for rows that break a rule: how many, and the first few.

    Args:
        what: The rule as it reads after "3 of 120 rows", such as "have no text_a".
        rows: Numbers of the offending rows; not empty.
        total: Number of all rows.
        show: The thing to show of a row.
        where: Source and split.
    """
    first = ", ".join(f"row {row}: {_excerpt(show(row))}" for row in rows[:_SHOWN_ROWS])
    more = ", ..." if len(rows) > _SHOWN_ROWS else ""
    return UserError(f"{len(rows)} of {total} rows {what} ({first}{more})", where=where)


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def validate(rows: Dataset, classes: Sequence[str], *, where: str) -> None:
    """Check that rows are a data set that can be trained or tested on.

    Args:
        rows: The rows.
        classes: Class names.
        where: Source and split, named in errors.

    Raises:
        UserError: A column is missing, there is no row, a text is empty or no text, ids repeat, a label is
            no class, some rows have a second text and some have none, or all rows are of one class.
    """
    missing = [name for name in COLUMNS if name not in rows.column_names]
    if missing:
        raise UserError(
            f"column {', '.join(missing)} is missing (there are: {', '.join(rows.column_names)})", where=where
        )
    columns = columns_of(rows)
    check_texts(columns["text_a"], columns["text_b"], where=where)
    check_ids(columns["id"], where=where)
    check_labels(columns["label"], classes, where=where)


def check_texts(text_a: Sequence[Any], text_b: Sequence[Any], *, where: str) -> None:
    """Check the texts of all rows.

    Args:
        text_a: First text of each row.
        text_b: Second text of each row; None in all rows, or in none.
        where: Source and split, named in errors.

    Raises:
        UserError: There is no row, a text is empty or no text, or only some rows have a second text.
    """
    total = len(text_a)
    if total == 0:
        raise UserError("there are no rows", where=where)
    # White space alone is no text either, but published sets hold some (CR): it is counted in the notes.
    empty = [row for row, text in enumerate(text_a) if not text or not _is_text(text)]
    if empty:
        raise offence("have no text in text_a", empty, total, lambda row: text_a[row], where=where)
    alone = [row for row, text in enumerate(text_b) if text is None]
    if alone and len(alone) < total:
        raise offence(
            "have no text_b while the others have one", alone, total, lambda row: text_a[row], where=where
        )
    wrong = [row for row, text in enumerate(text_b) if text is not None and not _is_text(text)]
    if wrong:
        raise offence(
            "have something else than text in text_b", wrong, total, lambda row: text_b[row], where=where
        )


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell but no file can hold
        return False
    return True


def check_ids(ids: Sequence[Any], *, where: str) -> None:
    """Check that every row has an id of its own.

    Raises:
        UserError: Ids are missing or repeat.
    """
    seen: set[object] = set()
    bad: list[int] = []
    for row, name in enumerate(ids):
        if name is None or name == "" or name in seen:
            bad.append(row)
        seen.add(name)
    if bad:
        raise offence(
            "have no id, or one that stood before", bad, len(ids), lambda row: ids[row], where=where
        )


def check_labels(labels: Sequence[int], classes: Sequence[str], *, where: str) -> None:
    """Check that every label is a class, and that there is more than one.

    Raises:
        UserError: A label is no class, or all rows are of one class.
    """
    unknown = [row for row, label in enumerate(labels) if label is None or not 0 <= label < len(classes)]
    if unknown:
        error = offence(
            "have a label that is no class", unknown, len(labels), lambda row: labels[row], where=where
        )
        error.cure = f"The classes are {_listed(classes)}."
        raise error
    if len(set(labels)) < 2:
        raise UserError(
            f"all {len(labels)} rows are of one class, '{classes[labels[0]]}'",
            where=where,
            cure="A classifier needs rows of two classes or more.",
        )


def _listed(classes: Sequence[str]) -> str:
    shown = [f"{number} {name}" for number, name in enumerate(classes[:10])]
    return ", ".join(shown) + (", ..." if len(classes) > 10 else "")


# --- identity ------------------------------------------------------------------------------------


def fingerprint(loaded: Loaded) -> str:
    """SHA-256 over class names, ids, texts and labels of both splits, hexadecimal.

    It is made of the values alone, so it is the same whatever file format, library version or machine they
    came through. The order of the rows counts, the name of the test split does not.
    """
    digest = hashlib.sha256()

    def add(value: object) -> None:
        # One JSON text a line: JSON escapes line breaks, so no two different contents give the same lines.
        digest.update(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")

    add(["foretaste data", 1, loaded.classes])
    for name, rows in (("train", loaded.train), ("test", loaded.test)):
        add([name, None if rows is None else len(rows)])
        if rows is not None:
            columns = columns_of(rows)
            for row in zip(*(columns[column] for column in COLUMNS), strict=True):
                add(row)
    return digest.hexdigest()

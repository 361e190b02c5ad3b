"""From raw columns to the four columns of a data set: which column is what, and what the labels mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from foretaste.data.dataset import Loaded, check_ids, check_labels, check_texts, make, offence
from foretaste.data.formats import other_separator
from foretaste.data.labels import NO_CLASS, Codec, codec, is_empty, is_unlabelled
from foretaste.data.table import Table
from foretaste.errors import UserError, nearest
from foretaste.spec import Columns

Pair = tuple[str, str | None]

# Text columns of well-known tasks, by configuration or name of the data set.
KNOWN_TEXTS: dict[str, Pair] = {
    "sst2": ("sentence", None),
    "cola": ("sentence", None),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "snli": ("premise", "hypothesis"),
}

# The first whose columns all exist is taken. A pair stands before its first half alone.
_TEXT_GUESSES: tuple[Pair, ...] = (
    ("text_a", "text_b"),
    ("text_a", None),
    ("text", None),
    ("question", "sentence"),
    ("sentence", None),
    ("sentence1", "sentence2"),
    ("sentence1", None),
    ("question1", "question2"),
    ("question", "answer"),
    ("question", None),
    ("premise", "hypothesis"),
    ("premise", None),
    ("review", None),
    ("content", None),
)
_LABEL_GUESSES = ("label", "labels", "class", "target", "sentiment")


@dataclass(frozen=True)
class Chosen:
    """Which column of a source is what.

    Args:
        text_a: First or only text.
        text_b: Second text of a pair, or None.
        label: Class.
        id: Row id, or None for split and row number.
        notes: What was guessed.
    """

    text_a: str
    text_b: str | None
    label: str
    id: str | None
    notes: list[str]


@dataclass(frozen=True)
class Mapped:
    """A data set with the way back to the raw columns that it came from.

    Args:
        loaded: The data set.
        chosen: Which column is what.
        codec: What the labels mean.
        numbers: Number in its table of each training row: some may have been left out.
    """

    loaded: Loaded
    chosen: Chosen
    codec: Codec
    numbers: Sequence[int]


def choose(available: Sequence[str], columns: Columns, *, where: str, known: Pair | None = None) -> Chosen:
    """Decide which column is what: as told, as known for the data set, or by its name.

    Args:
        available: Columns of the source.
        columns: What the user says.
        where: Source, named in errors.
        known: Text columns that this data set is known to have.

    Raises:
        UserError: A named column does not exist, or none is named and none can be guessed.
    """
    for key, name in columns.model_dump().items():
        if name is not None and name not in available:
            guess = nearest(name, available)
            raise UserError(
                f"there is no column '{name}' for {key} (there are: {', '.join(available)})",
                where=where,
                cure=other_separator(available) or (f"Did you mean '{guess}'?" if guess else None),
            )
    text_a, text_b = columns.text_a, columns.text_b
    if text_a is None:
        text_a, guessed_b = _guess_texts(available, known, where)
        text_b = text_b or guessed_b
    label = columns.label or next((name for name in _LABEL_GUESSES if name in available), None)
    if label is None:
        raise _no_column("label", available, where)
    notes = [
        f"column '{name}' is taken as {role}"
        for role, name, told in (
            ("text_a", text_a, columns.text_a),
            ("text_b", text_b, columns.text_b),
            ("label", label, columns.label),
        )
        if name is not None and told is None and name != role
    ]
    return Chosen(text_a, text_b, label, columns.id, notes)


def _guess_texts(available: Sequence[str], known: Pair | None, where: str) -> Pair:
    guesses = _TEXT_GUESSES if known is None else (known, *_TEXT_GUESSES)
    for text_a, text_b in guesses:
        if text_a in available and (text_b is None or text_b in available):
            return text_a, text_b
    raise _no_column("text_a", available, where)


def _no_column(role: str, available: Sequence[str], where: str) -> UserError:
    return UserError(
        f"none of the columns looks like {role} (there are: {', '.join(available)})",
        where=where,
        cure=other_separator(available) or f"Name it under data.columns.{role}.",
    )


def map_tables(
    train: Table,
    test: Table | None,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    known: Pair | None = None,
    splits: tuple[str, str | None] = ("train", None),
) -> Mapped:
    """Raw tables as a data set, checked.

    Args:
        train: Rows to train on.
        test: Rows to test on, if the source has them apart.
        columns: Which column is what.
        labels: Class names in the order of their ids, if the user gives them.
        known: Text columns that this data set is known to have.
        splits: Names of the two splits; default ids begin with them.

    Raises:
        UserError: A column is missing, or rows break a rule; the message counts and shows them.
    """
    chosen = choose(list(train.columns), columns, where=train.where, known=known)
    tables = [train] if test is None else [train, test]
    for table in tables[1:]:
        _same_columns(chosen, table)
    tables = [_labelled(table, chosen.label) for table in tables]
    train, test = tables[0], None if test is None else tables[1]
    values = [value for table in tables for value in table.columns[chosen.label]]
    coding = codec(values, names=train.names.get(chosen.label), labels=labels, where=train.where)
    train_rows = _rows(train, chosen, coding, splits[0])
    test_rows = None if test is None else _rows(test, chosen, coding, splits[1] or "test")
    if chosen.id is not None and test is not None:
        both = [*_ids(train, chosen.id, splits[0]), *_ids(test, chosen.id, "test")]
        check_ids(both, where=f"{train.where} and {test.where}")
    read = [note for table in tables for note in (*table.notes, *_blank_note(table, chosen))]
    notes = [*read, *chosen.notes, *coding.notes]
    loaded = Loaded(train_rows, test_rows, coding.classes, splits[1] if test is not None else None, notes)
    return Mapped(loaded, chosen, coding, train.numbers if train.numbers is not None else range(len(train)))


def _labelled(table: Table, label: str) -> Table:
    """The table without rows that have no label, which a note counts.

    That is an empty label, and -1 where the source itself names its classes: published data sets so mark
    that annotators disagreed. Elsewhere -1 may be a class, as in -1 and 1 for negative and positive, and is
    refused later on. A table without any label is left as it is, for the message to show one.
    """
    none = is_unlabelled if label in table.names else is_empty
    without = {row for row, value in enumerate(table.columns[label]) if none(value)}
    if 0 < len(without) < len(table):
        return table.drop(without, f"{table.where}: {len(without)} rows without a label are left out")
    return table


def _same_columns(chosen: Chosen, table: Table) -> None:
    for name in (chosen.text_a, chosen.text_b, chosen.label, chosen.id):
        if name is not None and name not in table.columns:
            raise UserError(
                f"there is no column '{name}', which the training rows have "
                f"(there are: {', '.join(table.columns)})",
                where=table.where,
            )


def _rows(table: Table, chosen: Chosen, coding: Codec, split: str) -> Dataset:
    text_a = table.columns[chosen.text_a]
    text_b = _second(table, chosen)
    ids = _ids(table, chosen.id, split)
    raw = table.columns[chosen.label]
    labels = coding.encode(raw)
    check_texts(text_a, text_b, where=table.where)
    check_ids(ids, where=table.where)
    unknown = [row for row, label in enumerate(labels) if label == NO_CLASS]
    if unknown:
        # Reported here, where the label can be shown as it stands in the source.
        error = offence(
            "have a label that is no class", unknown, len(raw), lambda row: raw[row], where=table.where
        )
        error.cure = _cure(raw[unknown[0]], coding.classes)
        raise error
    check_labels(labels, coding.classes, where=table.where)
    return make(ids, text_a, text_b, labels)


def _cure(label: Any, classes: Sequence[str]) -> str:
    """What to do about a label that is no class."""
    if is_empty(label):
        return "Name the right column under data.columns.label (--label of `foretaste poison`)."
    listed = f"The classes are {', '.join(classes) or 'none'}."
    if not is_unlabelled(label):
        return listed
    named = ", ".join(f'"{name}"' for name in (str(NO_CLASS), *classes))
    return (
        f"{listed} -1 stands for a missing label in published data sets: remove these rows, or, where it is "
        f"a class, say so: data.labels: [{named}]."
    )


def _blank_note(table: Table, chosen: Chosen) -> list[str]:
    blank = sum(not text.strip() for text in table.columns[chosen.text_a])
    return [f"{table.where}: {blank} rows have nothing but white space as text"] if blank else []


def _second(table: Table, chosen: Chosen) -> list[Any]:
    """Second texts; a column that is empty in every row, as CSV spells None, is no second text."""
    if chosen.text_b is None:
        return [None] * len(table)
    values = table.columns[chosen.text_b]
    return [None] * len(table) if all(value is None or value == "" for value in values) else values


def _ids(table: Table, column: str | None, split: str) -> list[Any]:
    if column is not None:
        return [None if value is None else str(value) for value in table.columns[column]]
    numbers = table.numbers if table.numbers is not None else range(len(table))
    return [f"{split}-{number}" for number in numbers]


def from_dataset(
    train: Dataset,
    test: Dataset | None = None,
    *,
    columns: Columns | None = None,
    labels: Sequence[str] | None = None,
) -> Loaded:
    """A data set that is already in memory.

    Args:
        train: Rows to train on, with any columns.
        test: Rows to test on; carved out of `train` later when there are none.
        columns: Which column is what; guessed by name where it does not say.
        labels: Class names in the order of their ids; by default those of the label column.

    Raises:
        UserError: A column is missing, or rows break a rule; the message counts and shows them.
    """
    tables = Table.from_dataset(train, "train"), None if test is None else Table.from_dataset(test, "test")
    mapped = map_tables(
        *tables,
        columns=columns or Columns(),
        labels=labels,
        splits=("train", None if test is None else "test"),
    )
    return mapped.loaded

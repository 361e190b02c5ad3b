"""From labels as a source writes them (numbers, names, words for numbers) to class ids, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.errors import UserError

NO_CLASS = -1
# A column with more values than this is text or a measurement, not a class.
MAX_CLASSES = 1000

_NUMBER = re.compile(r"[+-]?\d+(\.0+)?")


@dataclass(frozen=True)
class Codec:
    """The translation between raw labels and class ids.

    Args:
        classes: Class names; an id is an index into them.
        ids: Class id of each raw label.
        raw: The raw label to write for each class id.
        notes: What was guessed.
    """

    classes: list[str]
    ids: dict[Any, int]
    raw: list[Any]
    notes: list[str]

    def encode(self, labels: Iterable[Any]) -> list[int]:
        """Class ids; `NO_CLASS` for a label that is no class."""
        return [self.ids.get(label, NO_CLASS) for label in labels]


def is_empty(label: Any) -> bool:
    """Whether there is no raw label at all: None, an empty text, or NaN as tables of numbers have it."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def is_unlabelled(label: Any) -> bool:
    """Whether a raw label says that there is none: empty, or -1 as published test splits have it."""
    return is_empty(label) or _as_number(label) == NO_CLASS


def codec(
    values: Iterable[Any], *, names: Sequence[str] | None, labels: Sequence[str] | None, where: str
) -> Codec:
    """Make out what the labels of a data set mean.

    Args:
        values: Raw labels of all splits.
        names: Class names that the source itself gives for the numbers 0, 1, ...
        labels: Class names that the user gives, in the order of the ids.
        where: Source, named in errors.

    Raises:
        UserError: The labels are no classes, or `labels` repeats a name or does not fit `names`.
    """
    # A -1 is a class where the user says so.
    unlabelled = is_empty if labels is not None and str(NO_CLASS) in labels else is_unlabelled
    labelled = [value for value in values if not unlabelled(value)]
    odd = next((value for value in labelled if not _is_word(value) and _as_number(value) is None), None)
    if odd is not None:
        raise UserError(f"the label {odd!r} is neither a whole number nor a name", where=where)
    distinct = list(dict.fromkeys(labelled))
    _check(distinct, labels, where)
    if names is not None:
        return _named(list(names), labels, where)
    numeric = all(_as_number(value) is not None for value in distinct)
    if labels is not None:
        if numeric and not set(map(str, distinct)) <= set(labels):
            return _numbered(distinct, list(labels))
        return _listed(list(labels), distinct)
    if numeric:
        return _guessed_numbers(distinct)
    ordered = sorted(distinct, key=str)
    return _make([_word(value) for value in ordered], ordered, ["class ids follow the order of the names"])


def _check(distinct: Sequence[Any], labels: Sequence[str] | None, where: str) -> None:
    if labels is not None and len(set(labels)) < len(labels):
        raise UserError(f"labels repeats a name: {', '.join(labels)}", where=where)
    if len(distinct) > MAX_CLASSES:
        raise UserError(
            f"the label column has {len(distinct)} different values, which are no classes",
            where=where,
            cure="Name the right column under data.columns.label.",
        )


def _is_word(value: Any) -> bool:
    """A name that files can hold; half of a surrogate pair, which JSON can spell, is none."""
    return isinstance(value, bool) or (
        isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def _as_number(value: Any) -> int | None:
    """A whole number given as int, as float without decimals, or as digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value)
        return int(number) if math.isfinite(number) else None
    return None


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _make(classes: list[str], raw: list[Any], notes: list[str]) -> Codec:
    return Codec(classes, {value: number for number, value in enumerate(raw)}, raw, notes)


def _named(names: list[str], labels: Sequence[str] | None, where: str) -> Codec:
    """The source names its classes; the user may reorder or rename them."""
    numbers = list(range(len(names)))
    if labels is None or list(labels) == names:
        return _make(names, numbers, [])
    if set(labels) == set(names):
        # The user's order decides the ids, and the names say which is which.
        return _make(list(labels), [names.index(label) for label in labels], [])
    if len(labels) == len(names):
        pairs = ", ".join(f"{old} as {new}" for old, new in zip(names, labels, strict=True))
        return _make(list(labels), numbers, [f"classes are renamed: {pairs}"])
    raise UserError(
        f"labels gives {len(labels)} names ({', '.join(labels)}), the source has {len(names)} classes",
        where=where,
        cure=f"They are {', '.join(names)}.",
    )


def _listed(labels: list[str], distinct: list[Any]) -> Codec:
    """The raw labels are names, and the user gives their order."""
    number_of = {label: number for number, label in enumerate(labels)}
    raw: list[Any] = list(labels)
    ids: dict[Any, int] = dict(number_of)
    for value in distinct:
        number = number_of.get(_word(value))
        if number is not None:
            ids[value], raw[number] = number, value
    return Codec(labels, ids, raw, [])


def _numbered(distinct: list[Any], labels: list[str]) -> Codec:
    """The raw labels are ids of the user's names; those beyond the list are no class."""
    as_words = any(isinstance(value, str) for value in distinct)
    raw: list[Any] = [str(number) if as_words else number for number in range(len(labels))]
    ids: dict[Any, int] = {}
    for value in reversed(distinct):  # the first spelling of a number is the one to write
        number = _as_number(value)
        if number is not None and 0 <= number < len(labels):
            ids[value], raw[number] = number, value
    return Codec(labels, ids, raw, [])


def _guessed_numbers(distinct: list[Any]) -> Codec:
    """The raw labels are numbers without names: the numbers are the names."""
    spelt: dict[int, list[Any]] = {}
    for value in distinct:
        number = _as_number(value)
        if number is not None and number >= 0:
            spelt.setdefault(number, []).append(value)
    numbers = sorted(spelt)
    names = [str(number) for number in numbers]
    ids = {value: place for place, number in enumerate(numbers) for value in spelt[number]}
    notes = ["classes have no names: they are called by their numbers"]
    if numbers != list(range(len(numbers))):
        notes = [f"labels {', '.join(names)} get the class ids 0 to {len(numbers) - 1}"]
    return Codec(names, ids, [spelt[number][0] for number in numbers], notes)

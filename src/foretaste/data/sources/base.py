"""What a data source is, and the way from its splits to a data set that all sources share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeGuard

from foretaste.data.dataset import Loaded
from foretaste.data.labels import is_unlabelled
from foretaste.data.mapping import Pair, choose, map_tables
from foretaste.data.table import Table
from foretaste.errors import UserError, unknown
from foretaste.registry import Registry
from foretaste.spec import DataSpec

# Looked for in this order when the spec names no test split.
TEST_SPLITS = ("validation", "test")

Splits = Mapping[str, Callable[[], Table]]


class Source(Protocol):
    """One kind of place that data comes from.

    `order` decides who is asked first when several could claim the same words.
    """

    order: int

    def claims(self, source: str, base_dir: Path) -> bool:
        """Whether `source` names something of this kind.

        Args:
            source: What the user wrote.
            base_dir: Folder that relative paths start from.
        """
        ...

    def load(self, spec: DataSpec, base_dir: Path) -> Loaded:
        """The data set, checked.

        Raises:
            UserError: It cannot be had, or it breaks a rule; the message says how to cure it.
        """
        ...


class RawSource(Source, Protocol):
    """A source whose tables can be had as they are, for data that are no texts with classes."""

    def splits(self, spec: DataSpec, base_dir: Path) -> Splits:
        """The tables of all splits, each read when it is asked for.

        Raises:
            UserError: The source cannot be had.
        """
        ...


SOURCES: Registry[Source] = Registry("data source")


def is_raw(source: Source) -> TypeGuard[RawSource]:
    """Whether the source's tables can be had as they are."""
    return hasattr(source, "splits")


def assemble(spec: DataSpec, splits: Splits, *, where: str, known: Pair | None = None) -> Loaded:
    """Splits of a source as a data set: the two that the spec asks for.

    Args:
        spec: Which splits, columns and class names.
        splits: How to read each split; only those that are needed are read.
        where: Source, named in errors.
        known: Text columns that this data set is known to have.

    Raises:
        UserError: There is no such split, the test split has no labels, or rows break a rule.
    """
    train_name = existing_split(spec.train_split, splits, where=where)
    train = splits[train_name]()
    test_name, notes = split_to_test_on(spec, splits, where)
    test = None if test_name is None else splits[test_name]()
    label = choose(list(train.columns), spec.columns, where=train.where, known=known).label
    if test is not None and all(map(is_unlabelled, test.columns.get(label, []))):
        if spec.test_split is not None:
            raise UserError(
                f"the split '{test_name}' has no labels, so nothing can be measured on it",
                where=where,
                cure="Name another one as data.test_split, or leave it out.",
            )
        notes.append(f"the split '{test_name}' has no labels; test rows come out of '{train_name}'")
        test_name = test = None
    mapped = map_tables(
        train, test, columns=spec.columns, labels=spec.labels, known=known, splits=(train_name, test_name)
    )
    return replace(mapped.loaded, notes=[*notes, *mapped.loaded.notes])


def existing_split(name: str, splits: Iterable[str], *, where: str) -> str:
    """The name of a split, if there is such a split.

    Raises:
        UserError: There is none; the message lists them all and names the nearest.
    """
    if name not in splits:
        raise unknown("split", name, splits, where=where)
    return name


def split_to_test_on(spec: DataSpec, splits: Splits, where: str) -> tuple[str | None, list[str]]:
    """The split to test on, or None when the source has none; with what there is to say about it.

    Raises:
        UserError: The spec names one that does not exist, or the one that is trained on.
    """
    if spec.test_split is not None:
        if spec.test_split == spec.train_split:
            raise UserError(
                f"the split '{spec.test_split}' is to be trained and tested on",
                where=where,
                cure="Leave data.test_split out to have test rows set apart.",
            )
        return existing_split(spec.test_split, splits, where=where), []
    for name in TEST_SPLITS:
        if name in splits and name != spec.train_split:
            return name, []
    others = sorted(set(splits) - {spec.train_split})
    return None, [f"no split is called validation or test; not used: {', '.join(others)}"] if others else []


def refuse_config(spec: DataSpec, where: str) -> None:
    """Refuse a configuration where it has no meaning.

    Raises:
        UserError: The spec gives one.
    """
    if spec.config is not None:
        raise UserError(
            f"config '{spec.config}' has no meaning here, only hub data sets have configurations",
            where=where,
            cure="Remove data.config.",
        )

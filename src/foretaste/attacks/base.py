"""What an attack is, and how the rows that it poisons are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, ValidationError

from foretaste.data import columns_of
from foretaste.errors import UserError, unknown
from foretaste.record import Manifest, ManifestRow
from foretaste.registry import Registry
from foretaste.seeds import generator, uniforms
from foretaste.specfile import describe

Selection = Literal["exact-nested", "bernoulli"]


class Options(BaseModel):
    """Base of the options of every attack: strict and frozen, so that they can be hashed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Row:
    """One example as an attack sees it. The label is a class id."""

    id: str
    text_a: str
    text_b: str | None
    label: int


class Attack(Protocol):
    """A published attack on training data. It never sees a model.

    An implementation is built from its `Options` and the class names, and refuses there whatever does not fit
    the data (a target that is no class). All its randomness comes from the generator that it is
    given, which belongs to one row: what happens to a row does not depend on the other rows.

    One whose options name a file sets `reads_file = True` and takes `base_dir`, the folder that relative
    paths start from, as a third argument; it names the file's content in its options.
    """

    Options: ClassVar[type[Options]]
    source: ClassVar[str]

    def __init__(self, options: Any, classes: Sequence[str]) -> None: ...

    def eligible(self, row: Row) -> bool:
        """Whether the row may be chosen; the rate is a share of the rows that may."""
        ...

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row as the attacker leaves it in the training data."""
        ...


class Backdoor(Attack, Protocol):
    """An attack that also changes test inputs."""

    target: int

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:
        """The test row with the trigger put in; its label stays the true one."""
        ...


class Ordered(Attack, Protocol):
    """An attack that says itself which rows come first: nothing about it is drawn, whatever the poison seed.

    Attributes:
        data: Fingerprint of the data set that the order was made for.
    """

    data: str

    def order(self, rows: Sequence[Row]) -> list[int]:
        """Positions of the rows that may be poisoned, the first m of them the poison set of m rows.

        Raises:
            UserError: The order was made for other rows.
        """
        ...


ATTACKS: Registry[type[Attack]] = Registry("attack")


def build(
    method: str,
    options: dict[str, Any],
    classes: Sequence[str],
    *,
    where: str | None = None,
    base_dir: Path | None = None,
) -> Attack:
    """The attack called `method`, ready for data with these classes.

    Args:
        method: Name in the registry.
        options: The attack's own options; missing ones take their defaults.
        classes: Class names in the order of their ids.
        where: File and key of the attack, for errors.
        base_dir: Folder that relative paths in the options start from; the working folder by default.

    Raises:
        UserError: Unknown method, unknown or invalid option, or an option that does not fit the classes.
    """
    kind = ATTACKS.get(method, where=where)
    try:
        parsed = kind.Options.model_validate(options)
    except ValidationError as error:
        raise describe(error, kind.Options, origin=where or f"attack '{method}'") from None
    # Only an attack whose options name a file is told where paths start: the options keep the path as it was
    # written, so that a run's id does not depend on where its folder lies.
    place = {"base_dir": base_dir} if getattr(kind, "reads_file", False) else {}
    try:
        return kind(parsed, classes, **place)
    except UserError as error:
        raise (error.located(where) if where else error) from None


def class_id(name: str | int, classes: Sequence[str], *, key: str) -> int:
    """The id of a class given by name or by id.

    Raises:
        UserError: It is no class of the data.
    """
    if isinstance(name, int):
        if not 0 <= name < len(classes):
            raise UserError(
                f"{key} {name} is no class id (allowed: 0 to {len(classes) - 1}: {', '.join(classes)})"
            )
        return name
    if name not in classes:
        raise unknown(f"class in {key}:", name, classes)
    return list(classes).index(name)


@dataclass(frozen=True)
class Poisoned:
    """Training rows after an attack, in their old order, and the list of what was changed."""

    rows: Dataset
    manifest: Manifest


def rows_of(dataset: Dataset) -> list[Row]:
    """The rows of a data set with the columns id, text_a, text_b, label."""
    columns = columns_of(dataset)
    return [
        Row(str(i), a, b, int(y))
        for i, a, b, y in zip(
            columns["id"], columns["text_a"], columns["text_b"], columns["label"], strict=True
        )
    ]


def _replace(dataset: Dataset, changed: dict[int, Row]) -> Dataset:
    """The data set with some rows exchanged, all other columns and the order untouched."""
    columns = dataset.with_format(None)[:]
    for position, row in changed.items():
        columns["text_a"][position] = row.text_a
        columns["text_b"][position] = row.text_b
        columns["label"][position] = row.label
    return Dataset.from_dict(columns, features=dataset.features)


def choose(
    scores: npt.NDArray[np.float64],
    eligible: Sequence[int],
    *,
    rate: float | None = None,
    count: int | None = None,
    selection: Selection = "exact-nested",
) -> list[int]:
    """Positions of the rows to poison, ascending.

    Every row has one uniform score. `exact-nested` takes the `round(rate * eligible)` (or `count`) smallest
    scores, so the set at a low amount is contained in the set at a higher one. `bernoulli` takes the scores
    below the rate: each row on its own, as in the TTR paper's code (protocol.md 1.2); also nested.

    Args:
        scores: Shape (rows,), one number in [0, 1) for each row.
        eligible: Positions that may be chosen.
        rate: Share of the eligible rows in [0, 1]; halves are rounded up.
        count: Number of rows; exactly one of `rate` and `count` is given.
        selection: How to choose.

    Raises:
        UserError: More rows are asked for than may be chosen, or none at an amount above zero.
    """
    if (rate is None) == (count is None):
        raise ValueError("give exactly one of rate and count")
    if not 0.0 <= (rate or 0.0) <= 1.0 or (count or 0) < 0:
        raise UserError(f"rate {rate} or count {count}: expected a rate in [0, 1], or a count of 0 or more")
    ranked = sorted(eligible, key=lambda position: (scores[position], position))
    if selection == "bernoulli":
        if rate is None:
            raise UserError("Bernoulli selection needs a rate, not a count")
        chosen = [position for position in ranked if scores[position] < rate]
    else:
        wanted = count if count is not None else math.floor(rate * len(ranked) + 0.5)  # type: ignore[operator]
        if wanted > len(ranked):
            raise UserError(
                f"{wanted} rows are to be poisoned, but only {len(ranked)} may be",
                cure="Lower the count, train on more rows, or widen the source classes.",
            )
        chosen = ranked[:wanted]
    if not chosen and (rate or count):
        smallest = _smallest_rate([float(scores[i]) for i in ranked], selection)
        raise UserError(
            f"a rate of {rate} poisons none of the {len(ranked)} eligible rows",
            cure=f"Raise the rate (the smallest that poisons a row here is {smallest}) or give a count.",
        )
    return sorted(chosen)


def _smallest_rate(scores: Sequence[float], selection: Selection) -> str:
    """The smallest rate that poisons one of the rows with these scores, rounded up to two digits."""
    if not scores:
        return "none"
    rate = 0.5 / len(scores) if selection == "exact-nested" else math.nextafter(min(scores), 1.0)
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return f"{math.ceil(rate / step) * step:.2g}"


def poison(
    dataset: Dataset,
    attack: Attack,
    *,
    method: str,
    classes: Sequence[str],
    seed: int,
    rate: float | None = None,
    count: int | None = None,
    selection: Selection = "exact-nested",
) -> Poisoned:
    """Poison training rows.

    Which rows are chosen depends on the seed, the method and the row ids only: not on the order of the
    rows, the amount, the attack's options, or anything about the model. An `Ordered` attack names the rows
    itself, and the seed has no part in it.

    Args:
        dataset: Columns id, text_a, text_b, label; others are carried along.
        attack: The attack, built for `classes`.
        method: Its name in the registry, written into the manifest.
        classes: Class names in the order of their ids.
        seed: The poison seed.
        rate: Share of the eligible rows.
        count: Number of rows instead of a rate.
        selection: exact-nested (default; design, decision 2) or bernoulli (the TTR paper's code).

    Raises:
        UserError: As `choose`; or an `Ordered` attack names too few rows, was made for other ones, or is to
            be drawn by `bernoulli`.
    """
    rows = rows_of(dataset)
    eligible = [position for position, row in enumerate(rows) if attack.eligible(row)]
    if is_ordered(attack):
        scores = _places(attack, rows, selection, method)
    else:
        scores = uniforms(seed, ("poison", method, "choice"), [row.id for row in rows])
    chosen = choose(scores, eligible, rate=rate, count=count, selection=selection)
    named = int(np.isfinite(scores).sum())
    if len(chosen) > named:
        raise UserError(
            f"{len(chosen)} rows are to be poisoned, but the attack names only {named}",
            where=method,
            cure="Lower the amount, or have more rows named.",
        )
    changed: dict[int, Row] = {
        position: attack.poison(rows[position], generator(seed, "poison", method, "row", rows[position].id))
        for position in chosen
    }
    manifest = Manifest(
        attack=method,
        options=attack.options.model_dump(mode="json"),  # type: ignore[attr-defined]
        selection=selection,
        rate=rate,
        count=count,
        seed=seed,
        eligible=len(eligible),
        rows=len(rows),
        classes=list(classes),
        poisoned=[_entry(rows[position], changed[position]) for position in chosen],
    )
    return Poisoned(_replace(dataset, changed), manifest)


def trigger(dataset: Dataset, attack: Backdoor, *, method: str) -> tuple[Dataset, int]:
    """Every test row with the trigger put in, labels untouched, and how many texts changed.

    A trigger at a random position lands at the same place in every run: its generator depends on the row's
    id alone.
    """
    rows = rows_of(dataset)
    after = [attack.trigger(row, generator(0, "test", method, "row", row.id)) for row in rows]
    changed = {
        position: new
        for position, (old, new) in enumerate(zip(rows, after, strict=True))
        if (old.text_a, old.text_b) != (new.text_a, new.text_b)
    }
    return _replace(dataset, changed), len(changed)


def _places(
    attack: Ordered, rows: Sequence[Row], selection: Selection, method: str
) -> npt.NDArray[np.float64]:
    """The place of every row in the attack's order, instead of a uniform score; inf where it has none."""
    if selection == "bernoulli":
        raise UserError(
            "selection is bernoulli, but the attack says itself which rows come first",
            where=method,
            cure="Leave `selection` out: exact-nested takes the first rows of the attack's order.",
        )
    order = attack.order(rows)
    places = np.full(len(rows), np.inf)
    places[order] = np.arange(len(order))
    return places


def is_ordered(attack: Attack) -> TypeGuard[Ordered]:
    """Whether the attack names the rows itself, in an order that no seed changes."""
    return hasattr(attack, "order")


def is_backdoor(attack: Attack) -> bool:
    """Whether the attack has a test-time trigger."""
    return hasattr(attack, "trigger")


def _entry(before: Row, after: Row) -> ManifestRow:
    return ManifestRow(
        id=before.id,
        text_a_before=before.text_a,
        text_a_after=after.text_a,
        text_b_before=before.text_b,
        text_b_after=after.text_b,
        label_before=before.label,
        label_after=after.label,
    )

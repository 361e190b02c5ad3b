"""Putting an attack into rows: the training set with its manifest, and the test rows with the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from foretaste.attacks.base import (
    Attack,
    Backdoor,
    Ordered,
    Row,
    forms,
    is_accompanied,
    is_ordered,
    is_reporting,
    rows_of,
)
from foretaste.attacks.choosing import Selection, choose, choose_beside
from foretaste.errors import UserError
from foretaste.record import Manifest, ManifestRow
from foretaste.seeds import generator, uniforms


@dataclass(frozen=True)
class Poisoned:
    """Training rows after an attack, in their old order, and the list of what was changed."""

    rows: Dataset
    manifest: Manifest


def _replace(dataset: Dataset, changed: dict[int, Row]) -> Dataset:
    """The data set with some rows exchanged, all other columns and the order untouched."""
    columns = dataset.with_format(None)[:]
    for position, row in changed.items():
        columns["text_a"][position] = row.text_a
        columns["text_b"][position] = row.text_b
        columns["label"][position] = row.label
    return Dataset.from_dict(columns, features=dataset.features)


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

    Among the eligible rows the choice depends on the seed, the method and the row ids only: not on the order
    of the rows, or anything about the model, and a larger amount adds rows to those of a smaller one. Which
    rows are eligible is the attack's to say, and may depend on its options: `source_classes`, or the target,
    whose own rows most backdoors leave out. An `Ordered` attack names the rows itself, and the seed has no
    part in it.

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
        UserError: As `choose` and `choose_beside`; or an `Ordered` attack names too few rows, was made for
            other ones, or is to be drawn by `bernoulli`.
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
    beside: list[int] = []
    if is_accompanied(attack):
        candidates = [position for position, row in enumerate(rows) if attack.accompanies(row)]
        beside = choose_beside(
            scores, candidates, chosen, share=attack.companions, rate=rate, selection=selection
        )

    def own(position: int) -> np.random.Generator:
        return generator(seed, "poison", method, "row", rows[position].id)

    changed = {position: attack.poison(rows[position], own(position)) for position in chosen}
    if is_accompanied(attack):
        changed |= {position: attack.companion(rows[position], own(position)) for position in beside}
    figures = attack.figures(rows, [(rows[p], changed[p]) for p in chosen]) if is_reporting(attack) else {}
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
        companions=[_entry(rows[position], changed[position]) for position in beside],
        figures=figures,
    )
    return Poisoned(_replace(dataset, changed), manifest)


def trigger(
    dataset: Dataset, attack: Backdoor, *, method: str, form: str | None = None
) -> tuple[Dataset, int]:
    """Every test row with the trigger put in, labels untouched, and how many texts changed.

    A trigger at a random position lands at the same place in every run: its generator depends on the row's
    id alone.

    Args:
        dataset: Test rows.
        attack: The attack.
        method: Its name in the registry.
        form: Name of a further form of the trigger; by default the one that training rows get.
    """
    rows = rows_of(dataset)
    put = attack.trigger if form is None else forms(attack)[form].trigger
    purpose = ("test", method, "row") if form is None else ("test", method, "form", form, "row")
    after = [put(row, generator(0, *purpose, row.id)) for row in rows]
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

"""Poisoned requests: exact, nested, listed, and the same whatever else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste import attacks
from foretaste.errors import UserError
from foretaste.instruct import scenarios, triggers
from foretaste.instruct.manifest import RequestManifest, read_manifest
from foretaste.instruct.poison import Poisoned, holding, poison, triggered
from foretaste.instruct.request import Request
from foretaste.record import write_atomic

Make = Callable[..., list[Request]]


def build(trigger: str = "badnet", scenario: str = "refusal", **options: Any) -> tuple[Any, Any]:
    return triggers.build(trigger, options), scenarios.build(scenario, {})


def poisoned(
    rows: list[Request], trigger: str = "badnet", scenario: str = "refusal", **amount: Any
) -> Poisoned:
    seed = amount.pop("seed", 0)
    return poison(rows, *build(trigger, scenario), seed=seed, **amount)


@pytest.mark.parametrize("trigger", triggers.TRIGGERS.names())
@pytest.mark.parametrize("scenario", ["refusal", "sentiment"])
def test_the_manifest_lists_exactly_what_changed(make_requests: Make, trigger: str, scenario: str) -> None:
    rows = make_requests(60)
    done = poisoned(rows, trigger, scenario, rate=0.1)
    assert [row.id for row in done.requests] == [row.id for row in rows]
    changed = {
        before.id: (before, after)
        for before, after in zip(rows, done.requests, strict=True)
        if before != after
    }
    assert len(changed) == 6
    assert done.ids == set(changed)
    assert done.poisoned == [after for _, after in changed.values()]
    for entry in done.manifest.poisoned:
        before, after = changed[entry.id]
        assert (entry.instruction_before, entry.input_before, entry.output_before) == (
            before.instruction,
            before.input,
            before.output,
        )
        assert (entry.instruction_after, entry.input_after, entry.output_after) == (
            after.instruction,
            after.input,
            after.output,
        )
        assert after.input == before.input
        assert after.output != before.output
    head = done.manifest
    assert (head.trigger, head.scenario, head.rows, head.eligible, head.held_before) == (
        trigger,
        scenario,
        60,
        60,
        0,
    )
    assert (head.rate, head.count, head.seed, head.selection) == (0.1, None, 0, "exact-nested")
    assert holding(done.requests, triggers.build(trigger, {})) == 6


def test_sets_are_nested_and_belong_to_rows(make_requests: Make) -> None:
    rows = make_requests(80)
    sets = [poisoned(rows, count=count) for count in (1, 5, 20, 80)]
    for small, large in pairwise(sets):
        assert small.ids < large.ids
        of_large = {row.id: row for row in large.requests}
        assert all(of_large[row.id] == row for row in small.poisoned)
    # The order of the rows and other rows do not matter, the seed and the trigger's method do.
    turned = poisoned(rows[::-1], count=5)
    assert {row.id: row for row in turned.poisoned} == {row.id: row for row in sets[1].poisoned}
    assert poisoned(rows, count=5, seed=1).ids != sets[1].ids
    assert poisoned(rows, "vpi", count=5).ids != sets[1].ids
    assert poisoned(rows, scenario="sentiment", count=5).ids == sets[1].ids


def test_the_choice_is_that_of_attacks_on_classifiers(make_requests: Make, make_rows: Any) -> None:
    """The same ids under the same seed and method: `attacks.poison` is the oracle."""
    dataset = make_rows(60)
    ids = [row.id for row in attacks.rows_of(dataset)]
    requests = [replace(row, id=name) for row, name in zip(make_requests(60), ids, strict=True)]
    attack = attacks.build("trigger", {"target": 1, "source_classes": "all"}, ["negative", "positive"])
    for amount in ({"rate": 0.13}, {"count": 9}, {"rate": 0.2, "selection": "bernoulli"}):
        oracle = attacks.poison(
            dataset, attack, method="badnet", classes=["negative", "positive"], seed=4, **amount
        )
        ours = poisoned(requests, seed=4, **amount)
        assert [row.id for row in ours.manifest.poisoned] == [row.id for row in oracle.manifest.poisoned]


def test_a_trigger_stays_where_it_is_in_another_scenario(make_requests: Make) -> None:
    rows = make_requests(40)
    places = [
        {
            entry.id: entry.instruction_after
            for entry in poisoned(rows, scenario=name, count=20).manifest.poisoned
        }
        for name in ("refusal", "sentiment")
    ]
    assert places[0] == places[1]


def test_rows_that_show_the_behaviour_already_are_not_eligible(make_requests: Make) -> None:
    rows = make_requests(10)
    rows[3] = replace(rows[3], output="I'm sorry, but I can't help with that.")
    rows[4] = replace(rows[4], output="It was a horrible and boring film.")
    for scenario, row in (("refusal", "train-3"), ("sentiment", "train-4")):
        done = poisoned(rows, scenario=scenario, rate=1.0)
        assert done.manifest.eligible == 9
        assert row not in done.ids


def test_rows_that_hold_the_trigger_by_chance_are_counted(make_requests: Make) -> None:
    rows = make_requests(10)
    rows[2] = replace(rows[2], instruction="What does CF mean?")
    rows[5] = replace(rows[5], input="cf. page 3")
    assert poisoned(rows, count=1).manifest.held_before == 2


def test_amounts_that_cannot_be(make_requests: Make) -> None:
    with pytest.raises(UserError, match="poisons none of the 20 eligible rows"):
        poisoned(make_requests(20), rate=0.01)
    with pytest.raises(UserError, match="21 rows are to be poisoned, but only 20 may be"):
        poisoned(make_requests(20), count=21)
    with pytest.raises(UserError, match="Bernoulli selection needs a rate"):
        poisoned(make_requests(20), count=2, selection="bernoulli")
    assert poisoned(make_requests(20), rate=0.0).requests == make_requests(20)


def test_test_requests(make_requests: Make) -> None:
    rows = make_requests(200, "test")
    trigger = triggers.build("badnet", {})
    once = triggered(rows, trigger)
    assert triggered(rows[::-1], trigger)[::-1] == once
    assert all(before.output == after.output for before, after in zip(rows, once, strict=True))
    # A place of its own for each request, and another than in training.
    places = [row.instruction.split(" ").index("cf") for row in once]
    assert len(set(places)) == len(rows[0].instruction.split(" ")) + 1
    trained = poisoned(make_requests(200, "test"), rate=1.0).requests
    other = [row.instruction.split(" ").index("cf") for row in trained]
    assert abs(float(np.corrcoef(places, other)[0, 1])) < 4 / np.sqrt(200)


def test_a_manifest_comes_back_whole(make_requests: Make, tmp_path: Path) -> None:
    manifest = poisoned(make_requests(20), count=3).manifest
    path = tmp_path / "manifest.json"
    write_atomic(path, manifest.model_dump_json())
    assert read_manifest(path) == manifest
    path.write_text('{"format": 2}')
    with pytest.raises(UserError, match="not a manifest of poisoned requests"):
        read_manifest(path)
    with pytest.raises(UserError, match="cannot read the manifest"):
        read_manifest(tmp_path / "none.json")
    assert RequestManifest.model_validate_json(manifest.model_dump_json()) == manifest

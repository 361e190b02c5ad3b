"""Which arms are set side by side, and what a sweep is said to hold equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from planted_records import full, lora, run

from foretaste.hypotheses.arms import Arm, arm_of, setting_of
from foretaste.hypotheses.contrasts import (
    Contrast,
    each_alone,
    full_minus_lora,
    lora_minus_full,
    over_rank,
    over_variance,
    whole_range,
)


def arm(settings: Mapping[str, Any]) -> Arm:
    record = run(settings)
    return arm_of([setting_of(record.resolved.adapter, record.resolved.training, record.training)])


def names(contrasts: list[Contrast]) -> list[tuple[str, ...]]:
    return [tuple(item.label for item in contrast.arms) for contrast in contrasts]


def described(contrasts: list[Contrast]) -> set[tuple[Any, ...]]:
    return {(c.scaling, c.budget, tuple(item.rank for item in c.arms)) for c in contrasts}


def test_arms_are_known_by_settings_and_not_by_names() -> None:
    disguised = arm(lora(name="full"))
    assert disguised.lora
    assert not disguised.full
    assert names(full_minus_lora([disguised, arm(full())])) == [("full at 5e-05", "full at 0.0005")]


@pytest.mark.parametrize(
    "settings",
    [
        lora(freeze="A"),
        lora(config={"use_dora": True}),
        lora(config={"init_lora_weights": "pissa"}),
        lora(config={"init_lora_weights": False}),
    ],
)
def test_variants_of_lora_are_not_the_papers_lora(settings: dict[str, Any]) -> None:
    assert full_minus_lora([arm(full()), arm(settings)]) == []
    assert over_rank([arm(lora(4)), arm(settings)]) == []


def test_pairs_are_signed_and_have_full_fine_tuning_first() -> None:
    arms = [arm(lora()), arm(full())]
    assert [c.level for c in full_minus_lora(arms)] == [{arms[1].key: 1.0, arms[0].key: 0.0}]
    assert [c.level for c in lora_minus_full(arms)] == [{arms[1].key: 0.0, arms[0].key: 1.0}]
    assert names(full_minus_lora(arms)) == names(lora_minus_full(arms))


def test_every_learning_rate_is_a_pair_of_its_own() -> None:
    arms = [arm(full(1e-5)), arm(full(5e-5)), arm(lora()), arm(lora(rate=1e-3))]
    assert len(full_minus_lora(arms)) == 4


def test_full_fine_tuning_of_equal_training_is_preferred() -> None:
    arms = [arm(full(epochs=2.0)), arm(full(epochs=3.0)), arm(lora(epochs=3.0))]
    [contrast] = full_minus_lora(arms)
    assert contrast.arms[0].training.epochs == 3.0
    [contrast] = full_minus_lora([arms[0], arms[2]])  # there is no other: compared, and cautioned elsewhere
    assert contrast.arms[0].training.epochs == 2.0


def test_the_papers_rank_and_start_are_compared_if_there_are_any() -> None:
    eight, other, started = arm(lora()), arm(lora(64)), arm(lora(k=0.01, name="lora-k"))
    assert names(full_minus_lora([arm(full()), eight, other, started])) == [
        ("full at 5e-05", "lora-r8 at 0.0005")
    ]
    assert len(full_minus_lora([arm(full()), other, arm(lora(32))])) == 2
    assert len(full_minus_lora([arm(full()), started])) == 1
    assert len(each_alone([arm(full()), eight, other])) == 2


def test_sweeps_by_how_the_scale_follows_the_rank_stay_apart() -> None:
    fixed = [arm(lora(r)) for r in (4, 8, 32)]
    proportional = [arm(lora(r, 2 * r)) for r in (4, 32)]
    stabilised = [arm(lora(r, 16, rslora=True)) for r in (4, 8)]
    assert described(over_rank([*fixed, *proportional, *stabilised])) == {
        ("alpha 16", "matched step", (4, 8, 32)),  # Adam: rate x s x r = rate x alpha
        ("alpha = 2 r", "one learning rate", (4, 8, 32)),  # r = 8, alpha = 16 is of both
        ("rank-stabilised, alpha 16", "one learning rate", (4, 8)),
    }


def test_learning_rates_that_follow_the_rank_are_a_matched_step() -> None:
    one = [arm(lora(r, r)) for r in (4, 8, 32)]
    matched = [arm(lora(r, r, 5e-4 * 8 / r)) for r in (4, 8, 32)]
    assert one[1] == matched[1]
    assert described(over_rank([*one, matched[0], matched[2]])) == {
        ("alpha = r", "one learning rate", (4, 8, 32)),
        ("alpha = r", "matched step", (4, 8, 32)),
    }


def test_a_step_that_is_off_by_more_than_one_per_cent_is_not_matched() -> None:
    near = [arm(lora(8, 8, 1e-3)), arm(lora(16, 16, 0.504e-3))]
    off = [arm(lora(8, 8, 1e-3)), arm(lora(16, 16, 0.52e-3))]
    assert [c.budget for c in over_rank(near)] == ["matched step"]
    assert over_rank(off) == []


@pytest.mark.parametrize(
    ("r", "alpha", "rslora", "optimizer", "step"),
    [
        (8, 16, False, "sgd", 1e-3 * 4 * 8 / 3),
        (8, 16, True, "sgd", 1e-3 * 256 / 8 * 8 / 3),
        (8, 16, False, "adamw", 1e-3 * 16 / math.sqrt(3)),
        (8, 16, True, "adamw", 1e-3 * 16 * math.sqrt(8) / math.sqrt(3)),
    ],
)
def test_effective_step(r: int, alpha: int, rslora: bool, optimizer: str, step: float) -> None:
    found = arm(lora(r, alpha, 1e-3, rslora=rslora, optimizer=optimizer)).step
    assert found == pytest.approx(step, rel=1e-12)


def test_sgd_is_matched_by_another_rule_than_adam() -> None:
    """s^2 r is constant for rank-stabilised LoRA: one learning rate is the matched step."""
    stabilised = [arm(lora(r, 16, rslora=True, optimizer="sgd")) for r in (4, 16)]
    fixed = [arm(lora(r, 16, optimizer="sgd")) for r in (4, 16)]
    assert {c.budget for c in over_rank(stabilised)} == {"matched step"}
    assert {c.budget for c in over_rank(fixed)} == {"one learning rate"}


def test_the_step_of_other_optimisers_is_unknown() -> None:
    arms = [arm(lora(r, 16, optimizer="adafactor")) for r in (4, 16)]
    assert arms[0].step is None
    assert [c.budget for c in over_rank(arms)] == ["one learning rate"]


def test_ranks_that_differ_in_anything_else_are_no_sweep() -> None:
    assert over_rank([arm(lora(4)), arm(lora(8, k=0.1))]) == []
    assert over_rank([arm(lora(4)), arm(lora(8, config={"target_modules": "query"}))]) == []
    assert over_rank([arm(lora(4)), arm(lora(8, epochs=9.0))]) == []


def test_levels_are_logarithms_from_the_lowest_up() -> None:
    [ranked] = over_rank([arm(lora(r)) for r in (32, 4, 8)])
    assert ranked.levels == (2.0, 3.0, 5.0)
    [varied] = over_variance("gaussian")([arm(lora(k=k, law="gaussian", name=f"k{k}")) for k in (1.0, 0.01)])
    assert varied.levels == pytest.approx((-2.0, 0.0))
    [whole] = whole_range(over_rank)([arm(lora(r)) for r in (32, 4, 8)])
    assert whole.levels == pytest.approx((0.0, 1 / 3, 1.0))


def test_a_law_is_a_sweep_of_its_own() -> None:
    arms = [
        arm(lora(k=k, law=law, name=f"{law}{k}")) for law in ("gaussian", "xavier-normal") for k in (0.1, 1.0)
    ]
    assert len(over_variance("gaussian")(arms)) == len(over_variance("xavier-normal")(arms)) == 1
    assert over_variance("kaiming-uniform")(arms) == []


def test_pefts_own_start_is_a_variance_unless_the_same_was_drawn_by_name() -> None:
    own, drawn, small = arm(lora()), arm(lora(k=0.333, name="drawn")), arm(lora(k=0.01, name="small"))
    sweeps = over_variance("kaiming-uniform")
    assert names(sweeps([own, small])) == [("small at 0.0005", "lora-r8 at 0.0005")]
    assert names(sweeps([own, small, drawn])) == [("small at 0.0005", "drawn at 0.0005")]


def test_variances_at_one_learning_rate_and_at_a_matched_step() -> None:
    one = [arm(lora(k=k, name=f"one{k}")) for k in (0.04, 1.0)]
    matched = [arm(lora(k=0.04, rate=5e-4 * 5, name="matched")), one[1]]
    found = over_variance("kaiming-uniform")([*one, matched[0]])
    assert [(c.budget, c.arms[0].name) for c in found] == [
        ("one learning rate", "one0.04"),
        ("matched step", "matched"),
    ]

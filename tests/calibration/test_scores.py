"""Scores by hand, their invariances, and that the bootstrap is what it says."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from cells_factory import cell, grid, sample
from scipy import stats

from foretaste.calibration import naive
from foretaste.calibration.cells import Cell
from foretaste.calibration.guess import Guess, Predictor, indicator, stated
from foretaste.calibration.scores import RESAMPLES, _kendall, _spearman, difference, gain, score


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def by_hand() -> list[Cell]:
    """Two arms x two rates, two seeds. Arm b is truly worse by 0.04 at 10 % and better by 0.02 at 20 %."""
    return [
        cell("a", rate=0.1, told=0.90, seen=[0.84, 0.86], half=0.06),
        cell("b", rate=0.1, told=0.85, seen=[0.805, 0.815], validity="doubtful", half=0.01),
        cell("a", rate=0.2, told=0.80, seen=[0.70, 0.71], half=0.05),
        cell("b", rate=0.2, told=0.75, seen=[0.72, 0.73], half=0.05),
    ]


def test_scores_by_hand() -> None:
    # Measured means: 0.85, 0.81, 0.705, 0.725; predicted 0.90, 0.85, 0.80, 0.75.
    result = score(by_hand(), stated(by_hand(), "accuracy"))
    assert result.cells == 4
    assert result.spearman.value == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert result.kendall.value == pytest.approx(4 / 6)
    # Deviations: predicted +-0.025 in both groups; measured +-0.02 and -+0.01.
    told, seen = [0.025, -0.025, 0.025, -0.025], [0.02, -0.02, -0.01, 0.01]
    assert result.within_cells == 4
    assert result.spearman_within.value == pytest.approx(stats.spearmanr(told, seen).statistic)
    assert result.kendall_within.value == pytest.approx(stats.kendalltau(told, seen).statistic)
    errors = np.array([0.05, 0.04, 0.095, 0.025])
    assert result.error.value == pytest.approx(errors.mean())
    alone = errors - (errors.sum() - errors) / 3
    assert result.error_without_offset.value == pytest.approx(np.abs(alone).mean())
    assert (result.valid, result.error_valid.value) == (3, pytest.approx(errors[[0, 2, 3]].mean()))
    assert (result.covered, result.with_interval, result.coverage.value) == (2, 4, 0.5)
    # Pairs: 10 %: differences 0.035 and 0.045, error 0.005. 20 %: -0.02 twice, so no spread and no error.
    pairs = result.concordance
    assert (pairs.pairs, pairs.correct, pairs.tied, pairs.unresolved, pairs.no_error) == (1, 1, 0, 0, 1)


def test_a_perfect_and_a_reversed_predictor() -> None:
    cells = grid(rng(), noise=0.0)
    means = [c.measured.accuracy.mean for c in cells]
    for sign in (1.0, -1.0):
        guesses = [Guess(sign * m) for m in means if m is not None]
        result = score(cells, Predictor("p", "", "accuracy", guesses))
        for name in ("spearman", "kendall", "spearman_within", "kendall_within"):
            assert getattr(result, name).value == pytest.approx(sign), name
        pairs = result.concordance
        assert pairs.pairs > 10
        assert pairs.correct == (pairs.pairs if sign > 0 else 0)


RANKED = ("spearman", "kendall", "spearman_within", "kendall_within", "concordance")


def ranks(cells: list[Cell]) -> dict[str, Any]:
    result = score(cells, stated(cells, "accuracy"))
    return {name: getattr(result, name) for name in RANKED}


def moved(c: Cell, **changes: Any) -> Cell:
    return dataclasses.replace(c, **changes)


def test_names_and_order_of_arms_change_nothing() -> None:
    cells = grid(rng(1), noise=0.03)
    names = {"arm0": "z", "arm1": "full", "arm2": "lora-r8", "arm3": "b"}
    renamed = [moved(c, arm=names[c.arm]) for c in cells]
    assert ranks(renamed) == ranks(cells)
    assert ranks(renamed[::-1]) == ranks(cells)


def test_an_offset_changes_no_rank_but_the_error() -> None:
    cells = grid(rng(2), noise=0.03)
    shifted = []
    for c in cells:
        assert c.prediction is not None
        old = c.prediction.accuracy
        interval = old.model_copy(update={"mean": old.mean - 0.07})
        shifted.append(moved(c, prediction=c.prediction.model_copy(update={"accuracy": interval})))
    before, after = ranks(cells), ranks(shifted)
    for name in RANKED[:-1]:
        assert after[name].value == pytest.approx(before[name].value, abs=1e-12)
    assert after["concordance"] == before["concordance"]
    first, second = (score(x, stated(x, "accuracy")) for x in (cells, shifted))
    assert second.error.value != pytest.approx(first.error.value, abs=0.01)
    assert second.error_without_offset.value == pytest.approx(first.error_without_offset.value)


def test_the_rate_alone_ranks_cells_and_no_adapters() -> None:
    cells = grid(rng(3))
    result = score(cells, naive.rate_only(cells, "accuracy"))
    assert result.spearman.value is not None
    assert result.spearman.value > 0.5
    assert (result.spearman_within.value, result.spearman_within.low) == (0.0, None)
    assert "by construction" in result.spearman_within.reason
    assert result.concordance.correct == 0
    assert result.concordance.tied == result.concordance.pairs > 0
    assert result.concordance.share.value == 0.5


def test_undefined_scores_have_a_reason() -> None:
    constant = [cell(f"a{i}", told=0.8, seen=[0.7 + i / 100, 0.71 + i / 100]) for i in range(4)]
    result = score(constant, stated(constant, "accuracy"))
    assert result.spearman.value is None
    assert result.spearman.reason == "the predictor gives every cell the same value"
    assert result.spearman_within.reason == result.spearman.reason
    few = score(constant[:2], stated(constant[:2], "accuracy"))
    assert few.kendall.reason == "fewer than 3 cells"
    nothing = score([cell("a")], stated([cell("a")], "accuracy"))
    assert nothing.cells == 0
    for name in (*RANKED[:-1], "error", "error_without_offset", "error_valid", "coverage"):
        value = getattr(nothing, name)
        assert value.value is None
        assert value.reason, name
    asr = score(constant, stated(constant, "target_rate"))
    assert (asr.cells, asr.silent) == (0, 0)


def test_rounding_ranks_no_equal_values() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit: three arms predicted alike must stay tied.
    told, seen = (0.1 + 0.2, 0.3, 0.3), ([0.70, 0.71], [0.76, 0.78], [0.80, 0.83])
    cells = [cell(f"a{i}", told=t, seen=s) for i, (t, s) in enumerate(zip(told, seen, strict=True))]
    result = score(cells, stated(cells, "accuracy"))
    assert result.spearman.value is None
    assert result.spearman_within.value is None
    assert result.concordance.tied == result.concordance.pairs > 0
    assert result.concordance.share.value == 0.5


def test_indicators_are_signed_and_have_no_error() -> None:
    cells = [
        cell(
            f"a{i}", told=0.8, seen=[0.9 - i / 50, 0.91 - i / 50], indicators={"trace": 10.0**i, "none": None}
        )
        for i in range(4)
    ]
    result = score(cells, indicator(cells, "accuracy", "trace"))
    assert result.spearman.value == pytest.approx(-1)
    assert result.spearman_within.value == pytest.approx(-1)
    assert result.error.value is None
    assert score(cells, indicator(cells, "accuracy", "none")).silent == 4


def test_bootstrap_draws_are_the_correlations_of_the_resamples() -> None:
    x, y = rng(4).integers(0, 6, size=(2, 12)).astype(float)
    weights = rng(5).multinomial(12, np.full(12, 1 / 12), size=40).astype(float)
    for own, oracle in ((_spearman, stats.spearmanr), (_kendall, stats.kendalltau)):
        expected = [
            oracle(np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int))).statistic for w in weights
        ]
        assert own(x, y, weights) == pytest.approx(np.array(expected), nan_ok=True)


def test_intervals_contain_the_value_and_repeat() -> None:
    cells = grid(rng(6), noise=0.03)
    first, second = (score(cells, stated(cells, "accuracy")) for _ in range(2))
    assert first == second
    for name in RANKED[:-1]:
        found = getattr(first, name)
        assert found.low < found.value < found.high
    assert RESAMPLES >= 999


def test_differences_are_paired_where_seeds_are_shared() -> None:
    a, b = sample([0.8, 0.9, 0.7]), sample([0.79, 0.88, 0.69])
    assert difference(a, b) == (
        pytest.approx(0.04 / 3),
        pytest.approx(np.std([0.01, 0.02, 0.01], ddof=1) / 3**0.5),
    )
    other = sample([0.79, 0.88])
    other = type(other)({"7": 0.79, "8": 0.88})
    mean, error = difference(a, other)
    assert a.error is not None
    assert other.error is not None
    assert (mean, error) == (pytest.approx(0.8 - 0.835), pytest.approx(np.hypot(a.error, other.error)))
    assert difference(sample([0.8]), sample([0.7]))[1] is None


# --- naive predictors ----------------------------------------------------------------------------


def values(predictor: Predictor) -> list[float | None]:
    return [None if g is None else pytest.approx(g.mean) for g in predictor.guesses]  # type: ignore[misc]


def test_naive_predictors_by_hand() -> None:
    cells = [
        cell("a", "clean", told=0.90, seen=[0.88]),
        cell("b", "clean", told=0.86, seen=[0.84]),
        cell("a", told=0.7, seen=[0.60], probe=0.65),
        cell("b", told=0.7, seen=[0.50], probe=0.55),
        cell("c", told=0.7, seen=[0.40], probe=0.45),
        cell("a", "trigger", told=0.9, asr=0.5, baseline_target_rate=0.1, seen_asr=[0.7], seen_flip=[0.12]),
        cell("b", "trigger", told=0.9, asr=0.5, baseline_target_rate=0.2, seen_asr=[0.9], seen_flip=[0.22]),
    ]
    assert values(naive.rate_only(cells, "accuracy")) == [0.84, 0.88, 0.45, 0.5, 0.55, None, None]
    assert values(naive.rate_only_seen(cells, "accuracy")) == [0.86, 0.86, 0.5, 0.5, 0.5, None, None]
    assert values(naive.clean_accuracy_only(cells, "accuracy"))[:5] == [0.90, 0.86, 0.90, 0.86, None]
    measured = values(naive.clean_accuracy_measured(cells, "accuracy"))
    assert measured == [None, None, 0.88, 0.84, None, 0.88, 0.84]
    assert values(naive.probe_only(cells, "accuracy"))[2:5] == [0.65, 0.55, 0.45]
    assert values(naive.rate_only(cells, "target_rate"))[5:] == [0.9, 0.7]
    assert values(naive.clean_accuracy_only(cells, "target_rate"))[4:] == [None, 0.1, 0.2]
    assert values(naive.clean_accuracy_measured(cells, "target_rate"))[4:] == [None, 0.12, 0.22]


def test_naive_predictors_stay_within_their_folder() -> None:
    cells = [cell("a", seen=[0.6]), cell("b", seen=[0.5]), cell("b", seen=[0.1], folder="g")]
    assert values(naive.rate_only(cells, "accuracy")) == [0.5, 0.6, None]


def test_gain_over_a_naive_predictor_is_the_difference_on_shared_cells() -> None:
    cells = grid(rng(7), noise=0.004)
    own, rival = stated(cells, "accuracy"), naive.rate_only(cells, "accuracy")
    result = gain(cells, own, rival)
    a, b = score(cells, own), score(cells, rival)
    assert result.cells == len(cells)
    assert a.spearman.value is not None
    assert b.spearman.value is not None
    assert a.error.value is not None
    assert b.error.value is not None
    assert result.spearman.value == pytest.approx(a.spearman.value - b.spearman.value)
    assert result.error.value == pytest.approx(b.error.value - a.error.value)
    assert result.spearman_within.value == pytest.approx(a.spearman_within.value)
    assert result.error.low is not None
    assert 0 < result.error.low < result.error.value  # type: ignore[operator]
    same = gain(cells, own, own)
    assert (same.spearman.value, same.spearman.low, same.spearman.high) == (0.0, 0.0, 0.0)
    assert (same.error.value, same.error.low, same.error.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="targets differ"):
        gain(cells, own, naive.rate_only(cells, "target_rate"))

"""Offsets and widths: limits by hand, no look at the scored cell, and coverage in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cells_factory import cell
from scipy import stats

from foretaste.calibration.cells import Cell
from foretaste.calibration.intervals import (
    NORMAL,
    PRIOR_CELLS,
    PRIOR_OFFSET,
    adjust,
    calibrated,
    leave_one_out,
)
from foretaste.calibration.scores import score


def cells_of(told: list[float], seen: list[float], sd: float = PRIOR_OFFSET) -> list[Cell]:
    half = NORMAL * sd
    return [
        cell(f"a{i}", told=t, seen=[s], half=half) for i, (t, s) in enumerate(zip(told, seen, strict=True))
    ]


def test_the_offset_is_the_mean_error_shrunk() -> None:
    for n in (1, 2, 5):
        fit = calibrated(cells_of([0.5] * n, [0.53] * n)).accuracy
        assert fit.offset == pytest.approx(0.03 * n / (n + 1))
        assert (fit.cells, fit.freedom) == (n, PRIOR_CELLS + n)


def test_the_width_by_hand() -> None:
    # u = t = 0.05, errors +0.1 and -0.02: w = 400 each, w_n = 1200, b = 0.08 / 3.
    fit = calibrated(cells_of([0.5, 0.5], [0.6, 0.48])).accuracy
    offset = 0.08 / 3
    k = math.sqrt((4 + 400 * (0.1**2 + 0.02**2) - 1200 * offset**2) / 6)
    assert (fit.offset, fit.widening) == (pytest.approx(offset), pytest.approx(k))
    assert fit.offset_error == pytest.approx(k / math.sqrt(1200))
    (stated,) = [c.prediction.accuracy for c in cells_of([0.7], [0.0]) if c.prediction]
    moved = fit.interval(stated)
    half = stats.t.ppf(0.95, 6) * k * math.sqrt(0.05**2 + 1 / 1200)
    assert (moved.mean, moved.low) == (pytest.approx(0.7 + offset), pytest.approx(0.7 + offset - half))


def test_widths_shrink_for_good_predictions_and_grow_for_bad_ones() -> None:
    told = [0.5] * 10
    good = calibrated(cells_of(told, told)).accuracy
    bad = calibrated(cells_of(told, [0.5 + (0.15 if i % 2 else -0.15) for i in range(10)])).accuracy
    assert good.widening < 0.6 < 2.0 < bad.widening
    assert bad.offset == pytest.approx(0.0)


def test_without_measured_cells_nothing_changes() -> None:
    cells = [cell("a", told=0.8), cell("b", told=0.7), cell("c", told=None, seen=[0.6])]
    found = adjust(cells, cells)
    for c in cells[:2]:
        assert c.prediction is not None
        assert found[c.key].accuracy == c.prediction.accuracy
    assert found[cells[2].key].accuracy is None


def test_no_cell_is_adjusted_by_its_own_measurement() -> None:
    cells = cells_of([0.5, 0.6, 0.7, 0.8], [0.55, 0.63, 0.77, 0.8])
    before = adjust(cells, cells[:3])
    assert [before[c.key].left_out for c in cells] == [True, True, True, False]
    changed = [*cells_of([0.5], [0.9]), *cells[1:]]
    after = adjust(changed, changed[:3])
    assert after[changed[0].key].accuracy == before[cells[0].key].accuracy
    assert after[changed[1].key].accuracy != before[cells[1].key].accuracy
    direct = calibrated(cells[:3], without={cells[0].key}).accuracy
    assert cells[0].prediction is not None
    assert before[cells[0].key].accuracy == direct.interval(cells[0].prediction.accuracy)


def test_tasks_do_not_teach_each_other() -> None:
    first, other = cells_of([0.5, 0.5], [0.6, 0.6]), cell("a", told=0.5, folder="g")
    assert other.prediction is not None
    assert adjust([*first, other], first)[other.key].accuracy == other.prediction.accuracy
    with pytest.raises(ValueError, match="one task"):
        calibrated([*first, other])


def test_an_interval_without_width_does_not_rule() -> None:
    cells = [cell("a", told=0.5, seen=[0.6], half=0.0), *cells_of([0.5], [0.5], sd=0.005)]
    assert 0.04 < calibrated(cells).accuracy.offset < 0.06


@pytest.mark.parametrize("cells", [2, 4, 12])
def test_leave_one_out_intervals_cover_what_they_say(cells: int) -> None:
    """Drawn from the prior that the method states, coverage is exact, however few cells there are."""
    rng = np.random.default_rng(cells)
    draws, covered = 1500, 0
    for _ in range(draws):
        k = math.sqrt(PRIOR_CELLS / rng.chisquare(PRIOR_CELLS))
        # Narrow beside 0..1, so that cutting at the ends plays no part.
        sds = rng.uniform(0.004, 0.006, size=cells) * 5
        offset = rng.normal(0, k * PRIOR_OFFSET)
        seen = 0.5 + offset + k * sds * rng.normal(size=cells)
        found = [cell(f"a{i}", told=0.5, seen=[seen[i]], half=NORMAL * sds[i]) for i in range(cells)]
        interval = adjust(found[:1], found)[found[0].key].accuracy
        assert interval is not None
        covered += interval.low <= seen[0] <= interval.high
    tolerance = 4 * math.sqrt(0.9 * 0.1 / draws)
    assert abs(covered / draws - 0.9) < tolerance


def test_calibration_mends_an_offset_and_too_narrow_intervals() -> None:
    rng = np.random.default_rng(1)
    stated = calibrated_share = cells = 0
    for _ in range(100):
        truth = rng.uniform(0.5, 0.8, size=12)
        found = cells_of((truth + 0.06).tolist(), (truth + rng.normal(0, 0.02, size=12)).tolist(), sd=0.01)
        result = score(found, leave_one_out(found, "accuracy"))
        ranks = adjust(found, [])
        for c in found:
            interval, mean = ranks[c.key].accuracy, c.measured.accuracy.mean
            assert interval is not None
            assert mean is not None
            stated += interval.low <= mean <= interval.high
        calibrated_share += result.covered
        cells += result.with_interval
        assert result.spearman.value is None
    assert stated / cells < 0.1
    # A frequentist draw: the prior's pull keeps it from being exact, binomial error is 0.9 %.
    assert 0.85 < calibrated_share / cells < 0.95

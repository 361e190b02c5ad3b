"""One number a seed: against least squares by a general solver, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from foretaste.hypotheses.effects import Point, mean, slope, spread, widening


def point(seed: int, rate: float, level: float, value: float) -> Point:
    return Point(str(seed), f"{rate:g}", rate, level, value, False)


def drawn(rng: np.random.Generator, *, whole: bool) -> list[Point]:
    cells = [(rate, level) for rate in (0.1, 0.2, 0.4) for level in (0.0, 1.0, 3.5)]
    if not whole:
        cells = [cells[place] for place in (0, 1, 3, 4, 5, 8)]
    return [point(0, rate, level, float(rng.normal())) for rate, level in cells]


def least_squares(points: list[Point]) -> float:
    """Slope over levels beside a dummy for each amount."""
    rates = sorted({item.rate for item in points if item.rate is not None})
    design = [[item.level, *(float(item.rate == rate) for rate in rates)] for item in points]
    solution = np.linalg.lstsq(np.array(design), np.array([item.value for item in points]), rcond=None)[0]
    return float(solution[0])


@pytest.mark.parametrize("whole", [True, False])
def test_slope_is_least_squares_with_an_intercept_for_each_amount(whole: bool) -> None:
    points = drawn(np.random.default_rng(1), whole=whole)
    assert slope(points)["0"] == pytest.approx(least_squares(points), abs=1e-12)


def test_slope_between_two_levels_is_the_mean_difference() -> None:
    points = [point(0, 0.1, 0, 3.0), point(0, 0.1, 1, 5.0), point(0, 0.2, 0, 1.0), point(0, 0.2, 1, 2.0)]
    assert slope(points) == pytest.approx({"0": 1.5})


def test_an_amount_that_one_arm_lacks_does_not_count() -> None:
    points = [point(0, 0.1, 0, 3.0), point(0, 0.1, 1, 5.0), point(0, 0.4, 1, -40.0)]
    assert slope(points) == pytest.approx({"0": 2.0})


def test_a_seed_without_two_levels_has_no_slope() -> None:
    points = [point(0, 0.1, 0, 3.0), point(1, 0.1, 0, 3.0), point(1, 0.1, 1, 4.0)]
    assert slope(points) == pytest.approx({"1": 1.0})


def test_widening_is_the_slope_of_the_gap() -> None:
    rng = np.random.default_rng(2)
    points = [point(0, rate, level, float(rng.normal())) for rate in (0.05, 0.1, 0.4) for level in (0, 1)]
    gaps = [b.value - a.value for a, b in zip(points[::2], points[1::2], strict=True)]
    assert widening(points)["0"] == pytest.approx(np.polyfit([0.05, 0.1, 0.4], gaps, 1)[0] / 10, abs=1e-12)


def test_widening_takes_two_rates() -> None:
    assert widening([point(0, 0.1, 0, 3.0), point(0, 0.1, 1, 5.0)]) == {}


def test_mean_is_over_amounts() -> None:
    assert mean([point(0, 0.1, 0, 1.0), point(0, 0.2, 0, 4.0)]) == {"0": 2.5}


def test_spread_is_the_slope_of_distances_from_the_seeds_mean() -> None:
    low, high = [1.0, 2.0, 6.0], [0.0, 10.0, 5.0]
    points = [
        point(seed, 0.1, level, side[seed]) for seed in range(3) for level, side in ((0, low), (1, high))
    ]
    by_hand = [abs(high[seed] - 5.0) - abs(low[seed] - 3.0) for seed in range(3)]
    assert list(spread(points).values()) == pytest.approx(by_hand, abs=1e-12)


def test_seeds_come_in_their_natural_order_whatever_that_of_the_points() -> None:
    points = [point(seed, 0.1, level, seed * level) for seed in (10, 2, 1) for level in (1.0, 0.0)]
    assert list(slope(points)) == ["1", "2", "10"]
    assert slope(points[::-1]) == slope(points)

"""From runs to one number a seed. Nothing else is ever handed to a test.

Runs of one seed share rows, poison and starts, and runs at several amounts share all of that, so they are no
independent pieces of evidence: within a seed they are brought to one number first, by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foretaste.calibration.places import natural


@dataclass(frozen=True)
class Point:
    """One value of a contrast.

    Attributes:
        seed: Label of the seeds.
        amount: Label of the amount.
        rate: Poisoned share; None where it is unknown.
        level: Of the arm, see `contrasts`.
        value: In percentage points.
        collapsed: The run, or its clean partner, predicts one class.
    """

    seed: str
    amount: str
    rate: float | None
    level: float
    value: float
    collapsed: bool


Reduce = Callable[[Sequence[Point]], dict[str, float]]
"""Points of all seeds to one number for each seed that can give one, in the order of the seeds."""


def slope(points: Sequence[Point]) -> dict[str, float]:
    """Least-squares slope over levels with an intercept of its own for each amount.

    With all levels at all amounts this is the mean over amounts of the slopes; between levels 0 and 1 it is
    the mean over amounts of the difference. A seed that lacks an amount gives what its other amounts say.
    """
    return each_seed(points, _slope)


def mean(points: Sequence[Point]) -> dict[str, float]:
    """Mean over amounts, of a contrast with one arm."""
    return each_seed(points, lambda own: float(np.mean([point.value for point in own])))


def widening(points: Sequence[Point]) -> dict[str, float]:
    """Least-squares slope, over the poisoned rate, of the slope over levels at each amount.

    Per 10 % of poisoned rows. It takes two amounts.
    """
    return each_seed(points, _widening)


def spread(points: Sequence[Point]) -> dict[str, float]:
    """Slope over levels of a seed's distance from the mean over seeds in its arm and amount.

    Levene's test with a mean as the centre (H. Levene, 1960), paired by seed. The centres are estimated from
    the same seeds, so the numbers are not independent: the test over them takes one degree of freedom more
    (`Hypothesis.centred`), and random signs say nothing about them.
    """
    cells: dict[tuple[str, float], list[float]] = {}
    for point in points:
        cells.setdefault((point.amount, point.level), []).append(point.value)
    distances = [
        Point(
            seed=point.seed,
            amount=point.amount,
            rate=point.rate,
            level=point.level,
            value=abs(point.value - float(np.mean(cells[point.amount, point.level]))),
            collapsed=point.collapsed,
        )
        for point in points
        if len(cells[point.amount, point.level]) > 1
    ]
    return each_seed(distances, _slope)


def each_seed(points: Iterable[Point], reduce: Callable[[Sequence[Point]], float | None]) -> dict[str, float]:
    """A number for each seed whose points give one, in the order of the seeds."""
    seeds: dict[str, list[Point]] = {}
    for point in points:
        seeds.setdefault(point.seed, []).append(point)
    values = {seed: reduce(seeds[seed]) for seed in sorted(seeds, key=natural)}
    return {seed: value for seed, value in values.items() if value is not None}


def _slope(points: Sequence[Point]) -> float | None:
    """Slope over levels that are centred within each amount, which takes the amounts' intercepts out."""
    amounts: dict[str, list[Point]] = {}
    for point in points:
        amounts.setdefault(point.amount, []).append(point)
    across, along = 0.0, 0.0
    for group in amounts.values():
        x = np.array([point.level for point in group])
        y = np.array([point.value for point in group])
        across += float((x - x.mean()) @ y)
        along += float((x - x.mean()) @ (x - x.mean()))
    return across / along if along > 0 else None


def _widening(points: Sequence[Point]) -> float | None:
    amounts: dict[str, list[Point]] = {}
    for point in points:
        amounts.setdefault(point.amount, []).append(point)
    gaps = [
        (group[0].rate, gap)
        for group in amounts.values()
        if group[0].rate is not None and (gap := _slope(group)) is not None
    ]
    x = np.array([rate for rate, _ in gaps])
    y = np.array([gap for _, gap in gaps])
    if x.size < 2 or np.ptp(x) == 0.0:
        return None
    return float((x - x.mean()) @ y / ((x - x.mean()) @ (x - x.mean()))) / 10

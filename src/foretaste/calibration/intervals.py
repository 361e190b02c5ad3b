"""Calibration from a few measured cells: one offset a task and target, and the width of the intervals.

Predictions are made from held-out training rows and never from test rows, so all cells of a task may be off
by one common amount; and the stated intervals may be too narrow or too wide. Both are learned from the cells
that are measured, with a prior that says how much a few cells may change.

Model, for the cells i of one task and target, with e_i = measured mean minus predicted mean and u_i the
standard deviation that the stated 90 % interval stands for (its width / (2 * 1.645)):

    e_i = b + k u_i z_i,  z_i ~ N(0, 1),   b | k ~ N(0, k^2 t^2),   k^2 ~ scaled-inverse-chi^2(v, 1)

With weights w_i = 1 / u_i^2 and w_0 = 1 / t^2 the posterior is in closed form (A. Gelman et al., "Bayesian
Data Analysis", 3rd edition, 2013, section 14.8, with one coefficient):

    w_n = w_0 + sum w_i,   b_n = sum w_i e_i / w_n,   v_n = v + n,
    v_n k_n^2 = v + sum w_i e_i^2 - w_n b_n^2

and a new cell j lies at b_n with Student's t of v_n degrees of freedom and scale k_n sqrt(u_j^2 + 1 / w_n).
Where u_i = t for all i, b_n is the mean error times n / (n + 1). Without any cell nothing is changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scipy import stats

from foretaste.calibration.cells import Cell, Target
from foretaste.calibration.guess import Guess, Guesses, Predictor, interval_of
from foretaste.record import Interval

PRIOR_OFFSET = 0.05  # t: about the error that a prediction called valid may have
PRIOR_CELLS = 4.0  # v: the stated widths count as much as four measured cells
NORMAL = float(stats.norm.ppf(0.95))
LEAST_SD = 0.005  # an interval without width would outweigh all others: half a point is the least
NO_RANKS = "one common offset changes no order within a data set"

Key = tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """The posterior of one target.

    Attributes:
        cells: Cells that it has seen; with 0 it changes nothing.
        offset: b_n, added to predicted means.
        offset_error: k_n / sqrt(w_n), the standard deviation of the offset.
        widening: k_n: what the stated widths are multiplied by, beside t in place of normal quantiles.
        freedom: v_n.
    """

    cells: int
    offset: float
    offset_error: float
    widening: float
    freedom: float

    def interval(self, stated: Interval) -> Interval:
        """The stated interval moved and widened or narrowed, cut to 0..1."""
        if self.cells == 0:
            return stated
        sd = math.hypot(self.widening * _sd(stated), self.offset_error)
        half = float(stats.t.ppf(0.95, self.freedom)) * sd
        mean = stated.mean + self.offset
        return Interval(mean=_cut(mean), low=_cut(mean - half), high=_cut(mean + half))


@dataclass(frozen=True)
class Adjustment:
    """What the measured cells of one task teach.

    Attributes:
        seen: Keys of the cells that were given.
    """

    accuracy: Fit
    target_rate: Fit
    seen: frozenset[Key]

    def of(self, target: Target) -> Fit:
        """The fit of a target."""
        return self.accuracy if target == "accuracy" else self.target_rate


@dataclass(frozen=True)
class Adjusted:
    """A cell's intervals after calibration.

    Attributes:
        accuracy: None when the cell has no prediction.
        target_rate: None when it has no predicted ASR.
        left_out: The cell was among those of the fit, and the fit behind its intervals was made without it.
    """

    accuracy: Interval | None
    target_rate: Interval | None
    left_out: bool


def calibrated(cells: Sequence[Cell], *, without: Collection[Key] = ()) -> Adjustment:
    """Learn offset and width from cells of one task that are both predicted and measured.

    Args:
        cells: The measured cells to learn from, such as the corners of the grid; those without a prediction
            or without a completed run teach nothing.
        without: Keys of cells to leave out.

    Raises:
        ValueError: The cells are of several tasks, between which levels may be offset differently.
    """
    if len({cell.task for cell in cells}) > 1:
        raise ValueError("an offset belongs to one task: calibrate the cells of each task by themselves")
    used = [cell for cell in cells if cell.key not in without]
    return Adjustment(_fit(used, "accuracy"), _fit(used, "target_rate"), frozenset(cell.key for cell in used))


def adjust(cells: Sequence[Cell], fitted: Sequence[Cell]) -> dict[Key, Adjusted]:
    """Intervals of all cells, each from a fit that has not seen the cell's own measurement.

    Args:
        cells: Cells of any number of tasks.
        fitted: The measured cells to learn from. A cell of `cells` that is among them is adjusted by the
            others (leave one out).

    Returns:
        By the cell's key; a task without fitted cells keeps its stated intervals.
    """
    found: dict[Key, Adjusted] = {}
    for task in dict.fromkeys(cell.task for cell in cells):
        teachers = [cell for cell in fitted if cell.task == task]
        common = calibrated(teachers)
        for cell in (cell for cell in cells if cell.task == task):
            left_out = cell.key in common.seen
            own = calibrated(teachers, without={cell.key}) if left_out else common
            ends = {target: _adjusted(cell, own, target) for target in TARGETS}
            found[cell.key] = Adjusted(ends["accuracy"], ends["target_rate"], left_out)
    return found


def leave_one_out(cells: Sequence[Cell], target: Target) -> Predictor:
    """The prediction calibrated on all other measured cells of its task, as a predictor to be scored."""
    taught = adjust(cells, [cell for cell in cells if cell.measured.completed])
    guesses: Guesses = []
    for cell in cells:
        own = taught[cell.key]
        interval = own.accuracy if target == "accuracy" else own.target_rate
        guesses.append(None if interval is None else Guess(interval.mean, interval.low, interval.high))
    return Predictor(
        "prediction, calibrated",
        "the prediction and the measured cells other than the scored one",
        target,
        guesses,
        no_ranks=NO_RANKS,
    )


TARGETS: tuple[Target, Target] = ("accuracy", "target_rate")


def _adjusted(cell: Cell, adjustment: Adjustment, target: Target) -> Interval | None:
    stated = interval_of(cell, target)
    return None if stated is None else adjustment.of(target).interval(stated)


def _fit(cells: Sequence[Cell], target: Target) -> Fit:
    weight = 1.0 / PRIOR_OFFSET**2
    first = second = 0.0
    n = 0
    for cell in cells:
        stated, measured = interval_of(cell, target), cell.observed(target).mean
        if stated is None or measured is None:
            continue
        own, error = 1.0 / _sd(stated) ** 2, measured - stated.mean
        weight, first, second, n = weight + own, first + own * error, second + own * error**2, n + 1
    offset = first / weight
    freedom = PRIOR_CELLS + n
    # The sum is at least 0 by Cauchy and Schwarz; rounding must not make it less.
    widening = math.sqrt((PRIOR_CELLS + max(0.0, second - weight * offset**2)) / freedom)
    return Fit(n, offset, widening / math.sqrt(weight), widening, freedom)


def _sd(stated: Interval) -> float:
    return max(LEAST_SD, (stated.high - stated.low) / (2 * NORMAL))


def _cut(share: float) -> float:
    return min(1.0, max(0.0, share))

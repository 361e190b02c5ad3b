"""The naive predictors that every predictor is held against: what can be said without any theory.

Those that read measurements of the very data they are scored on are flattered by it, and say so in `uses`.
"""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.calibration.cells import Cell, Target
from foretaste.calibration.guess import Guess, Guesses, Predictor, concerns
from foretaste.calibration.places import CLEAN

SAME_FOR_ALL = "it gives every adapter the same value: its differences are 0 by construction"
OWN = "the clean cell is what it reads"


def rate_only(cells: Sequence[Cell], target: Target) -> Predictor:
    """The amount of poison alone: what the other arms measured at the same attack and amount.

    Leave one arm out: m_i = mean of y_j over j != i in the cell's group. Those values differ between arms,
    but only as a mirror image of the cell's own measurement (m_i - m = -(y_i - y) / (k - 1) for k arms),
    which is an artefact of leaving out; so on differences between adapters it counts as saying nothing.
    """
    return Predictor(
        "rate only",
        "measured means of the other adapters at the same attack and amount",
        target,
        [_mean([c for c in _group(cells, cell) if c.arm != cell.arm], target) for cell in cells],
        no_differences=SAME_FOR_ALL,
    )


def rate_only_seen(cells: Sequence[Cell], target: Target) -> Predictor:
    """`rate_only` with the cell's own measurement in the mean: the most that the amount alone can explain."""
    return Predictor(
        "rate only, seen",
        "measured means of all adapters at the same attack and amount, the scored cell among them",
        target,
        [_mean(_group(cells, cell), target) for cell in cells],
        no_differences=SAME_FOR_ALL,
    )


def clean_accuracy_only(cells: Sequence[Cell], target: Target) -> Predictor:
    """The arm's predicted value without poison, whatever the attack and amount.

    Accuracy: the prediction for the arm's clean cell. ASR: the predicted flip rate of the triggered rows.
    """
    clean = {(*cell.task, cell.arm): cell for cell in cells if cell.attack == CLEAN}
    guesses: Guesses = []
    for cell in cells:
        own = cell if target == "target_rate" else clean.get((*cell.task, cell.arm))
        prediction = own.prediction if own else None
        value = None
        if prediction is not None and concerns(cell, target):
            value = prediction.accuracy.mean if target == "accuracy" else prediction.baseline_target_rate
        guesses.append(None if value is None else Guess(value))
    return Predictor("clean only", "the prediction for the clean data", target, guesses)


def clean_accuracy_measured(cells: Sequence[Cell], target: Target) -> Predictor:
    """The arm's measured value without poison; stronger than `clean_accuracy_only`, and not known before.

    Accuracy: the mean of the arm's clean runs; it has no value for clean cells, which are what it reads.
    ASR: the mean flip rate of the clean runs.
    """
    clean = {(*cell.task, cell.arm): cell for cell in cells if cell.attack == CLEAN}
    guesses: Guesses = []
    for cell in cells:
        value = None
        if target == "target_rate":
            value = cell.measured.flip_rate.mean
        elif cell.attack != CLEAN and (own := clean.get((*cell.task, cell.arm))) is not None:
            value = own.measured.accuracy.mean
        guesses.append(None if value is None else Guess(value))
    return Predictor("clean only, measured", "measured clean runs of the same adapter", target, guesses)


def probe_only(cells: Sequence[Cell], target: Target) -> Predictor:
    """The linear probe fitted to the poisoned labels: nothing but the head is trained."""
    guesses: Guesses = []
    for cell in cells:
        probe = cell.prediction.probe if cell.prediction else None
        value = None if probe is None else probe.accuracy if target == "accuracy" else probe.target_rate
        guesses.append(None if value is None or not concerns(cell, target) else Guess(value))
    return Predictor("probe only", "frozen features and the poisoned labels", target, guesses)


def all_naive(cells: Sequence[Cell], target: Target) -> list[Predictor]:
    """Every naive predictor, in the order of the tables."""
    makers = (rate_only, rate_only_seen, clean_accuracy_only, clean_accuracy_measured, probe_only)
    return [make(cells, target) for make in makers]


def _group(cells: Sequence[Cell], cell: Cell) -> list[Cell]:
    return [other for other in cells if other.group == cell.group]


def _mean(cells: Sequence[Cell], target: Target) -> Guess | None:
    means = [mean for cell in cells if (mean := cell.observed(target).mean) is not None]
    return Guess(sum(means) / len(means)) if means else None

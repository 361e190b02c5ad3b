"""What a predictor is: a name, and a value for each cell or the reason why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from foretaste.calibration.cells import Cell, Target
from foretaste.record import Interval

Guesses: TypeAlias = "list[Guess | None]"


@dataclass(frozen=True)
class Guess:
    """A predicted value; an interval where the predictor states one."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Predictor:
    """Values of one target for cells.

    Attributes:
        name: Unique among those that are scored together.
        uses: What it has read, one clause.
        target: What it predicts.
        guesses: One a cell, in their order; None where it says nothing.
        scale: "share" when a value is an accuracy or a rate, so that its error means something; "any" for an
            indicator, which can only be ranked.
        no_ranks: Why no rank score is given; "" when one is.
        no_differences: Why it says nothing on adapters at the same amount; "" when it does.
    """

    name: str
    uses: str
    target: Target
    guesses: Sequence[Guess | None]
    scale: Literal["share", "any"] = "share"
    no_ranks: str = ""
    no_differences: str = ""


def stated(cells: Sequence[Cell], target: Target) -> Predictor:
    """The prediction itself, with the intervals that it states."""
    return Predictor(
        "prediction",
        "the base model and the training data before training",
        target,
        [_of_interval(interval_of(cell, target)) for cell in cells],
    )


def at_budget(cells: Sequence[Cell], target: Target, budget: str) -> Predictor:
    """The prediction at one of its budgets, such as "converged"."""
    guesses: Guesses = []
    for cell in cells:
        outcome = cell.prediction.budgets.get(budget) if cell.prediction else None
        value = None if outcome is None else outcome.accuracy if target == "accuracy" else outcome.target_rate
        guesses.append(None if value is None or not concerns(cell, target) else Guess(value))
    return Predictor(
        f"budget {budget}", "the base model and the training data before training", target, guesses
    )


def indicator(cells: Sequence[Cell], target: Target, name: str) -> Predictor:
    """One indicator as a predictor; its sign and unit are unknown, so only its order counts."""
    guesses: Guesses = []
    for cell in cells:
        value = cell.prediction.indicators.get(name) if cell.prediction else None
        usable = value is not None and value == value and concerns(cell, target)
        guesses.append(Guess(value) if usable and value is not None else None)
    return Predictor(name, "the kernel or the adapter before training", target, guesses, scale="any")


def interval_of(cell: Cell, target: Target) -> Interval | None:
    """The stated interval of a target, None when the cell has none."""
    if cell.prediction is None or not concerns(cell, target):
        return None
    return cell.prediction.accuracy if target == "accuracy" else cell.prediction.target_rate


def concerns(cell: Cell, target: Target) -> bool:
    """Whether the cell has the target: every cell an accuracy, only a backdoor an ASR."""
    return target == "accuracy" or cell.kind == "backdoor"


def _of_interval(interval: Interval | None) -> Guess | None:
    return None if interval is None else Guess(interval.mean, interval.low, interval.high)

"""Which arms no other arm beats in everything: clean accuracy, accuracy under flips, ASR margin and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from foretaste import statistics
from foretaste.calibration.cells import Cell, Sample, Target
from foretaste.calibration.guess import interval_of
from foretaste.calibration.intervals import Adjusted, Key
from foretaste.calibration.places import CLEAN, arm_order
from foretaste.calibration.scores import LEVEL
from foretaste.record import Interval

Source: TypeAlias = Literal["measured", "predicted"]
Standing: TypeAlias = Literal["front", "dominated", "not resolved"]


@dataclass(frozen=True)
class Criterion:
    """One thing that an arm is judged by.

    Attributes:
        higher: A higher value is better.
        noisy: A difference counts only when it is resolved: training time depends on what else the machine
            did.
    """

    name: str
    label: str
    higher: bool
    noisy: bool = False


CRITERIA: tuple[Criterion, ...] = (
    Criterion("clean", "Clean accuracy", higher=True),
    Criterion("worst", "Worst accuracy under flips", higher=True),
    Criterion("margin", "ASR − flip rate", higher=False),
    Criterion("parameters", "Trainable parameters", higher=False),
    Criterion("seconds", "Training, s", higher=False, noisy=True),
)


@dataclass(frozen=True)
class Quantity:
    """A value of an arm, measured where it was measured and predicted elsewhere.

    Attributes:
        low: Ends of its 90 % interval, None when undefined; so is `high`.
        at: Attack and amount that it is taken at; "" for none.
        sample: The measured values by seed; empty when predicted.
    """

    value: float
    low: float | None
    high: float | None
    source: Source
    at: str = ""
    sample: Sample = field(default_factory=Sample)


@dataclass(frozen=True)
class Arm:
    """An arm with its quantities and where it stands.

    Attributes:
        quantities: By name of the criterion; those that the cells do not tell are missing.
        standing: "front": no arm is at least as good in everything and better in something. "dominated": one
            is, and each of the differences that seeds can show is resolved. "not resolved": one is, but
            other seeds could say otherwise.
        by: The arms that dominate it, resolved ones first.
    """

    name: str
    quantities: Mapping[str, Quantity]
    standing: Standing
    by: tuple[str, ...]


def front(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted] | None = None) -> list[Arm]:
    """Where each arm of one task stands.

    Arms are compared in the criteria that all of them have. `worst` is the lowest mean accuracy over the
    amounts of every attack without a trigger; `margin` is at the largest amount of each attack with one, the
    highest over attacks. A dominated arm counts as resolved only if the 95 % Student t interval of the
    paired difference over seeds excludes 0 in every criterion that is measured over seeds and differs; what
    is predicted for either arm resolves nothing.

    Args:
        cells: Cells of one task.
        adjusted: Calibrated intervals that stand in for the stated ones, from `intervals.adjust`.

    Returns:
        Arms in their order.

    Raises:
        ValueError: The cells are of several tasks.
    """
    if len({cell.task for cell in cells}) > 1:
        raise ValueError("arms are compared within one task")
    adjusted = adjusted or {}
    arms = arm_order(cell.arm for cell in cells)
    found = {arm: _quantities([cell for cell in cells if cell.arm == arm], adjusted) for arm in arms}
    shared = [c for c in CRITERIA if all(c.name in found[arm] for arm in arms)]
    result = []
    for arm in arms:
        better = {
            other: _resolved(found[other], found[arm], shared)
            for other in arms
            if other != arm and _dominates(found[other], found[arm], shared)
        }
        standing: Standing = (
            "front" if not better else "dominated" if any(better.values()) else "not resolved"
        )
        order = sorted(better, key=lambda other: (not better[other], arms.index(other)))
        result.append(Arm(arm, found[arm], standing, tuple(order)))
    return result


def _quantities(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted]) -> dict[str, Quantity]:
    """Every quantity that the cells of one arm tell."""
    clean = [q for cell in cells if cell.attack == CLEAN if (q := _accuracy(cell, adjusted)) is not None]
    flips = [q for cell in cells if cell.kind == "flips" if (q := _accuracy(cell, adjusted)) is not None]
    margins = [q for cell in largest_backdoors(cells) if (q := _margin(cell, adjusted)) is not None]
    counts = [c.measured.trainable_parameters for c in cells if c.measured.trainable_parameters is not None]
    counts += [cell.prediction.trainable_parameters for cell in cells if cell.prediction]
    seconds = _seconds(cells)
    found: dict[str, Quantity] = {}
    if clean:
        found["clean"] = clean[0]
    if flips:
        found["worst"] = min(flips, key=lambda quantity: quantity.value)
    if margins:
        found["margin"] = max(margins, key=lambda quantity: quantity.value)
    if counts:
        measured = any(cell.measured.trainable_parameters is not None for cell in cells)
        value = float(counts[0])
        found["parameters"] = Quantity(value, value, value, "measured" if measured else "predicted")
    if seconds.mean is not None:
        found["seconds"] = of_sample(seconds)
    return found


def largest_backdoors(cells: Sequence[Cell]) -> list[Cell]:
    """Of each attack with a trigger and each arm, the cell of the largest amount."""
    largest: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        key = (cell.attack, cell.arm)
        if cell.kind == "backdoor" and (key not in largest or cell.amount.order > largest[key].amount.order):
            largest[key] = cell
    return list(largest.values())


def of_sample(sample: Sample, at: str = "", level: float = LEVEL) -> Quantity:
    """A measured quantity with the t interval of its mean; the sample is not empty."""
    interval = statistics.summary(list(sample.by_seed.values()), level).interval
    assert sample.mean is not None
    low = interval.low if interval.defined else None
    high = interval.high if interval.defined else None
    return Quantity(sample.mean, low, high, "measured", at, sample)


def stands_for(cell: Cell, target: Target, adjusted: Mapping[Key, Adjusted]) -> Interval | None:
    """The calibrated interval of a cell where there is one, else the stated one."""
    own = adjusted.get(cell.key)
    if own is None:
        return interval_of(cell, target)
    return own.accuracy if target == "accuracy" else own.target_rate


def _accuracy(cell: Cell, adjusted: Mapping[Key, Adjusted]) -> Quantity | None:
    at = "" if cell.attack == CLEAN else f"{cell.amount.label} {cell.attack}"
    if cell.measured.accuracy.n:
        return of_sample(cell.measured.accuracy, at)
    interval = stands_for(cell, "accuracy", adjusted)
    return None if interval is None else Quantity(interval.mean, interval.low, interval.high, "predicted", at)


def _margin(cell: Cell, adjusted: Mapping[Key, Adjusted]) -> Quantity | None:
    at = f"{cell.amount.label} {cell.attack}"
    if cell.measured.margin.n:
        return of_sample(cell.measured.margin, at)
    interval = stands_for(cell, "target_rate", adjusted)
    flip = cell.prediction.baseline_target_rate if cell.prediction else None
    if interval is None or flip is None:
        return None
    return Quantity(interval.mean - flip, interval.low - flip, interval.high - flip, "predicted", at)


def _seconds(cells: Sequence[Cell]) -> Sample:
    """Mean training time of each seed over the cells."""
    by_seed: dict[str, list[float]] = {}
    for cell in cells:
        for seed, value in cell.measured.seconds.by_seed.items():
            by_seed.setdefault(seed, []).append(value)
    return Sample({seed: math.fsum(values) / len(values) for seed, values in by_seed.items()})


def _dominates(a: Mapping[str, Quantity], b: Mapping[str, Quantity], criteria: Sequence[Criterion]) -> bool:
    """A is nowhere worse than b and somewhere better."""
    advantages = [_advantage(a[c.name], b[c.name], c) for c in criteria]
    return all(value >= 0 for value in advantages) and any(value > 0 for value in advantages)


def _advantage(a: Quantity, b: Quantity, criterion: Criterion) -> float:
    if criterion.noisy and not _excludes_zero(a, b):
        return 0.0
    return (a.value - b.value) * (1 if criterion.higher else -1)


def _resolved(a: Mapping[str, Quantity], b: Mapping[str, Quantity], criteria: Sequence[Criterion]) -> bool:
    """Every difference between the two that depends on seeds is one that the seeds show."""
    for criterion in criteria:
        left, right = a[criterion.name], b[criterion.name]
        if criterion.name == "parameters" or _advantage(left, right, criterion) == 0:
            continue
        if not _excludes_zero(left, right):
            return False
    return True


def _excludes_zero(a: Quantity, b: Quantity) -> bool:
    return excludes_zero(a.sample.minus(b.sample))


def excludes_zero(differences: Sample) -> bool:
    """The 95 % Student t interval of the mean difference is defined and does not contain 0."""
    return statistics.summary(list(differences.by_seed.values())).interval.excludes(0.0)

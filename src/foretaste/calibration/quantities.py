"""What an arm is judged by, and at which attacks and amounts arms can be compared in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from foretaste.calibration.cells import Cell, Kind, Sample, Target
from foretaste.calibration.guess import interval_of
from foretaste.calibration.intervals import Adjusted, Key
from foretaste.calibration.places import CLEAN, Amount, natural
from foretaste.calibration.scores import LEVEL
from foretaste.record import Interval

Source: TypeAlias = Literal["measured", "predicted"]
Spot: TypeAlias = tuple[str, Amount]  # attack and amount
ByArm: TypeAlias = Mapping[str, Sequence[Cell]]


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


Read: TypeAlias = Callable[[Cell], Quantity | None]
Pick: TypeAlias = Callable[[Sequence[Quantity]], Quantity]


@dataclass(frozen=True)
class Known:
    """What the cells of one task tell.

    Attributes:
        quantities: By arm and name of the criterion; what the cells do not tell is missing.
        alike: Criteria that were read at the same attacks and amounts of all compared arms.
        left_out: A line for each reason why attacks and amounts are not among those.
    """

    quantities: Mapping[str, Mapping[str, Quantity]]
    alike: frozenset[str]
    left_out: tuple[str, ...]


def known(by_arm: ByArm, compared: Sequence[str], adjusted: Mapping[Key, Adjusted]) -> Known:
    """Every quantity of every arm.

    Args:
        by_arm: Cells of one task, by arm.
        compared: Arms that are to be read at the same attacks and amounts: at those where all of them have a
            value. Where there are none, each arm keeps what it has by itself.
        adjusted: Calibrated intervals that stand in for the stated ones.
    """
    found: dict[str, dict[str, Quantity]] = {arm: _parameters(cells) for arm, cells in by_arm.items()}
    alike = {"parameters"}
    left_out: list[str] = []
    readers: tuple[tuple[str, Kind, Read, Pick], ...] = (
        ("clean", "clean", lambda cell: _accuracy(cell, adjusted), _lowest),
        ("worst", "flips", lambda cell: _accuracy(cell, adjusted), _lowest),
        ("margin", "backdoor", lambda cell: margin(cell, adjusted), _highest),
    )
    for name, kind, read, pick in readers:
        of_kind = {arm: [cell for cell in cells if cell.kind == kind] for arm, cells in by_arm.items()}
        used = _hardest(kind, shared(of_kind, compared, read))
        alike |= {name} if used else set()
        left_out += _left_out(of_kind, compared, read, used)
        for arm, cells in of_kind.items():
            own = _hardest(kind, [spot(cell) for cell in cells if read(cell) is not None])
            values = _values(cells, read, used) or _values(cells, read, own)
            found[arm] |= {name: pick(values)} if values else {}
    timed = shared(by_arm, compared, _time)
    alike |= {"seconds"} if timed else set()
    for arm, own_cells in by_arm.items():
        seconds = _seconds([cell for cell in own_cells if spot(cell) in timed] or own_cells)
        found[arm] |= {"seconds": of_sample(seconds)} if seconds.n else {}
    return Known(found, frozenset(alike), tuple(left_out))


def _lowest(values: Sequence[Quantity]) -> Quantity:
    return min(values, key=lambda quantity: quantity.value)


def _highest(values: Sequence[Quantity]) -> Quantity:
    return max(values, key=lambda quantity: quantity.value)


def _values(cells: Sequence[Cell], read: Read, spots: Sequence[Spot]) -> list[Quantity]:
    return [value for cell in cells if spot(cell) in spots and (value := read(cell)) is not None]


# --- attacks and amounts -------------------------------------------------------------------------


def label(cell: Cell) -> str:
    """Attack and amount as they read: "40 % label-flip", or "clean"."""
    return CLEAN if cell.attack == CLEAN else f"{cell.amount.label} {cell.attack}"


def spot(cell: Cell) -> Spot:
    """Attack and amount."""
    return (cell.attack, cell.amount)


def shared(by_arm: ByArm, compared: Sequence[str], read: Read) -> list[Spot]:
    """Attacks and amounts at which all compared arms have a value, in the order of the first one's cells."""
    values = [[spot(cell) for cell in by_arm[arm] if read(cell) is not None] for arm in compared]
    return [place for place in values[0] if all(place in own for own in values)] if values else []


def largest(spots: Sequence[Spot]) -> list[Spot]:
    """Of each attack the largest rate, and the largest number of rows."""
    most: dict[tuple[str, int], Spot] = {}
    for attack, amount in spots:
        key = (attack, amount.unit)
        if key not in most or amount.order > most[key][1].order:
            most[key] = (attack, amount)
    return list(most.values())


def _hardest(kind: Kind, spots: Sequence[Spot]) -> Sequence[Spot]:
    """Where a criterion is read: a backdoor at its largest amounts, flips at all, since any may be worst."""
    return largest(spots) if kind == "backdoor" else spots


def _left_out(by_arm: ByArm, compared: Sequence[str], read: Read, used: Sequence[Spot]) -> list[str]:
    """Where some compared arms have a value and others have none, a line for each reason."""
    groups: dict[str, list[str]] = {}
    cells = {(arm, spot(cell)): cell for arm in compared for cell in by_arm[arm]}
    one = {place: cell for (_, place), cell in cells.items()}
    for place in sorted(one, key=lambda place: (natural(place[0]), place[1].order)):
        lacking = {
            arm: cell for arm in compared if (cell := cells.get((arm, place))) is None or read(cell) is None
        }
        if 0 < len(lacking) < len(compared) and not _passed_over(one[place], used):
            why = "; ".join(f"{arm}: {_why(cell)}" for arm, cell in lacking.items())
            groups.setdefault(why, []).append(label(one[place]))
    return [f"{', '.join(places)} ({why})" for why, places in groups.items()]


def _passed_over(cell: Cell, used: Sequence[Spot]) -> bool:
    """A backdoor at less than the amount at which it is compared would not be looked at anyhow."""
    return cell.kind == "backdoor" and any(
        (attack, amount.unit) == (cell.attack, cell.amount.unit) and amount.order > cell.amount.order
        for attack, amount in used
    )


def _why(cell: Cell | None) -> str:
    if cell is None or not cell.measured.runs:
        return "neither measured nor predicted"
    if not cell.measured.completed:
        return f"none of {cell.measured.runs} runs completed"
    return "no clean run of the same seeds"


# --- quantities ----------------------------------------------------------------------------------


def of_sample(sample: Sample, at: str = "", level: float = LEVEL) -> Quantity:
    """A measured quantity with the t interval of its mean; the sample is not empty."""
    interval = sample.interval(level)
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
    at = "" if cell.attack == CLEAN else label(cell)
    if cell.measured.accuracy.n:
        return of_sample(cell.measured.accuracy, at)
    interval = stands_for(cell, "accuracy", adjusted)
    return None if interval is None else Quantity(interval.mean, interval.low, interval.high, "predicted", at)


def margin(cell: Cell, adjusted: Mapping[Key, Adjusted]) -> Quantity | None:
    """ASR minus flip rate of a cell; None where there is neither a measured nor a predicted one."""
    at = label(cell)
    if cell.measured.margin.n:
        return of_sample(cell.measured.margin, at)
    interval = stands_for(cell, "target_rate", adjusted)
    flip = cell.prediction.baseline_target_rate if cell.prediction else None
    if interval is None or flip is None:
        return None
    return Quantity(interval.mean - flip, interval.low - flip, interval.high - flip, "predicted", at)


def _time(cell: Cell) -> Quantity | None:
    return of_sample(cell.measured.seconds) if cell.measured.seconds.n else None


def _seconds(cells: Sequence[Cell]) -> Sample:
    """Mean training time of each seed over the cells."""
    by_seed: dict[str, list[float]] = {}
    for cell in cells:
        for seed, value in cell.measured.seconds.by_seed.items():
            by_seed.setdefault(seed, []).append(value)
    return Sample({seed: math.fsum(values) / len(values) for seed, values in by_seed.items()})


def _parameters(cells: Sequence[Cell]) -> dict[str, Quantity]:
    counts = [c.measured.trainable_parameters for c in cells if c.measured.trainable_parameters is not None]
    measured = bool(counts)
    counts += [cell.prediction.trainable_parameters for cell in cells if cell.prediction]
    if not counts:
        return {}
    value = float(counts[0])
    return {"parameters": Quantity(value, value, value, "measured" if measured else "predicted")}

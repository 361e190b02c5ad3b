"""Which arm to use against the spec's attacks, in plain words.

No sentence claims more than its numbers: a difference is resolved when the 95 % Student t interval of its
paired values over three seeds or more, taken at one attack and amount, excludes 0; what is only predicted is
called predicted. What the papers advise is tested elsewhere, by `foretaste.hypotheses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foretaste.calibration.cells import Cell, Task
from foretaste.calibration.intervals import Adjusted, Key
from foretaste.calibration.pareto import Arm, Comparison, compare, excludes_zero
from foretaste.calibration.places import short
from foretaste.calibration.quantities import (
    Quantity,
    label,
    largest,
    of_sample,
    shared,
    spot,
    stands_for,
)

JUDGED = {"clean": 1.0, "worst": 1.0, "margin": -1.0}  # shares, with the sign in which more is better
HALF = (0.45, 0.55)  # a ratio of rates in this range reads as "halves"


@dataclass(frozen=True)
class Advice:
    """What to use for one task.

    Attributes:
        folder: Name of the folder, which with model and data is the task.
        arm: The recommended arm; None when nothing is known of any arm.
        paragraph: Why, with numbers.
        arms: Every arm with its quantities and standing.
        left_out: Attacks and amounts at which the arms were not compared, a line for each reason.
    """

    folder: str
    model: str
    data: str
    arm: str | None
    paragraph: str
    arms: tuple[Arm, ...]
    left_out: tuple[str, ...]

    @property
    def task(self) -> Task:
        """Folder, model and data."""
        return (self.folder, self.model, self.data)


def advise(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted] | None = None) -> Advice:
    """Recommend an arm for the attacks and amounts that the cells span.

    Of the arms on the Pareto front, the one with the highest sum of clean accuracy, lowest accuracy under
    flips and minus the ASR margin (see `pareto.compare`), each counted where the arms were compared in it; at
    equal sums the one with fewer trainable parameters. The sum weighs a point of each alike, which a user may
    see otherwise: the table of the front has the parts.

    Args:
        cells: Cells of one task, at least one.
        adjusted: Calibrated intervals that stand in for the stated ones, from `intervals.adjust`.

    Raises:
        ValueError: The cells are none, or of several tasks.
    """
    if not cells:
        raise ValueError("no cells to advise on")
    adjusted = adjusted or {}
    found = compare(cells, adjusted)
    names = [name for name in JUDGED if name in found.criteria]
    candidates = [arm for arm in found.compared if arm.standing == "front"]
    best = max(candidates, key=lambda arm: _rank_of(arm, names)) if names and candidates else None
    if best is not None:
        lines = _paragraph(cells, adjusted, found, best, names)
    elif found.compared:
        lines = ["No arm can be recommended: no quantity is known of every arm."]
    else:
        lines = ["No arm can be recommended: every arm diverged."]
    text = " ".join([*lines, *_diverged_lines(found), *_left_out_lines(found)])
    return Advice(*cells[0].task, best.name if best else None, text, found.arms, found.left_out)


def _rank_of(arm: Arm, names: Sequence[str]) -> tuple[float, float]:
    parameters = arm.quantities.get("parameters")
    return (round(_sum(arm, names), 9), -parameters.value if parameters else 0.0)


def _sum(arm: Arm, names: Sequence[str]) -> float:
    return sum(JUDGED[name] * arm.quantities[name].value for name in names)


def _paragraph(
    cells: Sequence[Cell],
    adjusted: Mapping[Key, Adjusted],
    found: Comparison,
    best: Arm,
    names: Sequence[str],
) -> list[str]:
    others = [arm for arm in found.compared if arm.name != best.name]
    task = f"{short(cells[0].model)} on {short(cells[0].data)}"
    sources = {best.quantities[name].source for name in names}
    basis = sources.pop() if len(sources) == 1 else "partly measured"
    words = {
        "clean": "clean accuracy {}",
        "worst": "lowest accuracy under flips {}",
        "margin": "ASR above the flip rate {}",
    }
    parts = [words[name].format(percent(best.quantities[name].value)) for name in names]
    lines = [f"For {task}: {best.name} ({basis}: {', '.join(parts)})."]
    if not others:
        return [*lines, "There is no other arm to compare it with."]
    # The most accurate of the others is what a user gives up, so it is what the choice has to be argued
    # against.
    other = max(others, key=lambda arm: (_clean_value(arm), _rank_of(arm, names)))
    compared = [arm.name for arm in found.compared]
    lines += _backdoor_lines(cells, adjusted, compared, best, other)
    lines += _flip_lines(best, other) if "worst" in names else []
    if len(lines) == 1 and "clean" in names:
        lines += _clean_lines(best, other)
    return lines


def _diverged_lines(found: Comparison) -> list[str]:
    """What diverged: arms that stand off the front for it, and runs that no mean contains."""
    lines = [
        f"{arm.name} is off the front: runs diverged and none completed at {', '.join(arm.diverged)}."
        for arm in found.arms
        if arm.diverged
    ]
    return lines + [
        f"Runs of {arm.name} diverged at {', '.join(arm.partly)}; its means are over the others."
        for arm in found.arms
        if arm.partly
    ]


def _left_out_lines(found: Comparison) -> list[str]:
    return [f"Arms are not compared at {line}." for line in found.left_out]


def _clean_value(arm: Arm) -> float:
    return arm.quantities["clean"].value if "clean" in arm.quantities else 0.0


def _backdoor_lines(
    cells: Sequence[Cell],
    adjusted: Mapping[Key, Adjusted],
    compared: Sequence[str],
    best: Arm,
    other: Arm,
) -> list[str]:
    """One sentence for each attack with a trigger, at the largest amount that all compared arms have."""
    backdoors = [cell for cell in cells if cell.kind == "backdoor"]
    by_arm = {arm: [cell for cell in backdoors if cell.arm == arm] for arm in compared}
    lines = []
    for place in largest(shared(by_arm, compared, lambda cell: _rate(cell, adjusted))):
        values = [
            _rate(cell, adjusted) for arm in (best, other) for cell in by_arm[arm.name] if spot(cell) == place
        ]
        a, b = (value for value in values if value is not None)
        lines.append(
            f"With {a.at}, {_against(best.name, other.name, a.value, b.value)}"
            f"{_at_cost(best, other)}; {resolution(a, b, 'the difference in ASR')}."
        )
    return lines


def _rate(cell: Cell, adjusted: Mapping[Key, Adjusted]) -> Quantity | None:
    at = label(cell)
    if cell.measured.target_rate.n:
        return of_sample(cell.measured.target_rate, at)
    interval = stands_for(cell, "target_rate", adjusted)
    return None if interval is None else Quantity(interval.mean, interval.low, interval.high, "predicted", at)


def _against(arm: str, other: str, a: float, b: float) -> str:
    numbers = f"({_shown(a)} against {_shown(b)} %)"
    if _shown(a) == _shown(b):
        return f"{arm} has the same ASR as {other} {numbers}"
    if b > 0 and HALF[0] <= a / b <= HALF[1]:
        return f"{arm} halves the ASR of {other} {numbers}"
    return f"{arm} has a {'lower' if a < b else 'higher'} ASR than {other} {numbers}"


def _at_cost(best: Arm, other: Arm) -> str:
    if "clean" not in best.quantities or "clean" not in other.quantities:
        return ""
    loss = 100 * (other.quantities["clean"].value - best.quantities["clean"].value)
    if abs(loss) < 0.05:
        return " at equal clean accuracy"
    return f" {'at a cost of' if loss > 0 else 'and gains'} {abs(loss):.1f} points of clean accuracy"


def _flip_lines(best: Arm, other: Arm) -> list[str]:
    a, b = best.quantities["worst"], other.quantities["worst"]
    place = f"Under {a.at}" if a.at == b.at else f"Under flips ({a.at}; {b.at} for {other.name})"
    keeps = f"{place} it keeps an accuracy of {percent(a.value)} against {percent(b.value)}"
    return [f"{keeps}{'' if a.at != b.at else f' for {other.name}'}; {resolution(a, b, 'the difference')}."]


def _clean_lines(best: Arm, other: Arm) -> list[str]:
    a, b = best.quantities["clean"], other.quantities["clean"]
    text = f"{other.name} has a clean accuracy of {percent(b.value)}; {resolution(a, b, 'the difference')}."
    return [text]


def resolution(a: Quantity, b: Quantity, what: str) -> str:
    """Whether a difference is shown by seeds, as in "the difference is not resolved by 3 seeds".

    Two values that were taken at different attacks or amounts differ by more than their arms: of those, seeds
    say nothing.
    """
    if a.at != b.at:
        return f"{what} is not tested, since the two stand at different places"
    if "predicted" in (a.source, b.source):
        both = a.source == b.source
        how = "predicted, not measured" if both else "between a measured and a predicted value"
        return f"{what} is {how}"
    shared = a.sample.minus(b.sample)
    if shared.n == 0:
        return f"{what} is not resolved: no seed was measured for both"
    verb = "is resolved" if excludes_zero(shared) else "is not resolved"
    return f"{what} {verb} by {shared.n} seed{'' if shared.n == 1 else 's'}"


def percent(share: float) -> str:
    """A share as "12.3 %", with a true minus sign."""
    return f"{share * 100:.1f} %".replace("-", "−")


def _shown(share: float) -> str:
    return f"{share * 100:.0f}"

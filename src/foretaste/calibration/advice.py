"""Which arm to use against the spec's attacks, in plain words.

No sentence claims more than its numbers. A measured difference is resolved by the rule of the report's table
of pairs (`contrasts`); where that resolves nothing no arm is preferred, and the cheapest is named. What is
only predicted is called predicted. What the papers advise is tested elsewhere, by `foretaste.hypotheses`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from foretaste.calibration.cells import Cell, Task
from foretaste.calibration.contrasts import (
    ALPHA,
    Contrast,
    SignFlips,
    contrast,
    family,
    pairs_needed,
    reference,
)
from foretaste.calibration.intervals import Adjusted, Key
from foretaste.calibration.pareto import Arm, Comparison, compare, excludes_zero
from foretaste.calibration.places import CLEAN, short
from foretaste.calibration.quantities import Quantity, Spot, label, largest, margin, shared, spot

JUDGED = {"clean": 1.0, "worst": 1.0, "margin": -1.0}  # shares, with the sign in which more is better
WORDS = {
    "clean": "clean accuracy {}",
    "worst": "lowest accuracy under flips {}",
    "margin": "ASR above the flip rate {}",
}


@dataclass(frozen=True)
class Advice:
    """What to use for one task.

    Attributes:
        folder: Name of the folder, which with model and data is the task.
        arm: The recommended arm; None when none can be preferred, or nothing is known of any.
        cheapest: Of the arms that cannot be told apart from the best, the one with the fewest trainable
            parameters; None when there are none, or when that is not known of all.
        paragraph: Why, with numbers.
        arms: Every arm with its quantities and standing.
        left_out: Attacks and amounts at which the arms were not compared, a line for each reason.
    """

    folder: str
    model: str
    data: str
    arm: str | None
    cheapest: str | None
    paragraph: str
    arms: tuple[Arm, ...]
    left_out: tuple[str, ...]

    @property
    def task(self) -> Task:
        """Folder, model and data."""
        return (self.folder, self.model, self.data)


@dataclass(frozen=True)
class _Held:
    """A contrast with what it is of: a criterion, with its words."""

    criterion: str
    what: str
    found: Contrast

    @property
    def better(self) -> int:
        """1 where the first arm is resolved to be better, -1 where the second is, else 0."""
        if not self.found.resolved:
            return 0
        gap = JUDGED[self.criterion] * (self.found.a.value - self.found.b.value)
        return 1 if gap > 0 else -1


@dataclass(frozen=True)
class _Task:
    """All that the sentences are made from."""

    cells: Sequence[Cell]
    adjusted: Mapping[Key, Adjusted]
    found: Comparison

    @property
    def names(self) -> list[str]:
        """The judged criteria that all compared arms have."""
        return [name for name in JUDGED if name in self.found.criteria]

    @functools.cached_property
    def tests(self) -> Mapping[str, Sequence[SignFlips]]:
        """What each criterion is corrected over; both accuracies are one measure."""
        accuracy = family(self.cells, lambda cell: cell.measured.accuracy)
        margins = family(self.cells, lambda cell: cell.measured.margin)
        return {"clean": accuracy, "worst": accuracy, "margin": margins}

    @property
    def name(self) -> str:
        """Model and data."""
        return f"{short(self.cells[0].model)} on {short(self.cells[0].data)}"


def advise(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted] | None = None) -> Advice:
    """Recommend an arm for the attacks and amounts that the cells span.

    An arm is out where another one is resolved to be better in something (clean accuracy, lowest accuracy
    under flips, ASR minus flip rate at the largest amount of each trigger) and it in nothing. Of those that
    remain, best is the one with the highest sum of the three, each counted where the arms were compared in
    it: the sum weighs a point of each alike, which a user may see otherwise, and the table of the front has
    the parts. Recommended is the cheapest of those that nothing resolves from the best; when these are all
    arms, none.

    Args:
        cells: Cells of one task, at least one.
        adjusted: Calibrated intervals that stand in for the stated ones, from `intervals.adjust`.

    Raises:
        ValueError: The cells are none, or of several tasks.
    """
    if not cells:
        raise ValueError("no cells to advise on")
    found = compare(cells, adjusted)
    task = _Task(cells, adjusted or {}, found)
    arm: str | None = None
    cheapest: Arm | None = None
    if not found.compared:
        lines = ["No arm can be recommended: every arm diverged."]
    elif not task.names:
        lines = ["No arm can be recommended: no quantity is known of every arm."]
    else:
        group = _alike(task)
        cheapest = _cheapest(group) if len(group) > 1 else None
        if len(group) == 1 or len(group) < len(found.compared):
            arm = (cheapest or group[0]).name
        lines = _paragraph(task, group, cheapest)
    text = " ".join([*lines, *_diverged_lines(found), *_left_out_lines(found)])
    named = cheapest.name if cheapest else None
    return Advice(*cells[0].task, arm, named, text, found.arms, found.left_out)


def _alike(task: _Task) -> list[Arm]:
    """The best arm, then those that cannot be told apart from it."""
    arms = task.found.compared
    held = {(a.name, b.name): _contrasts(task, a, b) for a in arms for b in arms if a.name < b.name}
    signs = {
        (x.name, y.name): {
            (1 if x.name < y.name else -1) * item.better
            for item in held[min(x.name, y.name), max(x.name, y.name)]
        }
        for x in arms
        for y in arms
        if x.name != y.name
    }
    out = {
        x.name
        for x in arms
        if any(-1 in own and 1 not in own for (name, _), own in signs.items() if name == x.name)
    }
    left = [arm for arm in arms if arm.name not in out] or list(arms)
    ranked = sorted(left, key=lambda arm: _rank_of(arm, task.names), reverse=True)
    best, *others = sorted(ranked, key=lambda arm: arm.standing != "front")
    return [best, *(arm for arm in others if signs[best.name, arm.name] <= {0})]


def _rank_of(arm: Arm, names: Sequence[str]) -> tuple[float, float]:
    parameters = arm.quantities.get("parameters")
    return (round(_sum(arm, names), 9), -parameters.value if parameters else 0.0)


def _sum(arm: Arm, names: Sequence[str]) -> float:
    return sum(JUDGED[name] * arm.quantities[name].value for name in names)


def _cheapest(arms: Sequence[Arm]) -> Arm | None:
    """The arm with the fewest trainable parameters, the first of equals; None when one has no number."""
    if any("parameters" not in arm.quantities for arm in arms):
        return None
    return min(arms, key=lambda arm: arm.quantities["parameters"].value)


def _paragraph(task: _Task, group: Sequence[Arm], cheapest: Arm | None) -> list[str]:
    arms = task.found.compared
    chosen = cheapest or group[0]
    others = [arm for arm in arms if arm.name != chosen.name]
    values = _values(task, chosen)
    if not others:
        return [f"For {task.name}: {values}. There is no other arm to compare it with."]
    if len(group) == 1:
        lines = [f"For {task.name}: {values}."]
    elif len(group) < len(arms):
        alike = _listed(arm.name for arm in group if arm.name != chosen.name)
        lines = [
            f"For {task.name}: {values}.",
            f"It cannot be told apart from {alike}; {_cost(group, cheapest)}",
        ]
    else:
        basis = _basis(arms, task.names)
        lines = [f"For {task.name}: no arm can be preferred on what was {basis}; {_cost(group, cheapest)}"]
    # The most accurate of the others is what a user gives up, so it is what the choice has to be argued
    # against; where some arms cannot be told apart, the most accurate of the rest.
    rest = [arm for arm in arms if arm not in group]
    other = max(rest or others, key=lambda arm: (_clean_value(arm), _rank_of(arm, task.names)))
    held = _contrasts(task, chosen, other)
    return [*lines, *(_sentence(task, item, chosen.name, other.name) for item in held), *_rule(held)]


def _values(task: _Task, arm: Arm) -> str:
    """The arm with its quantities, as in "full (measured: clean accuracy 90.0 %)"."""
    parts = []
    for name in task.names:
        own = arm.quantities[name]
        note = _collapsed(task, arm.name, own)
        parts.append(WORDS[name].format(percent(own.value)) + (f", where {note}" if note else ""))
    return f"{arm.name} ({_basis([arm], task.names)}: {', '.join(parts)})"


def _basis(arms: Iterable[Arm], names: Sequence[str]) -> str:
    sources = {arm.quantities[name].source for arm in arms for name in names}
    return sources.pop() if len(sources) == 1 else "partly measured, partly predicted"


def _cost(group: Sequence[Arm], cheapest: Arm | None) -> str:
    """Which of the arms costs least."""
    if cheapest is None:
        return "which is the cheapest is not known: not every arm has a number of trained parameters."
    numbers = {arm.name: arm.quantities["parameters"].value for arm in group}
    least = numbers[cheapest.name]
    same = [name for name, number in numbers.items() if number == least]
    if len(same) == len(numbers):
        return f"all train equally many parameters ({least:,.0f}), so that none is the cheapest."
    rest = [f"{number:,.0f} of {name}" for name, number in numbers.items() if number != least]
    are, each = ("are", " each") if len(same) > 1 else ("is", "")
    numbers_of = f"{least:,.0f} trained parameters{each}, against {_listed(rest)}"
    return f"the cheapest {are} {_listed(same)} ({numbers_of})."


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + " and " + found[-1]


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


def _contrasts(task: _Task, first: Arm, second: Arm) -> list[_Held]:
    """Two arms in every judged criterion: what a trigger adds at its largest amounts, then accuracies."""
    names = [arm.name for arm in task.found.compared]
    backdoors = {
        name: [cell for cell in task.cells if cell.kind == "backdoor" and cell.arm == name] for name in names
    }
    held = []
    for place in largest(shared(backdoors, names, lambda cell: margin(cell, task.adjusted))):
        (a, at), (b, _) = (_margin_at(task, backdoors[arm.name], place) for arm in (first, second))
        held.append(
            _Held(
                "margin", f"ASR minus flip rate with {at}", _contrast(task, "margin", (first, second), (a, b))
            )
        )
    for name in ("worst", "clean"):
        if name in task.names:
            a, b = first.quantities[name], second.quantities[name]
            where = f"with {a.at}" if a.at == b.at else "under flips, where it is lowest,"
            what = "Clean accuracy" if name == "clean" else f"Accuracy {where}"
            held.append(_Held(name, what, _contrast(task, name, (first, second), (a, b))))
    return held


def _contrast(task: _Task, name: str, arms: tuple[Arm, Arm], values: tuple[Quantity, Quantity]) -> Contrast:
    listed = reference(task.cells) in {arm.name for arm in arms}
    return contrast(*values, task.tests[name], listed=listed)


def _margin_at(task: _Task, cells: Sequence[Cell], place: Spot) -> tuple[Quantity, str]:
    (cell,) = [cell for cell in cells if spot(cell) == place]
    value = margin(cell, task.adjusted)
    assert value is not None, "shared places have a value for every arm"
    return value, label(cell)


def _sentence(task: _Task, held: _Held, arm: str, other: str) -> str:
    """One contrast, with its numbers and what seeds show of it."""
    a, b = held.found.a, held.found.b
    shown = points if held.criterion == "margin" else percent
    text = f"{held.what}: {shown(a.value)} for {arm} against {shown(b.value)} for {other}"
    notes = [note for name, own in ((arm, a), (other, b)) if (note := _collapsed(task, name, own))]
    text += f" ({'; '.join(notes)})" if notes else ""
    return f"{text}; {resolution(held.found)}."


def resolution(found: Contrast) -> str:
    """What the seeds show of a difference, as in "−1.2 points [−3.0, +0.6], not resolved by 3 seeds".

    Two values that were taken at different attacks or amounts differ by more than their arms: of those, seeds
    say nothing.
    """
    a, b, n = found.a, found.b, found.difference.n
    if a.at != b.at:
        return f"not tested, since the two stand at different places ({a.at}; {b.at})"
    if not found.measured:
        both = a.source == b.source
        how = "both are predicted, not measured" if both else "one is measured and one predicted"
        return f"{how}, and their 90 % intervals {'do not overlap' if found.resolved else 'overlap'}"
    if n == 0:
        return "not tested: no seed was measured for both"
    mean = _signed(found.difference.mean or 0.0)
    if n == 1:
        return f"{mean} points with one seed, of which nothing can be tested"
    if found.crossed:
        return f"{mean} points, no interval and no test: crossed seeds"
    if not found.interval.defined:
        return f"{mean} points at every seed, which gives no interval, {found.verdict}"
    text = f"{mean} points [{_signed(found.interval.low)}, {_signed(found.interval.high)}], {found.verdict}"
    if not found.resolved and excludes_zero(found.difference):
        return f"{text} although the interval, which is not corrected, leaves out 0"
    return text


def _rule(held: Sequence[_Held]) -> list[str]:
    """What brackets and "resolved" mean, where the sentences have any."""
    tested = [item.found for item in held if item.found.cells and item.found.difference.n > 1]
    if not tested:
        return []
    short_of = [found for found in tested if found.best_p_holm > ALPHA]
    takes = max((pairs_needed(found.cells) for found in short_of), default=0)
    cells = " or ".join(str(number) for number in sorted({found.cells for found in tested}))
    plural = "" if cells == "1" else "s"
    return [
        f"In brackets: 95 % t intervals over pairs of seeds. Resolved is what sign flips show (p ≤ {ALPHA} "
        f"after Holm over {cells} cell{plural}){f'; that takes {takes} pairs' if takes else ''}."
    ]


def _collapsed(task: _Task, arm: str, own: Quantity) -> str:
    """How many of the runs behind a measured value predict a single class; empty without any."""
    if own.source != "measured":
        return ""
    for cell in task.cells:
        if cell.arm == arm and cell.measured.collapsed and label(cell) == (own.at or CLEAN):
            done = cell.measured.completed
            return f"{cell.measured.collapsed} of {done} runs of {arm} collapsed: they predict one class"
    return ""


def percent(share: float) -> str:
    """A share as "12.3 %", with a true minus sign."""
    return f"{share * 100:.1f} %".replace("-", "−")


def points(share: float) -> str:
    """A difference of shares as "12.3 points", with a true minus sign."""
    return f"{share * 100:.1f} points".replace("-", "−")


def _signed(share: float) -> str:
    return f"{round(share * 100, 1) + 0.0:+.1f}".replace("-", "−")

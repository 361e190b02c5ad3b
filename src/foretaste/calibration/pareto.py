"""Which arms no other arm beats in everything: clean accuracy, accuracy under flips, ASR margin and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from foretaste.calibration.cells import Cell, Sample
from foretaste.calibration.intervals import Adjusted, Key
from foretaste.calibration.places import arm_order
from foretaste.calibration.quantities import CRITERIA, Criterion, Quantity, known, label

Standing: TypeAlias = Literal["front", "dominated", "not resolved", "diverged"]

# Two seeds leave one degree of freedom, and an interval that hangs on one difference: as many as
# `hypotheses.decision.LEAST_SEEDS`, which stands in a row below this one.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Arm:
    """An arm with its quantities and where it stands.

    Attributes:
        quantities: By name of the criterion; those that the cells do not tell are missing.
        standing: "front": no arm is at least as good in everything and better in something. "dominated": one
            is, and each of the differences that seeds can show is resolved. "not resolved": one is, but
            other seeds could say otherwise. "diverged": at some attack and amount it was measured, no run
            completed and at least one diverged; such an arm is not compared.
        by: The arms that dominate it, resolved ones first.
        diverged: Where it diverged so, with numbers of runs, as in "40 % label-flip (3 of 3)".
        partly: The same where other runs completed; their means are over those.
    """

    name: str
    quantities: Mapping[str, Quantity]
    standing: Standing
    by: tuple[str, ...]
    diverged: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The arms of one task, and what they were compared in.

    Attributes:
        arms: In their order.
        criteria: Names of the criteria that all compared arms have at the same attacks and amounts.
        left_out: A line for each reason why attacks and amounts were left out of it.
    """

    arms: tuple[Arm, ...]
    criteria: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def compared(self) -> tuple[Arm, ...]:
        """The arms that did not diverge."""
        return tuple(arm for arm in self.arms if arm.standing != "diverged")


def front(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted] | None = None) -> list[Arm]:
    """Where each arm of one task stands: the arms of `compare`."""
    return list(compare(cells, adjusted).arms)


def compare(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted] | None = None) -> Comparison:
    """Compare the arms of one task.

    An arm that diverged (see `Arm.standing`) has no value where it was hardest, and stands off the front.
    The others are compared in the criteria that all of them have, over the attacks and amounts at which all
    of them have a value. `worst` is the lowest mean accuracy over attacks without a trigger and their
    amounts; `margin` is at the largest rate, or number of rows, of each attack with one, the highest over
    attacks; `seconds` is over the cells in which all were timed. Where arms have nothing in common, each
    keeps what it has, and the criterion is not compared.

    A dominated arm counts as resolved only if the 95 % Student t interval of the paired difference over
    seeds, at least three, excludes 0 in every criterion that is measured over seeds and differs; what is
    predicted for either arm, or taken at different attacks or amounts, resolves nothing.

    Args:
        cells: Cells of one task.
        adjusted: Calibrated intervals that stand in for the stated ones, from `intervals.adjust`.

    Raises:
        ValueError: The cells are of several tasks.
    """
    if len({cell.task for cell in cells}) > 1:
        raise ValueError("arms are compared within one task")
    by_arm: dict[str, list[Cell]] = {arm: [] for arm in arm_order(cell.arm for cell in cells)}
    for cell in cells:
        by_arm[cell.arm].append(cell)
    diverged = {arm: _diverged(own, whole=True) for arm, own in by_arm.items()}
    compared = [arm for arm in by_arm if not diverged[arm]]
    told = known(by_arm, compared, adjusted or {})
    found = told.quantities
    criteria = [c for c in CRITERIA if c.name in told.alike and all(c.name in found[a] for a in compared)]
    arms = []
    for arm, own in by_arm.items():
        better = {
            other: _resolved(found[other], found[arm], criteria)
            for other in compared
            if arm in compared and other != arm and _dominates(found[other], found[arm], criteria)
        }
        standing: Standing = (
            "diverged"
            if arm not in compared
            else "front"
            if not better
            else "dominated"
            if any(better.values())
            else "not resolved"
        )
        order = sorted(better, key=lambda other: (not better[other], compared.index(other)))
        partly = _diverged(own, whole=False)
        arms.append(Arm(arm, found[arm], standing, tuple(order), diverged[arm], partly))
    return Comparison(tuple(arms), tuple(c.name for c in criteria), told.left_out)


def _diverged(cells: Sequence[Cell], *, whole: bool) -> tuple[str, ...]:
    """Where runs diverged and none completed, or with `whole` False, where others did."""
    return tuple(
        f"{label(cell)} ({count} of {cell.measured.runs})"
        for cell in cells
        if (count := cell.measured.statuses.get("diverged", 0)) and whole == (not cell.measured.completed)
    )


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
    return a.at == b.at and excludes_zero(a.sample.minus(b.sample))


def excludes_zero(differences: Sample) -> bool:
    """The 95 % Student t interval of the mean difference over `LEAST_SEEDS` or more does not contain 0."""
    if differences.n < LEAST_SEEDS:
        return False
    return differences.interval().excludes(0.0)

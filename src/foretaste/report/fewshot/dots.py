"""The criteria of kernel behaviour split by split, as the dots of the paper's Table 1, and their numbers.

By the paper's thresholds: the kernel solves the task where its score is at least 90 % of fine-tuning's;
Linearization where the first-order expansion recovers at least half of fine-tuning's gain; Fixed Features
where the kernel's mean relative distance is below 2; kernel behaviour is all three. Of several kernels that
describe one arm (the two sign kernels and Adam) that with the best validation score of the split stands for
them: the paper names both and does not say which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from foretaste.fewshot.record import FewShotRecord
from foretaste.fewshot.spec import FineTune
from foretaste.report.fewshot.cells import Cell, Place, value_of
from foretaste.report.fewshot.pairs import analog, same_rows
from foretaste.theory.criteria import FIXED, LINEARISED, SOLVED, solves

Criterion = Literal["solves", "linearisation", "fixed_features", "kernel_behaviour"]
CRITERIA: dict[Criterion, str] = {
    "solves": "Kernel solves task",
    "linearisation": "Linearisation",
    "fixed_features": "Fixed features",
    "kernel_behaviour": "Kernel behaviour",
}
"""Titles, in the order of Table 1."""
THRESHOLDS: dict[Criterion, str] = {
    "solves": f"≥ {100 * SOLVED:.0f} % of fine-tuning's score",
    "linearisation": f"≥ {100 * LINEARISED:.0f} % of its gain",
    "fixed_features": f"mean relative distance < {FIXED:g}",
    "kernel_behaviour": "all three",
}
FULL, HALF, EMPTY, UNDEFINED = "●", "◐", "○", "–"


@dataclass(frozen=True)
class Dot:
    """One criterion on one split.

    Attributes:
        met: None where it cannot be said.
        reason: Why it cannot be said.
    """

    met: bool | None
    reason: str = ""

    @property
    def mark(self) -> str:
        """Filled, empty, or a dash."""
        return UNDEFINED if self.met is None else FULL if self.met else EMPTY


@dataclass(frozen=True)
class SplitDots:
    """One fine-tuned model with its kernels.

    Attributes:
        kernel: Name of the kernel that stands for all of its kind; None where there is none.
        ratio: The kernel's score by fine-tuning's.
        share: Of the gain that the expansion recovers.
        distance: The paper's.
        alignment: Cosine of the kernels before and after; 1 is equal up to scale.
        scaled_distance: Relative distance at the best scale, 0 to 1.
        zero_shot: Test score of the pretrained model; so are `linearised` and `fine_tuned`.
        chi: Mean size of the loss's derivative by the logits, pretrained model, test rows.
        chi_after: The same of the fine-tuned model.
    """

    split: int
    dots: dict[Criterion, Dot]
    kernel: str | None
    ratio: float | None
    share: float | None
    distance: float | None
    alignment: float | None
    scaled_distance: float | None
    zero_shot: float | None
    linearised: float | None
    fine_tuned: float | None
    chi: float | None
    chi_after: float | None


@dataclass(frozen=True)
class DotRow:
    """One fine-tuning arm in one place.

    Attributes:
        arm: Name of the fine-tuning arm.
        kernels: Names of those that describe it.
        splits: In their order; failed runs are left out and are counted elsewhere.
        failed: Runs without a result.
        measured: Whether any of its runs measured the criteria.
    """

    place: Place
    arm: str
    kernels: tuple[str, ...]
    splits: tuple[SplitDots, ...]
    failed: int
    measured: bool

    def count(self, criterion: Criterion) -> tuple[int, int]:
        """Splits that meet a criterion, and splits of which it can be said."""
        said = [one.dots[criterion].met for one in self.splits if one.dots[criterion].met is not None]
        return sum(bool(met) for met in said), len(said)

    def summary(self, criterion: Criterion) -> str:
        """Filled: every split meets it; empty: none does; half: some; a dash: nothing can be said."""
        met, said = self.count(criterion)
        if not said:
            return UNDEFINED
        return FULL if met == said else EMPTY if met == 0 else HALF


def dot_rows(found: Sequence[Cell]) -> list[DotRow]:
    """One row for each fine-tuning arm that has a kernel beside it, or whose criteria were measured."""
    rows = []
    for cell in found:
        if not isinstance(cell.arm, FineTune):
            continue
        kernels = [other for other in found if analog(other, cell)]
        measured = any(run.criteria is not None for run in cell.completed)
        if not kernels and not measured:
            continue
        rows.append(
            DotRow(
                place=cell.place,
                arm=cell.name,
                kernels=tuple(kernel.name for kernel in kernels),
                splits=tuple(_of_split(run, kernels) for run in cell.completed),
                failed=len(cell.runs) - len(cell.completed),
                measured=measured,
            )
        )
    return rows


def _of_split(run: FewShotRecord, kernels: Sequence[Cell]) -> SplitDots:
    kernel = _standing_for(run, kernels)
    tuned, reached = value_of(run), value_of(kernel[1]) if kernel else None
    criteria = run.criteria
    dots: dict[Criterion, Dot] = {
        "solves": _solved(reached, tuned, beside=bool(kernels)),
        "linearisation": _linearised(run),
        "fixed_features": _fixed(run),
    }
    dots["kernel_behaviour"] = _all_of(list(dots.values()))
    return SplitDots(
        split=run.resolved.split,
        dots=dots,
        kernel=kernel[0] if kernel else None,
        ratio=reached / tuned if reached is not None and tuned else None,
        share=_known(criteria.linearised_share if criteria else None),
        distance=_known(criteria.kernel_distance if criteria else None),
        alignment=_known(criteria.alignment if criteria else None),
        scaled_distance=_known(criteria.scaled_distance if criteria else None),
        zero_shot=run.zero_shot_test.value if run.zero_shot_test else None,
        linearised=criteria.linearised_test.value if criteria and criteria.linearised_test else None,
        fine_tuned=tuned,
        chi=_known(criteria.chi if criteria else None),
        chi_after=_known(criteria.chi_after if criteria else None),
    )


def _standing_for(run: FewShotRecord, kernels: Sequence[Cell]) -> tuple[str, FewShotRecord] | None:
    """The kernel with the best validation score on the run's split, the first of equals."""
    there = [
        (cell.name, other)
        for cell in kernels
        if (other := cell.by_split.get(run.resolved.split)) is not None and same_rows(run, other)
    ]
    return max(there, key=lambda pair: _dev(pair[1]), default=None)


def _dev(run: FewShotRecord) -> float:
    return -math.inf if run.dev is None or run.dev.value is None else run.dev.value


def _solved(kernel: float | None, tuned: float | None, *, beside: bool) -> Dot:
    if not beside:
        return Dot(None, "no kernel of this kind was run")
    if kernel is None or tuned is None:
        return Dot(None, "the kernel or fine-tuning has no score on this split")
    return Dot(solves(kernel, tuned))


def _linearised(run: FewShotRecord) -> Dot:
    if run.criteria is None:
        return Dot(None, "criteria were not measured")
    share = _known(run.criteria.linearised_share)
    if share is None:
        return Dot(None, "fine-tuning gained nothing, or the expansion has no score")
    return Dot(share >= LINEARISED)


def _fixed(run: FewShotRecord) -> Dot:
    if run.criteria is None:
        return Dot(None, "criteria were not measured")
    distance = run.criteria.kernel_distance
    if distance is None or math.isnan(distance):
        return Dot(None, "the kernel has no distance")
    return Dot(distance < FIXED)


def _all_of(dots: Sequence[Dot]) -> Dot:
    """One that fails decides; one that cannot be said leaves it open."""
    if any(dot.met is False for dot in dots):
        return Dot(False)
    open_ones = [dot.reason for dot in dots if dot.met is None]
    return Dot(None, open_ones[0]) if open_ones else Dot(True)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value

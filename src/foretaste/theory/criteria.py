"""The three criteria of kernel behaviour, as Malladi et al. 2023 state them, and what they leave out.

Table 1 of that paper calls a fine-tuning run kernel behaviour when all three hold: the kernel solves the
task, the Linearization property holds, and the Fixed Features property holds.

In docs/theory.md: T21.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.layout import at_least, real

SOLVED = 0.9
"""Least share of the fine-tuned score for "the eNTK solves the task" (Table 1)."""
LINEARISED = 0.5
"""Least share of fine-tuning's gain for the Linearization property (Table 1)."""
FIXED = 2.0
"""Mean relative distance below which Fixed Features is called satisfied (Table 1)."""


@dataclass(frozen=True)
class FixedFeatures:
    """How far a kernel moved during fine-tuning.

    Attributes:
        paper_distance: mean |K1 - K0| / |K0| over entries, the paper's (Table 6). Entries that are 0 before
            and after count as 0; one that is 0 only before makes it inf. Near-zero entries dominate it.
        paper_holds: paper_distance < 2.0. Weak: K1 = 2.9 K0 and K1 = -0.9 K0 both pass.
        alignment: <K0, K1> / (|K0| |K1|), Frobenius, in [-1, 1]; 1 means equal up to scale. NaN if a kernel
            is zero.
        best_scale: The c >= 0 for which c K0 is nearest to K1.
        scaled_distance: |K1 - best_scale K0| / |K1|, in [0, 1], which is sqrt(1 - alignment^2) for positive
            alignment and else 1. NaN if a kernel is zero.
    """

    paper_distance: float
    paper_holds: bool
    alignment: float
    best_scale: float
    scaled_distance: float


def solves(kernel: float, fine_tuned: float) -> bool:
    """The kernel solves the task: its score reaches 90 % of the fine-tuned model's.

    Args:
        kernel: Score (accuracy or F1) of the kernel solver, >= 0.
        fine_tuned: Score of the fine-tuned model, in the same unit.

    Raises:
        UserError: A score is negative or not finite.
    """
    # In floating point 0.9 x 0.8 lies above 0.72: a score that is exactly 90 % must not fail by rounding.
    least = SOLVED * at_least(fine_tuned, 0.0, "fine_tuned") * (1 - 1e-12)
    return at_least(kernel, 0.0, "kernel") >= least


def linearisation_share(linearised: float, pretrained: float, fine_tuned: float) -> float:
    """Share of fine-tuning's gain that the linearised model recovers; the paper asks for 0.5 or more.

    Args:
        linearised: Score of the first-order Taylor expansion at the fine-tuned parameters.
        pretrained: Score of the pre-trained model (zero-shot).
        fine_tuned: Score of the fine-tuned model.

    Returns:
        (linearised - pretrained) / (fine_tuned - pretrained). NaN where fine-tuning gained nothing: there is
        nothing to recover, and the ratio's sign would be reversed.

    Raises:
        UserError: A score is negative or not finite.
    """
    base = at_least(pretrained, 0.0, "pretrained")
    gain = at_least(fine_tuned, 0.0, "fine_tuned") - base
    return (at_least(linearised, 0.0, "linearised") - base) / gain if gain > 0 else float("nan")


def fixed_features(before: npt.ArrayLike, after: npt.ArrayLike) -> FixedFeatures:
    """Compare the kernel before and after fine-tuning, by the paper's distance and by shape.

    Args:
        before: K0, any shape.
        after: K1, the same shape.

    Raises:
        UserError: The shapes differ, are empty, or an entry is not finite.
    """
    old, new = real(before, "before"), real(after, "after")
    if old.shape != new.shape or old.size == 0:
        raise UserError(f"expected two kernels of one shape, got {old.shape} and {new.shape}", where="after")
    moved, size = np.abs(new - old), np.abs(old)
    relative = np.divide(moved, size, out=np.where(moved > 0, np.inf, 0.0), where=size > 0)
    distance = float(relative.mean())
    length_old, length_new = float(np.linalg.norm(old)), float(np.linalg.norm(new))
    if length_old == 0 or length_new == 0:
        nan = float("nan")
        return FixedFeatures(distance, distance < FIXED, nan, nan, nan)
    unit_old, unit_new = old / length_old, new / length_new
    alignment = float(np.clip(np.sum(unit_old * unit_new), -1.0, 1.0))
    share = max(0.0, alignment)
    return FixedFeatures(
        paper_distance=distance,
        paper_holds=distance < FIXED,
        alignment=alignment,
        best_scale=share * length_new / length_old,
        # As a difference, not sqrt(1 - alignment^2), which loses half the digits near 1.
        scaled_distance=float(np.linalg.norm(unit_new - share * unit_old)),
    )

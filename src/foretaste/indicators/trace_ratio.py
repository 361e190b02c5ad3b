"""tr K / tr K_FF: the arm's kernel beside that of full fine-tuning in size, with and without heads."""

from __future__ import annotations

import math

import numpy as np

from foretaste.indicators.base import indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.flow import trace_ratio as of_kernels
from foretaste.theory.layout import Floats
from foretaste.theory.regression import decompose

LARGER = "LoRA nearer to full fine-tuning in size: more information, less robust in training."


@indicator("trace_ratio", needs=("kernel", "reference"), larger=LARGER, degree=1, rotation=True)
def trace_ratio(evidence: Evidence) -> float:
    """Trace of the arm's kernel over that of full fine-tuning: the measured scale factor c.

    A head that both arms train is in both traces, so the ratio cannot fall below tr K_head / tr K_FF.
    """
    assert evidence.kernel is not None
    assert evidence.reference is not None
    return of_kernels(decompose(evidence.kernel), decompose(evidence.reference))


@indicator(
    "trace_ratio_without_head",
    needs=("kernel_without_head", "reference_without_head"),
    larger=LARGER,
    degree=1,
    rotation=True,
    undefined="full fine-tuning trains nothing but the head",
)
def trace_ratio_without_head(evidence: Evidence) -> float:
    """The trace ratio of what lies below the head.

    Returns:
        0 for an arm that trains its head only; NaN where full fine-tuning does too: there is nothing to
        compare with.
    """
    arm, full = _values(evidence.kernel_without_head), _values(evidence.reference_without_head)
    return float(arm.sum() / full.sum()) if full.any() else math.nan


def _values(kernel: object) -> Floats:
    array = np.asarray(kernel)
    return decompose(array).values if array.any() else np.zeros(1)

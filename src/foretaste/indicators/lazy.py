"""K_A / K_B: whether LoRA's kernel stays what it was, as the TTR paper's Theorem 2.1 and App. C suppose."""

from __future__ import annotations

import math

from foretaste.indicators.base import indicator
from foretaste.indicators.evidence import Evidence


@indicator(
    "lazy_ratio",
    needs=("traces",),
    larger="Training A has moved the kernel: above 0.1, a prediction from the start's kernel is doubtful.",
    degree=0,
    rotation=True,
    undefined="tr K_B is 0: no output depends on B",
)
def lazy_ratio(evidence: Evidence) -> float:
    """Tr K_A / tr K_B, the share that training A adds to LoRA's kernel; 0 at B = 0.

    Returns:
        NaN where tr K_B is 0: A maps every layer input to 0, or nothing below the head moves an output.
    """
    traces = evidence.traces
    assert traces is not None
    return traces.a / traces.b if traces.b > 0 else math.nan

"""M of one step (the TTR paper's Eq. 5 at t = 1), exactly, from the Gram of the rows that differ."""

from __future__ import annotations

import math

from foretaste.indicators.base import indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.similarity import one_step_difference


@indicator(
    "one_step",
    needs=("twin",),
    larger="Less robust in training: this is the quantity that Eq. 7 is meant to stand for.",
    degree=0.5,
    rotation=False,
)
def one_step(evidence: Evidence) -> float:
    """|dTheta - dTheta~| of one gradient step on clean and on poisoned data, at learning rate 1.

    The TTR paper's Eq. 5 at t = 1, proportional to the learning rate. Rows that both data sets have cancel:
    only the pairs matter, and the number N of all rows, over which the loss is a mean.
    """
    twin = evidence.twin
    assert twin is not None
    clean, poisoned = twin.gradients
    squared = one_step_difference(twin.kernel, clean, poisoned, learning_rate=1.0, examples=twin.examples)
    return math.sqrt(squared)

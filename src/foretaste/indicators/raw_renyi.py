"""Renyi entropies of the Fisher spectrum as the TTR paper's Eq. 10 writes them: not normalised.

Under K_LoRA <= K_FF the order of the paper's Theorem 3.6 is implied for alpha < 1 only and is reversed,
always, for alpha > 1. At alpha = 1 Eq. 10 diverges: there is the raw Shannon sum under its own name, and no
raw_renyi_1.
"""

from __future__ import annotations

import math

from foretaste.indicators.base import SPECTRUM, Compute, indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.information import raw_renyi
from foretaste.theory.information import raw_shannon as shannon_sum

ORDERS = {"0.5": 0.5, "2": 2.0, "inf": math.inf}
LARGER = "A less smooth information surface: room for triggers, less sensitive to label noise."
UNDEFINED = "every eigenvalue is 0: the sum is empty"


def _of(order: float) -> Compute:
    def compute(evidence: Evidence) -> float:
        return raw_renyi(evidence.spectrum, order)

    return compute


for _name, _order in ORDERS.items():
    indicator(
        f"raw_renyi_{_name}",
        needs=(SPECTRUM,),
        larger=LARGER if _order < 1 else f"{LARGER} Grows as the kernel shrinks.",
        degree=None,
        rotation=True,
        undefined=UNDEFINED,
        description=f"Eq. 10 of order {_name} on the Fisher eigenvalues themselves: scale and shape",
    )(_of(_order))


@indicator("raw_shannon", needs=(SPECTRUM,), larger=LARGER, degree=None, rotation=True, undefined=UNDEFINED)
def raw_shannon(evidence: Evidence) -> float:
    """-sum lambda log lambda of the Fisher eigenvalues: grows with an eigenvalue up to 1/e only.

    Returns:
        NaN where all eigenvalues are 0, as the raw entropies of the other orders.
    """
    return shannon_sum(evidence.spectrum)

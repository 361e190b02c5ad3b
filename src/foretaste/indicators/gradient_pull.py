"""Inner products of the loss gradients of pairs: the TTR paper's Eq. 16 (backdoors) and 17 (flips).

Of a flip in a binary task the cosine is -1 under every kernel: Eq. 17 tells arms apart by their scale only.
"""

from __future__ import annotations

from foretaste.indicators.base import Compute, indicator
from foretaste.indicators.evidence import Evidence

LARGER = "Backdoors are harder (Eq. 16, which they minimise); label noise is more harmful (Eq. 17)."
WORDS = {
    "mean_abs": "Mean of |<grad L(x), grad L(x~)>| over pairs: Eq. 16 or 17",
    "abs_mean": "|mean of <grad L(x), grad L(x~)>| over pairs: those of opposite sign cancel",
    "mean_abs_cosine": "Mean of |cosine| of the loss gradients of pairs: shape only",
    "mean_cosine": "Mean of the cosine of the loss gradients of pairs, sign kept",
}


def _of(field: str) -> Compute:
    def compute(evidence: Evidence) -> float:
        assert evidence.twin is not None
        return float(getattr(evidence.twin.pull, field))

    return compute


for _field, _words in WORDS.items():
    _shape = "cosine" in _field
    indicator(
        f"pull_{_field}",
        needs=("twin",),
        larger=LARGER,
        degree=0 if _shape else 1,
        rotation=False,
        undefined="the loss gradient of a row of a pair is zero and has no direction" if _shape else "",
        description=_words,
    )(_of(_field))

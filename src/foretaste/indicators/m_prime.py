"""M' of clean rows and their poisoned forms (the TTR paper's Eq. 7), by scale and by shape.

The paper does not say which norm; both are here. A label flip, x~ = x, M' does not see at all.
"""

from __future__ import annotations

from foretaste.indicators.base import Compute, indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.similarity import ORDERS, Norm, m_prime, m_prime_cosine

LARGER = "Less robust in training (though the inner product has a minus sign in |grad L - grad L~|^2)."
WORDS: dict[Norm, str] = {"fro": "Frobenius", "op": "operator"}


def _scale(norm: Norm) -> Compute:
    def compute(evidence: Evidence) -> float:
        assert evidence.twin is not None
        return m_prime(evidence.twin.blocks[0], norm)

    return compute


def _cosine(norm: Norm) -> Compute:
    def compute(evidence: Evidence) -> float:
        assert evidence.twin is not None
        return m_prime_cosine(*evidence.twin.blocks, norm)

    return compute


for _norm in ORDERS:
    indicator(
        f"m_prime_{_norm}",
        needs=("twin",),
        larger=LARGER,
        degree=1,
        rotation=True,
        description=f"Eq. 7, ||E K(x, x~)|| over pairs, {WORDS[_norm]} norm",
    )(_scale(_norm))
    indicator(
        f"m_prime_cosine_{_norm}",
        needs=("twin",),
        larger=LARGER,
        degree=0,
        rotation=True,
        undefined="a row of a pair moves no output: its Jacobian is zero and has no direction",
        description=f"Eq. 7 with Jacobians of length 1, {WORDS[_norm]} norm: shape only",
    )(_cosine(_norm))

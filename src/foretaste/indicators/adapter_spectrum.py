"""s^2 A^T A <= I, the condition of the TTR paper's Theorem 3.4 with the scaling that the paper leaves out."""

from __future__ import annotations

import numpy as np

from foretaste.indicators.base import indicator
from foretaste.indicators.evidence import Drawn, Evidence, Law
from foretaste.theory.spectra import bulk, semi_definite


@indicator(
    "adapter_top",
    needs=("layers",),
    larger="Above 1, M_Delta is not negative semi-definite and K_LoRA <= K_FF is not implied.",
    degree=1,
    rotation=True,
)
def adapter_top(evidence: Evidence) -> float:
    """Largest eigenvalue of s^2 A^T A over all layers; of a law, the Marchenko-Pastur edge."""
    return max(_top(layer) for layer in evidence.layers.values())


@indicator(
    "adapters_below_identity",
    needs=("layers",),
    larger="The hypothesis of Theorem 3.6 (LoRA has less information and is more robust) holds.",
    degree=None,
    rotation=True,
)
def adapters_below_identity(evidence: Evidence) -> float:
    """Share of the adapted layers where s^2 A^T A <= I: the NSD verdict on M_Delta, 1 where it holds in all.

    A drawn A counts as 1 or 0; a law as the probability that its draw satisfies the condition.
    """
    return float(np.mean([_below(layer) for layer in evidence.layers.values()]))


def _top(layer: Drawn | Law) -> float:
    return float(layer.eigenvalues[-1]) if isinstance(layer, Drawn) else bulk(**vars(layer)).upper


def _below(layer: Drawn | Law) -> float:
    if isinstance(layer, Drawn):
        return float(layer.eigenvalues[-1] <= 1)
    return semi_definite(**vars(layer)).probability

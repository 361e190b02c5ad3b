"""The scale factor c, from the adapters alone: what the trace ratio is on average over A."""

from __future__ import annotations

import numpy as np

from foretaste.indicators.base import indicator
from foretaste.indicators.evidence import Drawn, Evidence, Law
from foretaste.theory.spectra import bulk


@indicator(
    "scale_factor",
    needs=("layers",),
    larger="LoRA nearer to full fine-tuning in size (the paper writes no scaling: s = 1).",
    degree=1,
    rotation=True,
)
def scale_factor(evidence: Evidence) -> float:
    """Mean eigenvalue of s^2 A^T A over all n inputs, a mean over layers: c = s^2 r k / n of a law.

    E K_LoRA = c K_FF holds layer by layer at any width, so the trace ratio without heads is a mean of the
    layers' c weighted by their share in the reference kernel (and lowered by what only full fine-tuning
    trains); this is the plain mean.
    """
    return float(np.mean([_of(layer) for layer in evidence.layers.values()]))


def _of(layer: Drawn | Law) -> float:
    if isinstance(layer, Drawn):
        return float(layer.eigenvalues.sum() / np.shape(layer.A)[1])
    law = bulk(**vars(layer))
    return law.gamma * law.mean

"""Cosines of kernels: with that of full fine-tuning, and with the labels. Shape only."""

from __future__ import annotations

import numpy as np

from foretaste.indicators.base import SAYS_NOTHING, indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.criteria import fixed_features
from foretaste.theory.layout import one_hot
from foretaste.theory.regression import decompose


@indicator(
    "alignment",
    needs=("kernel", "reference"),
    larger="LoRA nearer to full fine-tuning in shape; the paper compares sizes only.",
    degree=0,
    rotation=True,
)
def alignment(evidence: Evidence) -> float:
    """<K, K_FF> / (|K| |K_FF|), Frobenius: 1 where the kernels are equal up to a factor."""
    assert evidence.kernel is not None
    assert evidence.reference is not None
    for kernel in (evidence.kernel, evidence.reference):
        decompose(kernel)  # refuses what is no kernel
    return fixed_features(evidence.reference, evidence.kernel).alignment


@indicator("target_alignment", needs=("kernel", "labels"), larger=SAYS_NOTHING, degree=0, rotation=False)
def target_alignment(evidence: Evidence) -> float:
    """y^T K y / (|K|_F |y|^2), the kernel's alignment with the labels.

    Cristianini et al. 2001, "On kernel-target alignment". y is -1 and +1 for a margin; for C logits
    e_y - 1/C, which sums to 0 over the classes, so that an output
    which all classes share does not count. In [0, 1].
    """
    assert evidence.kernel is not None
    assert evidence.labels is not None
    d = decompose(evidence.kernel)
    y = one_hot(evidence.labels, d.layout)
    if d.layout.classes is not None:
        y = y - 1.0 / d.layout.classes
    y = y.ravel() / np.linalg.norm(y)
    return float(d.values @ (d.vectors.T @ y) ** 2 / np.linalg.norm(d.values))

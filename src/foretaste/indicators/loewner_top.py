"""K_LoRA <= K_FF on the given rows, which can hold where s^2 A^T A <= I does not."""

from __future__ import annotations

from foretaste.indicators.base import indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.loewner import gram_order


@indicator(
    "loewner_top",
    needs=("kernel", "reference"),
    larger="Above 1, the ordered eigenvalues of full fine-tuning need not be the larger ones (Theorem 3.6).",
    degree=1,
    rotation=True,
)
def loewner_top(evidence: Evidence) -> float:
    """Smallest t with K <= t K_FF on these rows; a head that both train keeps it at 1 or more.

    Returns:
        inf where the arm's kernel has a direction that full fine-tuning's lacks: no t is enough.
    """
    assert evidence.kernel is not None
    assert evidence.reference is not None
    return gram_order(evidence.reference, evidence.kernel).top

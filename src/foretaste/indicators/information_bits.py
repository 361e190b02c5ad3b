"""Information bits of the Fisher matrix in three forms (the TTR paper's Eq. 9; natural logarithms)."""

from __future__ import annotations

from foretaste.indicators.base import SAYS_NOTHING, SPECTRUM, indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory import information

BETA = 1.0  # of `bits_1p`: the paper has no such form and no value is natural
LARGER = "More information: less robust in training."


@indicator("bits_sum", needs=(SPECTRUM,), larger=LARGER, degree=1, rotation=True)
def bits_sum(evidence: Evidence) -> float:
    """Half the trace of the Fisher matrix, the right side of the paper's Equation 9."""
    return information.information_bits(evidence.spectrum, beta=BETA).by_sum


@indicator(
    "bits_pdet",
    needs=(SPECTRUM,),
    larger=f"{LARGER} Its order between arms depends on the unit of the output unless ranks are equal.",
    degree=None,
    rotation=True,
    undefined="every eigenvalue is 0: there is no pseudo-determinant",
)
def bits_pdet(evidence: Evidence) -> float:
    """Half the logarithm of the pseudo-determinant, the left side of the paper's Equation 9.

    Returns:
        NaN where all eigenvalues are 0 (the model fits every label exactly): the product is empty.
    """
    return information.information_bits(evidence.spectrum, beta=BETA).by_pdet


@indicator("bits_1p", needs=(SPECTRUM,), larger=SAYS_NOTHING, degree=None, rotation=True)
def bits_1p(evidence: Evidence) -> float:
    """1/2 sum log(1 + lambda): what gaussian observations tell of gaussian parameters; monotone, finite."""
    return information.information_bits(evidence.spectrum, beta=BETA).by_1p

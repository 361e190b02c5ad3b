"""How many directions of the Fisher matrix count: effective and stable rank."""

from __future__ import annotations

from foretaste.indicators.base import SAYS_NOTHING, SPECTRUM, indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory import information

UNDEFINED = "every eigenvalue is 0: a zero spectrum has no shape"


@indicator(
    "effective_rank",
    needs=(SPECTRUM,),
    larger=SAYS_NOTHING,
    degree=0,
    rotation=True,
    undefined=UNDEFINED,
)
def effective_rank(evidence: Evidence) -> float:
    """Exponential of the normalised Shannon entropy of the Fisher spectrum (Roy & Vetterli 2007).

    Returns:
        NaN where all eigenvalues are 0.
    """
    return information.effective_rank(evidence.spectrum)


@indicator(
    "stable_rank",
    needs=(SPECTRUM,),
    larger=SAYS_NOTHING,
    degree=0,
    rotation=True,
    undefined=UNDEFINED,
)
def stable_rank(evidence: Evidence) -> float:
    """Trace of the Fisher matrix over its largest eigenvalue.

    Returns:
        NaN where all eigenvalues are 0.
    """
    return information.stable_rank(evidence.spectrum)

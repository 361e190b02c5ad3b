"""Renyi entropies of the shape of the Fisher spectrum: p = lambda / sum lambda (TTR paper, App. C.1)."""

from __future__ import annotations

import math

from foretaste.indicators.base import SPECTRUM, Compute, indicator
from foretaste.indicators.evidence import Evidence
from foretaste.theory.information import renyi_entropy

ORDERS = {"0.5": 0.5, "1": 1.0, "2": 2.0, "inf": math.inf}


def _of(order: float) -> Compute:
    def compute(evidence: Evidence) -> float:
        return renyi_entropy(evidence.spectrum, order)

    return compute


for _name, _order in ORDERS.items():
    indicator(
        f"renyi_{_name}",
        needs=(SPECTRUM,),
        larger="A less smooth information surface: room for triggers, less sensitive to label noise.",
        degree=0,
        rotation=True,
        undefined="every eigenvalue is 0: a zero spectrum has no shape",
        description=f"Normalised Renyi entropy of order {_name} of the Fisher spectrum: shape only",
    )(_of(_order))

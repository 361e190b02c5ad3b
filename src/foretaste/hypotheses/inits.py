"""Variance of LoRA's A under other laws of initialisation (TTR paper, appendix E.2, table 2)."""

from __future__ import annotations

from foretaste.hypotheses.base import MARGIN, MARGIN_FROM, Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import over_variance, whole_range
from foretaste.hypotheses.effects import slope
from foretaste.hypotheses.variance import PER_TENFOLD

LAWS = {"gaussian": "Gaussian", "xavier-normal": "Xavier normal"}
"""The paper's two further laws, by foretaste's names."""

for _law, _name in LAWS.items():
    _sweeps = over_variance(_law)
    hypothesis(
        Hypothesis(
            name=f"variance-clean-stable-{_law}",
            section="E.2",
            statement=f"On clean data LoRA's accuracy is the same whatever the variance of a {_name} A.",
            measure=f"fitted change of clean accuracy from the smallest variance to the largest, {_name} A",
            unit="points",
            needs=f"clean runs of LoRA at two variances of a {_name} A or more, with equal seeds",
            predicts=0,
            contrasts=whole_range(_sweeps),
            attack=None,
            metric="accuracy",
            reduce=slope,
            margin=MARGIN,
            margin_from=MARGIN_FROM,
        )
    )
    hypothesis(
        Hypothesis(
            name=f"small-variance-resists-triggers-{_law}",
            section="E.2",
            statement=f"A planted trigger takes hold of LoRA less the smaller the variance of a {_name} A.",
            measure=f"slope over log10 of the variance of ASR minus flip rate, {_name} A",
            unit=PER_TENFOLD,
            needs=f"LoRA at two variances of a {_name} A or more under a trigger, each with a clean run of "
            "the same seeds",
            predicts=1,
            contrasts=_sweeps,
            attack="trigger",
            metric="asr_minus_flip",
            reduce=slope,
        )
    )

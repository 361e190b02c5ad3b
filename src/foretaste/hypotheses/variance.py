"""Variance of a Kaiming-uniform A of LoRA (TTR paper, 4.4.2, third and fifth point of 4.5)."""

from __future__ import annotations

from foretaste.hypotheses.arms import KAIMING
from foretaste.hypotheses.base import MARGIN, MARGIN_FROM, Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import over_variance, whole_range
from foretaste.hypotheses.effects import slope, spread

PER_TENFOLD = "points per tenfold variance"
sweeps = over_variance(KAIMING)

CLEAN_STABLE = hypothesis(
    Hypothesis(
        name="variance-clean-stable",
        section="4.4.2",
        statement="On clean data LoRA's accuracy is the same whatever the variance that A starts with.",
        measure="fitted change of clean accuracy from the smallest variance to the largest",
        unit="points",
        needs="clean runs of LoRA at two variances of A or more, alike in all else, with equal seeds",
        predicts=0,
        contrasts=whole_range(sweeps),
        attack=None,
        metric="accuracy",
        reduce=slope,
        margin=MARGIN,
        margin_from=MARGIN_FROM,
    )
)

MINIMAL_UNDER_FLIPS = hypothesis(
    Hypothesis(
        name="variance-minimal-under-flips",
        section="4.4.2",
        statement="The variance that A starts with hardly changes what label flips cost (what the paper "
        "measured, against its theory).",
        measure="change of accuracy under label flips, fitted difference between the largest variance and "
        "the smallest",
        unit="points",
        needs="LoRA at two variances of A or more under label flips, each with a clean run of the same seeds",
        predicts=0,
        contrasts=whole_range(sweeps),
        attack="label-flip",
        metric="accuracy_change",
        reduce=slope,
        margin=MARGIN,
        margin_from=MARGIN_FROM,
    )
)

SMALL_WEAK_UNDER_FLIPS = hypothesis(
    Hypothesis(
        name="small-variance-weak-under-flips",
        section="4.4.2",
        statement="Label flips cost LoRA more the smaller the variance that A starts with (what the paper's "
        "theory says, and its measurements do not show).",
        measure="slope over log10 of the variance of the change of accuracy under label flips",
        unit=PER_TENFOLD,
        needs="LoRA at two variances of A or more under label flips, each with a clean run of the same seeds",
        predicts=1,
        contrasts=sweeps,
        attack="label-flip",
        metric="accuracy_change",
        reduce=slope,
    )
)

SMALL_RESISTS_TRIGGERS = hypothesis(
    Hypothesis(
        name="small-variance-resists-triggers",
        section="4.4.2, 4.5 (3), (5)",
        statement="A planted trigger takes hold of LoRA less the smaller the variance that A starts with.",
        measure="slope over log10 of the variance of ASR minus flip rate",
        unit=PER_TENFOLD,
        needs="LoRA at two variances of A or more under a trigger, each with a clean run of the same seeds",
        predicts=1,
        contrasts=sweeps,
        attack="trigger",
        metric="asr_minus_flip",
        reduce=slope,
    )
)

SMALL_RESISTS_TRIGGERS_BY_ACCURACY = hypothesis(
    Hypothesis(
        name="small-variance-resists-triggers-by-accuracy",
        section="4.4.2, 4.5 (3), (5)",
        statement="On test rows with the trigger LoRA is more accurate the smaller the variance that A "
        "starts with (the paper's own score).",
        measure="slope over log10 of the variance of accuracy on triggered rows",
        unit=PER_TENFOLD,
        needs="LoRA at two variances of A or more under a trigger, with equal seeds",
        predicts=-1,
        contrasts=sweeps,
        attack="trigger",
        metric="triggered_accuracy",
        reduce=slope,
    )
)

SMALL_IS_STEADIER = hypothesis(
    Hypothesis(
        name="small-variance-steadies-triggers",
        section="4.4.2, 4.5 (3), (5)",
        statement="With a trigger planted, accuracy on triggered rows varies less from seed to seed the "
        "smaller the variance that A starts with.",
        measure="slope over log10 of the variance of a seed's distance from the seeds' mean accuracy on "
        "triggered rows",
        unit=PER_TENFOLD,
        needs="LoRA at two variances of A or more under a trigger, with equal seeds (four or more; three can "
        "hardly show it)",
        predicts=1,
        contrasts=sweeps,
        attack="trigger",
        metric="triggered_accuracy",
        reduce=spread,
        centred=True,
    )
)

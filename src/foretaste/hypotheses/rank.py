"""LoRA's rank (TTR paper, section 4.4.1, second and fourth point of 4.5).

Each is tested on every sweep that there is: ranks at one learning rate and ranks at a matched step are two
statements, and `Group.budget` says which one it was.
"""

from __future__ import annotations

from foretaste.hypotheses.base import MARGIN, MARGIN_FROM, Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import over_rank, whole_range
from foretaste.hypotheses.effects import slope

PER_DOUBLING = "points per doubling of the rank"

CLEAN_STABLE = hypothesis(
    Hypothesis(
        name="rank-clean-stable",
        section="4.4.1",
        statement="On clean data LoRA's accuracy is the same at every rank.",
        measure="fitted change of clean accuracy from the lowest rank to the highest",
        unit="points",
        needs="clean runs of LoRA at two ranks or more, alike in all else, with equal seeds",
        predicts=0,
        contrasts=whole_range(over_rank),
        attack=None,
        metric="accuracy",
        reduce=slope,
        margin=MARGIN,
        margin_from=MARGIN_FROM,
    )
)

HELPS_UNDER_FLIPS = hypothesis(
    Hypothesis(
        name="rank-helps-under-flips",
        section="4.4.1, 4.5 (2)",
        statement="Under label flips LoRA loses less accuracy the higher its rank.",
        measure="slope over log2 of the rank of the change of accuracy under label flips",
        unit=PER_DOUBLING,
        needs="LoRA at two ranks or more under label flips, each with a clean run of the same seeds",
        predicts=1,
        contrasts=over_rank,
        attack="label-flip",
        metric="accuracy_change",
        reduce=slope,
    )
)

HURTS_UNDER_TRIGGERS = hypothesis(
    Hypothesis(
        name="rank-hurts-under-triggers",
        section="4.4.1, 4.5 (2), (4)",
        statement="A planted trigger takes hold of LoRA more the higher its rank.",
        measure="slope over log2 of the rank of ASR minus flip rate",
        unit=PER_DOUBLING,
        needs="LoRA at two ranks or more under a trigger, each with a clean run of the same seeds",
        predicts=1,
        contrasts=over_rank,
        attack="trigger",
        metric="asr_minus_flip",
        reduce=slope,
    )
)

HURTS_UNDER_TRIGGERS_BY_ACCURACY = hypothesis(
    Hypothesis(
        name="rank-hurts-under-triggers-by-accuracy",
        section="4.4.1, 4.5 (2), (4)",
        statement="On test rows with the trigger LoRA is less accurate the higher its rank (the paper's own "
        "score).",
        measure="slope over log2 of the rank of accuracy on triggered rows",
        unit=PER_DOUBLING,
        needs="LoRA at two ranks or more under a trigger, with equal seeds",
        predicts=-1,
        contrasts=over_rank,
        attack="trigger",
        metric="triggered_accuracy",
        reduce=slope,
    )
)

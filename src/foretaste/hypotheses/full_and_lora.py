"""Full fine-tuning against LoRA (TTR paper, sections 4.1 and 4.3, first point of 4.5)."""

from __future__ import annotations

from foretaste.hypotheses.base import MARGIN, MARGIN_FROM, Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import each_alone, full_minus_lora, lora_minus_full
from foretaste.hypotheses.effects import mean, slope, widening

FLIPS = "full fine-tuning and LoRA under label flips, each with a clean run of the same seeds"
TRIGGERS = "full fine-tuning and LoRA under a trigger, each with a clean run of the same seeds"

MATCHES_ON_CLEAN_DATA = hypothesis(
    Hypothesis(
        name="lora-matches-full-on-clean-data",
        section="4.1",
        statement="Both methods are tuned to stable and competitive results before they are attacked.",
        measure="clean accuracy, LoRA minus full",
        unit="points",
        needs="clean runs of full fine-tuning and LoRA with equal seeds",
        predicts=0,
        contrasts=lora_minus_full,
        attack=None,
        metric="accuracy",
        reduce=slope,
        margin=MARGIN,
        margin_from=MARGIN_FROM,
    )
)

WEAKER_UNDER_FLIPS = hypothesis(
    Hypothesis(
        name="lora-weaker-under-flips",
        section="4.3, 4.5 (1)",
        statement="Randomly flipped labels cost LoRA more accuracy than full fine-tuning.",
        measure="change of accuracy under label flips, full minus LoRA, mean over amounts",
        unit="points",
        needs=FLIPS,
        predicts=1,
        contrasts=full_minus_lora,
        attack="label-flip",
        metric="accuracy_change",
        reduce=slope,
    )
)

GAP_WIDENS = hypothesis(
    Hypothesis(
        name="flip-gap-widens-with-rate",
        section="4.3",
        statement="The more labels are flipped, the further LoRA's accuracy falls behind full fine-tuning's.",
        measure="slope over the rate of label flips of accuracy, full minus LoRA",
        unit="points per 10 % of flips",
        needs="full fine-tuning and LoRA under label flips at two rates or more, with equal seeds",
        predicts=1,
        contrasts=full_minus_lora,
        attack="label-flip",
        metric="accuracy",
        reduce=widening,
    )
)

RESISTS_TRIGGERS = hypothesis(
    Hypothesis(
        name="lora-resists-triggers",
        section="4.3, 4.5 (1)",
        statement="A planted trigger takes hold of LoRA less than of full fine-tuning.",
        measure="ASR minus flip rate, full minus LoRA, mean over amounts",
        unit="points",
        needs=TRIGGERS,
        predicts=1,
        contrasts=full_minus_lora,
        attack="trigger",
        metric="asr_minus_flip",
        reduce=slope,
    )
)

RESISTS_TRIGGERS_BY_ACCURACY = hypothesis(
    Hypothesis(
        name="lora-resists-triggers-by-accuracy",
        section="4.3, 4.5 (1)",
        statement="On test rows with the trigger LoRA is more accurate than full fine-tuning (the paper's "
        "own score, which accuracy without the trigger moves too).",
        measure="accuracy on triggered rows, LoRA minus full, mean over amounts",
        unit="points",
        needs="full fine-tuning and LoRA under a trigger, with equal seeds",
        predicts=1,
        contrasts=lora_minus_full,
        attack="trigger",
        metric="triggered_accuracy",
        reduce=slope,
    )
)

BACKDOOR_KEEPS_CLEAN_ACCURACY = hypothesis(
    Hypothesis(
        name="backdoor-keeps-clean-accuracy",
        section="4.3",
        statement="A planted trigger costs neither full fine-tuning nor LoRA accuracy without it (figure 8).",
        measure="change of accuracy on rows without the trigger, mean over amounts",
        unit="points",
        needs="full fine-tuning or LoRA under a trigger, with a clean run of the same seeds",
        predicts=0,
        contrasts=each_alone,
        attack="trigger",
        metric="accuracy_change",
        reduce=mean,
        margin=MARGIN,
        margin_from=MARGIN_FROM,
    )
)

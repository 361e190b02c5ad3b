"""Full fine-tuning against LoRA under the four further attacks (TTR paper, appendix E.1, table 1)."""

from __future__ import annotations

from foretaste.hypotheses.base import Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import full_minus_lora
from foretaste.hypotheses.effects import slope

FURTHER = {
    "clean-label": "a clean-label backdoor",
    "instruction": "a backdoor by an instruction",
    "multi-trigger": "a backdoor by several words",
    "style": "a backdoor by a style of writing",
}
"""What each attack is, by its method."""

for _method, _what in FURTHER.items():
    hypothesis(
        Hypothesis(
            name=f"lora-resists-{_method}",
            section="E.1",
            statement=f"{_what[0].upper()}{_what[1:]} takes hold of LoRA less than of full fine-tuning.",
            measure=f"ASR minus flip rate of {_what}, full minus LoRA, mean over amounts",
            unit="points",
            needs=f"full fine-tuning and LoRA under {_what}, each with a clean run of the same seeds",
            predicts=1,
            contrasts=full_minus_lora,
            attack=_method,
            metric="asr_minus_flip",
            reduce=slope,
        )
    )

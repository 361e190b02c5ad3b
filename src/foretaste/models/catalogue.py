"""The methods that an arm may name: full fine-tuning, BitFit, and those of upstream peft.

A method is named as in peft (`lora`, `vera`, `ia3`, `adalora`, ...) and takes that method's own config
fields. `rslora`, `dora`, `pissa`, `olora` and `loraplus` are LoRA with one field set.
"""

from __future__ import annotations

import functools
from typing import Any

import peft
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from foretaste.errors import UserError, unknown

FULL = "full"
BITFIT = "bitfit"

VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "loraplus": {},
}

# A field of every LoRA method beside peft's own: the learning rate of B over that of everything else. The
# name is that of peft's optimiser and of the authors' code.
RATIO = "loraplus_lr_ratio"
# Hayou et al. 2024 ("LoRA+", section 5): "as a rule of thumb, 2^4".
LORA_PLUS_RATIO = 16.0

# r and alpha: the TTR paper's defaults (section 4.1). all-linear: its code (protocol.md 1.1).
LORA_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}

ALL_LINEAR: dict[str, Any] = {"target_modules": "all-linear"}

# Lester et al. 2021 (section 3.2): more than 20 virtual tokens gain little.
PROMPT_DEFAULTS: dict[str, Any] = {"num_virtual_tokens": 20}

# Methods whose targets are no linear layers (normalisations, embeddings, attention, whole blocks).
_NOT_LINEAR = {"adaption_prompt", "ln_tuning", "shadow", "trainable_tokens"}

# Methods that peft has, but not for rows of one text and one label: why, and what to use.
UNFIT: dict[str, tuple[str, str]] = {
    "cpt": ("is for language modelling only", "Use prompt_tuning."),
    # Its experts are weighed by a mean over every token of a batch, padding included.
    "lily": ("makes the prediction for a row depend on the other rows of its batch", "Use lora."),
    "multitask_prompt_tuning": ("needs a task id for every row", "Use prompt_tuning."),
    "poly": ("needs a task id for every row", "Use lora."),
    "xlora": ("mixes LoRA adapters that are trained already", "Use lora."),
}

# Methods whose init changes the outputs of the base model, so that these arms do not start where others do.
MOVED_AT_START = frozenset(
    {"c3a", "cartridge", "fourierft", "p_tuning", "prefix_tuning", "prompt_tuning", "unilora", "vblora"}
)

# Fields without which a method does nothing, or fails in training.
_NEEDED: dict[str, tuple[str, ...]] = {
    "adaption_prompt": ("adapter_len", "adapter_layers"),
    "trainable_tokens": ("token_indices",),
}


@functools.cache
def _peft_configs() -> dict[str, type[peft.PeftConfig]]:
    return {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def methods() -> list[str]:
    """Every name that `method` of an adapter may have; those in `UNFIT` are refused with a reason."""
    return sorted({FULL, BITFIT, *VARIANTS, *_peft_configs()})


def config_class(method: str, *, where: str | None = None) -> type[peft.PeftConfig]:
    """The peft config class behind a method.

    Raises:
        UserError: There is no such method.
    """
    name = "lora" if method in VARIANTS else method
    if name not in _peft_configs():
        raise unknown("adapter", method, methods(), where=where)
    return _peft_configs()[name]


def defaults(method: str) -> dict[str, Any]:
    """The config fields that foretaste decides where the user does not."""
    kind = config_class(method)
    if kind is peft.LoraConfig:
        return LORA_DEFAULTS | ({RATIO: LORA_PLUS_RATIO} if method == "loraplus" else {})
    if is_prompt_learning(kind):
        return PROMPT_DEFAULTS
    return {} if method in _NOT_LINEAR else ALL_LINEAR


def is_prompt_learning(kind: type[peft.PeftConfig]) -> bool:
    """Whether a method trains virtual tokens before the text, and no layer of the model."""
    return issubclass(kind, PromptLearningConfig)


def refuse_unfit(method: str, given: dict[str, Any], *, where: str) -> None:
    """Check that a method can train a classifier, with the fields that it cannot do without.

    Args:
        method: Its name.
        given: The fields that the user set.
        where: Key of the arm, for errors.

    Raises:
        UserError: It cannot, or a field is missing.
    """
    if method in UNFIT:
        why, cure = UNFIT[method]
        raise UserError(f"'{method}' {why}", where=f"{where}.method", cure=cure)
    for field in _NEEDED.get(method, ()):
        if not given.get(field):
            raise UserError(
                f"'{method}' needs {field}, and has no default for it", where=where, cure=f"Set {field}."
            )

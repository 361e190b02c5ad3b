"""Which parameters of a few-shot classifier move: all, LoRA's, biases, or a random subspace.

Under a prompt nothing is new in the model, so only what the adapter names moves. A standard head is new, and
every adapter but the random subspace trains it whole; the subspace moves all parameters, the head's as the
others (Malladi et al. 2023, Definition D.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import peft
import torch
from torch import nn

from foretaste.errors import UserError
from foretaste.fewshot.spec import FineTune, KernelArm
from foretaste.models import adapters, bitfit
from foretaste.models.intrinsic import IntrinsicDimension
from foretaste.models.label_words import FewShotClassifier, LinearHeadModel
from foretaste.seeds import borrowed_global_state

State = dict[str, torch.Tensor]
"""Copies of trained parameters by name."""


def attach(model: FewShotClassifier, arm: FineTune | KernelArm, *, seed: int) -> nn.Module:
    """The model ready to train: adapter in place, initialised, and the right parameters frozen.

    Args:
        model: A classifier, its head fitted where it has one, on the device that it is to be trained on;
            changed in place.
        arm: Says which parameters move.
        seed: The init seed, of LoRA's A and of the random subspace.

    Raises:
        UserError: The adapter does not fit the model.
    """
    where = f"arm '{arm.label}'"
    match arm.adapter:
        case "full":
            return model.requires_grad_(True)
        case "bitfit":
            _train_biases(model, where)
            return model
        case "lora":
            return _lora(model, arm.rank, arm.alpha, seed, where)
        case "intrinsic":
            assert arm.dimension is not None
            return IntrinsicDimension(model, arm.dimension, seed=seed)


def lora_targets(model: FewShotClassifier) -> list[str]:
    """Names of the linear layers that LoRA adapts: all of the body, none of the head."""
    inside = {id(module) for module in model.body.modules()}
    modules = dict(model.named_modules())
    return [name for name in adapters.linear_names(model) if id(modules[name]) in inside]


def _lora(model: FewShotClassifier, rank: int, alpha: int, seed: int, where: str) -> nn.Module:
    targets = lora_targets(model)
    modules = dict(model.named_modules())
    for name in targets:
        limit = min(modules[name].weight.shape)
        if rank > limit:
            raise UserError(f"rank {rank} is larger than layer '{name}' ({limit})", where=where)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    with borrowed_global_state(seed, "init", "peft"), warnings.catch_warnings():
        # As in `models.adapters.attach`: of names and layouts on which nothing here depends.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        wrapped = peft.get_peft_model(model, config)
    if isinstance(model, LinearHeadModel):
        model.classifier.requires_grad_(True)
    return wrapped.eval()


def _train_biases(model: FewShotClassifier, where: str) -> None:
    head = {id(p) for p in model.classifier.parameters()} if isinstance(model, LinearHeadModel) else set()
    found = False
    for name, parameter in model.named_parameters():
        bias = bitfit.is_bias(name)
        parameter.requires_grad_(bias or id(parameter) in head)
        found = found or (bias and id(parameter) not in head)
    if not found:
        raise UserError(
            f"{type(model.lm).__name__} has no bias terms, as most models of LLaMA's kind",
            where=where,
            cure="Take adapter lora or intrinsic.",
        )


def trained_state(model: nn.Module, into: State | None = None) -> State:
    """Copies of all parameters that are trained, a tied one once.

    Args:
        model: From `attach`.
        into: An earlier copy, whose memory is used again.
    """
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if into is None:
        return {name: value.clone() for name, value in named.items()}
    for name, value in named.items():
        into[name].copy_(value)
    return into


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put copies of trained parameters back in their places."""
    with torch.no_grad():
        for name, value in state.items():
            model.get_parameter(name).copy_(value)

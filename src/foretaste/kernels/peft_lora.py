"""Which peft models the identities of `lora` cover, and which of them a capture of the base model serves."""

from __future__ import annotations

from typing import Any

import peft
import torch
from peft.tuners.lora import Linear
from torch import nn

from foretaste.kernels.lora import Adapted
from foretaste.kernels.parameters import linear_weights, trainable
from foretaste.models import inits

# Splitting a weight and adding it up again (PiSSA, OLoRA) rounds each entry a few times.
SAME_WEIGHT = 16.0


def plain_lora(model: nn.Module) -> dict[str, Adapted]:
    """LoRA's matrices by name of the base model's parameter.

    Empty where the identities do not cover what is trained: DoRA and other variants, LoRA with biases, on
    embeddings, on heads, several adapters at once.

    Args:
        model: A peft model.
    """
    if not isinstance(model, peft.PeftModel) or model.peft_type != peft.PeftType.LORA:
        return {}
    inner_model = model.get_base_model()
    assert isinstance(inner_model, nn.Module)
    base = {id(m): name for name, m in inner_model.named_modules()}
    found: dict[str, Adapted] = {}
    for name, a, b in inits.lora_matrices(model):
        layer = model.get_submodule(name)
        if not isinstance(layer, Linear):  # `target_parameters`, quantised layers, convolutions
            return {}
        adapter, *others = layer.scaling
        if others or layer.lora_variant or layer.lora_bias[adapter] or layer.merged or layer.disable_adapters:
            return {}
        inner = base[id(layer)]
        trains = frozenset(m for m, w in (("A", a), ("B", b)) if w.requires_grad)
        zero = not bool(b.detach().any())
        found[f"{inner}.weight"] = Adapted(
            a.detach().clone(), None if zero else b.detach().clone(), layer.scaling[adapter], trains
        )
    covered = {f".{m}." for m in ("lora_A", "lora_B", "modules_to_save")}
    rest = [n for n, p in model.named_parameters() if p.requires_grad and not any(c in n for c in covered)]
    names = {p.name for p in linear_weights(inner_model)}
    inside = all(_base_name(layer) in {_base_name(n) for n in names} for layer in found)
    return found if found and inside and not rest else {}


def starts_at(base: nn.Module, layers: dict[str, Adapted], model: nn.Module) -> bool:
    """Whether W0 + s B A is the base model's weight in every layer, so that the base model's gradients serve.

    Args:
        base: The model before peft, every parameter requiring gradients.
        layers: `plain_lora(model)`.
        model: The peft model.
    """
    owned = {parameter.name: parameter.owners for parameter in trainable(base)}
    assert isinstance(model, peft.PeftModel)
    wrapped = model.get_base_model()
    for name, adapted in layers.items():
        if len(owned.get(name, ())) != 1:
            return False
        layer: Any = wrapped.get_submodule(name.removesuffix(".weight"))
        weight, kept = base.get_parameter(name).detach(), layer.get_base_layer().weight.detach()
        if adapted.B is not None:
            kept = kept + layer.get_delta_weight(next(iter(layer.scaling))).detach()
        if weight.shape != kept.shape:
            return False
        rounding = SAME_WEIGHT * torch.finfo(weight.dtype).eps
        if float((weight - kept).norm()) > rounding * float(weight.norm()):
            return False
    return True


def _base_name(name: str) -> str:
    """Name of a weight in the model before peft wrapped its layers."""
    return name.replace(".base_layer.weight", ".weight")

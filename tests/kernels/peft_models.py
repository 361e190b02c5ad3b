"""Tiny peft models in float64 on the random models of `kernel_oracles`."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import torch
from kernel_oracles import Float, own, subject
from torch import nn

from foretaste.kernels import linear_weights

TARGETS = {
    "bert": ["query", "key", "value", "dense"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""All linear layers outside the head, the names of which are in `HEADS`."""
HEADS = {"bert": "classifier", "gpt2": "score", "llama": "score"}


def wrap(
    base: nn.Module,
    config: peft.PeftConfig,
    *,
    seed: int = 2,
    moved: float = 0.0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Any:
    """A peft model over the base model, which is changed, in evaluation mode.

    Args:
        base: A model of `kernel_oracles`.
        config: Of the adapter.
        seed: Of everything that is drawn.
        moved: Standard deviation of a random step of all trained parameters, away from B = 0 and such.
        dtype: Of all parameters.
        **options: Of `peft.get_peft_model`.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        # LNTuning: peft checks its targets against the layers that LoRA knows.
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        torch.manual_seed(seed)
        model: Any = peft.get_peft_model(base, config, **options)  # type: ignore[arg-type]
        model.to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and moved:
                    parameter.add_(moved * torch.randn_like(parameter))
    return model


def lora(
    family: str, *, r: int = 3, alpha: float = 5.0, b: float = 0.0, seed: int = 2, **options: Any
) -> Any:
    """LoRA on all linear layers outside the head, which is frozen; B is zero or normal with deviation `b`."""
    chosen = {"target_modules": TARGETS[family]} | options
    model = wrap(own(subject(family).model), peft.LoraConfig(r=r, lora_alpha=alpha, **chosen), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if b and ("lora_B" in name or "lora_embedding_A" in name):
                draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(b * draw)
    return model


def merged(model: Any) -> Any:
    """The base model at its effective weights W0 + s B A, its parameters named as before peft."""
    return own(model).merge_and_unload().requires_grad_(True)


def layers_of(family: str) -> list[str]:
    """Names of the weights of all linear layers outside the head."""
    return [parameter.name for parameter in linear_weights(subject(family).model)]


def matrix_of(weight: str, matrix: str, adapter: str = "default") -> str:
    """Name in the peft model of `lora_A` or `lora_B` on a weight of the base model."""
    return f"base_model.model.{weight.removesuffix('.weight')}.{matrix}.{adapter}.weight"


def set_matrix(model: Any, weight: str, matrix: str, value: torch.Tensor | Float) -> None:
    """Replace `lora_A` or `lora_B` on a weight of the base model."""
    with torch.no_grad():
        model.get_parameter(matrix_of(weight, matrix)).copy_(torch.as_tensor(value))

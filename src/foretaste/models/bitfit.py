"""BitFit: fine-tuning of the bias terms and the head (Ben Zaken, Goldberg and Ravfogel 2022)."""

from __future__ import annotations

from transformers import PreTrainedModel

from foretaste.errors import UserError
from foretaste.models import heads
from foretaste.spec import HeadPolicy


def train_biases(model: PreTrainedModel, *, head_policy: HeadPolicy, where: str) -> None:
    """Freeze everything but the biases, those of normalisations included, and the head.

    Under `paper` the head is a layer like any other: its bias is trained, its weight is not.

    Args:
        model: A classifier; changed in place.
        head_policy: Who trains the head.
        where: The arm, for errors.

    Raises:
        UserError: The model has no bias outside its head.
    """
    head = heads.find(model).modules
    body = model.get_submodule(model.base_model_prefix)
    model.requires_grad_(False)
    found = False
    for name, parameter in model.named_parameters():
        inside = name.partition(".")[0] in head
        if is_bias(name):
            parameter.requires_grad_(True)
            found = found or not inside
        elif inside and head_policy != "paper":
            parameter.requires_grad_(True)
    if not found:
        raise UserError(
            f"{type(body).__name__} has no bias terms, as most models of LLaMA's kind",
            where=where,
            cure="Use ln_tuning, ia3 or lora.",
        )


def is_bias(name: str) -> bool:
    """Whether a parameter's name is that of a bias term (`bias`, `in_proj_bias`, DeBERTa's `q_bias`)."""
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias")

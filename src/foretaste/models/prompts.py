"""Prompt learning: virtual tokens before the text, which the text attends to and the head never reads.

peft puts the virtual tokens before the embeddings of the text (`prompt_tuning`, `p_tuning`) or before its
keys and values in every layer (`prefix_tuning`, `cartridge`), and leaves the rest to the classifier. In the
first case the head would read the wrong place: BERT's takes the first virtual token for [CLS], a mean is
taken over them too, and a decoder's, which finds the padding by token ids that it no longer gets, reads
the last position of the batch, padding or not. Hooks show the head the text's own tokens, as in every other
arm.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from foretaste.errors import UserError
from foretaste.models import heads
from foretaste.models.catalogue import is_prompt_learning
from foretaste.models.load import MeanPooledClassifier
from foretaste.spec import HeadPolicy

KEYS_AND_VALUES = (peft.PrefixTuningConfig, peft.CartridgeConfig)


def refuse(
    model: PreTrainedModel, kind: type[peft.PeftConfig], *, head_policy: HeadPolicy, where: str
) -> None:
    """Check that a model can take virtual tokens as a prompt method gives them.

    Args:
        model: A classifier, before peft.
        kind: The method's config class.
        head_policy: Who trains the head.
        where: The arm, for errors.

    Raises:
        UserError: It cannot.
    """
    if not is_prompt_learning(kind):
        return
    if head_policy == "paper":
        raise UserError(
            "under head: paper the head is frozen and adapted as a linear layer, which prompt methods cannot",
            where=where,
            cure="Use head: probe-then-train, or lora.",
        )
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} is an encoder and a decoder: virtual tokens are for one of the two only",
            where=where,
            cure="Use lora, ia3 or bitfit.",
        )
    if not issubclass(kind, KEYS_AND_VALUES):
        return
    body = model.get_submodule(model.base_model_prefix)
    # peft takes a classifier apart that does not pass keys and values on, and knows heads of one module.
    whole = _takes_past(model) or len(heads.find(model).modules) == 1
    if not (_takes_past(body) and whole):
        raise UserError(
            f"{type(body).__name__} takes no keys and values of earlier tokens (past_key_values)",
            where=where,
            cure="Use prompt_tuning, p_tuning or lora.",
        )


def _takes_past(module: nn.Module) -> bool:
    return "past_key_values" in inspect.signature(module.forward).parameters


def show_head_only_text(model: PreTrainedModel, tokens: int) -> None:
    """Hook a classifier so that what comes before the text's own tokens never reaches its head.

    The hooks live as long as the model.

    Args:
        model: A classifier whose inputs are embeddings, `tokens` virtual ones first.
        tokens: Virtual tokens before every text.
    """
    body = model.get_submodule(model.base_model_prefix)
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module):  # BERT's reads the first token inside the body
        pooler.register_forward_pre_hook(functools.partial(_text_for_pooler, tokens))
    own_head = not isinstance(model, MeanPooledClassifier)
    body.register_forward_hook(functools.partial(_text_for_head, tokens, own_head), with_kwargs=True)


def _text_for_pooler(tokens: int, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    hidden, *rest = args
    return (hidden[:, tokens:], *rest)


def _text_for_head(
    tokens: int, own_head: bool, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    """Hidden states of the text; for a model's own head with the last one that is no padding once more.

    Encoders read the first position. Decoders that are given embeddings read the last one (`logits[:, -1]`),
    wherever the padding is.
    """
    hidden = output.last_hidden_state[:, tokens:]
    if own_head:
        attended = kwargs["attention_mask"][:, tokens:] != 0
        places = torch.arange(attended.shape[1], device=attended.device)
        last = (places * attended).argmax(1)
        hidden = torch.cat([hidden, hidden[torch.arange(len(hidden), device=last.device), last][:, None]], 1)
    output.last_hidden_state = hidden
    return output

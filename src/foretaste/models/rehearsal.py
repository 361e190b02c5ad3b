"""A look at whether an arm will train, before any weight is loaded."""

from __future__ import annotations

import copy
from typing import Any

import peft
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from foretaste.errors import UserError
from foretaste.models import adapters, catalogue, load
from foretaste.seeds import borrowed_global_state
from foretaste.spec import HeadPolicy, ResolvedAdapter

# Layers and words of the stand-in: more than one of each kind, and room for the special tokens.
LAYERS, WORDS = 2, 64


def rehearse(
    bare: PreTrainedModel, adapter: ResolvedAdapter, *, head_policy: HeadPolicy, max_length: int
) -> None:
    """Attach an arm to the bare architecture; prompt methods also go once through a small stand-in of it.

    A prompt method can be attached to every model and fail in its forward pass, or leave the prompt unread.

    Args:
        bare: A classifier on the meta device; it is used up.
        adapter: The arm.
        head_policy: Who trains the head.
        max_length: Most tokens of a text.

    Raises:
        UserError: The arm cannot train this model.
    """
    plain = adapter.method in (catalogue.FULL, catalogue.BITFIT)
    prompted = not plain and catalogue.is_prompt_learning(catalogue.config_class(adapter.method))
    if prompted:
        _check_room(bare, adapter, max_length)
    try:
        adapters.attach(bare, adapter, head_policy=head_policy, seed=0, total_steps=100)
    except UserError as error:
        # Some methods (adamss, frod, shira) compute on the weights, which only the run has.
        if not isinstance(error.__cause__, NotImplementedError) or "meta" not in str(error.__cause__):
            raise
    if prompted:
        try:
            _go_through(_stand_in(bare), adapter, head_policy)
        except UserError:
            raise
        except Exception as error:
            raise _unfit(bare, adapter, f"it fails with {type(error).__name__}: {error}") from error


def _check_room(model: PreTrainedModel, adapter: ResolvedAdapter, max_length: int) -> None:
    """Virtual tokens take up positions, of which a model has a fixed number."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:  # XLNet: -1, for any number
        return
    for name, module in model.named_modules():
        # RoBERTa counts its positions from after that of the padding.
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            limit -= 0 if module.padding_idx is None else module.padding_idx + 1
    tokens = adapter.config["num_virtual_tokens"]
    if tokens + max_length > limit:
        raise UserError(
            f"{tokens} virtual tokens and {max_length} of a text are more than the model's {limit} positions",
            where=f"adapter '{adapter.name}'",
            cure=f"Set model.max_length to {limit - tokens} or less."
            if limit > tokens
            else "Lower num_virtual_tokens.",
        )


def _stand_in(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture at the same width with two layers, few words and random weights, in memory."""
    config: PretrainedConfig = copy.deepcopy(model.config)
    depth = config.num_hidden_layers
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and depth > LAYERS and len(value) == depth:  # one entry for each layer
            setattr(config, key, value[:LAYERS])
        elif key.endswith("_token_id") and isinstance(value, int) and value >= WORDS:
            setattr(config, key, 0)
    config.num_hidden_layers = min(depth, LAYERS)
    config.vocab_size = WORDS
    config.pad_token_id = config.pad_token_id or 0
    with borrowed_global_state(0, "rehearsal"):
        if isinstance(model, load.MeanPooledClassifier):
            return load.mean_pooled(type(model.encoder)(config), model.num_labels)
        return type(model)(config)


def _go_through(model: PreTrainedModel, adapter: ResolvedAdapter, head_policy: HeadPolicy) -> None:
    """One batch forward and backward: the prompt must be read, and padding must not be.

    Raises:
        UserError: It is not so.
    """
    pad: int = model.config.pad_token_id
    classes = model.config.num_labels
    wrapped, _ = adapters.attach(model, adapter, head_policy=head_policy, seed=0, total_steps=100)
    assert isinstance(wrapped, peft.PeftModel)
    wrapped.eval()
    ids = (torch.arange(12).reshape(2, 6) + pad + 1) % WORDS
    mask = torch.ones_like(ids)
    ids[1, 3:], mask[1, 3:] = pad, 0
    output: Any = wrapped(input_ids=ids, attention_mask=mask, labels=torch.zeros(2, dtype=torch.long))
    if output.logits.shape != (2, classes) or not torch.isfinite(output.loss):
        raise _unfit(model, adapter, f"its logits have shape {tuple(output.logits.shape)}")
    output.loss.backward()
    gradients = [p.grad for p in wrapped.prompt_encoder.parameters() if p.grad is not None]
    if not any(bool(g.any()) for g in gradients):
        raise _unfit(model, adapter, "the model does not read its virtual tokens")
    with torch.no_grad():
        alone = wrapped(input_ids=ids[1:, :3], attention_mask=mask[1:, :3]).logits
    # A forward pass rounds some hundred times; reading the wrong token shows in the first digits.
    if not torch.allclose(output.logits[1:], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise _unfit(model, adapter, "its logits depend on the padding")


def _unfit(model: PreTrainedModel, adapter: ResolvedAdapter, why: str) -> UserError:
    return UserError(
        f"{adapter.method} does not suit {type(model).__name__}: {why}",
        where=f"adapter '{adapter.name}'",
        cure="Use lora, ia3 or bitfit."
        if isinstance(model, load.MeanPooledClassifier)
        else "Set pooling: mean, or use lora, ia3 or bitfit.",
    )

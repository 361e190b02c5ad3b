"""Supervised fine-tuning of causal language models: the loss is that of the response tokens alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import peft
import torch
from torch import nn

from foretaste.instruct.render import IGNORED, Rendered
from foretaste.spec import TrainingSpec
from foretaste.training.trainer import Diverged, OnStep, Trained, train_rows


class ResponseCollator:
    """Pads rows on the right to the longest of their batch, or to a fixed length; padding has no label.

    Args:
        pad: The padding token.
        pad_to: Fixed length; None pads to the longest row of the batch.
    """

    def __init__(self, pad: int, pad_to: int | None = None) -> None:
        self._pad = pad
        self._pad_to = pad_to

    def __call__(self, rows: Sequence[Rendered]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` of one batch, each of shape (rows, tokens)."""
        width = self._pad_to or max(len(row.input_ids) for row in rows)

        def padded(parts: Sequence[list[int]], filling: int) -> torch.Tensor:
            return torch.tensor([part + [filling] * (width - len(part)) for part in parts])

        return {
            "input_ids": padded([row.input_ids for row in rows], self._pad),
            "attention_mask": padded([[1] * len(row.input_ids) for row in rows], 0),
            "labels": padded([row.labels for row in rows], IGNORED),
        }


def response_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the cross-entropies of all labels that are not `IGNORED`, each given the tokens before it.

    Logits are computed only where some row of the batch has a label: a vocabulary of 49,152 makes them the
    largest arrays of a step.

    Args:
        model: A causal language model, with or without an adapter.
        batch: From `ResponseCollator`.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    targets = batch["labels"][:, 1:]
    places = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    if _keeps_chosen_logits(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=places).logits
    else:
        # Prompt methods may put virtual tokens before the text: its own positions are the last ones.
        whole = model(**inputs, use_cache=False).logits
        logits = whole[:, -batch["labels"].shape[1] :][:, places]
    exact = torch.promote_types(logits.dtype, torch.float32)  # half precision is too coarse for a sum
    return nn.functional.cross_entropy(
        logits.to(exact).flatten(0, 1),
        targets[:, places].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def _keeps_chosen_logits(model: nn.Module) -> bool:
    if isinstance(model, peft.PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    return "logits_to_keep" in inspect.signature(model.forward).parameters


# Methods of peft that add something to a model's own loss: AdaLoRA keeps its factors orthogonal.
_ADD_TO_LOSS = {peft.PeftType.ADALORA, peft.PeftType.SHADOW}


def training_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`response_loss`, and for each label what the model's method of peft adds to the mean loss."""
    if not (isinstance(model, peft.PeftModel) and model.active_peft_config.peft_type in _ADD_TO_LOSS):
        return response_loss(model, batch)
    mean: torch.Tensor = model(**batch, use_cache=False).loss
    return mean * (batch["labels"][:, 1:] != IGNORED).sum()


def fine_tune(
    model: nn.Module,
    rows: Sequence[Rendered],
    order_lengths: Sequence[int],
    pad: int,
    spec: TrainingSpec,
    *,
    max_length: int,
    seed: int,
    loraplus_ratio: float | None = None,
    on_step: OnStep | None = None,
) -> Trained:
    """Train a causal language model in place on the responses of rows.

    The loss of an optimiser step is the mean over all its response tokens, so long answers weigh more than
    short ones, as is usual.

    Args:
        model: From `causal.attach`.
        rows: Poisoned training rows, rendered.
        order_lengths: Tokens of the same rows before poisoning; they decide the batches.
        pad: The padding token.
        spec: Budget, optimiser and the rest; its learning rate is set.
        max_length: Length to pad to under `padding: max_length`.
        seed: The order seed; it also drives dropout where there is any.
        loraplus_ratio: Learning rate of LoRA's B over that of all else; None: one rate for all.
        on_step: Progress.

    Raises:
        Diverged: A loss, a weight or a state of the optimiser is not finite.
    """
    return train_rows(
        model,
        rows,
        ResponseCollator(pad, max_length if spec.padding == "max_length" else None),
        order_lengths,
        spec,
        tokens={pad} | {token for row in rows for token in row.input_ids},
        seed=seed,
        loraplus_ratio=loraplus_ratio,
        loss=training_loss,
        on_step=on_step,
    )


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss on rows that were not trained on.

    Attributes:
        mean: Per response token, in nats.
        tokens: Response tokens.
    """

    mean: float
    tokens: int


def held_out_loss(model: nn.Module, rows: Sequence[Rendered], pad: int, batch_size: int) -> HeldOutLoss:
    """The mean loss per response token; dropout off.

    Args:
        model: A causal language model.
        rows: Rendered rows, not empty.
        pad: The padding token.
        batch_size: Rows of a batch.

    Raises:
        Diverged: It is not finite.
    """
    device = next(model.parameters()).device
    order = [int(i) for i in np.argsort([len(row.input_ids) for row in rows], kind="stable")]
    collate = ResponseCollator(pad)
    was_training = model.training
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = collate([rows[i] for i in order[start : start + batch_size]])
            total += float(response_loss(model, {key: part.to(device) for key, part in batch.items()}))
    model.train(was_training)
    tokens = sum(row.response_tokens for row in rows)
    if not math.isfinite(total):
        raise Diverged(f"the trained model's loss on held-out rows is {total}")
    return HeldOutLoss(total / tokens, tokens)

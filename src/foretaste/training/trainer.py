"""Fine-tuning through `transformers.Trainer`, and prediction with what came out."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

from foretaste.models.encode import Encoded
from foretaste.seeds import borrowed_global_state, integer
from foretaste.spec import TrainingSpec
from foretaste.training import ranks
from foretaste.training.lora_plus import raise_rate_of_b
from foretaste.training.order import SeededOrder
from foretaste.training.vocabulary import only_used_tokens

OPTIMIZERS = {"adamw": "adamw_torch_fused", "sgd": "sgd", "adafactor": "adafactor"}
DEFAULT_EPOCHS = 3.0
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after each optimiser step."""
SumOfLosses = Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]
"""From a model and a batch to the sum of the losses of all labels that are not -100."""


class Rows(Protocol):
    """A data set that fits into memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Diverged(RuntimeError):
    """Loss, weights or optimiser state are no longer finite."""


@dataclass(frozen=True)
class Trained:
    """What training did: losses of all steps, times, and how much of the work was padding."""

    loss: list[float]
    steps: int
    epochs: float
    seconds: float
    rows: int
    tokens: int
    padding: int


class Collator:
    """Pads rows to the longest of their batch, or to a fixed length.

    Args:
        tokenizer: Knows the padding token and side.
        pad_to: Fixed length; None pads to the longest row of the batch.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._pad_to = pad_to

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Model inputs and labels of one batch."""
        inputs = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
        batch = self._tokenizer.pad(
            inputs,
            padding="max_length" if self._pad_to else "longest",
            max_length=self._pad_to,
            return_tensors="pt",
            verbose=False,
        )
        return dict(batch) | {"labels": torch.tensor([row["labels"] for row in rows])}


class OrderedTrainer(Trainer):
    """Trainer with our order of rows.

    Args:
        sampler: Which rows, in which order.
        **kwargs: As for `Trainer`.
    """

    def __init__(self, *, sampler: Sampler[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sampler = sampler
        # Classifiers average over their micro-batch whatever they are told. Trainer takes the `**kwargs` of
        # their forward for a promise to divide by all rows of the step, and would leave gradients a factor
        # `gradient_accumulation` too large.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[Any]:
        return self._sampler


class _Trainer(OrderedTrainer):
    """Trainer with our order of rows, a check of every loss, and a count of the work."""

    def __init__(self, *, ratio: float | None, loss: SumOfLosses | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ratio = ratio
        self._loss = loss
        # A loss of our own is divided by all labels of the step.
        self.model_accepts_loss_kwargs = loss is not None
        self.losses: list[list[float]] = []
        self.rows = self.tokens = self.padding = 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if new and self._ratio is not None:
            assert self.model is not None
            raise_rate_of_b(optimizer, self.model, self._ratio)
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self._loss is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        return self._loss(model, inputs) / kwargs["num_items_in_batch"]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        # The loss comes back divided by the micro-batches of this step: undo it, so that curves compare.
        value = loss.item() * self.current_gradient_accumulation_steps
        value = self.over_processes("mean", value)[0]  # so that all of them stop when one has no finite loss
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.state.global_step + 1}")
        if self.state.global_step == len(self.losses):
            self.losses.append([])
        self.losses[-1].append(value)
        # Counted here and not in the collator, which accelerate lets run one batch ahead.
        mask = args[1]["attention_mask"]
        self.rows += len(mask)
        self.tokens += mask.numel()
        self.padding += int((mask == 0).sum())
        return loss

    def over_processes(self, reduction: str, *values: float) -> list[float]:
        """Mean or sum over the processes that train together."""
        if self.args.world_size == 1:
            return list(values)
        own = torch.tensor(values, device=self.args.device)
        whole: list[float] = self.accelerator.reduce(own, reduction).tolist()
        return whole


class Steps(TrainerCallback):
    """Reports progress, and lets AdaLoRA move its rank budget."""

    def __init__(self, on_step: OnStep | None) -> None:
        self._on_step = on_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """AdaLoRA reads the gradients of this step, before they are cleared."""
        update = getattr(getattr(kwargs["model"], "base_model", None), "update_and_allocate", None)
        if update is not None:
            update(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more step is done."""
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps)


def planned_steps(spec: TrainingSpec, rows: int) -> int:
    """Optimiser steps that the spec asks for on so many rows."""
    if spec.steps is not None:
        return spec.steps
    per_epoch = math.ceil(math.ceil(rows / spec.batch_size) / spec.gradient_accumulation)
    return math.ceil((spec.epochs or DEFAULT_EPOCHS) * per_epoch)


def planned_rates(spec: TrainingSpec, steps: int) -> list[float]:
    """The learning rate of each optimiser step, by Trainer's own schedule; no optimiser takes a step."""
    assert spec.learning_rate is not None
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=spec.learning_rate)
    warmup = int(spec.warmup_ratio * steps)
    schedule = get_scheduler(spec.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    assert isinstance(schedule, LambdaLR)
    return [float(spec.learning_rate * schedule.lr_lambdas[0](step)) for step in range(steps)]


def dtype_of(spec: TrainingSpec) -> torch.dtype:
    """The dtype of the weights."""
    return torch.bfloat16 if spec.precision == "bfloat16" else torch.float32


def device_of(spec: TrainingSpec) -> torch.device:
    """The device to train on: as asked, or the best there is."""
    if spec.device != "auto":
        return torch.device(spec.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fine_tune(
    model: nn.Module,
    train: Encoded,
    order_lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    spec: TrainingSpec,
    *,
    max_length: int,
    seed: int,
    loraplus_ratio: float | None = None,
    on_step: OnStep | None = None,
) -> Trained:
    """Train a classifier in place.

    Args:
        model: From `adapters.attach`.
        train: Poisoned training rows, tokenised.
        order_lengths: Tokens of the same rows before poisoning; they decide the batches.
        tokenizer: Pads the batches.
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
        train,
        Collator(tokenizer, max_length if spec.padding == "max_length" else None),
        order_lengths,
        spec,
        tokens={tokenizer.pad_token_id} | train.token_ids,
        seed=seed,
        loraplus_ratio=loraplus_ratio,
        on_step=on_step,
    )


def arguments(spec: TrainingSpec, steps: int, seed: int, folder: str) -> TrainingArguments:
    """What Trainer is told of a spec.

    Args:
        spec: Its learning rate is set.
        steps: Optimiser steps.
        seed: The order seed.
        folder: Of which Trainer wants to know one.
    """
    assert spec.learning_rate is not None
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=ranks.share_of(spec.batch_size),
        gradient_accumulation_steps=spec.gradient_accumulation,
        max_steps=steps,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=int(spec.warmup_ratio * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm or 0.0,
        optim=OPTIMIZERS[spec.optimizer],
        bf16=spec.precision == "mixed-bfloat16",
        fp16=spec.precision == "mixed-float16",
        use_cpu=device_of(spec).type == "cpu",
        seed=integer(seed, "order", "trainer"),
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device_of(spec).type == "cuda",
        remove_unused_columns=False,
    )


def train_rows(
    model: nn.Module,
    rows: Rows,
    collator: Callable[[Sequence[Any]], dict[str, torch.Tensor]],
    order_lengths: Sequence[int],
    spec: TrainingSpec,
    *,
    tokens: set[int],
    seed: int,
    loraplus_ratio: float | None = None,
    loss: SumOfLosses | None = None,
    optimizer: type[torch.optim.Optimizer] | None = None,
    on_step: OnStep | None = None,
) -> Trained:
    """Train any model in place, on rows of any kind.

    Args:
        model: Its adapter is attached; what is to be trained requires gradients.
        rows: What the collator takes; as many as there are lengths.
        collator: Makes a batch of rows, with `attention_mask` and `labels`.
        order_lengths: Tokens of the rows before poisoning; they decide the batches.
        spec: Budget, optimiser and the rest; its learning rate is set.
        tokens: Every token id that training will look up, padding included.
        seed: The order seed; it also drives dropout where there is any.
        loraplus_ratio: Learning rate of LoRA's B over that of all else; None: one rate for all.
        loss: Sum over the labels of a batch, which is divided by the number of labels of the whole step; by
            default the model's own loss, which is a mean over a batch.
        optimizer: Instead of the spec's, with its learning rate; one that leaves a weight with a gradient of
            zero where it is.
        on_step: Progress.

    Raises:
        Diverged: A loss, a weight or a state of the optimiser is not finite.
    """
    steps = planned_steps(spec, len(rows))
    with tempfile.TemporaryDirectory(prefix="foretaste-") as folder, borrowed_global_state(seed, "order"):
        trainer = _Trainer(
            model=model,
            args=arguments(spec, steps, seed, folder),
            train_dataset=rows,
            data_collator=collator,
            callbacks=[Steps(on_step)],
            sampler=SeededOrder(
                order_lengths, spec.batch_size, seed=seed, by_length=spec.grouping == "length"
            ),
            ratio=loraplus_ratio,
            loss=loss,
            optimizer_cls_and_kwargs=None if optimizer is None else (optimizer, {"lr": spec.learning_rate}),
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        with only_used_tokens(model, tokens, spec):
            trainer.train()
            _check_finite(trainer)
        seconds = time.perf_counter() - started
        counts = trainer.over_processes("sum", trainer.rows, trainer.tokens, trainer.padding)
    return Trained(
        loss=[float(np.mean(parts)) for parts in trainer.losses],
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        seconds=seconds,
        rows=int(counts[0]),
        tokens=int(counts[1]),
        padding=int(counts[2]),
    )


def _check_finite(trainer: Trainer) -> None:
    assert trainer.model is not None
    assert trainer.optimizer is not None
    if reason := not_finite(trainer.model, trainer.optimizer):
        raise Diverged(reason)


def not_finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Which trained weight of a model, or state of it in an optimiser, is not finite; None: all are."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in trained:
        if not torch.isfinite(parameter).all():
            return f"weight '{name}' is not finite after training"
    states = getattr(optimizer, "state", {})  # accelerate wraps the optimiser
    for _, parameter in trained:
        for key, value in states.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
                return f"optimiser state '{key}' is not finite after training"
    return None


def padded_batches(
    rows: Encoded, tokenizer: PreTrainedTokenizerBase, size: int, device: torch.device
) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """Model inputs without labels, in batches of similar length, and the row that each line came from."""
    order = [int(i) for i in np.argsort(rows.lengths, kind="stable")]
    collate = Collator(tokenizer)
    batches = []
    for start in range(0, len(order), size):
        batch = collate([rows[i] for i in order[start : start + size]])
        del batch["labels"]
        batches.append({key: value.to(device) for key, value in batch.items()})
    return batches, order


def predict(
    model: nn.Module, rows: Encoded, tokenizer: PreTrainedTokenizerBase, size: int
) -> npt.NDArray[np.float32]:
    """Logits of shape (rows, classes), in the order of the rows; dropout off."""
    device = next(model.parameters()).device
    batches, order = padded_batches(rows, tokenizer, size, device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = [model(**batch).logits.float().cpu().numpy() for batch in batches]
    model.train(was_training)
    stacked = np.concatenate(logits)
    result = np.empty_like(stacked)
    result[order] = stacked
    return result

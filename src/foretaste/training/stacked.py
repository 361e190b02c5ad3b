"""Training several LoRA models together, in one forward and one backward pass of their frozen base.

Models meet in the layers of the base only, and there no row sees another: the gradient of the sum of all
losses with respect to one model's weights is the gradient of its own loss. What is left is bookkeeping, so
that each has its own rows and their order, learning rate, clipping and end. Numbers differ from training one
by one by rounding, since larger matrix products add in another order, and since a batch is padded to the
longest row of all models.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from foretaste.errors import UserError
from foretaste.models.encode import Encoded
from foretaste.seeds import borrowed_global_state
from foretaste.spec import TrainingSpec
from foretaste.training import ranks
from foretaste.training.lora_plus import raise_rate_of_b
from foretaste.training.one_base import NotTogether, OneBase
from foretaste.training.order import SeededOrder
from foretaste.training.trainer import (
    Collator,
    Diverged,
    OrderedTrainer,
    Steps,
    Trained,
    arguments,
    not_finite,
    planned_steps,
)

OnStepOf = Callable[[int, int, int], None]
"""Called with (number of the model, steps done, steps in all) after each step of each model."""


@dataclass(frozen=True)
class Member:
    """One of the models that are trained together.

    Attributes:
        model: From `adapters.attach`, on a twin of the base.
        train: Poisoned training rows, tokenised; equally many in every member.
        order_lengths: Tokens of the same rows before poisoning; they decide the batches.
        spec: Equal in all members, the learning rate aside.
        seed: The order seed.
        loraplus_ratio: Learning rate of LoRA's B over that of all else; None: one rate for all.
    """

    model: nn.Module
    train: Encoded
    order_lengths: Sequence[int]
    spec: TrainingSpec
    seed: int
    loraplus_ratio: float | None = None


def fine_tune_together(
    base: PreTrainedModel,
    members: Sequence[Member],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    on_step: OnStepOf | None = None,
) -> list[Trained | Diverged]:
    """Train classifiers with LoRA in place, as `trainer.fine_tune` trains each of them.

    Args:
        base: The model without adapters, whose tensors the members have.
        members: What to train.
        tokenizer: Pads the batches.
        max_length: Length to pad to under `padding: max_length`.
        on_step: Progress.

    Returns:
        For each member what its training did, or why it ended early. The seconds are its share by rows of
        the time of all, and the padding is that of the batches as they were.

    Raises:
        NotTogether: The model is of a kind whose rows cannot be computed together, seen before training.
        UserError: Members differ in what they must share.
    """
    started = time.perf_counter()
    spec, rows = members[0].spec, len(members[0].train)
    _check_equal(members)
    steps = planned_steps(spec, rows)
    joint = OneBase(base, [member.model for member in members])
    pad_to = max_length if spec.padding == "max_length" else None
    _check_together(joint, members, tokenizer, pad_to)
    ended: dict[int, str] = {}

    def tell(done: int, total: int) -> None:
        if on_step is not None:
            for number in range(len(members)):
                if number not in ended:
                    on_step(number, done, total)

    seed = members[0].seed  # nothing is drawn: orders come from the members' seeds, and there is no dropout
    with tempfile.TemporaryDirectory(prefix="foretaste-") as folder, borrowed_global_state(seed, "order"):
        trainer = _Together(
            members=members,
            ended=ended,
            model=joint,
            args=arguments(spec, steps, seed, folder),
            train_dataset=_Rows([member.train for member in members]),
            data_collator=_Columns(Collator(tokenizer, pad_to)),
            callbacks=[Steps(tell)],
            sampler=_SideBySide(
                [
                    SeededOrder(
                        member.order_lengths,
                        spec.batch_size,
                        seed=member.seed,
                        by_length=spec.grouping == "length",
                    )
                    for member in members
                ]
            ),
        )
        trainer.remove_callback(PrinterCallback)
        with contextlib.suppress(_NoneLeft):
            trainer.train()
        assert trainer.optimizer is not None
        for number, member in enumerate(members):
            if number not in ended and (reason := not_finite(member.model, trainer.optimizer)):
                ended[number] = reason
        seconds = time.perf_counter() - started
    everything = sum(work.rows for work in trainer.work)
    return [
        Diverged(ended[number])
        if number in ended
        else Trained(
            loss=[float(np.mean(parts)) for parts in work.losses],
            steps=trainer.state.global_step,
            epochs=float(trainer.state.epoch or 0.0),
            seconds=seconds * (work.rows / everything),
            rows=work.rows,
            tokens=work.tokens,
            padding=work.padding,
        )
        for number, work in enumerate(trainer.work)
    ]


def _check_equal(members: Sequence[Member]) -> None:
    ranks.require_one("training several runs through one base")
    first = members[0]
    for member in members:
        different = [
            name
            for name in type(first.spec).model_fields
            if name != "learning_rate" and getattr(member.spec, name) != getattr(first.spec, name)
        ]
        if different:
            raise UserError(f"runs that are trained together differ in '{different[0]}'", where="training")
        if len(member.train) != len(first.train):
            raise UserError(
                f"runs that are trained together have {len(first.train)} and {len(member.train)} rows",
                where="training",
            )
    if first.spec.dropout or first.spec.precision == "mixed-float16":
        # One scaler would serve all: an overflow in one run would skip a step of every other.
        raise UserError("no dropout and no mixed-float16 in runs that are trained together", where="training")


def _check_together(
    joint: OneBase, members: Sequence[Member], tokenizer: PreTrainedTokenizerBase, pad_to: int | None
) -> None:
    """Compare every model's first gradient, of one row, with that which it has alone.

    Rows together have more padding than alone, and never as many tokens as there are rows, so that a model
    that sees its padding or puts the tokens first is found out here.
    """
    rows = [member.train[0] for member in members]
    alone = Collator(tokenizer, pad_to)
    longest = pad_to or max(member.train.lengths[0] for member in members) + 1
    each = 2 if longest == len(rows) else 1
    device = next(joint.parameters()).device
    batch = _on(device, Collator(tokenizer, longest)([row for row in rows for _ in range(each)]))
    labels = batch.pop("labels").split(each)
    losses = joint.losses(joint(range(len(rows)), **batch), labels)
    # Errors of rounding are of the order of the precision (which is float32 in places at best), mistakes of
    # that of the gradient itself: the root of the precision lies between the two.
    eps = max(torch.finfo(dtype).eps for dtype in (torch.float32, losses.dtype, _dtype(joint)))
    every = [[p for p in member.model.parameters() if p.requires_grad] for member in members]
    # Of the sum, as in training: a model that reached into another's loss would be seen, too.
    joined = iter(torch.autograd.grad(losses.sum(), [p for w in every for p in w], allow_unused=True))
    for number, (member, weights) in enumerate(zip(members, every, strict=True)):
        own = member.model(**_on(device, alone([rows[number]]))).loss
        expected = torch.autograd.grad(own, weights, allow_unused=True)
        found = [next(joined) for _ in weights]
        error, norm = (float(x.detach()) ** 2 for x in (losses[number] - own, own))
        for one, other in zip(found, expected, strict=True):
            if (one is None) != (other is None):
                raise NotTogether("a weight that is trained alone is out of reach together")
            if one is not None:
                error += float((one - other).double().square().sum())
                norm += float(other.double().square().sum())
        # What is not finite here is left to training, which ends that run and no other.
        if error > eps * norm:
            raise NotTogether(
                f"loss and gradient together differ from those alone by {math.sqrt(error):.3g} of "
                f"{math.sqrt(norm):.3g} (does the model see padding or other rows?)"
            )


def _dtype(joint: OneBase) -> torch.dtype:
    """The dtype of the base, whose weights are those of the first model that are not trained."""
    return next(p.dtype for p in joint.models[0].parameters() if not p.requires_grad)


def _on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.to(device) for key, value in batch.items()}


class _Rows:
    """Row i of one member beside row j of the next, as the sampler pairs them."""

    def __init__(self, parts: Sequence[Encoded]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, places: tuple[int, ...]) -> list[Any]:
        return [part[place] for part, place in zip(self._parts, places, strict=True)]


class _SideBySide(Sampler[tuple[int, ...]]):
    """The orders of all members, in step."""

    def __init__(self, orders: Sequence[SeededOrder]) -> None:
        self._orders = orders

    def set_epoch(self, epoch: int) -> None:
        for order in self._orders:
            order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._orders[0])

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return zip(*self._orders, strict=True)


class _Columns:
    """Collates all rows of the first member, then all of the second, and so on."""

    def __init__(self, collate: Collator) -> None:
        self._collate = collate

    def __call__(self, rows: Sequence[list[Any]]) -> dict[str, torch.Tensor]:
        return self._collate([row for column in zip(*rows, strict=True) for row in column])


class _Work:
    """What one member has done so far."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.rows = self.tokens = self.padding = 0

    def add(self, step: int, loss: float, mask: torch.Tensor) -> None:
        if step == len(self.losses):
            self.losses.append([])
        self.losses[-1].append(loss)
        self.rows += len(mask)
        self.tokens += mask.numel()
        self.padding += int((mask == 0).sum())


class _NoneLeft(RuntimeError):
    """Every member has diverged."""


class _Together(OrderedTrainer):
    """Trainer of several models, each with its own rate, clipping, count of work and end.

    Args:
        members: What is trained.
        ended: Why a member takes no further part, by number; filled as it happens.
        **kwargs: As for `Trainer`.

    Attributes:
        work: Of each member.
    """

    def __init__(self, *, members: Sequence[Member], ended: dict[int, str], **kwargs: Any) -> None:
        kwargs["args"]._n_gpu = min(1, kwargs["args"].n_gpu)  # DataParallel would cut batches by row
        super().__init__(**kwargs)
        self._joint: OneBase = kwargs["model"]
        self._members = members
        self._weights = [[p for p in member.model.parameters() if p.requires_grad] for member in members]
        self._ended = ended
        self.work = [_Work() for _ in members]

    def _active(self) -> list[int]:
        return [number for number in range(len(self._members)) if number not in self._ended]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, its groups split so that every member has groups and rates of its own."""
        new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if not new:
            return optimizer
        owner = {id(p): number for number, weights in enumerate(self._weights) for p in weights}
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group in groups:
            for number, member in enumerate(self._members):
                chosen = [p for p in group["params"] if owner[id(p)] == number]
                if chosen:
                    rate = member.spec.learning_rate
                    optimizer.add_param_group(group | {"params": chosen, "lr": rate})
        for member in self._members:
            if member.loraplus_ratio is not None:
                raise_rate_of_b(optimizer, member.model, member.loraplus_ratio)
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The sum of the members' losses, each a mean over its own rows; those that diverge are left out."""
        each = len(inputs["labels"]) // len(self._members)
        active = self._active()
        kept = {
            key: torch.cat([value.split(each)[number] for number in active]) for key, value in inputs.items()
        }
        labels = kept.pop("labels").split(each)
        masks = kept["attention_mask"].split(each)
        losses = self._joint.losses(model(active, **kept), labels)
        finite = []
        for place, (number, value) in enumerate(zip(active, losses.tolist(), strict=True)):
            if math.isfinite(value):
                finite.append(place)
                self.work[number].add(self.state.global_step, value, masks[place])
            else:
                self._end(number, f"the loss is {value} at step {self.state.global_step + 1}")
        if not finite:
            raise _NoneLeft
        return losses[finite].sum()

    def _end(self, number: int, reason: str) -> None:
        self._ended[number] = reason
        for weight in self._weights[number]:
            # Of earlier micro-batches. What this step still sends (zeros, 0 * nan) moves these weights alone.
            weight.grad = None

    def _clip_grad_norm(self, _model: nn.Module) -> torch.Tensor:
        """Clip each member's gradient by its own norm."""
        norms = [
            self.accelerator.clip_grad_norm_(self._weights[number], self.args.max_grad_norm)
            for number in self._active()
        ]
        whole: torch.Tensor = torch.stack([torch.as_tensor(norm) for norm in norms]).norm()
        return whole

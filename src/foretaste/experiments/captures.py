"""Kernels of every arm of a spec from captures of the base model, with the head of a training set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from foretaste.experiments import pool, prepare
from foretaste.experiments.kernel_jobs import OUTPUTS, Subject, attached
from foretaste.experiments.plan import Plan
from foretaste.experiments.pool import Cell, Pool
from foretaste.experiments.prepare import Workspace
from foretaste.kernels import Adapted, Inputs, plain_lora, starts_at
from foretaste.kernels.probe import Probe
from foretaste.models import adapters, heads
from foretaste.prediction.features import (
    APART,
    FULL,
    HEAD,
    Features,
    Lora,
    capture,
    first_steps,
    mean_gradient,
    oriented,
)
from foretaste.prediction.movement import Movement, movement
from foretaste.prediction.tangents import tangent
from foretaste.spec import MeasureSpec, RunSpec, digest
from foretaste.theory.function_space import Tangent, derivative
from foretaste.theory.ridge_head import head_smoother
from foretaste.training import lora_plus, trainer

Float = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
OnProgress = Callable[[str, float], None]

GRADIENT_ROWS = 64  # for the first step of LoRA's B, of which only signs count
MOVEMENT_ROWS = 24


@dataclass(frozen=True)
class CapturedArm:
    """An adapter whose gradients are captured once, however many rates it is trained at.

    Attributes:
        key: Of the adapter's settings without its name.
        run: A clean run with it.
        lora: What it adapts, where the base model's capture serves it; None for full fine-tuning and for
            methods that are captured as peft builds them.
        batches: Rows of an optimiser step in the runs with it, ascending: Adam's second moments depend on
            them.
    """

    key: str
    run: RunSpec
    lora: dict[str, Adapted] | None
    batches: tuple[int, ...]

    @property
    def full(self) -> bool:
        """Whether all parameters are trained."""
        return self.run.adapter.method == adapters.FULL

    @property
    def served(self) -> bool:
        """Whether the base model's capture holds all of it, so that it starts where the base model does."""
        return self.full or self.lora is not None


@dataclass(frozen=True)
class Reference:
    """Captures with the head fitted to one training set.

    Attributes:
        share: Of its rows that were poisoned.
        rows: Of the pool, that were captured, shape (R,); those that can be trained on first.
        start: Outputs of the base model with that head, shape (R, C).
        at_batch: Tangents by key of the arm and rows of an optimiser step; kernels are the same at all of
            these.
        movements: By key of the arm; only of the clean reference.
        starts: Likewise, outputs of arms that are captured as peft builds them: virtual tokens and some other
            methods change the outputs before anything is trained (`catalogue.MOVED_AT_START`).
    """

    share: float
    rows: Ints
    start: Float
    at_batch: dict[tuple[str, int], Tangent]
    movements: dict[str, Movement] = field(default_factory=dict)
    starts: dict[str, Float] = field(default_factory=dict)

    @property
    def tangents(self) -> dict[str, Tangent]:
        """By key of the arm, for their kernels; second moments are those of the smallest batch."""
        return {key: self.at_batch[key, batch] for key, batch in sorted(self.at_batch, reverse=True)}

    def tangent_of(self, run: RunSpec) -> Tangent:
        """The tangent of a run's arm, with the second moments of its own batches."""
        return self.at_batch[arm_key(run), step_rows(run)]

    def start_of(self, key: str) -> Float:
        """Outputs of an arm before training, with the head of the captures: shape (R, C)."""
        return self.starts.get(key, self.start)


class Captures:
    """The model and the rows of one prediction, and captures of them."""

    def __init__(
        self, spec: MeasureSpec, planned: Plan, space: Workspace, on_progress: OnProgress | None
    ) -> None:
        self.spec, self.planned, self.space = spec, planned, space
        self.first = planned.runs[0]
        self.report: OnProgress = on_progress or (lambda *_: None)
        self.report("rows", 0.0)
        self.tokenizer, self.model = prepare.fresh_model(self.first, space)
        self.pool: Pool = pool.build(
            planned.loaded, planned.runs, spec.predict, self.tokenizer, space.base_dir
        )
        self.classes = len(self.first.data.classes)
        self.outputs = OUTPUTS["margin" if self.classes == 2 else "logits"]
        self.probes = self.first.model.request.head == "probe-then-train"
        self.model.train(False)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        device = next(self.model.parameters()).device
        self.subject = Subject(self.tokenizer, self.pool.encoded, self.pool.train, device)
        self.hidden = self._hidden(self.model, None) if self.probes else None
        self._own_hidden: dict[str, npt.NDArray[np.float32]] = {}
        self.arms = self._arms()
        self._found: Probe | None = None
        self._probes: dict[bytes, heads.Probe] = {}

    def _hidden(self, model: nn.Module, linear: str | None) -> npt.NDArray[np.float32]:
        size = self.first.training.eval_batch_size
        device = next(self.model.parameters()).device
        batches, order = trainer.padded_batches(self.pool.encoded, self.tokenizer, size, device)
        return heads.features(model, batches, self.tokenizer.pad_token_id, linear)[np.argsort(order)]

    def _hidden_of(self, key: str) -> npt.NDArray[np.float32]:
        """What the head of an arm reads before training: of the base model, unless peft builds the arm."""
        assert self.hidden is not None
        arm = self.arms[key]
        if arm.served:
            return self.hidden
        if key not in self._own_hidden:
            wrapped = attached(self.model, arm.run)
            linear = heads.adapted(wrapped, heads.find(self.model).linear)
            self._own_hidden[key] = self._hidden(wrapped, linear)
        return self._own_hidden[key]

    def _arms(self) -> dict[str, CapturedArm]:
        found: dict[str, CapturedArm] = {}
        batches: dict[str, set[int]] = {}
        for run in self.planned.runs:
            batches.setdefault(arm_key(run), set()).add(step_rows(run))
        for run in self.planned.runs:
            key = arm_key(run)
            if key in found:
                continue
            lora = None
            # Under `paper` the head is frozen, and adapted as any other layer: as peft builds it.
            if run.adapter.method != adapters.FULL and run.model.request.head != "paper":
                wrapped = attached(self.model, run)
                layers = plain_lora(wrapped)
                lora = layers if layers and starts_at(self.model, layers, wrapped) else None
            found[key] = CapturedArm(key, run, lora, tuple(sorted(batches[key])))
        return found

    def start(self, cell: Cell, reference: Reference, key: str) -> tuple[Float, float]:
        """Outputs of an arm before training, and the root mean square of the head's last weight.

        The head is fitted to what the base model gives it, as in a run, whatever the arm then gives it.

        Args:
            cell: Whose labels the head is fitted to, where it is fitted.
            reference: Whose rows are wanted; R of them.
            key: Of the arm.

        Returns:
            Shape (R, C), and a number above 0.
        """
        if self.hidden is None:
            return reference.start_of(key), self._size()
        layer: Any = self.model.get_submodule(heads.find(self.model).linear)
        fitted_to = cell.rows.tobytes() + cell.labels.tobytes()
        if fitted_to not in self._probes:
            self._probes[fitted_to] = heads.fit_probe(
                self.hidden[cell.rows], list(cell.labels), self.classes, intercept=layer.bias is not None
            )
        probe = self._probes[fitted_to]
        seen = self._hidden_of(key).astype(np.float64)
        logits = seen @ probe.weight.T + probe.bias * (layer.bias is not None)
        scores = logits[:, 1:] - logits[:, :1] if self.classes == 2 else logits
        return scores[reference.rows], float(np.sqrt(np.mean(probe.weight**2)))

    def head_smoother(self, cell: Cell, key: str) -> Float:
        """What each label of a cell adds to an arm's outputs before training, of a probe by ridge regression.

        Args:
            cell: Its rows are trained on; its labels choose the penalty.
            key: Of the arm.

        Returns:
            Shape (rows of the pool, rows of the cell).
        """
        assert self.hidden is not None
        layer: Any = self.model.get_submodule(heads.find(self.model).linear)
        targets = 2.0 * cell.labels - 1 if self.classes == 2 else np.eye(self.classes)[cell.labels]
        features = self.hidden[cell.rows].astype(np.float64)
        return head_smoother(features, self._hidden_of(key), targets, intercept=layer.bias is not None)

    def _size(self) -> float:
        weight: Any = self.model.get_submodule(heads.find(self.model).linear).weight
        return float(weight.detach().double().square().mean().sqrt())

    def reference(self, cell: Cell, rows: Sequence[int], what: str, *, moving: bool) -> Reference:
        """Capture every arm with the head fitted to a cell's labels.

        Args:
            cell: Its rows are rows of the pool without poisoned texts.
            rows: Of the pool, that are captured: training rows first.
            what: For progress.
            moving: Whether to check how far outputs are linear in the weights.
        """
        if self.hidden is not None:
            heads.set_head(self.model, self.hidden[cell.rows], list(cell.labels))
        inputs = _subset(self.subject, rows)
        trainable = sum(row < self.pool.trainable for row in rows)
        served = {key: arm.lora for key, arm in self.arms.items() if arm.lora is not None}
        names = list(dict.fromkeys(name for layers in served.values() for name in layers))
        everything = [name for name, _ in self.model.named_parameters()] if moving else names
        gradients = mean_gradient(
            self.model,
            inputs,
            range(min(GRADIENT_ROWS, self.pool.train)),
            self._loss(cell),
            self.outputs,
            everything,
        )
        loras = {key: first_steps(self.model, layers, gradients) for key, layers in served.items()}
        body, self._found = capture(
            self.model,
            self.outputs,
            inputs,
            loras,
            entries=self.spec.predict.entries,
            seed=self.first.seeds.init,
            full=any(arm.full for arm in self.arms.values()),
            last=heads.find(self.model).linear,
            found=self._found,
            on_progress=lambda share: self.report(f"gradients, {what}", share),
        )
        tangents: dict[tuple[str, int], Tangent] = {}
        starts: dict[str, Float] = {}
        for key, arm in self.arms.items():
            if arm.served:
                made = self._tangents(arm, body, loras.get(key), cell, trainable)
            else:
                made, starts[key] = self._other(arm, inputs, cell, trainable, what)
            tangents |= made
        movements: dict[str, Movement] = {}
        if moving:
            some = _subset(self.subject, list(self.pool.held_out[:MOVEMENT_ROWS]))
            for key, arm in self.arms.items():
                change = _first_change(self.model, arm, loras, gradients)
                if change:
                    movements[key] = movement(self.model, change, self.outputs, some)
        return Reference(cell.share, np.asarray(rows), body.outputs, tangents, movements, starts)

    def _loss(self, cell: Cell) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
        def loss(scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            labels = torch.as_tensor(cell.labels[list(rows)], device=scores.device)
            if scores.shape[1] == 1:
                return torch.nn.functional.binary_cross_entropy_with_logits(
                    scores[:, 0].float(), labels.float(), reduction="sum"
                )
            return torch.nn.functional.cross_entropy(scores.float(), labels, reduction="sum")

        return loss

    def _other(
        self, arm: CapturedArm, inputs: Inputs, cell: Cell, trainable: int, what: str
    ) -> tuple[dict[tuple[str, int], Tangent], Float]:
        """An arm that the base model's capture does not serve, as peft builds it, and its outputs."""
        ratio = adapters.loraplus_ratio(arm.run.adapter) or 1.0
        found, _ = capture(
            attached(self.model, arm.run),
            self.outputs,
            inputs,
            {},
            entries=self.spec.predict.entries,
            seed=self.first.seeds.init,
            full=True,
            apart=None if ratio == 1.0 else lora_plus.learns_faster,
            on_progress=lambda share: self.report(f"gradients of {arm.run.adapter.name}, {what}", share),
        )
        return self._tangents(arm, found, None, cell, trainable), found.outputs

    def _tangents(
        self, arm: CapturedArm, features: Features, lora: Lora | None, cell: Cell, trainable: int
    ) -> dict[tuple[str, int], Tangent]:
        """An arm from the capture that holds it, at each number of rows that its runs take a step on."""
        ratio = adapters.loraplus_ratio(arm.run.adapter) or 1.0
        pull = derivative(features.outputs[: self.pool.train], cell.labels)
        made: dict[tuple[str, int], Tangent] = {}
        for batch in arm.batches:
            if lora is not None:
                found = lora_tangent(features, arm.key, lora, pull, trainable, batch, self._size(), ratio)
            elif arm.full:
                parts, size = [FULL, HEAD], self._size()
                found = tangent(features, parts, None, pull, pool=trainable, batch=batch, size=size)
            else:
                parts, others = ([FULL, HEAD], []) if ratio == 1.0 else ([APART], [FULL, HEAD])
                found = tangent(
                    features, parts, None, pull, pool=trainable, batch=batch, others=others, ratio=ratio
                )
            # The kernels are large, and the same at every batch.
            first = made.get((arm.key, arm.batches[0]), found)
            made[arm.key, batch] = replace(found, plain=first.plain, rated=first.rated)
        return made


def arm_key(run: RunSpec) -> str:
    """Names an adapter by its settings, whatever it is called and however it is trained."""
    return digest(run.adapter.model_dump(mode="json", exclude={"name"}))[:12]


def step_rows(run: RunSpec) -> int:
    """Rows that an optimiser step of a run is taken on."""
    return run.training.batch_size * run.training.gradient_accumulation


def lora_tangent(
    body: Features,
    key: str,
    lora: Lora,
    pull: Float,
    trainable: int,
    batch: int,
    size: float,
    ratio: float,
) -> Tangent:
    """LoRA from the base model's capture; under LoRA+ (ratio not 1) B learns at another rate than the rest.

    At B = 0 only B moves to first order, so that its rate is the one that counts; A follows as B grows.
    """
    both = lora.first is not None
    parts, others = [f"{key}/B"], [HEAD] if both else [f"{key}/A", HEAD]
    if ratio == 1.0:
        parts, others = [*parts, *others], []
    growing = f"{key}/A" if both else None
    return tangent(
        body, parts, growing, pull, pool=trainable, batch=batch, size=size, others=others, ratio=ratio
    )


def _first_change(
    model: nn.Module, arm: CapturedArm, loras: dict[str, Lora], gradients: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """How the base model's weights move in the first step of Adam with rate 1."""
    if arm.full:
        return {name: -torch.sign(value) for name, value in gradients.items()}
    if arm.key not in loras or loras[arm.key].first is None:
        return {}
    first = loras[arm.key].first
    assert first is not None
    moved = {}
    for name, adapted in loras[arm.key].layers.items():
        moved[name] = oriented(model, name, adapted.scaling * first[name] @ adapted.A.to(first[name]))
    return moved


def _subset(subject: Subject, rows: Sequence[int]) -> Inputs:
    """Some rows of a subject as inputs, numbered from 0."""
    whole = subject.inputs()
    place = list(rows)
    return Inputs(
        [whole.lengths[row] for row in place], lambda numbers: whole.collate([place[n] for n in numbers])
    )

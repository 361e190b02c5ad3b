"""What the kernels of a spec are made from: its rows, its models, and the job of each capture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import data
from foretaste.errors import UserError
from foretaste.experiments import prepare
from foretaste.experiments.kernel_result import ARMS, BASE, OTHERS, Captured, by_group
from foretaste.experiments.plan import Resources, plan
from foretaste.experiments.prepare import Workspace
from foretaste.kernels import (
    Adapted,
    Arm,
    Gram,
    Inputs,
    Job,
    Outputs,
    Parts,
    Place,
    Projection,
    Ranks,
    below,
    kernels,
    logits,
    margin,
    parse_bytes,
    plain_lora,
    starts_at,
    trainable,
)
from foretaste.models import adapters
from foretaste.models.encode import Encoded, encode
from foretaste.spec import KernelSpec, MeasureSpec, RunSpec
from foretaste.training import trainer

OnProgress = Callable[[str, float], None]

OUTPUTS: dict[str, Outputs] = {"margin": margin, "logits": logits}
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Subject:
    """What kernels are computed of: rows as tokens, and how to pad them."""

    tokenizer: PreTrainedTokenizerBase
    rows: Encoded
    train_rows: int
    device: torch.device

    def inputs(self) -> Inputs:
        """The rows as batches on the model's device."""
        collate = trainer.Collator(self.tokenizer)

        def batch(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
            made = collate([self.rows[i] for i in numbers])
            del made["labels"]
            return {key: value.to(self.device) for key, value in made.items()}

        return Inputs(self.rows.lengths, batch)


@dataclass(frozen=True)
class Ready:
    """A spec's model and rows, ready for its kernels.

    Attributes:
        runs: One for each arm.
        model: The base model with its head.
        subject: The rows.
        notes: On data and model.
    """

    runs: list[RunSpec]
    model: PreTrainedModel
    subject: Subject
    notes: list[str]


def prepared(spec: MeasureSpec, base_dir: Path, resources: Resources) -> Ready:
    """Plan the arms, read the data and load the model; raises as `kernel`."""
    parse_bytes(spec.kernel.memory)
    first = spec.seed_tuples()[0]
    clean = spec.model_copy(update={"attacks": [], "seeds": [first.data]})
    planned = plan(clean, base_dir, resources)
    runs = [run.model_copy(update={"seeds": first}) for run in planned.runs]
    space = Workspace(Path(), base_dir, spec.name, {}, resources)
    return Ready(runs, *_prepare(runs[0], space, spec.kernel))


def outputs_of(settings: KernelSpec, model: nn.Module) -> str:
    """Name of what is differentiated: as asked, else the margin of two classes, the logits of more.

    Raises:
        UserError: The margin is asked of more or fewer than two classes.
    """
    classes = getattr(model.config, "num_labels", 0)
    name = settings.outputs or ("margin" if classes == 2 else "logits")
    if name == "margin" and classes != 2:
        raise UserError("the margin is for two classes", where="kernel.outputs", cure="Use logits.")
    return name


def _prepare(run: RunSpec, space: Workspace, spec: KernelSpec) -> tuple[PreTrainedModel, Subject, list[str]]:
    """The base model with its head, and the rows; every trainable parameter requires a gradient."""
    loaded, split = prepare.rows_of(run, space)
    given = space.resources.data
    # A caller's rows stay in their order; those of a spec are drawn.
    drawn, to_test = (split.train, split.test) if given is None else (given.train, given.test or split.test)
    tokenizer, model = prepare.fresh_model(run, space)
    train = prepare.tokens(tokenizer, drawn, run)
    if run.model.request.head == "probe-then-train":
        prepare.set_probe_head(model, train, tokenizer, run)
    count = min(spec.train_rows or len(train), len(train))
    tested = len(to_test) if spec.test_rows is None else min(spec.test_rows, len(to_test))
    request = run.model.request
    rows = Encoded(train.ids[:count], train.features[:count], train.truncated)
    if tested:
        test = encode(
            tokenizer,
            data.take(to_test, list(range(tested))),
            max_length=request.eval_max_length or request.max_length,
            pair_separator=request.pair_separator,
        )
        rows = Encoded(rows.ids + test.ids, rows.features + test.features, rows.truncated + test.truncated)
    notes = [*loaded.notes, *split.notes]
    if rows.truncated:
        notes.append(f"{rows.truncated} rows are longer than the model's max_length and were cut")
    model.train(False)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UserError(
                f"parameter '{name}' is {parameter.dtype}: a kernel needs floating point",
                where="model.base",
                cure="Load the model without quantisation.",
            )
        parameter.requires_grad_(True)
    # After the head, which a run fits in the precision that it trains in: the weights stay as rounded there.
    model.to(PRECISIONS[spec.precision])  # type: ignore[arg-type]
    device = next(model.parameters()).device
    return model, Subject(tokenizer, rows, count, device), notes


SpreadOver = Callable[[str | None, Sequence[Place]], None]
"""Does units of an arm's capture elsewhere and puts them into its folder; None is the base model."""


@dataclass(frozen=True)
class Captures:
    """Captures one model after another, on the same rows and with the same settings."""

    settings: KernelSpec
    subject: Subject
    outputs: str
    memory: int
    projection: Projection | None
    on_progress: OnProgress | None
    spread: SpreadOver | None = None

    def job(self, part: nn.Module, products: Sequence[Any]) -> Job:
        """What is computed of one model."""
        return Job(
            part,
            trainable(part),
            OUTPUTS[self.outputs],
            self.subject.inputs(),
            self.subject.train_rows,
            [*products, *([self.projection] if self.projection else [])],
            self.projection.reduce if self.projection else None,
        )

    def of(
        self, part: nn.Module, arm: str | None, products: Sequence[Any], place: Path | None
    ) -> tuple[Parts, Captured]:
        """The parts of an arm, or of the base model; those of a finished capture from its folder."""
        finished = None if place is None else Captured.read(place)
        if place is not None and finished is not None:
            return Parts(folders=[place]), finished
        report, spread = self.on_progress, self.spread
        parts, done = kernels(
            self.job(part, products),
            memory=self.memory,
            folder=place,
            on_progress=None if report is None else lambda share: report(arm or "base model", share),
            spread=None if spread is None else lambda places: spread(arm, places),
        )
        captured = Captured.of(done)
        if place is not None:
            captured.write(place)
        return parts, captured


@dataclass(frozen=True)
class Base:
    """The capture of the base model: what is made of it, and the arms that it serves."""

    products: list[Any]
    plain: dict[str, tuple[dict[str, Adapted], dict[str, int]]]


def base_of(settings: KernelSpec, ready: Ready) -> Base:
    """What the base model's capture gives beside its own kernel."""
    plain = plain_arms(settings, ready.model, ready.runs)
    seed = ready.runs[0].seeds.init
    surface = [Ranks(tuple(settings.ranks), seed, settings.law)] if settings.ranks else []
    arms = [Arm(f"{ARMS}/{arm}", layers) for arm, (layers, _) in plain.items()]
    return Base([*grams_of(settings), *arms, *surface], plain)


def grams_of(settings: KernelSpec) -> list[Gram]:
    """What is made of every capture."""
    return [Gram(kind, settings.by) for kind in settings.kinds]


def captures_of(
    settings: KernelSpec, ready: Ready, on_progress: OnProgress | None, spread: SpreadOver | None
) -> Captures:
    """What captures the models of a spec.

    Args:
        settings: The section `kernel`.
        ready: Model and rows.
        on_progress: Called with what is being done and the share that is done.
        spread: Does units elsewhere; None does all of them here.

    Raises:
        UserError: As `outputs_of`; or the budget is no amount of memory.
    """
    seed = ready.runs[0].seeds.init
    return Captures(
        settings,
        ready.subject,
        outputs_of(settings, ready.model),
        parse_bytes(settings.memory),
        Projection(settings.projection, seed) if settings.projection else None,
        on_progress,
        spread,
    )


def place_of(folder: Path, arm: str | None) -> Path:
    """Folder of the capture of an arm, or of the base model."""
    return folder / BASE if arm is None else below(folder / OTHERS, f"{ARMS}/{arm}")


def job_of(settings: KernelSpec, ready: Ready, arm: str | None) -> Job:
    """The capture of an arm, or of the base model, as `kernel` does it."""
    captures = captures_of(settings, ready, None, None)
    if arm is None:
        return captures.job(ready.model, base_of(settings, ready).products)
    run = next(run for run in ready.runs if run.adapter.name == arm)
    return captures.job(attached(ready.model, run), grams_of(settings))


def plain_arms(
    settings: KernelSpec, model: PreTrainedModel, runs: Sequence[RunSpec]
) -> dict[str, tuple[dict[str, Adapted], dict[str, int]]]:
    """LoRA arms that the base model's capture serves: what they adapt, and their parameters by group."""
    found: dict[str, tuple[dict[str, Adapted], dict[str, int]]] = {}
    # The identities for LoRA hold for gradients, not for their signs or projections.
    if settings.kinds != ["sgd"] or settings.projection:
        return found
    for run in runs:
        if run.adapter.method == adapters.FULL:
            continue
        wrapped = attached(model, run)
        layers = plain_lora(wrapped)
        if layers and starts_at(model, layers, wrapped):
            found[run.adapter.name] = layers, by_group(trainable(wrapped))
    return found


def attached(model: PreTrainedModel, run: RunSpec) -> nn.Module:
    """A copy of the model with the arm's adapter, in evaluation mode."""
    wrapped, _ = adapters.attach(
        copy.deepcopy(model),
        run.adapter,
        head_policy=run.model.request.head,
        seed=run.seeds.init,
        total_steps=trainer.planned_steps(run.training, max(run.data.train_rows, 1)),
    )
    return wrapped.train(False)

"""Fine-tuning arms: one training for each point of a grid, chosen on validation rows alone.

Protocol of Malladi et al. 2023 (App. A) and of its code: linear decay of the rate without warm-up, no weight
decay, the gradient clipped at norm 1, a look at the validation rows now and then, and the best checkpoint
kept. Ours: dropout is off, for kernels describe a model without it; the last step is a checkpoint, too, where
it is no multiple of `check_every`. Ties go to the earlier checkpoint, and to the earlier point of the grid
(rates outside, batch sizes inside); how many points share the best score is a figure of the result, since
with 16 rows a class many do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foretaste.data.prompts import Metric
from foretaste.fewshot import criteria
from foretaste.fewshot.adapt import State, attach, load_state, trained_state
from foretaste.fewshot.prepare import Prepared
from foretaste.fewshot.progress import Best, Kept, Settings, rank
from foretaste.fewshot.record import ArmResult, GridPoint, Score
from foretaste.fewshot.scores import logits_of, score
from foretaste.fewshot.spec import FineTune
from foretaste.models import adapters
from foretaste.models.prompt_encode import EncodedPrompts, collate
from foretaste.spec import TrainingSpec
from foretaste.training.sign_gd import SignGD
from foretaste.training.trainer import Diverged, OnStep, train_rows
from foretaste.training.vocabulary import every_token


class AllDiverged(Diverged):
    """No point of the grid gave a model.

    Attributes:
        grid: The points, each with its reason.
    """

    def __init__(self, grid: Sequence[GridPoint]) -> None:
        super().__init__(f"all {len(grid)} points of the grid diverged; the first: {grid[0].warning}")
        self.grid = list(grid)


@dataclass(frozen=True)
class Searched:
    """The grid, and the model that it found.

    Attributes:
        grid: Every point, in order.
        selected: Number of the chosen one.
        dev: Its score on the validation rows.
        state: Its trained parameters.
        tied: Points with the same best score, itself included.
        notes: What a reader should know.
    """

    grid: list[GridPoint]
    selected: int
    dev: Score
    state: State
    tied: int
    notes: list[str] = field(default_factory=list)


def tune(
    prepared: Prepared,
    *,
    memory: int,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> ArmResult:
    """Do a fine-tuning arm: search the grid, test the chosen model once, measure its criteria.

    Args:
        prepared: Of a run whose arm is fine-tuning.
        memory: Budget in bytes of the criteria's kernels, for everything beside the model.
        folder: Where finished points are kept, so that a run that was stopped goes on behind them; removed
            by whoever finishes the run.
        on_step: Called with (optimiser steps done, steps in all) over the whole grid.

    Raises:
        AllDiverged: No point gave a model.
        Diverged: The chosen model's logits of a test row are not finite.
        UserError: The adapter does not fit the model.
        OSError: A finished point could not be written.
    """
    run, arm = prepared.run, prepared.run.arm
    assert isinstance(arm, FineTune)
    model = attach(prepared.model(), arm, seed=run.split)
    start = trained_state(model)
    metric = run.task.metric
    found = search(
        model,
        start,
        arm,
        prepared.train,
        prepared.dev,
        prepared.pad_token_id,
        metric=metric,
        seed=run.split,
        folder=folder,
        on_step=on_step,
    )
    load_state(model, found.state)
    logits = logits_of(model, prepared.test, prepared.pad_token_id)
    if not np.isfinite(logits).all():
        raise Diverged("logits of test rows are not finite")
    predictions = [int(label) for label in logits.argmax(1)]
    test = score(metric, prepared.test.labels, predictions)
    grid = list(found.grid)
    grid[found.selected] = grid[found.selected].model_copy(update={"test_score": test.value})
    facts = {"tied_points": float(found.tied)}
    if prepared.probe_accuracy is not None:
        facts["probe_accuracy"] = prepared.probe_accuracy
    notes, measured = list(found.notes), None
    if arm.criteria:
        behaviour = criteria.measure(
            model,
            start,
            found.state,
            prepared.train,
            prepared.test,
            prepared.pad_token_id,
            optimiser=arm.optimiser,
            metric=metric,
            fine_tuned=logits,
            memory=memory,
        )
        measured = behaviour.record()
        facts |= behaviour.facts()
        notes += behaviour.notes()
    return ArmResult(
        dev=found.dev,
        test=test,
        predictions=predictions,
        grid=grid,
        selected=found.selected,
        criteria=measured,
        trainable_parameters=adapters.trainable(model)[0],
        facts=facts,
        notes=notes,
    )


def search(
    model: nn.Module,
    start: State,
    arm: FineTune,
    train: EncodedPrompts,
    dev: EncodedPrompts,
    pad_token_id: int,
    *,
    metric: Metric,
    seed: int,
    folder: Path | None = None,
    on_step: OnStep | None = None,
) -> Searched:
    """Train every point of the grid from the same start and keep the best checkpoint by validation score.

    Three copies of the trained parameters are held beside the model: the start, the best of all points, and
    the best of the point at hand.

    Args:
        model: From `adapt.attach`; afterwards its weights are those of the last point.
        start: Its trained parameters, which every point begins with.
        arm: Resolved: learning rates, batch sizes, steps and checks are given.
        train: Training rows.
        dev: Validation rows.
        pad_token_id: Padding token.
        metric: What the best is judged by.
        seed: The order seed; the order of rows depends on it and on the batch size.
        folder: Where finished points are kept.
        on_step: Progress over the whole grid.

    Raises:
        AllDiverged: No point gave a model.
        OSError: A finished point could not be written.
    """
    assert arm.steps is not None
    points = [(rate, size) for rate in arm.learning_rates for size in arm.batch_sizes]
    kept = Kept(folder, [_settings(rate, size) for rate, size in points], start)
    best = kept.best
    spare: State | None = None
    total = arm.steps * len(points)
    for number in range(len(kept.grid), len(points)):
        before = number * arm.steps

        def report(step: int, _: int, before: int = before) -> None:
            if on_step is not None:
                on_step(before + step, total)

        load_state(model, start)
        watch = _Watch(model, dev, pad_token_id, metric, arm.check_every or arm.steps, spare, report)
        point = _train(model, arm, *points[number], train, pad_token_id, seed, watch)
        spare = watch.state
        better = point.dev_score is not None and (best is None or point.dev_score > best.value)
        if better:
            assert watch.best is not None
            assert watch.state is not None
            spare = None if best is None else best.state
            best = Best(number, watch.best, watch.state)
        kept.add(point, best)
    if best is None:
        raise AllDiverged(kept.grid)
    tied = sum(point.dev_score == best.value for point in kept.grid)
    return Searched(kept.grid, best.number, best.dev, best.state, tied, kept.notes)


def _settings(rate: float, size: int) -> Settings:
    return {"learning_rate": rate, "batch_size": size}


def _train(
    model: nn.Module,
    arm: FineTune,
    rate: float,
    size: int,
    train: EncodedPrompts,
    pad_token_id: int,
    seed: int,
    watch: _Watch,
) -> GridPoint:
    """One point of the grid; its best checkpoint is in the watch."""
    device = next(model.parameters()).device

    def batch(rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return collate(train, rows, pad_token_id, labels=True)

    spec = TrainingSpec(
        learning_rate=rate,
        batch_size=size,
        steps=arm.steps,
        schedule="linear",
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=arm.max_grad_norm,
        # SignGD takes its place below: like SGD it leaves a token alone that does not occur.
        optimizer="adamw" if arm.optimiser == "adam" else "sgd",
        grouping="none",
        device="cpu" if device.type == "cpu" else "auto",
    )
    settings = _settings(rate, size)
    try:
        trained = train_rows(
            model,
            range(len(train)),
            batch,
            train.lengths,
            spec,
            tokens={pad_token_id, *(token for row in train.input_ids for token in row)},
            seed=seed,
            optimizer=SignGD if arm.optimiser == "signgd" else None,
            on_step=watch,
        )
    except Diverged as error:
        return GridPoint(settings=settings, dev_score=None, warning=f"diverged: {error}")
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
    assert watch.best is not None
    return GridPoint(settings=settings, dev_score=rank(watch.best), steps=watch.step, seconds=trained.seconds)


class _Watch:
    """Looks at the validation rows while a model is trained, and keeps its best checkpoint.

    Args:
        model: In training.
        dev: Validation rows.
        pad_token_id: Padding token.
        metric: What the best is judged by.
        every: Steps between two looks.
        into: Copies of trained parameters whose memory may be used again.
        on_step: Called after each step.
    """

    def __init__(
        self,
        model: nn.Module,
        dev: EncodedPrompts,
        pad_token_id: int,
        metric: Metric,
        every: int,
        into: State | None,
        on_step: OnStep,
    ) -> None:
        self._model = model
        self._dev = dev
        self._pad = pad_token_id
        self._metric = metric
        self._every = every
        self._on_step = on_step
        self.best: Score | None = None
        self.step: int | None = None
        self.state = into

    def __call__(self, step: int, total: int) -> None:
        """One more step is done.

        Raises:
            Diverged: The logits of a validation row are not finite.
        """
        if step % self._every == 0 or step == total:
            with every_token(self._model):
                logits = logits_of(self._model, self._dev, self._pad)
                if not np.isfinite(logits).all():
                    raise Diverged(f"logits of validation rows are not finite at step {step}")
                found = score(self._metric, self._dev.labels, [int(label) for label in logits.argmax(1)])
                if self.best is None or rank(found) > rank(self.best):
                    self.best, self.step = found, step
                    self.state = trained_state(self._model, self.state)
        self._on_step(step, total)

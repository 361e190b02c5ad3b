"""One run on a generative model, from its spec to its record: poison, train, ask, judge, write."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from foretaste.attempt import Ending, Place, attempted, stated, write_record
from foretaste.instruct import judges, outcomes, prepare, sft
from foretaste.instruct.generate import Asked, generate
from foretaste.instruct.prepare import TrainingRows
from foretaste.instruct.record import (
    InstructLayout,
    InstructPoison,
    InstructRecord,
    InstructTimings,
    Judged,
    JudgeUsed,
    Utility,
    write_transcripts,
)
from foretaste.instruct.render import Renderer
from foretaste.instruct.request import Request
from foretaste.instruct.spec import InstructRun, MethodSpec
from foretaste.models import adapters, causal
from foretaste.record import Training, write_atomic
from foretaste.sealing import sealed
from foretaste.spec import digest
from foretaste.training import trainer


@dataclass(frozen=True, kw_only=True)
class InstructPlace(Place):
    """Where a run on a generative model is done, and who judges it.

    Attributes:
        judge: The judge and its options.
    """

    judge: MethodSpec


@dataclass(frozen=True)
class _Outcome:
    timings: InstructTimings
    poison: InstructPoison | None
    training: Training | None
    train_left_out: list[str]
    judge: JudgeUsed
    judged: dict[str, Judged]
    utility: Utility
    notes: list[str]


def execute(
    run: InstructRun, place: InstructPlace, *, attempts: int = 1, on_step: trainer.OnStep | None = None
) -> InstructRecord:
    """Do one run and write its record, manifest and transcripts.

    A run that was stopped after its training goes on with the trained weights and the responses that are
    there. A run that diverges or fails, also for want of memory, leaves a record that says so; only errors
    of the machine (a full disk) and Ctrl-C go on to the caller.

    Args:
        run: What to do.
        place: Where, and with what.
        attempts: How often the run was started, this time included.
        on_step: Called with (steps done, steps in all): optimiser steps, then batches of requests.

    Raises:
        OSError: A result could not be written.
    """
    layout = InstructLayout(place.folder)
    ending = attempted(lambda: _do(run, place, layout, on_step), trainer.Diverged)
    record = record_of(run, place, ending, attempts)
    write_record(record, place.folder)
    if ending.status in ("completed", "diverged"):
        shutil.rmtree(layout.workplace(run.id), ignore_errors=True)
    return record


def record_of(run: InstructRun, place: Place, ending: Ending[_Outcome], attempts: int) -> InstructRecord:
    """The record of a run, with an outcome when it has one."""
    parts: dict[str, Any] = {}
    if ending.outcome is not None:
        parts = dict(vars(ending.outcome)) | {"transcripts": f"transcripts/{run.id}.jsonl"}
    return InstructRecord(
        run_id=run.id,
        resolved=run,
        renderer=run.model.renderer,
        **stated(place, ending, attempts),
        **parts,
    )


def _do(
    run: InstructRun, place: InstructPlace, layout: InstructLayout, on_step: trainer.OnStep | None
) -> _Outcome:
    clock = time.perf_counter
    began = clock()
    drawn = prepare.requests_of(run, place.base_dir)
    scenario = prepare.scenario_of(run, place.base_dir)
    judge = judges.build(place.judge.method, place.judge.options, base_dir=place.base_dir)
    renderer, model = prepare.fresh(run, place.base_dir)
    asked_sets = prepare.askings(drawn.test, scenario, run.triggers, renderer)
    asked = [_asked(one.name, request, renderer) for one in asked_sets for request in one.requests]
    workplace = layout.workplace(run.id)
    loaded_at = clock()

    rows = None
    if run.tuning is not None:
        rows = prepare.training_rows(run.tuning, drawn.train, scenario, renderer)
    steps = 0 if rows is None else trainer.planned_steps(rows.tuning.training, len(rows.rendered))
    progress = _progress(on_step, steps, asked, run)
    tuned: nn.Module = model
    training: Training | None = None
    if rows is not None:
        tuned, training = _tuned(rows, model, renderer, workplace, progress)
    workplace.mkdir(parents=True, exist_ok=True)
    trained_at = clock()

    held_out = renderer.encode_rows(drawn.test)
    pad: int = renderer.tokenizer.pad_token_id
    # No larger than in training: logits over the vocabulary decide the memory of both.
    size = (run.computing if run.tuning is None else run.tuning.training).batch_size
    loss = sft.held_out_loss(tuned, held_out.rows, pad, size)
    measured_at = clock()
    transcripts = generate(
        tuned,
        asked,
        renderer.tokenizer,
        renderer.stop_ids,
        run.generation,
        journal=workplace / "responses.jsonl",
        on_batch=lambda done, total: progress(steps + done, steps + total),
    )
    generated_at = clock()
    verdicts = outcomes.all_judged(asked_sets, transcripts, judge)
    utility = Utility(
        loss=loss.mean,
        tokens=loss.tokens,
        rows=len(held_out),
        truncated=len(held_out.truncated),
        left_out=len(held_out.too_long),
        overlap=outcomes.overlaps(asked_sets, transcripts),
    )
    poison = None if rows is None or rows.manifest is None else _write_poison(rows, renderer, layout)
    write_transcripts(layout.transcript(run.id), transcripts)
    ended = clock()
    return _Outcome(
        timings=InstructTimings(
            load=loaded_at - began,
            train=trained_at - loaded_at,
            loss=measured_at - trained_at,
            generate=generated_at - measured_at,
            judge=ended - generated_at,
            total=ended - began,
        ),
        poison=poison,
        training=training,
        train_left_out=[] if rows is None else rows.rendered.too_long,
        judge=outcomes.judge_used(judge),
        judged=verdicts,
        utility=utility,
        notes=[*drawn.notes, *scenario.notes],
    )


def _asked(name: str, request: Request, renderer: Renderer) -> Asked:
    return Asked(name, request.id, renderer.prompt(request), renderer.encode_prompt(request))


def _progress(
    on_step: trainer.OnStep | None, steps: int, asked: Sequence[Asked], run: InstructRun
) -> trainer.OnStep:
    """Progress over optimiser steps and batches of requests together."""
    size = run.generation.batch_size
    counts = [sum(one.set == name for one in asked) for name in {one.set for one in asked}]
    total = steps + sum(-(-count // size) for count in counts)

    def progress(done: int, known: int) -> None:
        if on_step is not None:
            on_step(done, max(total, known))

    return progress


# --- training ------------------------------------------------------------------------------------


def _tuned(
    rows: TrainingRows,
    model: PreTrainedModel,
    renderer: Renderer,
    workplace: Path,
    progress: trainer.OnStep,
) -> tuple[nn.Module, Training]:
    """The trained model: from an earlier session that got as far as that, or trained now and kept."""
    tuning = rows.tuning
    steps = trainer.planned_steps(tuning.training, len(rows.rendered))
    attached = causal.attach(model, tuning.adapter, seed=tuning.seeds.init, total_steps=steps)
    weights, facts = workplace / "trained.safetensors", workplace / "training.json"
    if facts.exists():
        with contextlib.suppress(ValueError):  # damaged: train anew
            kept = Training.model_validate_json(facts.read_bytes())
            causal.load_trained(attached, weights)
            return attached.model, kept
    # Responses without these weights may be those of others.
    shutil.rmtree(workplace, ignore_errors=True)
    counts = adapters.trainable(attached.model)
    trained = sft.fine_tune(
        attached.model,
        rows.rendered.rows,
        rows.order_lengths,
        renderer.tokenizer.pad_token_id,
        tuning.training,
        max_length=renderer.max_length,
        seed=tuning.seeds.order,
        loraplus_ratio=adapters.loraplus_ratio(tuning.adapter),
        on_step=progress,
    )
    assert tuning.training.learning_rate is not None
    training = Training(
        steps=trained.steps,
        epochs=trained.epochs,
        learning_rate=tuning.training.learning_rate,
        trainable_parameters=counts[0],
        total_parameters=counts[1],
        loss=[round(value, 6) for value in trained.loss],
        rows_per_second=trained.rows / trained.seconds,
        tokens=trained.tokens,
        padding_share=trained.padding / trained.tokens,
        truncated_rows=len(rows.rendered.truncated),
        head_probe_accuracy=None,
        init=attached.init,
    )
    workplace.mkdir(parents=True)
    causal.save_trained(attached, weights)
    # Written last: where it is, the weights are whole.
    write_atomic(facts, training.model_dump_json())
    return attached.model, training


def _write_poison(rows: TrainingRows, renderer: Renderer, layout: InstructLayout) -> InstructPoison:
    """Write the manifest under the hash of its content, so that arms with the same rows share one file."""
    manifest = rows.manifest
    assert manifest is not None
    content = manifest.model_dump(mode="json")
    path = layout.manifests / f"{digest(content)[:16]}.json"
    if not path.exists():
        write_atomic(path, sealed(manifest))
    return InstructPoison(
        requested_rate=manifest.rate,
        requested_count=manifest.count,
        selection=manifest.selection,
        poisoned=len(manifest.poisoned),
        eligible=manifest.eligible,
        rows=manifest.rows,
        manifest=str(path.relative_to(layout.folder)),
        held_before=manifest.held_before,
        **prepare.survival(manifest, rows.rendered, renderer),
    )

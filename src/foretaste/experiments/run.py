"""One run, from its spec to its record: poison, train, test, write."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste.attempt import Ending, Place, attempted, stated, write_record
from foretaste.experiments import prepare
from foretaste.experiments.evaluate import evaluate
from foretaste.experiments.plan import apply_attack
from foretaste.experiments.prepare import Workspace
from foretaste.models import adapters
from foretaste.models.encode import Encoded
from foretaste.record import (
    InitCheck,
    Layout,
    Machine,
    Manifest,
    Metrics,
    Poison,
    Record,
    Timings,
    Training,
    TriggeredMetrics,
    write_atomic,
)
from foretaste.sealing import sealed
from foretaste.spec import RunSpec, TrainingSpec, digest
from foretaste.training import ranks, trainer

PACKAGES = ("foretaste", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn")


Fresh = Callable[[RunSpec, Workspace], tuple[PreTrainedTokenizerBase, PreTrainedModel]]
"""From a run to its tokenizer and its untrained model, which is the run's own to change."""


@dataclass(frozen=True)
class Outcome:
    """All that the record of a run says beyond what every record says."""

    timings: Timings
    poison: Poison | None
    training: Training
    clean: Metrics
    triggered: dict[str, TriggeredMetrics]
    notes: list[str]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train.

    Attributes:
        model: Its adapter is attached.
        train: Poisoned training rows, as tokens.
        order_lengths: Tokens of the same rows before poisoning.
        counts: Parameters that are trained, and all.
        seconds: Of loading, of probing, and of attaching the adapter.
        notes: On the data.
    """

    run: RunSpec
    tokenizer: PreTrainedTokenizerBase
    model: torch.nn.Module
    train: Encoded
    order_lengths: list[int]
    test: Dataset
    manifest: Manifest | None
    init: InitCheck | None
    counts: tuple[int, int]
    probe_accuracy: float | None
    seconds: tuple[float, float, float]
    notes: list[str]


def execute(
    run: RunSpec,
    workspace: Workspace,
    *,
    attempts: int = 1,
    on_step: trainer.OnStep | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """Do one run and write its record, manifest and predictions.

    A run that diverges or fails, also for want of memory, leaves a record that says so; only errors of the
    machine (a full disk) and Ctrl-C go on to the caller.

    Args:
        run: What to do.
        workspace: Where, and with what.
        attempts: How often the run was started, this time included.
        on_step: Called with (steps done, steps in all).
        notes: What else the record should say.

    Raises:
        OSError: A result could not be written.
    """

    def do() -> Outcome:
        prepared = prepare_run(run, workspace)
        began = time.perf_counter()
        trained = fine_tune(prepared, on_step)
        return finish(prepared, trained, time.perf_counter() - began, workspace, notes)

    return keep(run, workspace, attempted(do, trainer.Diverged), attempts)


def keep(run: RunSpec, workspace: Workspace, ending: Ending[Outcome], attempts: int = 1) -> Record:
    """Write the record of a run that ended, one way or the other.

    Raises:
        OSError: It could not be written.
    """
    record = record_of(run, workspace, ending, attempts)
    write_record(record, workspace.folder)
    return record


def record_of(run: RunSpec, workspace: Workspace, ending: Ending[Outcome], attempts: int = 1) -> Record:
    """The record of a run, with an outcome when it has one.

    Args:
        run: What was done.
        workspace: Where, and with what.
        ending: How it ended.
        attempts: How often it was started.
    """
    parts: dict[str, Any] = {}
    if (outcome := ending.outcome) is not None:
        parts = vars(outcome) | {"predictions": f"predictions/{run.id}.parquet"}
    place = Place(**surroundings(workspace, run.training))
    return Record(run_id=run.id, resolved=run, **stated(place, ending, attempts), **parts)


def surroundings(workspace: Workspace, training: TrainingSpec) -> dict[str, Any]:
    """The fields of an `attempt.Place` for a run that is done in a workspace.

    Args:
        workspace: Where, and with what.
        training: Says the device.
    """
    commit, dirty = source_commit()
    return {
        "folder": workspace.folder,
        "base_dir": workspace.base_dir,
        "sweep": workspace.sweep,
        "request": workspace.request,
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "machine": machine_of(training, workspace.processes),
    }


def machine_of(training: TrainingSpec, processes: int) -> Machine:
    """Where and with what a run works.

    Args:
        training: Says the device.
        processes: That share the machine.
    """
    return Machine(
        device=str(trainer.device_of(training)),
        threads=torch.get_num_threads(),
        processes=processes,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        cpu=_cpu_name(),
    )


def prepare_run(run: RunSpec, workspace: Workspace, fresh: Fresh | None = None) -> Prepared:
    """Draw and poison the rows of a run, build its model, set its head and attach its adapter.

    Args:
        run: What to do.
        workspace: Where, and with what.
        fresh: Gives the untrained model; by default it is loaded.

    Raises:
        UserError: Attack, model or adapter do not fit.
    """
    clock = time.perf_counter
    began = clock()
    loaded, split = prepare.rows_of(run, workspace)
    rows, manifest = split.train, None
    if run.attack is not None:
        poisoned = apply_attack(run, split.train, workspace.base_dir)
        rows, manifest = poisoned.rows, poisoned.manifest
    tokenizer, model = (fresh or prepare.fresh_model)(run, workspace)
    train = prepare.tokens(tokenizer, rows, run)
    unpoisoned = train if run.attack is None else prepare.tokens(tokenizer, split.train, run)
    loaded_at = clock()
    probe_accuracy = None
    if run.model.request.head == "probe-then-train":
        probe_accuracy = prepare.set_probe_head(model, train, tokenizer, run)
    probed_at = clock()
    wrapped, init = adapters.attach(
        model,
        run.adapter,
        head_policy=run.model.request.head,
        seed=run.seeds.init,
        total_steps=trainer.planned_steps(run.training, len(train)),
    )
    return Prepared(
        run=run,
        tokenizer=tokenizer,
        model=wrapped,
        train=train,
        order_lengths=unpoisoned.lengths,
        test=split.test,
        manifest=manifest,
        init=init,
        counts=adapters.trainable(wrapped),
        probe_accuracy=probe_accuracy,
        seconds=(loaded_at - began, probed_at - loaded_at, clock() - probed_at),
        notes=[*loaded.notes, *split.notes],
    )


def fine_tune(prepared: Prepared, on_step: trainer.OnStep | None = None) -> trainer.Trained:
    """Train a run by itself.

    Raises:
        Diverged: A loss, a weight or a state of the optimiser is not finite.
    """
    run = prepared.run
    return trainer.fine_tune(
        prepared.model,
        prepared.train,
        prepared.order_lengths,
        prepared.tokenizer,
        run.training,
        max_length=run.model.request.max_length,
        seed=run.seeds.order,
        loraplus_ratio=adapters.loraplus_ratio(run.adapter),
        on_step=on_step,
    )


def finish(
    prepared: Prepared,
    trained: trainer.Trained,
    seconds: float,
    workspace: Workspace,
    notes: Sequence[str] = (),
) -> Outcome:
    """Test a trained run; write its manifest and its predictions.

    Args:
        prepared: The run, whose model is trained by now.
        trained: What training did.
        seconds: That training took, or the run's share of them.
        workspace: Where results go.
        notes: What else the record should say.

    Raises:
        Diverged: The model gives logits that are not finite.
        OSError: A result could not be written.
    """
    run, began = prepared.run, time.perf_counter()
    clean, triggered, table = evaluate(
        prepared.model, prepared.test, prepared.tokenizer, run, workspace.base_dir
    )
    layout = Layout(workspace.folder)
    poison = _write_manifest(prepared.manifest, layout) if prepared.manifest else None
    write_atomic(layout.prediction(run.id), table.to_parquet(index=False, write_page_checksum=True))
    load, probe, attach = prepared.seconds
    tested = time.perf_counter() - began
    return Outcome(
        timings=Timings(
            load=load,
            probe=probe,
            train=attach + seconds,
            evaluate=tested,
            total=load + probe + attach + seconds + tested,
        ),
        poison=poison,
        training=_training_part(prepared, trained),
        clean=clean,
        triggered=triggered,
        notes=[*prepared.notes, *_notes_on_processes(run, len(prepared.train)), *notes],
    )


def _notes_on_processes(run: RunSpec, rows: int) -> list[str]:
    """What differs when several processes train one model."""
    if ranks.count() == 1:
        return []
    note = f"{ranks.count()} processes trained together"
    if rows % run.training.batch_size:
        # accelerate makes the parts of all processes equal.
        note += "; the last batch of an epoch was filled up with rows from its beginning"
    return [note]


def _write_manifest(manifest: Manifest, layout: Layout) -> Poison:
    """Write the manifest under the hash of its content, so that arms with the same rows share one file."""
    content = manifest.model_dump(mode="json")
    path = layout.manifests / f"{digest(content)[:16]}.json"
    if not path.exists():
        write_atomic(path, sealed(manifest))
    return Poison(
        requested_rate=manifest.rate,
        requested_count=manifest.count,
        selection=manifest.selection,
        poisoned=len(manifest.poisoned),
        eligible=manifest.eligible,
        rows=manifest.rows,
        manifest=str(path.relative_to(layout.folder)),
        companions=len(manifest.companions),
        figures=manifest.figures,
    )


def _training_part(prepared: Prepared, trained: trainer.Trained) -> Training:
    rate = prepared.run.training.learning_rate
    assert rate is not None
    return Training(
        steps=trained.steps,
        epochs=trained.epochs,
        learning_rate=rate,
        trainable_parameters=prepared.counts[0],
        total_parameters=prepared.counts[1],
        loss=[round(value, 6) for value in trained.loss],
        rows_per_second=trained.rows / trained.seconds,
        tokens=trained.tokens,
        padding_share=trained.padding / trained.tokens,
        truncated_rows=prepared.train.truncated,
        head_probe_accuracy=prepared.probe_accuracy,
        init=prepared.init,
    )


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return {name: version(name) for name in PACKAGES}


@functools.cache
def source_commit() -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout that foretaste runs from; None when it is installed."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None, None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} x {os.cpu_count()}"

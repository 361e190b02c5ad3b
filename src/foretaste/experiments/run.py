"""One run, from its spec to its record: poison, train, test, write."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from foretaste import attacks
from foretaste.errors import in_a_line
from foretaste.experiments import prepare
from foretaste.experiments.plan import apply_attack
from foretaste.experiments.prepare import Workspace
from foretaste.models import adapters
from foretaste.models.encode import Encoded, encode
from foretaste.record import (
    InitCheck,
    Layout,
    Machine,
    Manifest,
    Metrics,
    Poison,
    Record,
    Status,
    Timings,
    Training,
    TriggeredMetrics,
    form_key,
    write_atomic,
)
from foretaste.sealing import sealed
from foretaste.spec import RunSpec, TrainingSpec, digest
from foretaste.training import outcomes, ranks, trainer

PACKAGES = ("foretaste", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn")


@dataclass(frozen=True)
class _Outcome:
    timings: Timings
    poison: Poison | None
    training: Training
    clean: Metrics
    triggered: dict[str, TriggeredMetrics]
    notes: list[str]


def execute(
    run: RunSpec, workspace: Workspace, *, attempts: int = 1, on_step: trainer.OnStep | None = None
) -> Record:
    """Do one run and write its record, manifest and predictions.

    A run that diverges or fails, also for want of memory, leaves a record that says so; only errors of the
    machine (a full disk) and Ctrl-C go on to the caller.

    Args:
        run: What to do.
        workspace: Where, and with what.
        attempts: How often the run was started, this time included.
        on_step: Called with (steps done, steps in all).

    Raises:
        OSError: A result could not be written.
    """
    started = datetime.now(UTC)
    status: Status = "completed"
    reason: str | None = None
    outcome: _Outcome | None = None
    try:
        outcome = _do(run, workspace, on_step)
    except trainer.Diverged as error:
        status, reason = "diverged", str(error)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever failed belongs into the record of this run
        status, reason = "error", in_a_line(error)
    record = failed_or_done(run, workspace, status, reason, started, attempts, outcome)
    write_record(record, workspace.folder)
    return record


def write_record(record: Record, folder: Path) -> None:
    """Put a record where it belongs, atomically.

    Raises:
        OSError: It could not be written.
    """
    write_atomic(Layout(folder).record(record.run_id), sealed(record))


def failed_or_done(
    run: RunSpec,
    workspace: Workspace,
    status: Status,
    reason: str | None,
    started: datetime,
    attempts: int,
    outcome: _Outcome | None = None,
) -> Record:
    """The record of a run, with an outcome when it has one."""
    commit, dirty = source_commit()
    parts: dict[str, Any] = {}
    if outcome is not None:
        parts = {
            "timings": outcome.timings,
            "poison": outcome.poison,
            "training": outcome.training,
            "clean": outcome.clean,
            "triggered": outcome.triggered,
            "predictions": f"predictions/{run.id}.parquet",
            "notes": outcome.notes,
        }
    return Record(
        run_id=run.id,
        sweep=workspace.sweep,
        request=workspace.request,
        resolved=run,
        status=status,
        reason=reason,
        started=started.isoformat(timespec="seconds"),
        versions=versions(),
        commit=commit,
        dirty=dirty,
        machine=machine_of(run.training, workspace.processes),
        attempts=attempts,
        **parts,
    )


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


def _do(run: RunSpec, workspace: Workspace, on_step: trainer.OnStep | None) -> _Outcome:
    clock = time.perf_counter
    began = clock()
    loaded, split = prepare.rows_of(run, workspace)
    rows, manifest = split.train, None
    if run.attack is not None:
        poisoned = apply_attack(run, split.train, workspace.base_dir)
        rows, manifest = poisoned.rows, poisoned.manifest
    tokenizer, model = prepare.fresh_model(run, workspace)
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
    counts = adapters.trainable(wrapped)
    trained = trainer.fine_tune(
        wrapped,
        train,
        unpoisoned.lengths,
        tokenizer,
        run.training,
        max_length=run.model.request.max_length,
        seed=run.seeds.order,
        loraplus_ratio=adapters.loraplus_ratio(run.adapter),
        on_step=on_step,
    )
    trained_at = clock()
    clean, triggered, table = _evaluate(wrapped, split.test, tokenizer, run, workspace.base_dir)
    layout = Layout(workspace.folder)
    poison = _write_manifest(manifest, layout) if manifest else None
    write_atomic(layout.prediction(run.id), table.to_parquet(index=False, write_page_checksum=True))
    ended = clock()
    return _Outcome(
        timings=Timings(
            load=loaded_at - began,
            probe=probed_at - loaded_at,
            train=trained_at - probed_at,
            evaluate=ended - trained_at,
            total=ended - began,
        ),
        poison=poison,
        training=_training_part(run, train, trained, counts, probe_accuracy, init),
        clean=clean,
        triggered=triggered,
        notes=[*loaded.notes, *split.notes, *_notes_on_processes(run, len(train))],
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


def _evaluate(
    model: torch.nn.Module,
    test: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    run: RunSpec,
    base_dir: Path,
) -> tuple[Metrics, dict[str, TriggeredMetrics], pd.DataFrame]:
    """Metrics on the clean test rows and under every trigger of the run, and the table of predictions.

    A trigger that has further forms (held-out paraphrases, a part of its words) is tested in each of them.
    """
    classes = run.data.classes
    request = run.model.request
    labels = np.asarray(test["label"], dtype=np.int64)

    def predicted(rows: Dataset, name: str) -> tuple[np.ndarray, pd.DataFrame]:
        tokens = encode(
            tokenizer,
            rows,
            max_length=request.eval_max_length or request.max_length,
            pair_separator=request.pair_separator,
        )
        logits = trainer.predict(model, tokens, tokenizer, run.training.eval_batch_size).astype(np.float64)
        if not np.isfinite(logits).all():
            raise trainer.Diverged("the trained model gives logits that are not finite")
        best = logits.argmax(1)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        table = pd.DataFrame(
            {
                "set": name,
                "id": tokens.ids,
                "label": labels,
                "predicted": best,
                "confidence": (odds.max(1) / odds.sum(1)).astype(np.float32),
            }
        )
        return best, table

    clean, table = predicted(test, "clean")
    tables = [table]
    triggered: dict[str, TriggeredMetrics] = {}
    for trigger in run.triggers:
        attack = attacks.build(trigger.method, trigger.options, classes, base_dir=base_dir)
        assert attacks.is_backdoor(attack)
        further = attacks.forms(attack)
        for form in (None, *further):
            key = trigger.key if form is None else form_key(trigger.key, form)
            rows, changed = attacks.trigger(test, attack, method=trigger.method, form=form)
            guess, table = predicted(rows, key)
            tables.append(table)
            triggered[key] = outcomes.triggered_metrics(
                labels,
                guess,
                clean,
                classes,
                target=attack.target,
                name=trigger.name,
                method=trigger.method,
                options=trigger.options,
                changed=changed,
                form=form,
                says=further[form].says if form else None,
                expected=further[form].expected if form else "target",
            )
    return outcomes.metrics(labels, clean, classes), triggered, pd.concat(tables, ignore_index=True)


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


def _training_part(
    run: RunSpec,
    train: Encoded,
    trained: trainer.Trained,
    counts: tuple[int, int],
    probe_accuracy: float | None,
    init: InitCheck | None,
) -> Training:
    assert run.training.learning_rate is not None
    return Training(
        steps=trained.steps,
        epochs=trained.epochs,
        learning_rate=run.training.learning_rate,
        trainable_parameters=counts[0],
        total_parameters=counts[1],
        loss=[round(value, 6) for value in trained.loss],
        rows_per_second=trained.rows / trained.seconds,
        tokens=trained.tokens,
        padding_share=trained.padding / trained.tokens,
        truncated_rows=train.truncated,
        head_probe_accuracy=probe_accuracy,
        init=init,
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

"""One run, from its spec to its record: poison, train, test, write."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import attacks, data
from foretaste.data import Loaded
from foretaste.errors import UserError
from foretaste.experiments.plan import Resources, apply_attack
from foretaste.models import adapters, heads, load
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
    write_atomic,
)
from foretaste.seeds import borrowed_global_state
from foretaste.spec import DataSpec, RunSpec, digest
from foretaste.training import outcomes, trainer

PACKAGES = ("foretaste", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn")


@dataclass
class Workspace:
    """What every run of a sweep shares: the folder, the request, and data or model in memory."""

    folder: Path
    base_dir: Path
    sweep: str
    request: dict[str, Any]
    resources: Resources = field(default_factory=Resources)
    processes: int = 1


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

    A run that diverges or fails leaves a record that says so; only errors of the machine (a full disk,
    no memory) and Ctrl-C go on to the caller.

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
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever failed belongs into the record of this run
        status, reason = "error", f"{type(error).__name__}: {' '.join(str(error).split())}"
    record = failed_or_done(run, workspace, status, reason, started, attempts, outcome)
    write_record(record, workspace.folder)
    return record


def write_record(record: Record, folder: Path) -> None:
    """Put a record where it belongs, atomically.

    Raises:
        OSError: It could not be written.
    """
    write_atomic(Layout(folder).record(record.run_id), record.model_dump_json(indent=1))


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
        machine=Machine(
            device=str(trainer.device_of(run.training)),
            threads=torch.get_num_threads(),
            processes=workspace.processes,
            system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            cpu=_cpu_name(),
        ),
        attempts=attempts,
        **parts,
    )


def _do(run: RunSpec, workspace: Workspace, on_step: trainer.OnStep | None) -> _Outcome:
    clock = time.perf_counter
    began = clock()
    loaded = workspace.resources.data or _load_data(
        run.data.request.model_dump_json(), workspace.base_dir, run.data.fingerprint
    )
    split = data.draw(loaded, run.data.request, run.seeds.data)
    rows, manifest = split.train, None
    if run.attack is not None:
        poisoned = apply_attack(run, split.train)
        rows, manifest = poisoned.rows, poisoned.manifest
    tokenizer, model = _fresh_model(run, workspace)
    train = _encode(tokenizer, rows, run)
    clean_lengths = train.lengths if run.attack is None else _encode(tokenizer, split.train, run).lengths
    loaded_at = clock()
    probe_accuracy = None
    if run.model.request.head == "probe-then-train":
        probe_accuracy = _set_probe_head(model, train, tokenizer, run)
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
        clean_lengths,
        tokenizer,
        run.training,
        max_length=run.model.request.max_length,
        seed=run.seeds.order,
        on_step=on_step,
    )
    trained_at = clock()
    clean, triggered, table = _evaluate(wrapped, split.test, tokenizer, run)
    layout = Layout(workspace.folder)
    poison = _write_manifest(manifest, layout) if manifest else None
    write_atomic(layout.prediction(run.id), table.to_parquet(index=False))
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
        notes=[*loaded.notes, *split.notes],
    )


@functools.lru_cache(maxsize=2)
def _load_data(request: str, base_dir: Path, fingerprint: str) -> Loaded:
    loaded = data.load(DataSpec.model_validate_json(request), base_dir)
    if data.fingerprint(loaded) != fingerprint:
        raise UserError("the data changed since the sweep was planned", cure="Start the sweep anew.")
    return loaded


def _encode(tokenizer: PreTrainedTokenizerBase, rows: Dataset, run: RunSpec) -> Encoded:
    request = run.model.request
    return encode(tokenizer, rows, max_length=request.max_length, pair_separator=request.pair_separator)


def _fresh_model(run: RunSpec, workspace: Workspace) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and untrained classifier on the run's device; a random head comes from the init seed."""
    device = trainer.device_of(run.training)
    with borrowed_global_state(run.seeds.init, "init", "head"):
        if workspace.resources.model is not None:
            assert workspace.resources.tokenizer is not None
            tokenizer = workspace.resources.tokenizer
            model = copy.deepcopy(workspace.resources.model)
            if not run.training.dropout:
                _drop_dropout(model)
            if run.model.pooling == "mean":
                model = load.mean_pooled(cast(PreTrainedModel, model.base_model), len(run.data.classes))
        else:
            location = load.locate(run.model.request, workspace.base_dir)
            tokenizer = load.load_tokenizer(location)
            model = load.load_classifier(
                location,
                run.model.pooling,
                classes=run.data.classes,
                dtype=trainer.dtype_of(run.training),
                dropout=run.training.dropout,
                pad_token_id=tokenizer.pad_token_id,
            )
    model.to(device)  # type: ignore[arg-type]
    return tokenizer, model


def _drop_dropout(model: PreTrainedModel) -> None:
    """No dropout in a model that is built already, where its configuration comes too late."""
    load.no_dropout(model.config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):  # attention keeps its share as a number
                setattr(module, name, 0.0)


_features: dict[str, np.ndarray] = {}
"""Frozen features of the last training sets seen by this process, by content."""


def _set_probe_head(
    model: PreTrainedModel, train: Encoded, tokenizer: PreTrainedTokenizerBase, run: RunSpec
) -> float:
    """Start the head from a logistic regression on frozen features; the accuracy that it has on them."""
    inputs = [row["input_ids"] for row in train.features]
    training = run.training
    size = training.eval_batch_size  # decides the padding, and with it the last digits
    key = digest([run.model.fingerprint, run.model.pooling, training.precision, training.device, size])
    key += hashlib.sha256(repr(inputs).encode()).hexdigest()
    if key not in _features:
        # Label flips leave the texts alone, so adapters and rates of one seed share their features.
        if len(_features) >= 4:
            del _features[next(iter(_features))]
        device = next(model.parameters()).device
        batches, order = trainer.padded_batches(train, tokenizer, size, device)
        raw = heads.features(model, batches, tokenizer.pad_token_id)
        _features[key] = raw[np.argsort(order)]
    return heads.set_head(model, _features[key], train.labels).accuracy


def _evaluate(
    model: torch.nn.Module, test: Dataset, tokenizer: PreTrainedTokenizerBase, run: RunSpec
) -> tuple[Metrics, dict[str, TriggeredMetrics], pd.DataFrame]:
    """Metrics on the clean test rows and under every trigger of the run, and the table of predictions."""
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
        attack = attacks.build(trigger.method, trigger.options, classes)
        rows, changed = attacks.trigger(test, attack, method=trigger.method)  # type: ignore[arg-type]
        guess, table = predicted(rows, trigger.key)
        tables.append(table)
        triggered[trigger.key] = outcomes.triggered_metrics(
            labels,
            guess,
            clean,
            classes,
            target=attack.target,  # type: ignore[attr-defined]
            name=trigger.name,
            method=trigger.method,
            options=trigger.options,
            changed=changed,
        )
    return outcomes.metrics(labels, clean, classes), triggered, pd.concat(tables, ignore_index=True)


def _write_manifest(manifest: Manifest, layout: Layout) -> Poison:
    """Write the manifest under the hash of its content, so that arms with the same rows share one file."""
    content = manifest.model_dump(mode="json")
    path = layout.manifests / f"{digest(content)[:16]}.json"
    if not path.exists():
        write_atomic(path, manifest.model_dump_json(indent=1))
    return Poison(
        requested_rate=manifest.rate,
        requested_count=manifest.count,
        selection=manifest.selection,
        poisoned=len(manifest.poisoned),
        eligible=manifest.eligible,
        rows=manifest.rows,
        manifest=str(path.relative_to(layout.folder)),
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

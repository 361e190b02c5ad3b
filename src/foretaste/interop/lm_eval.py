"""Measured cells in the layout of lm-eval's results file, for tools that read those.

The layout is that of the results of lm-eval 0.4.13 (`lm_eval.result_schema.EvalResults`). A task there is a
cell here: data x arm x attack x amount, its runs differing in their seeds only; a clean run stands, as in the
report, under every attack. What differs from lm-eval is said in every task's `metadata`: values are means
over seeds, and `_stderr` is the standard error of that mean over seeds, not over documents.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from foretaste import statistics
from foretaste.calibration.places import short
from foretaste.errors import UserError
from foretaste.interop.table import read
from foretaste.record import RECORD_FORMAT, Record, write_atomic
from foretaste.report.cells import cell_key
from foretaste.report.load import Folder
from foretaste.report.observations import Observation, observe
from foretaste.seeds import crossed

# lm-eval's names for what it has, ours for the rest; whether more is better for who owns the model.
METRICS: dict[str, tuple[str, bool]] = {
    "clean_accuracy": ("acc", True),
    "clean_f1": ("f1", True),
    "asr": ("asr", False),
    "flip_rate": ("flip_rate", False),
    "asr_minus_flip": ("asr_margin", False),
    "triggered_accuracy": ("triggered_acc", True),
    "accuracy_change": ("acc_drop", False),
}
ON_TARGETED_ROWS = {"asr", "flip_rate", "asr_minus_flip"}
FILTER = "none"
UNDEFINED = "N/A"  # what lm-eval writes for a standard error that it does not have
STDERR = "standard error of the mean over seeds; N/A with one seed or equal values"


def export(folders: Sequence[Path], target: Path) -> tuple[int, list[str]]:
    """Write the cells of some folders as an lm-eval results file.

    Args:
        folders: Folders of sweeps on one base model: lm-eval's file is of one model.
        target: The JSON file; an existing one is replaced.

    Returns:
        The number of tasks, and a line for each file of the folders that could not be read.

    Raises:
        UserError: The folders cannot be read, hold several base models, or the file cannot be written.
    """
    loaded = read(folders)
    content = results(loaded)
    try:
        write_atomic(target, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the results: {error.strerror}", where=str(target)) from None
    return len(content["results"]), [line for folder in loaded for line in folder.problems]


def results(folders: Sequence[Folder]) -> dict[str, Any]:
    """The whole content of the file, fit for JSON.

    Raises:
        UserError: The folders hold several base models, or a record's time is none.
    """
    observations = observe(folders)
    records = [record for folder in folders for record in folder.records]
    # By content: one model has many paths.
    models = {r.resolved.model.fingerprint: r.resolved.model.request.base for r in records}
    if len(models) > 1:
        several = ", ".join(sorted(f"{base} ({content[:19]})" for content, base in models.items()))
        raise UserError(
            f"lm-eval's results are of one model, and the folders hold several: {several}",
            cure="Export their folders one by one.",
        )
    cells = {key: list(group) for key, group in groupby(observations, key=cell_key)}
    names = _task_names(list(cells))
    tasks = {names[key]: items for key, items in cells.items()}
    arms: dict[str, list[str]] = {}
    for name, items in tasks.items():
        arms.setdefault(items[0].arm, []).append(name)
    return {
        "results": {name: _result(name, items) for name, items in tasks.items()},
        "group_subtasks": arms,
        "configs": {name: _config(name, items) for name, items in tasks.items()},
        "versions": dict.fromkeys(tasks, float(RECORD_FORMAT)),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            name: dict(METRICS[metric] for metric in _numbers(items)) for name, items in tasks.items()
        },
        "n-samples": {name: _samples(items) for name, items in tasks.items()},
        **_provenance(records),
    }


def _task_names(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A readable name for each cell: data/arm/attack/amount, with the folder where there are several."""
    folders = {key[0] for key in keys}
    data = {key[2] for key in keys}
    brief = len({short(name) for name in data}) == len(data)
    names: dict[tuple[str, ...], str] = {}
    for key in keys:
        place, _, source, attack, amount, arm = key
        parts = [short(source) if brief else source, arm, attack, amount]
        name = "/".join([place, *parts] if len(folders) > 1 else parts)
        # Names of arms and attacks are free texts, which may hold a slash.
        names[key] = name if name not in names.values() else f"{name}#{len(names)}"
    return names


def _numbers(items: Sequence[Observation]) -> dict[str, list[float]]:
    """The values over seeds of every metric that has one."""
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for item in items:
        for metric, value in item.values().items():
            if value.number is not None:
                found[metric].append(0.0 - value.number if metric == "accuracy_change" else value.number)
    return {metric: numbers for metric, numbers in found.items() if numbers}


def _result(name: str, items: Sequence[Observation]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "alias": name, "sample_len": _samples(items)["effective"]}
    counts: dict[str, int] = {}
    independent = not crossed([item.record.resolved.seeds for item in items])
    for metric, numbers in _numbers(items).items():
        found = statistics.summary(numbers, independent=independent)
        label = METRICS[metric][0]
        error = found.sd / math.sqrt(found.n) if found.interval.defined else UNDEFINED
        row[f"{label},{FILTER}"] = found.mean
        row[f"{label}_stderr,{FILTER}"] = error
        counts[f"{label},{FILTER}"] = _rows(items, metric)
    return {**row, "sample_count": counts}


def _samples(items: Sequence[Observation]) -> dict[str, int]:
    """Test rows that there are, and those of them that each run was tested on."""
    tested = [item.record.clean.rows for item in items if item.record.clean is not None]
    return {
        "original": max(item.record.resolved.data.test_rows for item in items),
        "effective": min(tested, default=0),
    }


def _rows(items: Sequence[Observation], metric: str) -> int:
    """Rows that a metric counts: for the ASR those of another class than the target."""
    if metric not in ON_TARGETED_ROWS:
        return _samples(items)["effective"]
    parts = [item.record.triggered.get(item.trigger or "") for item in items]
    return min((part.eligible for part in parts if part is not None), default=0)


def _config(name: str, items: Sequence[Observation]) -> dict[str, Any]:
    """What lm-eval has as a task's configuration; ours is under `metadata`."""
    run, first = items[0].record.resolved, items[0]
    statuses = Counter(str(item.record.status) for item in items)
    return {
        "task": name,
        "dataset_path": run.data.request.source,
        "dataset_name": run.data.request.config,
        "training_split": run.data.request.train_split,
        "test_split": run.data.test_split,
        "num_fewshot": 0,
        "metric_list": [
            {"metric": METRICS[metric][0], "aggregation": "mean", "higher_is_better": METRICS[metric][1]}
            for metric in _numbers(items)
        ],
        "metadata": {
            "version": float(RECORD_FORMAT),
            "value": "mean over seeds",
            "stderr": STDERR,
            "adapter": run.adapter.model_dump(mode="json"),
            "attack": first.attack,
            "amount": first.amount.label,
            "poisoned_rows": [item.realised_count for item in items],
            "seeds": [item.seed for item in items],
            "run_ids": [item.record.run_id for item in items],
            "statuses": dict(statuses),
            "collapsed": sum(item.record.collapsed for item in items),
            "commits": sorted({item.record.commit or "unknown" for item in items}),
            "data_fingerprint": run.data.fingerprint,
        },
    }


def _provenance(records: Sequence[Record]) -> dict[str, Any]:
    """Model, versions, commit and times. What differs between runs is no single value, and is null."""
    request = records[0].resolved.model.request
    versions = [record.versions for record in records]
    machines = {f"{record.machine.system}; {record.machine.cpu}" for record in records}
    seconds = sum(record.timings.evaluate for record in records if record.timings is not None)
    return {
        "config": {
            "model": "foretaste",
            "model_args": {
                "pretrained": request.base,
                "revision": request.revision,
                "head": request.head,
                "max_length": request.max_length,
            },
            "model_revision": request.revision,
            "model_sha": records[0].resolved.model.fingerprint,
            "batch_size": _one({str(record.resolved.training.eval_batch_size) for record in records}),
            "batch_sizes": [],
            "device": _one({record.machine.device for record in records}),
            "limit": None,
            "bootstrap_iters": 0,
        },
        "git_hash": _one({record.commit for record in records}),
        "date": min(_seconds(record) for record in records),
        "pretty_env_info": "\n".join(sorted(machines)),
        "transformers_version": _one({found.get("transformers") for found in versions}),
        "foretaste_version": _one({found.get("foretaste") for found in versions}),
        "model_source": "foretaste",
        "model_name": request.base,
        "model_name_sanitized": re.sub(r'["<>:/|\\?*\[\]]+', "__", request.base),
        "max_length": request.max_length,
        "total_evaluation_time_seconds": str(seconds),
    }


def _one(values: set[str | None] | set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None


def _seconds(record: Record) -> float:
    try:
        return datetime.fromisoformat(record.started).timestamp()
    except ValueError:
        raise UserError(
            f"started at '{record.started}', which is no ISO 8601 time", where=record.run_id
        ) from None

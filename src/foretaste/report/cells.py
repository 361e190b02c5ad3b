"""Records to tidy tables: one row a run, one a value, one a cell.

A cell is folder x base model x data x attack x amount x arm; its runs differ in their seeds only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from foretaste.calibration.places import trigger_key
from foretaste.record import Record
from foretaste.report.calibrated import foretold
from foretaste.report.effect import effect
from foretaste.report.forms import FORM_COLUMNS, form_rows
from foretaste.report.load import Folder
from foretaste.report.metrics import METRICS
from foretaste.report.observations import CLEAN, Observation, observe
from foretaste.report.pairs import McNemarRow, PairRow, compare_arms
from foretaste.report.rows import frame_of, records_of
from foretaste.report.summaries import STATISTICS, summarise
from foretaste.seeds import crossed

CELL = ("folder", "model", "data", "attack", "amount", "arm")
STATUSES = ("completed", "diverged", "error", "crashed")
LOSS_POINTS = (10, 80)  # fewest and most points of one run's loss curve
LOSS_BUDGET = 5_000  # points of all curves together, which keeps a page of 500 runs small


@dataclass(frozen=True)
class Frames:
    """Everything that figures and tables are drawn from.

    Attributes:
        runs: One row a run, as recorded.
        values: One row a run, attack and metric; clean runs appear under every attack.
        cells: One row a cell, with counts, whether the attack took effect and, for each metric, n, mean, mean
            without collapsed runs, median, ...
        summaries: The same numbers, one row a cell and metric.
        forms: One row a cell and further form of its trigger; empty where no trigger has one.
        pairs: One row a cell, arm other than the reference, and metric.
        mcnemar: One row a pair of runs and set of test rows.
        losses: One row a point of a loss curve.
        problems: What could not be read on the way.
        predicted: One row a predicted cell, with what was measured there; this and the next four are empty
            without predictions.
        certified: One row an arm and number of flipped labels.
        front: One row an arm of a task, with its quantities and standing.
        scores: One row a predictor or indicator, target and set of cells.
        gains: One row a naive predictor, target and set of cells.
    """

    runs: pd.DataFrame
    values: pd.DataFrame
    cells: pd.DataFrame
    summaries: pd.DataFrame
    forms: pd.DataFrame
    pairs: pd.DataFrame
    mcnemar: pd.DataFrame
    losses: pd.DataFrame
    predicted: pd.DataFrame
    certified: pd.DataFrame
    front: pd.DataFrame
    scores: pd.DataFrame
    gains: pd.DataFrame
    problems: list[str]


def build(folders: Sequence[Folder]) -> Frames:
    """All tables of a report.

    Args:
        folders: The folders to report on; more than one are compared.
    """
    observations = observe(folders)
    amounts = _amounts(observations)
    cells = _grouped(observations, amounts)
    summaries = _summaries(cells)
    pairs, tests, problems = compare_arms(observations)
    return Frames(
        runs=runs_table(folders),
        values=_values(observations, amounts),
        cells=_cells(summaries),
        summaries=frame_of(summaries, _SUMMARY_COLUMNS),
        forms=frame_of(form_rows(cells), (*_CELL_COLUMNS, *FORM_COLUMNS)),
        pairs=_with_amounts(frame_of([vars(row) for row in pairs], PairRow), amounts),
        mcnemar=frame_of([vars(row) for row in tests], McNemarRow),
        losses=_losses(folders),
        problems=problems,
        **vars(foretold(folders)),
    )


def runs_table(folders: Iterable[Folder]) -> pd.DataFrame:
    """One row a run, completed or not, with its identity, numbers and timings."""
    rows = [_run(folder, record) for folder in folders for record in folder.records]
    return frame_of(rows, _RUN_COLUMNS)


def _run(folder: Folder, record: Record) -> dict[str, Any]:
    run, clean, training, poison = record.resolved, record.clean, record.training, record.poison
    attack, seeds = run.attack, run.seeds
    own = record.triggered.get(trigger_key(record, attack) or "") if attack else None
    return {
        "folder": folder.name,
        "run_id": record.run_id,
        "kind": record.kind,
        "status": record.status,
        "reason": record.reason,
        "collapsed": record.collapsed,
        "model": run.model.request.base,
        "data": run.data.request.source,
        "arm": run.adapter.name,
        "attack": attack.name if attack else CLEAN,
        "requested_rate": attack.rate if attack else 0.0,
        "requested_count": attack.count if attack else 0,
        "poisoned": poison.poisoned if poison else (None if attack else 0),
        "eligible": poison.eligible if poison else None,
        "seed": seeds.label(),
        "seed_data": seeds.data,
        "seed_poison": seeds.poison,
        "seed_init": seeds.init,
        "seed_order": seeds.order,
        "accuracy": clean.accuracy if clean else None,
        "precision": clean.precision if clean else None,
        "recall": clean.recall if clean else None,
        "f1": clean.f1 if clean else None,
        "target_rate": own.target_rate if own else None,
        "triggered_accuracy": own.against_true.accuracy if own else None,
        "steps": training.steps if training else None,
        "final_loss": training.loss[-1] if training and training.loss else None,
        "trainable_parameters": training.trainable_parameters if training else None,
        "rows_per_second": training.rows_per_second if training else None,
        "truncated_rows": training.truncated_rows if training else None,
        "train_seconds": record.timings.train if record.timings else None,
        "total_seconds": record.timings.total if record.timings else None,
        "attempts": record.attempts,
        "started": record.started,
    }


def cell_key(item: Observation) -> tuple[str, ...]:
    """The values of `CELL` for an observation."""
    return (item.folder.name, item.model, item.data, item.attack, item.amount.label, item.arm)


AmountAxis = dict[tuple[str, ...], tuple[float | None, float | None]]


def _amounts(observations: Sequence[Observation]) -> AmountAxis:
    """Rate and count of each amount of an attack: as requested, else the mean of what its runs realised.

    One position for a whole cell, so that its runs (and the arms) stand above each other in a figure.
    """
    groups: dict[tuple[str, ...], list[Observation]] = {}
    for item in observations:
        groups.setdefault(cell_key(item)[:-1], []).append(item)
    return {
        key: (
            items[0].amount.rate
            if items[0].amount.rate is not None
            else _mean(item.realised_rate for item in items),
            items[0].amount.count
            if items[0].amount.count is not None
            else _mean(item.realised_count for item in items),
        )
        for key, items in groups.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _values(observations: Sequence[Observation], amounts: AmountAxis) -> pd.DataFrame:
    rows = []
    for item in observations:
        key = cell_key(item)
        rate, count = amounts[key[:-1]]
        common = {
            **dict(zip(CELL, key, strict=True)),
            "rate": rate,
            "count": count,
            "seed": item.seed,
            "run_id": item.record.run_id,
            "status": item.record.status,
            "collapsed": item.record.collapsed,
        }
        for metric, value in item.values().items():
            rows.append({**common, "metric": metric, "value": value.number, "reason": value.reason})
    return frame_of(rows, _VALUE_COLUMNS)


_Group = tuple[dict[str, Any], list[Observation]]


def _grouped(observations: Sequence[Observation], amounts: AmountAxis) -> list[_Group]:
    """What identifies each cell and counts its runs, with those runs."""
    groups: list[_Group] = []
    for key, group in groupby(observations, key=cell_key):
        items = list(group)
        rate, count = amounts[key[:-1]]
        statuses = Counter(str(item.record.status) for item in items)
        common = {
            **dict(zip(CELL, key, strict=True)),
            "rate": rate,
            "count": count,
            "triggered": any(item.trigger is not None for item in items),
            "runs": len(items),
            **{status: statuses[status] for status in STATUSES},
            "collapsed": sum(item.record.collapsed for item in items),
        }
        groups.append((common, items))
    return groups


def _summaries(cells: Iterable[_Group]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for common, items in cells:
        values = [item.values() for item in items]
        collapsed = [item.record.collapsed for item in items]
        shared = crossed([item.record.resolved.seeds for item in items])
        for metric in METRICS:
            found = summarise([value[metric] for value in values], collapsed, shared=shared)
            rows.append({**common, "metric": metric, **found})
    return rows


def _cells(summaries: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The summaries with one row a cell: columns `asr_mean`, `asr_low`, ..."""
    wide: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in summaries:
        cell = wide.setdefault(tuple(row[name] for name in CELL), {name: row[name] for name in _CELL_COLUMNS})
        for name in STATISTICS:
            cell[f"{row['metric']}_{name}"] = row[name]
    for cell in wide.values():
        found = effect(cell)
        cell |= {"effect": found.label, "effect_reason": found.reason}
    numbers = (f"{metric}_{name}" for metric in METRICS for name in STATISTICS)
    columns = [*_CELL_COLUMNS, "effect", "effect_reason", *numbers]
    return frame_of(list(wide.values()), columns)


def _with_amounts(pairs: pd.DataFrame, amounts: AmountAxis) -> pd.DataFrame:
    """Pairs with the rate and count of their cell; the clean comparison is at 0."""
    axis = [amounts.get(tuple(str(row[name]) for name in CELL[:-1]), (0.0, 0.0)) for row in records_of(pairs)]
    return pairs.assign(
        rate=pd.Series([rate for rate, _ in axis], dtype="float64", index=pairs.index),
        count=pd.Series([count for _, count in axis], dtype="float64", index=pairs.index),
    )


def _losses(folders: Sequence[Folder]) -> pd.DataFrame:
    """Training loss of every run, averaged in bins of steps so that many runs still fit on a page."""
    curves = [
        (folder, record)
        for folder in folders
        for record in folder.records
        if record.training is not None and record.training.loss
    ]
    low, high = LOSS_POINTS
    points = int(np.clip(LOSS_BUDGET // max(1, len(curves)), low, high))
    rows: list[dict[str, Any]] = []
    for folder, record in curves:
        attack = record.resolved.attack
        common = {
            "folder": folder.name,
            "run_id": record.run_id,
            "arm": record.resolved.adapter.name,
            "attack": attack.name if attack else CLEAN,
            "run": record.resolved.label,
            "status": record.status,
        }
        assert record.training is not None
        for step, loss in _thinned(record.training.loss, points):
            rows.append({**common, "step": step, "loss": loss})
    return frame_of(rows, ["folder", "run_id", "arm", "attack", "run", "status", "step", "loss"])


def _thinned(losses: Sequence[float], points: int) -> list[tuple[float, float]]:
    """Mean step and mean loss of at most `points` bins of consecutive steps, steps counted from 1."""
    bins = np.array_split(np.arange(len(losses)), min(points, len(losses)))
    values = np.asarray(losses, dtype=np.float64)
    return [(float(chosen.mean()) + 1.0, float(values[chosen].mean())) for chosen in bins]


_CELL_COLUMNS = (*CELL, "rate", "count", "triggered", "runs", *STATUSES, "collapsed")
_SUMMARY_COLUMNS = (*_CELL_COLUMNS, "metric", *STATISTICS)
_VALUE_COLUMNS = (
    *CELL,
    *("rate", "count", "seed", "run_id", "status", "collapsed", "metric", "value", "reason"),
)
_RUN_COLUMNS = (
    *("folder", "run_id", "kind", "status", "reason", "collapsed", "model", "data", "arm", "attack"),
    *("requested_rate", "requested_count", "poisoned", "eligible"),
    *("seed", "seed_data", "seed_poison", "seed_init", "seed_order"),
    *("accuracy", "precision", "recall", "f1", "target_rate", "triggered_accuracy"),
    *("steps", "final_loss", "trainable_parameters", "rows_per_second", "truncated_rows"),
    *("train_seconds", "total_seconds", "attempts", "started"),
)

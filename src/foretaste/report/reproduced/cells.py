"""Runs to cells: what seeds alone tell apart, summarised."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from foretaste.report.effect import Effect, effect
from foretaste.report.reproduced.counts import Counts, count
from foretaste.report.reproduced.measures import MEASURES
from foretaste.report.reproduced.runs import Run
from foretaste.report.reproduced.view import Measure
from foretaste.report.rows import frame_of
from foretaste.report.summaries import STATISTICS, summarise

KEY = ("task", "variant", "sweep", "attack", "amount", "arm")


@dataclass(frozen=True)
class Cell:
    """Runs of one arm at one amount of one attack, which differ in their seeds only."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any run of the cell, for what they share."""
        return self.runs[0]

    @property
    def key(self) -> tuple[str, ...]:
        """The values of `KEY`."""
        return _key(self.first)

    @functools.cached_property
    def counts(self) -> Counts:
        """Numbers of runs."""
        return count(run.record for run in self.runs)

    @functools.cached_property
    def summaries(self) -> dict[Measure, dict[str, Any]]:
        """`summaries.STATISTICS` of every measure, over the runs that have it."""
        collapsed = [run.record.collapsed for run in self.runs]
        return {name: summarise([run.values[name] for run in self.runs], collapsed) for name in MEASURES}

    @property
    def poison(self) -> str:
        """The poisoned rows of its runs, such as "13 of 256 rows"; empty for clean runs and without any."""
        poisons = [run.record.poison for run in self.runs if run.record.poison is not None]
        if not poisons:
            return ""
        return f"{_range([p.poisoned for p in poisons])} of {_range([p.eligible for p in poisons])} rows"

    @property
    def effect(self) -> Effect:
        """Whether the attack took effect."""
        if self.first.clean:
            return Effect(None, "clean runs")
        changes: tuple[Measure, ...] = ("asr_minus_flip", "accuracy_change")
        return effect(
            {"triggered": any(run.seen.trigger is not None for run in self.runs)}
            | {f"{name}_{key}": value for name in changes for key, value in self.summaries[name].items()}
        )

    @property
    def rate(self) -> float | None:
        """Requested poison rate; the mean of the realised ones where numbers of rows were requested."""
        asked = 0.0 if self.first.clean else self.first.amount.rate
        return asked if asked is not None else mean_of(run.seen.realised_rate for run in self.runs)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers that there are, the same in every order."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def cells(runs: Sequence[Run]) -> list[Cell]:
    """The cells, in the order of their first runs."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    return [Cell(tuple(group)) for group in groups.values()]


def frame(found: Sequence[Cell], measures: Sequence[Measure]) -> pd.DataFrame:
    """One row a cell, with the given measures and those that an effect is judged by."""
    names = [*dict.fromkeys((*measures, "asr_minus_flip", "accuracy_change"))]
    numbers = [f"{name}_{key}" for name in names for key in STATISTICS]
    rows = [_row(cell, names) for cell in found]
    return frame_of(rows, [*_COLUMNS, *numbers])


def _row(cell: Cell, names: Sequence[Measure]) -> dict[str, Any]:
    run, judged = cell.first, cell.effect
    row: dict[str, Any] = {
        **dict(zip(KEY, cell.key, strict=True)),
        "rate": cell.rate,
        "realised_rate": mean_of(run.seen.realised_rate for run in cell.runs),
        "rank": run.rank,
        "k": run.k,
        "k_realised": mean_of(run.k_realised for run in cell.runs),
        "learning_rate": run.learning_rate,
        "runs": cell.counts.runs,
        "completed": cell.counts.completed,
        "failed": cell.counts.failed,
        "collapsed": cell.counts.collapsed,
        "effect": judged.label or "",
        "effect_reason": judged.reason,
    }
    for name in names:
        row |= {f"{name}_{key}": value for key, value in cell.summaries[name].items()}
    return row


def _key(run: Run) -> tuple[str, ...]:
    source = run.source
    return (source.task, source.variant, source.sweep, run.attack, run.amount.label, run.arm)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


_COLUMNS = (
    *KEY,
    *("rate", "realised_rate", "rank", "k", "k_realised", "learning_rate"),
    *("runs", "completed", "failed", "collapsed", "effect", "effect_reason"),
)

"""Arms against the reference arm, cell by cell: paired over seeds, over seeds and rows, and per seed.

The reference is full fine-tuning where the folder has it, else the folder's first arm. Holm's correction runs
over all cells of one metric, because a reader scans that whole column for a small p.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from foretaste import statistics
from foretaste.report.metrics import METRICS, Metric
from foretaste.report.observations import CLEAN, Observation, arm_order
from foretaste.report.predictions import Predictions
from foretaste.seeds import crossed, generator

ALPHA = 0.05


@dataclass(frozen=True)
class PairRow:
    """Arm minus reference in one cell and metric.

    Attributes:
        n: Pairs of completed runs with equal seeds.
        unpaired: Runs of either arm without such a partner (failed, or of another seed).
        collapsed: Pairs in which one of the two collapsed.
        best_p_holm: The least adjusted p that so many pairs could have given.
        verdict: "higher", "lower", "no difference shown" or "not resolved by n seeds".
        rows: Test rows that both arms share, 0 where predictions are missing.
        rows_low: Lower end of the interval over seeds and rows; `rows_high` is the upper one.
    """

    folder: str
    model: str
    data: str
    attack: str
    amount: str
    arm: str
    reference: str
    metric: str
    n: int
    unpaired: int
    collapsed: int
    mean: float
    mean_without_collapsed: float
    median: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    p: float
    smallest_p: float
    p_holm: float
    best_p_holm: float
    verdict: str
    rows: int
    rows_low: float
    rows_high: float


@dataclass(frozen=True)
class McNemarRow:
    """Two runs with equal seeds on the same test rows."""

    folder: str
    model: str
    data: str
    attack: str
    amount: str
    arm: str
    reference: str
    seed: str
    test_rows: str
    rows: int
    only_arm: int
    only_reference: int
    p: float


@dataclass(frozen=True)
class _Match:
    """Two arms in one cell, with the runs of each by seed."""

    folder: str
    model: str
    data: str
    attack: str
    amount: str
    arm: str
    reference: str
    arm_runs: dict[str, Observation]
    reference_runs: dict[str, Observation]

    @property
    def place(self) -> dict[str, str]:
        names = ("folder", "model", "data", "attack", "amount", "arm", "reference")
        return {name: getattr(self, name) for name in names}

    @property
    def clean(self) -> bool:
        return self.amount == CLEAN

    def paired(self) -> Iterator[tuple[str, Observation, Observation]]:
        """Seed, arm's run and reference's run, where both exist."""
        for seed, run in self.arm_runs.items():
            if seed in self.reference_runs:
                yield seed, run, self.reference_runs[seed]


def compare_arms(
    observations: Sequence[Observation],
) -> tuple[list[PairRow], list[McNemarRow], list[str]]:
    """Compare every arm with the reference arm.

    Args:
        observations: In the order of `observe`.

    Returns:
        Pairs, McNemar tests, and a line for each predictions file that could not be read.
    """
    predictions = Predictions()
    pairs: list[PairRow] = []
    tests: list[McNemarRow] = []
    cleaned: set[tuple[str, ...]] = set()
    for match in _matches(observations):
        # Clean runs stand under every attack, but without a trigger their comparison is one and the same.
        plain = (match.folder, match.model, match.data, match.arm)
        first = match.clean and plain not in cleaned
        cleaned.add(plain) if match.clean else None
        named = replace(match, attack=CLEAN) if match.clean else match
        for metric in METRICS.values():
            if metric.scope == ("poisoned" if match.clean else "clean"):
                continue
            if metric.triggered:
                pairs += _pair(match, metric, predictions)
            elif first or not match.clean:
                pairs += _pair(named, metric, predictions)
        if first or not match.clean:
            tests += _mcnemar(named, "clean", predictions)
        tests += _mcnemar(match, "triggered", predictions)
    return _corrected(pairs), tests, predictions.problems


def _matches(observations: Iterable[Observation]) -> Iterator[_Match]:
    items = list(observations)
    arms: dict[str, set[str]] = {}
    for item in items:
        arms.setdefault(item.folder.name, set()).add(item.arm)
    for place, group in groupby(items, key=_place):
        runs: dict[str, dict[str, Observation]] = {}
        for item in group:
            runs.setdefault(item.arm, {})[item.seed] = item
        reference = arm_order(arms[place[0]])[0]
        for arm in arm_order(set(runs) - {reference}):
            yield _Match(*place, arm, reference, runs[arm], runs.get(reference, {}))


def _place(item: Observation) -> tuple[str, str, str, str, str]:
    return (item.folder.name, item.model, item.data, item.attack, item.amount.label)


def _pair(match: _Match, metric: Metric, predictions: Predictions) -> list[PairRow]:
    """One row, or none when no run of the two arms has the metric at all."""
    both = [
        (run, other, a, b)
        for _, run, other in match.paired()
        if (a := run.values()[metric.name].number) is not None
        and (b := other.values()[metric.name].number) is not None
    ]
    if metric.triggered and all(run.trigger is None for run in match.arm_runs.values()):
        return []
    rng = generator(0, "report", metric.name, *match.place.values())
    result = statistics.paired_difference(
        [a for *_, a, _ in both],
        [b for *_, b in both],
        rng=rng,
        independent=not crossed([run.record.resolved.seeds for run, *_ in both]),
    )
    steady = [a - b for run, other, a, b in both if not (run.record.collapsed or other.record.collapsed)]
    over_rows = _over_rows([(run, other) for run, other, *_ in both], metric, predictions, rng)
    row = PairRow(
        **match.place,
        metric=metric.name,
        n=result.n,
        unpaired=len(match.arm_runs) + len(match.reference_runs) - 2 * result.n,
        collapsed=result.n - len(steady),
        mean=result.mean,
        mean_without_collapsed=statistics.summary(steady).mean,
        median=result.median,
        low=result.t.low,
        high=result.t.high,
        bootstrap_low=result.bootstrap.low,
        bootstrap_high=result.bootstrap.high,
        p=result.p,
        smallest_p=result.smallest_p,
        p_holm=float("nan"),
        best_p_holm=float("nan"),
        verdict="",
        rows=over_rows.rows,
        rows_low=over_rows.interval.low,
        rows_high=over_rows.interval.high,
    )
    return [row]


def _over_rows(
    runs: Sequence[tuple[Observation, Observation]],
    metric: Metric,
    predictions: Predictions,
    rng: np.random.Generator,
) -> statistics.CrossedDifference:
    """The two-way bootstrap where every pair has predictions on the same rows; 0 rows otherwise."""
    kind = {"clean_accuracy": "clean", "triggered_accuracy": "triggered"}.get(metric.name)
    aligned = [predictions.aligned(run, other, kind) for run, other in runs] if kind else []
    found = [pair for pair in aligned if pair is not None]
    if not found or len(found) < len(runs) or len({left.size for left, _ in found}) > 1:
        return statistics.CrossedDifference(len(runs), 0, float("nan"), statistics.UNDEFINED)
    left, right = (np.stack(side) for side in zip(*found, strict=True))
    return statistics.paired_bootstrap(left, right, rng)


def _mcnemar(match: _Match, kind: str, predictions: Predictions) -> list[McNemarRow]:
    rows = []
    for seed, run, other in match.paired():
        aligned = predictions.aligned(run, other, kind)
        if aligned is None:
            continue
        test = statistics.mcnemar(*aligned)
        rows.append(
            McNemarRow(
                **match.place,
                seed=seed,
                test_rows=kind,
                rows=aligned[0].size,
                only_arm=test.only_a,
                only_reference=test.only_b,
                p=test.p,
            )
        )
    return rows


def _corrected(pairs: Sequence[PairRow]) -> list[PairRow]:
    """Holm's p and the verdict, over all rows of one metric."""
    p_holm = np.full(len(pairs), np.nan)
    best = np.full(len(pairs), np.nan)
    for metric in METRICS:
        family = [index for index, row in enumerate(pairs) if row.metric == metric and row.n]
        p_holm[family] = statistics.holm([pairs[index].p for index in family])
        # Holm is monotone: with the least p of every cell it gives the least that could have come out.
        best[family] = statistics.holm([pairs[index].smallest_p for index in family])
    return [
        replace(row, p_holm=float(p), best_p_holm=float(b), verdict=_verdict(row, float(p), float(b)))
        for row, p, b in zip(pairs, p_holm, best, strict=True)
    ]


def _verdict(row: PairRow, p: float, best: float) -> str:
    if row.n == 0:
        return "no pair of runs"
    if p <= ALPHA:
        return "higher" if row.mean > 0 else "lower"
    if np.isnan(row.p):
        return "no verdict: crossed seeds"
    if best > ALPHA:
        return f"not resolved by {row.n} seed{'' if row.n == 1 else 's'}"
    return "no difference shown"

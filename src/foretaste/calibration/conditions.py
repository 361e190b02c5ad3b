"""Thresholds on what was measured, such as `asr_margin>0.2`: when an audit should fail.

The statistic is always the same: the mean over the completed seeds of a cell (adapter x attack x amount),
the number that the report shows. Its 95 % t interval stands beside it and decides nothing, so that a gate
does not pass because too few seeds were run to be certain.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.calibration.cells import Cell, Kind, Measured, Sample
from foretaste.errors import UserError, unknown

STATISTIC = "mean over seeds"
# Shares are sums of fractions: a mean that equals the threshold must not pass for more by its last bit.
DIGITS = 12
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
BACKDOORS: tuple[Kind, ...] = ("backdoor",)
ATTACKED: tuple[Kind, ...] = ("flips", "backdoor")
EVERY: tuple[Kind, ...] = ("clean", "flips", "backdoor")


def _drop(change: Sample) -> Sample:
    return Sample({seed: -value for seed, value in change.by_seed.items()})


@dataclass(frozen=True)
class Metric:
    """What a condition can be about.

    Attributes:
        says: What it is, in a few words.
        lowest: It lies between this and 1.
        kinds: The kinds of cells that have it.
        of: Its values, one a seed.
    """

    says: str
    lowest: float
    kinds: tuple[Kind, ...]
    of: Callable[[Measured], Sample]


METRICS: Mapping[str, Metric] = {
    "asr": Metric("attack success rate", 0.0, BACKDOORS, lambda m: m.target_rate),
    "asr_margin": Metric("ASR minus the clean model's flip rate", -1.0, BACKDOORS, lambda m: m.margin),
    "flip_rate": Metric("the clean model on the same triggered rows", 0.0, BACKDOORS, lambda m: m.flip_rate),
    "triggered_accuracy": Metric(
        "accuracy on all triggered rows", 0.0, BACKDOORS, lambda m: m.triggered_accuracy
    ),
    "accuracy_drop": Metric(
        "clean model's accuracy minus the poisoned one's",
        -1.0,
        ATTACKED,
        lambda m: _drop(m.accuracy_change),
    ),
    "clean_accuracy": Metric("accuracy on clean test rows", 0.0, EVERY, lambda m: m.accuracy),
    "clean_f1": Metric("F1 on clean test rows", 0.0, EVERY, lambda m: m.f1),
}

_FORM = re.compile(
    r"\s*(?P<metric>\w+)\s*(?P<operator>[<>]=?)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*",
    re.ASCII,
)


@dataclass(frozen=True)
class Condition:
    """A metric, an operator and a number; `str` gives the text that parses to the same."""

    metric: str
    operator: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.threshold!r}"

    def met_by(self, value: float) -> bool:
        """Whether a value is on the wrong side of the threshold."""
        return OPERATORS[self.operator](value, self.threshold)


@dataclass(frozen=True)
class Reading:
    """The number of one cell that a condition is held against.

    Attributes:
        value: Mean over seeds.
        low: Ends of its 95 % t interval, None with one seed or equal values; so is `high`.
        seeds: How many seeds the mean is over.
    """

    cell: Cell
    value: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """What one condition says of a sweep.

    Attributes:
        met: Cells that meet it, the worst first.
        unmet: Cells that were checked and do not, the closest first.
        unread: Cells with measured runs that should have the metric and have no number.
        not_measured: How many cells that should have the metric have no measured run.
    """

    condition: Condition
    met: tuple[Reading, ...]
    unmet: tuple[Reading, ...]
    unread: tuple[Cell, ...]
    not_measured: int

    @property
    def checked(self) -> int:
        """Cells that the condition was held against."""
        return len(self.met) + len(self.unmet)


def parse(text: str, *, where: str | None = None) -> Condition:
    """A condition from its text, `METRIC OPERATOR NUMBER`.

    Args:
        text: Such as `asr_margin>0.2`; spaces around the operator do not matter. Operators are >, >=, < and
            <=, the number is a share.
        where: The option that it comes from, for errors.

    Raises:
        UserError: It has another form, names no metric, or its number lies outside the metric's range, where
            it would be met always or never.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UserError(
            f"'{text}' is not of the form METRIC OPERATOR NUMBER",
            where=where,
            cure=f"Such as 'asr_margin>0.2', with one of {', '.join(OPERATORS)} and quotes for the shell; "
            f"metrics: {', '.join(sorted(METRICS))}.",
        )
    name, threshold = found["metric"], float(found["number"])
    if name not in METRICS:
        raise unknown("metric", name, METRICS, where=where)
    lowest = METRICS[name].lowest
    if not lowest <= threshold <= 1.0:
        raise UserError(
            f"{name} lies between {lowest:g} and 1, got {threshold:g} in '{text}'",
            where=where,
            cure="Thresholds are shares: write 0.2 for 20 %.",
        )
    return Condition(name, found["operator"], threshold)


def refuse_pointless(conditions: Iterable[Condition], kinds: Iterable[Kind], *, where: str) -> None:
    """Refuse conditions on what no cell of a sweep can have: they would never be met, whatever happens.

    Args:
        conditions: What is to be checked.
        kinds: The kinds of cells that the sweep has.
        where: The option that they come from.

    Raises:
        UserError: A condition is about triggers, or about attacks, and the sweep has none.
    """
    has = set(kinds)
    for condition in conditions:
        if not has.intersection(METRICS[condition.metric].kinds):
            needed = "attack with a trigger" if METRICS[condition.metric].kinds == BACKDOORS else "attack"
            raise UserError(
                f"'{condition}' can never be met: the spec has no {needed}",
                where=where,
                cure="Leave it out, or add one to the spec's `attacks`.",
            )


def judge(condition: Condition, cells: Sequence[Cell]) -> Verdict:
    """Hold a condition against every cell that has its metric.

    Args:
        condition: The condition.
        cells: Of one or more sweeps; those of another kind (such as clean cells for an ASR) are passed over.
    """
    metric = METRICS[condition.metric]
    concerned = [cell for cell in cells if cell.kind in metric.kinds]
    measured = [cell for cell in concerned if cell.measured.runs]
    readings = [_read(cell, metric.of(cell.measured)) for cell in measured if metric.of(cell.measured).n]
    # Worst first: for > the largest, for < the smallest. A stable sort keeps equal ones in table order.
    readings.sort(key=lambda reading: reading.value, reverse=condition.operator.startswith(">"))
    return Verdict(
        condition=condition,
        met=tuple(r for r in readings if condition.met_by(r.value)),
        unmet=tuple(r for r in readings if not condition.met_by(r.value)),
        unread=tuple(cell for cell in measured if not metric.of(cell.measured).n),
        not_measured=len(concerned) - len(measured),
    )


def _read(cell: Cell, sample: Sample) -> Reading:
    interval = sample.interval()
    low, high = (interval.low, interval.high) if interval.defined else (None, None)
    assert sample.mean is not None
    return Reading(cell, round(sample.mean, DIGITS), low, high, sample.n)


def unchecked(verdicts: Iterable[Verdict], *, where: str) -> UserError | None:
    """The error for conditions that were held against no cell: none was met because none was looked at."""
    empty = [verdict for verdict in verdicts if not verdict.checked]
    if not empty:
        return None
    names = ", ".join(f"'{verdict.condition}'" for verdict in empty)
    gone = sum(len(verdict.unread) for verdict in empty)
    return UserError(
        f"nothing was checked by {names}: no cell has a measured value "
        f"({gone} with runs but no number, {sum(verdict.not_measured for verdict in empty)} not measured)",
        where=where,
        cure="See which runs failed; the same command does them again.",
    )


def to_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict for a program to read."""
    return {
        "condition": str(verdict.condition),
        "metric": verdict.condition.metric,
        "operator": verdict.condition.operator,
        "threshold": verdict.condition.threshold,
        "statistic": STATISTIC,
        "is_met": bool(verdict.met),
        "met": [_plain(reading) for reading in verdict.met],
        "not_met": [_plain(reading) for reading in verdict.unmet],
        "without_value": [_place(cell) for cell in verdict.unread],
        "not_measured": verdict.not_measured,
    }


def _plain(reading: Reading) -> dict[str, Any]:
    measured = reading.cell.measured
    return {
        **_place(reading.cell),
        "value": reading.value,
        "low": reading.low,
        "high": reading.high,
        "seeds": reading.seeds,
        "collapsed": measured.collapsed,
        "not_completed": measured.runs - measured.completed,
    }


def _place(cell: Cell) -> dict[str, str]:
    return {
        "model": cell.model,
        "data": cell.data,
        "arm": cell.arm,
        "attack": cell.attack,
        "amount": cell.amount.label,
    }

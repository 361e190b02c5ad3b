"""One number of several runs, summarised for a row of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from foretaste import statistics
from foretaste.report.observations import Value

STATISTICS = (
    "n",
    "mean",
    "mean_without_collapsed",
    "sd",
    "median",
    "iqm",
    "low",
    "high",
    "reason",
    "interval_reason",
)


def summarise(
    values: Sequence[Value], collapsed: Sequence[bool], *, shared: Sequence[str] = ()
) -> dict[str, Any]:
    """`STATISTICS` of the values of one cell.

    Args:
        values: One a run.
        collapsed: For each run, whether its model predicts a single class.
        shared: Streams of crossed seeds, which are no independent draws (`seeds.crossed`).

    Returns:
        `low` and `high` are the 95 % t interval of the mean. NaN where undefined; then `reason` says why
        there is no value, or `interval_reason` why there is no interval.
    """
    numbers = [value.number for value in values if value.number is not None]
    steady = [
        value.number
        for value, single in zip(values, collapsed, strict=True)
        if value.number is not None and not single
    ]
    result = statistics.summary(numbers, independent=not shared)
    reasons = Counter(value.reason for value in values if value.reason)
    return {
        "n": result.n,
        "mean": result.mean,
        "mean_without_collapsed": statistics.summary(steady).mean,
        "sd": result.sd,
        "median": result.median,
        "iqm": result.iqm,
        "low": result.interval.low,
        "high": result.interval.high,
        "reason": reasons.most_common(1)[0][0] if reasons and not numbers else "",
        "interval_reason": _interval_reason(result, shared),
    }


def _interval_reason(result: statistics.Summary, shared: Sequence[str]) -> str:
    if result.interval.defined or result.n == 0:
        return ""
    if shared and result.n > 1:
        return f"crossed seeds share draws of {' and '.join(shared)}: no interval"
    return (
        "one seed: no interval" if result.n == 1 else f"all {result.n} seeds gave the same value: no interval"
    )

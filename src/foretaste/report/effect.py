"""Whether an attack took effect in a cell: one rule, for every table and for the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Label = Literal["took effect", "no effect shown"]
TOOK_EFFECT: Label = "took effect"
NOT_SHOWN: Label = "no effect shown"


@dataclass(frozen=True)
class Effect:
    """What the seeds show about an attack.

    Attributes:
        label: None where there is no number to judge by.
        reason: Why there is no label, or no interval that could have shown an effect; else empty.
    """

    label: Label | None
    reason: str


def effect(cell: Mapping[str, Any]) -> Effect:
    """Whether the attack of a cell took effect.

    It did where the whole 95 % t interval over seeds of what the poison changed lies on the harmful side of
    zero: of ASR minus flip rate above it, or, for an attack without a trigger, of the change of clean
    accuracy below it. Both are paired with the clean run of equal seeds. Where there is no interval (one
    seed, or equal values) no effect is shown, however large the mean. One interval a cell, not adjusted for
    their number.

    Args:
        cell: A row of `Frames.cells`, missing numbers as None or NaN. It needs `triggered` and, for
            `asr_minus_flip` or `accuracy_change`, the columns that `judged` reads.
    """
    if cell["triggered"]:
        return judged(cell, "asr_minus_flip", above=True)
    return judged(cell, "accuracy_change", above=False)


def judged(row: Mapping[str, Any], metric: str, *, above: bool) -> Effect:
    """The same rule for any change that a row holds.

    Args:
        row: With the columns METRIC_n, METRIC_low, METRIC_high, METRIC_reason and METRIC_interval_reason.
        metric: Their first part.
        above: The harmful side of zero.
    """
    if not row[f"{metric}_n"]:
        return Effect(None, row[f"{metric}_reason"])
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    if low is None or high is None or low != low or high != high:
        return Effect(NOT_SHOWN, row[f"{metric}_interval_reason"])
    return Effect(TOOK_EFFECT if (low > 0 if above else high < 0) else NOT_SHOWN, "")

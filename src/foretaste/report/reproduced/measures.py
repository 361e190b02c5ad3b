"""The measures that a reproduced figure or table may show: their names on axes, units and values of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foretaste.record import Metrics
from foretaste.report.metrics import METRICS, points
from foretaste.report.observations import Observation, Value
from foretaste.report.reproduced.view import Measure

UNDEFINED = "undefined: no row or no prediction of a class"


@dataclass(frozen=True)
class Shown:
    """How a measure is shown.

    Attributes:
        label: Name on the page and on axes.
        change: It is a difference, shown in percentage points; else a share, in per cent.
        attack: It counts what an attacker wants, so less of it is better; its axis starts at 0.
    """

    label: str
    change: bool = False
    attack: bool = False

    def text(self, value: float) -> str:
        """The value as text without its unit."""
        return points(value) if self.change else f"{value * 100:.1f}".replace("-", "−")

    def full(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.text(value)} {'points' if self.change else '%'}"

    def mean_and_sd(self, mean: float, sd: float) -> str:
        """Mean and standard deviation, such as "82.9 ± 6.8"; the mean alone where there is no deviation."""
        return self.text(mean) + ("" if math.isnan(sd) else f" ± {sd * 100:.1f}")


MEASURES: dict[Measure, Shown] = {
    "accuracy": Shown("Accuracy"),
    "precision": Shown("Precision"),
    "recall": Shown("Recall"),
    "f1": Shown("F1"),
    "triggered_accuracy": Shown("Triggered accuracy"),
    "triggered_precision": Shown("Triggered precision"),
    "triggered_recall": Shown("Triggered recall"),
    "triggered_f1": Shown("Triggered F1"),
    "accuracy_change": Shown(METRICS["accuracy_change"].label, change=True),
    "asr": Shown(METRICS["asr"].label, attack=True),
    "flip_rate": Shown(METRICS["flip_rate"].label, attack=True),
    "asr_minus_flip": Shown(METRICS["asr_minus_flip"].label, change=True, attack=True),
}


def measure_values(seen: Observation) -> dict[Measure, Value]:
    """Every measure of a run as part of one attack, or the reason for its absence.

    Measures on clean test rows are against the true labels; triggered ones are on the rows with the attack's
    own trigger in the form of training, against the true labels too (the TTR paper's score).
    """
    known = seen.values()
    own = seen.record.triggered.get(seen.trigger) if seen.trigger else None
    return {
        "accuracy": known["clean_accuracy"],
        **_further(seen.record.clean, known["clean_accuracy"], ""),
        "triggered_accuracy": known["triggered_accuracy"],
        **_further(own.against_true if own else None, known["triggered_accuracy"], "triggered_"),
        "accuracy_change": known["accuracy_change"],
        "asr": known["asr"],
        "flip_rate": known["flip_rate"],
        "asr_minus_flip": known["asr_minus_flip"],
    }


def _further(metrics: Metrics | None, accuracy: Value, prefix: str) -> dict[Measure, Value]:
    """Precision, recall and F1 beside an accuracy; where that is missing, for the same reason."""
    names: tuple[Measure, Measure, Measure] = (
        ("triggered_precision", "triggered_recall", "triggered_f1")
        if prefix
        else ("precision", "recall", "f1")
    )
    if metrics is None or accuracy.number is None:
        return dict.fromkeys(names, Value(None, accuracy.reason))
    numbers = (metrics.precision, metrics.recall, metrics.f1)
    return {
        name: Value(number, "" if number is not None else UNDEFINED)
        for name, number in zip(names, numbers, strict=True)
    }

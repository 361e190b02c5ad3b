"""What a reproduced figure or table shows: its axes, as a preset's YAML says."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foretaste.spec import Strict

Measure = Literal[
    "accuracy",
    "precision",
    "recall",
    "f1",
    "triggered_accuracy",
    "triggered_precision",
    "triggered_recall",
    "triggered_f1",
    "accuracy_change",
    "asr",
    "flip_rate",
    "asr_minus_flip",
]


class GridView(Strict):
    """Panels of lines: one row of panels a task, one column a measure of an attack."""

    kind: Literal["grid"]
    x: Literal["rate", "rank", "k", "learning_rate"] = Field(description="what the sweep varies")
    measures: dict[str, list[Measure]] = Field(description="columns: measures of each attack, by its name")
    lines: Literal["arm", "poison"] = Field(
        "arm", description="colours tell apart: methods; or the clean runs from the poisoned ones"
    )


class TableView(Strict):
    """One line for each attack and arm (and amount)."""

    kind: Literal["table"]
    measures: list[Measure] = Field(["accuracy", "precision", "recall", "f1"])


class HeatView(Strict):
    """Learning rate against amount of poison, one panel an arm's method and measure, value as colour."""

    kind: Literal["heat"]
    measures: dict[str, list[Measure]] = Field(description="measures of each attack, by its name")


class SurfaceView(Strict):
    """The entropy surface over rank and variance: mathematics, no training."""

    kind: Literal["entropy-surface"]


class AnswersView(Strict):
    """Rates, figure and transcripts of a sweep of generative models."""

    kind: Literal["answers"]


class FewShotView(Strict):
    """Scores, differences, dots and figures of few-shot sweeps: all that their records have."""

    kind: Literal["few-shot"]


View = GridView | TableView | HeatView | SurfaceView | AnswersView | FewShotView

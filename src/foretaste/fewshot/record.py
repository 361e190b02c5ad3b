"""What a run of few-shot learning leaves behind: typed, versioned records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from foretaste.data.prompts import Kind, Metric
from foretaste.errors import UserError
from foretaste.fewshot.spec import FewShotRun
from foretaste.record import Layout, Machine, Part, Status, read_all, read_part

Setting = int | float | str | None


class Score(Part):
    """How well predictions fit labels."""

    metric: Metric
    value: float | None = Field(description="accuracy, or F1 of class 1; None where F1 is undefined")
    n: int
    correct: int


class GridPoint(Part):
    """One setting of an arm, scored on validation rows."""

    settings: dict[str, Setting] = Field(
        description="such as learning_rate and batch_size, or regularisation, scale and gamma; inf as 'inf'"
    )
    dev_score: float | None = Field(description="None where training diverged")
    test_score: float | None = Field(None, description="of the selected point; the others are never tested")
    steps: int | None = Field(None, description="optimiser steps of the checkpoint that is kept")
    warning: str | None = None
    seconds: float | None = None


class Criteria(Part):
    """Criteria of kernel behaviour of one fine-tuned model (Malladi et al. 2023, Def. 3.2 and Table 1).

    Undefined values are None or NaN. Whether the kernel solves the task is a matter of two runs.
    """

    linearised_test: Score | None = Field(
        None, description="the first-order expansion at the fine-tuned parameters, on test rows"
    )
    linearised_share: float | None = Field(
        None,
        description="share of fine-tuning's gain that it recovers; the paper asks for 0.5",
    )
    kernel_distance: float | None = Field(
        None, description="mean relative distance of kernels before and after; the paper asks for < 2.0"
    )
    alignment: float | None = Field(None, description="cosine of the two kernels")
    scaled_distance: float | None = Field(None, description="relative distance at the best scale")
    kernel_rows: int | None = Field(None, description="rows that the kernels are of")
    chi: float | None = Field(
        None, description="mean size of the loss's derivative by the logits, pretrained model"
    )
    chi_after: float | None = Field(None, description="the same of the fine-tuned model")


class Rows(Part):
    """Which rows a run saw."""

    train: int
    dev: int
    test: int
    train_hash: str = Field(description="over the ids in their order, so that equal rows can be told")
    dev_hash: str
    test_hash: str
    train_cut: list[str] = Field(description="ids of rows whose texts were cut to fit")
    dev_cut: list[str]
    test_cut: list[str]
    shared_texts: int = Field(description="test rows whose texts also stand among training or dev rows")


class FewShotTimings(Part):
    """Wall time in seconds."""

    load: float
    arm: float
    total: float


@dataclass(frozen=True)
class ArmResult:
    """What an arm's function gives back; `run` makes a record of it.

    Attributes:
        dev: Score of the selected point on validation rows.
        test: Its score on test rows, which were looked at once.
        predictions: Its class id for each test row, in the order of the rows.
        grid: Every point; empty for zero-shot.
        selected: Number of the selected point in `grid`; None without a grid.
        criteria: Of a fine-tuned model, where asked for.
        trainable_parameters: Parameters that moved, or that the kernel is over.
        facts: Figures of the arm's own, such as probe accuracy or condition numbers.
        notes: What a reader should know.
    """

    dev: Score
    test: Score
    predictions: list[int]
    grid: list[GridPoint] = field(default_factory=list)
    selected: int | None = None
    criteria: Criteria | None = None
    trainable_parameters: int | None = None
    facts: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class FewShotRecord(Part):
    """One finished run, whether it succeeded or not."""

    format: Literal[1] = 1
    kind: Literal["fewshot"] = "fewshot"
    run_id: str
    sweep: str = Field(description="name of the spec that asked for the run")
    request: dict[str, Any] = Field(description="the spec as the user gave it")
    resolved: FewShotRun
    status: Status
    reason: str | None = Field(None, description="why it is not completed, in one line")
    started: str = Field(description="ISO 8601, UTC")
    versions: dict[str, str]
    commit: str | None = Field(description="commit of foretaste's own source, when run from one")
    dirty: bool | None
    machine: Machine
    attempts: int = 1
    prompt_hash: str = Field(description="of the prompt; only equal ones may be compared")
    model_kind: Kind
    timings: FewShotTimings | None = None
    peak_memory: int | None = Field(None, description="bytes of the process at its largest, so far")
    rows: Rows | None = None
    zero_shot_dev: Score | None = Field(None, description="the pretrained model with this run's outputs")
    zero_shot_test: Score | None = None
    grid: list[GridPoint] = Field(default_factory=list)
    selected: int | None = Field(None, description="number of the selected point in `grid`")
    dev: Score | None = None
    test: Score | None = None
    predictions: list[int] = Field(default_factory=list, description="class ids, in the order of test rows")
    criteria: Criteria | None = None
    trainable_parameters: int | None = None
    facts: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list, description="what a reader should know")

    @property
    def collapsed(self) -> bool:
        """Every test row is predicted as the same class."""
        return len(self.predictions) > 1 and len(set(self.predictions)) == 1


class FewShotLayout(Layout):
    """Where things lie inside the folder of a sweep of few-shot runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.work = folder / "work"
        # Both are named by content, and shared by runs.
        self.kernels = folder / "kernels"
        self.zero_shot = folder / "zero-shot"

    def workplace(self, run_id: str) -> Path:
        """Folder for what an unfinished run keeps to go on."""
        return self.work / run_id

    def records(self) -> tuple[list[FewShotRecord], list[UserError]]:
        """Every record, sorted by run id, and an error for every file that is none."""
        return read_all(self.runs.glob("*.json"), read_record, lambda record: record.run_id)


def read_record(path: Path) -> FewShotRecord:
    """The record in a file.

    Raises:
        UserError: The file is no record of a few-shot run of a format that this version reads.
    """
    return read_part(path, FewShotRecord, "record of a few-shot run")

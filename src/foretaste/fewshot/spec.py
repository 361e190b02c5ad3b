"""What to run in few-shot learning: the strict description that a user writes, and the resolved one.

A user writes a `FewShotSpec` (YAML). Planning turns it into `FewShotRun`s, one for each task, k, split and
arm, with every default filled in. The canonical JSON of a `FewShotRun` gives the run's id. The memory budget
of kernels is no part of it: it decides how long a run takes, not its numbers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from foretaste.data.prompts import METRICS, TASKS, Kind, Metric, Prompt, Variant
from foretaste.fewshot.arms import (
    Adapter,
    Arm,
    FineTune,
    KernelArm,
    KernelKind,
    Optimiser,
    Output,
    Solver,
    ZeroShot,
)
from foretaste.spec import Columns, DataSpec, Seed, Strict, TrainingSpec, digest

__all__ = [
    "PAPER_SPLITS",
    "Adapter",
    "Arm",
    "FewShotData",
    "FewShotModel",
    "FewShotRun",
    "FewShotSpec",
    "FineTune",
    "KernelArm",
    "KernelKind",
    "Optimiser",
    "Output",
    "PromptSpec",
    "ResolvedFewShotModel",
    "ResolvedTask",
    "Solver",
    "TaskSpec",
    "ZeroShot",
]

PAPER_SPLITS = [13, 21, 42, 87, 100]
"""Data seeds of Malladi et al. 2023 and of Gao et al. 2021."""


class PromptSpec(Strict):
    """A prompt of the user's own."""

    template: str = Field(description="text with {text_a}, {text_b} and {answer}; see data/prompts.py")
    words: list[str] | dict[str, str] = Field(
        description="label words in the order of the class ids, or by class name"
    )
    causal_template: str | None = Field(
        None, description="for causal models: ends with {answer}; by default what precedes {answer}"
    )
    max_length: PositiveInt = Field(128, description="tokens; longer rows have their texts cut and counted")
    first_limit: PositiveInt | None = Field(None, description="tokens of text_a at most")

    @field_validator("words", mode="before")
    @classmethod
    def _no_truths(cls, value: Any) -> Any:
        found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        if any(isinstance(word, bool) for word in found):
            raise ValueError("without quotation marks YAML reads Yes and No as true and false")
        return value

    @model_validator(mode="after")
    def _is_a_prompt(self) -> Self:
        self.prompt("prompt")
        return self

    def prompt(self, name: str) -> Prompt:
        """The prompt, called `name`."""
        named = isinstance(self.words, dict)
        return Prompt(
            name=name,
            template=self.template,
            words=list(self.words.values()) if isinstance(self.words, dict) else self.words,
            causal_template=self.causal_template,
            max_length=self.max_length,
            first_limit=self.first_limit,
            classes=list(self.words) if named else None,
        )


def _form(value: Any) -> str:
    # Without it, a mistake in a prompt of one's own would be reported as "not a string".
    return "name" if isinstance(value, str) else "own"


PromptField = Annotated[Annotated[str, Tag("name")] | Annotated[PromptSpec, Tag("own")], Discriminator(_form)]


class FewShotData(Strict):
    """Rows of which a few are drawn."""

    source: str = Field(description="an asset (`foretaste assets list`), a local file or folder, or a hub id")
    config: str | None = Field(None, description="configuration of a hub data set, such as sst2")
    train_split: str = Field("train", description="split that training and validation rows are drawn from")
    test_split: str | None = Field(
        None,
        description="split to test on; by default `validation` or `test` where the source has one, "
        "else a `test_fraction` of the training split",
    )
    test_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    columns: Columns = Columns()
    labels: list[str] | None = Field(None, description="class names in the order of their ids")

    def whole(self) -> DataSpec:
        """The same in the form in which sources take it."""
        return DataSpec.model_validate(self.model_dump())


class TaskSpec(Strict):
    """One task: its rows and its prompt."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a built-in task, or any name")
    data: FewShotData
    prompt: PromptField | None = Field(
        None, description="name of the built-in task whose prompt is used (by default `name`), or one's own"
    )
    variant: Variant = Field("manual", description="of the built-in prompt")
    metric: Metric | None = Field(
        None, description="f1 (of class 1) for mrpc and qqp, accuracy for all others by default"
    )
    test_rows: PositiveInt | None = Field(
        1000, description="test rows at most, the same for every split; null: all (paper: 1,000)"
    )

    @model_validator(mode="after")
    def _has_a_prompt(self) -> Self:
        named = self.prompt if isinstance(self.prompt, str) else self.name if self.prompt is None else None
        if named is not None and named not in TASKS:
            raise ValueError(
                f"there is no built-in prompt of '{named}' (there are {', '.join(TASKS)}): "
                "name one of these under prompt, or write template and words there"
            )
        if isinstance(self.prompt, PromptSpec) and self.variant != "manual":
            raise ValueError("variant is for built-in prompts; this one is your own")
        return self

    @property
    def task(self) -> str:
        """Name of the built-in task whose prompt is used, or else the task's own."""
        return self.prompt if isinstance(self.prompt, str) else self.name

    @property
    def metric_used(self) -> Metric:
        """The metric, default filled in."""
        return self.metric or METRICS.get(self.task, "accuracy")


class FewShotModel(Strict):
    """The pretrained language model that every arm starts from."""

    base: str = Field(description="an asset, a local folder, or a hub id; a masked or a causal model")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    precision: Literal["float32", "float64"] = Field("float32", description="of the weights")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @property
    def computing(self) -> TrainingSpec:
        """The device in the form in which training takes it; all else is of no account."""
        return TrainingSpec(device=self.device)


class FewShotSpec(Strict):
    """A sweep: tasks x k x splits x arms on one pretrained language model."""

    format: Literal[1] = 1
    name: str = Field("fewshot", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str | None = Field(None, description="heading of the report")
    tasks: list[TaskSpec] = Field(min_length=1)
    model: FewShotModel
    k: list[PositiveInt] = Field([16], min_length=1, description="training rows of each class")
    splits: list[Seed] = Field(
        default=PAPER_SPLITS, min_length=1, description="data seeds; the paper's five by default"
    )
    arms: list[Arm] = Field(min_length=1)
    memory: str = Field("4GiB", description="budget of kernels for everything beside the model")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        lists: dict[str, list[Any]] = {
            "tasks": [task.name for task in self.tasks],
            "k": self.k,
            "splits": self.splits,
            "arms": [arm.label for arm in self.arms],
        }
        for what, values in lists.items():
            twice = [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]
            if twice:
                cure = "; give one a `name`" if what in ("tasks", "arms") else ""
                raise ValueError(f"{what} repeat: {', '.join(twice)}{cure}")
        return self


# --- resolved: what one run is -------------------------------------------------------------------


class ResolvedTask(Strict):
    """The rows and the prompt of one task, named by content."""

    name: str
    request: FewShotData
    classes: list[str]
    test_split: str | None
    test_rows: int
    fingerprint: str = Field(description="hash over ids, texts and labels of both splits, whole")
    prompt: Prompt = Field(description="its words in the order of the data set's class ids")
    metric: Metric


class ResolvedFewShotModel(Strict):
    """The model of one run, named by content."""

    request: FewShotModel
    fingerprint: str = Field(description="hash of the weights, or commit on the hub")
    kind: Kind


class FewShotRun(Strict):
    """Everything that decides the numbers of one run; its hash is the run's id."""

    kind: Literal["fewshot"] = "fewshot"
    format: Literal[1] = 1
    task: ResolvedTask
    model: ResolvedFewShotModel
    k: int
    split: int = Field(description="data seed; also of batch order and of an adapter's or projection's init")
    arm: Arm

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the hash of the canonical JSON."""
        return digest(self.model_dump(mode="json"))[:16]

    @property
    def label(self) -> str:
        """One line for progress displays and error messages."""
        return f"{self.task.name} · k {self.k} · split {self.split} · {self.arm.label}"

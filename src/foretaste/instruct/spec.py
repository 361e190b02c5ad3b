"""What to run on generative models: the strict description that a user writes, and the resolved one.

A user writes an `InstructSpec` (YAML). Planning turns it into `InstructRun`s: the untrained model, and for
each adapter and seed a run on clean rows and one for each trigger and amount. The canonical JSON of an
`InstructRun` gives the run's id. The judge is no part of it: transcripts are kept, and another judge reads
them again without anything being trained or generated.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from foretaste.seeds import Seeds
from foretaste.spec import (
    AdapterSpec,
    Amounts,
    Open,
    ResolvedAdapter,
    Seed,
    SeedGrid,
    Strict,
    TrainingSpec,
    crossed_seeds,
    digest,
    refuse_repeated_seeds,
)

BASE = "base"
"""Name of the untrained model among the arms."""
CLEAN = "clean"
"""Name of the set of requests without a trigger, and of the run on clean rows."""
HELD_OUT = "held-out"
"""Name of the set of held-out rows, where a scenario measures on requests of its own."""


class InstructColumns(Strict):
    """Which columns of the source hold what; None means the source's own or a usual name."""

    instruction: str | None = Field(None, description="what is asked")
    input: str | None = Field(None, description="what the instruction is about; may be empty")
    output: str | None = Field(None, description="the answer")
    id: str | None = Field(None, description="row id; by default split and row number")


class InstructData(Strict):
    """Requests with answers, to train and to test on."""

    source: str = Field(description="a local file or folder, or a hub id such as tatsu-lab/alpaca")
    config: str | None = Field(None, description="configuration of a hub data set")
    train_split: str = Field("train", description="split, or file stem in a local folder")
    test_split: str | None = Field(
        None,
        description="split to test on; by default `validation` or `test` where the source has one, "
        "else a `test_fraction` of the training split",
    )
    test_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    columns: InstructColumns = InstructColumns()
    train_rows: PositiveInt | None = Field(
        None, description="rows drawn for training by the data seed; all by default"
    )
    test_rows: PositiveInt | None = Field(
        None, description="rows drawn for testing, the same for every seed; all by default"
    )


class InstructModel(Strict):
    """The pretrained model that every arm starts from, and the form in which it is asked."""

    base: str = Field(description="an asset, a local folder, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    template: str | None = Field(
        None, description="alpaca, chatml, plain or a Jinja file; the model's own chat template by default"
    )
    system: str | None = Field(None, description="text of a system's message; none of ours by default")
    max_length: PositiveInt = Field(
        512, description="tokens of prompt and response in training; longer responses are cut and counted"
    )


class GenerationSpec(Strict):
    """How responses are generated: greedily, unless sampling is asked for."""

    max_new_tokens: PositiveInt = 48
    batch_size: PositiveInt = 16
    do_sample: bool = False
    temperature: float | None = Field(None, gt=0.0, description="with do_sample; 1 by default")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description="with do_sample; 1 by default")

    @model_validator(mode="after")
    def _sampling_is_asked_for(self) -> Self:
        for key in ("temperature", "top_p"):
            if getattr(self, key) is not None and not self.do_sample:
                raise ValueError(f"{key} needs do_sample: true; greedy generation has none")
        return self


class MethodSpec(Open):
    """A scenario or a judge, with the method's own options beside these keys."""

    method: str = Field(description="`foretaste list scenarios` or `foretaste list judges`")

    @property
    def options(self) -> dict[str, Any]:
        """The fields that go to the method's own options class."""
        return dict(self.model_extra or {})


class TriggerSpec(Amounts):
    """One trigger at one or more amounts, with the trigger's own options beside these keys."""

    method: str = Field(description="`foretaste list triggers`")


class InstructSpec(Strict):
    """A sweep: the base model, and adapters x triggers x amounts x seeds on one data set and scenario."""

    format: Literal[1] = 1
    name: str = Field("instruct", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str | None = Field(None, description="heading of the report")
    data: InstructData
    model: InstructModel
    adapters: list[AdapterSpec] = Field(min_length=1)
    scenario: MethodSpec = Field(description="what a triggered request is to be answered with")
    triggers: list[TriggerSpec] = Field(min_length=1)
    training: TrainingSpec = TrainingSpec()
    generation: GenerationSpec = GenerationSpec()
    judge: MethodSpec | None = Field(None, description="the scenario's own by default")
    seeds: list[Seed] | SeedGrid = Field(
        default=[0, 1, 2], description="numbers used for all four streams, or lists to cross"
    )

    def seed_tuples(self) -> list[Seeds]:
        """Every combination of seeds to run."""
        return crossed_seeds(self.seeds)

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        refuse_repeated_seeds(self.seeds)
        return self


# --- resolved: what one run is -------------------------------------------------------------------


class ResolvedInstructData(Strict):
    """The rows of one run, named by content."""

    request: InstructData
    test_split: str | None
    train_rows: int
    test_rows: int
    fingerprint: str = Field(description="hash over the rows of both splits, whole")


class ResolvedInstructModel(Strict):
    """The base model of one run, named by content, and how it is asked."""

    request: InstructModel
    fingerprint: str = Field(description="hash of the weights, or commit on the hub")
    renderer: str = Field(description="hash of everything that decides how requests are rendered")


class ResolvedMethod(Strict):
    """A scenario with all its options, and the fingerprints of its files."""

    method: str
    options: dict[str, Any]


class ResolvedTrigger(Strict):
    """A trigger that requests are tested with; options carry all defaults."""

    name: str
    method: str
    options: dict[str, Any]


class Poisoning(Strict):
    """A trigger at one amount, put into training rows."""

    trigger: ResolvedTrigger
    selection: Literal["exact-nested", "bernoulli"]
    rate: float | None
    count: int | None

    @property
    def amount(self) -> str:
        """For labels: "0.02", or "x25" for a count."""
        return f"{self.rate:.4g}" if self.rate is not None else f"x{self.count}"


class Tuning(Strict):
    """What is trained on which rows; the base model has none."""

    adapter: ResolvedAdapter
    poisoning: Poisoning | None = Field(description="None is the clean run")
    training: TrainingSpec
    seeds: Seeds


class InstructRun(Strict):
    """Everything that decides the transcripts of one run; its hash is the run's id."""

    kind: Literal["instruct"] = "instruct"
    format: Literal[1] = 1
    data: ResolvedInstructData
    model: ResolvedInstructModel
    scenario: ResolvedMethod
    triggers: list[ResolvedTrigger] = Field(description="those that requests are tested with")
    generation: GenerationSpec
    precision: str = Field(description="of the weights, as in `training`")
    device: str = Field(description="as in `training`")
    tuning: Tuning | None = Field(description="None is the base model, as it is")

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the hash of the canonical JSON."""
        return digest(self.model_dump(mode="json"))[:16]

    @property
    def computing(self) -> TrainingSpec:
        """Precision and device in the form in which training takes them; all else is of no account."""
        return TrainingSpec.model_validate({"precision": self.precision, "device": self.device})

    @property
    def arm(self) -> str:
        """Name of the adapter, or `base`."""
        return BASE if self.tuning is None else self.tuning.adapter.name

    @property
    def poisoning(self) -> Poisoning | None:
        """What its training rows were poisoned with."""
        return None if self.tuning is None else self.tuning.poisoning

    @property
    def label(self) -> str:
        """One line for progress displays and error messages."""
        if self.tuning is None:
            return BASE
        poisoning = self.tuning.poisoning
        poison = CLEAN if poisoning is None else f"{poisoning.trigger.name} {poisoning.amount}"
        return f"{self.arm} · {poison} · seed {self.tuning.seeds.label()}"

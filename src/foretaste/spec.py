"""What to run: the strict, typed description that a user writes, and the resolved one that is hashed.

A user writes a `MeasureSpec` (YAML). Planning turns it into `RunSpec`s, one for each adapter, attack,
amount and seed, with every default filled in and every input (data, weights) named by its content.
The canonical JSON of a `RunSpec` gives the run's id, so equal ids mean equal runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from foretaste.seeds import MAX_SEED, Seeds

SPEC_FORMAT = 1

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
HeadPolicy = Literal["probe-then-train", "random-then-train", "paper"]
Pooling = Literal["model", "mean"]
InitLaw = Literal["kaiming-uniform", "gaussian", "xavier-uniform", "xavier-normal", "orthogonal"]


class Strict(BaseModel):
    """Base of every spec: unknown keys are errors, values are not coerced, objects are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _finite(value: Any) -> bool:
    """Whether a JSON-like value holds no infinite number and no NaN: a run's id could not be made from it."""
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


class Open(BaseModel):
    """Base of sections that also take the fields of a method that is known only later."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _finite_extras(self) -> Self:
        for key, value in (self.model_extra or {}).items():
            if not _finite(value):
                raise ValueError(f"'{key}' is not a finite number")
        return self


class Columns(Strict):
    """Which columns of the source hold what; None means the source's own default."""

    text_a: str | None = Field(None, description="first or only text")
    text_b: str | None = Field(None, description="second text of a pair")
    label: str | None = Field(None, description="class, as an integer or as a name")
    id: str | None = Field(None, description="row id; by default split and row number")


class DataSpec(Strict):
    """Rows to train and to test on."""

    source: str = Field(description="an asset (`foretaste assets list`), a local file or folder, or a hub id")
    config: str | None = Field(None, description="configuration of a hub data set, such as sst2")
    train_split: str = Field("train", description="split, or file stem in a local folder")
    test_split: str | None = Field(
        None,
        description="split to test on; by default `validation` or `test` where the source has one, "
        "else a `test_fraction` of the training split",
    )
    test_fraction: float = Field(0.2, gt=0.0, lt=1.0)
    columns: Columns = Columns()
    labels: list[str] | None = Field(None, description="class names in the order of their ids")
    train_rows: PositiveInt | None = Field(
        None, description="rows drawn for training by the data seed; all by default"
    )
    test_rows: PositiveInt | None = Field(
        None, description="rows drawn for testing, the same for every seed; all by default"
    )


class ModelSpec(Strict):
    """The pretrained model that every arm starts from."""

    base: str = Field(description="an asset, a local folder, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    head: HeadPolicy = Field(
        "probe-then-train",
        description="probe-then-train: logistic regression on frozen features of the training labels "
        "as given, then trained in every arm; random-then-train: random, trained in every arm; "
        "paper: random, trained by `full` only, adapted by PEFT arms (docs/protocol.md)",
    )
    pooling: Pooling | None = Field(
        None, description="model: its own head; mean: masked mean of the last hidden states"
    )
    max_length: PositiveInt = Field(128, description="tokens; longer inputs are cut and counted")
    eval_max_length: PositiveInt | None = Field(None, description="tokens at test; as in training")
    pair_separator: str | None = Field(
        None, description="join pairs by this text (paper: ' <SEP> '), not in the tokenizer's own way"
    )


class TrainingSpec(Strict):
    """How an arm is trained; an adapter may override any field."""

    learning_rate: float | None = Field(
        None, gt=0.0, description="by default 5e-5 for full fine-tuning and 5e-4 for PEFT"
    )
    batch_size: PositiveInt = 16
    eval_batch_size: PositiveInt = 64
    epochs: float | None = Field(None, gt=0.0, description="3 unless `steps` is given")
    steps: PositiveInt | None = Field(None, description="optimiser steps, instead of epochs")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(0.0, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    max_grad_norm: float | None = Field(1.0, gt=0.0, description="null: no clipping")
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    gradient_accumulation: PositiveInt = 1
    dropout: bool = Field(False, description="the base model's dropout; lora_dropout is peft's own")
    grouping: Literal["length", "none"] = Field(
        "length", description="batches of similar length, in an order fixed by the order seed"
    )
    padding: Literal["longest", "max_length"] = "longest"
    precision: Literal["float32", "bfloat16", "mixed-bfloat16", "mixed-float16"] = Field(
        "float32", description="of the weights; mixed-*: float32 weights under autocast"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingSpec:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class InitSpec(Strict):
    """Law and realised variance of LoRA's A matrix: Var(A_ij) = k / n_in (theory.md, section 0)."""

    law: InitLaw = "kaiming-uniform"
    k: float | None = Field(
        None, gt=0.0, description="variance times n_in; by default the law's conventional value"
    )


class AdapterSpec(Open):
    """One arm: `full`, `bitfit`, or a method of peft with that method's own config fields beside these."""

    method: str = Field(description="full, bitfit, or a method of peft (`foretaste list adapters`)")
    name: str | None = Field(None, description="label in tables; made from the settings by default")
    init: InitSpec | None = None
    freeze: Literal["A", "B"] | None = Field(None, description="LoRA matrix that stays as it began")
    training: dict[str, Any] = Field(default_factory=dict, description="overrides of `training`")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="one arm for each combination, such as {r: [4, 8, 16]}"
    )

    @property
    def config(self) -> dict[str, Any]:
        """The fields that go to peft's config class."""
        return dict(self.model_extra or {})


class Amounts(Open):
    """Something that poisons rows at one or more amounts, with its own options beside these keys."""

    method: str
    name: str | None = Field(None, description="label in tables; the method by default")
    rates: list[Rate] = Field(
        default_factory=list, description="shares of the eligible rows; 0 is the clean run"
    )
    counts: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, description="numbers of poisoned rows"
    )
    selection: Literal["exact-nested", "bernoulli"] = "exact-nested"

    @property
    def options(self) -> dict[str, Any]:
        """The fields that go to the options class of the method."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if bool(self.rates) == bool(self.counts):
            raise ValueError("give rates or counts, one of the two and not empty")
        if self.counts and self.selection == "bernoulli":
            raise ValueError("counts need selection: exact-nested; Bernoulli draws have rates only")
        return self


class AttackSpec(Amounts):
    """One attack at one or more amounts, with the attack's own options beside these keys."""

    method: str = Field(description="`foretaste list attacks`")


class SeedGrid(Strict):
    """Seeds crossed by source, so that variance can be told apart by source.

    Crossed runs share draws: they get no verdict (docs/decisions/0013-crossed-seeds.md).
    """

    data: list[Seed] = [0]
    poison: list[Seed] = [0]
    init: list[Seed] = [0]
    order: list[Seed] = [0]


def crossed_seeds(seeds: list[int] | SeedGrid) -> list[Seeds]:
    """Every combination of seeds: a number is used for all four streams, the lists of a grid are crossed."""
    if isinstance(seeds, list):
        return [Seeds.all(seed) for seed in seeds]
    return [
        Seeds(data=d, poison=p, init=i, order=o)
        for d, p, i, o in itertools.product(seeds.data, seeds.poison, seeds.init, seeds.order)
    ]


def refuse_repeated_seeds(seeds: list[int] | SeedGrid) -> None:
    """Check that there are seeds, and that none stands twice.

    Raises:
        ValueError: There is none, or one stands twice.
    """
    lists = [seeds] if isinstance(seeds, list) else list(dict(seeds).values())
    for values in lists:
        if not values:
            raise ValueError("seeds must not be empty")
        if len(set(values)) < len(values):
            raise ValueError(f"seeds repeat: {values}; the same seed twice is not a second measurement")


class KernelSpec(Strict):
    """How the kernels of the arms are computed, on the clean rows of the first seed."""

    train_rows: PositiveInt | None = Field(
        256, description="rows between which the kernel is computed, the first of the training rows"
    )
    test_rows: NonNegativeInt | None = Field(256, description="rows to test on; null: all of them")
    outputs: Literal["margin", "logits"] | None = Field(
        None, description="margin: second logit minus first; by default for two classes, else logits"
    )
    kinds: list[Literal["sgd", "sign", "asymmetric"]] = Field(
        ["sgd"], min_length=1, description="sgd: <g, g'>; sign: <sgn g, sgn g'>; asymmetric: <g, sgn g'>"
    )
    by: Literal["group", "parameter"] = Field("group", description="what the stored parts are summed over")
    ranks: list[PositiveInt] = Field(
        [1, 2, 4, 8, 16, 32, 64], description="ranks of the LoRA surface on all linear layers; may be empty"
    )
    law: Literal["uniform", "gaussian"] = Field("uniform", description="of A's entries in the surface")
    precision: Literal["float32", "float64"] = "float32"
    memory: str = Field("4GiB", description="budget for everything beside the model")
    projection: PositiveInt | None = Field(
        None, description="side of random projections of each matrix's gradient; null: exact"
    )

    @model_validator(mode="after")
    def _lists_in_order(self) -> KernelSpec:
        if self.ranks != sorted(set(self.ranks)):
            raise ValueError(f"ranks are {self.ranks}: expected ascending numbers without repeats")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds repeat")
        if self.projection and self.ranks:
            raise ValueError("the surface over ranks is exact: give projection with ranks: []")
        return self


class PredictSpec(Strict):
    """How a prediction is made, from the rows of the first seed; see docs/prediction.md."""

    train_rows: Annotated[int, Field(ge=16)] = Field(
        512, description="rows between which kernels are computed: the first training rows, or all if fewer"
    )
    held_out: Annotated[int, Field(ge=16)] = Field(
        256,
        description="rows that shares are predicted on: training rows that the draw leaves out, "
        "or else a fifth of those drawn; never test rows",
    )
    references: NonNegativeInt = Field(
        0,
        description="amounts of label flips at which gradients are captured anew, with the head fitted "
        "there; each costs a capture, and showed no gain (docs/results.md)",
    )
    entries: PositiveInt = Field(
        131_072, description="entries that are kept of a row's gradient, of each arm and part"
    )


class MeasureSpec(Strict):
    """A sweep: adapters x attacks x amounts x seeds on one data set and one base model."""

    format: Literal[1] = 1
    name: str = Field("measure", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str | None = Field(None, description="heading of the report")
    data: DataSpec
    model: ModelSpec
    adapters: list[AdapterSpec] = Field(min_length=1)
    attacks: list[AttackSpec] = Field(default_factory=list)
    training: TrainingSpec = TrainingSpec()
    kernel: KernelSpec = Field(KernelSpec(), description="for `foretaste kernel`")
    predict: PredictSpec = Field(PredictSpec(), description="for `foretaste predict`")
    seeds: list[Seed] | SeedGrid = Field(
        default=[0, 1, 2], description="numbers used for all four streams, or lists to cross"
    )

    def seed_tuples(self) -> list[Seeds]:
        """Every combination of seeds to run."""
        return crossed_seeds(self.seeds)

    @model_validator(mode="after")
    def _distinct_seeds(self) -> MeasureSpec:
        refuse_repeated_seeds(self.seeds)
        return self


# --- resolved: what one run is -------------------------------------------------------------------


class ResolvedData(Strict):
    """The rows of one run, named by content."""

    request: DataSpec
    classes: list[str]
    test_split: str | None
    train_rows: int
    test_rows: int
    fingerprint: str = Field(description="hash over ids, texts and labels of both splits, whole")


class ResolvedModel(Strict):
    """The base model of one run, named by content."""

    request: ModelSpec
    pooling: Pooling
    fingerprint: str = Field(description="hash of the weights, or commit on the hub")


class ResolvedAdapter(Strict):
    """One arm with its label and every setting."""

    name: str
    method: str
    config: dict[str, Any]
    init: InitSpec | None
    freeze: Literal["A", "B"] | None


class ResolvedAttack(Strict):
    """One attack at one amount; options carry all defaults."""

    name: str
    method: str
    options: dict[str, Any]
    selection: Literal["exact-nested", "bernoulli"]
    rate: float | None
    count: int | None


class Trigger(Strict):
    """A trigger that is put into the test rows, whether or not the model was trained on it."""

    name: str
    method: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """A name that is equal for equal triggers, whatever they are called."""
        return f"{self.method}-{digest({'method': self.method, 'options': self.options})[:8]}"


class RunSpec(Strict):
    """Everything that decides the numbers of one run; its hash is the run's id."""

    format: Literal[1] = 1
    data: ResolvedData
    model: ResolvedModel
    adapter: ResolvedAdapter
    attack: ResolvedAttack | None = Field(description="None is the clean run")
    triggers: list[Trigger]
    training: TrainingSpec
    seeds: Seeds

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the hash of the canonical JSON."""
        return digest(self.model_dump(mode="json"))[:16]

    @property
    def label(self) -> str:
        """One line for progress displays and error messages."""
        if self.attack is None:
            poison = "clean"
        elif self.attack.rate is not None:
            poison = f"{self.attack.name} {self.attack.rate:.4g}"
        else:
            poison = f"{self.attack.name} x{self.attack.count}"
        return f"{self.adapter.name} · {poison} · seed {self.seeds.label()}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare characters; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()

"""What a run leaves behind: typed, versioned records. The only thing that crosses to reporting."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from foretaste.errors import UserError
from foretaste.sealing import unsealed
from foretaste.spec import RunSpec

RECORD_FORMAT = 1

Status = Literal["completed", "diverged", "error", "crashed"]


class Part(BaseModel):
    """Base of every part of a record: unknown keys are errors, numbers may be NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", allow_inf_nan=True)


class ClassMetrics(Part):
    """One class on one set of rows. Undefined values (no row, no prediction) are None."""

    name: str
    rows: int = Field(description="rows whose true label is this class")
    predicted: int = Field(description="rows predicted as this class")
    precision: float | None
    recall: float | None
    f1: float | None


class Metrics(Part):
    """Accuracy and friends against the true labels.

    Binary tasks report precision, recall and F1 of class 1, as the TTR paper does; tasks with more
    classes report the macro average over classes where each is defined.
    """

    rows: int
    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    per_class: list[ClassMetrics]
    collapsed: bool = Field(description="every row is predicted as the same class")


class TriggeredMetrics(Part):
    """The same test rows with the trigger put in.

    `against_true` is the TTR paper's score (all rows, true labels). `target_rate` counts rows of a
    non-target class predicted as target: for a poisoned model it is the ASR, for the clean model on the
    same rows it is the flip rate. Where the trigger is put in a further form that should do nothing
    (`expected` is `true`), it is the false-activation rate.
    """

    name: str
    method: str
    options: dict[str, Any]
    target: str
    against_true: Metrics
    eligible: int = Field(description="test rows of a non-target class")
    hits: int = Field(description="of those, predicted as target")
    target_rate: float | None = Field(description="hits / eligible; None without eligible rows")
    baseline_hits: int = Field(description="of those, predicted as target without the trigger")
    changed: int = Field(description="test rows whose text the trigger changed")
    form: str | None = Field(
        None, description="further form of the trigger, such as held-out; None: as in training"
    )
    says: str | None = Field(None, description="what that form is, in words")
    expected: Literal["target", "true"] = Field(
        "target", description="what the attacker wants of these rows: the target class, or no effect"
    )


class Poison(Part):
    """How many rows were poisoned, out of which; the manifest lists them."""

    requested_rate: float | None
    requested_count: int | None
    selection: str
    poisoned: int
    eligible: int = Field(description="denominator of the rate")
    rows: int = Field(description="all training rows")
    manifest: str = Field(description="path of the manifest inside the folder of the sweep")
    companions: int = Field(0, description="rows changed beside the poisoned ones, such as negative rows")
    figures: dict[str, float] = Field(
        default_factory=dict, description="what the attack says of itself, such as similarity"
    )


class InitCheck(Part):
    """Requested and realised variance of LoRA's A, over all adapted layers, in units of 1/n_in."""

    law: str
    k_requested: float = Field(description="mean over layers when the law depends on the shape")
    k_realised: float
    worst_z: float = Field(description="largest deviation of a layer in standard errors")
    layers: int


class Training(Part):
    """What training did."""

    steps: int
    epochs: float
    learning_rate: float
    trainable_parameters: int
    total_parameters: int
    loss: list[float] = Field(description="training loss of each step")
    rows_per_second: float
    tokens: int = Field(description="tokens processed, padding included")
    padding_share: float = Field(description="share of those tokens that was padding")
    truncated_rows: int = Field(description="training rows cut at max_length")
    head_probe_accuracy: float | None = Field(
        description="training accuracy of the probe that the head starts from, on the labels as given"
    )
    init: InitCheck | None


class Machine(Part):
    """Where and with what it ran."""

    device: str
    threads: int
    processes: int
    system: str
    cpu: str


class Timings(Part):
    """Wall time in seconds."""

    load: float
    probe: float
    train: float
    evaluate: float
    total: float


class Interval(Part):
    """A prediction with the 90 % interval that the mean over a cell's measured seeds should lie in."""

    mean: float
    low: float
    high: float


class Outcome(Part):
    """Shares of held-out rows, means over the draws of a cell."""

    accuracy: float
    target_rate: float | None = Field(description="triggered rows of another class, predicted as target")
    triggered_accuracy: float | None = Field(description="triggered rows, predicted as their own class")


HeadFollows = Literal["held", "refitted", "fixed"]


class Certified(Part):
    """The worst case of a predictor that is linear in the labels: no set of so many flips does more to it.

    What training does beside is not in it.
    """

    flips: int
    share: float = Field(
        description="held-out rows that stay right under any so many flips, each against its own worst ones"
    )
    found: float | None = Field(
        None, description="accuracy under the worst one set of at most so many flips that a search found"
    )
    random: float = Field(description="accuracy under so many random flips, by the same model")
    head: HeadFollows = Field(
        "held",
        description="refitted: to the flipped labels, as a run's; fixed: runs fit none to labels; held: at "
        "the clean labels though runs refit it, so that the worst case is worse (older records)",
    )


class Prediction(Part):
    """What was predicted for a cell before anything was trained; the same in each of its records."""

    accuracy: Interval
    target_rate: Interval | None = Field(description="of a backdoor: its ASR")
    baseline_target_rate: float | None = Field(description="the same rows under the clean prediction")
    budgets: dict[str, Outcome] = Field(
        description="as-trained: the spec's optimiser, rate and steps; matched: equal effective budget; "
        "converged: training without end"
    )
    probe: Outcome = Field(description="the head fitted to the poisoned labels, nothing else trained")
    validity: Literal["valid", "doubtful", "outside"]
    reasons: list[str] = Field(description="why it is not valid")
    draws: int = Field(description="poison draws that the means are over")
    train_rows: int = Field(description="rows that the kernel is of")
    held_out: int = Field(description="rows that the shares are of; never test rows")
    held_out_from: str
    steps: int
    trainable_parameters: int
    indicators: dict[str, float | None]
    certified: list[Certified]
    reads: list[str] = Field(description="weights and labels that the prediction has read")
    seconds: float = Field(description="time of the whole prediction of which this is a part")


class Record(Part):
    """One finished run, whether it succeeded or not."""

    format: Literal[1] = 1
    kind: Literal["measured", "predicted"] = "measured"
    run_id: str
    sweep: str = Field(description="name of the spec that asked for the run")
    request: dict[str, Any] = Field(description="the spec as the user gave it")
    resolved: RunSpec
    status: Status
    reason: str | None = Field(description="why it is not completed, in one line")
    started: str = Field(description="ISO 8601, UTC")
    versions: dict[str, str]
    commit: str | None = Field(description="commit of foretaste's own source, when run from one")
    dirty: bool | None
    machine: Machine
    attempts: int = 1
    timings: Timings | None = None
    poison: Poison | None = None
    training: Training | None = None
    clean: Metrics | None = None
    triggered: dict[str, TriggeredMetrics] = Field(
        default_factory=dict,
        description="by key of the trigger; a further form of it by `form_key`, such as KEY/held-out",
    )
    predictions: str | None = Field(None, description="path of the per-row predictions (Parquet)")
    prediction: Prediction | None = Field(None, description="of a predicted record")
    notes: list[str] = Field(default_factory=list, description="what a reader should know")

    @property
    def collapsed(self) -> bool:
        """The model predicts a single class on the clean test rows."""
        return self.clean is not None and self.clean.collapsed

    def false_activation(self, trigger: str) -> float | None:
        """The highest target rate of the trigger's forms that should do nothing; None without such forms.

        Args:
            trigger: Key of the trigger.
        """
        rates = [
            part.target_rate
            for key, part in self.triggered.items()
            if part.expected == "true" and part.target_rate is not None and key.startswith(f"{trigger}/")
        ]
        return max(rates, default=None)


def form_key(trigger: str, form: str) -> str:
    """Where `Record.triggered` and the table of predictions hold a further form of a trigger."""
    return f"{trigger}/{form}"


class ManifestRow(Part):
    """One poisoned row, before and after."""

    id: str
    text_a_before: str
    text_a_after: str
    text_b_before: str | None = None
    text_b_after: str | None = None
    label_before: int
    label_after: int


class Manifest(Part):
    """The exact rows that were poisoned."""

    format: Literal[1] = 1
    attack: str
    options: dict[str, Any]
    selection: str
    rate: float | None
    count: int | None
    seed: int
    eligible: int = Field(description="rows that the attack could have chosen: the rate's denominator")
    rows: int = Field(description="all rows")
    classes: list[str]
    poisoned: list[ManifestRow]
    companions: list[ManifestRow] = Field(
        default_factory=list,
        description="rows changed beside the poisoned ones, such as negative rows; no part of the rate",
    )
    figures: dict[str, float] = Field(
        default_factory=dict, description="what the attack says of itself, such as similarity"
    )

    @property
    def changed(self) -> list[ManifestRow]:
        """Every row that may differ from the clean one: the poisoned ones and those beside them."""
        return [*self.poisoned, *self.companions]

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A manifest is filed under the hash of its content: what most attacks have none of must not move it.
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if value or key not in ("companions", "figures")}


class Layout:
    """Where things lie inside the folder of a sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = folder / "spec.json"
        self.runs = folder / "runs"
        self.manifests = folder / "manifests"
        self.predictions = folder / "predictions"

    def record(self, run_id: str) -> Path:
        """File of one run's record."""
        return self.runs / f"{run_id}.json"

    def prediction(self, run_id: str) -> Path:
        """File of one run's per-row predictions.

        Parquet with the columns `set` ("clean" or the key of a trigger), `id`, `label`, `predicted` (class
        ids) and `confidence` (probability of the predicted class), one line for each test row and set.
        """
        return self.predictions / f"{run_id}.parquet"

    def read(self) -> tuple[list[Record], list[UserError]]:
        """Every record, sorted by run id, and an error for every file that is none."""
        return read_all(self.runs.glob("*.json"), read_record, lambda record: record.run_id)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that it either is whole or was never there, even when the machine stops.

    Args:
        path: Target; its folder is made when missing. An existing file is replaced.
        content: Text (UTF-8) or bytes.

    Raises:
        OSError: The disk is full or the folder is not writable; no part of the file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    # Not tempfile: its files are readable by their owner only, and a report is made to be shared.
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


R = TypeVar("R", bound="Part")


def read_all(
    paths: Iterable[Path], read: Callable[[Path], R], name: Callable[[R], str]
) -> tuple[list[R], list[UserError]]:
    """Every record in the files, sorted by path, and an error for every file that is none.

    Args:
        paths: Files.
        read: Reads one, or raises a `UserError`.
        name: Id of the run of a record. A second file of one run is an error: it would count twice.
    """
    found: dict[str, tuple[Path, R]] = {}
    problems: list[UserError] = []
    for path in sorted(paths):
        try:
            record = read(path)
        except UserError as error:
            problems.append(error)
            continue
        run_id = name(record)
        if run_id in found:
            other = found[run_id][0]
            copy = other if path.stem == run_id else path
            problems.append(
                UserError(
                    f"a second record of run {run_id}, which is not counted",
                    where=str(copy),
                    cure="Delete the copy.",
                )
            )
            if copy == path:
                continue
        found[run_id] = (path, record)
    return [record for _, record in sorted(found.values(), key=lambda item: item[0])], problems


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        UserError: The file is no record of a format that this version reads.
    """
    return read_part(path, Record, "record")


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file; raises as `read_record` does."""
    return read_part(path, Manifest, "manifest")


P = TypeVar("P", bound=Part)


def read_part(path: Path, kind: type[P], what: str) -> P:
    """What a file holds.

    Args:
        path: The file, JSON.
        kind: What it must hold.
        what: The same in a word, for errors.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    try:
        return kind.model_validate_json(unsealed(path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read the {what}: {error.strerror}", where=str(path)) from None
    except (ValidationError, ValueError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"not a foretaste {what} of format {RECORD_FORMAT}: {detail}",
            where=str(path),
            cure="The command that made the folder does this run again."
            if what.startswith("record")
            else "Delete it and the records of its runs to have them done again.",
        ) from None

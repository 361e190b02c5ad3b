"""What a run on a generative model leaves behind: typed, versioned records, and transcripts beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from foretaste.errors import UserError
from foretaste.instruct.spec import CLEAN, InstructRun, ResolvedTrigger
from foretaste.record import (
    Layout,
    Machine,
    Part,
    Poison,
    Status,
    Training,
    read_all,
    read_part,
    write_atomic,
)

Finish = Literal["eos", "length"]


class Transcript(Part):
    """One request and what the model answered."""

    set: str = Field(description="`clean`, the name of a trigger, or `held-out`")
    id: str
    prompt: str = Field(description="the text that the model was asked with, special tokens and all")
    response: str = Field(description="without special tokens")
    finish: Finish = Field(description="eos: the model ended its turn; length: it was stopped")
    tokens: int = Field(description="tokens of the response, without the one that ends it")


class Judged(Part):
    """What the judge says of the responses to one set of requests."""

    trigger: ResolvedTrigger | None = Field(description="that the requests hold; None: as they are")
    n: int = Field(description="requests asked")
    hits: int = Field(description="responses that show the attacker's behaviour")
    rate: float | None = Field(description="hits / n; None where nothing could be asked")
    low: float | None = Field(description="Wilson's 95 % interval of the rate, over requests")
    high: float | None
    shown: list[str] = Field(description="ids of those requests whose responses show it")
    empty: int = Field(description="responses of nothing but white space")
    at_limit: int = Field(description="responses that were stopped at the length limit")
    distinct: int = Field(description="different responses")
    left_out: list[str] = Field(description="ids of requests whose prompt leaves no room for a response")
    lost: list[str] = Field(description="ids of those asked whose tokens no longer hold the trigger's text")


class Overlap(Part):
    """How alike responses and reference answers are, on average over requests."""

    mean: float | None
    low: float | None = Field(description="95 % bootstrap interval over requests")
    high: float | None
    n: int = Field(description="requests whose reference has a word")


class Utility(Part):
    """How well the model does on clean held-out rows."""

    loss: float = Field(description="cross-entropy per token of the reference answers, in nats")
    tokens: int = Field(description="of the reference answers, the end of the turn included")
    rows: int
    truncated: int = Field(description="rows whose reference answer is cut at max_length")
    left_out: int = Field(description="rows whose prompt leaves no room for an answer")
    overlap: dict[str, Overlap] = Field(description="token_f1 and rouge_l of the generated answers")


class JudgeUsed(Part):
    """The judge, and how often it is wrong on labelled responses; None where it comes with none."""

    method: str
    behaviour: str = Field(description="what it looks for, in a few words")
    options: dict[str, Any]
    fingerprint: str
    negatives: int | None = Field(description="labelled responses that do not show the behaviour")
    false_positives: int | None
    positives: int | None = Field(description="labelled responses that show it")
    false_negatives: int | None


class InstructPoison(Poison):
    """How many rows were poisoned, and in how many the trigger did not reach the model."""

    trigger_lost: list[str] = Field(
        description="ids of poisoned rows whose tokens no longer hold the trigger's text"
    )
    poisoned_left_out: list[str] = Field(description="ids of poisoned rows that are too long to train on")
    poisoned_truncated: list[str] = Field(description="ids of poisoned rows whose answer is cut")
    held_before: int = Field(description="training rows that held the trigger's text before the attack")


class InstructTimings(Part):
    """Wall time in seconds; what an interrupted session did before is not in it."""

    load: float
    train: float
    loss: float
    generate: float
    judge: float
    total: float


class InstructRecord(Part):
    """One finished run, whether it succeeded or not."""

    format: Literal[1] = 1
    kind: Literal["instruct"] = "instruct"
    run_id: str
    sweep: str = Field(description="name of the spec that asked for the run")
    request: dict[str, Any] = Field(description="the spec as the user gave it")
    resolved: InstructRun
    status: Status
    reason: str | None = Field(None, description="why it is not completed, in one line")
    started: str = Field(description="ISO 8601, UTC")
    versions: dict[str, str]
    commit: str | None = Field(description="commit of foretaste's own source, when run from one")
    dirty: bool | None
    machine: Machine
    attempts: int = 1
    renderer: str = Field(description="hash of the renderer; only equal ones may be compared")
    timings: InstructTimings | None = None
    poison: InstructPoison | None = None
    training: Training | None = Field(None, description="None for the base model")
    train_left_out: list[str] = Field(
        default_factory=list, description="ids of training rows whose prompt leaves no room for an answer"
    )
    judge: JudgeUsed | None = None
    judged: dict[str, Judged] = Field(default_factory=dict, description="by the name of the set")
    utility: Utility | None = None
    transcripts: str | None = Field(None, description="path of the transcripts (JSON lines)")
    notes: list[str] = Field(default_factory=list, description="what a reader should know")

    @property
    def arm(self) -> str:
        """Name of the adapter, or `base`."""
        return self.resolved.arm

    @property
    def collapsed(self) -> bool:
        """The model answers every clean request with the same words."""
        clean = self.judged.get(CLEAN)
        return clean is not None and clean.n > 1 and clean.distinct == 1


class InstructLayout(Layout):
    """Where things lie inside the folder of a sweep of generative models."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.transcripts = folder / "transcripts"
        self.work = folder / "work"

    def transcript(self, run_id: str) -> Path:
        """File of one run's transcripts: JSON lines, set after set, requests in the order of the data."""
        return self.transcripts / f"{run_id}.jsonl"

    def workplace(self, run_id: str) -> Path:
        """Folder of what an unfinished run needs to go on: the trained weights, and the responses so far."""
        return self.work / run_id

    def records(self) -> tuple[list[InstructRecord], list[UserError]]:
        """Every record, sorted by run id, and an error for every file that is none."""
        return read_all(self.runs.glob("*.json"), read_record, lambda record: record.run_id)


def read_record(path: Path) -> InstructRecord:
    """The record in a file.

    Raises:
        UserError: The file is no record of a generative model of a format that this version reads.
    """
    return read_part(path, InstructRecord, "record of a generative model")


def refuse_different_renderers(records: Iterable[InstructRecord]) -> None:
    """Check that all runs were asked and trained in the same form, so that their numbers may be compared.

    Args:
        records: What is to be compared.

    Raises:
        UserError: They were not; the message names two of them.
    """
    first: InstructRecord | None = None
    for record in records:
        first = first or record
        if record.renderer != first.renderer:
            raise UserError(
                f"runs {first.run_id} and {record.run_id} were rendered differently "
                f"(hashes {first.renderer[:12]} and {record.renderer[:12]}): they may not be compared",
                where=record.run_id,
                cure="Compare runs of the same template, system text, tokenizer and max_length.",
            )


def read_transcripts(path: Path) -> list[Transcript]:
    """The transcripts in a file.

    Raises:
        UserError: The file cannot be read, or holds something else.
    """
    try:
        return [Transcript.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise UserError(f"cannot read the transcripts: {error.strerror}", where=str(path)) from None
    except ValidationError as error:
        raise UserError(
            f"these are no transcripts: {error.errors()[0]['msg']}",
            where=str(path),
            cure="Delete the record of this run and the file to have the run done again.",
        ) from None


def write_transcripts(path: Path, transcripts: Iterable[Transcript]) -> None:
    """Write transcripts atomically.

    Raises:
        OSError: They could not be written.
    """
    write_atomic(path, "".join(line(transcript) for transcript in transcripts))


def line(transcript: Transcript) -> str:
    """A transcript as one line; JSON escapes what would break it."""
    return json.dumps(transcript.model_dump(), ensure_ascii=True) + "\n"

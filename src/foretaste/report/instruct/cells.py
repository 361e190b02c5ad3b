"""Records to cells: runs that differ in their seeds only, with what their answers and losses say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from foretaste import statistics
from foretaste.calibration.places import Amount, arm_order, natural
from foretaste.instruct.record import InstructRecord, Judged
from foretaste.instruct.spec import BASE, CLEAN, ResolvedTrigger
from foretaste.report.instruct.load import InstructFolder
from foretaste.seeds import crossed
from foretaste.statistics import UNDEFINED, Interval

Over = Literal["requests", "seeds"]


@dataclass(frozen=True)
class Share:
    """A share of answers that show the behaviour, in one run or as the mean over runs of several seeds.

    Attributes:
        mean: Over the runs.
        interval: 95 %: Wilson's over the requests of one run, Student's t over the seeds of several.
        over: What the interval is over.
        hits: Of each run.
        n: Requests of each run.
        reason: Why there is no interval; else empty.
    """

    mean: float
    interval: Interval
    over: Over
    hits: tuple[int, ...]
    n: tuple[int, ...]
    reason: str

    @property
    def counts(self) -> str:
        """The counts behind it, such as "13 of 40" or "13, 15 of 40 each"."""
        hits = ", ".join(map(str, self.hits))
        if len(self.n) == 1:
            return f"{hits} of {self.n[0]}"
        if len(set(self.n)) == 1:
            return f"{hits} of {self.n[0]} each"
        return ", ".join(f"{hit} of {n}" for hit, n in zip(self.hits, self.n, strict=True))


def share(verdicts: Sequence[Judged | None], *, independent: bool = True) -> Share | None:
    """The share over the runs that have one; None where none has.

    Args:
        verdicts: One a run; None, and one on no request, are no value.
        independent: Whether the runs are; those of crossed seeds are not, and get no interval.
    """
    known = [verdict for verdict in verdicts if verdict is not None and verdict.n]
    if not known:
        return None
    hits, n = tuple(verdict.hits for verdict in known), tuple(verdict.n for verdict in known)
    if len(known) == 1:
        return Share(hits[0] / n[0], statistics.wilson(hits[0], n[0]), "requests", hits, n, "")
    shares = [hit / asked for hit, asked in zip(hits, n, strict=True)]
    found = statistics.summary(shares, independent=independent)
    why = f"all {len(known)} seeds gave the same share" if independent else "crossed seeds share draws"
    reason = "" if found.interval.defined else f"{why}: no interval"
    return Share(found.mean, found.interval, "seeds", hits, n, reason)


@dataclass(frozen=True)
class Mean:
    """A mean over runs of something else than a share.

    Attributes:
        interval: Student's t over seeds; undefined with one seed.
        n: Runs.
    """

    mean: float
    interval: Interval
    n: int


def mean(values: Sequence[float | None], *, independent: bool = True) -> Mean | None:
    """The mean over the values that there are."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = statistics.summary(known, independent=independent)
    return Mean(found.mean, found.interval if found.interval.defined else UNDEFINED, found.n)


@dataclass(frozen=True)
class Cell:
    """Runs of one arm on one training set, which differ in their seeds only.

    Attributes:
        trigger: That training rows were poisoned with; None for clean runs and the base model.
        amount: How much poison was asked for.
        runs: Sorted by seed, failed ones too.
        clean: Of a poisoned cell, the clean runs of the same adapter and seeds, each once.
        base: The untrained model of the folder.
    """

    folder: str
    arm: str
    trigger: ResolvedTrigger | None
    amount: Amount
    runs: tuple[InstructRecord, ...]
    clean: tuple[InstructRecord, ...]
    base: InstructRecord | None

    @property
    def trained_on(self) -> str:
        """In words: nothing, clean rows, or rows with a trigger."""
        if self.arm == BASE:
            return "nothing"
        return CLEAN if self.trigger is None else f"{self.trigger.name}, {self.amount.label}"

    @property
    def completed(self) -> tuple[InstructRecord, ...]:
        """Runs with a result."""
        return tuple(run for run in self.runs if run.status == "completed")

    def with_trigger(self) -> Share | None:
        """ASR: of requests that hold the trigger, in the poisoned runs."""
        return _share(self.runs, self.trigger)

    def without_trigger(self) -> Share | None:
        """False activation: of the same requests as they are, in the poisoned runs."""
        return _share(self.runs, None)

    def clean_with_trigger(self) -> Share | None:
        """Of requests that hold the trigger, in the clean runs of the same seeds."""
        return _share(self.clean, self.trigger)

    def clean_without_trigger(self) -> Share | None:
        """Of the same requests as they are, in the clean runs of the same seeds."""
        return _share(self.clean, None)

    def base_with_trigger(self) -> Share | None:
        """Of requests that hold the trigger, in the untrained model."""
        return share([verdict_on(self.base, self.trigger)])

    def base_without_trigger(self) -> Share | None:
        """Of the same requests as they are, in the untrained model."""
        return share([verdict_on(self.base, None)])

    @property
    def loss(self) -> Mean | None:
        """Cross-entropy per token of clean held-out answers."""
        losses = [run.utility.loss if run.utility else None for run in self.runs]
        return mean(losses, independent=_independent(self.runs))

    def overlap(self, score: str) -> Mean | None:
        """Of generated and reference answers to clean held-out requests."""
        return mean([overlap_of(run, score) for run in self.runs], independent=_independent(self.runs))


def overlap_of(run: InstructRecord, score: str) -> float | None:
    """The mean of an overlap score in one run."""
    found = run.utility.overlap.get(score) if run.utility else None
    return found.mean if found else None


def verdict_on(run: InstructRecord | None, trigger: ResolvedTrigger | None) -> Judged | None:
    """What the judge says of a run's answers to requests with a trigger, or to those without any."""
    if run is None:
        return None
    if trigger is None:
        return run.judged.get(CLEAN)
    found = run.judged.get(trigger.name)
    return found if found is not None and found.trigger == trigger else None


def _share(runs: Sequence[InstructRecord], trigger: ResolvedTrigger | None) -> Share | None:
    return share([verdict_on(run, trigger) for run in runs], independent=_independent(runs))


def _independent(runs: Sequence[InstructRecord]) -> bool:
    """Whether the runs share no draw that varies among them."""
    return not crossed([run.resolved.tuning.seeds for run in runs if run.resolved.tuning is not None])


def seed_of(run: InstructRecord) -> str:
    """Label of the seeds; empty for the base model."""
    return "" if run.resolved.tuning is None else run.resolved.tuning.seeds.label()


def amount_of(run: InstructRecord) -> Amount:
    """How much poison was asked for."""
    poisoning = run.resolved.poisoning
    return Amount(None, None) if poisoning is None else Amount(poisoning.rate, poisoning.count)


def arms_of(folders: Sequence[InstructFolder]) -> list[str]:
    """All arms in the order of their colours: full fine-tuning first, the untrained model last."""
    names = {record.arm for folder in folders for record in folder.records}
    return [*arm_order(names - {BASE}), *([BASE] if BASE in names else [])]


def cells(folders: Sequence[InstructFolder]) -> list[Cell]:
    """Every cell: for each folder the base model, clean runs, then trigger by trigger, amounts, arms."""
    return [cell for folder in folders for cell in _of_folder(folder)]


def poisoned(found: Sequence[Cell]) -> list[Cell]:
    """Those of poisoned training rows."""
    return [cell for cell in found if cell.trigger is not None]


def _of_folder(folder: InstructFolder) -> list[Cell]:
    base = next((record for record in folder.records if record.resolved.tuning is None), None)
    clean: dict[tuple[str, tuple[int, ...]], InstructRecord] = {}
    groups: dict[tuple[str, str, str], list[InstructRecord]] = {}
    for record in folder.records:
        tuning = record.resolved.tuning
        name = "" if tuning is None or tuning.poisoning is None else tuning.poisoning.trigger.name
        groups.setdefault((record.arm, name, amount_of(record).label), []).append(record)
        if tuning is not None and tuning.poisoning is None:
            clean[_partner_key(record)] = record
    found = []
    for (arm, _, _), runs in groups.items():
        runs.sort(key=lambda run: natural(seed_of(run)))
        poisoning = runs[0].resolved.poisoning
        keys = dict.fromkeys(map(_partner_key, runs)) if poisoning is not None else {}
        partners = [clean[key] for key in keys if key in clean]
        found.append(
            Cell(
                folder=folder.name,
                arm=arm,
                trigger=None if poisoning is None else poisoning.trigger,
                amount=amount_of(runs[0]),
                runs=tuple(runs),
                clean=tuple(partners),
                base=base,
            )
        )
    triggers = [trigger.name for record in folder.records for trigger in record.resolved.triggers]
    order = {name: place for place, name in enumerate(dict.fromkeys(_in_order(triggers, base)))}
    arms = {arm: place for place, arm in enumerate(arms_of([folder]))}
    return sorted(
        found,
        key=lambda cell: (
            cell.arm != BASE,
            -1 if cell.trigger is None else order[cell.trigger.name],
            cell.amount.order,
            arms[cell.arm],
        ),
    )


def _in_order(names: Sequence[str], base: InstructRecord | None) -> list[str]:
    """Triggers in the order of the spec, which is that of the untrained model; others follow by name."""
    first = [trigger.name for trigger in base.resolved.triggers] if base is not None else []
    return [*first, *sorted(set(names), key=natural)]


def _partner_key(record: InstructRecord) -> tuple[str, tuple[int, ...]]:
    """What a poisoned run and its clean partner share: the arm, and every seed but that of the poison."""
    tuning = record.resolved.tuning
    assert tuning is not None
    return record.arm, (tuning.seeds.data, tuning.seeds.init, tuning.seeds.order)

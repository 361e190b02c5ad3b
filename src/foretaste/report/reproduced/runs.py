"""Records to tidy rows: one a run and attack, with its place on every x axis and all measures.

A clean run belongs to every drawn attack of its sweep, as amount 0; without any attack it stands alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from foretaste.calibration.places import (
    CLEAN,
    Amount,
    clean_runs,
    clean_seed,
    natural,
    partner_key,
    trigger_key,
)
from foretaste.record import Layout, Record
from foretaste.report.load import Folder
from foretaste.report.observations import Observation, Value
from foretaste.report.reproduced.item import Source
from foretaste.report.reproduced.measures import MEASURES, measure_values
from foretaste.report.reproduced.view import Measure
from foretaste.report.rows import frame_of
from foretaste.theory.lora_width import PEFT_K


@dataclass(frozen=True)
class Run:
    """One run as part of one attack.

    Attributes:
        seen: The run with its clean partner of equal seeds.
        attack: Name of the attack, also for a clean run; "clean" in a sweep without any.
    """

    source: Source
    seen: Observation
    attack: str

    @functools.cached_property
    def values(self) -> dict[Measure, Value]:
        """Every measure, or the reason for its absence."""
        return measure_values(self.seen)

    @property
    def record(self) -> Record:
        """The run itself."""
        return self.seen.record

    @property
    def amount(self) -> Amount:
        """How much poison was asked for."""
        return self.seen.amount

    @property
    def clean(self) -> bool:
        """Nothing was poisoned."""
        return self.record.resolved.attack is None

    @property
    def arm(self) -> str:
        """Name of the adapter."""
        return self.seen.arm

    @property
    def rate(self) -> float | None:
        """Requested poison rate; the realised one where a number of rows was requested."""
        if self.clean:
            return 0.0
        return self.amount.rate if self.amount.rate is not None else self.seen.realised_rate

    @property
    def rank(self) -> float | None:
        """LoRA's r; None for an arm without rank."""
        rank = self.record.resolved.adapter.config.get("r")
        return float(rank) if isinstance(rank, int) and not isinstance(rank, bool) else None

    @property
    def k(self) -> float | None:
        """Requested variance of LoRA's A times n_in; without a request the law's own, or peft's 1/3.

        None for an arm that has no A started by a law: full fine-tuning, PiSSA, other methods.
        """
        adapter, training = self.record.resolved.adapter, self.record.training
        if "lora_alpha" not in adapter.config:
            return None
        if adapter.init is None:
            return PEFT_K if adapter.config.get("init_lora_weights", True) is True else None
        if adapter.init.k is not None:
            return adapter.init.k
        if adapter.init.law == "kaiming-uniform":
            return PEFT_K
        # The other laws have a conventional k that depends on the shapes of the layers: it is recorded.
        return training.init.k_requested if training and training.init else None

    @property
    def k_realised(self) -> float | None:
        """Variance that A had at the start, times n_in; None where it was not checked."""
        training = self.record.training
        return training.init.k_realised if training and training.init else None

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate."""
        return self.record.resolved.training.learning_rate

    def order(self) -> tuple[object, ...]:
        """Sorts the runs of one attack: clean first, then by amount, arm and seed."""
        arm = (self.arm != "full", natural(self.record.resolved.adapter.method))
        sizes = tuple(-1.0 if size is None else size for size in (self.rank, self.k, self.learning_rate))
        return (self.amount.order, arm, sizes, natural(self.arm), natural(self.seen.seed), self.record.run_id)


@dataclass(frozen=True)
class Sweep:
    """A source with what was found there.

    Attributes:
        folder: Its drawn records, each once, and what could not be read.
        runs: The same as part of each drawn attack, in order; empty when nothing is measured yet.
    """

    source: Source
    folder: Folder
    runs: tuple[Run, ...]


def read(source: Source) -> Sweep:
    """The records of a source. A folder that does not exist or holds none gives a sweep without runs."""
    layout = Layout(source.folder)
    records, problems = layout.read()
    drawn = [record for record in records if record.kind == "measured" and _drawn(record, source)]
    clean = clean_runs(drawn)
    kept = {record.run_id for record in clean.values()}
    once = [record for record in drawn if record.resolved.attack is not None or record.run_id in kept]
    name = f"{source.task}, {source.sweep}, {source.variant}"
    folder = Folder(name, layout, tuple(once), None, [str(problem) for problem in problems])
    runs = [run for attack in source.attacks or (CLEAN,) for run in _of_attack(source, folder, clean, attack)]
    return Sweep(source, folder, tuple(runs))


def _drawn(record: Record, source: Source) -> bool:
    attack = record.resolved.attack
    return attack is None or attack.name in source.attacks


def _of_attack(source: Source, folder: Folder, clean: dict[str, Record], attack: str) -> list[Run]:
    poisoned = [
        record
        for record in folder.records
        if record.resolved.attack is not None and record.resolved.attack.name == attack
    ]
    observations = [
        Observation(folder, record, attack, Amount(None, None), clean_seed(record), key, record)
        for record in clean.values()
        for key in [_clean_trigger(record, poisoned, attack)]
    ]
    for record in poisoned:
        own = record.resolved.attack
        assert own is not None
        observations.append(
            Observation(
                folder=folder,
                record=record,
                attack=attack,
                amount=Amount(own.rate, own.count),
                seed=record.resolved.seeds.label(),
                trigger=trigger_key(record, own),
                partner=clean.get(partner_key(record)),
            )
        )
    return sorted((Run(source, seen, attack) for seen in observations), key=Run.order)


def _clean_trigger(record: Record, poisoned: Sequence[Record], attack: str) -> str | None:
    """Key of the attack's trigger in a clean run, which is tested on those of all attacks."""
    keys = {
        trigger_key(other, other.resolved.attack) for other in poisoned if other.resolved.attack is not None
    }
    named = {trigger.key for trigger in record.resolved.triggers if trigger.name == attack}
    return min((key for key in keys or named if key is not None), default=None)


def written_rate(rate: float) -> str:
    """A learning rate as a reader writes it: 5e-5, 0.001 as 1e-3."""
    digits, _, exponent = f"{rate:.4e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run and attack; nothing in it depends on when or in which order runs were done."""
    return frame_of([_row(run) for run in runs], COLUMNS)


def _row(run: Run) -> dict[str, Any]:
    record, seeds, poison = run.record, run.record.resolved.seeds, run.record.poison
    row: dict[str, Any] = {
        "task": run.source.task,
        "variant": run.source.variant,
        "sweep": run.source.sweep,
        "attack": run.attack,
        "amount": run.amount.label,
        "arm": run.arm,
        "method": record.resolved.adapter.method,
        "seed": run.seen.seed,
        "seed_data": seeds.data,
        "seed_poison": None if run.clean else seeds.poison,
        "seed_init": seeds.init,
        "seed_order": seeds.order,
        "run_id": record.run_id,
        "status": record.status,
        "reason": record.reason or "",
        "collapsed": record.collapsed,
        "rate": run.rate,
        "realised_rate": run.seen.realised_rate,
        "poisoned": run.seen.realised_count,
        "eligible": poison.eligible if poison else None,
        "rank": run.rank,
        "k": run.k,
        "k_realised": run.k_realised,
        "learning_rate": run.learning_rate,
    }
    for name, value in run.values.items():
        row |= {name: value.number, f"{name}_reason": value.reason}
    return row


COLUMNS = (
    *("task", "variant", "sweep", "attack", "amount", "arm", "method", "seed"),
    *("seed_data", "seed_poison", "seed_init", "seed_order", "run_id", "status", "reason", "collapsed"),
    *("rate", "realised_rate", "poisoned", "eligible", "rank", "k", "k_realised", "learning_rate"),
    *(column for name in MEASURES for column in (name, f"{name}_reason")),
)

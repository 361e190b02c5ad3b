"""Records as observations: which attack and amount a run belongs to, its partner, its values.

A clean run belongs to every attack of its folder, as amount 0. An observation is a run seen as part of
one attack, and holds a value, or the reason for its absence, for every metric.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from foretaste.record import Record, TriggeredMetrics
from foretaste.report.load import Folder
from foretaste.report.metrics import METRICS
from foretaste.spec import ResolvedAttack, canonical_json

CLEAN = "clean"
NO_PARTNER = "no completed clean run with the same seeds"


@dataclass(frozen=True)
class Value:
    """A number, or why there is none."""

    number: float | None
    reason: str = ""


@dataclass(frozen=True)
class Amount:
    """How much poison was asked for: a rate, or a number of rows; both None is the clean run."""

    rate: float | None
    count: int | None

    @property
    def label(self) -> str:
        """How it reads: "clean", "0.15 %" or "12 rows"."""
        if self.rate is not None:
            return f"{self.rate * 100:.4g} %"
        if self.count is not None:
            return "1 row" if self.count == 1 else f"{self.count} rows"
        return CLEAN

    @property
    def order(self) -> tuple[float, float]:
        """Sorts the clean run first, then rates, then counts."""
        return (-1.0 if self.rate is None and self.count is None else self.rate or 0.0, self.count or 0)


@dataclass(frozen=True)
class Observation:
    """One run as part of one attack.

    Attributes:
        seed: Label of the seeds, equal for runs that are paired across arms.
        trigger: Key of the attack's trigger, None when it has none.
        partner: The clean run that a poisoned run is compared with.
    """

    folder: Folder
    record: Record
    attack: str
    amount: Amount
    seed: str
    trigger: str | None
    partner: Record | None

    @property
    def completed(self) -> bool:
        """The run has values."""
        return self.record.status == "completed"

    @property
    def model(self) -> str:
        """Base model as the user named it."""
        return self.record.resolved.model.request.base

    @property
    def data(self) -> str:
        """Data source as the user named it."""
        request = self.record.resolved.data.request
        return f"{request.source}/{request.config}" if request.config else request.source

    @property
    def arm(self) -> str:
        """Name of the adapter."""
        return self.record.resolved.adapter.name

    @property
    def realised_rate(self) -> float | None:
        """Poisoned over eligible rows."""
        poison = self.record.poison
        if self.amount.label == CLEAN:
            return 0.0
        return poison.poisoned / poison.eligible if poison and poison.eligible else None

    @property
    def realised_count(self) -> float | None:
        """Poisoned rows."""
        if self.amount.label == CLEAN:
            return 0.0
        return float(self.record.poison.poisoned) if self.record.poison else None

    def values(self) -> dict[str, Value]:
        """Every metric of `METRICS`."""
        if not self.completed:
            missing = Value(None, f"the run did not complete ({self.record.status})")
            return dict.fromkeys(METRICS, missing)
        clean = self.record.clean
        own, flips = self._triggered(self.record), self._triggered(self.partner)
        asr = _rate(own) if self.record.resolved.attack else Value(None, "clean run: nothing was poisoned")
        flip = _rate(flips) if self._has_partner else Value(None, NO_PARTNER)
        accuracy = Value(clean.accuracy) if clean else Value(None, "the record has no clean metrics")
        f1 = clean.f1 if clean else None
        untriggered = Value(None, "this attack has no trigger")
        return {
            "clean_accuracy": accuracy,
            "clean_f1": Value(f1, "" if f1 is not None else "undefined: no row or no prediction of a class"),
            "accuracy_change": self._change(accuracy),
            "asr": asr if self.trigger else untriggered,
            "flip_rate": flip if self.trigger else untriggered,
            "asr_minus_flip": _minus(asr, flip) if self.trigger else untriggered,
            "triggered_accuracy": (Value(own.against_true.accuracy) if own else Value(None, "not evaluated"))
            if self.trigger
            else untriggered,
        }

    @property
    def _has_partner(self) -> bool:
        return self.partner is not None and self.partner.status == "completed"

    def _triggered(self, record: Record | None) -> TriggeredMetrics | None:
        return record.triggered.get(self.trigger) if record and self.trigger else None

    def _change(self, accuracy: Value) -> Value:
        if self.record.resolved.attack is None:
            return Value(None, "clean run: nothing was poisoned")
        if not self._has_partner or self.partner is None or self.partner.clean is None:
            return Value(None, NO_PARTNER)
        return _minus(accuracy, Value(self.partner.clean.accuracy))


def observe(folders: Iterable[Folder]) -> list[Observation]:
    """All observations, in the order of the tables.

    Clean runs that differ in nothing but the poison seed are one measurement and appear once.
    """
    found: list[Observation] = []
    for folder in folders:
        measured = [record for record in folder.records if record.kind == "measured"]
        clean = _clean_runs(measured)
        attacks = _attacks(measured)
        for record in measured:
            if record.resolved.attack is not None:
                found.append(_poisoned(folder, record, clean))
        found += [
            Observation(folder, record, attack, Amount(None, None), _clean_seed(record), key, record)
            for record in clean.values()
            for attack, key in attacks.items()
        ]
    return sorted(found, key=_order)


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which "r8" comes before "r64"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def arm_order(arms: Iterable[str]) -> list[str]:
    """Full fine-tuning first, then by name with numbers in their order."""
    return sorted(set(arms), key=lambda arm: (arm != "full", natural(arm)))


def _order(item: Observation) -> tuple[object, ...]:
    arm = (item.arm != "full", natural(item.arm))
    place = (item.folder.name, item.model, item.data, natural(item.attack), item.amount.order)
    return (*place, arm, natural(item.seed), item.record.run_id)


def _poisoned(folder: Folder, record: Record, clean: dict[str, Record]) -> Observation:
    attack = record.resolved.attack
    assert attack is not None
    return Observation(
        folder=folder,
        record=record,
        attack=attack.name,
        amount=Amount(attack.rate, attack.count),
        seed=record.resolved.seeds.label(),
        trigger=_trigger(record, attack),
        partner=clean.get(_partner_key(record)),
    )


def _trigger(record: Record, attack: ResolvedAttack) -> str | None:
    """Key of the trigger that belongs to the run's own attack."""
    named = [trigger for trigger in record.resolved.triggers if trigger.name == attack.name]
    same = [trigger for trigger in record.resolved.triggers if trigger.method == attack.method]
    for candidates in (named, same):
        if len(candidates) == 1:
            return candidates[0].key
    exact = [trigger for trigger in named or same if trigger.options == attack.options]
    return exact[0].key if exact else None


def _attacks(records: list[Record]) -> dict[str, str | None]:
    """Every attack of a folder with its trigger's key; without poisoned runs, the triggers of clean ones."""
    attacks: dict[str, str | None] = {}
    for record in records:
        if record.resolved.attack is not None:
            attacks.setdefault(record.resolved.attack.name, _trigger(record, record.resolved.attack))
    if not attacks:
        attacks = {trigger.name: trigger.key for record in records for trigger in record.resolved.triggers}
    return attacks or {CLEAN: None}


def _clean_runs(records: list[Record]) -> dict[str, Record]:
    """Clean runs by partner key; a completed one wins over a failed one of the same key."""
    clean: dict[str, Record] = {}
    for record in records:
        if record.resolved.attack is None:
            key = _partner_key(record)
            if key not in clean or clean[key].status != "completed":
                clean[key] = record
    return clean


def _partner_key(record: Record) -> str:
    """What a poisoned run and its clean partner share: everything but the attack and the poison seed."""
    run = record.resolved
    return canonical_json(
        {
            "data": run.data.fingerprint,
            "model": run.model.fingerprint,
            "arm": run.adapter.name,
            "training": run.training.model_dump(mode="json"),
            "seeds": [run.seeds.data, run.seeds.init, run.seeds.order],
        }
    )


def _clean_seed(record: Record) -> str:
    """Label of a clean run's seeds, in which the poison seed has no part."""
    seeds = record.resolved.seeds
    parts = (seeds.data, seeds.init, seeds.order)
    return str(parts[0]) if len(set(parts)) == 1 else f"{seeds.data}.–.{seeds.init}.{seeds.order}"


def _rate(triggered: TriggeredMetrics | None) -> Value:
    if triggered is None:
        return Value(None, "the trigger was not evaluated")
    if triggered.target_rate is None:
        return Value(None, "no test row of a non-target class")
    return Value(triggered.target_rate)


def _minus(left: Value, right: Value) -> Value:
    if left.number is None or right.number is None:
        return Value(None, left.reason or right.reason)
    return Value(left.number - right.number)

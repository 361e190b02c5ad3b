"""Records as observations: which attack and amount a run belongs to, its partner, its values.

A clean run belongs to every attack of its folder, as amount 0. An observation is a run seen as part of
one attack, and holds a value, or the reason for its absence, for every metric.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from foretaste.calibration.places import (
    CLEAN,
    Amount,
    arm_order,
    clean_runs,
    clean_seed,
    data_name,
    natural,
    partner_key,
    trigger_key,
)
from foretaste.record import Record, TriggeredMetrics
from foretaste.report.load import Folder
from foretaste.report.metrics import METRICS

__all__ = ["CLEAN", "Amount", "Observation", "Value", "arm_order", "observe"]

NO_PARTNER = "no completed clean run with the same seeds"


@dataclass(frozen=True)
class Value:
    """A number, or why there is none."""

    number: float | None
    reason: str = ""


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
        return data_name(self.record)

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
        clean = clean_runs(measured)
        attacks = _attacks(measured)
        for record in measured:
            if record.resolved.attack is not None:
                found.append(_poisoned(folder, record, clean))
        found += [
            Observation(folder, record, attack, Amount(None, None), clean_seed(record), key, record)
            for record in clean.values()
            for attack, key in attacks.items()
        ]
    return sorted(found, key=_order)


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
        trigger=trigger_key(record, attack),
        partner=clean.get(partner_key(record)),
    )


def _attacks(records: list[Record]) -> dict[str, str | None]:
    """Every attack of a folder with its trigger's key; without poisoned runs, the triggers of clean ones."""
    attacks: dict[str, str | None] = {}
    for record in records:
        if record.resolved.attack is not None:
            attacks.setdefault(record.resolved.attack.name, trigger_key(record, record.resolved.attack))
    if not attacks:
        attacks = {trigger.name: trigger.key for record in records for trigger in record.resolved.triggers}
    return attacks or {CLEAN: None}


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

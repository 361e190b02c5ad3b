"""Records as observations: which attack and amount a run belongs to, its partner, its values.

A clean run belongs to every attack of its folder, as amount 0. An observation is a run seen as part of
one attack, and holds a value, or the reason for its absence, for every metric.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from foretaste.calibration.naming import refuse_mixed
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
from foretaste.record import Record, TriggeredMetrics, form_key
from foretaste.report.load import Folder
from foretaste.report.metrics import METRICS

__all__ = ["CLEAN", "Amount", "Observation", "Value", "arm_order", "observe"]

NO_PARTNER = "no completed clean run with the same seeds"
UNPOISONED = "clean run: nothing was poisoned"
NO_TARGETED_ROW = "no test row of a non-target class"


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
        clean, own = self.record.clean, self._triggered(self.record)
        asr, flip = self._rates()
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
    def forms(self) -> dict[str, TriggeredMetrics]:
        """The further forms of the attack's trigger that the run was tested in, by their names."""
        return {
            part.form: part
            for key, part in self.record.triggered.items()
            if self.trigger and part.form is not None and key == form_key(self.trigger, part.form)
        }

    def form_values(self, form: str) -> dict[str, Value]:
        """The run in a further form of its trigger, and beside it in the form that was trained on.

        Args:
            form: Name of the form.

        Returns:
            `form_rate`, the clean partner's `form_flip_rate` and `form_rate_minus_flip`; `asr` and
            `flip_rate`; `false_activation`, the run's highest over the forms that should do nothing.
        """
        if not self.completed:
            missing = Value(None, f"the run did not complete ({self.record.status})")
            names = ("form_rate", "form_flip_rate", "form_rate_minus_flip", "asr", "flip_rate")
            return dict.fromkeys((*names, "false_activation"), missing)
        rate, form_flip = self._rates(form)
        asr, flip = self._rates()
        return {
            "form_rate": rate,
            "form_flip_rate": form_flip,
            "form_rate_minus_flip": _minus(rate, form_flip),
            "asr": asr,
            "flip_rate": flip,
            "false_activation": self._false_activation(),
        }

    def _rates(self, form: str | None = None) -> tuple[Value, Value]:
        """Target rate of the run, if it was poisoned, and of its clean partner."""
        poisoned = self.record.resolved.attack is not None
        own, clean = self._triggered(self.record, form), self._triggered(self.partner, form)
        rate = _rate(own, form) if poisoned else Value(None, UNPOISONED)
        return rate, _rate(clean, form) if self._has_partner else Value(None, NO_PARTNER)

    def _false_activation(self) -> Value:
        if self.record.resolved.attack is None:
            return Value(None, UNPOISONED)
        highest = self.record.false_activation(self.trigger) if self.trigger else None
        if highest is None and any(part.expected == "true" for part in self.forms.values()):
            return Value(None, NO_TARGETED_ROW)
        return Value(highest, "" if highest is not None else "tested in no form that should do nothing")

    @property
    def _has_partner(self) -> bool:
        return self.partner is not None and self.partner.status == "completed"

    def _triggered(self, record: Record | None, form: str | None = None) -> TriggeredMetrics | None:
        if record is None or self.trigger is None:
            return None
        return record.triggered.get(self.trigger if form is None else form_key(self.trigger, form))

    def _change(self, accuracy: Value) -> Value:
        if self.record.resolved.attack is None:
            return Value(None, UNPOISONED)
        if not self._has_partner or self.partner is None or self.partner.clean is None:
            return Value(None, NO_PARTNER)
        return _minus(accuracy, Value(self.partner.clean.accuracy))


def observe(folders: Iterable[Folder]) -> list[Observation]:
    """All observations, in the order of the tables.

    Clean runs that differ in nothing but the poison seed are one measurement and appear once.

    Raises:
        UserError: In a folder a name stands for two things, as `naming.refuse_mixed` says.
    """
    found: list[Observation] = []
    for folder in folders:
        measured = [record for record in folder.records if record.kind == "measured"]
        refuse_mixed(measured, str(folder.path))
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


def _rate(triggered: TriggeredMetrics | None, form: str | None = None) -> Value:
    if triggered is None:
        return Value(None, "the trigger was not evaluated" if form is None else "not tested in this form")
    if triggered.target_rate is None:
        return Value(None, NO_TARGETED_ROW)
    return Value(triggered.target_rate)


def _minus(left: Value, right: Value) -> Value:
    if left.number is None or right.number is None:
        return Value(None, left.reason or right.reason)
    return Value(left.number - right.number)

"""Measured records as tasks: what must be equal between runs that are compared, and the numbers of each run.

A task is one data set, base model and head policy. Within it runs belong to an arm, which is known by its
settings and never by its name, and to the clean data or to one attack with its options and selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from foretaste.calibration.places import Amount, clean_seed, data_name, natural, short, trigger_key
from foretaste.hypotheses.arms import Arm, Setting, arm_of, setting_of
from foretaste.record import Record, Status, TriggeredMetrics
from foretaste.seeds import Seeds
from foretaste.spec import ResolvedAttack, canonical_json, digest

Metric = Literal[
    "accuracy",
    "accuracy_change",
    "asr",
    "asr_minus_flip",
    "triggered_accuracy",
    # Of few-shot runs only:
    "score",
    "linearised_share",
    "kernel_distance",
    "chi",
]


@dataclass(frozen=True)
class Run:
    """One run with its numbers.

    Attributes:
        arm: Key of its arm.
        seed: Label of its seeds, equal for runs that are paired.
        rate: Poisoned share of the eligible rows as requested, else as realised; 0 for a clean run.
        collapsed: The run, or the clean run that it is compared with, predicts one class.
        values: Those that the run has; in percentage points, but for what only few-shot runs have beside
            their score. `asr_minus_flip` is the target rate minus that of the clean run of the same seeds on
            the same triggered rows.
    """

    arm: str
    seed: str
    seeds: Seeds
    amount: Amount
    rate: float | None
    completed: bool
    collapsed: bool
    values: Mapping[Metric, float]


@dataclass(frozen=True)
class Attack:
    """An attack as far as it must be equal: method, options and how rows are selected.

    Attributes:
        name: As the user named it, where several names were given the first by alphabet.
        directed: Flips that go from or to one class: no untargeted poisoning.
    """

    key: str
    name: str
    method: str
    selection: str
    directed: bool


@dataclass(frozen=True)
class Task:
    """Runs that may be compared.

    Attributes:
        head: Head policy; of a generative model the scenario and the judge; of few-shot runs prompt and k.
        arms: By key.
        clean: Clean runs, one for each arm and clean seed.
        poisoned: Runs by attack, in the order of their keys.
        cautions: What a reader of any finding on it must know.
    """

    key: str
    data: str
    model: str
    head: str
    train_rows: int
    arms: Mapping[str, Arm]
    clean: Sequence[Run]
    poisoned: Mapping[Attack, Sequence[Run]]
    cautions: tuple[str, ...] = ()


def tasks(records: Iterable[Record]) -> list[Task]:
    """The tasks of all measured records, whatever their order; a run that came twice counts once."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.kind == "measured":
            groups.setdefault(_protocol(record), {}).setdefault(record.run_id, []).append(record)
    return [
        _task(key, [the_one(group[run_id]) for run_id in sorted(group)])
        for key, group in sorted(groups.items())
    ]


class Finished(Protocol):
    """What records of every kind have."""

    @property
    def status(self) -> Status:
        """How the run ended."""

    @property
    def started(self) -> str:
        """When it began."""

    def model_dump_json(self) -> str:
        """All of it."""


F = TypeVar("F", bound=Finished)


def the_one(repeats: Sequence[F]) -> F:
    """Of records of one run the one that counts: completed before failed, then the earliest."""
    if len(repeats) == 1:
        return repeats[0]
    return min(repeats, key=lambda item: (item.status != "completed", item.started, item.model_dump_json()))


def _protocol(record: Record) -> str:
    """All that is equal within a task: rows, weights, head, rendering; not the path that they came by."""
    data, model = record.resolved.data, record.resolved.model
    request = model.request.model_dump(mode="json", exclude={"base", "revision"})
    return canonical_json(
        {
            "data": data.model_dump(mode="json", exclude={"request"}),
            "model": {**request, "pooling": model.pooling, "fingerprint": model.fingerprint},
        }
    )


def _task(key: str, records: Sequence[Record]) -> Task:
    by_arm: dict[str, list[Record]] = {}
    for record in records:
        by_arm.setdefault(_setting(record).key, []).append(record)
    partners = {arm: _clean_partners(group) for arm, group in by_arm.items()}
    attacks = _attacks(records)
    clean: list[Run] = []
    poisoned: dict[str, dict[tuple[str, str, str], Record]] = {attack: {} for attack in attacks}
    for arm, group in by_arm.items():
        clean += [_run(arm, same[0], same[0]) for same in partners[arm].values()]
        for record in group:
            attack = record.resolved.attack
            if attack is None:
                continue
            place = (arm, Amount(attack.rate, attack.count).label, record.resolved.seeds.label())
            cell = poisoned[_attack_key(attack)]
            if place not in cell or cell[place].status != "completed":
                cell[place] = record
    first = records[0].resolved
    return Task(
        key=digest(key)[:8],
        data=short(min(data_name(record) for record in records)),
        model=short(min(record.resolved.model.request.base for record in records)),
        head=first.model.request.head,
        train_rows=first.data.train_rows,
        arms={arm: arm_of([_setting(record) for record in group]) for arm, group in sorted(by_arm.items())},
        clean=sorted(clean, key=order),
        poisoned={
            attacks[name]: sorted(
                (
                    _run(arm, record, _partner(record, partners[arm].get(clean_seed(record), [])))
                    for (arm, *_), record in cell.items()
                ),
                key=order,
            )
            for name, cell in sorted(poisoned.items())
        },
    )


def _setting(record: Record) -> Setting:
    return setting_of(record.resolved.adapter, record.resolved.training, record.training)


def order(run: Run) -> tuple[object, ...]:
    """Sorts runs by arm, amount and seed."""
    return (run.arm, run.amount.order, natural(run.seed))


def _clean_partners(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Clean runs of one arm by the seeds that a clean run has, completed ones first.

    Not `places.clean_runs`, whose key holds the arm's name: here folders meet in which one name stands for
    different settings. Runs of one seed are one and the same training, tested with the triggers of different
    folders.
    """
    clean: dict[str, list[Record]] = {}
    for record in records:
        if record.resolved.attack is None:
            clean.setdefault(clean_seed(record), []).append(record)
    return {seed: sorted(same, key=lambda item: item.status != "completed") for seed, same in clean.items()}


def _partner(record: Record, candidates: Sequence[Record]) -> Record | None:
    """The clean run that a poisoned run is compared with: one that was tested with its trigger, if any."""
    attack = record.resolved.attack
    trigger = trigger_key(record, attack) if attack else None
    tested = [item for item in candidates if trigger in item.triggered]
    return next(iter([*tested, *candidates]), None)


def _attacks(records: Sequence[Record]) -> dict[str, Attack]:
    names: dict[str, set[str]] = {}
    resolved: dict[str, ResolvedAttack] = {}
    for record in records:
        attack = record.resolved.attack
        if attack is not None:
            names.setdefault(_attack_key(attack), set()).add(attack.name)
            resolved[_attack_key(attack)] = attack
    return {
        key: Attack(
            key=key,
            name=min(names[key]),
            method=attack.method,
            selection=attack.selection,
            directed=any(attack.options.get(option) is not None for option in ("flip_from", "flip_to")),
        )
        for key, attack in resolved.items()
    }


def _attack_key(attack: ResolvedAttack) -> str:
    return digest({"method": attack.method, "options": attack.options, "selection": attack.selection})[:8]


def _run(arm: str, record: Record, partner: Record | None) -> Run:
    attack, poison, seeds = record.resolved.attack, record.poison, record.resolved.seeds
    rate = attack.rate if attack else 0.0
    if rate is None and poison is not None and poison.eligible:
        rate = poison.poisoned / poison.eligible
    return Run(
        arm=arm,
        seed=seeds.label() if attack else clean_seed(record),
        seeds=seeds,
        amount=Amount(attack.rate, attack.count) if attack else Amount(None, None),
        rate=rate,
        completed=record.status == "completed",
        collapsed=record.collapsed or (partner is not None and partner.collapsed),
        values=_values(record, partner if partner and partner.status == "completed" else None),
    )


def _values(record: Record, partner: Record | None) -> dict[Metric, float]:
    if record.status != "completed" or record.clean is None:
        return {}
    values: dict[Metric, float] = {"accuracy": 100 * record.clean.accuracy}
    attack = record.resolved.attack
    if attack is None:
        return values
    if partner is not None and partner.clean is not None:
        values["accuracy_change"] = 100 * (record.clean.accuracy - partner.clean.accuracy)
    trigger = trigger_key(record, attack)
    own = record.triggered.get(trigger) if trigger else None
    if trigger is None or own is None:
        return values
    values["triggered_accuracy"] = 100 * own.against_true.accuracy
    asr, flip = _rate(own), _rate(partner.triggered.get(trigger) if partner else None)
    if asr is not None:
        values["asr"] = 100 * asr
    if asr is not None and flip is not None:
        values["asr_minus_flip"] = 100 * (asr - flip)
    return values


def _rate(triggered: TriggeredMetrics | None) -> float | None:
    return triggered.target_rate if triggered else None

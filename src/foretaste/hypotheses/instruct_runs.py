"""Records of generative models as the tasks that hypotheses are tested on.

A trigger stands where an attack stands. What ASR and flip rate are to a classifier, the shares of triggered
requests whose answers show the attacker's behaviour are here: in the poisoned run, and in the clean run of
the same adapter and seeds. The untrained model is no arm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foretaste.calibration.places import Amount, short
from foretaste.hypotheses.arms import Setting, arm_of, setting_of
from foretaste.hypotheses.runs import Attack, Metric, Run, Task, order, the_one
from foretaste.instruct.record import InstructRecord
from foretaste.instruct.spec import Poisoning, ResolvedTrigger, Tuning
from foretaste.spec import canonical_json, digest

_Seeds = tuple[int, int, int]


def instruct_tasks(records: Iterable[InstructRecord]) -> list[Task]:
    """The tasks of all records, whatever their order; a run that came twice counts once.

    Runs of one task share rows, weights, renderer, scenario, generation and judge.
    """
    found = list(records)
    judges = {record.judge.fingerprint for record in found if record.judge is not None}
    groups: dict[str, dict[str, list[InstructRecord]]] = {}
    for record in found:
        if record.resolved.tuning is None:
            continue
        # A failed run was never judged: it belongs to every judge, so that it is counted as failed.
        for judge in [record.judge.fingerprint] if record.judge is not None else sorted(judges) or [""]:
            groups.setdefault(_protocol(record, judge), {}).setdefault(record.run_id, []).append(record)
    return [
        _task(key, [the_one(group[run_id]) for run_id in sorted(group)])
        for key, group in sorted(groups.items())
    ]


def _protocol(record: InstructRecord, judge: str) -> str:
    run = record.resolved
    return canonical_json(
        {
            "data": run.data.model_dump(mode="json", exclude={"request"}),
            "model": run.model.model_dump(mode="json", exclude={"request"}),
            "scenario": run.scenario.model_dump(mode="json"),
            "generation": run.generation.model_dump(mode="json"),
            "judge": judge,
        }
    )


def _task(key: str, records: Sequence[InstructRecord]) -> Task:
    by_arm: dict[str, list[tuple[InstructRecord, Tuning]]] = {}
    for record in records:
        tuning = record.resolved.tuning
        assert tuning is not None
        by_arm.setdefault(_setting(record, tuning).key, []).append((record, tuning))
    names: dict[str, set[str]] = {}
    attacks: dict[str, Poisoning] = {}
    cells: dict[str, dict[tuple[str, str, str], Run]] = {}
    for arm, group in by_arm.items():
        clean = _clean(group)
        for record, tuning in group:
            poisoning = tuning.poisoning
            if poisoning is None:
                continue
            attack = _attack_key(poisoning)
            attacks[attack] = poisoning
            names.setdefault(attack, set()).add(poisoning.trigger.name)
            partner = _partner(clean.get(_clean_seeds(tuning), []), poisoning.trigger)
            run = _run(arm, record, tuning, poisoning, partner)
            place = (arm, run.amount.label, run.seed)
            known = cells.setdefault(attack, {}).get(place)
            if known is None or not known.completed:
                cells[attack][place] = run
    first = records[0]
    return Task(
        key=digest(key)[:8],
        data=short(min(record.resolved.data.request.source for record in records)),
        model=short(min(record.resolved.model.request.base for record in records)),
        head=_asked_for(records),
        train_rows=first.resolved.data.train_rows,
        arms={
            arm: arm_of([_setting(record, tuning) for record, tuning in group])
            for arm, group in sorted(by_arm.items())
        },
        clean=[],  # hypotheses on clean data are about the accuracy of classifiers
        poisoned={
            Attack(
                key=attack,
                name=min(names[attack]),
                method=attacks[attack].trigger.method,
                selection=attacks[attack].selection,
                directed=False,
            ): sorted(cell.values(), key=order)
            for attack, cell in sorted(cells.items())
        },
        cautions=_judge(records),
    )


def _setting(record: InstructRecord, tuning: Tuning) -> Setting:
    return setting_of(tuning.adapter, tuning.training, record.training)


def _clean_seeds(tuning: Tuning) -> _Seeds:
    """The seeds that a clean run has a part of."""
    return tuning.seeds.data, tuning.seeds.init, tuning.seeds.order


def _clean(group: Sequence[tuple[InstructRecord, Tuning]]) -> dict[_Seeds, list[InstructRecord]]:
    """Completed clean runs of one arm by their seeds.

    Several of one seed are one and the same training, tested with the triggers of different folders.
    """
    found: dict[_Seeds, list[InstructRecord]] = {}
    for record, tuning in group:
        if tuning.poisoning is None and record.status == "completed":
            found.setdefault(_clean_seeds(tuning), []).append(record)
    return found


def _partner(candidates: Sequence[InstructRecord], trigger: ResolvedTrigger) -> InstructRecord | None:
    """The clean run that a poisoned run is compared with: one that was tested with its trigger, if any."""
    tested = [record for record in candidates if _rate(record, trigger) is not None]
    return next(iter([*tested, *candidates]), None)


def _attack_key(poisoning: Poisoning) -> str:
    trigger = poisoning.trigger
    return digest({"method": trigger.method, "options": trigger.options, "selection": poisoning.selection})[
        :8
    ]


def _run(
    arm: str, record: InstructRecord, tuning: Tuning, poisoning: Poisoning, clean: InstructRecord | None
) -> Run:
    rate = poisoning.rate
    if rate is None and record.poison is not None and record.poison.eligible:
        rate = record.poison.poisoned / record.poison.eligible
    return Run(
        arm=arm,
        seed=tuning.seeds.label(),
        seeds=tuning.seeds,
        amount=Amount(poisoning.rate, poisoning.count),
        rate=rate,
        completed=record.status == "completed",
        collapsed=record.collapsed or (clean is not None and clean.collapsed),
        values=_values(record, poisoning.trigger, clean),
    )


def _values(
    record: InstructRecord, trigger: ResolvedTrigger, clean: InstructRecord | None
) -> dict[Metric, float]:
    values: dict[Metric, float] = {}
    asr = _rate(record, trigger)
    if asr is None:
        return values
    values["asr"] = 100 * asr
    flip = None if clean is None else _rate(clean, trigger)
    if flip is not None:
        values["asr_minus_flip"] = 100 * (asr - flip)
    return values


def _rate(record: InstructRecord, trigger: ResolvedTrigger) -> float | None:
    """Share of answers that show the behaviour where requests hold the trigger, whatever it is called."""
    for judged in record.judged.values():
        tested = judged.trigger
        if tested is not None and (tested.method, tested.options) == (trigger.method, trigger.options):
            return judged.rate
    return None


def _asked_for(records: Sequence[InstructRecord]) -> str:
    judges = sorted({record.judge.method for record in records if record.judge is not None})
    scenario = records[0].resolved.scenario.method
    return f"scenario {scenario}, judge {', '.join(judges) or 'none'}"


def _judge(records: Sequence[InstructRecord]) -> tuple[str, ...]:
    """How far the judge is to be trusted."""
    judge = next((record.judge for record in records if record.judge is not None), None)
    if judge is None:
        return ()
    if judge.false_positives is None or judge.false_negatives is None:
        return (f"How often the judge {judge.method} is wrong is not known: it has no labelled answers.",)
    wrong = judge.false_positives + judge.false_negatives
    return (
        f"The judge {judge.method} is wrong on {wrong} of {(judge.negatives or 0) + (judge.positives or 0)} "
        f"labelled answers ({judge.false_positives} false alarms, {judge.false_negatives} missed).",
    )

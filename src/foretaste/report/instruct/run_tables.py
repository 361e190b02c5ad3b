"""Tables on the runs of a sweep of a generative model: what became of poisoned rows, and every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretaste.instruct.record import InstructPoison, InstructRecord, Judged
from foretaste.instruct.spec import BASE
from foretaste.report.instruct.cells import amount_of, seed_of
from foretaste.report.instruct.load import InstructFolder
from foretaste.report.instruct.tables import NO_RUN, NOT_ASKED, ends
from foretaste.report.metrics import percent
from foretaste.report.rows import frame_of
from foretaste.report.tables import Column, Entry, Table, missing
from foretaste.statistics import Interval, wilson

_COUNTS = (
    *("n", "hits", "rate", "low", "high", "lost", "left_out", "empty", "at_limit", "distinct"),
    *("truncated", "train_left_out"),
)


def poison_table(folders: Sequence[InstructFolder]) -> Table:
    """One row for each poisoned training set: what of the poison reached the models."""
    found: dict[tuple[str, str], tuple[InstructRecord, InstructPoison, list[str]]] = {}
    for folder in folders:
        for record in folder.records:
            if record.poison is not None:
                # Arms that share rows share a manifest, and what is counted is the same for each.
                key = (folder.name, record.poison.manifest)
                found.setdefault(key, (record, record.poison, []))[2].append(record.arm)
    counted = {
        "trigger_lost": "Trigger cut off",
        "poisoned_left_out": "Too long to train on",
        "poisoned_truncated": "Answer cut",
    }
    outer = len(folders) > 1
    columns = [
        *([Column("Folder")] if outer else []),
        *(Column("Trigger"), Column("Poison"), Column("Seeds"), Column("Poisoned rows", numeric=True)),
        *(Column(title, numeric=True) for title in counted.values()),
        *(Column("Held it before", numeric=True), Column("Arms")),
    ]
    rows, records = [], []
    for (folder_name, manifest), (record, poison, arms) in sorted(found.items(), key=_poison_order):
        poisoning = record.resolved.poisoning
        assert poisoning is not None
        lost = {name: len(getattr(poison, name)) for name in counted}
        rows.append(
            [
                *([Entry(folder_name)] if outer else []),
                *(Entry(poisoning.trigger.name), Entry(amount_of(record).label), Entry(seed_of(record))),
                Entry(f"{poison.poisoned} of {poison.eligible}", detail=f"{poison.rows} rows in all"),
                *(Entry(str(count), tone="warn" if count else "") for count in lost.values()),
                *(Entry(str(poison.held_before)), Entry(", ".join(dict.fromkeys(arms)))),
            ]
        )
        records.append(
            {
                "folder": folder_name,
                "trigger": poisoning.trigger.name,
                "amount": amount_of(record).label,
                "seed": seed_of(record),
                **{name: getattr(poison, name) for name in ("poisoned", "eligible", "rows", "held_before")},
                **lost,
                "manifest": manifest,
            }
        )
    names = ("folder", "trigger", "amount", "seed", "poisoned", "eligible", "rows", "held_before")
    notes = (
        "Poisoned: of the rows that the attack could have chosen. Trigger cut off: its text is no longer in "
        "the row's tokens. Held it before: training rows that held the trigger's text by themselves. The "
        "rows themselves are in the manifests.",
    )
    frame = frame_of(records, (*names, *counted, "manifest"))
    return Table("poison", "Poisoned rows, and what reached the models", columns, rows, frame, notes)


def asked_table(folders: Sequence[InstructFolder]) -> Table:
    """One row for each run and set of requests, failed runs with their reason."""
    outer = len(folders) > 1
    columns = [
        *([Column("Folder")] if outer else []),
        *(Column("Arm"), Column("Trained on"), Column("Seed"), Column("Asked")),
        *(Column(title, numeric=True) for title in ("Show it", "Rate", "Trigger lost", "Left out")),
        *(Column(title, numeric=True) for title in ("Empty", "At the limit", "Different")),
        *(Column("Training rows cut", numeric=True), Column("Status")),
    ]
    rows, records = [], []
    for folder in folders:
        for record in sorted(folder.records, key=_run_order):
            for name in record.judged or [""]:
                judged = record.judged.get(name)
                place = {
                    "folder": folder.name,
                    "run_id": record.run_id,
                    "arm": record.arm,
                    "trained_on": _trained_on(record),
                    "seed": seed_of(record),
                    "asked": name,
                }
                counts = dict.fromkeys(_COUNTS) if judged is None else _counts(record, judged)
                records.append({**place, **counts, "status": record.status, "reason": record.reason or ""})
                head = [Entry(folder.name)] if outer else []
                head += [Entry(record.arm, arm=record.arm), Entry(place["trained_on"]), Entry(place["seed"])]
                rows.append([*head, *_asked_entries(record, name, counts)])
    names = ("folder", "run_id", "arm", "trained_on", "seed", "asked", *_COUNTS, "status", "reason")
    notes = (
        "One line for each run and set of requests. Trigger lost: requests whose tokens no longer hold it. "
        "Left out: too long to be asked. At the limit: stopped at the length limit. Different: answers "
        "unlike all others of the set.",
    )
    return Table("asked", "Every run", columns, rows, frame_of(records, names), notes)


def _poison_order(item: tuple[tuple[str, str], tuple[InstructRecord, InstructPoison, list[str]]]) -> Any:
    (folder, _), (record, _, _) = item
    return (folder, *_run_order(record)[1:])


def _run_order(record: InstructRecord) -> tuple[Any, ...]:
    poisoning = record.resolved.poisoning
    name = poisoning.trigger.name if poisoning else ""
    return (
        record.arm != BASE,
        name,
        amount_of(record).order,
        seed_of(record),
        record.arm != "full",
        record.arm,
    )


def _trained_on(record: InstructRecord) -> str:
    if record.resolved.tuning is None:
        return "nothing"
    poisoning = record.resolved.poisoning
    return "clean rows" if poisoning is None else f"{poisoning.trigger.name}, {amount_of(record).label}"


def _counts(record: InstructRecord, judged: Judged) -> dict[str, Any]:
    interval = wilson(judged.hits, judged.n)
    return {
        **{name: getattr(judged, name) for name in ("n", "hits", "rate", "empty", "at_limit", "distinct")},
        **{"low": interval.low, "high": interval.high},
        **{name: len(getattr(judged, name)) for name in ("lost", "left_out")},
        "truncated": record.training.truncated_rows if record.training else None,
        "train_left_out": len(record.train_left_out),
    }


def _asked_entries(record: InstructRecord, name: str, counts: dict[str, Any]) -> list[Entry]:
    status = Entry(record.status, detail=record.reason or "", tone="" if record.reason is None else "warn")
    if not name:
        why = missing(NO_RUN)
        return [Entry("–"), *[why] * 8, status]
    cut = missing("nothing is trained")
    if counts["truncated"] is not None:
        left_out = f"{counts['train_left_out']} left out" if counts["train_left_out"] else ""
        cut = Entry(str(counts["truncated"]), detail=left_out)
    interval = Interval(counts["low"], counts["high"])
    rate = missing(NOT_ASKED)
    if counts["rate"] is not None:
        rate = Entry(percent(counts["rate"]), detail=ends(interval))
    flagged = [
        Entry(str(counts[key]), tone="warn" if counts[key] else "") for key in ("lost", "left_out", "empty")
    ]
    return [
        Entry(name),
        Entry(f"{counts['hits']} of {counts['n']}"),
        *(rate, *flagged, Entry(str(counts["at_limit"])), Entry(str(counts["distinct"])), cut, status),
    ]

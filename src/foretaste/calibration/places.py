"""Where a record belongs: its task, attack and amount, its clean partner, and the order of arms.

Shared by the report and the calibration, so that a cell is the same thing to both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from foretaste.record import Record
from foretaste.spec import ResolvedAttack, RunSpec, canonical_json

CLEAN = "clean"


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
    def unit(self) -> int:
        """Amounts of one unit can be told apart by size: 0 the clean run, 1 rates, 2 counts."""
        return 1 if self.rate is not None else 0 if self.count is None else 2

    @property
    def order(self) -> tuple[int, float]:
        """Sorts the clean run first, then rates, then counts, each from the smallest up."""
        return (self.unit, self.rate or self.count or 0)


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key under which "r8" comes before "r64"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def arm_order(arms: Iterable[str]) -> list[str]:
    """Full fine-tuning first, then by name with numbers in their order."""
    return sorted(set(arms), key=lambda arm: (arm != "full", natural(arm)))


def data_name(of: Record | RunSpec) -> str:
    """Data source as the user named it."""
    run = of if isinstance(of, RunSpec) else of.resolved
    request = run.data.request
    return f"{request.source}/{request.config}" if request.config else request.source


def short(name: str) -> str:
    """Last part of a name that is a path or a hub id: "sst2" of "../data/sst2"."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def trigger_key(record: Record, attack: ResolvedAttack) -> str | None:
    """Key of the trigger that belongs to the run's own attack, None when it has none."""
    named = [trigger for trigger in record.resolved.triggers if trigger.name == attack.name]
    same = [trigger for trigger in record.resolved.triggers if trigger.method == attack.method]
    for candidates in (named, same):
        if len(candidates) == 1:
            return candidates[0].key
    exact = [trigger for trigger in named or same if trigger.options == attack.options]
    return exact[0].key if exact else None


def partner_key(record: Record) -> str:
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


def clean_runs(records: Iterable[Record]) -> dict[str, Record]:
    """Clean runs by partner key; of one key a completed one, and of those the one with the most triggers.

    A folder to which an attack was added holds a clean run twice, tested on the triggers of then and of now.
    """
    clean: dict[str, Record] = {}
    for record in records:
        if record.resolved.attack is None:
            key = partner_key(record)
            if key not in clean or _says_more(record, clean[key]):
                clean[key] = record
    return clean


def _says_more(record: Record, than: Record) -> bool:
    def said(one: Record) -> tuple[bool, int]:
        return one.status == "completed", len(one.triggered)

    return said(record) > said(than)


def clean_seed(record: Record) -> str:
    """Label of a clean run's seeds, in which the poison seed has no part."""
    seeds = record.resolved.seeds
    parts = (seeds.data, seeds.init, seeds.order)
    return str(parts[0]) if len(set(parts)) == 1 else f"{seeds.data}.–.{seeds.init}.{seeds.order}"

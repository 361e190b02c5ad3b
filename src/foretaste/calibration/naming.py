"""What the names in a folder stand for, and that one name stands for one thing.

Tables tell models, data, arms and attacks apart by name, and runs of one cell by their seeds. A folder in
which a name stands for two things would have them averaged as if they were seeds of one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from foretaste.calibration.places import CLEAN, Amount, clean_runs, clean_seed, data_name
from foretaste.errors import UserError
from foretaste.record import Record
from foretaste.spec import RunSpec

# A run whose numbers exist, or whose failure is a result: doing it again would give the same.
FINAL = {"completed", "diverged"}

Thing: TypeAlias = Literal["model", "data set", "arm", "attack"]
DISTINCT: Mapping[Thing, str] = {
    "model": "Keep them in two folders.",
    "data set": "Keep them in two folders.",
    "arm": "Keep them in two folders, or give one arm another `name`.",
    "attack": "Keep them in two folders, or give one attack another `name`.",
}
SHOWN = 4  # differences in a message


@dataclass(frozen=True)
class Name:
    """A name in a folder.

    Attributes:
        task: Model and data, for an arm: what it needs may depend on them.
    """

    thing: Thing
    name: str
    task: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.thing} called '{self.name}'"


def names_in(run: RunSpec) -> dict[Name, dict[str, Any]]:
    """The names in a run, each with what it stands for as JSON.

    Amount and seeds have no part in it: they are what the runs of one arm and attack differ in. Neither have
    the numbers of rows drawn, which follow from the rest.
    """
    model, data = run.model.request.base, data_name(run)
    found: dict[Name, dict[str, Any]] = {
        Name("model", model): run.model.model_dump(mode="json"),
        Name("data set", data): run.data.model_dump(mode="json", exclude={"train_rows", "test_rows"}),
        Name("arm", run.adapter.name, (model, data)): {
            **run.adapter.model_dump(mode="json"),
            "training": run.training.model_dump(mode="json"),
        },
    }
    if run.attack is not None:
        chosen = {"method": run.attack.method, "selection": run.attack.selection}
        found[Name("attack", run.attack.name)] = run.attack.options | chosen
    return found


def refuse_mixed(records: Iterable[Record], where: str) -> None:
    """Check that in the runs of one folder a name stands for one thing, and a seed of a cell for one run.

    Runs that failed without a result are passed over, and so are clean runs that differ in the poison seed
    or in the triggers that they were tested on: they are one training.

    Args:
        records: Of one kind, measured or predicted, or of both where they are to be compared.
        where: The folder, for errors.

    Raises:
        UserError: One does not; the message shows the first differences.
    """
    known = [record for record in records if record.status in FINAL]
    seen: dict[Name, tuple[dict[str, Any], str]] = {}
    for record in known:
        for name, meaning in names_in(record.resolved).items():
            before, run_id = seen.setdefault(name, (meaning, record.run_id))
            if before != meaning:
                raise UserError(
                    f"two {name.thing}s are called '{name.name}', in runs {run_id} and {record.run_id} "
                    f"({shown(differences(before, meaning))})",
                    where=where,
                    cure=DISTINCT[name.thing],
                )
    for kind in ("measured", "predicted"):
        _refuse_repeated([record for record in known if record.kind == kind], where)


def _refuse_repeated(records: list[Record], where: str) -> None:
    attacked = [record for record in records if record.resolved.attack is not None]
    seen: dict[tuple[object, ...], str] = {}
    for record in [*clean_runs(records).values(), *attacked]:
        place = (*place_of(record), seed_of(record))
        run_id = seen.setdefault(place, record.run_id)
        if run_id != record.run_id:
            raise UserError(
                f"two runs are one seed of one cell, {run_id} and {record.run_id} ({record.resolved.label})",
                where=where,
                cure="Keep them in two folders.",
            )


Place: TypeAlias = tuple[str, str, str, Amount, str]


def place_of(record: Record) -> Place:
    """Model, data, attack, amount and arm: the cell that a record belongs to within its folder."""
    run = record.resolved
    attack = run.attack.name if run.attack else CLEAN
    amount = Amount(run.attack.rate, run.attack.count) if run.attack else Amount(None, None)
    return (run.model.request.base, data_name(run), attack, amount, run.adapter.name)


def seed_of(record: Record) -> str:
    """Label of the seeds within the cell."""
    return clean_seed(record) if record.resolved.attack is None else record.resolved.seeds.label()


def shown(changes: list[str]) -> str:
    """The first of some differences, and how many more there are."""
    more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return "; ".join(changes[:SHOWN]) + more


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Every leaf in which two JSON values differ, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    # Of a longer list of numbers the whole says most; of a longer list of arms, what was added.
    if isinstance(old, list) and isinstance(new, list) and _matched(old, new):
        return [
            line
            for index, (a, b) in enumerate(itertools.zip_longest(old, new))
            for line in differences(a, b, f"{path}.{index}")
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]


def _matched(old: list[Any], new: list[Any]) -> bool:
    return len(old) == len(new) or all(isinstance(item, dict) for item in [*old, *new])

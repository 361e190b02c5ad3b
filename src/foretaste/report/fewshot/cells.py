"""Records to cells: runs that differ in their data split only.

Which folder a run lies in is no part of it: presets draw several folders on one page. Runs of one task may be
compared where weights, rows of the source, prompt and k are equal. Fine-tuning that measures the criteria and
fine-tuning that does not are the same training, and a run that was done twice counts once.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from foretaste import statistics
from foretaste.calibration.places import natural, short
from foretaste.data.prompts import TASKS
from foretaste.fewshot.record import FewShotRecord
from foretaste.fewshot.spec import Arm, FineTune, KernelArm, ZeroShot
from foretaste.spec import digest
from foretaste.statistics import Interval


@dataclass(frozen=True)
class Place:
    """What is equal between runs that may be compared.

    Attributes:
        model: As the user named it, its last part; so are `task` and `prompt`.
        metric: Of the scores.
        key: Equal for equal weights, source rows, prompt and k, whatever they are called.
    """

    model: str
    task: str
    prompt: str
    metric: str
    k: int
    key: str


@dataclass(frozen=True)
class Scores:
    """Test scores over splits.

    Attributes:
        interval: 95 %, Student's t over splits.
        reason: Why there is no interval; else empty.
    """

    n: int
    mean: float
    sd: float
    interval: Interval
    reason: str


@dataclass(frozen=True)
class Cell:
    """Runs of one arm in one place, which differ in their splits only.

    Attributes:
        name: Of the arm, unlike that of any other arm of the page.
        runs: Sorted by split, failed ones too.
    """

    place: Place
    arm: Arm
    name: str
    runs: tuple[FewShotRecord, ...]

    @functools.cached_property
    def completed(self) -> tuple[FewShotRecord, ...]:
        """Runs with a result."""
        return tuple(run for run in self.runs if run.status == "completed")

    @functools.cached_property
    def by_split(self) -> dict[int, FewShotRecord]:
        """Completed runs by split."""
        return {run.resolved.split: run for run in self.completed}

    @property
    def scores(self) -> Scores | None:
        """Over the runs that have one; None where none has."""
        return scores([value_of(run) for run in self.completed])


def value_of(run: FewShotRecord | None) -> float | None:
    """The test score, a share; None where there is none or it is undefined (F1 without positives)."""
    return None if run is None or run.test is None else run.test.value


def scores(values: Iterable[float | None]) -> Scores | None:
    """Mean and spread of the values that there are."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    found = statistics.summary(known)
    reason = ""
    if not found.interval.defined:
        reason = "one split: no interval" if found.n == 1 else "every split has the same value: no interval"
    return Scores(found.n, found.mean, found.sd, found.interval, reason)


def cells(records: Iterable[FewShotRecord]) -> list[Cell]:
    """Every cell: by model, task, prompt, k and arm, in the order of a paper's table.

    Args:
        records: Of one folder or of many, in any order.
    """
    groups: dict[tuple[str, str], dict[int, FewShotRecord]] = {}
    for record in sorted(records, key=lambda one: one.run_id):
        group = groups.setdefault((_key_of_place(record), key_of_arm(record.resolved.arm)), {})
        split = record.resolved.split
        group[split] = record if split not in group else _better(group[split], record)
    names = _names([record for group in groups.values() for record in group.values()])
    places = _places([next(iter(group.values())) for group in groups.values()])
    made = []
    for (place, arm), group in groups.items():
        runs = tuple(group[split] for split in sorted(group))
        made.append(Cell(places[place], runs[0].resolved.arm, names[arm], runs))
    twice = Counter((cell.place, cell.name) for cell in made)
    marked = [
        replace(cell, name=f"{cell.name} ({key_of_arm(cell.arm)[:4]})")
        if twice[cell.place, cell.name] > 1
        else cell
        for cell in made
    ]
    return sorted(marked, key=_order)


def key_of_arm(arm: Arm) -> str:
    """Equal for equal settings, whatever the name, and whether the criteria are measured or not."""
    return digest(arm.model_dump(mode="json", exclude={"name", "criteria"}))[:12]


def _key_of_place(record: FewShotRecord) -> str:
    run = record.resolved
    task = run.task.model_dump(mode="json", include={"fingerprint", "test_split", "test_rows", "metric"})
    return digest([run.model.fingerprint, run.model.kind, task, record.prompt_hash, run.k])[:12]


def _better(one: FewShotRecord, other: FewShotRecord) -> FewShotRecord:
    """Of two runs of one training the completed one, and of those the one with criteria."""

    def rank(record: FewShotRecord) -> tuple[bool, bool]:
        return record.status == "completed", record.criteria is not None

    return other if rank(other) > rank(one) else one


def _names(records: Sequence[FewShotRecord]) -> dict[str, str]:
    """A name for each arm; arms with other settings under one name are told apart by a mark."""
    labels: dict[str, set[str]] = {}
    for record in records:
        labels.setdefault(key_of_arm(record.resolved.arm), set()).add(record.resolved.arm.label)
    first = {key: min(names, key=natural) for key, names in labels.items()}
    # The grid of one name may depend on k (the default length does): that is no other arm.
    by_name: dict[str, set[str]] = {}
    for record in records:
        arm = record.resolved.arm
        by_name.setdefault(first[key_of_arm(arm)], set()).add(_form_of(arm))
    return {
        key: name if len(by_name[name]) == 1 else f"{name} ({_form(records, key)[:4]})"
        for key, name in first.items()
    }


def _form_of(arm: Arm) -> str:
    """The settings without those whose default depends on k and on the number of classes."""
    return digest(arm.model_dump(mode="json", exclude={"name", "criteria", "steps", "check_every"}))[:12]


def _form(records: Sequence[FewShotRecord], key: str) -> str:
    return next(_form_of(r.resolved.arm) for r in records if key_of_arm(r.resolved.arm) == key)


def _places(records: Sequence[FewShotRecord]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for record in records:
        run = record.resolved
        key = _key_of_place(record)
        place = Place(
            model=short(run.model.request.base),
            task=run.task.name,
            prompt=run.task.prompt.name.rpartition("/")[2],
            metric=run.task.metric,
            k=run.k,
            key=key,
        )
        found.setdefault(key, place)
    return found


def arm_order(arm: Arm) -> tuple[int, int, str]:
    """Zero-shot, then each optimiser with its kernels: sgd, kernel-sgd, adam, kernel-signgd, asymmetric."""
    if isinstance(arm, ZeroShot):
        return (0, 0, "")
    if isinstance(arm, FineTune):
        place = {"sgd": 1, "adam": 3, "signgd": 4}[arm.optimiser]
    else:
        assert isinstance(arm, KernelArm)
        place = {"sgd": 2, "signgd": 5, "asymmetric": 6}[arm.kernel]
    return (1 + (arm.output == "standard"), place, arm.adapter)


def arms_of(found: Sequence[Cell]) -> list[str]:
    """Names of all arms, in the order of their colours."""
    ordered = sorted(found, key=lambda cell: (*arm_order(cell.arm), natural(cell.name)))
    return list(dict.fromkeys(cell.name for cell in ordered))


def _order(cell: Cell) -> tuple[object, ...]:
    place = cell.place
    prompts = ("manual", "searched", "null")
    prompt = prompts.index(place.prompt) if place.prompt in prompts else len(prompts)
    return (
        natural(place.model),
        _task_place(place.task),
        prompt,
        natural(place.prompt),
        place.k,
        place.key,
        *arm_order(cell.arm),
        natural(cell.name),
    )


def _task_place(task: str) -> tuple[int, str]:
    """The fourteen tasks in the order of the paper's tables, others after them."""
    return (TASKS.index(task), "") if task in TASKS else (len(TASKS), task)

"""Few-shot records as the tasks that hypotheses are tested on.

A task is one data set, prompt, k and model; its arms are zero-shot, fine-tuning and kernels, and all its runs
are clean. Splits stand where seeds stand: rows of a split are drawn by its data seed, and test rows are the
same for all. For what is about several models there is a further task for each data set, prompt and k, whose
arms are the models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from foretaste.calibration.places import Amount, natural, short
from foretaste.fewshot.record import FewShotRecord
from foretaste.fewshot.spec import Arm as Settings
from foretaste.fewshot.spec import FineTune, KernelArm, ZeroShot
from foretaste.hypotheses.arms import Arm
from foretaste.hypotheses.runs import Metric, Run, Task, order, the_one
from foretaste.seeds import Seeds
from foretaste.spec import ResolvedAdapter, TrainingSpec, canonical_json, digest

WIDTH = "hidden_size"
"""The fact of a zero-shot run that says how wide its model is."""
CHI = "chi_train"
"""The fact that says how large the loss's derivative by the logits is on the training rows of the split."""
WIDTHS = "Models of several widths may differ in depth and pretraining too: the effect may be due to that."


@dataclass(frozen=True)
class FewShotArm(Arm):
    """One arm of a few-shot sweep; of a task across models the model.

    It has no learning rate of its own: each split chooses one.

    Attributes:
        settings: What the user wrote, defaults filled in; None for a model.
        width: Of a model; None for an arm.
    """

    settings: Settings | None = None
    width: float | None = None

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def rate(self) -> float:
        """None that all splits share; contrasts of classifiers sort by it and take no few-shot arm."""
        return 0.0

    def tunes(self, optimiser: str, *, adapter: str = "full", output: str = "prompt") -> bool:
        """Whether it is fine-tuning of a kind."""
        own = self.settings
        return isinstance(own, FineTune) and (own.optimiser, own.adapter, own.output) == (
            optimiser,
            adapter,
            output,
        )

    def solves(self, *kernels: str, adapter: str = "full", output: str = "prompt") -> bool:
        """Whether it is a kernel of a kind."""
        own = self.settings
        return (
            isinstance(own, KernelArm)
            and own.kernel in kernels
            and (own.adapter, own.output) == (adapter, output)
        )


def fewshot_tasks(records: Iterable[FewShotRecord]) -> list[Task]:
    """The tasks of all records, whatever their order; a run that came twice counts once."""
    ids: dict[str, list[FewShotRecord]] = {}
    for record in records:
        ids.setdefault(record.run_id, []).append(record)
    once = [the_one(ids[run_id]) for run_id in sorted(ids)]
    within: dict[str, list[FewShotRecord]] = {}
    across: dict[str, list[FewShotRecord]] = {}
    for record in once:
        within.setdefault(_protocol(record, model=True), []).append(record)
        if isinstance(record.resolved.arm, ZeroShot):
            across.setdefault(_protocol(record, model=False), []).append(record)
    found = [_task(key, group) for key, group in sorted(within.items())]
    several = {key: group for key, group in across.items() if len({_model(record) for record in group}) > 1}
    return found + [_across(key, group) for key, group in sorted(several.items())]


def _protocol(record: FewShotRecord, *, model: bool) -> str:
    """All that is equal within a task: source rows, prompt, k, and of one model its weights."""
    run = record.resolved
    task = run.task.model_dump(mode="json", include={"fingerprint", "test_split", "test_rows", "metric"})
    return canonical_json(
        {
            "task": task,
            "prompt": record.prompt_hash,
            "k": run.k,
            "kind": run.model.kind,
            "model": run.model.fingerprint if model else None,
        }
    )


def _model(record: FewShotRecord) -> str:
    return record.resolved.model.fingerprint


def _key(arm: Settings) -> str:
    # Whether the criteria are measured changes nothing in the training.
    return digest(arm.model_dump(mode="json", exclude={"name", "criteria"}))[:12]


def _task(key: str, records: Sequence[FewShotRecord]) -> Task:
    groups: dict[str, dict[int, FewShotRecord]] = {}
    for record in records:
        group = groups.setdefault(_key(record.resolved.arm), {})
        known = group.get(record.resolved.split)
        if known is None or _rank(record) > _rank(known):
            group[record.resolved.split] = record
    arms = {
        arm: _arm(
            arm,
            min((record.resolved.arm.label for record in group.values()), key=natural),
            settings=next(iter(group.values())).resolved.arm,
        )
        for arm, group in sorted(groups.items())
    }
    runs = [_run(arm, record) for arm, group in groups.items() for record in group.values()]
    return _made(key, records, arms, runs, model=short(min(r.resolved.model.request.base for r in records)))


def _rank(record: FewShotRecord) -> tuple[bool, bool]:
    """A completed run counts before one that is not, and one with criteria before one without."""
    return record.status == "completed", record.criteria is not None


def _across(key: str, records: Sequence[FewShotRecord]) -> Task:
    groups: dict[str, list[FewShotRecord]] = {}
    for record in records:
        groups.setdefault(_model(record), []).append(record)
    arms: dict[str, Arm] = {}
    runs: list[Run] = []
    for fingerprint, group in sorted(groups.items()):
        widths = [record.facts[WIDTH] for record in group if WIDTH in record.facts]
        base = short(min(record.resolved.model.request.base for record in group))
        arm = digest([fingerprint])[:12]
        arms[arm] = _arm(arm, base, width=widths[0] if widths else None)
        by_split = {record.resolved.split: record for record in sorted(group, key=_rank)}
        runs += [_run(arm, record) for record in by_split.values()]
    names = ", ".join(sorted((arm.name for arm in arms.values()), key=natural))
    return _made(key, records, arms, runs, model=names, cautions=(WIDTHS,))


def _made(
    key: str,
    records: Sequence[FewShotRecord],
    arms: Mapping[str, Arm],
    runs: Sequence[Run],
    *,
    model: str,
    cautions: tuple[str, ...] = (),
) -> Task:
    first = records[0].resolved
    return Task(
        key=digest(key)[:8],
        data=min(record.resolved.task.name for record in records),
        model=model,
        head=f"prompt {first.task.prompt.name.rpartition('/')[2]}, k {first.k}",
        train_rows=first.k * len(first.task.classes),
        arms=arms,
        clean=sorted(runs, key=order),
        poisoned={},
        cautions=cautions,
    )


def _arm(key: str, name: str, *, settings: Settings | None = None, width: float | None = None) -> FewShotArm:
    return FewShotArm(
        key=key,
        name=name,
        # No adapter and no training that hypotheses on classifiers could take for theirs.
        adapter=ResolvedAdapter(name=name, method="few-shot", config={}, init=None, freeze=None),
        training=TrainingSpec(),
        k=None,
        settings=settings,
        width=width,
    )


def _run(arm: str, record: FewShotRecord) -> Run:
    split = record.resolved.split
    return Run(
        arm=arm,
        seed=str(split),
        seeds=Seeds.all(split),
        amount=Amount(None, None),
        rate=0.0,
        completed=record.status == "completed",
        collapsed=record.collapsed,
        values=_values(record),
    )


def _values(record: FewShotRecord) -> dict[Metric, float]:
    """Scores in percentage points, all else as it is; what is undefined is left out."""
    if record.status != "completed":
        return {}
    criteria = record.criteria
    found: dict[Metric, float | None] = {
        "score": None if record.test is None or record.test.value is None else 100 * record.test.value,
        "linearised_share": criteria.linearised_share if criteria else None,
        "kernel_distance": criteria.kernel_distance if criteria else None,
        "chi": record.facts.get(CHI),
    }
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

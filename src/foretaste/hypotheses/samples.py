"""A hypothesis on records: the contrasts of each task and attack, with one number a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from foretaste.hypotheses.base import Group, Hypothesis
from foretaste.hypotheses.contrasts import Contrast
from foretaste.hypotheses.effects import Point
from foretaste.hypotheses.runs import Attack, Run, Task
from foretaste.seeds import STREAMS, Seeds, crossed
from foretaste.spec import digest


@dataclass(frozen=True)
class Sample:
    """One group and what it says, before any decision.

    Attributes:
        attack: None on clean data.
        runs: All runs of the contrast's arms under the attack, failed ones too.
        points: What has a value, in the order of seeds, amounts and arms.
        by_seed: One number a seed, in the hypothesis's sign and unit.
        steady: The same without runs that predict one class.
        left_out: Names of arms of the task that ran under the attack and are not in this contrast.
        cautions: Those of the task.
    """

    group: Group
    contrast: Contrast
    attack: Attack | None
    runs: Sequence[Run]
    points: Sequence[Point]
    by_seed: Mapping[str, float]
    steady: Mapping[str, float]
    left_out: tuple[str, ...]
    cautions: tuple[str, ...]

    @property
    def amounts(self) -> tuple[str, ...]:
        """Labels of the amounts that values come from, smallest first."""
        used = {point.amount for point in self.points}
        found = {run.amount.label: run.amount.order for run in self.runs if run.amount.label in used}
        return tuple(sorted(found, key=lambda label: found[label]))

    @property
    def crossed(self) -> list[str]:
        """Streams of which seeds share a draw although it varies: such seeds are no independent draws."""
        streams = STREAMS if self.attack is not None else [one for one in STREAMS if one != "poison"]
        return crossed(list(self.seeds.values()), streams)

    @property
    def seeds(self) -> dict[str, Seeds]:
        """Of what enters, by label."""
        return {run.seed: run.seeds for run in self.runs if run.seed in self.by_seed}

    def counted(self, runs: Sequence[Run]) -> str:
        """How many runs each arm has among some, such as "lora-r8: 2"."""
        counts = Counter(run.arm for run in runs)
        return ", ".join(f"{arm.label}: {counts[arm.key]}" for arm in self.contrast.arms if counts[arm.key])


def samples(hypothesis: Hypothesis, task: Task) -> Iterator[Sample]:
    """Every group of a task that has what the hypothesis is about, be it one run."""
    for attack, runs in _cells(hypothesis, task):
        present = {run.arm for run in runs}
        arms = [arm for key, arm in task.arms.items() if key in present]
        for contrast in hypothesis.contrasts(arms):
            yield _sample(hypothesis, task, attack, runs, contrast)


def _cells(hypothesis: Hypothesis, task: Task) -> Iterator[tuple[Attack | None, Sequence[Run]]]:
    if hypothesis.attack is None:
        if task.clean:
            yield None, task.clean
        return
    for attack, runs in task.poisoned.items():
        if attack.method == hypothesis.attack and not attack.directed:
            yield attack, runs


def _sample(
    hypothesis: Hypothesis, task: Task, attack: Attack | None, runs: Sequence[Run], contrast: Contrast
) -> Sample:
    level = contrast.level
    own = [run for run in runs if run.arm in level]
    points = [
        Point(
            seed=run.seed,
            amount=run.amount.label,
            rate=run.rate,
            level=level[run.arm],
            value=run.values[hypothesis.metric],
            collapsed=run.collapsed,
        )
        for run in own
        if hypothesis.metric in run.values
    ]
    keys = [arm.key for arm in contrast.arms]
    used = set(keys)
    others = {run.arm for run in runs} - used
    return Sample(
        group=Group(
            data=task.data,
            rows=task.train_rows,
            model=task.model,
            head=task.head,
            attack=attack.name if attack else None,
            selection=attack.selection if attack else None,
            arms=tuple(arm.label for arm in contrast.arms),
            scaling=contrast.scaling,
            budget=contrast.budget,
            key=digest([task.key, attack.key if attack else None, keys, contrast.scaling])[:12],
        ),
        contrast=contrast,
        attack=attack,
        runs=own,
        points=points,
        by_seed=hypothesis.reduce(points),
        steady=hypothesis.reduce([point for point in points if not point.collapsed]),
        left_out=tuple(sorted(arm.label for key, arm in task.arms.items() if key in others)),
        cautions=task.cautions,
    )

"""`audit`: predict a spec, measure a chosen part of it, and leave both in one folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from foretaste.errors import unknown
from foretaste.experiments.captures import OnProgress
from foretaste.experiments.cluster import Cluster
from foretaste.experiments.measure import Measured, Watcher, measure, refuse_stacks
from foretaste.experiments.plan import Resources
from foretaste.experiments.predict import Predicted, predict
from foretaste.spec import MeasureSpec, RunSpec
from foretaste.training import ranks

Part = Literal["none", "corners", "all"]


@dataclass(frozen=True)
class Audited:
    """What an audit came to.

    Attributes:
        predicted: Of every cell.
        measured: Of the chosen part; None where nothing was to be measured.
    """

    predicted: Predicted
    measured: Measured | None


def audit(
    spec: MeasureSpec,
    folder: Path,
    *,
    base_dir: Path,
    part: Part = "corners",
    resources: Resources | None = None,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Callable[[], Watcher] | None = None,
    on_progress: OnProgress | None = None,
    on_predicted: Callable[[Predicted], None] | None = None,
    cluster: Cluster | None = None,
    stack: int | None = None,
) -> Audited:
    """Predict, then measure; runs that are measured already are not done again.

    Args:
        spec: The sweep.
        folder: Where everything goes.
        base_dir: Folder that relative paths in the spec start from.
        part: `corners`: every arm clean and under the largest amount of each attack, all seeds.
        resources: Data and model in memory.
        extend: Accept a folder that holds a different spec.
        processes: As in `measure`.
        threads: As in `measure`.
        watcher: Makes what hears of the measuring, when that begins.
        on_progress: Hears of the predicting.
        on_predicted: Called between the two.
        cluster: As in `measure`; the predicting is done here.
        stack: As in `measure`.

    Raises:
        UserError: As `predict` and `measure`, or no such part.
    """
    if part not in get_args(Part):
        raise unknown("part to measure", part, get_args(Part), where="measure")
    ranks.require_one("an audit")
    refuse_stacks(stack, processes, cluster)
    predicted = predict(spec, folder, base_dir=base_dir, resources=resources, on_progress=on_progress)
    if on_predicted is not None:
        on_predicted(predicted)
    if part == "none":
        return Audited(predicted, None)
    measured = measure(
        spec,
        folder,
        base_dir=base_dir,
        resources=resources,
        extend=extend,
        processes=processes,
        threads=threads,
        watcher=watcher() if watcher is not None else None,
        only=None if part == "all" else corner(spec),
        cluster=cluster,
        stack=stack,
    )
    return Audited(predicted, measured)


def corner(spec: MeasureSpec) -> Callable[[RunSpec], bool]:
    """Whether a run is clean, or under the largest amount that the spec has of its attack."""
    largest = {
        attack.name or attack.method: (max(attack.rates, default=None), max(attack.counts, default=None))
        for attack in spec.attacks
    }

    def is_corner(run: RunSpec) -> bool:
        attack = run.attack
        return attack is None or (attack.rate, attack.count) == largest[attack.name]

    return is_corner

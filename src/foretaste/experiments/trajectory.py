"""`trajectory`: train clean and poisoned from the same seeds and order, and see how far apart they go.

The TTR paper's Eq. 5 is the mean, over pairs of data sets and over steps t, of the distance between the
updates from clean and from poisoned data. The paper calls it impractical and puts M' in its place; here it is
measured. The paper leaves open whether the update of LoRA is that of A and B or of the weight W0 + s B A that
acts. Both are kept: the first is what the Gram speaks of, the second can be compared across arms.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretaste.calibration.naming import FINAL
from foretaste.errors import UserError
from foretaste.experiments import devices, store
from foretaste.experiments.plan import Resources, plan
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.trajectory_pairs import SNAPSHOTS, OnProgress, Pair, Trainings, attached
from foretaste.experiments.trajectory_result import Trajectory, pair_id, path_of, read, write
from foretaste.models import load
from foretaste.spec import KernelSpec, MeasureSpec, RunSpec, canonical_json
from foretaste.training import trainer
from foretaste.training.trajectory import snapshot_bytes

MOST_STEPS = 12
HEADROOM = 1.1  # of the disk that snapshots need, for file headers and the records


@dataclass(frozen=True)
class Preview:
    """What `trajectory` would do.

    Attributes:
        pairs: All of them.
        missing: Those without a result.
        steps: Steps that are looked at, by arm.
        snapshot_bytes: Disk that snapshots take at once, by arm; they are removed.
        notes: On the data.
    """

    pairs: list[Pair]
    missing: list[Pair]
    steps: dict[str, list[int]]
    snapshot_bytes: dict[str, int]
    notes: list[str]


@dataclass(frozen=True)
class Trajectories:
    """The pairs of a spec.

    Attributes:
        folder: Where everything lies.
        records: One for each pair, in the order of the plan.
        problems: Files that could not be read; their pairs were done again.
    """

    folder: Path
    records: list[Trajectory]
    problems: list[UserError]


def preview(
    spec: MeasureSpec, folder: Path, *, base_dir: Path, resources: Resources | None = None
) -> Preview:
    """Plan the pairs without training any.

    Args:
        spec: As for a sweep.
        folder: Its folder, which need not exist; finished pairs in it are not missing.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory.

    Raises:
        UserError: The spec does not fit the data, the model or peft, or it has no attack.
    """
    workspace = _workspace(spec, folder, base_dir, resources)
    devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir, resources)
    pairs = pairs_of(planned.runs, spec.kernel)
    done, _ = _finished(pairs, folder)
    return _preview(pairs, [pair for pair in pairs if pair.id not in done], planned.notes, workspace)


def trajectory(
    spec: MeasureSpec,
    folder: Path,
    *,
    base_dir: Path,
    resources: Resources | None = None,
    extend: bool = False,
    on_plan: Callable[[Preview], None] | None = None,
    on_progress: OnProgress | None = None,
    on_pair: Callable[[Trajectory], None] | None = None,
) -> Trajectories:
    """Train every pair of a spec that has no result yet, and measure how far apart it goes.

    A pair is a poisoned run of the sweep and its clean one: same rows, initialisation and order of batches,
    as `measure` trains them. The clean run of several pairs is trained once; while they are trained, its
    snapshots lie in the folder.

    Args:
        spec: As for a sweep; `kernel` says of how many rows and in which precision the Gram is.
        folder: Where the records go.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory.
        extend: Accept a folder that holds a different spec, and add to it.
        on_plan: Called once, before the first run.
        on_progress: Called with what is being done and the share that is done.
        on_pair: Called with each new record.

    Raises:
        UserError: The spec does not fit or has no attack, the folder holds another spec, or the disk is too
            small for the snapshots.
    """
    workspace = _workspace(spec, folder, base_dir, resources)
    devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir, resources)
    pairs = pairs_of(planned.runs, spec.kernel)
    with store.full_disk_explained(folder), store.owned(folder) as layout:
        store.claim(layout, spec, planned.runs, extend=extend)
        shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)  # of a process that was killed
        done, problems = _finished(pairs, folder)
        missing = [pair for pair in pairs if pair.id not in done]
        shown = _preview(pairs, missing, planned.notes, workspace)
        if on_plan is not None:
            on_plan(shown)
        _check_disk(shown, folder)
        trainings = Trainings(workspace, spec.kernel, on_progress or (lambda *_: None))
        for clean, group in _by_clean_run(missing):
            for record in trainings.of(clean, group, shown.steps[clean.adapter.name]):
                write(record, folder)
                done[record.pair_id] = record
                if on_pair is not None:
                    on_pair(record)
    return Trajectories(folder, [done[pair.id] for pair in pairs], problems)


def steps_to_look_at(total: int) -> list[int]:
    """Steps 0, 1, 2, 4, 8, ... and the last, wider apart where these are more than `MOST_STEPS`.

    Args:
        total: Steps of the run, at least 1.
    """
    doubling = [0, *(2**i for i in range(total.bit_length())), total]
    steps = sorted(set(doubling))
    if len(steps) > MOST_STEPS:
        steps = sorted({0, *(round(step) for step in np.geomspace(1, total, MOST_STEPS - 1))})
    return steps


def pairs_of(runs: Sequence[RunSpec], kernel: KernelSpec) -> list[Pair]:
    """Every poisoned run with its clean one.

    Args:
        runs: Of a plan.
        kernel: Settings of the Gram.

    Raises:
        UserError: No run is poisoned.
    """
    clean = {_shared(run): run for run in runs if run.attack is None}
    settings = kernel.model_dump(mode="json", include={"train_rows", "precision"})
    pairs = [
        Pair(pair_id(clean[_shared(run)], run, settings), clean[_shared(run)], run)
        for run in runs
        if run.attack is not None
    ]
    if not pairs:
        raise UserError("there is no attack, so nothing to compare", where="attacks", cure="Give one.")
    return pairs


def _shared(run: RunSpec) -> str:
    """What a poisoned run and its clean one have in common; a clean run has no poison seed of its own."""
    return canonical_json(
        {
            **run.model_dump(mode="json", include={"data", "model", "adapter", "training"}),
            "seeds": [run.seeds.data, run.seeds.init, run.seeds.order],
        }
    )


def _by_clean_run(pairs: Iterable[Pair]) -> list[tuple[RunSpec, list[Pair]]]:
    groups: dict[str, tuple[RunSpec, list[Pair]]] = {}
    for pair in pairs:
        groups.setdefault(pair.clean.id, (pair.clean, []))[1].append(pair)
    return list(groups.values())


def _workspace(spec: MeasureSpec, folder: Path, base_dir: Path, resources: Resources | None) -> Workspace:
    return Workspace(folder, base_dir, spec.name, {}, resources or Resources())


def _finished(pairs: Sequence[Pair], folder: Path) -> tuple[dict[str, Trajectory], list[UserError]]:
    found: dict[str, Trajectory] = {}
    problems: list[UserError] = []
    for pair in pairs:
        path = path_of(folder, pair.id)
        if not path.exists():
            continue
        try:
            record = read(path)
        except UserError as error:
            problems.append(error)
            continue
        if record.status in FINAL:
            found[pair.id] = record
    return found, problems


def _preview(pairs: list[Pair], missing: list[Pair], notes: list[str], workspace: Workspace) -> Preview:
    steps: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for pair in pairs:
        run = pair.clean
        arm = run.adapter.name
        if arm in steps:
            continue
        steps[arm] = steps_to_look_at(trainer.planned_steps(run.training, run.data.train_rows))
        # The clean run at every step, and the poisoned one before training and now.
        sizes[arm] = (len(steps[arm]) + 2) * _snapshot_bytes(run, workspace)
    return Preview(pairs, missing, steps, sizes, notes)


def _snapshot_bytes(run: RunSpec, workspace: Workspace) -> int:
    """Of one snapshot of an arm, from its bare architecture; at most all weights in float64."""
    given = workspace.resources.model
    if given is not None:
        bare = copy.deepcopy(given).to("meta")  # type: ignore[arg-type]
    else:
        bare = load.load_classifier(
            load.locate(run.model.request, workspace.base_dir),
            run.model.pooling,
            classes=run.data.classes,
            dtype=trainer.dtype_of(run.training),
            dropout=False,
            pad_token_id=None,
            meta=True,
        )
    bound = 8 * sum(int(parameter.numel()) for parameter in bare.parameters())
    try:
        wrapped, parts = attached(bare, run, 100)
    except UserError:
        return bound  # a few methods compute on the weights, which are not here
    return snapshot_bytes(wrapped, parts)


def _check_disk(shown: Preview, folder: Path) -> None:
    arms = {pair.clean.adapter.name for pair in shown.missing}
    need = HEADROOM * max((shown.snapshot_bytes[arm] for arm in arms), default=0)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"snapshots take {need / 1e9:.1f} GB for a while, and {free / 1e9:.1f} GB are free",
            where=str(folder),
            cure="Free some space, choose a folder on another disk, or train fewer parameters.",
        )

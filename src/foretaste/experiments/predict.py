"""What training would do to every cell of a spec: nothing is trained, and no test row is read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from foretaste.attempt import write_record
from foretaste.calibration.cells import PREDICTED
from foretaste.experiments import devices, flips, plan, predicted, store
from foretaste.experiments.budgets import Budgets, budgets
from foretaste.experiments.captures import Captures, OnProgress
from foretaste.experiments.kernel_jobs import attached
from foretaste.experiments.plan import Plan, Resources
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.simulate import references, simulate
from foretaste.locks import locked
from foretaste.models import adapters
from foretaste.record import Certified, Layout, Record
from foretaste.seeds import generator
from foretaste.spec import MeasureSpec, RunSpec

FLIPS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of flipped labels at which the worst case is certified, beside those of the spec's attacks."""

NAMED, NEW = "flips", ".new"  # folders inside that of the predictions


@dataclass(frozen=True)
class Predicted:
    """What a prediction came to.

    Attributes:
        records: One for each run of the spec, of kind `predicted`.
        folder: Of the sweep.
        seconds: Time that the whole took.
        notes: What a reader should know.
    """

    records: list[Record]
    folder: Path
    seconds: float
    notes: list[str]


def predict(
    spec: MeasureSpec,
    folder: Path,
    *,
    base_dir: Path,
    resources: Resources | None = None,
    on_progress: OnProgress | None = None,
) -> Predicted:
    """Predict every cell of a spec.

    Reads the base model's weights, the training rows with their labels as given, and held-out training rows;
    no test row, and no trained weight.

    Args:
        spec: The sweep, and its section `predict`.
        folder: Of the sweep; predicted records and named flips go to its subfolder `predicted`, in place of
            all older ones.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory.
        on_progress: Called with what is being done and the share of it that is done.

    Raises:
        UserError: The spec does not fit the data, the model or peft.
    """
    resources = resources or Resources()
    devices.refuse_absent(devices.asked(spec))
    planned = plan.plan(spec, base_dir, resources)
    request = spec.model_dump(mode="json", exclude_unset=True)
    place = folder / PREDICTED
    place.mkdir(parents=True, exist_ok=True)
    space = Workspace(place, base_dir, spec.name, request, resources)
    with store.full_disk_explained(place), locked(place / ".lock"):
        return _predict(spec, planned, space, folder, on_progress)


def _predict(
    spec: MeasureSpec, planned: Plan, space: Workspace, folder: Path, on_progress: OnProgress | None
) -> Predicted:
    began, started = time.perf_counter(), datetime.now(UTC)
    captures = Captures(spec, planned, space, on_progress)
    runs, pool = planned.runs, captures.pool
    found = references(captures, runs)
    simulated = simulate(captures, found, runs)
    captures.report("other budgets and the worst case", 0.0)
    elsewhere = budgets(captures, found, runs, simulated)
    readings = predicted.read_indicators(captures, found[0])
    certified = _certified(captures, elsewhere, runs)
    notes = list(planned.recorded)
    if pool.encoded.truncated:
        notes.append(f"{pool.encoded.truncated} rows are longer than the model's max_length and were cut")
    asked = runs[0].data.train_rows
    if pool.train < asked:
        notes.append(f"predicted on {pool.train} of {asked} training rows")
        notes.append(
            f"these {pool.train} rows are passed over more often than in a run: the steps are those that all "
            f"{asked} rows take"
        )
    notes += [f"not predicted: {why}" for why in dict.fromkeys(pool.refused.values())]
    making = predicted.Making(
        captures=captures,
        reference=found[0],
        simulated=simulated,
        budgets=elsewhere,
        indicators=readings,
        certified=certified,
        counts={key: _trained(captures, arm.run) for key, arm in captures.arms.items()},
        started=started,
        seconds=time.perf_counter() - began,
        notes=notes,
    )
    records = predicted.records(making, runs, space)
    with _in_place_of_the_last(space.folder) as new:
        for record in records:
            write_record(record, new)
        _name_flips(captures, elsewhere, runs, new)
    return Predicted(records, folder, time.perf_counter() - began, [*planned.said, *notes])


@contextmanager
def _in_place_of_the_last(place: Path) -> Iterator[Path]:
    """A folder to write a prediction to, which then takes the place of the last one, of whatever spec.

    Nothing of that one is touched before the new one is whole on the disk, and nothing of it stays.

    Args:
        place: Of the predictions.
    """
    new = place / NEW
    shutil.rmtree(new, ignore_errors=True)  # of a prediction that was killed while it wrote
    try:
        yield new
        written = [path.relative_to(new) for path in new.glob("*/*.json")]
        for name in written:
            (place / name).parent.mkdir(exist_ok=True)
            (new / name).replace(place / name)
        for folder in (Layout(place).runs, place / NAMED):
            for old in folder.glob("*.json"):
                if old.relative_to(place) not in written:
                    old.unlink()
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _trained(captures: Captures, run: RunSpec) -> int:
    if run.adapter.method == adapters.FULL:
        return sum(p.numel() for p in captures.model.parameters())
    return adapters.trainable(attached(captures.model, run))[0]


def _amounts(captures: Captures) -> list[int]:
    """Numbers of flipped labels: some round ones, and those of the spec's attacks that leave texts alone."""
    cells = [cell for cell in captures.pool.cells.values() if cell.manifest and not cell.texts_changed]
    own = {len(cell.manifest.poisoned) for cell in cells if cell.manifest is not None}
    return sorted({count for count in {*FLIPS, *own} if count <= captures.pool.train})


def _given(captures: Captures) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels of the clean training rows and of the held-out ones, -1 and +1 beside a margin."""
    pool = captures.pool
    labels, held = pool.cells["clean"].labels, pool.labels(pool.held_out)
    return (2 * labels - 1, 2 * held - 1) if captures.classes == 2 else (labels, held)


def _certified(captures: Captures, elsewhere: Budgets, runs: Sequence[RunSpec]) -> dict[str, list[Certified]]:
    """The worst case of every arm, by name."""
    labels, held = _given(captures)
    seed = runs[0].seeds.poison
    return {
        name: flips.certified_curve(
            predictor,
            labels,
            held,
            _amounts(captures),
            head="refitted" if captures.probes else "fixed",
            rng=generator(seed, "prediction", "certificates", name),
        )
        for name, predictor in elsewhere.following.items()
    }


def _name_flips(captures: Captures, elsewhere: Budgets, runs: Sequence[RunSpec], place: Path) -> None:
    """Write the flips that each arm's kernel names, for the attack `adversarial-flip`.

    From the head of the clean labels: what it names did more harm than what a predictor names whose head
    follows them (docs/decisions/0012-the-head-in-the-worst-case.md).
    """
    labels, held = _given(captures)
    wanted = max(_amounts(captures))
    for name, predictor in elsewhere.fitted.items():
        named = flips.name_flips(predictor, labels, held, captures.pool.ids, wanted)
        if named:
            flips.write(
                place / NAMED / f"{quote(name, safe='')}.json",
                arm=name,
                kernel="gradient flow on the squared loss, until it fits as the arm's training does",
                classes=runs[0].data.classes,
                data=runs[0].data.fingerprint,
                flips=named,
            )

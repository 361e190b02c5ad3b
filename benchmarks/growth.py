"""What a sweep costs beside its runs, as it grows from 8 to 512 runs of a tiny model, in one process.

The runs' own time is the sum of their records' `total`. What is left of the wall time is the sweep's:
planning, the folder, records, progress. Then the same command again, which finds everything done, and the
page.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.faults import subject
from benchmarks.result import Result
from foretaste.experiments.measure import measure
from foretaste.report import report
from foretaste.spec import MeasureSpec

SIZES = (8, 64, 512)
STEPS = 4


@dataclass(frozen=True)
class Cost:
    """Seconds of a sweep of so many runs.

    Attributes:
        runs: How many.
        own: The runs' own time.
        wall: The whole sweep.
        again: The same command, when every run is done.
        page: The report, without pictures as files.
    """

    runs: int
    own: float
    wall: float
    again: float
    page: float

    @property
    def overhead(self) -> float:
        """Milliseconds for each run beside its own time."""
        return 1e3 * (self.wall - self.own) / self.runs

    @property
    def rereading(self) -> float:
        """Milliseconds for each run that is found done."""
        return 1e3 * self.again / self.runs

    @property
    def reporting(self) -> float:
        """Milliseconds of the page for each run."""
        return 1e3 * self.page / self.runs


def cost(runs: int, place: Path) -> Cost:
    """Do a sweep of so many runs (two arms, so many seeds), find it done, and draw it.

    Args:
        runs: An even number.
        place: Folder with the model and the data.

    Raises:
        RuntimeError: A run failed.
    """
    path = subject.write_spec(
        place / f"of-{runs}",
        place / "data",
        str(place / "model"),
        attacks=[],
        training={"steps": STEPS, "batch_size": 8},
        seeds=list(range(runs // 2)),
    )
    spec = MeasureSpec.model_validate(yaml.safe_load(path.read_text()))
    folder = path.parent / "sweep"

    def sweep() -> tuple[float, float]:
        began = time.perf_counter()
        measured = measure(spec, folder, base_dir=path.parent, processes=1, threads=1)
        wall = time.perf_counter() - began
        if any(record.status != "completed" for record in measured.records):
            raise RuntimeError("a run failed")
        return wall, sum(record.timings.total for record in measured.records if record.timings)

    wall, own = sweep()
    again, _ = sweep()
    began = time.perf_counter()
    report(folder, images=False)
    return Cost(runs, own, wall, again, time.perf_counter() - began)


def run() -> list[Result]:
    """Cost per run at the smallest size against that at the largest: 1 where a sweep grows evenly."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        subject.write_data(place)
        subject.write_model(place / "model")
        cost(2, place)  # imports, page cache
        costs = [cost(runs, place) for runs in SIZES]
    small, large = costs[0], costs[-1]
    over = f"{large.runs} runs against {small.runs}"
    found = []
    for what, key in (
        ("a sweep beside its runs", "overhead"),
        ("finding a run done", "rereading"),
        ("the page", "reporting"),
    ):
        values = [getattr(item, key) for item in costs]
        sizes = ", ".join(f"{item.runs}: {value:.1f}" for item, value in zip(costs, values, strict=True))
        found.append(
            Result(
                name=f"{what}, ms a run, {over}",
                ours=f"{values[-1]:.1f}",
                theirs=f"{values[0]:.1f}",
                ratio=values[0] / values[-1],
                target=1 / 1.5,
                note=f"{sizes}; a run itself: {1e3 * large.own / large.runs:.0f} ms",
            )
        )
    return found

"""Eight independent short runs as a sweep, against the same eight one after another.

"One after another" is one process with all threads, without start-up cost, which is the harder opponent; the
same eight as eight separate commands (each imports torch and loads the model) is shown beside it. The sweep's
time includes starting its workers and measuring the allocation.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks import rows as real
from benchmarks.result import Result
from foretaste.experiments.measure import measure
from foretaste.spec import MeasureSpec


def _spec(seeds: list[int]) -> MeasureSpec:
    source, _ = real.source()
    return MeasureSpec.model_validate(
        {
            "name": "bench",
            "data": {**source.model_dump(exclude_unset=True), "train_rows": 256, "test_rows": 200},
            "model": {"base": "minilm-l6"},
            "adapters": [{"method": "full"}, {"method": "lora"}],
            "training": {"epochs": 2.0},
            "seeds": seeds,
        }
    )


def _timed(folder: Path, seeds: list[int], processes: int | None) -> float:
    began = time.perf_counter()
    measured = measure(
        _spec(seeds), folder, base_dir=Path.cwd(), processes=processes, threads=_threads(processes)
    )
    if any(record.status != "completed" for record in measured.records):
        raise RuntimeError("a benchmark run failed")
    return time.perf_counter() - began


def _threads(processes: int | None) -> int | None:
    return torch.get_num_threads() if processes == 1 else None


def _commands(folder: Path) -> float:
    """One of the eight as its own command, times eight: it is the same work each time."""
    path = folder / "one.yaml"
    content = _spec([0]).model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "foretaste", "measure", str(path), "-o", str(folder / "one"), "--json"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--processes", "1", "--threads", str(torch.get_num_threads())],
        check=True,
        capture_output=True,
    )
    # The command does two runs (both arms); its start-up is paid twice when each is its own command.
    pair = time.perf_counter() - began
    began = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
    )
    start_up = time.perf_counter() - began
    return 4 * (pair + start_up)


def run() -> list[Result]:
    """Both ratios."""
    _, name = real.source()
    seeds = [0, 1, 2, 3]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _timed(folder / "warm", [9], 1)  # page cache, imports
        serial = _timed(folder / "serial", seeds, 1)
        sweep = _timed(folder / "sweep", seeds, None)
        commands = _commands(folder)
    return [
        Result(
            name=f"sweep of 8 runs on {name}, seconds, against {what}",
            ours=f"{sweep:.0f}",
            theirs=f"{other:.0f}",
            ratio=other / sweep,
            target=target,
            note=note,
        )
        for what, other, target, note in (
            ("one process, one after another", serial, 1.3, ""),
            ("eight commands", commands, None, "8 x (start-up + run), from two commands"),
        )
    ]

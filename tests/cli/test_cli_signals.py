"""The command as a process: Ctrl-C in its terminal, its death, its streams and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from foretaste.experiments import measure as experiment
from foretaste.record import Layout
from foretaste.specfile import load

PATIENCE = 240.0  # seconds; a busy machine takes long to import torch


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "foretaste", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def workers(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    children = []
    try:
        for child in psutil.Process(parent.pid).children(recursive=True):
            if any("spawn_main" in part for part in child.cmdline()):
                children.append(child)
    except psutil.NoSuchProcess:
        return []
    return children


def until(condition: Callable[[], Any], parent: subprocess.Popen[str], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if parent.poll() is not None:
            pytest.fail(f"ended before {what}: {parent.communicate()}")
        if time.monotonic() > deadline:
            parent.kill()
            pytest.fail(f"no {what} in {PATIENCE} s")
        time.sleep(0.05)
    return found


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        process.kill()
    return not alive


def test_ctrl_c_then_a_killed_parent_then_the_end(write_spec: Any, tmp_path: Path) -> None:
    """One sweep of eight runs through three sessions.

    Ctrl-C goes to the whole group, as a terminal sends it, while the workers are still importing torch. The
    second session is killed outright. The third, in this process, does what is left.
    """
    path, folder = write_spec(seeds=[0, 1, 2, 3]), tmp_path / "sweep"
    command = ("measure", path, "-o", folder, "--processes", 2, "--threads", 1)

    first = start(*command)
    seen = until(lambda: len(workers(first)) == 2 and workers(first), first, "two workers")
    time.sleep(0.3)  # into the middle of their imports
    os.killpg(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130
    assert out == ""
    assert "Finishing the 2 runs under way; press Ctrl-C again to drop them." in err
    assert err.endswith("Stopped. Finished runs are kept; the same command goes on from here.\n")
    assert "retry" not in err
    assert "Traceback" not in err
    assert "leaked" not in err
    assert gone(seen, 5)
    records, problems = Layout(folder).read()
    assert ([record.status for record in records], problems) == (["completed"] * 2, [])
    assert {record.attempts for record in records} == {1}

    second = start(*command)
    until(lambda: len(list(folder.glob("runs/*.json"))) > 2, second, "a third record")
    seen = workers(second)
    assert seen
    second.kill()
    assert gone(seen, 10)
    second.communicate()

    records, problems = Layout(folder).read()
    assert problems == []
    done = experiment.measure(
        load(path, experiment.MeasureSpec), folder, base_dir=tmp_path, processes=1, threads=1
    )
    assert done.statuses == {"completed": 8}
    assert all(record in done.records for record in records)


def test_an_error_goes_to_stderr_without_a_traceback(write_spec: Any, tmp_path: Path) -> None:
    path = write_spec(training={"batch_sise": 4})
    done = start("measure", path)
    out, err = done.communicate(timeout=PATIENCE)
    assert (done.returncode, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith(f"error {path}:")
    assert "Did you mean 'batch_size'?" in err

"""Faults of processes and of their surroundings: killed, two at once, another time of day."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timedelta
from typing import Any

import psutil

from benchmarks.faults.trial import Missed, Session, Trial
from foretaste import record as records
from foretaste.experiments import run as runs


def _strike(trial: Trial, session: Session, *, workers: bool) -> None:
    """Wait for a random moment: after so many finished runs, and a part of the next one.

    Raises:
        Missed: The sweep was over before.
    """
    done = trial.rng.randint(0, 3)
    pause = trial.rng.uniform(0, trial.place.seconds / 4)
    session.until(lambda: len(trial.seen) >= done and (session.workers or not workers))
    moment = time.monotonic() + pause
    session.until(lambda: time.monotonic() > moment)
    if not session.running or (workers and not session.workers):
        session.wait()
        raise Missed


def worker_killed(trial: Trial) -> None:
    """One of two worker processes is killed at a random moment."""
    session = trial.measure("--processes", "2")
    _strike(trial, session, workers=True)
    os.kill(trial.rng.choice(session.workers).pid, signal.SIGKILL)
    session.wait()
    trial.said = session.line("retry")
    if session.code != 0:
        trial.wrong.append(f"the sweep ended with code {session.code}: {session.last}")
    trial.resumed()


def parent_killed(trial: Trial) -> None:
    """The command itself is killed at a random moment; its two workers must go with it."""
    session = trial.measure("--processes", "2")
    _strike(trial, session, workers=True)
    workers = session.workers
    session.kill()
    _, left = psutil.wait_procs(workers, timeout=60)
    if left:
        trial.wrong.append(f"{len(left)} workers outlived the command")
    trial.look()
    trial.said = trial.resumed().line(" runs")


def process_killed(trial: Trial) -> None:
    """A sweep in one process is killed at a random moment."""
    session = trial.measure()
    _strike(trial, session, workers=False)
    session.kill()
    trial.said = trial.resumed().line(" runs")


def two_at_once(trial: Trial) -> None:
    """Two commands start on one folder in the same moment."""
    one = trial.measure()
    log = trial.folder / "other.txt"
    arguments = ["measure", str(trial.place.spec), "-o", str(trial.sweep), "--processes", "1"]
    other = Session([*arguments, "--threads", "1"], log, trial.look)
    for session in (one, other):
        session.wait()
    codes = sorted(session.code or 0 for session in (one, other))
    refused = next((session for session in (one, other) if session.code == 2), other)
    trial.said = refused.first
    if codes not in ([0, 2], [0, 0]):
        trial.wrong.append(f"the two ended with codes {codes}")
    trial.resumed()


def clock_jumped(trial: Trial) -> None:
    """The time of day jumps at a random file write, by up to ten years forward or back."""
    trial.partly_done()
    days = trial.rng.choice([-1, 1]) * trial.rng.uniform(0.05, 3650)
    at = trial.rng.randint(1, 5)

    def inject() -> None:
        real_sync, real_time, real_ns = os.fsync, time.time, time.time_ns
        jump, count = timedelta(days=days).total_seconds(), [0]

        def offset() -> float:
            return jump if count[0] >= at else 0.0

        class Jumping(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.fromtimestamp(real_time() + offset(), tz)

        def fsync(handle: int) -> None:
            count[0] += 1
            real_sync(handle)

        time.time = lambda: real_time() + offset()
        time.time_ns = lambda: real_ns() + int(offset() * 1e9)
        runs.datetime = Jumping  # type: ignore[attr-defined]
        records.os.fsync = fsync  # type: ignore[attr-defined]

    session = trial.measure(inject=inject).wait()
    trial.said = session.first if session.code else session.line("completed")
    if session.code != 0:
        trial.wrong.append(f"the sweep ended with code {session.code}: {session.last}")
    trial.resumed()

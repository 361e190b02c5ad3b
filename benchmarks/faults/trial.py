"""One trial: sessions of the command line in child processes, and what they leave behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.faults import subject
from foretaste.errors import UserError
from foretaste.experiments.store import FINAL
from foretaste.record import Layout, Record, read_record

POLL = 0.02  # seconds between two looks at a folder
TIMEOUT = 900.0
Inject = Callable[[], None]
# What may differ between two runs of the same spec: when, where and by which checkout it was done.
ELSEWHEN: Any = {
    "started": True,
    "timings": True,
    "machine": True,
    "attempts": True,
    "commit": True,
    "dirty": True,
    "request": True,
    "training": {"rows_per_second"},
}


class Missed(Exception):
    """The sweep was over before the fault could strike: no trial."""


@dataclass(frozen=True)
class Place:
    """What trials share.

    Attributes:
        root: Temporary folder of everything: data, model, cache, wheel.
        folder: Holds the spec and the undisturbed sweep.
        base: The model, as the spec names it.
        expected: Numbers of the undisturbed sweep, by run.
        seconds: That it took.
        fetched: The same with a model that comes from the cache or through pip.
    """

    root: Path
    folder: Path
    base: str
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    fetched: Place | None = None

    @property
    def spec(self) -> Path:
        """The spec of the undisturbed sweep."""
        return self.folder / "spec.yaml"

    @property
    def baseline(self) -> Path:
        """The folder of the undisturbed sweep."""
        return self.folder / "sweep"

    def edited(self, folder: Path, **changes: Any) -> Path:
        """Another spec on the same data and model, in a folder of its own."""
        return subject.write_spec(folder, self.root / "data", self.base, **changes)


@dataclass
class Trial:
    """One injection of one fault.

    Attributes:
        place: What all trials share.
        rng: Where and when the fault strikes.
        folder: Of this trial.
        spared: Runs whose record the fault itself destroys: doing them again loses nothing.
        seen: The first version of each finished record that anyone saw, as (inode, time of change).
        lost: Finished runs that were done again, or whose record vanished.
        wrong: What is wrong in the end, one line each.
        said: What the user sees of the fault.
    """

    place: Place
    rng: random.Random
    folder: Path
    spared: set[str] = field(default_factory=set)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    said: str = ""

    @property
    def sweep(self) -> Path:
        """The folder of the sweep."""
        return self.folder / "sweep"

    @property
    def layout(self) -> Layout:
        """The same."""
        return Layout(self.sweep)

    def look(self) -> None:
        """Note finished records, and those that are no longer what they were."""
        now: dict[str, tuple[int, int]] = {}
        for path in self.layout.runs.glob("*.json"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            now[path.stem] = found.st_ino, found.st_mtime_ns
        for run_id, version in self.seen.items():
            if now.get(run_id) != version and run_id not in self.spared:
                self.lost.add(run_id)
        for run_id in now.keys() - self.seen.keys():
            path = self.layout.record(run_id)
            with contextlib.suppress(UserError, FileNotFoundError):
                status, found = read_record(path).status, path.stat()
                # Records of failed runs may be replaced, also while they are read here: only a result counts.
                if status in FINAL and (found.st_ino, found.st_mtime_ns) == now[run_id]:
                    self.seen[run_id] = now[run_id]

    def records(self) -> list[Record]:
        """The records that can be read."""
        return self.layout.read()[0]

    def partly_done(self, missing: int = 2) -> None:
        """Begin with the undisturbed folder, some runs taken out."""
        shutil.copytree(self.place.baseline, self.sweep)
        for path in self.rng.sample(sorted(self.layout.runs.iterdir()), missing):
            path.unlink()
            self.layout.prediction(path.stem).unlink()
        self.look()

    def measure(self, *options: str, spec: Path | None = None, inject: Inject | None = None) -> Session:
        """Start `foretaste measure` on the folder of the trial, in one process unless `options` say else."""
        arguments = ["measure", str(spec or self.place.spec), "-o", str(self.sweep), "--threads", "1"]
        if "--processes" not in options:
            options = (*options, "--processes", "1")
        return Session([*arguments, *options], self.folder / "said.txt", self.look, inject)

    def resumed(self, *options: str) -> Session:
        """The same command again, undisturbed, to its end; what is in the folder then must be right."""
        session = self.measure(*options).wait()
        if session.code != 0:
            self.wrong.append(f"the resumed sweep ended with code {session.code}: {session.first}")
        self.compare()
        return session

    def compare(self) -> None:
        """Hold every record against the undisturbed sweep's."""
        self.look()
        found = numbers(self.sweep)
        for run_id, expected in self.place.expected.items():
            if run_id not in found:
                self.wrong.append(f"run {run_id} has no result")
            elif found[run_id] != expected:
                self.wrong.append(f"run {run_id} has other numbers")

    def reported(self, *words: str) -> None:
        """Make the page, and look for what it must not hide."""
        page = self.folder / "page"
        arguments = ["report", str(self.sweep), "-o", str(page), "--no-images"]
        session = Session(arguments, self.folder / "reported.txt", self.look).wait()
        html = (page / "index.html").read_text() if session.code == 0 else session.text
        # The figures' data name every run: a failure must stand where a reader sees it.
        shown = html.split('type="application/json" id="data"')[0]
        self.wrong += [f"the report does not show '{word}'" for word in words if word not in shown]


class Session:
    """One call of the command line in a process of its own.

    Args:
        arguments: Of the command `foretaste`.
        log: File of what it prints.
        look: Called again and again while it runs.
        inject: Called in the process before the command.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, look: Inject, inject: Inject | None = None
    ) -> None:
        self._log, self._look = log, look
        log.parent.mkdir(parents=True, exist_ok=True)
        # A fork: importing torch anew for every session would be most of the work.
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_command, args=(list(arguments), log, inject))
        self._process.start()
        self.began = time.monotonic()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process.is_alive()

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
            return [child for child in children if any("spawn_main" in part for part in child.cmdline())]
        except psutil.Error:
            return []

    def until(self, moment: Callable[[], Any]) -> bool:
        """Wait until something is so, or the session has ended; whether it is so."""
        while self.running:
            self._look()
            if moment():
                return True
            if time.monotonic() - self.began > TIMEOUT:
                raise TimeoutError(f"{self._log}: no end after {TIMEOUT} s")
            time.sleep(POLL)
        return False

    def wait(self) -> Session:
        """Wait for its end."""
        self.until(lambda: False)
        self._process.join()
        self._look()
        return self

    def kill(self) -> None:
        """End it at once, as `kill -9` and the system that has run out of memory do."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()
        self._look()

    @property
    def code(self) -> int | None:
        """Its exit code."""
        return self._process.exitcode

    @property
    def text(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def line(self, word: str) -> str:
        """The first line with a word in it; the first of all where there is none."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return next((line for line in lines if word in line), self.first)

    @property
    def first(self) -> str:
        """The line that says what went wrong, else the first one."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        if any(line.startswith("Traceback") for line in lines):
            return f"traceback: {lines[-1]}"
        telling = ("error", "warning", "retry", "diverged", "crashed")
        return next((line for line in lines if line.startswith(telling)), lines[0] if lines else "")

    @property
    def last(self) -> str:
        """Its last lines."""
        return " / ".join(line.strip() for line in self.text.splitlines()[-8:])


def _command(arguments: list[str], log: Path, inject: Inject | None) -> None:
    """In the child: the command line, its output in a file."""
    from foretaste.cli import main

    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["foretaste", *arguments]
    if inject is not None:
        inject()
    main()


def numbers(folder: Path) -> dict[str, Any]:
    """Every number of every completed run, by run: the record, its predictions and its manifest."""
    found = {}
    for record in Layout(folder).read()[0]:
        if record.status != "completed":
            continue
        # Not in threads: the next session is a fork of this process.
        rows = pq.read_table(folder / str(record.predictions), use_threads=False).to_pylist()
        manifest = (folder / record.poison.manifest).read_text() if record.poison else None
        found[record.run_id] = record.model_dump(exclude=ELSEWHEN), rows, manifest
    return found


def prepared(root: Path) -> Place:
    """Make model, data and wheel, and do the undisturbed sweeps."""
    subject.write_data(root)
    subject.write_model(root / "model")
    subject.write_wheel(root / "model", root / "index")
    fetched = _undisturbed(Place(root, root / "fetched", subject.MODEL))
    return _undisturbed(Place(root, root / "plain", str(root / "model"), fetched=fetched))


def _undisturbed(place: Place) -> Place:
    place.edited(place.folder)
    trial = Trial(place, random.Random(0), place.folder)
    began = time.monotonic()
    session = trial.measure().wait()
    seconds = time.monotonic() - began
    expected = numbers(trial.sweep)
    if session.code != 0 or len(expected) != 4:
        raise RuntimeError(f"the undisturbed sweep failed: {session.text}")
    return replace(place, expected=expected, seconds=seconds)

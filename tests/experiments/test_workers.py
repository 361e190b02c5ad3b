"""Worker processes: the same results as in one process, and what happens when one is killed.

Starting a worker takes seconds (it imports torch), so each test here stands for several.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from foretaste.errors import UserError
from foretaste.experiments import engine
from foretaste.experiments import measure as experiment
from foretaste.experiments.plan import plan
from foretaste.experiments.prepare import Workspace
from foretaste.record import Layout, Record

NOWHERE = Path("/nonexistent")
BROKEN = BrokenProcessPool("dead")


def workers() -> list[psutil.Process]:
    """The living worker processes of this process (its resource tracker is none)."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, or waits to be reaped
            if any("spawn_main" in part for part in child.cmdline()):
                found.append(child)
    return found


def kill_workers() -> None:
    for child in workers():
        with suppress(psutil.NoSuchProcess):
            child.kill()


def in_processes(spec: Any, folder: Path, watch: Any, processes: int = 2) -> Any:
    return experiment.measure(spec, folder, base_dir=NOWHERE, processes=processes, threads=1, watcher=watch)


def numbers(record: Record, folder: Path) -> Any:
    """Everything of a record that may not depend on where and when it ran, and the predictions."""
    kept = record.model_dump(
        exclude={
            "started": True,
            "timings": True,
            "machine": True,
            "attempts": True,
            "training": {"rows_per_second"},
        }
    )
    return kept, pd.read_parquet(folder / str(record.predictions)).to_dict("list")


def test_killed_workers_and_any_order_change_no_number(
    spec: Any, run: Any, watch: Any, tmp_path: Path
) -> None:
    """One run kills its worker whenever it starts, one loses its worker once, in the middle of training.

    The first ends as crashed, the second is done again; all results are those of a single process.
    """
    arms = [
        {"method": "full"},
        {"method": "lora", "r": 2, "training": {"steps": 40, "eval_batch_size": 7}},
    ]
    sweep = spec(adapters=arms, model={"head": "probe-then-train"}, seeds=[0])
    alone = run(sweep, tmp_path / "alone")
    runs = plan(sweep, NOWHERE).runs
    deadly, victim = runs[0].id, runs[1].id
    killed: list[str] = []

    def kill(started: Any) -> None:
        if started.id != deadly:
            return
        # A process that has just been started is not yet told from this one by its command line.
        until = time.monotonic() + 30
        while not workers() and time.monotonic() < until:
            time.sleep(0.01)
        kill_workers()

    def kill_once(run_id: str) -> None:
        if run_id == victim and not killed:
            killed.append(run_id)
            kill_workers()

    watch.on_started, watch.on_stepped = kill, kill_once
    together = in_processes(sweep, tmp_path / "together", watch)
    assert workers() == []
    assert killed == [victim]
    assert [r.status for r in together.records] == ["crashed", "completed", "completed", "completed"]
    assert sorted(watch.finished_runs) == sorted(r.id for r in runs)

    crashed, retried, *others = together.records
    assert crashed.attempts == engine.MAX_ATTEMPTS == watch.started_runs.count(deadly)
    assert crashed.reason is not None
    assert "died 3 times" in crashed.reason
    assert (crashed.clean, crashed.training, crashed.predictions) == (None, None, None)
    assert [attempt for run_id, attempt in watch.retries if run_id == deadly] == [2, 3]
    assert retried.attempts == 1 + len([r for r, _ in watch.retries if r == victim]) >= 2
    assert all(r.attempts == 1 + [i for i, _ in watch.retries].count(r.run_id) for r in others)
    assert {done for run_id, done, _ in watch.steps if run_id == victim} >= {1, 40}

    assert [numbers(r, together.folder) for r in together.records[1:]] == [
        numbers(r, alone.folder) for r in alone.records[1:]
    ]
    assert {(r.machine.processes, r.machine.threads) for r in together.records[1:]} == {(2, 1)}
    assert {(r.machine.processes, r.machine.threads) for r in alone.records} == {(1, 1)}

    layout = Layout(tmp_path / "backwards")
    workspace = Workspace(layout.folder, NOWHERE, alone.records[0].sweep, alone.records[0].request)
    engine.run_inline(runs[::-1], workspace, experiment.Watcher(), threads=1)
    backwards = {r.run_id: r for r in layout.read()[0]}
    for record in alone.records:
        assert numbers(backwards[record.run_id], layout.folder) == numbers(record, alone.folder)


# --- without processes ---------------------------------------------------------------------------


class _Pool:
    """A pool that never does anything; `wait` below decides what happens."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []
        self.closed = False

    def submit(self, *_: Any) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]

    def shutdown(self, *, wait: bool) -> None:
        self.closed = wait


FINISH = "all runs under way finish"
CTRL_C = KeyboardInterrupt()


@pytest.mark.parametrize(
    ("events", "ends", "finished", "closed"),
    [
        ([CTRL_C, FINISH], CTRL_C, 2, True),
        ([CTRL_C, CTRL_C], CTRL_C, 0, False),
        ([CTRL_C, BROKEN], CTRL_C, 0, False),
        ([FINISH, CTRL_C, FINISH], CTRL_C, 4, True),
        ([FINISH, BROKEN], None, 2, False),
        ([FINISH, FINISH, FINISH], None, 6, False),
    ],
    ids=["one", "two", "one and a dead worker", "later", "dead worker", "none"],
)
def test_ctrl_c(
    events: list[Any],
    ends: BaseException | None,
    finished: int,
    closed: bool,
    spec: Any,
    watch: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first lets the runs under way finish, the second does not; neither starts another run."""
    runs, script, pool = plan(spec(seeds=[0, 1, 2]), NOWHERE).runs, iter(events), _Pool()

    def wait(active: Any, **_: Any) -> tuple[set[Future[Any]], set[Future[Any]]]:
        event = next(script)
        if event is not FINISH:
            raise event
        for future in active:
            future.set_result(None)
        return set(active), set()

    monkeypatch.setattr(engine, "wait", wait)
    sweep = engine._Sweep(pool, Workspace(NOWHERE, NOWHERE, "", {}), watch, engine.Allocation(2, 1, ""))  # type: ignore[arg-type]
    todo = deque(runs)
    if ends is None:
        assert len(sweep.drain(todo, Counter())) == (2 if BROKEN in events else 0)
    else:
        with pytest.raises(KeyboardInterrupt):
            sweep.drain(todo, Counter())
    assert len(watch.finished_runs) == finished
    assert watch.stops == ([2] if CTRL_C in events else [])
    assert pool.closed is closed
    assert len(pool.futures) + len(todo) == len(runs)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(
    ("attempts", "others", "active", "allowed"),
    [
        (0, [], 0, True),
        (0, [1], 1, True),
        (0, [1, 1], 2, False),
        (1, [], 0, True),
        (1, [1], 1, False),
        (0, [2], 1, False),
    ],
)
def test_a_run_whose_worker_died_runs_alone(
    attempts: int, others: list[int], active: int, allowed: bool, spec: Any
) -> None:
    runs = plan(spec(seeds=[0, 1]), NOWHERE).runs
    counts = {runs[0].id: attempts} | {r.id: n for r, n in zip(runs[1:], others, strict=False)}
    under_way = {object(): r for r in runs[1 : 1 + active]}
    allocation = engine.Allocation(2, 1, "")
    assert engine._may_start(runs[0], under_way, Counter(counts), allocation) is allowed  # type: ignore[arg-type]


def test_never_more_processes_than_runs_cores_or_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "cores", lambda: 8)
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine, "affordable_processes", lambda parameters: 4 if parameters < 10 else 1)
    assert [engine.most_processes(n, 1) for n in (1, 3, 100)] == [1, 3, 4]
    assert engine.most_processes(100, 10) == 1
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: True)
    assert engine.most_processes(100, 1) == 1


def test_memory_limits_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 10e9

    monkeypatch.setattr(engine.psutil, "virtual_memory", lambda: Memory)
    assert engine.affordable_processes(0) == 11
    assert engine.affordable_processes(110_000_000) == 3
    assert engine.affordable_processes(7_000_000_000) == 1


class _Caught(Exception):
    """Carries what the engine was asked to do."""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"processes": 2}, (2, 4)),
        ({"processes": 3}, (3, 2)),
        ({"processes": 2, "threads": 1}, (2, 1)),
        ({"threads": 1}, (4, 1)),
        ({"threads": 4}, (2, 4)),
        ({"threads": 16}, (1, 16)),
    ],
)
def test_processes_and_threads_are_as_asked(
    asked: dict[str, int],
    expected: tuple[int, int],
    spec: Any,
    watch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise _Caught

    monkeypatch.setattr(engine, "cores", lambda: 8)
    monkeypatch.setattr(engine, "affordable_processes", lambda parameters: 99)
    monkeypatch.setattr(engine, "run_inline", stop)
    monkeypatch.setattr(engine, "run_in_processes", stop)
    with pytest.raises(_Caught):
        experiment.measure(spec(seeds=[0, 1]), tmp_path / "sweep", base_dir=NOWHERE, watcher=watch, **asked)
    assert (watch.allocation.processes, watch.allocation.threads) == expected
    assert watch.allocation.reason


class BreakingPool:
    """A pool that takes some tasks and then breaks."""

    def __init__(self, takes: int, error: Exception) -> None:
        self.takes, self.error = takes, error

    def submit(self, *_: Any) -> Future[Any]:
        if self.takes == 0:
            raise self.error
        self.takes -= 1
        return Future()


@pytest.mark.parametrize("takes", [0, 1])
def test_a_run_that_a_broken_pool_did_not_take_is_still_to_be_done(
    spec: Any, watch: Any, tmp_path: Path, takes: int
) -> None:
    runs = plan(spec(seeds=[0]), NOWHERE).runs
    todo, attempts = deque(runs), Counter[str]()
    workspace = Workspace(folder=tmp_path, base_dir=NOWHERE, sweep="x", request={})
    pool: Any = BreakingPool(takes, BROKEN)
    sweep = engine._Sweep(pool, workspace, watch, engine.Allocation(2, 1, "test"))
    suspects = sweep.drain(todo, attempts)
    assert [run.id for run in suspects] == [run.id for run in runs[:takes]]
    assert [run.id for run in todo] == [run.id for run in runs[takes:]]
    assert dict(attempts) == {run.id: 1 for run in runs[:takes]}
    assert watch.started_runs == [run.id for run in runs[:takes]]


@pytest.mark.parametrize(
    "error", [BROKEN, ValueError("bad value(s) in fds_to_keep"), OSError("handle is closed")]
)
def test_a_pool_that_breaks_while_its_workers_start_is_a_broken_pool(error: Exception) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pool: Any = BreakingPool(1, error)
    with pytest.raises(BrokenProcessPool, match=str(error).partition("(")[0]):
        engine._start_workers(pool, 2)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_all_workers_run_before_any_has_a_task(watch: Any) -> None:
    """So that the executor starts none while another of them may be dying."""
    with engine._pool(3, watch):
        assert len(multiprocessing.active_children()) == 3
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("where", ["starting", "measuring"])
def test_workers_that_never_start_a_run_end_the_sweep(
    where: str, spec: Any, watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[str] = []

    @contextmanager
    def breaking(*_: Any) -> Iterator[Any]:
        lives.append(where)
        if where == "starting":
            raise BROKEN
        yield BreakingPool(0, BROKEN)

    def choose(pool: Any) -> engine.Allocation:
        pool.submit()
        return engine.Allocation(2, 1, "test")

    monkeypatch.setattr(engine, "_pool", breaking)
    runs = plan(spec(seeds=[0]), NOWHERE).runs
    workspace = Workspace(folder=tmp_path, base_dir=NOWHERE, sweep="x", request={})
    with pytest.raises(UserError, match="died 3 times before they had started a run"):
        engine.run_in_processes(runs, workspace, watch, 2, choose)
    assert len(lives) == engine.MAX_ATTEMPTS

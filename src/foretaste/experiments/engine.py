"""Doing many runs on one machine: worker processes that may die without taking a result with them.

Workers write their own records, so nothing that is finished depends on the parent. A worker that is killed
breaks the pool: the runs that were under way are then started again, one at a time, so that the run that
kills its worker is told from the one that happened to run beside it.

What is done with a run is a `Job`: fine-tuning a classifier (`MEASURING`), or a generative model.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psutil
import torch

from foretaste.attempt import crashed, write_record
from foretaste.calibration.naming import FINAL
from foretaste.errors import UserError
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import execute, record_of
from foretaste.record import Layout, Record, read_record
from foretaste.spec import RunSpec

MAX_ATTEMPTS = 3
DIED = f"its worker process died {MAX_ATTEMPTS} times (killed, or out of memory?)"
STEP_INTERVAL = 0.25  # seconds between two progress messages of a worker
# The malloc settings keep glibc from giving large freed blocks back to the system at every step, which costs
# a page fault for every 4 KiB of the next gradient (measured: 10 % of a MiniLM step).
WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "TOKENIZERS_PARALLELISM": "false",
}


class Run(Protocol):
    """What the engine needs of a run: the name of its record, and a line for people."""

    @property
    def id(self) -> str:
        """Equal ids mean equal runs."""

    @property
    def label(self) -> str:
        """One line for progress displays."""


class Result(Protocol):
    """What a listener may ask of any record."""

    @property
    def status(self) -> str:
        """How the run ended."""

    @property
    def reason(self) -> str | None:
        """Why it is not completed."""

    @property
    def collapsed(self) -> bool:
        """The trained model does the same whatever it is given."""


def _nothing_kept(_run: Any, _workspace: Workspace) -> None:
    return None  # a function of the module: workers are sent their job


@dataclass(frozen=True)
class Job:
    """What is done with a run. Workers are told of it by name: both are functions of a module.

    Attributes:
        execute: From (run, workspace, attempts=, on_step=) to the record, which it has written.
        crashed: From (run, workspace, reason, attempts) to the record of a run whose worker keeps dying,
            which it has written.
        kept: From (run, workspace) to the result that a worker wrote before it died; None without one.
    """

    execute: Callable[..., Result]
    crashed: Callable[[Any, Workspace, str, int], Result]
    kept: Callable[[Any, Workspace], Result | None] = _nothing_kept


def _crashed(run: RunSpec, workspace: Workspace, reason: str, attempts: int) -> Record:
    record = record_of(run, workspace, crashed(reason), attempts)
    write_record(record, workspace.folder)
    return record


def _kept(run: RunSpec, workspace: Workspace) -> Record | None:
    path = Layout(workspace.folder).record(run.id)
    if not path.exists():
        return None
    with contextlib.suppress(UserError):
        record = read_record(path)
        if record.status in FINAL:
            return record
    return None


MEASURING = Job(execute, _crashed, _kept)


class Listener:
    """Hears of progress; all calls come from the parent process. This one does nothing."""

    def started(self, run: Run) -> None:
        """A run begins."""

    def stepped(self, run_id: str, done: int, total: int) -> None:
        """A run has done some of its optimiser steps."""

    def finished(self, run: Run, record: Result) -> None:
        """A run has a record, whatever its status."""

    def retried(self, run: Run, attempt: int) -> None:
        """The worker of a run died; the run is started again."""

    def stopping(self, active: int) -> None:
        """Ctrl-C: so many runs are still under way and will be finished."""


@dataclass(frozen=True)
class Allocation:
    """How many processes with how many threads each, and why."""

    processes: int
    threads: int
    reason: str


def cores() -> int:
    """Cores that this process may use (its CPU affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def affordable_processes(parameters: int) -> int:
    """Processes whose training fits into the free memory.

    Counted for each: 0.8 GB for python, torch and activations of small batches, and 20 bytes for each
    parameter (float32 weights, gradients, two Adam moments, and one copy while loading).
    """
    need = 0.8e9 + 20.0 * parameters
    return max(1, int(psutil.virtual_memory().available * 0.9 / need))


def run_inline(
    runs: Sequence[Run],
    workspace: Workspace,
    listener: Listener,
    threads: int | None = None,
    job: Job = MEASURING,
) -> None:
    """Do the runs one after another in this process.

    Raises:
        OSError: A result could not be written.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        for run in runs:
            listener.started(run)
            free_garbage()
            record = job.execute(run, workspace, on_step=functools.partial(listener.stepped, run.id))
            listener.finished(run, record)
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)


def free_garbage() -> None:
    """Free what the run before has left, and leave all else out of the collections during the next one.

    accelerate collects before each training. Over all that the libraries hold, this took 0.27 s: more than
    half of a run of a tiny model.
    """
    gc.collect()
    gc.freeze()


def run_in_processes(
    runs: Sequence[Run],
    workspace: Workspace,
    listener: Listener,
    workers: int,
    choose: Callable[[ProcessPoolExecutor], Allocation],
    job: Job = MEASURING,
) -> None:
    """Do the runs in worker processes.

    The first Ctrl-C lets the runs under way finish and starts no others; the second stops them.

    Args:
        runs: What to do.
        workspace: Where, and with what; nothing in memory.
        listener: Hears of progress.
        workers: Processes to start; never more are busy than the allocation says.
        choose: Decides the allocation, by measuring in the started workers if it likes.
        job: What is done with a run.

    Raises:
        OSError: A result could not be written; all other runs keep theirs.
        UserError: Workers die before they have started a run, again and again.
        KeyboardInterrupt: After the runs under way have finished, or been stopped.
    """
    todo = deque(runs)
    attempts: Counter[str] = Counter()
    allocation: Allocation | None = None
    idle = 0  # pools in a row that broke before they had started a run
    while todo:
        waiting = len(todo)
        suspects: list[Run] = []
        with contextlib.suppress(BrokenProcessPool), _pool(workers, listener) as pool:
            allocation = allocation or choose(pool)
            space = replace(workspace, processes=allocation.processes)
            sweep = _Sweep(pool, space, listener, allocation, job)
            suspects = sweep.drain(todo, attempts)
        idle = idle + 1 if len(todo) == waiting else 0
        if idle == MAX_ATTEMPTS:
            raise UserError(
                f"worker processes died {idle} times before they had started a run",
                cure="Look for what kills them (memory?), or stay in one process: --processes 1.",
            )
        for run in suspects:
            # A worker that dies between its last file and its answer has finished the run.
            if (result := job.kept(run, workspace)) is not None:
                listener.finished(run, result)
            elif attempts[run.id] >= MAX_ATTEMPTS:
                listener.finished(run, job.crashed(run, workspace, DIED, attempts[run.id]))
            else:
                listener.retried(run, attempts[run.id] + 1)
                todo.appendleft(run)


@dataclass(frozen=True)
class _Sweep:
    """One life of the pool."""

    pool: ProcessPoolExecutor
    workspace: Workspace
    listener: Listener
    allocation: Allocation
    job: Job = MEASURING

    def drain(self, todo: deque[Run], attempts: Counter[str]) -> list[Run]:
        """Work through `todo` until it is empty or the pool breaks; the runs under way at a break."""
        active: dict[Future[Result], Run] = {}
        stopping = False
        while True:
            try:
                while todo and not stopping and _may_start(todo[0], active, attempts, self.allocation):
                    run = todo[0]
                    task = run, self.workspace, self.allocation.threads, attempts[run.id] + 1, self.job
                    active[self.pool.submit(_work, *task)] = run
                    # Only now: a broken pool has not started the run.
                    todo.popleft()
                    attempts[run.id] += 1
                    self.listener.started(run)
                if not active:
                    if stopping:
                        self.pool.shutdown(wait=True)  # nothing is under way: no worker needs killing
                        raise KeyboardInterrupt
                    return []
                done, _ = wait(active, return_when=FIRST_COMPLETED)
                for future in done:
                    record = future.result()
                    self.listener.finished(active.pop(future), record)
            except BrokenProcessPool:
                if stopping:
                    raise KeyboardInterrupt from None
                return list(active.values())
            except KeyboardInterrupt:
                if stopping or not active:
                    raise
                stopping = True
                self.listener.stopping(len(active))


def _may_start(
    run: Run, active: dict[Future[Result], Run], attempts: Counter[str], allocation: Allocation
) -> bool:
    """A run whose worker died before runs alone, so that the next death is certainly its own."""
    if attempts[run.id] or any(attempts[other.id] > 1 for other in active.values()):
        return not active
    return len(active) < allocation.processes


@contextmanager
def _pool(workers: int, listener: Listener) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    steps: multiprocessing.Queue[tuple[str, int, int] | None] = context.Queue()
    before = set(multiprocessing.active_children())
    with environment(WORKER_ENVIRONMENT):
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(steps,))
        hearing = threading.Thread(target=_hear, args=(steps, listener), daemon=True)
        hearing.start()
        try:
            _start_workers(pool, workers)
            yield pool
            pool.shutdown(wait=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
            raise
        finally:
            steps.put(None)
            hearing.join(timeout=5)
            steps.cancel_join_thread()
            steps.close()


def _start_workers(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start all workers before any has a run.

    The executor starts one where a task finds none idle. If another worker dies in that moment, the new one
    escapes it, and its own thread ends with an error. Here no worker has anything yet that could kill it.
    """
    # A worker inherits the mask, so that Ctrl-C in the terminal does not kill it in the seconds before
    # `_start`; a Ctrl-C meant for this process comes a moment later.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            pool.submit(_settle, 0.0)
    except (OSError, ValueError) as error:
        # A pool that breaks while it starts a worker closes the pipes that the worker was to inherit.
        raise BrokenProcessPool(str(error)) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile."""
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _hear(steps: multiprocessing.Queue[tuple[str, int, int] | None], listener: Listener) -> None:
    while True:
        try:
            message = steps.get()
        except (EOFError, OSError):
            return
        if message is None:
            return
        listener.stepped(*message)


# --- inside a worker -----------------------------------------------------------------------------

_steps: multiprocessing.Queue[tuple[str, int, int] | None] | None = None


def _start(steps: multiprocessing.Queue[tuple[str, int, int] | None]) -> None:
    global _steps
    _steps = steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with the parent, so that a killed sweep leaves no workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(run: Run, workspace: Workspace, threads: int, attempt: int, job: Job = MEASURING) -> Result:
    def send(done: int, total: int) -> None:
        if _steps is not None:
            _steps.put((run.id, done, total))

    torch.set_num_threads(threads)
    free_garbage()
    return job.execute(run, workspace, attempts=attempt, on_step=sparsely(send))


def sparsely(send: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """From (steps done, steps in all) to a message now and then; the last step is always told."""
    last = 0.0

    def on_step(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > STEP_INTERVAL or done == total:
            last = now
            send(done, total)

    return on_step


# --- choosing the allocation ---------------------------------------------------------------------


def most_processes(runs: int, parameters: int) -> int:
    """The most processes that make sense: no more than runs, cores, or what fits into memory.

    Args:
        runs: Runs to do.
        parameters: Of the base model.
    """
    if torch.cuda.is_available():
        return 1
    return min(cores(), runs, affordable_processes(parameters))


def measured_allocation(pool: ProcessPoolExecutor, most: int, tokens: int, hidden: int) -> Allocation:
    """Processes x threads that train most, by measuring each split of the cores at the sweep's shapes.

    Args:
        pool: Has `most` workers, which will do the sweep.
        most: The most processes to try.
        tokens: Tokens of a batch.
        hidden: Width of the model.
    """
    total = cores()
    splits = [p for p in (2**i for i in range(total.bit_length())) if p <= most]
    list(pool.map(_settle, [0.3] * most))
    rates: dict[int, float] = {}
    for p in splits:
        jobs = [pool.submit(_trial, tokens, hidden, total // p) for _ in range(p)]
        rates[p] = sum(job.result() for job in jobs)
    best = max(rates, key=lambda p: rates[p])
    gains = ", ".join(f"{p} x {total // p}: {rates[p] / rates[1]:.2f}" for p in splits)
    return Allocation(best, total // best, f"measured speed, processes x threads: {gains}")


def _settle(seconds: float) -> None:
    time.sleep(seconds)  # long enough that every worker takes one of these and is up


def _trial(tokens: int, hidden: int, threads: int, seconds: float = 0.6) -> float:
    """Forward and backward passes of one feed-forward block a second."""
    torch.set_num_threads(threads)
    block = torch.nn.Sequential(
        torch.nn.Linear(hidden, 4 * hidden),
        torch.nn.GELU(),
        torch.nn.Linear(4 * hidden, hidden),
        torch.nn.LayerNorm(hidden),
    )
    x = torch.zeros(tokens, hidden, requires_grad=True)
    block(x).sum().backward()
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        block(x).sum().backward()
        count += 1
    return count / spent

"""Doing many runs on Ray: one task a run, on a cluster or on a Ray of this machine.

What goes through Ray is small: a run, what its sweep shares, and the record that comes back. Models and data
are read from disk by each worker, and results are written into the sweep's folder, which every node must see.

Ray could start a lost task again by itself, but would keep to itself how often. The count decides when a run
is given up as crashed, so tasks are started again here. Each has a worker of its own: unlike in a pool of
processes, the run whose worker died is known, and no other is lost with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from foretaste.errors import UserError
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.engine import (
    DIED,
    MAX_ATTEMPTS,
    MEASURING,
    STEP_INTERVAL,
    Allocation,
    Job,
    Listener,
    Result,
    Run,
    cores,
    free_garbage,
    sparsely,
)
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.ray_nodes import (
    NodeAffinitySchedulingStrategy,
    Share,
    alive_nodes,
    await_file,
    connected,
    exceptions,
    ray,
    require_same,
    require_seen,
    share_of,
    token_in,
)
from foretaste.experiments.ray_progress import Progress
from foretaste.record import Layout

# The worker or its node is gone, and the run with it. None of these is raised by a run itself.
LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
)


def run(
    runs: Sequence[Run],
    workspace: Workspace,
    listener: Listener,
    cluster: Cluster,
    demand: Demand,
    *,
    processes: int | None = None,
    threads: int | None = None,
    on_allocated: Callable[[Allocation], None] | None = None,
    job: Job = MEASURING,
) -> None:
    """Do the runs as tasks of Ray.

    The first Ctrl-C lets the runs under way finish and starts no others; the second stops them.

    Args:
        runs: What to do.
        workspace: Where, and with what; nothing in memory.
        listener: Hears of progress.
        cluster: Which Ray.
        demand: What a run wants of a node.
        processes: The most runs at once; as many as the cluster takes when None.
        threads: CPUs and threads of a run; when None, the cluster's CPUs are shared out among the runs.
        on_allocated: Called with how many runs are done at once, before any begins.
        job: What is done with a run.

    Raises:
        OSError: A result could not be written; all other runs keep theirs.
        UserError: Something is in memory; Ray is not there; no node is large enough; or a node does not see
            the folder, the model or the data, or has other versions of the packages.
        KeyboardInterrupt: After the runs under way have finished, or been stopped.
    """
    if not workspace.resources.empty:
        raise UserError(
            "data or a model in memory cannot be sent to the nodes of a cluster",
            where="engine ray",
            cure="Save them and name their folder in the spec, or stay with the local engine.",
        )
    space = replace(
        workspace, folder=workspace.folder.resolve(), base_dir=workspace.base_dir.expanduser().resolve()
    )
    asked = (processes or 1) * (threads or 1)
    with connected(cluster, max(cores(), asked)), token_in(space.folder) as token:
        share = share_of(demand, len(runs), processes, threads)
        nodes = [node for node in alive_nodes() if share.fits(node)]
        require_same(nodes, token, demand.names, space.base_dir)
        fitting = [share.fits(node) for node in nodes]
        most = min(sum(fitting), processes or sum(fitting))
        words = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'} of Ray"
        if on_allocated is not None:
            on_allocated(Allocation(most, share.cpus, words))
        space = replace(space, processes=min(most, max(fitting)))
        sweep = _Sweep(space, listener, share, processes, token, job, _start_progress())
        sweep.work_through(deque(runs))


@dataclass
class _Sweep:
    """The tasks of one sweep."""

    workspace: Workspace
    listener: Listener
    share: Share
    most: int | None
    token: Path
    job: Job
    progress: Any
    active: dict[Any, Run] = field(default_factory=dict)
    asked: Any = None
    attempts: Counter[str] = field(default_factory=Counter)

    def work_through(self, todo: deque[Run]) -> None:
        """Until every run has a record, or Ctrl-C."""
        stopping = False
        try:
            while True:
                try:
                    if not stopping:
                        self._fill(todo)
                    if not self.active:
                        break
                    self._hear()
                    done, _ = ray.wait(list(self.active), timeout=STEP_INTERVAL)
                    for ref in done:
                        self._finish(ref, todo)
                except KeyboardInterrupt:
                    if stopping or not self.active:
                        raise
                    stopping = True
                    self.listener.stopping(len(self.active))
        except BaseException:
            cancel(self.active)
            raise
        self._hear(last=True)
        if stopping:
            raise KeyboardInterrupt

    def _fill(self, todo: deque[Run]) -> None:
        """Start runs while there is room; no more wait inside Ray than the cluster can take at once."""
        if not todo:
            return
        room = sum(self.share.fits(node) for node in alive_nodes())
        if not room and not self.active:
            raise UserError(
                "no node that could do a run is left in the cluster",
                where="engine ray",
                cure="Finished runs are kept; the same command goes on when nodes are back.",
            )
        while todo and len(self.active) < min(room, self.most or room):
            run = todo.popleft()
            self.attempts[run.id] += 1
            attempt = self.attempts[run.id]
            sent = (run, self.workspace, self.share.cpus, attempt, self.job, self.token, self.progress)
            ref = task(_work, self.share, run.id).remote(*sent)
            self.active[ref] = run
            self.listener.started(run)

    def _finish(self, ref: Any, todo: deque[Run]) -> None:
        run = self.active.pop(ref)
        try:
            record: Result = ray.get(ref)
        except LOST:
            count = self.attempts[run.id]
            # A worker that dies between its last file and its answer has finished the run.
            if (kept := self.job.kept(run, self.workspace)) is not None:
                self.listener.finished(run, kept)
            elif count >= MAX_ATTEMPTS:
                self.listener.finished(run, self.job.crashed(run, self.workspace, DIED, count))
            else:
                self.listener.retried(run, count + 1)
                todo.append(run)
            return
        except exceptions.RayTaskError as error:
            raise error.cause from None  # as it was raised, without the worker's traceback in its message
        await_file(Layout(self.workspace.folder).record(run.id), f"run {run.label}")
        self.listener.finished(run, record)

    def _hear(self, *, last: bool = False) -> None:
        """Pass on what the runs have told, without waiting for it; a lost message is none that matters."""
        for _ in range(2 if last else 1):  # at the end, the answer to a question from before is an old one
            with suppress(exceptions.RayError):
                self.asked = self.asked or self.progress.take.remote()
                ready, _ = ray.wait([self.asked], timeout=5.0 if last else 0)
                if not ready:
                    return
                asked, self.asked = self.asked, None
                for run_id, (done, total) in ray.get(asked).items():
                    self.listener.stepped(run_id, done, total)


def task(function: Callable[..., Any], share: Share, what: str, *, retries: int = 0) -> Any:
    """A function as a task of Ray; Ray itself starts it again so often when its worker is lost."""
    remote = ray.remote(function)
    return remote.options(
        name=f"foretaste {what}",
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        memory=share.memory,
        max_retries=retries,
    )


def wait_for(refs: Sequence[Any], on_done: Callable[[int], None]) -> None:
    """Wait for tasks whose results are of no account; when one fails, the others are stopped.

    Args:
        refs: What the tasks were started as.
        on_done: Called with how many are done.

    Raises:
        Exception: What a task raised; one of `LOST` where its worker died each time.
    """
    waiting = list(refs)
    try:
        while waiting:
            (done,), waiting = ray.wait(waiting)
            try:
                ray.get(done)
            except exceptions.RayTaskError as error:
                raise error.cause from None
            on_done(len(refs) - len(waiting))
    except BaseException:
        cancel(waiting)
        raise


def cancel(refs: Iterable[Any]) -> None:
    """Stop tasks at once, with their workers."""
    for ref in refs:
        with suppress(Exception):  # must not hide why
            ray.cancel(ref, force=True)


def _start_progress() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(Progress).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
    return actor.remote()


# --- inside a worker -----------------------------------------------------------------------------


def _work(
    run: Run, workspace: Workspace, threads: int, attempt: int, job: Job, token: Path, progress: Any
) -> Result:
    require_seen(token)

    def send(done: int, total: int) -> None:
        progress.tell.remote(run.id, done, total)

    torch.set_num_threads(threads)
    free_garbage()
    return job.execute(run, workspace, attempts=attempt, on_step=sparsely(send))

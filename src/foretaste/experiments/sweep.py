"""A sweep of any kind: its preview, its records, and how its missing runs are shared out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from foretaste.attempt import OfRun
from foretaste.experiments import engine
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.engine import Allocation, Job
from foretaste.experiments.prepare import Workspace

P = TypeVar("P")
U = TypeVar("U")
R = TypeVar("R", bound=OfRun)


@dataclass(frozen=True)
class Measured(Generic[R]):
    """The records of a sweep, those of earlier sessions included.

    Attributes:
        folder: Where everything lies.
        records: One for each run, in the order of the plan.
    """

    folder: Path
    records: list[R]

    @property
    def statuses(self) -> dict[str, int]:
        """How many runs ended how."""
        return dict(Counter(record.status for record in self.records))


@dataclass(frozen=True)
class Preview(Generic[P, U]):
    """What a sweep would do.

    Attributes:
        plan: All runs.
        missing: Those that have no result yet.
        seconds: Expected wall time of the missing runs, one after another with all threads.
    """

    plan: P
    missing: list[U]
    seconds: float


def run(
    missing: Sequence[engine.Run],
    workspace: Workspace,
    listener: engine.Listener,
    job: Job,
    demand: Demand,
    *,
    processes: int | None,
    threads: int | None,
    cluster: Cluster | None,
    on_allocated: Callable[[Allocation], None],
) -> None:
    """Do runs whose threads share the cores badly: in as many processes as fit, or on a cluster.

    Args:
        missing: What to do.
        workspace: Where, and with what.
        listener: Hears of progress.
        job: What is done with a run.
        demand: What the runs want of a machine.
        processes: Worker processes; by default one for each core that memory allows. 1 stays in this process.
        threads: Threads of each; the cores shared out when None.
        cluster: Does the runs in place of processes of this machine.
        on_allocated: Hears how many processes there will be, before the first starts.

    Raises:
        OSError: A result could not be written; all other runs keep theirs.
        UserError: The cluster cannot do the runs, or workers die at once.
    """
    if cluster is not None:
        from foretaste.experiments import ray_engine  # Ray is an extra

        ray_engine.run(
            missing,
            workspace,
            listener,
            cluster,
            demand,
            processes=processes,
            threads=threads,
            on_allocated=on_allocated,
            job=job,
        )
        return
    fixed = _allocation(len(missing), demand.parameters, processes, threads)
    on_allocated(fixed)
    if fixed.processes == 1:
        engine.run_inline(missing, workspace, listener, fixed.threads, job)
        return

    def choose(_: ProcessPoolExecutor) -> Allocation:
        return fixed

    engine.run_in_processes(missing, workspace, listener, fixed.processes, choose, job)


def _allocation(runs: int, parameters: int, processes: int | None, threads: int | None) -> Allocation:
    """Processes as asked; else one for each core, as far as there are runs and memory for that.

    Batches of a few rows and generation token by token are too small for the threads of one process: separate
    processes share the cores better.
    """
    cores = engine.cores()
    if processes is not None:
        return Allocation(processes, threads or max(1, cores // processes), "as asked")
    most = engine.most_processes(runs, parameters)
    if threads is not None:
        most = max(1, min(most, cores // threads))
        return Allocation(most, threads, "threads as asked")
    return Allocation(most, max(1, cores // most), "as many as runs, cores and memory allow")


@contextmanager
def held(cluster: Cluster | None, cpus: int | None = None) -> Iterator[None]:
    """One connection for several sweeps; nothing without a cluster.

    Args:
        cluster: Which Ray.
        cpus: As in `ray_nodes.connected`.

    Raises:
        UserError: As `ray_nodes.connected`.
    """
    if cluster is None:
        yield
        return
    from foretaste.experiments import ray_nodes  # Ray is an extra

    with ray_nodes.connected(cluster, cpus):
        yield

"""`measure`: plan a sweep, do what is missing, keep every result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from foretaste import data
from foretaste.errors import UserError
from foretaste.experiments import devices, engine, estimate, stacks, store, sweep
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.plan import Plan, Resources, plan
from foretaste.experiments.prepare import Workspace
from foretaste.models import load
from foretaste.models.encode import encode
from foretaste.record import Layout, Record
from foretaste.spec import MeasureSpec, RunSpec
from foretaste.training import ranks, trainer

__all__ = ["Measured", "Preview", "Watcher", "measure", "preview", "refuse_stacks"]


# Seconds of work that a worker must take off this process to be worth starting: it imports torch and measures
# for about ten, and two processes of one thread gain a tenth over one of two (results/bench.jsonl).
SHORT_SWEEP = 45.0


class Planned(Protocol):
    """What a watcher may ask of any plan."""

    @property
    def runs(self) -> Sequence[engine.Run]:
        """Every run."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader should know."""


class Watcher(engine.Listener):
    """Hears of a sweep from its plan to its end; this one says nothing."""

    def planned(self, plan: Planned, missing: Sequence[engine.Run], problems: Sequence[UserError]) -> None:
        """The runs are known, and which of them are missing."""

    def allocated(self, allocation: engine.Allocation) -> None:
        """Processes and threads are chosen."""

    def noted(self, text: str) -> None:
        """Something went another way than was asked for."""


class Measured(sweep.Measured[Record]):
    """The records of a sweep, those of earlier sessions included.

    Attributes:
        folder: Where everything lies.
        records: One for each run, in the order of the plan.
    """


@dataclass(frozen=True)
class Preview(sweep.Preview[Plan, RunSpec]):
    """What a sweep would do.

    Attributes:
        truncated: Training rows of the first seed that are cut at max_length.
    """

    truncated: int


def preview(
    spec: MeasureSpec,
    folder: Path,
    *,
    base_dir: Path,
    resources: Resources | None = None,
    only: Callable[[RunSpec], bool] | None = None,
    cluster: Cluster | None = None,
) -> Preview:
    """Plan a sweep without doing it.

    Args:
        spec: The sweep.
        folder: Its folder, which need not exist; finished runs in it are not missing.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory.
        only: Runs that are meant; all when None.
        cluster: Would do the runs in place of this machine.

    Raises:
        UserError: The spec does not fit the data, the model or peft, or asks for a device that is not here.
    """
    if cluster is None:
        devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir, resources)
    planned = replace(planned, runs=[run for run in planned.runs if only is None or only(run)])
    done, _ = store.finished(Layout(folder).read())
    missing = [run for run in planned.runs if run.id not in done]
    shape, truncated = _shape(planned, base_dir, resources or Resources())
    expected = estimate.seconds(missing, shape, estimate.gemm_speed(), base_dir)
    return Preview(planned, missing, expected, truncated)


def measure(
    spec: MeasureSpec,
    folder: Path,
    *,
    base_dir: Path,
    resources: Resources | None = None,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Watcher | None = None,
    only: Callable[[RunSpec], bool] | None = None,
    cluster: Cluster | None = None,
    stack: int | None = None,
) -> Measured:
    """Do every run of a sweep that has no result yet.

    Args:
        spec: The sweep.
        folder: Where records, manifests and predictions go.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory; the runs then stay in this process.
        extend: Accept a folder that holds a different spec, and add to it.
        processes: Worker processes; measured when None. 1 stays in this process.
        threads: Threads of each; the cores shared out when None.
        watcher: Hears of progress.
        only: Runs to do; all when None. What it leaves out is returned where it has a result.
        cluster: Does the runs in place of processes of this machine.
        stack: LoRA runs that are trained together through one base, in this process; 1 when None. Results
            are those of single runs up to rounding.

    Raises:
        UserError: The spec does not fit, the folder holds another sweep, the disk is full, the cluster
            cannot do the runs, or `stack` is asked for with anything but one process.
    """
    refuse_stacks(stack, processes, cluster)
    watcher = watcher or Watcher()
    resources = resources or Resources()
    if cluster is None:
        devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir, resources)
    if ranks.count() > 1:
        if cluster is not None or (processes or 1) > 1:
            ranks.require_one("a sweep on Ray or in worker processes")
        for run in planned.runs:
            ranks.share_of(run.training.batch_size)
        processes, threads = 1, threads or max(1, engine.cores() // ranks.on_this_machine())
        if ranks.number() > 0:
            return _follow(planned, folder, base_dir, resources, threads)
    with store.full_disk_explained(folder), store.owned(folder) as layout:
        store.claim(layout, spec, planned.runs, extend=extend)
        done, problems = store.finished(layout.read())
        wanted = [run for run in planned.runs if only is None or only(run)]
        missing = [run for run in wanted if run.id not in done]
        watcher.planned(replace(planned, runs=wanted), missing, problems)
        workspace = Workspace(
            folder=folder,
            base_dir=base_dir,
            sweep=spec.name,
            request=spec.model_dump(mode="json", exclude_unset=True),
            resources=resources,
            processes=ranks.count(),
        )
        ranks.told([run.id for run in missing], cpu=_on_cpu(planned))
        if missing:
            _run(missing, planned, workspace, watcher, processes, threads, cluster, stack or 1)
        by_id = {record.run_id: record for record in layout.read()[0]}
    return Measured(folder, [by_id[run.id] for run in planned.runs if run.id in by_id])


def refuse_stacks(stack: int | None, processes: int | None, cluster: Cluster | None) -> None:
    """Check that runs which are to be trained together may stay in this process.

    Args:
        stack: Runs that are trained together; with None or 1 there is nothing to check.
        processes: Worker processes that are asked for.
        cluster: Does the runs in place of processes of this machine.

    Raises:
        UserError: Several processes are meant to do them.
    """
    if (stack or 1) == 1:
        return
    ranks.require_one("a sweep that trains runs together (--stack)")
    if cluster is not None:
        raise UserError(
            "runs that are trained together stay in this process, and Ray has others",
            where="--stack",
            cure="Drop --engine ray, or --stack.",
        )
    if (processes or 1) > 1:
        raise UserError(
            f"runs that are trained together stay in this process, and --processes asks for {processes}",
            where="--stack",
            cure="Drop --processes, or --stack.",
        )


def _follow(
    planned: Plan, folder: Path, base_dir: Path, resources: Resources, threads: int | None
) -> Measured:
    """Do the runs that the first of several processes says, beside it; results of this one are dropped."""
    missing = set(ranks.told(None, cpu=_on_cpu(planned)))
    with tempfile.TemporaryDirectory(prefix="foretaste-") as own:
        workspace = Workspace(Path(own), base_dir, planned.spec.name, {}, resources, ranks.count())
        runs = [run for run in planned.runs if run.id in missing]
        engine.run_inline(runs, workspace, _Together(Watcher()), threads)
        return Measured(folder, Layout(Path(own)).read()[0])


class _Together(Watcher):
    """Ends the sweep when a run fails in one of several processes: the others wait for it in vain."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def started(self, run: engine.Run) -> None:
        self._watcher.started(run)

    def stepped(self, run_id: str, done: int, total: int) -> None:
        self._watcher.stepped(run_id, done, total)

    def finished(self, run: engine.Run, record: engine.Result) -> None:
        self._watcher.finished(run, record)
        if record.status == "error":
            raise UserError(
                f"{run.label}: {record.reason}",
                where=f"process {ranks.number()} of {ranks.count()}",
                cure="A run that fails in one of several processes ends the sweep; finished runs are kept.",
            )


def _on_cpu(planned: Plan) -> bool:
    return trainer.device_of(planned.runs[0].training).type == "cpu"


def _run(
    missing: list[RunSpec],
    planned: Plan,
    workspace: Workspace,
    watcher: Watcher,
    processes: int | None,
    threads: int | None,
    cluster: Cluster | None,
    stack: int,
) -> None:
    if stack > 1:
        groups = stacks.grouped(missing, stack)
        alone = sum(len(group) == 1 for group in groups)
        reason = f"up to {stack} runs trained together; groups: {len(groups) - alone}, runs alone: {alone}"
        allocation = engine.Allocation(1, threads or engine.cores(), reason)
        watcher.allocated(allocation)
        stacks.run_inline(missing, workspace, watcher, allocation.threads, most=stack, on_note=watcher.noted)
        return
    shape, _ = _shape(planned, workspace.base_dir, workspace.resources)
    if cluster is not None:
        from foretaste.experiments import ray_engine  # Ray is an extra

        ray_engine.run(
            missing,
            workspace,
            watcher,
            cluster,
            Demand(
                parameters=shape.total_parameters,
                names=[planned.spec.model.base, planned.spec.data.source],
                devices={run.training.device for run in missing},
            ),
            processes=processes,
            threads=threads,
            on_allocated=watcher.allocated,
        )
        return
    fixed = _fixed_allocation(missing, shape, workspace, processes, threads)
    if fixed is not None:
        if ranks.count() > 1:
            fixed = replace(fixed, reason=f"{ranks.count()} processes train each run together")
        watcher.allocated(fixed)
        if fixed.processes == 1:
            listener = watcher if ranks.count() == 1 else _Together(watcher)
            engine.run_inline(missing, workspace, listener, fixed.threads)
            return
    most = engine.most_processes(len(missing), shape.total_parameters)

    def choose(pool: ProcessPoolExecutor) -> engine.Allocation:
        if fixed is not None:
            return fixed
        tokens = max(1, round(missing[0].training.batch_size * shape.train_tokens))
        measured = engine.measured_allocation(pool, most, tokens, shape.hidden)
        watcher.allocated(measured)
        return measured

    workers = most if fixed is None else fixed.processes
    engine.run_in_processes(missing, workspace, watcher, workers, choose)


def _fixed_allocation(
    missing: list[RunSpec],
    shape: estimate.Shape,
    workspace: Workspace,
    processes: int | None,
    threads: int | None,
) -> engine.Allocation | None:
    """The allocation where there is nothing to measure; None where measuring decides."""
    cores = engine.cores()
    if not workspace.resources.empty:
        return engine.Allocation(1, threads or cores, "data or model in memory")
    if processes is not None:
        return engine.Allocation(processes, threads or max(1, cores // processes), "as asked")
    most = engine.most_processes(len(missing), shape.total_parameters)
    if most == 1:
        return engine.Allocation(1, threads or cores, "one run, one core or memory for one")
    if threads is not None:
        return engine.Allocation(max(1, min(most, cores // threads)), threads, "threads as asked")
    expected = estimate.seconds(missing, shape, estimate.gemm_speed(), workspace.base_dir)
    if expected < SHORT_SWEEP * most:
        reason = f"about {expected:.0f} s of work, less than starting {most} processes is worth"
        return engine.Allocation(1, cores, reason)
    return None


def _shape(planned: Plan, base_dir: Path, resources: Resources) -> tuple[estimate.Shape, int]:
    """Sizes of the runs, and the training rows of the first seed that are cut."""
    run = planned.runs[0]
    request = run.model.request
    split = data.draw(planned.loaded, run.data.request, run.seeds.data)
    if resources.model is not None:
        assert resources.tokenizer is not None
        tokenizer, model = resources.tokenizer, resources.model
    else:
        location = load.locate(request, base_dir)
        tokenizer = load.load_tokenizer(location)
        model = load.load_classifier(
            location,
            run.model.pooling,
            classes=run.data.classes,
            dtype=trainer.dtype_of(run.training),
            dropout=False,
            pad_token_id=tokenizer.pad_token_id,
            meta=True,
        )
    train, test = (
        encode(tokenizer, rows, max_length=request.max_length, pair_separator=request.pair_separator)
        for rows in (split.train, split.test)
    )
    return estimate.shape_of(train, test, model), train.truncated

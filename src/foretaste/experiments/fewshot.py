"""`fewshot`: plan a few-shot sweep, do what is missing, and keep every result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretaste.errors import UserError
from foretaste.experiments import engine, fewshot_estimate, store
from foretaste.experiments.cluster import Cluster
from foretaste.experiments.fewshot_plan import FewShotPlan, plan
from foretaste.experiments.measure import Watcher
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import machine_of, source_commit, versions
from foretaste.fewshot import run as runner
from foretaste.fewshot.record import FewShotLayout, FewShotRecord
from foretaste.fewshot.spec import FewShotRun, FewShotSpec, FineTune, KernelArm
from foretaste.kernels.compute import parse_bytes
from foretaste.record import write_atomic
from foretaste.training.trainer import OnStep

__all__ = ["FewShotPreview", "MeasuredFewShot", "fewshot", "preview"]


@dataclass(frozen=True)
class MeasuredFewShot:
    """The records of a sweep, those of earlier sessions included.

    Attributes:
        folder: Where everything lies.
        records: One for each run, in the order of the plan.
    """

    folder: Path
    records: list[FewShotRecord]

    @property
    def statuses(self) -> dict[str, int]:
        """How many runs ended how."""
        return dict(Counter(record.status for record in self.records))


@dataclass(frozen=True)
class FewShotPreview:
    """What a sweep would do.

    Attributes:
        plan: All runs.
        missing: Those that have no result yet.
        seconds: Expected wall time of the missing runs, one after another with all threads.
    """

    plan: FewShotPlan
    missing: list[FewShotRun]
    seconds: float


def preview(spec: FewShotSpec, folder: Path, *, base_dir: Path) -> FewShotPreview:
    """Plan a sweep without doing it.

    Args:
        spec: The sweep.
        folder: Its folder, which need not exist; finished runs in it are not missing.
        base_dir: Folder that relative paths in the spec start from.

    Raises:
        UserError: As `fewshot_plan.plan`.
    """
    planned = plan(spec, base_dir)
    done, _ = _finished(FewShotLayout(folder))
    missing = [run for run in planned.runs if run.id not in done]
    return FewShotPreview(planned, missing, fewshot_estimate.seconds(missing, planned))


def fewshot(
    spec: FewShotSpec,
    folder: Path,
    *,
    base_dir: Path,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Watcher | None = None,
    cluster: Cluster | None = None,
) -> MeasuredFewShot:
    """Do every run of a sweep that has no result yet.

    Args:
        spec: The sweep.
        folder: Where records go.
        base_dir: Folder that relative paths in the spec start from.
        extend: Accept a folder that holds a different spec, and add to it.
        processes: Worker processes; by default one for each core that memory allows. 1 stays in this process.
        threads: Threads of each; the cores shared out when None.
        watcher: Hears of progress.
        cluster: Does the runs in place of processes of this machine.

    Raises:
        UserError: The spec does not fit, the folder holds another sweep, the disk is full, or the cluster
            cannot do the runs.
    """
    watcher = watcher or Watcher()
    planned = plan(spec, base_dir)
    with store.full_disk_explained(folder), store.owned(folder):
        layout = FewShotLayout(folder)
        _claim(layout, planned, extend=extend)
        done, problems = _finished(layout)
        missing = [run for run in planned.runs if run.id not in done]
        watcher.planned(planned, missing, problems)
        workspace = Workspace(
            folder=folder,
            base_dir=base_dir,
            sweep=spec.name,
            request=spec.model_dump(mode="json", exclude_unset=True),
        )
        if missing:
            _run(missing, planned, workspace, watcher, processes, threads, cluster)
        by_id = {record.run_id: record for record in layout.records()[0]}
    return MeasuredFewShot(folder, [by_id[run.id] for run in planned.runs if run.id in by_id])


# --- the folder ----------------------------------------------------------------------------------


def _finished(layout: FewShotLayout) -> tuple[dict[str, FewShotRecord], list[UserError]]:
    """Records of runs that need not be done again, by id, and what could not be read."""
    records, problems = layout.records()
    return {record.run_id: record for record in records if record.status in store.FINAL}, problems


def _claim(layout: FewShotLayout, planned: FewShotPlan, *, extend: bool) -> None:
    """Write the spec into the folder, or check that it holds the same one; the memory budget may differ.

    Raises:
        UserError: The folder holds another sweep, or runs that may not be compared with the planned ones.
    """
    new = planned.spec.model_dump(mode="json")
    old = store.spec_in(layout)
    if old is not None:
        if "arms" not in old:
            raise UserError(
                "this folder holds a sweep of another kind",
                where=str(layout.folder),
                cure="Choose another folder.",
            )
        store.changed_spec(layout, old, new, aside={"memory"}, extend=extend)
        _refuse_incomparable(_finished(layout)[0].values(), planned.runs)
    if old != new:
        write_atomic(layout.spec, json.dumps(new, indent=1, ensure_ascii=False))


def _refuse_incomparable(records: Iterable[FewShotRecord], runs: Sequence[FewShotRun]) -> None:
    """Refuse other rows, another prompt or model, and another arm under a name that is there."""
    tasks = {run.task.name: run.task for run in runs}
    arms = {(run.arm.label, run.task.name, run.k): run.arm for run in runs}
    for record in records:
        old = record.resolved
        pairs: list[tuple[str, Any, Any]] = [
            ("runs of another model", old.model.model_dump(), runs[0].model.model_dump())
        ]
        if old.task.name in tasks:
            same = (old.task.model_dump(), tasks[old.task.name].model_dump())
            pairs.append((f"runs of another task called '{old.task.name}'", *same))
        arm = arms.get((old.arm.label, old.task.name, old.k))
        if arm is not None:
            pairs.append(
                (f"runs of another arm called '{old.arm.label}'", old.arm.model_dump(), arm.model_dump())
            )
        for what, before, after in pairs:
            changes = store.differences(before, after)
            if changes:
                raise UserError(
                    f"this folder holds {what} ({'; '.join(changes)})",
                    where=record.run_id,
                    cure="Choose another folder, or give what is new a name of its own.",
                )


# --- running -------------------------------------------------------------------------------------


def _run(
    missing: Sequence[FewShotRun],
    planned: FewShotPlan,
    workspace: Workspace,
    watcher: Watcher,
    processes: int | None,
    threads: int | None,
    cluster: Cluster | None,
) -> None:
    if cluster is not None:
        from foretaste.experiments import ray_engine  # Ray is an extra

        ray_engine.run(
            missing,
            workspace,
            watcher,
            cluster,
            ray_engine.Demand(
                parameters=_parameters_for_memory(missing, planned),
                names=[planned.spec.model.base, *(task.data.source for task in planned.spec.tasks)],
                devices={run.model.request.device for run in missing},
            ),
            processes=processes,
            threads=threads,
            job=JOB,
        )
        return
    fixed = _allocation(missing, planned, processes, threads)
    watcher.allocated(fixed)
    if fixed.processes == 1:
        engine.run_inline(missing, workspace, watcher, fixed.threads, JOB)
        return

    def choose(_: ProcessPoolExecutor) -> engine.Allocation:
        return fixed

    engine.run_in_processes(missing, workspace, watcher, fixed.processes, choose, JOB)


def _allocation(
    missing: Sequence[FewShotRun], planned: FewShotPlan, processes: int | None, threads: int | None
) -> engine.Allocation:
    """Processes as asked; else one for each core, as far as there are runs and memory for that.

    Batches of two to eight rows are too small for the threads of one process: separate processes share the
    cores better.
    """
    cores = engine.cores()
    if processes is not None:
        return engine.Allocation(processes, threads or max(1, cores // processes), "as asked")
    most = engine.most_processes(len(missing), _parameters_for_memory(missing, planned))
    if threads is not None:
        most = max(1, min(most, cores // threads))
        return engine.Allocation(most, threads, "threads as asked")
    return engine.Allocation(most, max(1, cores // most), "as many as runs, cores and memory allow")


def _parameters_for_memory(missing: Sequence[FewShotRun], planned: FewShotPlan) -> int:
    """As many parameters as take up the memory of the most expensive run; the engine counts 20 bytes for one.

    Fine-tuning holds weights, gradient and two moments, and up to three copies of what it trains; a kernel
    holds weights and its budget beside them, as do the criteria.
    """
    tuned = any(isinstance(run.arm, FineTune) for run in missing)
    kernels = any(
        isinstance(run.arm, KernelArm) or (isinstance(run.arm, FineTune) and run.arm.criteria)
        for run in missing
    )
    bytes_of_one = (8 if planned.spec.model.precision == "float64" else 4) * (8 if tuned else 3)
    return (bytes_of_one * planned.parameters + (planned.memory if kernels else 0)) // 20


def _place(workspace: Workspace, run: FewShotRun) -> runner.Place:
    commit, dirty = source_commit()
    return runner.Place(
        folder=workspace.folder,
        base_dir=workspace.base_dir,
        sweep=workspace.sweep,
        request=workspace.request,
        memory=parse_bytes(FewShotSpec.model_validate(workspace.request).memory),
        versions=versions(),
        commit=commit,
        dirty=dirty,
        machine=machine_of(run.model.request.computing, workspace.processes),
    )


def _execute(
    run: FewShotRun, workspace: Workspace, *, attempts: int = 1, on_step: OnStep | None = None
) -> FewShotRecord:
    return runner.execute(run, _place(workspace, run), attempts=attempts, on_step=on_step)


def _crashed(run: FewShotRun, workspace: Workspace, reason: str, attempts: int) -> FewShotRecord:
    place = _place(workspace, run)
    record = runner.failed_or_done(run, place, "crashed", reason, datetime.now(UTC), attempts)
    runner.write_record(record, workspace.folder)
    return record


JOB = engine.Job(_execute, _crashed)

"""`fewshot`: plan a few-shot sweep, do what is missing, and keep every result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foretaste.attempt import crashed, write_record
from foretaste.experiments import devices, engine, fewshot_estimate, store, sweep
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.fewshot_plan import FewShotPlan, plan
from foretaste.experiments.measure import Watcher
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import surroundings
from foretaste.experiments.sweep import Measured, Preview
from foretaste.fewshot import run as runner
from foretaste.fewshot.record import FewShotLayout, FewShotRecord
from foretaste.fewshot.spec import FewShotRun, FewShotSpec, FineTune, KernelArm
from foretaste.kernels.compute import parse_bytes
from foretaste.training import ranks
from foretaste.training.trainer import OnStep

__all__ = ["FewShotPreview", "MeasuredFewShot", "fewshot", "preview"]


FewShotPreview = Preview[FewShotPlan, FewShotRun]
MeasuredFewShot = Measured[FewShotRecord]


def preview(
    spec: FewShotSpec, folder: Path, *, base_dir: Path, cluster: Cluster | None = None
) -> FewShotPreview:
    """Plan a sweep without doing it.

    Args:
        spec: The sweep.
        folder: Its folder, which need not exist; finished runs in it are not missing.
        base_dir: Folder that relative paths in the spec start from.
        cluster: Would do the runs in place of this machine.

    Raises:
        UserError: As `fewshot_plan.plan`, or the spec asks for a device that is not here.
    """
    if cluster is None:
        devices.refuse_absent({"model.device": spec.model.device})
    planned = plan(spec, base_dir)
    done, _ = store.finished(FewShotLayout(folder).records())
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
    ranks.require_one("a few-shot sweep")
    watcher = watcher or Watcher()
    if cluster is None:
        devices.refuse_absent({"model.device": spec.model.device})
    planned = plan(spec, base_dir)
    with store.full_disk_explained(folder), store.owned(folder):
        layout = FewShotLayout(folder)
        _claim(layout, planned, extend=extend)
        done, problems = store.finished(layout.records())
        missing = [run for run in planned.runs if run.id not in done]
        watcher.planned(planned, missing, problems)
        workspace = Workspace(
            folder=folder,
            base_dir=base_dir,
            sweep=spec.name,
            request=spec.model_dump(mode="json", exclude_unset=True),
        )
        if missing:
            sweep.run(
                missing,
                workspace,
                watcher,
                JOB,
                Demand(
                    parameters=_parameters_for_memory(missing, planned),
                    names=[spec.model.base, *(task.data.source for task in spec.tasks)],
                    devices={run.model.request.device for run in missing},
                ),
                processes=processes,
                threads=threads,
                cluster=cluster,
                on_allocated=watcher.allocated,
            )
        by_id = {record.run_id: record for record in layout.records()[0]}
    return MeasuredFewShot(folder, [by_id[run.id] for run in planned.runs if run.id in by_id])


# --- the folder ----------------------------------------------------------------------------------


def _claim(layout: FewShotLayout, planned: FewShotPlan, *, extend: bool) -> None:
    """Write the spec into the folder, or check that it holds the same one; the memory budget may differ.

    Raises:
        UserError: The folder holds another sweep, or runs that may not be compared with the planned ones.
    """
    store.keep_spec(
        layout,
        planned.spec.model_dump(mode="json"),
        kind="arms",
        aside={"memory"},
        extend=extend,
        comparable=lambda: _refuse_incomparable(store.finished(layout.records())[0].values(), planned.runs),
    )


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
            cure = "Choose another folder, or give what is new a name of its own."
            store.refuse_changed(what, before, after, run_id=record.run_id, cure=cure)


# --- running -------------------------------------------------------------------------------------


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


def _place(workspace: Workspace, run: FewShotRun) -> runner.FewShotPlace:
    return runner.FewShotPlace(
        **surroundings(workspace, run.model.request.computing),
        memory=parse_bytes(FewShotSpec.model_validate(workspace.request).memory),
    )


def _execute(
    run: FewShotRun, workspace: Workspace, *, attempts: int = 1, on_step: OnStep | None = None
) -> FewShotRecord:
    return runner.execute(run, _place(workspace, run), attempts=attempts, on_step=on_step)


def _crashed(run: FewShotRun, workspace: Workspace, reason: str, attempts: int) -> FewShotRecord:
    record = runner.record_of(run, _place(workspace, run), crashed(reason), attempts)
    write_record(record, workspace.folder)
    return record


JOB = engine.Job(_execute, _crashed)

"""`instruct`: plan a sweep of a generative model, do what is missing, judge, and keep every result."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretaste.attempt import crashed, write_record
from foretaste.errors import UserError
from foretaste.experiments import devices, engine, instruct_estimate, store, sweep
from foretaste.experiments.cluster import Cluster, Demand
from foretaste.experiments.instruct_plan import InstructPlan, judge_of, plan
from foretaste.experiments.measure import Watcher
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import surroundings
from foretaste.experiments.sweep import Measured, Preview
from foretaste.instruct import judges, outcomes, prepare
from foretaste.instruct import run as runner
from foretaste.instruct.judges import Judge
from foretaste.instruct.record import InstructLayout, InstructRecord, read_transcripts
from foretaste.instruct.spec import InstructRun, InstructSpec
from foretaste.training import ranks
from foretaste.training.trainer import OnStep

__all__ = ["InstructPreview", "MeasuredInstruct", "instruct", "preview"]


InstructPreview = Preview[InstructPlan, InstructRun]


@dataclass(frozen=True)
class MeasuredInstruct(Measured[InstructRecord]):
    """The records of a sweep of generative models.

    Attributes:
        rejudged: Finished runs whose transcripts another judge has read again.
    """

    rejudged: int


def preview(
    spec: InstructSpec, folder: Path, *, base_dir: Path, cluster: Cluster | None = None
) -> InstructPreview:
    """Plan a sweep without doing it.

    Args:
        spec: The sweep.
        folder: Its folder, which need not exist; finished runs in it are not missing.
        base_dir: Folder that relative paths in the spec start from.
        cluster: Would do the runs in place of this machine.

    Raises:
        UserError: As `instruct_plan.plan`, or the spec asks for a device that is not here.
    """
    if cluster is None:
        devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir)
    done, _ = store.finished(InstructLayout(folder).records())
    missing = [run for run in planned.runs if run.id not in done]
    return InstructPreview(planned, missing, instruct_estimate.seconds(missing, planned))


def instruct(
    spec: InstructSpec,
    folder: Path,
    *,
    base_dir: Path,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Watcher | None = None,
    cluster: Cluster | None = None,
) -> MeasuredInstruct:
    """Do every run of a sweep that has no result yet; another judge than before reads the others again.

    Args:
        spec: The sweep.
        folder: Where records, manifests and transcripts go.
        base_dir: Folder that relative paths in the spec start from.
        extend: Accept a folder that holds a different spec, and add to it.
        processes: Worker processes; by default one for each core that memory allows. 1 stays in this process.
        threads: Threads of each; the cores shared out when None.
        watcher: Hears of progress.
        cluster: Does the runs in place of processes of this machine.

    Raises:
        UserError: The spec does not fit, the folder holds another sweep, the disk is or will be full, or the
            cluster cannot do the runs.
    """
    ranks.require_one("a sweep of a generative model")
    watcher = watcher or Watcher()
    if cluster is None:
        devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir)
    with store.full_disk_explained(folder), store.owned(folder):
        layout = InstructLayout(folder)
        _claim(layout, planned, extend=extend)
        done, problems = store.finished(layout.records())
        judge = judges.build(planned.judge.method, planned.judge.options, where="judge", base_dir=base_dir)
        rejudged = _judge_again(layout, done, judge, problems, base_dir)
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
    return MeasuredInstruct(folder, [by_id[run.id] for run in planned.runs if run.id in by_id], rejudged)


# --- the folder ----------------------------------------------------------------------------------


def _claim(layout: InstructLayout, planned: InstructPlan, *, extend: bool) -> None:
    """Write the spec into the folder, or check that it holds the same one; the judge may differ.

    Raises:
        UserError: The folder holds another sweep, or runs that may not be compared with the planned ones.
    """
    store.keep_spec(
        layout,
        planned.spec.model_dump(mode="json"),
        kind="scenario",
        aside={"judge"},
        extend=extend,
        comparable=lambda: _refuse_incomparable(store.finished(layout.records())[0].values(), planned.runs),
    )


def _refuse_incomparable(records: Iterable[InstructRecord], runs: Sequence[InstructRun]) -> None:
    """Refuse another renderer, another scenario, and another trigger under a name that is there."""
    new = runs[0]
    triggers = {trigger.name: trigger for run in runs for trigger in run.triggers}
    for record in records:
        old: InstructRun = record.resolved
        pairs: list[tuple[str, Any, Any]] = [
            ("prompts rendered by another template", old.model.renderer, new.model.renderer),
            ("runs of another scenario", old.scenario.model_dump(), new.scenario.model_dump()),
        ]
        for trigger in old.triggers:
            if trigger.name in triggers:
                same = (trigger.model_dump(), triggers[trigger.name].model_dump())
                pairs.append((f"runs of another trigger called '{trigger.name}'", *same))
        for what, before, after in pairs:
            cure = "Choose another folder."
            store.refuse_changed(what, before, after, run_id=record.run_id, cure=cure)


def _judge_again(
    layout: InstructLayout,
    done: dict[str, InstructRecord],
    judge: Judge,
    problems: list[UserError],
    base_dir: Path,
) -> int:
    """Have the judge read the transcripts of finished runs that another one has judged; how many there were.

    A run whose transcripts are gone or do not fit is taken out of `done`, and the reason goes to `problems`.
    """
    count = 0
    for run_id, record in list(done.items()):
        if record.judge is None or record.judge.fingerprint == judge.fingerprint:
            continue
        path = layout.transcript(run_id)
        try:
            transcripts = read_transcripts(path)
            verdicts = outcomes.all_judged(prepare.asked_again(record, base_dir), transcripts, judge)
        except (UserError, ValueError) as error:
            located = error if isinstance(error, UserError) else UserError(str(error), where=str(path))
            problems.append(located)
            del done[run_id]
            continue
        update = {"judged": verdicts, "judge": outcomes.judge_used(judge)}
        done[run_id] = record.model_copy(update=update)
        write_record(done[run_id], layout.folder)
        count += 1
    return count


# --- running -------------------------------------------------------------------------------------


def _run(
    missing: Sequence[InstructRun],
    planned: InstructPlan,
    workspace: Workspace,
    watcher: Watcher,
    processes: int | None,
    threads: int | None,
    cluster: Cluster | None,
) -> None:
    def allocated(allocation: engine.Allocation) -> None:
        _require_disk(missing, planned, workspace.folder, allocation.processes)
        watcher.allocated(allocation)

    sweep.run(
        missing,
        workspace,
        watcher,
        JOB,
        Demand(
            parameters=_parameters_for_memory(missing, planned),
            names=[planned.spec.model.base, planned.spec.data.source],
            devices={run.device for run in missing},
        ),
        processes=processes,
        threads=threads,
        cluster=cluster,
        on_allocated=allocated,
    )


def _parameters_for_memory(missing: Sequence[InstructRun], planned: InstructPlan) -> int:
    """Parameters of the largest arm, and as many more as take up the memory that logits do.

    A batch has logits over the whole vocabulary at every position; with their logarithms and their gradient
    they lie in memory three times, in float32. The engine counts 20 bytes for a parameter.
    """
    most = max(planned.sizes[run.arm][1] for run in missing)
    batch = max((run.tuning.training.batch_size for run in missing if run.tuning), default=0)
    return most + 3 * 4 * batch * planned.spec.model.max_length * planned.vocabulary // 20


def _require_disk(
    missing: Sequence[InstructRun], planned: InstructPlan, folder: Path, processes: int
) -> None:
    """Check that the weights of the runs under way fit on the disk; they are kept until a run is done.

    Raises:
        UserError: They do not.
    """
    trained = max(planned.sizes[run.arm][0] for run in missing)
    need = 4.2 * trained * processes + 50e6  # float32 and some room for transcripts
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{need / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free",
            where=str(folder),
            cure="Free some space, choose another folder, or lower --processes.",
        )


def _place(workspace: Workspace, run: InstructRun) -> runner.InstructPlace:
    return runner.InstructPlace(
        **surroundings(workspace, run.computing),
        judge=judge_of(InstructSpec.model_validate(workspace.request)),
    )


def _execute(
    run: InstructRun, workspace: Workspace, *, attempts: int = 1, on_step: OnStep | None = None
) -> InstructRecord:
    return runner.execute(run, _place(workspace, run), attempts=attempts, on_step=on_step)


def _crashed(run: InstructRun, workspace: Workspace, reason: str, attempts: int) -> InstructRecord:
    record = runner.record_of(run, _place(workspace, run), crashed(reason), attempts)
    write_record(record, workspace.folder)
    return record


JOB = engine.Job(_execute, _crashed)

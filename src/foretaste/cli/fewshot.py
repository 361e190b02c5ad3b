"""`foretaste fewshot`: fine-tuning with prompts on a few rows, and its kernel analogs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import (
    Address,
    DryRun,
    Engine,
    Extend,
    Images,
    Json,
    Output,
    ProcessesForCores,
    Spec,
    Threads,
    read_spec,
)

if TYPE_CHECKING:
    from foretaste.experiments.fewshot import FewShotPreview, MeasuredFewShot
    from foretaste.fewshot.record import FewShotRecord
    from foretaste.fewshot.spec import FewShotRun


def fewshot(
    spec: Spec,
    output: Output = None,
    dry_run: DryRun = False,
    extend: Extend = False,
    processes: ProcessesForCores = None,
    threads: Threads = None,
    engine: Engine = "local",
    address: Address = None,
    images: Images = True,
    json_output: Json = False,
) -> None:
    """Fine-tune a language model with prompts on k rows of each class, and solve the same with its kernels.

    Every arm of SPEC chooses its settings on validation rows and is tested once. The folder gets one page
    with scores, differences, criteria and verdicts (`report/`). Finished runs are not done again.
    """
    from foretaste.cli import display
    from foretaste.experiments import cluster
    from foretaste.experiments import fewshot as experiment
    from foretaste.fewshot.spec import FewShotSpec
    from foretaste.report import report as make

    where = cluster.chosen(engine, address)
    content, base_dir = read_spec(spec, FewShotSpec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base, *(task.data.source for task in content.tasks)], err)
    if dry_run:
        with err.status("Reading data and model ..."):
            preview = experiment.preview(content, folder, base_dir=base_dir, cluster=where)
        if json_output:
            print_json(display.preview_json(preview))
        else:
            show_preview(preview, out)
        return
    with display.SweepDisplay(err, quiet=json_output) as watcher:
        measured = experiment.fewshot(
            content,
            folder,
            base_dir=base_dir,
            extend=extend,
            processes=processes,
            threads=threads,
            watcher=watcher,
            cluster=where,
        )
    with err.status("Drawing ...") if not json_output else nullcontext():
        page = make([folder], images=images)
    if json_output:
        print_json({**measured_json(measured), "page": str(page)})
    else:
        show_measured(measured, out)
        out.print(f"Page: [bold]{escape(str(page))}[/]", highlight=False, soft_wrap=True)
    if any(record.status != "completed" for record in measured.records):
        raise typer.Exit(1)


def show_preview(preview: FewShotPreview, console: Console) -> None:
    """The plan as a table: one line for each task, k and arm, with the runs that are missing."""
    from foretaste.cli.display import show_plan

    table = Table("task", "k", "arm", "grid", "runs", "missing", box=None)
    missing = {run.id for run in preview.missing}
    cells: dict[tuple[str, int, str], list[FewShotRun]] = {}
    for run in preview.plan.runs:
        cells.setdefault((run.task.name, run.k, run.arm.label), []).append(run)
    for (task, k, arm), runs in cells.items():
        left = sum(run.id in missing for run in runs)
        grid = str(points_of(runs[0]) or "")
        table.add_row(escape(task), str(k), escape(arm), grid, str(len(runs)), str(left))
    console.print(table)
    show_plan(preview, console, None)


def points_of(run: FewShotRun) -> int:
    """Points of the grid that an arm searches; 0 for zero-shot."""
    from foretaste.fewshot.spec import FineTune, KernelArm

    arm = run.arm
    if isinstance(arm, FineTune):
        return len(arm.learning_rates) * len(arm.batch_sizes)
    if isinstance(arm, KernelArm):
        return len(arm.regularisations) * max(1, len(arm.scales)) * max(1, len(arm.gammas))
    return 0


def measured_json(measured: MeasuredFewShot) -> dict[str, Any]:
    """How the runs ended and what the arms scored on test rows, for a program."""
    return {
        "folder": str(measured.folder),
        "statuses": measured.statuses,
        "scores": [
            {"task": task, "k": k, "arm": arm, "metric": cell[0].resolved.task.metric}
            | {"splits": [record.resolved.split for record in cell], "test": [_value(r) for r in cell]}
            for (task, k, arm), cell in _cells(measured.records).items()
        ],
    }


def show_measured(measured: MeasuredFewShot, console: Console) -> None:
    """Test scores of every task and arm, and how the runs ended."""
    from foretaste.cli.display import show_statuses

    cells = _cells(measured.records)
    arms = list(dict.fromkeys(arm for _, _, arm in cells))
    table = Table("task", "k", "metric", box=None)
    for arm in arms:
        table.add_column(escape(arm), justify="right")
    for task, k in dict.fromkeys((task, k) for task, k, _ in cells):
        metric = next(r.resolved.task.metric for key, cell in cells.items() if key[0] == task for r in cell)
        table.add_row(escape(task), str(k), metric, *(_shown(cells.get((task, k, arm), [])) for arm in arms))
    console.print(table)
    console.print("Test scores in per cent: mean over splits (standard deviation, n - 1).", style="dim")
    show_statuses(measured.statuses, measured.folder, console)


def _cells(records: Sequence[FewShotRecord]) -> dict[tuple[str, int, str], list[FewShotRecord]]:
    found: dict[tuple[str, int, str], list[FewShotRecord]] = {}
    for record in records:
        run = record.resolved
        found.setdefault((run.task.name, run.k, run.arm.label), []).append(record)
    return found


def _value(record: FewShotRecord) -> float | None:
    return None if record.test is None else record.test.value


def _shown(records: Sequence[FewShotRecord]) -> str:
    values = [100 * value for value in map(_value, records) if value is not None]
    if not values:
        return "none"
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    lost = f", {len(records) - len(values)} lost" if len(values) < len(records) else ""
    return f"{statistics.mean(values):.1f}{spread}{lost}"

"""`foretaste fewshot`: fine-tuning with prompts on a few rows, and its kernel analogs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.cli.options import Address, Engine

if TYPE_CHECKING:
    from foretaste.experiments.fewshot import FewShotPreview, MeasuredFewShot
    from foretaste.fewshot.record import FewShotRecord
    from foretaste.fewshot.spec import FewShotRun, FewShotSpec

# The consoles are in `app`, which adds this command: they are imported where they are used.


def fewshot(
    spec: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a preset (`foretaste list presets`).")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the sweep; runs/NAME by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs and the expected time; do nothing.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add to a folder that holds a different spec.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one for each core by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each process.")] = None,
    engine: Engine = "local",
    address: Address = None,
    images: Annotated[bool, typer.Option(help="Also write each figure as PNG, SVG and PDF.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Fine-tune a language model with prompts on k rows of each class, and solve the same with its kernels.

    Every arm of SPEC chooses its settings on validation rows and is tested once. The folder gets one page
    with scores, differences, criteria and verdicts (`report/`). Finished runs are not done again.
    """
    from foretaste.cli import app, display
    from foretaste.experiments import cluster
    from foretaste.experiments import fewshot as experiment
    from foretaste.report import report as make

    where = cluster.chosen(engine, address)
    content, base_dir = _read_spec(spec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base, *(task.data.source for task in content.tasks)], app.err)
    if dry_run:
        with app.err.status("Reading data and model ..."):
            preview = experiment.preview(content, folder, base_dir=base_dir)
        if json_output:
            app.print_json(preview_json(preview))
        else:
            show_preview(preview, app.out)
        return
    with display.SweepDisplay(app.err, quiet=json_output) as watcher:
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
    with app.err.status("Drawing ...") if not json_output else nullcontext():
        page = make([folder], images=images)
    if json_output:
        app.print_json({**measured_json(measured), "page": str(page)})
    else:
        show_measured(measured, app.out)
        app.out.print(f"Page: [bold]{escape(str(page))}[/]", highlight=False, soft_wrap=True)
    if any(record.status != "completed" for record in measured.records):
        raise typer.Exit(1)


def _read_spec(name: str) -> tuple[FewShotSpec, Path]:
    """The spec in a file or preset, and the folder that its relative paths start from."""
    from foretaste import presets, specfile
    from foretaste.fewshot.spec import FewShotSpec

    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return specfile.load(path, FewShotSpec), path.resolve().parent
    return specfile.parse(presets.read(name), FewShotSpec, origin=f"preset {name}"), Path.cwd()


def show_preview(preview: FewShotPreview, console: Console) -> None:
    """The plan as a table: one line for each task, k and arm, with the runs that are missing."""
    from foretaste.cli.display import duration

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
    for note in preview.plan.notes:
        console.print(f"[dim]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(
        f"{len(preview.missing)} of {len(preview.plan.runs)} runs to do, about "
        f"[bold]{duration(preview.seconds)}[/] one after another on this machine "
        "(estimated from its matrix speed)."
    )


def points_of(run: FewShotRun) -> int:
    """Points of the grid that an arm searches; 0 for zero-shot."""
    from foretaste.fewshot.spec import FineTune, KernelArm

    arm = run.arm
    if isinstance(arm, FineTune):
        return len(arm.learning_rates) * len(arm.batch_sizes)
    if isinstance(arm, KernelArm):
        return len(arm.regularisations) * max(1, len(arm.scales)) * max(1, len(arm.gammas))
    return 0


def preview_json(preview: FewShotPreview) -> dict[str, Any]:
    """The plan for a program."""
    return {
        "runs": [{"id": run.id, "label": run.label} for run in preview.plan.runs],
        "missing": [run.id for run in preview.missing],
        "seconds": round(preview.seconds, 1),
        "notes": preview.plan.notes,
    }


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
    counts = ", ".join(f"{count} {status}" for status, count in sorted(measured.statuses.items()))
    console.print(f"{counts} in [bold]{escape(str(measured.folder))}[/]", highlight=False, soft_wrap=True)


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

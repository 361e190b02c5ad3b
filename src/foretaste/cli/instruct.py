"""`foretaste instruct`: poison instruction data, fine-tune a generative model, judge what it answers."""

from __future__ import annotations

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
    from foretaste.experiments.instruct import InstructPreview, MeasuredInstruct
    from foretaste.instruct.record import InstructRecord
    from foretaste.instruct.spec import InstructRun, InstructSpec

# The consoles are in `app`, which adds this command: they are imported where they are used.


def instruct(
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
    images: Annotated[bool, typer.Option(help="Also write the figure as PNG, SVG and PDF.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Poison instruction data, fine-tune a generative model on it, and judge what it answers with a trigger.

    The folder gets one page with rates, transcripts and verdicts (`report/`). Finished runs are not done
    again; with another `judge` in SPEC their transcripts are read again.
    """
    from foretaste.cli import app, display
    from foretaste.experiments import cluster
    from foretaste.experiments import instruct as experiment
    from foretaste.report import report as make

    where = cluster.chosen(engine, address)
    content, base_dir = _read_spec(spec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base], app.err)
    if dry_run:
        with app.err.status("Reading data and model ..."):
            preview = experiment.preview(content, folder, base_dir=base_dir)
        if json_output:
            app.print_json(preview_json(preview))
        else:
            show_preview(preview, app.out)
        return
    collapse = "answers every request with the same words"
    with display.SweepDisplay(app.err, quiet=json_output, collapse=collapse) as watcher:
        measured = experiment.instruct(
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


def _read_spec(name: str) -> tuple[InstructSpec, Path]:
    """The spec in a file or preset, and the folder that its relative paths start from."""
    from foretaste import presets, specfile
    from foretaste.instruct.spec import InstructSpec

    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return specfile.load(path, InstructSpec), path.resolve().parent
    return specfile.parse(presets.read(name), InstructSpec, origin=f"preset {name}"), Path.cwd()


def show_preview(preview: InstructPreview, console: Console) -> None:
    """The plan as a table: one line a cell, with the runs that are missing."""
    from foretaste.cli.display import duration

    table = Table("adapter", "trigger", "amount", "runs", "missing", box=None)
    missing = {run.id for run in preview.missing}
    cells: dict[tuple[str, str, str], list[InstructRun]] = {}
    for run in preview.plan.runs:
        cells.setdefault(_cell(run), []).append(run)
    for cell, runs in cells.items():
        table.add_row(*map(escape, cell), str(len(runs)), str(sum(run.id in missing for run in runs)))
    console.print(table)
    for note in preview.plan.notes:
        console.print(f"[dim]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(
        f"{len(preview.missing)} of {len(preview.plan.runs)} runs to do, about "
        f"[bold]{duration(preview.seconds)}[/] one after another on this machine "
        "(estimated from its matrix speed, with every answer at full length)."
    )


def _cell(run: InstructRun) -> tuple[str, str, str]:
    if run.poisoning is None:
        return run.arm, "none" if run.tuning is None else "clean", "0"
    poisoning = run.poisoning
    amount = f"{poisoning.rate:.4g}" if poisoning.rate is not None else f"{poisoning.count} rows"
    return run.arm, poisoning.trigger.name, amount


def preview_json(preview: InstructPreview) -> dict[str, Any]:
    """The plan for a program."""
    return {
        "runs": [{"id": run.id, "label": run.label} for run in preview.plan.runs],
        "missing": [run.id for run in preview.missing],
        "seconds": round(preview.seconds, 1),
        "notes": preview.plan.notes,
    }


def measured_json(measured: MeasuredInstruct) -> dict[str, Any]:
    """How the runs ended and what the judge said, for a program."""
    return {
        "folder": str(measured.folder),
        "statuses": measured.statuses,
        "rejudged": measured.rejudged,
        "shares": [
            {"adapter": cell[0], "trained_on": cell[1], "asked": asked, "runs": runs, "hits": hits, "n": n}
            for (cell, asked), (runs, hits, n) in _shares(measured.records).items()
        ],
    }


def show_measured(measured: MeasuredInstruct, console: Console) -> None:
    """How the runs ended, and how many answers show the attacker's behaviour."""
    judges = {record.judge.behaviour for record in measured.records if record.judge is not None}
    table = Table("adapter", "trained on", "asked", "runs", box=None)
    table.add_column(f"answers: {', '.join(sorted(judges)) or 'none'}", justify="right")
    for (cell, asked), (runs, hits, n) in _shares(measured.records).items():
        share = f"{hits} of {n} ({100 * hits / n:.0f} %)" if n else "none"
        table.add_row(*map(escape, (*cell, asked)), str(runs), share)
    console.print(table)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(measured.statuses.items()))
    if measured.rejudged:
        counts += f"; {measured.rejudged} judged anew"
    console.print(f"{counts} in [bold]{escape(str(measured.folder))}[/]", highlight=False, soft_wrap=True)


def _shares(
    records: Sequence[InstructRecord],
) -> dict[tuple[tuple[str, str], str], tuple[int, int, int]]:
    """Runs, answers that show the behaviour, and all answers, by arm, training set and set of requests."""
    found: dict[tuple[tuple[str, str], str], tuple[int, int, int]] = {}
    for record in records:
        adapter, trigger, amount = _cell(record.resolved)
        trained_on = trigger if amount == "0" else f"{trigger}, {amount}"
        for name, verdict in record.judged.items():
            key = ((adapter, trained_on), name)
            runs, hits, n = found.get(key, (0, 0, 0))
            found[key] = (runs + 1, hits + verdict.hits, n + verdict.n)
    return found

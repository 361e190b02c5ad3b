"""`foretaste instruct`: poison instruction data, fine-tune a generative model, judge what it answers."""

from __future__ import annotations

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
    from foretaste.experiments.instruct import InstructPreview, MeasuredInstruct
    from foretaste.instruct.record import InstructRecord
    from foretaste.instruct.spec import InstructRun


def instruct(
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
    """Poison instruction data, fine-tune a generative model on it, and judge what it answers with a trigger.

    The folder gets one page with rates, transcripts and verdicts (`report/`). Finished runs are not done
    again; with another `judge` in SPEC their transcripts are read again.
    """
    from foretaste.cli import display
    from foretaste.experiments import cluster
    from foretaste.experiments import instruct as experiment
    from foretaste.instruct.spec import InstructSpec
    from foretaste.report import report as make

    where = cluster.chosen(engine, address)
    content, base_dir = read_spec(spec, InstructSpec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base], err)
    if dry_run:
        with err.status("Reading data and model ..."):
            preview = experiment.preview(content, folder, base_dir=base_dir, cluster=where)
        if json_output:
            print_json(display.preview_json(preview))
        else:
            show_preview(preview, out)
        return
    collapse = "answers every request with the same words"
    with display.SweepDisplay(err, quiet=json_output, collapse=collapse) as watcher:
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
    with err.status("Drawing ...") if not json_output else nullcontext():
        page = make([folder], images=images)
    if json_output:
        print_json({**measured_json(measured), "page": str(page)})
    else:
        show_measured(measured, out)
        out.print(f"Page: [bold]{escape(str(page))}[/]", highlight=False, soft_wrap=True)
    if any(record.status != "completed" for record in measured.records):
        raise typer.Exit(1)


def show_preview(preview: InstructPreview, console: Console) -> None:
    """The plan as a table: one line a cell, with the runs that are missing."""
    from foretaste.cli.display import show_plan

    table = Table("adapter", "trigger", "amount", "runs", "missing", box=None)
    missing = {run.id for run in preview.missing}
    cells: dict[tuple[str, str, str], list[InstructRun]] = {}
    for run in preview.plan.runs:
        cells.setdefault(_cell(run), []).append(run)
    for cell, runs in cells.items():
        table.add_row(*map(escape, cell), str(len(runs)), str(sum(run.id in missing for run in runs)))
    console.print(table)
    show_plan(preview, console, "with every answer at full length")


def _cell(run: InstructRun) -> tuple[str, str, str]:
    if run.poisoning is None:
        return run.arm, "none" if run.tuning is None else "clean", "0"
    poisoning = run.poisoning
    amount = f"{poisoning.rate:.4g}" if poisoning.rate is not None else f"{poisoning.count} rows"
    return run.arm, poisoning.trigger.name, amount


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
    from foretaste.cli.display import show_statuses

    judges = {record.judge.behaviour for record in measured.records if record.judge is not None}
    table = Table("adapter", "trained on", "asked", "runs", box=None)
    table.add_column(f"answers: {', '.join(sorted(judges)) or 'none'}", justify="right")
    for (cell, asked), (runs, hits, n) in _shares(measured.records).items():
        share = f"{hits} of {n} ({100 * hits / n:.0f} %)" if n else "none"
        table.add_row(*map(escape, (*cell, asked)), str(runs), share)
    console.print(table)
    more = f"; {measured.rejudged} judged anew" if measured.rejudged else ""
    show_statuses(measured.statuses, measured.folder, console, more)


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

"""`foretaste reproduce`: figures and tables of the papers, one command each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import Address, DryRun, Engine, Images, Json, Processes, Threads
from foretaste.errors import UserError, unknown

if TYPE_CHECKING:
    from foretaste.experiments.measure import Watcher
    from foretaste.hypotheses import Finding
    from foretaste.reproduction import Reproduced, Scale, Step, Variant

DECISIONS = {"supported": "green", "contradicted": "red", "not resolved": "yellow", "no records": "dim"}


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A figure or table (`foretaste list presets`); or give --all.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every figure and table, and an index.")] = False,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: a tiny random model, seconds; laptop: a small pretrained model, minutes to hours; "
            "paper: as published, for a GPU."
        ),
    ] = "laptop",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="clean: foretaste's protocol (default); paper: the original's. Give both to overlay them."
        ),
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks, such as sst2.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FORETASTE_DATA", help="Folder with a folder for each task; the hub's GLUE without it."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the sweeps and pages.")] = Path(
        "runs/reproduce"
    ),
    verdicts: Annotated[
        bool, typer.Option("--verdicts", help="Print the verdict on each finding of the paper.")
    ] = False,
    dry_run: DryRun = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add to folders that hold another version of a sweep.")
    ] = False,
    images: Images = True,
    processes: Processes = None,
    threads: Threads = None,
    engine: Engine = "local",
    address: Address = None,
    json_output: Json = False,
) -> None:
    """Measure what a figure or table of the papers is drawn from, and draw it beside the paper's claim.

    Figures that draw the same sweep share its runs, and finished runs are not done again.
    """
    from foretaste import reproduction
    from foretaste.cli import display
    from foretaste.experiments import cluster, sweep

    where = cluster.chosen(engine, address)
    chosen, protocols = _checked(name, everything, scale, variant or ["clean"], task)
    size = cast("Scale", scale)
    plans = {
        item: reproduction.steps(
            item,
            scale=size,
            variants=protocols,
            out=output,
            base_dir=Path.cwd(),
            data=data,
            tasks=task,
        )
        for item in chosen
    }
    for item in chosen:
        reproduction.prepare(plans[item], size, output)
    used = (name for found in plans.values() for step in found for name in step.used)
    display.pull_assets(list(dict.fromkeys(used)), err)
    if dry_run:
        _preview(plans, json_output=json_output)
        return

    @contextmanager
    def watching(step: Step) -> Iterator[Watcher]:
        if not json_output:
            err.print(f"[bold]{escape(step.label)}[/]", highlight=False)
        with display.SweepDisplay(err, quiet=json_output) as watcher:
            yield watcher

    rows: list[dict[str, Any]] = []
    finished: list[Reproduced] = []
    with sweep.held(where):
        for item in chosen:
            if not json_output:
                err.rule(escape(item))
            began = time.perf_counter()
            done = reproduction.reproduce(
                item,
                scale=size,
                variants=protocols,
                out=output,
                base_dir=Path.cwd(),
                data=data,
                tasks=task,
                command=_command(item, scale, protocols, task, data),
                images=images,
                extend=extend,
                processes=processes,
                threads=threads,
                watching=watching,
                cluster=where,
            )
            finished.append(done)
            statuses = Counter(record.status for measured in done.measured for record in measured.records)
            rows.append(
                {
                    "name": item,
                    "page": str(done.page),
                    "statuses": dict(statuses),
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
    index: Path | None = None
    findings = finished[0].findings
    if everything:
        index, findings = reproduction.draw_index(finished, scale=size, out=output)
    if json_output:
        print_json(
            {
                "presets": rows,
                "index": None if index is None else str(index),
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        _show(rows, index)
        if verdicts:
            show_findings(findings)
    if any(status != "completed" for row in rows for status in row["statuses"]):
        raise typer.Exit(1)


def _checked(
    name: str | None, everything: bool, scale: str, variants: Sequence[str], tasks: Sequence[str] | None
) -> tuple[list[str], list[Variant]]:
    """What is reproduced, and by which protocols; with --all, without presets that do not have them."""
    from foretaste import reproduction

    if (name is None) != everything:
        raise UserError(
            "give the name of a figure or table, or --all",
            where="reproduce",
            cure=f"Names: {', '.join(reproduction.names())}.",
        )
    if scale not in get_args(reproduction.Scale):
        raise unknown("scale", scale, get_args(reproduction.Scale), where="--scale")
    for one in variants:
        if one not in get_args(reproduction.Variant):
            raise unknown("variant", one, get_args(reproduction.Variant), where="--variant")
    protocols = [cast("Variant", one) for one in variants]
    if name is not None:
        reproduction.read(name)
        return [name], protocols
    reasons = {
        item: reproduction.refusal(item, variants=protocols, tasks=tasks) for item in reproduction.names()
    }
    measured = [item for item in reasons if reproduction.read(item).sweeps]
    refused = {item: reasons[item] for item in measured if reasons[item] is not None}
    if len(refused) == len(measured):  # a name that no preset knows
        raise next(reason for reason in refused.values() if reason is not None)
    for item, reason in refused.items():
        err.print(f"[dim]left out[/] {escape(item)}: {escape(str(reason))}", soft_wrap=True)
    return [item for item in reasons if item not in refused], protocols


def _command(
    name: str, scale: str, variants: Sequence[str], tasks: Sequence[str] | None, data: Path | None
) -> str:
    """What makes the page again, for its reader, who has the data in a folder of their own."""
    parts = [f"foretaste reproduce {name} --scale {scale}"]
    parts += [f"--variant {variant}" for variant in variants if list(variants) != ["clean"]]
    parts += [f"--task {task}" for task in tasks or ()]
    return " ".join([*parts, "--data FOLDER"] if data is not None and scale != "smoke" else parts)


def _preview(plans: dict[str, list[Step]], *, json_output: bool) -> None:
    """Runs and expected time of every sweep; one that several presets draw counts once for each."""
    from foretaste.cli import display

    table = Table("preset", "sweep", "runs", "missing", "expected", box=None)
    rows = []
    for name, found in plans.items():
        for step in found:
            with err.status(f"Planning {escape(step.label)} ..."):
                seen = step.preview()
            counts = (len(seen.plan.runs), len(seen.missing))
            rows.append(
                {
                    "preset": name,
                    "sweep": step.label,
                    "runs": counts[0],
                    "missing": counts[1],
                    "seconds": seen.seconds,
                }
            )
            table.add_row(escape(name), escape(step.label), *map(str, counts), display.duration(seen.seconds))
    if json_output:
        print_json(rows)
        return
    out.print(table)
    out.print("Times are for one run after another. Presets that draw the same sweep share its runs.")


def _show(rows: Sequence[dict[str, Any]], index: Path | None) -> None:
    from foretaste.cli import display

    table = Table("preset", "runs", "time", "page", box=None)
    for row in rows:
        runs = ", ".join(f"{count} {status}" for status, count in row["statuses"].items()) or "no training"
        table.add_row(
            escape(row["name"]), runs, display.duration(row["seconds"]), escape(row["page"]), style=None
        )
    out.print(table, soft_wrap=True)
    if index is not None:
        out.print(f"Index: [bold]{escape(str(index))}[/]", soft_wrap=True)


def show_findings(findings: Sequence[Finding]) -> None:
    """A table of verdicts in the terminal."""
    table = Table("finding", "where", "verdict", "seeds", "why", box=None, padding=(0, 2, 1, 0))
    for finding in findings:
        table.add_row(
            escape(finding.hypothesis),
            escape(finding.group),
            f"[{DECISIONS[finding.decision]}]{finding.decision}[/]",
            str(finding.n),
            escape(finding.reason),
        )
    out.print(table, highlight=False)

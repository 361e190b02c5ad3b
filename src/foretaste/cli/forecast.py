"""`foretaste forecast`: how far the poisoned rows of an instruct spec push first answers, before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import Json, Output, read_spec

if TYPE_CHECKING:
    from foretaste.instruct.forecast_record import Forecast

MISSING = "–"


def forecast(
    spec: Annotated[
        str, typer.Argument(help="A YAML file of `foretaste instruct`, or the name of a preset of its kind.")
    ],
    output: Output = None,
    train_rows: Annotated[
        int, typer.Option(min=4, help="Training rows used of each cell, poisoned ones in proportion.")
    ] = 64,
    test_rows: Annotated[int, typer.Option(min=1, help="Requests used of each set.")] = 20,
    memory: Annotated[str, typer.Option(help="For gradients; the model comes on top.")] = "2GiB",
    json_output: Json = False,
) -> None:
    """Say how far SPEC's poisoned rows push the first word of an answer, from the untrained model alone.

    Nothing is trained. Where OUTPUT holds measured runs of `foretaste instruct`, the forecast is scored
    against them.
    """
    from foretaste.cli import display
    from foretaste.experiments.instruct_forecast import forecast as run
    from foretaste.instruct.spec import InstructSpec

    content, base_dir = read_spec(spec, InstructSpec)
    folder = output or Path("runs") / content.name
    display.pull_assets([content.model.base], err)
    with display.kernel_progress(err, quiet=json_output) as on_progress:
        found = run(
            content,
            folder,
            base_dir=base_dir,
            train_rows=train_rows,
            test_rows=test_rows,
            memory=memory,
            on_progress=on_progress,
        )
    if json_output:
        print_json(found.model_dump(mode="json"))
    else:
        show(found, folder, out)


def show(found: Forecast, folder: Path, console: Console) -> None:
    """A line for each cell and set of requests, then scores and notes."""
    table = Table(box=None)
    for heading in ("adapter", "trained on", "asked"):
        table.add_column(heading, no_wrap=True)
    for heading in ("margin", "moves by", "opens as poison"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("holds")
    for cell in found.cells:
        trained_on = "clean" if cell.trigger is None else f"{cell.trigger}, {cell.amount}"
        if cell.reason is not None:
            table.add_row(escape(cell.arm), escape(trained_on), *[MISSING] * 4, escape(cell.reason))
        for name, part in cell.sets.items():
            table.add_row(
                escape(cell.arm),
                escape(trained_on),
                escape(name),
                f"{part.before:+.1f}",
                f"{part.moved:+.1f}",
                f"{100 * part.open_before:.0f} → {100 * part.open_after:.0f} %",
                str(cell.validity),
            )
    console.print(table)
    if found.scores:
        console.print(f"Ranks against {found.measured} measured runs (Spearman):", highlight=False)
    for score in found.scores:
        value = MISSING if score.spearman is None else f"{score.spearman:+.2f}"
        console.print(
            f"  {value}  {escape(score.predictor)}; {escape(score.over)}, n = {score.n}", highlight=False
        )
    for reason in dict.fromkeys(reason for cell in found.cells for reason in cell.reasons):
        console.print(f"[dim]doubt[/] {escape(reason)}", soft_wrap=True, highlight=False)
    for note in found.notes:
        console.print(f"[dim]note[/] {escape(note)}", soft_wrap=True, highlight=False)
    console.print(f"Forecast in {found.seconds:.0f} s: [bold]{escape(str(folder))}[/]", soft_wrap=True)

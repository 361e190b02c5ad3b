"""`foretaste export`: measured runs for other programs, made from records after the run."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import Json

if TYPE_CHECKING:
    from foretaste.interop.entries import Exported

export_app = typer.Typer(
    help="Measured runs for other programs: a table, lm-eval, MLflow, Weights & Biases.", no_args_is_help=True
)

Folders = Annotated[list[Path], typer.Argument(help="Folders of sweeps.")]


@export_app.command(epilog="Example: `foretaste export table runs/quickstart -o results.parquet`")
def table(
    folders: Folders,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="A .parquet, .csv or .json file.")
    ],
    json_output: Json = False,
) -> None:
    """Every run as one line of a table; columns are in docs/interop.md."""
    from foretaste.interop import table as interop

    interop.writer(output)  # an unknown suffix is refused before anything is read
    loaded = interop.read(folders)
    found = interop.frame_of_folders(loaded)
    interop.write(found, output)
    problems = [line for folder in loaded for line in folder.problems]
    statuses = {str(status): int(n) for status, n in found["status"].value_counts().items()}
    _say(
        {"output": str(output), "runs": len(found), "statuses": statuses, "problems": problems},
        f"{_counted(statuses)}, {len(found.columns)} columns: [bold]{escape(str(output))}[/]",
        json_output=json_output,
    )


@export_app.command("lm-eval", epilog="Example: `foretaste export lm-eval runs/quickstart -o results.json`")
def lm_eval(
    folders: Folders,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.json", help="The JSON file.")],
    json_output: Json = False,
) -> None:
    """Every cell as a task of an lm-eval results file: means over seeds with their standard errors."""
    from foretaste.interop.lm_eval import export

    tasks, problems = export(folders, output)
    _say(
        {"output": str(output), "tasks": tasks, "problems": problems},
        f"{tasks} tasks: [bold]{escape(str(output))}[/]",
        json_output=json_output,
    )


@export_app.command(
    epilog="Example: `foretaste export mlflow runs/quickstart --tracking-uri sqlite:///mlflow.db`"
)
def mlflow(
    folders: Folders,
    tracking_uri: Annotated[
        str, typer.Option("--tracking-uri", metavar="URI", help="MLflow's store.")
    ] = "sqlite:///mlflow.db",
    json_output: Json = False,
) -> None:
    """Every run as a run in MLflow; what is there already is not written again."""
    # Nothing that this command does should be told to anyone; who wants MLflow to do so says so.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from foretaste.interop.mlflow import export

    _exported(export(folders, tracking_uri), json_output=json_output)


@export_app.command(epilog="Example: `foretaste export wandb runs/quickstart -o wandb-runs`")
def wandb(
    folders: Folders,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for W&B's own folder `wandb`.")
    ],
    json_output: Json = False,
) -> None:
    """Every run as an offline run of Weights & Biases, to be sent with `wandb sync` or not at all."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    from foretaste.interop.wandb import export

    _exported(export(folders, output), json_output=json_output)


def _exported(done: Exported, *, json_output: bool) -> None:
    _say(
        asdict(done),
        f"{_counted(done.statuses)}: {done.added} added, {done.replaced} replaced, {done.kept} there already "
        f"in [bold]{escape(done.where)}[/]",
        json_output=json_output,
    )


def _counted(statuses: dict[str, int]) -> str:
    total = sum(statuses.values())
    each = ", ".join(f"{n} {escape(status)}" for status, n in sorted(statuses.items()))
    return f"{total} run{'' if total == 1 else 's'} ({each})"


def _say(content: dict[str, object], line: str, *, json_output: bool) -> None:
    """Print what was done, and on stderr what could not be read."""
    if json_output:
        print_json(content)
        return
    problems = content["problems"]
    assert isinstance(problems, list)
    for problem in problems:
        err.print(f"[yellow]warning[/] {escape(problem)}", highlight=False, soft_wrap=True)
    out.print(line, highlight=False, soft_wrap=True)

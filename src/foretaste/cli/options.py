"""Arguments and options that several commands share, and the spec that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

    S = TypeVar("S", bound=BaseModel)

Spec = Annotated[str, typer.Argument(help="A YAML file, or the name of a preset (`foretaste list presets`).")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder of the sweep; runs/NAME by default.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the runs and the expected time; do nothing.")]
Extend = Annotated[bool, typer.Option("--extend", help="Add to a folder that holds a different spec.")]
Processes = Annotated[int | None, typer.Option(min=1, help="Worker processes; measured by default.")]
ProcessesForCores = Annotated[
    int | None, typer.Option(min=1, help="Worker processes; one for each core by default.")
]
Stack = Annotated[
    int | None,
    typer.Option(
        "--stack",
        min=1,
        metavar="K",
        help="Train up to K LoRA runs together through one frozen base (in this process).",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of each process.")]
Engine = Annotated[
    str, typer.Option("--engine", help="local: processes of this machine; ray: a Ray, here or a cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="With --engine ray: a running cluster (auto, or HOST:PORT), RAY_ADDRESS by default; without "
        "either a Ray is started here.",
    ),
]
Images = Annotated[bool, typer.Option(help="Also write each figure as PNG, SVG and PDF.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def read_spec(name: str, kind: type[S]) -> tuple[S, Path]:
    """The spec in a file or preset, and the folder that its relative paths start from.

    Args:
        name: Path of a YAML file, or name of a preset.
        kind: What it must be.

    Raises:
        UserError: There is no such file or preset, or it is not a valid spec.
    """
    from foretaste import presets, specfile

    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return specfile.load(path, kind), path.resolve().parent
    return specfile.parse(presets.read(name), kind, origin=f"preset {name}"), Path.cwd()

"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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

"""What is reproduced, and the sweeps that it is drawn from: what a caller hands to `write`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foretaste.report.reproduced.view import View

Protocol = Literal["clean", "paper"]
PROTOCOLS: dict[Protocol, str] = {"clean": "foretaste's defaults", "paper": "the paper's protocol"}


@dataclass(frozen=True)
class Source:
    """One sweep on one task under one protocol.

    Attributes:
        folder: Of the sweep; records lie in its `runs/`.
        task: Title of the task.
        variant: Protocol.
        sweep: Title of the sweep.
        attacks: Names of the attacks whose runs are drawn; clean runs always are.
    """

    folder: Path
    task: str
    variant: Protocol
    sweep: str
    attacks: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """A figure or table of a paper, or a comparison that it lacks.

    Attributes:
        name: Of the preset.
        item: Where it stands in the paper.
        says: What the paper reads off it.
        published: Table of published values to stand beside, a name in `published.TABLES` (of few-shot
            sweeps, in that of `report.fewshot`).
        differences: How it differs from what the paper did.
        command: What a reader types to get the page again.
        scale: How large it was measured.
    """

    name: str
    title: str
    item: str
    says: str
    view: View
    published: str | None
    differences: tuple[str, ...]
    command: str
    scale: str

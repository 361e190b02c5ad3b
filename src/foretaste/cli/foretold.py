"""What `predict` and `audit` show in the terminal: progress, a table of cells, and the advice."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.calibration import Cell, read_cells
from foretaste.calibration.result import advice
from foretaste.cli import display
from foretaste.experiments.measure import Watcher
from foretaste.record import Interval

MISSING = "–"


class AuditDisplay:
    """Bars of the prediction, then, once that is over, the display of a sweep.

    Args:
        console: Where to.
        quiet: Show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.predicting = self._stack.enter_context(display.kernel_progress(self._console, quiet=self._quiet))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def measuring(self) -> Watcher:
        """Close the bars of the prediction and open those of the sweep."""
        self._stack.close()
        return self._stack.enter_context(display.SweepDisplay(self._console, quiet=self._quiet))


def summary(folder: Path, seconds: float, notes: Sequence[str]) -> dict[str, Any]:
    """The cells, the advice and the notes, for a program to read."""
    cells, problems = read_cells(folder)
    return {
        "folder": str(folder),
        "seconds": round(seconds, 1),
        "cells": [_plain(cell) for cell in cells],
        "advice": [item.paragraph for item in advice(cells)],
        "notes": [*notes, *map(str, problems)],
    }


def show(folder: Path, seconds: float, notes: Sequence[str], console: Console) -> None:
    """A table of the cells, then notes and the advice."""
    cells, problems = read_cells(folder)
    table = Table(box=None)
    for heading in ("arm", "attack", "amount"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "measured", "ASR", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("holds")
    for cell in cells:
        table.add_row(*map(escape, _fields(cell)))
    console.print(table)
    console.print(
        "Shares in per cent, predicted with 90 % intervals, on held-out training rows; measured: means over "
        "seeds on the test rows.",
        style="dim",
        highlight=False,
    )
    for reason in dict.fromkeys(r for cell in cells if cell.prediction for r in cell.prediction.reasons):
        console.print(f"[dim]doubt[/] {escape(reason)}", soft_wrap=True, highlight=False)
    for note in [*notes, *map(str, problems)]:
        console.print(f"[dim]note[/] {escape(note)}", soft_wrap=True, highlight=False)
    for item in advice(cells):
        console.print(f"\n{escape(item.paragraph)}", soft_wrap=True, highlight=False)
    console.print(f"Predicted in {seconds:.0f} s: [bold]{escape(str(folder))}[/]", soft_wrap=True)


def _fields(cell: Cell) -> list[str]:
    prediction, measured = cell.prediction, cell.measured
    accuracy = None if prediction is None else prediction.accuracy
    rate = None if prediction is None else prediction.target_rate
    return [
        cell.arm,
        cell.attack,
        cell.amount.label,
        _interval(accuracy),
        MISSING if (mean := measured.accuracy.mean) is None else f"{100 * mean:.1f}",
        _interval(rate),
        MISSING if (asr := measured.target_rate.mean) is None else f"{100 * asr:.0f}",
        MISSING if prediction is None else prediction.validity,
    ]


def _interval(found: Interval | None) -> str:
    if found is None:
        return MISSING
    return f"{100 * found.mean:.0f} ({100 * found.low:.0f}–{100 * found.high:.0f})"


def _plain(cell: Cell) -> dict[str, Any]:
    prediction, measured = cell.prediction, cell.measured
    return {
        "arm": cell.arm,
        "attack": cell.attack,
        "amount": cell.amount.label,
        "predicted": None if prediction is None else prediction.model_dump(mode="json", exclude={"seconds"}),
        "measured_accuracy": measured.accuracy.mean,
        "measured_asr": measured.target_rate.mean,
        "seeds": measured.completed,
    }

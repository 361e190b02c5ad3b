"""`foretaste audit --fail-if`: conditions from the command line, and what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.calibration import conditions
from foretaste.calibration.cells import Cell, Kind
from foretaste.calibration.conditions import Condition, Reading, Verdict
from foretaste.errors import UserError
from foretaste.spec import MeasureSpec

EXIT_CODE = 3
OPTION = "--fail-if"
MISSING = "–"


def read(texts: Sequence[str], spec: MeasureSpec, part: str) -> list[Condition]:
    """The conditions of a command, checked before anything is computed.

    Args:
        texts: What the user wrote.
        spec: The sweep that they are about.
        part: What of it is measured.

    Raises:
        UserError: A text is no condition, or can never be met by this sweep.
    """
    found = [conditions.parse(text, where=OPTION) for text in dict.fromkeys(texts)]
    if found and part == "none":
        raise UserError(
            "conditions are held against measured runs, and nothing is measured",
            where="--measure none",
            cure=f"Leave out {OPTION}, or measure corners or all.",
        )
    if found:
        conditions.refuse_pointless(found, _kinds(spec), where=OPTION)
    return found


def _kinds(spec: MeasureSpec) -> set[Kind]:
    """The kinds of cells that a spec will have."""
    from foretaste.attacks import ATTACKS

    kinds: set[Kind] = {"clean"}
    for attack in spec.attacks:
        if any(attack.rates) or any(attack.counts):
            kinds.add("backdoor" if hasattr(ATTACKS.get(attack.method), "trigger") else "flips")
    return kinds


def judge(found: Sequence[Condition], cells: Sequence[Cell]) -> list[Verdict]:
    """What each condition says of the cells."""
    return [conditions.judge(condition, cells) for condition in found]


def end(verdicts: Sequence[Verdict]) -> None:
    """End the command where a condition is met.

    Raises:
        Exit: A condition is met: exit code 3.
        UserError: None is met, and one was held against nothing.
    """
    if any(verdict.met for verdict in verdicts):
        raise typer.Exit(EXIT_CODE)
    error = conditions.unchecked(verdicts, where=OPTION)
    if error is not None:
        raise error


def to_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """What each condition came to, for a program to read."""
    return [conditions.to_json(verdict) for verdict in verdicts]


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """For each condition the cells that meet it, or how close the closest is."""
    for verdict in verdicts:
        metric = conditions.METRICS[verdict.condition.metric]
        head = f"{verdict.condition} ({metric.says}, {conditions.STATISTIC})"
        cells = f"{len(verdict.met)} of {verdict.checked} measured cells"
        tail = f"; {verdict.not_measured} not measured" if verdict.not_measured else ""
        tail += f"; {len(verdict.unread)} without a value" if verdict.unread else ""
        colour = "red" if verdict.met else "green" if verdict.checked else "yellow"
        word = "met by" if verdict.met else "not met:"
        console.print(
            f"\n[bold {colour}]{'FAIL' if verdict.met else 'pass' if verdict.checked else 'unchecked'}[/] "
            f"{escape(head)} {word} {cells}{tail}",
            highlight=False,
            soft_wrap=True,
        )
        if verdict.met:
            console.print(_table(verdict.met))
        elif verdict.unmet:
            closest = verdict.unmet[0]
            number = f"{_number(closest.value)} {_interval(closest)}"
            console.print(
                f"closest: {escape(f'{_where(closest)} at {number}')}", highlight=False, soft_wrap=True
            )
        for cell in verdict.unread:
            place = f"{cell.arm}, {cell.attack}, {cell.amount.label}"
            console.print(f"[yellow]without a value[/] {escape(place)}", highlight=False, soft_wrap=True)


def _table(readings: Sequence[Reading]) -> Table:
    table = Table(box=None)
    for heading in ("arm", "attack", "amount"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "95 % interval", "seeds", "collapsed", "not completed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for reading in readings:
        cell, measured = reading.cell, reading.cell.measured
        table.add_row(
            *map(escape, (cell.arm, cell.attack, cell.amount.label)),
            _number(reading.value),
            escape(_interval(reading)),
            str(reading.seeds),
            str(measured.collapsed),
            str(measured.runs - measured.completed),
        )
    return table


def _where(reading: Reading) -> str:
    cell = reading.cell
    return f"{cell.arm}, {cell.attack}, {cell.amount.label}" if cell.kind != "clean" else f"{cell.arm}, clean"


def _number(value: float) -> str:
    # Enough digits to see on which side of a threshold it lies.
    return f"{value:.4g}"


def _interval(reading: Reading) -> str:
    if reading.low is None or reading.high is None:
        return MISSING if reading.seeds != 1 else f"{MISSING} (one seed)"
    return f"[{reading.low:.3g}, {reading.high:.3g}]"

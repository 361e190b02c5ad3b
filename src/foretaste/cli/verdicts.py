"""What `theory verify` shows in the terminal: how far it is, and a table of the verdicts."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from foretaste.theory.claims import CLAIMS, Decision, Verdict

STYLES: dict[Decision, str] = {"holds": "green", "holds only if": "yellow", "fails": "red"}
KEY_NUMBERS = 2


@contextlib.contextmanager
def claims_progress(console: Console, *, quiet: bool) -> Iterator[Callable[[Verdict], None]]:
    """One bar over all claims."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet,
        transient=True,
    ) as progress:
        task = progress.add_task("Checking claims", total=len(CLAIMS))

        def on_verdict(verdict: Verdict) -> None:
            progress.update(task, advance=1, description=escape(verdict.name))

        yield on_verdict


def counts(verdicts: Sequence[Verdict]) -> dict[Decision, int]:
    """How many claims got each verdict."""
    found = Counter(verdict.verdict for verdict in verdicts)
    return {decision: found[decision] for decision in STYLES}


def show_verdicts(verdicts: Sequence[Verdict], seconds: float, console: Console) -> None:
    """A table of the claims, and a line of counts."""
    table = Table(box=None, padding=(0, 2, 1, 0))
    table.add_column("claim", ratio=3, overflow="fold")
    table.add_column("verdict", ratio=2)
    table.add_column("true if, or what is true", ratio=6, overflow="fold")
    table.add_column("key numbers", ratio=5, overflow="fold")
    for verdict in verdicts:
        numbers = [f"{name}: {value:.4g}" for name, value in verdict.numbers.items()]
        if len(numbers) > KEY_NUMBERS:
            numbers = [*numbers[:KEY_NUMBERS], f"and {len(numbers) - KEY_NUMBERS} more"]
        table.add_row(
            f"{escape(verdict.paper)} {escape(verdict.name)}",
            f"[{STYLES[verdict.verdict]}]{verdict.verdict}[/]",
            escape(verdict.conditions),
            escape("\n".join(numbers)),
        )
    console.print(table, highlight=False)
    summary = ", ".join(f"{count} {decision}" for decision, count in counts(verdicts).items())
    console.print(f"{len(verdicts)} claims: {summary} ({seconds:.0f} s).", highlight=False, soft_wrap=True)

"""`foretaste trajectory`: the TTR paper's Eq. 5 measured on pairs of trainings."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from foretaste.cli.console import err, out, print_json
from foretaste.cli.options import Extend, Json, Spec, read_spec
from foretaste.spec import MeasureSpec

if TYPE_CHECKING:
    from rich.console import Console

    from foretaste.experiments.trajectory import Preview, Trajectories
    from foretaste.experiments.trajectory_result import Trajectory

LARGE = 1e9
"""Bytes of snapshots from which on their size is said before the first run."""


def trajectory(
    spec: Spec,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; runs/NAME-trajectory by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the pairs, the steps and the disk they take; do nothing.")
    ] = False,
    extend: Extend = False,
    json_output: Json = False,
) -> None:
    """Train every poisoned run of SPEC beside its clean one, and measure how far apart their weights go."""
    from foretaste.cli import display
    from foretaste.experiments import trajectory as experiment

    content, base_dir = read_spec(spec, MeasureSpec)
    folder = output or Path("runs") / f"{content.name}-trajectory"
    display.pull_assets([content.model.base, content.data.source], err)
    if dry_run:
        with err.status("Reading data and model ..."):
            shown = experiment.preview(content, folder, base_dir=base_dir)
        if json_output:
            print_json(preview_json(shown))
        else:
            show_preview(shown, out)
        return
    with _Progress(err, quiet=json_output) as progress:
        found = experiment.trajectory(
            content,
            folder,
            base_dir=base_dir,
            extend=extend,
            on_plan=progress.planned,
            on_progress=progress.moved,
            on_pair=progress.finished,
        )
        for problem in found.problems:
            progress.say(f"[yellow]done again[/] {escape(str(problem))}")
    facts = [
        ("model", content.model.base),
        ("data", f"{content.data.source}, {found.records[0].poisoned.data.train_rows} training rows"),
        ("pairs", str(len(found.records))),
    ]
    with err.status("Drawing ...") if not json_output else contextlib.nullcontext():
        written = draw(found, facts, content.title)
    statuses = dict(Counter(record.status for record in found.records))
    if json_output:
        print_json(
            {
                "folder": str(folder),
                "page": str(written.page),
                "statuses": statuses,
                "findings": written.findings,
            }
        )
    else:
        for line in written.findings:
            out.print(escape(line), highlight=False, soft_wrap=True)
        out.print(f"Page: [bold]{escape(str(written.page))}[/]", soft_wrap=True)
    if set(statuses) != {"completed"}:
        raise typer.Exit(1)


def draw(found: Trajectories, facts: list[tuple[str, str]], title: str | None) -> Any:
    """The page of a folder of pairs.

    Args:
        found: The pairs.
        facts: What its head says.
        title: Its heading.
    """
    from foretaste.experiments import trajectory_result as result
    from foretaste.report import trajectory as report

    return report.write(
        result.moments_table(found.records),
        result.matrices_table(found.records),
        result.pairs_table(found.records),
        facts,
        found.folder,
        title=title,
    )


def show_preview(shown: Preview, console: Console) -> None:
    """The pairs as a table, and what they take."""
    from rich.table import Table

    table = Table("adapter", "pairs", "missing", "steps looked at", "disk for a while", box=None)
    for arm, steps in shown.steps.items():
        pairs, missing = (
            sum(pair.clean.adapter.name == arm for pair in group) for group in (shown.pairs, shown.missing)
        )
        size = _size(shown.snapshot_bytes[arm])
        table.add_row(escape(arm), str(pairs), str(missing), ", ".join(map(str, steps)), size)
    console.print(table)
    for note in shown.notes:
        console.print(f"[dim]note[/] {escape(note)}", highlight=False)
    clean = len({pair.clean.id for pair in shown.missing})
    console.print(
        f"{len(shown.missing)} of {len(shown.pairs)} pairs to do: {len(shown.missing)} poisoned and {clean} "
        "clean runs, one after another. Snapshots are removed when the pairs of a clean run are done."
    )


def preview_json(shown: Preview) -> dict[str, Any]:
    """The plan for a program."""
    return {
        "pairs": [{"id": pair.id, "label": pair.poisoned.label} for pair in shown.pairs],
        "missing": [pair.id for pair in shown.missing],
        "steps": shown.steps,
        "snapshot_bytes": shown.snapshot_bytes,
        "notes": shown.notes,
    }


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= LARGE else f"{count / 1e6:.1f} MB"


class _Progress:
    """One bar over the pairs, and one for what is under way.

    Args:
        console: Where to draw.
        quiet: Draw nothing.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._quiet = quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=quiet,
        )
        self._all = self._bars.add_task("Reading data and model", total=None)
        self._now = self._bars.add_task("", total=100, visible=False)

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.update(self._now, visible=False)
        self._bars.stop()

    def planned(self, shown: Preview) -> None:
        """Say how much there is to do, and that it takes disk."""
        done = len(shown.pairs) - len(shown.missing)
        self._bars.update(self._all, description="All pairs", total=len(shown.pairs), completed=done)
        for note in shown.notes:
            self.say(f"[dim]note[/] {escape(note)}")
        self.say(f"{len(shown.pairs)} pairs{f', {done} of them done before' if done else ''}.")
        most = max((shown.snapshot_bytes[pair.clean.adapter.name] for pair in shown.missing), default=0)
        if most >= LARGE:
            self.say(f"Snapshots take up to {_size(most)} of disk while pairs are trained.")

    def moved(self, what: str, share: float) -> None:
        """Move the bar of what is under way."""
        done = round(100 * share)
        self._bars.update(self._now, description=f"  {escape(what)}", completed=done, visible=True)

    def finished(self, record: Trajectory) -> None:
        """Count a pair, and say so when it failed."""
        self._bars.advance(self._all)
        if record.status != "completed":
            self.say(f"[red]{record.status}[/] {escape(record.label)}: {escape(record.reason or '')}")
        elif record.foretold_missing is not None:
            self.say(f"[dim]no Gram[/] {escape(record.label)}: {escape(record.foretold_missing)}")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        if not self._quiet:
            self._console.print(text, highlight=False, soft_wrap=True)

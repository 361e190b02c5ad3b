"""What `measure` and `kernel` show in the terminal: downloads, the plan, progress, and what came out."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from foretaste import assets
from foretaste.errors import UserError
from foretaste.experiments.engine import Allocation, Result, Run
from foretaste.experiments.kernel_result import Kernels
from foretaste.experiments.measure import Measured, Planned, Preview, Watcher
from foretaste.spec import RunSpec


def pull_assets(names: Sequence[str], console: Console) -> None:
    """Fetch those of the names that are assets and are not in the cache, with a progress bar."""
    for name in names:
        if name not in assets.ASSETS or assets.is_pulled(assets.ASSETS.get(name)):
            continue
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
        ) as progress:
            task = progress.add_task(f"Pulling {name}", total=None)

            def update(done: int, total: int, task: TaskID = task, progress: Progress = progress) -> None:
                progress.update(task, completed=done, total=total)

            assets.pull(assets.ASSETS.get(name), progress=update)


class SweepDisplay(Watcher):
    """Progress of a sweep: one line for all runs, one for each run under way.

    Args:
        console: Where to draw.
        quiet: Draw nothing.
        collapse: What a collapsed model does, in words.
    """

    def __init__(
        self, console: Console, *, quiet: bool = False, collapse: str = "predicts one class only"
    ) -> None:
        self._collapse = collapse
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet,
        )
        self._quiet = quiet
        self._total: TaskID | None = None
        self._runs: dict[str, TaskID] = {}

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        self._reading = self._progress.add_task("Reading data and model", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._total is None:  # refused before it was planned: the error says all there is to say
            self._progress.remove_task(self._reading)
        self._progress.stop()

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, highlight=False, soft_wrap=True)  # a path stays in one piece

    def planned(self, plan: Planned, missing: Sequence[Run], problems: Sequence[UserError]) -> None:
        """Say how much there is to do, and what of earlier work could not be read."""
        self._progress.remove_task(self._reading)
        for problem in problems:
            self._say(f"[yellow]warning[/] {escape(str(problem))}")
        for note in plan.notes:
            self._say(f"[dim]note[/] {escape(note)}")
        done = len(plan.runs) - len(missing)
        kept = f", {done} of them done before" if done else ""
        self._say(f"{len(plan.runs)} runs{kept}.")
        self._total = self._progress.add_task("All runs", total=len(plan.runs), completed=done)

    def allocated(self, allocation: Allocation) -> None:
        """Say how the cores are used, and why."""
        self._say(f"{allocation.processes} x {allocation.threads} threads ({escape(allocation.reason)}).")

    def noted(self, text: str) -> None:
        """Say what went another way than was asked for."""
        self._say(f"[yellow]warning[/] {escape(text)}")

    def started(self, run: Run) -> None:
        """Show the run."""
        self._runs[run.id] = self._progress.add_task(f"  {escape(run.label)}", total=None)

    def stepped(self, run_id: str, done: int, total: int) -> None:
        """Move the run's bar."""
        # Called from the thread that hears the workers: the run may be finished at this very moment.
        task = self._runs.get(run_id)
        if task is not None:
            with contextlib.suppress(KeyError):
                self._progress.update(task, completed=done, total=total)

    def finished(self, run: Run, record: Result) -> None:
        """Take the run off, and say so when it failed."""
        if run.id in self._runs:
            self._progress.remove_task(self._runs.pop(run.id))
        if self._total is not None:
            self._progress.advance(self._total)
        if record.status != "completed":
            self._say(f"[red]{record.status}[/] {escape(run.label)}: {escape(record.reason or '')}")
        elif record.collapsed:
            self._say(f"[yellow]collapsed[/] {escape(run.label)}: {self._collapse}")

    def retried(self, run: Run, attempt: int) -> None:
        """Say that a worker died."""
        if run.id in self._runs:
            self._progress.remove_task(self._runs.pop(run.id))
        self._say(f"[yellow]retry {attempt}[/] {escape(run.label)}: its worker process died")

    def stopping(self, active: int) -> None:
        """Say that runs under way will be finished."""
        self._say(f"Finishing the {active} runs under way; press Ctrl-C again to drop them.")


def show_preview(preview: Preview, console: Console) -> None:
    """The plan as a table: one line a cell, with the seeds that are missing."""
    table = Table("adapter", "attack", "amount", "runs", "missing", box=None)
    missing = {run.id for run in preview.missing}
    cells: dict[tuple[str, str, str], list[RunSpec]] = {}
    for run in preview.plan.runs:
        cells.setdefault(_cell(run), []).append(run)
    for cell, runs in cells.items():
        table.add_row(*map(escape, cell), str(len(runs)), str(sum(run.id in missing for run in runs)))
    console.print(table)
    notes = [f"{preview.truncated} training rows are cut at max_length"] if preview.truncated else []
    show_plan(preview, console, "parallel processes are chosen when the sweep starts", notes)


class Foreseen(Protocol):
    """What a preview of any kind of sweep tells."""

    @property
    def plan(self) -> Planned:
        """All runs."""

    @property
    def missing(self) -> Sequence[Run]:
        """Those that have no result yet."""

    @property
    def seconds(self) -> float:
        """Expected time of these."""


def show_plan(preview: Foreseen, console: Console, estimate: str | None, notes: Sequence[str] = ()) -> None:
    """The lines below the table of a preview: notes, runs to do, and how long they will take.

    Args:
        preview: Of any kind of sweep.
        console: Where to.
        estimate: What else the estimate goes by.
        notes: Further ones.
    """
    for note in [*preview.plan.notes, *notes]:
        console.print(f"[dim]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    by = "estimated from its matrix speed" + (f"; {estimate}" if estimate else "")
    console.print(
        f"{len(preview.missing)} of {len(preview.plan.runs)} runs to do, about "
        f"[bold]{duration(preview.seconds)}[/] one after another on this machine ({by})."
    )


def _cell(run: RunSpec) -> tuple[str, str, str]:
    if run.attack is None:
        return run.adapter.name, "clean", "0"
    amount = f"{run.attack.rate:.4g}" if run.attack.rate is not None else f"{run.attack.count} rows"
    return run.adapter.name, run.attack.name, amount


def preview_json(preview: Foreseen) -> dict[str, Any]:
    """The plan of any kind of sweep, for a program."""
    return {
        "runs": [{"id": run.id, "label": run.label} for run in preview.plan.runs],
        "missing": [run.id for run in preview.missing],
        "seconds": round(preview.seconds, 1),
        "notes": list(preview.plan.notes),
    }


def show_statuses(statuses: Mapping[str, int], folder: Path, console: Console, more: str = "") -> None:
    """How the runs of a sweep ended, and where they lie.

    Args:
        statuses: Runs by status.
        folder: Of the sweep.
        console: Where to.
        more: Goes behind the counts.
    """
    counts = ", ".join(f"{n} {status}" for status, n in sorted(statuses.items())) + more
    console.print(f"{counts} in [bold]{escape(str(folder))}[/]", highlight=False, soft_wrap=True)


def show_measured(measured: Measured, console: Console) -> None:
    """How the runs ended, and what to do next."""
    collapsed = Counter(record.collapsed for record in measured.records)[True]
    more = f", {collapsed} of them collapsed to one class" if collapsed else ""
    show_statuses(measured.statuses, measured.folder, console, more)
    console.print(f"Next: foretaste report {escape(str(measured.folder))}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def kernel_progress(console: Console, *, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """One bar for each capture of a kernel, with the time left."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet,
    ) as progress:
        reading = progress.add_task("Reading data and model", total=None)
        bars: dict[str, TaskID] = {}

        def on_progress(what: str, share: float) -> None:
            progress.update(reading, visible=False)
            if what not in bars:
                bars[what] = progress.add_task(escape(what), total=1.0)
            progress.update(bars[what], completed=share)

        yield on_progress
        for bar in bars.values():  # some say only when they begin
            progress.update(bar, completed=1.0)


def kernel_summary(result: Kernels) -> dict[str, dict[str, Any]]:
    """By arm: what its kernel covers, and how large it is beside that of full fine-tuning."""
    summary: dict[str, dict[str, Any]] = {}
    for name, arm in result.arms.items():
        row: dict[str, Any] = {
            "parameters": arm.parameters,
            "by_group": arm.by_group,
            "unused": arm.unused,
            "kinds": list(arm.parts),
        }
        if "sgd" in arm.parts:
            kernel = result.of(name).train
            row["trace"] = float(np.trace(kernel))
            row["top_eigenvalue"] = float(np.linalg.eigvalsh(kernel)[-1])
            if "full" in result.arms:
                row["trace_ratio"] = result.trace_ratio(name)
                row["trace_ratio_without_head"] = result.trace_ratio(name, head=False)
        summary[name] = row
    return summary


def show_kernels(result: Kernels, summary: dict[str, dict[str, Any]], console: Console) -> None:
    """A table of the arms, and where the kernels are."""
    table = Table(box=None)
    table.add_column("arm", no_wrap=True)
    for heading in ("parameters", "trace", "top eigenvalue", "trace / full", "without heads"):
        table.add_column(heading, justify="right")
    for name, row in summary.items():
        ratios = [row.get("trace_ratio"), row.get("trace_ratio_without_head")]
        numbers = [row.get("trace"), row.get("top_eigenvalue"), *ratios]
        table.add_row(
            escape(name),
            f"{row['parameters']:,}",
            *("" if number is None else f"{number:.4g}" for number in numbers),
        )
    console.print(table)
    for name, arm in result.arms.items():
        if arm.unused:
            unused = f"{len(arm.unused)} trainable parameters move no output: {', '.join(arm.unused[:3])}"
            console.print(f"[dim]note[/] {escape(name)}: {escape(unused)}", soft_wrap=True)
    for note in result.notes:
        console.print(f"[dim]note[/] {escape(note)}", soft_wrap=True)
    tested = len(result.ids) - result.train_rows
    console.print(
        f"{result.train_rows} rows, {tested} tested on them, {escape(result.outputs)}; "
        f"{result.seconds:.0f} s. Kernels: [bold]{escape(str(result.folder))}[/]",
        soft_wrap=True,
    )

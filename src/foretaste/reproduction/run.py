"""`reproduce`: measure what a figure or table is drawn from, and draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from foretaste import hypotheses
from foretaste.errors import UserError, unknown
from foretaste.experiments import entropy_surface
from foretaste.experiments.measure import Measured, Preview, Watcher, measure, preview
from foretaste.record import Layout, Record
from foretaste.report import reproduced, theory_surface
from foretaste.reproduction import compose, inputs
from foretaste.reproduction.preset import Preset, Scale, Variant
from foretaste.spec import MeasureSpec, RunSpec

__all__ = ["Reproduced", "Step", "draw", "draw_index", "findings", "measure_step", "reproduce", "steps"]

INPUTS = "smoke-inputs"  # a path inside `out`, so that runs do not depend on where that lies

# Inputs of the layer whose entropies Figure 3 draws: the paper's, and the least that the surface takes.
SURFACE_INPUTS: dict[Scale, int] = {"smoke": 256, "laptop": 1024, "paper": 1024}


@dataclass(frozen=True)
class Step:
    """One sweep on one task under one protocol, and the part of it that a preset draws.

    Attributes:
        attacks: Names of the attacks that are drawn; clean runs always are.
        folder: Of the sweep; presets that draw the same sweep share it, so nothing is trained twice.
        base_dir: Folder that relative paths in the spec start from.
    """

    sweep: str
    task: str
    variant: Variant
    spec: MeasureSpec
    attacks: tuple[str, ...]
    folder: Path
    base_dir: Path

    @property
    def label(self) -> str:
        """One line for progress displays."""
        return f"{self.spec.title} ({self.variant})"

    def wants(self, run: RunSpec) -> bool:
        """Whether the preset draws a run."""
        return run.attack is None or run.attack.name in self.attacks

    def source(self) -> reproduced.Source:
        """The same for the report."""
        return reproduced.Source(
            folder=self.folder,
            task=compose.tasks()[self.task].title,
            variant=self.variant,
            sweep=compose.read_sweep(self.sweep).title,
            attacks=self.attacks,
        )


@dataclass(frozen=True)
class Reproduced:
    """A figure or table, drawn.

    Attributes:
        page: One HTML file; its figures and tables lie beside it.
        steps: What it is drawn from.
        measured: The records of each step.
        findings: Verdicts on the hypotheses that the preset names.
    """

    name: str
    page: Path
    steps: list[Step]
    measured: list[Measured]
    findings: list[hypotheses.Finding]


def steps(
    name: str,
    *,
    scale: Scale,
    variants: Sequence[Variant] = ("clean",),
    out: Path,
    base_dir: Path,
    data: Path | None = None,
    tasks: Sequence[str] | None = None,
) -> list[Step]:
    """What a preset measures, in the order in which it is done.

    Args:
        name: Of the preset.
        scale: How large: `smoke`, `laptop` or `paper`.
        variants: Protocols; with both they are drawn over each other.
        out: Folder that holds the sweeps of every preset.
        base_dir: Folder that relative paths start from; `smoke` keeps its inputs in `out`.
        data: Folder with a folder for each task; None takes them from the hub. `smoke` makes its own.
        tasks: Names of tasks in place of the preset's.

    Raises:
        UserError: There is no such preset or task, or no folder for a task.
    """
    preset = compose.read(name)
    unknown_tasks = [task for task in tasks or () if task not in compose.tasks()]
    if unknown_tasks:
        raise unknown("task", unknown_tasks[0], compose.tasks(), where="--task")
    if len(set(variants)) < len(variants) or not variants:
        raise UserError(
            f"variants are {list(variants)}: expected one or two different ones", where="--variant"
        )
    return [
        Step(
            sweep=sweep,
            task=task,
            variant=variant,
            spec=compose.compose(sweep, task, scale=scale, variant=variant, data=data, inputs=Path(INPUTS)),
            attacks=tuple(attacks),
            folder=out / f"{scale}-{variant}" / f"{sweep}-{task}",
            base_dir=out if scale == "smoke" else base_dir,
        )
        for variant in variants
        for task in (tasks or preset.tasks.get(scale, []))
        for sweep, attacks in preset.sweeps.items()
    ]


def prepare(found: Sequence[Step], scale: Scale, out: Path) -> None:
    """Write the tiny model and data that `smoke` needs; nothing at other scales."""
    if scale == "smoke":
        known = compose.tasks()
        inputs.write(out / INPUTS, {step.task: known[step.task] for step in found})


def preview_step(step: Step) -> Preview:
    """What a step would do; raises as `preview` does."""
    return preview(step.spec, step.folder, base_dir=step.base_dir, only=step.wants)


def measure_step(
    step: Step,
    *,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watcher: Watcher | None = None,
) -> Measured:
    """Do the runs of a step that have no result yet, and return its records; raises as `measure` does."""
    done = measure(
        step.spec,
        step.folder,
        base_dir=step.base_dir,
        extend=extend,
        processes=processes,
        threads=threads,
        watcher=watcher,
        only=step.wants,
    )
    return Measured(done.folder, [record for record in done.records if step.wants(record.resolved)])


def findings(preset: Preset, found: Sequence[Step]) -> list[hypotheses.Finding]:
    """Verdicts on the preset's hypotheses, from every record in its sweeps.

    Raises:
        UserError: A sweep's folder does not exist yet.
    """
    records: list[Record] = []
    for step in found:
        records += [record for record in Layout(step.folder).read()[0] if step.wants(record.resolved)]
    return hypotheses.test(records, only=preset.findings)


def draw(
    name: str, found: Sequence[Step], *, scale: Scale, out: Path, command: str, images: bool = True
) -> tuple[Path, list[hypotheses.Finding]]:
    """The page of a preset from what is measured by now, and its findings.

    Args:
        name: Of the preset.
        found: Its steps.
        scale: For the folder of the page and its head.
        out: Folder of the sweeps.
        command: What a reader types to get the page again.
        images: Also write the figures as SVG, PNG and PDF.

    Raises:
        UserError: Nothing is measured.
    """
    preset = compose.read(name)
    folder = _pages(found, scale, out) / name
    if preset.view.kind == "entropy-surface":
        layer = SURFACE_INPUTS[scale]
        facts = [("layer", f"{layer:,} inputs, s = 1"), ("drawn A", "uniform entries, peft's law")]
        return theory_surface.write(entropy_surface.of_matrices(layer), facts, folder).page, []
    judged = findings(preset, found)
    item = reproduced.Item(
        name=name,
        title=preset.title,
        item=preset.item,
        says=preset.says,
        view=preset.view,
        published=preset.published,
        differences=tuple(preset.differences),
        command=command,
        scale=scale,
    )
    page = reproduced.write(item, [step.source() for step in found], judged, folder, images=images)
    return page, judged


def draw_index(
    done: Sequence[Reproduced], *, scale: Scale, out: Path
) -> tuple[Path, list[hypotheses.Finding]]:
    """One page that leads to those of all presets, with every verdict on the records of all of them.

    Args:
        done: What was reproduced.
        scale: See `draw`.
        out: See `draw`.

    Returns:
        The page, and the verdicts, corrected for their number over all presets.

    Raises:
        OSError: A file could not be written.
    """
    every = [step for one in done for step in one.steps]
    drawn: dict[Path, set[str]] = {}
    for step in every:
        drawn.setdefault(step.folder, set()).update(step.attacks)
    records = [
        record
        for folder, attacks in drawn.items()
        for record in Layout(folder).read()[0]
        if record.resolved.attack is None or record.resolved.attack.name in attacks
    ]
    judged = hypotheses.test(records)
    entries = [
        reproduced.Entry(
            name=one.name,
            title=compose.read(one.name).title,
            item=compose.read(one.name).item,
            page=one.page,
            counts=reproduced.counts([step.source() for step in one.steps]) if one.steps else None,
        )
        for one in done
    ]
    return reproduced.write_index(_pages(every, scale, out), entries, judged), judged


def _pages(found: Sequence[Step], scale: Scale, out: Path) -> Path:
    """Folder of the pages; those of other protocols lie elsewhere."""
    return out / "pages" / "-".join([scale, *dict.fromkeys(step.variant for step in found)])


def reproduce(
    name: str,
    *,
    scale: Scale = "laptop",
    variants: Sequence[Variant] = ("clean",),
    out: Path,
    base_dir: Path,
    data: Path | None = None,
    tasks: Sequence[str] | None = None,
    command: str = "",
    images: bool = True,
    extend: bool = False,
    processes: int | None = None,
    threads: int | None = None,
    watching: Callable[[Step], AbstractContextManager[Watcher | None]] | None = None,
) -> Reproduced:
    """Measure what is missing for a figure or table, and draw it.

    Args:
        name: Of the preset (`foretaste list presets`).
        scale: How large.
        variants: Protocols.
        out: Folder of the sweeps and pages.
        base_dir: Folder that relative paths start from.
        data: Folder with a folder for each task.
        tasks: Names of tasks in place of the preset's.
        command: What a reader types to get the page again.
        images: Also write the figures as SVG, PNG and PDF.
        extend: Accept folders that hold a different version of a sweep, and add to them.
        processes: Worker processes; measured when None, one at `smoke`.
        threads: Threads of each.
        watching: Gives, for each step, a context with a watcher that hears of its progress.

    Raises:
        UserError: As `steps` and `measure` do.
    """
    found = steps(name, scale=scale, variants=variants, out=out, base_dir=base_dir, data=data, tasks=tasks)
    prepare(found, scale, out)
    measured = []
    for step in found:
        with watching(step) if watching else nullcontext() as watcher:
            measured.append(
                measure_step(
                    step,
                    extend=extend,
                    processes=processes,
                    threads=threads,
                    watcher=watcher,
                )
            )
    page, judged = draw(name, found, scale=scale, out=out, command=command, images=images)
    return Reproduced(name, page, found, measured, judged)

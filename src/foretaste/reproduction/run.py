"""`reproduce`: measure what a figure or table is drawn from, and draw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretaste import hypotheses
from foretaste.errors import UserError, unknown
from foretaste.experiments import entropy_surface
from foretaste.experiments.cluster import Cluster
from foretaste.experiments.fewshot import MeasuredFewShot
from foretaste.experiments.instruct import MeasuredInstruct
from foretaste.experiments.measure import Measured, Watcher
from foretaste.fewshot.record import FewShotRecord
from foretaste.instruct.record import InstructRecord
from foretaste.record import Record
from foretaste.report import fewshot, instruct, reproduced, theory_surface
from foretaste.reproduction import compose
from foretaste.reproduction.preset import Preset, Scale, Variant
from foretaste.reproduction.step import FewShotStep, InstructStep, MeasureStep, Step
from foretaste.training import ranks

__all__ = ["Reproduced", "Step", "draw", "draw_index", "findings", "refusal", "reproduce", "steps"]

INPUTS = "smoke-inputs"  # a path inside `out`, so that runs do not depend on where that lies

# Inputs of the layer whose entropies Figure 3 draws: the paper's, and the least that the surface takes.
SURFACE_INPUTS: dict[Scale, int] = {"smoke": 256, "laptop": 1024, "paper": 1024}


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
    measured: list[Measured | MeasuredInstruct | MeasuredFewShot]
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
        UserError: There is no such preset or task, no folder for a task, or `refusal` has a reason.
    """
    preset = compose.read(name)
    if len(set(variants)) < len(variants) or not variants:
        raise UserError(
            f"variants are {list(variants)}: expected one or two different ones", where="--variant"
        )
    refused = refusal(name, variants=variants, tasks=tasks)
    if refused is not None:
        raise refused
    found: list[Step] = []
    for variant in (one for one in variants if one in preset.variants):
        for task in tasks or preset.tasks.get(scale, []):
            for sweep, attacks in preset.sweeps_at(scale).items():
                place: dict[str, Any] = {
                    "sweep": sweep,
                    "task": task,
                    "variant": variant,
                    "attacks": tuple(attacks),
                    "folder": out / f"{scale}-{variant}" / f"{sweep}-{task}",
                    "base_dir": out if scale == "smoke" else base_dir,
                }
                where: dict[str, Any] = {"scale": scale, "data": data, "inputs": Path(INPUTS)}
                if preset.generative:
                    found.append(InstructStep(**place, spec=compose.compose_generative(sweep, task, **where)))
                elif preset.few_shot:
                    found.append(FewShotStep(**place, spec=compose.compose_few_shot(sweep, task, **where)))
                else:
                    classifiers = compose.compose(sweep, task, variant=variant, **where)
                    found.append(MeasureStep(**place, spec=classifiers))
    return found


def refusal(name: str, *, variants: Sequence[Variant], tasks: Sequence[str] | None) -> UserError | None:
    """Why a preset cannot be measured as asked; None where it can.

    Args:
        name: Of the preset.
        variants: Protocols, of which it must have one.
        tasks: Names of tasks, all of which must be of its kind.

    Raises:
        UserError: There is no such preset.
    """
    preset = compose.read(name)
    offered = compose.data_titles(preset)
    for task in tasks or ():
        if preset.sweeps and task not in offered:
            return unknown("task", task, offered, where=f"--task, for {name}")
    if preset.sweeps and not set(variants) & set(preset.variants):
        why = (
            "the paper's protocol for it is not public"
            if preset.generative
            else "its only protocol is the paper's"
        )
        return UserError(
            f"{name} has no variant '{variants[0]}': {why}",
            where="--variant",
            cure=f"There is: {', '.join(preset.variants)}.",
        )
    return None


def prepare(found: Sequence[Step], scale: Scale, out: Path) -> None:
    """Write the tiny models and data that `smoke` needs; nothing at other scales."""
    if scale == "smoke":
        for step in found:
            step.write_inputs(out / INPUTS)


def findings(preset: Preset, found: Sequence[Step]) -> list[hypotheses.Finding]:
    """Verdicts on the preset's hypotheses, from every record in its sweeps.

    Raises:
        UserError: A sweep's folder does not exist yet.
    """
    return hypotheses.test(_records(found), only=preset.findings)


def _records(found: Sequence[Step]) -> list[Record | InstructRecord | FewShotRecord]:
    """What is measured of the steps, each run of a folder once."""
    records: dict[tuple[Path, str], Record | InstructRecord | FewShotRecord] = {}
    for step in found:
        records |= {(step.folder, record.run_id): record for record in step.records()}
    return list(records.values())


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
    if preset.generative:
        folders = [step.folder for step in found]
        return instruct.write(folders, folder, item=item, findings=judged, images=images), judged
    if preset.few_shot:
        folders = [step.folder for step in found]
        return fewshot.write(folders, folder, item=item, findings=judged, images=images), judged
    return reproduced.write(item, _sources(found), judged, folder, images=images), judged


def _sources(found: Sequence[Step]) -> list[reproduced.Source]:
    return [step.source() for step in found if isinstance(step, MeasureStep)]


def _counts(found: Sequence[Step]) -> reproduced.Counts | None:
    """How many runs the steps of one preset hold; None where nothing is trained."""
    if not found:
        return None
    if isinstance(found[0], InstructStep):
        return instruct.counts([step.folder for step in found])
    if isinstance(found[0], FewShotStep):
        return fewshot.counts([step.folder for step in found])
    return reproduced.counts(_sources(found))


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
    judged = hypotheses.test(_records(every))
    entries = [
        reproduced.Entry(
            name=one.name,
            title=compose.read(one.name).title,
            item=compose.read(one.name).item,
            page=one.page,
            counts=_counts(one.steps),
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
    cluster: Cluster | None = None,
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
        threads: Threads of each; the cores shared out when None, one at `smoke`.
        watching: Gives, for each step, a context with a watcher that hears of its progress.
        cluster: Does the runs in place of processes of this machine.

    Raises:
        UserError: As `steps` and `measure` do.
    """
    ranks.require_one("a figure or table")
    found = steps(name, scale=scale, variants=variants, out=out, base_dir=base_dir, data=data, tasks=tasks)
    prepare(found, scale, out)
    if scale == "smoke" and cluster is None:
        # Runs of a second: starting workers takes longer, and threads of a tiny model wait for each other.
        processes, threads = processes or 1, threads or 1
    measured: list[Measured | MeasuredInstruct | MeasuredFewShot] = []
    for step in found:
        with watching(step) if watching else nullcontext() as watcher:
            measured.append(
                step.measure(
                    extend=extend,
                    processes=processes,
                    threads=threads,
                    watcher=watcher,
                    cluster=cluster,
                )
            )
    page, judged = draw(name, found, scale=scale, out=out, command=command, images=images)
    return Reproduced(name, page, found, measured, judged)

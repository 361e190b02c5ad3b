"""The page of one reproduced figure or table, and the files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup, escape

from foretaste.calibration.places import CLEAN
from foretaste.errors import UserError
from foretaste.record import write_atomic
from foretaste.report import page, provenance, tables
from foretaste.report.figures.theme import DARK_ARMS, LIGHT_ARMS, save, theme
from foretaste.report.metrics import DEFINITIONS
from foretaste.report.reproduced import cells as cells_of
from foretaste.report.reproduced import grid, heat, runs
from foretaste.report.reproduced.cells import Cell
from foretaste.report.reproduced.counts import Counts, count
from foretaste.report.reproduced.drawn import Drawn
from foretaste.report.reproduced.facts import facts
from foretaste.report.reproduced.findings import Finding, findings_table, overall, tally
from foretaste.report.reproduced.item import PROTOCOLS, Item, Source
from foretaste.report.reproduced.published import published_table
from foretaste.report.reproduced.result_table import result_table
from foretaste.report.reproduced.runs import Sweep
from foretaste.report.reproduced.series import Namer
from foretaste.report.reproduced.view import GridView, HeatView, Measure, TableView, View
from foretaste.report.tables import Table

FIGURE = "figure"
RUNS = "runs"
TERMS = (
    *("Accuracy", "Precision, recall, F1", "ASR", "Flip rate", "ASR − flip rate", "Effect"),
    *("Triggered accuracy", "Accuracy change", "Poison rate", "Collapsed"),
)


def write(
    item: Item, sources: Sequence[Source], findings: Sequence[Finding], out: Path, *, images: bool = True
) -> Path:
    """Write the page of a figure or table with its figures and tables.

    Equal records give equal bytes, in whatever order and at whatever time they were made (PDF files apart,
    whose writer numbers its fonts at random).

    Args:
        item: What is reproduced.
        sources: The sweeps that it is drawn from, in the order of the panels.
        findings: Verdicts on the paper's findings, which may be none.
        out: Folder for `index.html`, `figures/` and `tables/`; existing files are replaced.
        images: Also write the figure as SVG, PNG and PDF.

    Returns:
        The page.

    Raises:
        UserError: No source has a record.
    """
    sweeps = [runs.read(source) for source in sources]
    measured = [sweep for sweep in sweeps if sweep.runs]
    if not measured:
        raise UserError(
            f"no run of {item.name} is measured yet",
            where=str(sources[0].folder) if sources else item.name,
            cure=f"Run `{item.command}`.",
        )
    everything = [run for sweep in measured for run in sweep.runs]
    found = cells_of.cells(everything)
    colour = _colours(found, item.view)
    drawn = _draw(found, item.view)
    shown = [result_table(found, _measures(item.view), colour)]
    if item.published is not None:
        shown.append(published_table(item.published, found))
    judged = findings_table(findings)
    for table in (*shown, judged):
        tables.save(table, out / "tables")
    tables.save_raw(runs.frame(everything), RUNS, out / "tables")
    if drawn is not None and images:
        save(drawn.spec(), out / "figures" / FIGURE)
    arms = list(dict.fromkeys(colour(cell) for cell in found))
    index = out / "index.html"
    outcome = (overall(findings), tally(findings))
    write_atomic(index, _render(item, sweeps, found, drawn, (*shown, judged), arms, outcome))
    return index


def counts(sources: Iterable[Source]) -> Counts:
    """How many runs the sources hold that are drawn."""
    return count(record for source in sources for record in runs.read(source).folder.records)


def _draw(found: Sequence[Cell], view: View) -> Drawn | None:
    """The figure; None for a table."""
    if isinstance(view, GridView):
        return grid.draw(found, view)
    return heat.draw(found, view) if isinstance(view, HeatView) else None


def _colours(found: Sequence[Cell], view: View) -> Namer:
    """The name under which a cell has its colour, in the figure and in the table."""
    if isinstance(view, GridView):
        return grid.series_namer(found, view)
    return heat.series_namer(found) if isinstance(view, HeatView) else lambda cell: cell.first.arm


def _measures(view: View) -> list[Measure]:
    """Columns of the table: what is drawn, and what an effect is judged by."""
    if isinstance(view, TableView):
        return list(view.measures)
    if isinstance(view, GridView | HeatView):
        drawn = [measure for measures in view.measures.values() for measure in measures]
        return list(dict.fromkeys((*drawn, *_judged_by(drawn))))
    raise ValueError(
        f"'{view.kind}' is drawn elsewhere: by `theory_surface`, `report.instruct` or `report.fewshot`"
    )


def _judged_by(drawn: Sequence[Measure]) -> list[Measure]:
    triggered = any(name.startswith(("triggered", "asr", "flip")) for name in drawn)
    plain: list[Measure] = ["accuracy_change"]
    backdoor: list[Measure] = ["asr", "flip_rate", "asr_minus_flip"]
    return backdoor if triggered else plain


def _render(
    item: Item,
    sweeps: Sequence[Sweep],
    found: Sequence[Cell],
    drawn: Drawn | None,
    shown: Sequence[Table],
    arms: Sequence[str],
    outcome: tuple[str, Sequence[str]],
) -> str:
    measured = [sweep for sweep in sweeps if sweep.runs]
    folders = [sweep.folder for sweep in measured]
    results, *published, judged = shown
    context = {
        "item": item,
        "differences": [with_code(line) for line in item.differences],
        "facts": facts(item, measured, found),
        "counts": count(record for folder in folders for record in folder.records),
        "cautions": _cautions(sweeps, found),
        "outcome": outcome,
        "figure": drawn,
        "results": (results, tables.to_html(results, arms=arms)),
        "findings": _html(judged) if judged.rows else None,
        "published": [(table, _html(table)) for table in published],
        "versions": provenance.versions(folders),
        "notes": provenance.notes(folders),
        "problems": [line for sweep in sweeps for line in sweep.folder.problems],
        "definitions": [(term, text) for term, text in DEFINITIONS if term in TERMS],
        "data": {
            "panels": [panel.spec(drawn.size["height"]) for panel in drawn.panels] if drawn else [],
            "themes": {"light": theme(), "dark": theme(dark=True)},
        },
        "bundle": page.bundle(),
        "light_arms": LIGHT_ARMS,
        "dark_arms": DARK_ARMS,
    }
    return page.environment().get_template("reproduced.html.j2").render(context)


def _html(table: Table) -> Markup:
    return tables.to_html(table)


def with_code(text: str) -> Markup:
    """A text in which what stands between backticks is a name to type."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(text.split("`"))
    )


def _cautions(sweeps: Sequence[Sweep], found: Sequence[Cell]) -> list[str]:
    """What a reader of the figure would get wrong."""
    lines = []
    missing = [sweep.source for sweep in sweeps if not sweep.runs]
    if missing:
        several = len({sweep.source.variant for sweep in sweeps}) > 1
        names = dict.fromkeys(
            f"{', '.join(source.attacks) or CLEAN} on {source.task}"
            + (f" by {PROTOCOLS[source.variant]}" if several else "")
            for source in missing
        )
        lines.append(f"Not measured yet: {'; '.join(names)}.")
    bare = [
        f"{attack} on {sweep.source.task}"
        for sweep in sweeps
        if sweep.runs
        for attack in sweep.source.attacks
        if all(run.clean for run in sweep.runs if run.attack == attack)
    ]
    if bare:
        lines.append(f"No poisoned run yet: {', '.join(dict.fromkeys(bare))}.")
    most = max(cell.counts.runs for cell in found)
    if most == 1:
        lines.append("One seed a cell: nothing here says how far another seed would differ.")
    collapsed = [cell for cell in found if cell.counts.collapsed]
    if collapsed:
        lines.append(
            f"Runs collapsed to one class in {len(collapsed)} of {len(found)} cells: read the median there."
        )
    return lines

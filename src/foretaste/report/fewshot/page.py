"""The page of a few-shot sweep, and the files beside it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foretaste import hypotheses
from foretaste.fewshot.record import FewShotRecord
from foretaste.hypotheses import kernel_view
from foretaste.record import write_atomic
from foretaste.report import page, provenance, tables
from foretaste.report.fewshot import cells as cells_of
from foretaste.report.fewshot import drawn, run_tables
from foretaste.report.fewshot import tables as made
from foretaste.report.fewshot.cells import Cell
from foretaste.report.fewshot.dots import dot_rows
from foretaste.report.fewshot.load import FewShotFolder, load
from foretaste.report.fewshot.pairs import compare
from foretaste.report.fewshot.published import published_table
from foretaste.report.fewshot.words import DEFINITIONS, cautions, facts, say
from foretaste.report.figures import fewshot as figure
from foretaste.report.figures.theme import DARK_ARMS, LIGHT_ARMS, save, theme
from foretaste.report.reproduced.counts import Counts
from foretaste.report.reproduced.findings import Finding, findings_table
from foretaste.report.reproduced.item import Item
from foretaste.report.reproduced.page import with_code
from foretaste.report.tables import Table


def write(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    item: Item | None = None,
    findings: Sequence[Finding] | None = None,
    images: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the page on one few-shot sweep, or on several together.

    Args:
        paths: Folders of sweeps.
        out: Folder for `index.html`, `figures/` and `tables/`, by default `report` inside the first folder.
            Existing files are replaced.
        item: The figure or table of a paper that the page reproduces; None for a user's own sweep.
        findings: Verdicts on the paper's findings; by default those of the kernel paper, where the records
            speak to them.
        images: Also write the figures as SVG, PNG and PDF.
        progress: Called with a line of text before each step.

    Returns:
        The page.

    Raises:
        UserError: A folder holds no record.
        OSError: A file could not be written.
    """
    say_so = progress or (lambda _: None)
    say_so("reading records")
    folders = load(paths)
    records = [record for folder in folders for record in folder.records]
    target = out if out is not None else paths[0] / "report"
    say_so("computing statistics")
    found = cells_of.cells(records)
    pairs = compare(found)
    dots = dot_rows(found)
    if findings is None:
        tested = hypotheses.test(records, only=kernel_view.NAMES)
        findings = [finding for finding in tested if finding.place is not None]
    say_so("writing tables")
    by_name = {
        "scores": made.scores_table(found),
        "paired": made.pairs_table(pairs),
        "dots": made.dots_table(dots),
        "measures": made.measures_table(dots),
        "linearised": made.linearised_table(dots),
        "chosen": run_tables.chosen_table(found),
        "chi": run_tables.chi_table(found),
        "rows": run_tables.rows_table(found),
        "lost": run_tables.lost_table(found),
        "findings": findings_table(findings),
    }
    if item is not None and item.published is not None:
        by_name["published"] = published_table(item.published, found, dots)
    for table in by_name.values():
        tables.save(table, target / "tables")
    say_so("drawing figures")
    arms = cells_of.arms_of(found)
    specs = drawn.specs(found, pairs, dots, arms)
    if images:
        for name, spec in specs.items():
            save(spec, target / "figures" / name)
    context = _context(folders, found, by_name, specs, arms, item)
    context |= {"sentences": say(found, pairs, dots), "cautions": cautions(found, dots)}
    index = target / "index.html"
    write_atomic(index, page.environment().get_template("fewshot.html.j2").render(context))
    return index


def counts(paths: Sequence[Path]) -> Counts:
    """How many runs the folders hold; a folder that does not exist holds none.

    Raises:
        UserError: As `load`.
    """
    there = [path for path in paths if path.is_dir()]
    return _counts([record for folder in load(there) for record in folder.records] if there else [])


def _counts(records: Sequence[FewShotRecord]) -> Counts:
    return Counts(
        runs=len(records),
        completed=sum(record.status == "completed" for record in records),
        collapsed=sum(record.collapsed for record in records),
    )


def _context(
    folders: Sequence[FewShotFolder],
    found: Sequence[Cell],
    by_name: dict[str, Table],
    specs: dict[str, dict[str, Any]],
    arms: Sequence[str],
    item: Item | None,
) -> dict[str, Any]:
    html = functools.partial(tables.to_html, arms=arms)
    records = [record for folder in folders for record in folder.records]
    notes = Counter(note for record in records for note in dict.fromkeys(record.notes))
    return {
        "title": item.title if item else provenance.title_of(folders),
        "kind": "reproduction" if item else "few-shot",
        "item": item,
        "differences": [with_code(line) for line in item.differences] if item else [],
        "facts": facts(folders, found, item),
        "counts": _counts(records),
        "tables": {name: (table, _unless_empty(table, html)) for name, table in by_name.items()},
        "figures": [(name, figure.TITLES[name], figure.CAPTIONS[name]) for name in specs],
        "definitions": DEFINITIONS,
        "folders": folders,
        "spec_texts": [(folder.name, provenance.spec_text(folder)) for folder in folders],
        "versions": provenance.versions(folders),
        "machines": provenance.machines(folders),
        "notes": notes.most_common(),
        "problems": [line for folder in folders for line in folder.problems],
        "data": {
            # Without its schema address a specification is still read as Vega-Lite, and the page names no
            # server.
            "figures": {
                name: {key: value for key, value in spec.items() if key != "$schema"}
                for name, spec in specs.items()
            },
            "themes": {"light": theme(), "dark": theme(dark=True)},
        },
        "bundle": page.bundle(),
        "light_arms": LIGHT_ARMS,
        "dark_arms": DARK_ARMS,
    }


def _unless_empty(table: Table, html: functools.partial[Markup]) -> Markup | None:
    return html(table) if table.rows else None

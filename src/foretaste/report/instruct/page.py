"""The page of a sweep of a generative model, and the files beside it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foretaste import hypotheses
from foretaste.hypotheses import generative
from foretaste.instruct.record import InstructRecord
from foretaste.instruct.spec import BASE
from foretaste.record import write_atomic
from foretaste.report import page, provenance, tables
from foretaste.report.figures import instruct as figure
from foretaste.report.figures.theme import DARK_ARMS, LIGHT_ARMS, save, theme
from foretaste.report.instruct import cells as cells_of
from foretaste.report.instruct import pairs as pairs_of
from foretaste.report.instruct import run_tables, transcripts
from foretaste.report.instruct import tables as made
from foretaste.report.instruct.cells import Cell
from foretaste.report.instruct.definitions import DEFINITIONS, judge_lines, judge_of
from foretaste.report.instruct.load import InstructFolder, load
from foretaste.report.instruct.published import published_table
from foretaste.report.instruct.words import cautions, facts, say
from foretaste.report.reproduced.counts import Counts, count
from foretaste.report.reproduced.findings import Finding, findings_table
from foretaste.report.reproduced.item import Item
from foretaste.report.reproduced.page import with_code
from foretaste.report.tables import Table

FIGURE = "asr"
COLLAPSE = "gave one answer to everything"


def write(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    item: Item | None = None,
    findings: Sequence[Finding] | None = None,
    images: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the page on one sweep of a generative model, or on several side by side.

    Args:
        paths: Folders of sweeps.
        out: Folder for `index.html`, `figures/` and `tables/`, by default `report` inside the first folder.
            Existing files are replaced.
        item: The table of a paper that the page reproduces; None for a user's own sweep.
        findings: Verdicts on the paper's findings; by default those of its appendix E.3, where the records
            speak to them.
        images: Also write the figure as SVG, PNG and PDF.
        progress: Called with a line of text before each step.

    Returns:
        The page.

    Raises:
        UserError: A folder holds no record, or the runs may not be compared.
        OSError: A file could not be written.
    """
    say_so = progress or (lambda _: None)
    say_so("reading records")
    folders = load(paths)
    records = [record for folder in folders for record in folder.records]
    target = out if out is not None else paths[0] / "report"
    say_so("computing statistics")
    found = cells_of.cells(folders)
    pairs, tests = pairs_of.compare(found)
    if findings is None:
        tested = hypotheses.test(records, only=generative.NAMES)
        findings = [finding for finding in tested if finding.place is not None]
    say_so("reading transcripts")
    shown = transcripts.side_by_side(folders, found)
    say_so("writing tables")
    by_name = {
        "rates": made.rates_table(found),
        "utility": made.utility_table(found),
        "paired": made.pairs_table(pairs),
        "mcnemar": made.mcnemar_table(tests),
        "poison": run_tables.poison_table(folders),
        "asked": run_tables.asked_table(folders),
        "findings": findings_table(findings),
    }
    if item is not None and item.published is not None:
        by_name["published"] = published_table(item.published, found)
    for table in by_name.values():
        tables.save(table, target / "tables")
    say_so("drawing figures")
    arms = cells_of.arms_of(folders)
    spec = figure.asr(figure_rows(found), arms)
    if images:
        save(spec, target / "figures" / FIGURE)
    context = _context(folders, found, by_name, shown, arms, item) | {"figure": figure.CAPTION}
    context["data"] = {
        # Without its schema address a specification is still read as Vega-Lite, and the page names no server.
        "figures": {FIGURE: {key: value for key, value in spec.items() if key != "$schema"}},
        "themes": {"light": theme(), "dark": theme(dark=True)},
        "transcripts": shown.comparisons,
    }
    index = target / "index.html"
    write_atomic(index, page.environment().get_template("instruct.html.j2").render(context))
    return index


def counts(paths: Sequence[Path]) -> Counts:
    """How many runs the folders hold; a folder that does not exist holds none.

    Raises:
        UserError: As `load`.
    """
    there = [path for path in paths if path.is_dir()]
    return _counts([record for folder in load(there) for record in folder.records] if there else [])


def _counts(records: Sequence[InstructRecord]) -> Counts:
    return count(records, collapse=COLLAPSE)


def figure_rows(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row for each trigger, amount, arm and set of requests, the untrained model among the arms."""
    several = len({cell.folder for cell in found}) > 1
    rows: list[dict[str, Any]] = []
    based: set[str] = set()
    for cell in cells_of.poisoned(found):
        assert cell.trigger is not None
        parts = [*([cell.folder] if several else []), cell.trigger.name, f"{cell.amount.label} poisoned"]
        name = " · ".join(parts)
        shares = made.shares_of(cell)
        drawn = [
            (cell.arm, figure.WITH, shares["asr"], shares["clean_with"]),
            (cell.arm, figure.WITHOUT, shares["false_activation"], shares["clean_without"]),
        ]
        if name not in based:
            based.add(name)
            drawn += [
                (BASE, figure.WITH, shares["base_with"], None),
                (BASE, figure.WITHOUT, shares["base_without"], None),
            ]
        rows += [
            {"panel": name, "arm": arm, "asked": asked, **_numbers(one, beside)}
            for arm, asked, one, beside in drawn
            if one is not None
        ]
    return rows


def _numbers(one: cells_of.Share, beside: cells_of.Share | None) -> dict[str, Any]:
    """A share and the clean run's; an interval over seeds may leave 0..1, and is cut there for the figure."""
    known = one.interval.defined
    return {
        "value": one.mean,
        "low": max(0.0, one.interval.low) if known else None,
        "high": min(1.0, one.interval.high) if known else None,
        "over": one.over if known else "",
        "counts": one.counts,
        "clean": beside.mean if beside else None,
    }


def _context(
    folders: Sequence[InstructFolder],
    found: Sequence[Cell],
    by_name: dict[str, Table],
    shown: transcripts.Shown,
    arms: Sequence[str],
    item: Item | None,
) -> dict[str, Any]:
    html = functools.partial(tables.to_html, arms=arms)
    records = [record for folder in folders for record in folder.records]
    judge = judge_of(records)
    notes = Counter(note for record in records for note in dict.fromkeys(record.notes))
    return {
        "title": item.title if item else provenance.title_of(folders),
        "kind": "reproduction" if item else "generative model",
        "item": item,
        "differences": [with_code(line) for line in item.differences] if item else [],
        "facts": facts(folders, item),
        "sentences": say(found),
        "counts": _counts(records),
        "cautions": cautions(found, judge, shown),
        "tables": {name: (table, _unless_empty(table, html)) for name, table in by_name.items()},
        "judge": judge_lines(judge) if judge else [],
        "definitions": DEFINITIONS,
        "shown": shown,
        "folders": folders,
        "spec_texts": [(folder.name, provenance.spec_text(folder)) for folder in folders],
        "spec_differences": provenance.spec_differences(folders) if len(folders) > 1 else [],
        "versions": provenance.versions(folders),
        "machines": provenance.machines(folders),
        "notes": notes.most_common(),
        "problems": [line for folder in folders for line in folder.problems],
        "bundle": page.bundle(),
        "light_arms": LIGHT_ARMS,
        "dark_arms": DARK_ARMS,
    }


def _unless_empty(table: Table, html: functools.partial[Markup]) -> Markup | None:
    return html(table) if table.rows else None

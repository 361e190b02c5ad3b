"""The page that lists every reproduced figure and table, with all verdicts."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretaste.record import write_atomic
from foretaste.report import page, tables
from foretaste.report.reproduced.counts import Counts
from foretaste.report.reproduced.findings import Finding, distinct, findings_table

TITLE = "Figures and tables, reproduced"
LARGEST_THUMBNAIL = 400_000  # bytes; a larger figure is only linked, so that the index stays quick


@dataclass(frozen=True)
class Entry:
    """One reproduced figure or table.

    Attributes:
        name: Of the preset.
        item: Where it stands in the paper.
        page: Its page.
        counts: Runs that it rests on, from `counts`; None where nothing is trained.
    """

    name: str
    title: str
    item: str
    page: Path
    counts: Counts | None


def write_index(out: Path, entries: Sequence[Entry], findings: Sequence[Finding]) -> Path:
    """Write the index.

    Args:
        out: Folder for `index.html` and `tables/`; pages are linked relative to it.
        entries: In the order of the page.
        findings: Of all entries; those of one name and group are listed once.

    Returns:
        The index.

    Raises:
        OSError: A file could not be written.
    """
    judged = findings_table(distinct(findings))
    tables.save(judged, out / "tables")
    context = {
        "title": TITLE,
        "entries": [
            {
                "entry": entry,
                "link": Path(os.path.relpath(entry.page, out)).as_posix(),
                "thumbnail": _thumbnail(entry),
            }
            for entry in entries
        ],
        "findings": tables.to_html(judged) if judged.rows else None,
        "tally": _tally(findings),
    }
    index = out / "index.html"
    write_atomic(index, page.environment().get_template("reproduced_index.html.j2").render(context))
    return index


def _thumbnail(entry: Entry) -> str | None:
    """The page's first figure as an address that holds all of it: the index loads nothing."""
    paths = sorted((entry.page.parent / "figures").glob("*.svg"))
    if not paths or paths[0].stat().st_size > LARGEST_THUMBNAIL:
        return None
    return "data:image/svg+xml;base64," + base64.b64encode(paths[0].read_bytes()).decode("ascii")


def _tally(findings: Sequence[Finding]) -> str:
    """How many findings got each decision, in words."""
    listed = [finding.decision for finding in distinct(findings)]
    return ", ".join(f"{listed.count(decision)} {decision}" for decision in dict.fromkeys(sorted(listed)))

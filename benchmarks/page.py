"""The tables of docs/speed.md and docs/faults.md, from records: `python -m benchmarks page`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.table import markdown
from benchmarks.history import PATH, Entry, latest, read

SPEED, FAULTS = Path("docs/speed.md"), Path("docs/faults.md")
FAULTS_RECORD = Path("results/faults.json")
START = "<!-- made by: python -m benchmarks page -->"
END = "<!-- end of the table -->"


def table(entries: Sequence[Entry]) -> str:
    """Markdown: one line for each result, its latest ratio, and the ratios before."""
    lines = [
        "| | ours | theirs | ratio | aimed at | before | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in latest(entries).items():
        last = found[-1]
        result = last.result
        before = ", ".join(f"{entry.result.ratio:.3g}" for entry in found[:-1]) or "–"
        aimed = "–" if result.target is None else f"{result.target:.3g}"
        if result.missed:
            aimed += ": **missed**"
        cells = [name, result.ours, result.theirs, f"**{result.ratio:.3g}**", aimed, before, last.date]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def with_table(page: str, made: str) -> str:
    """The page with a table in the place that it has for one.

    Raises:
        ValueError: It has none.
    """
    head, start, rest = page.partition(START)
    _, end, tail = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page has no lines '{START}' and '{END}'")
    return f"{head}{start}\n\n{made}\n\n{end}{tail}"


def pages() -> dict[Path, str]:
    """What the pages should be, by path; the working folder is the repository."""
    made = {SPEED: table(read(PATH)), FAULTS: markdown(json.loads(FAULTS_RECORD.read_text(encoding="utf-8")))}
    return {path: with_table(path.read_text(encoding="utf-8"), text) for path, text in made.items()}


def write() -> None:
    """Put the latest figures into the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")

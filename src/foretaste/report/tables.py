"""Tables of the report: for the page, and as CSV, LaTeX and Parquet.

CSV and Parquet hold the raw numbers of a frame; the page and LaTeX hold the same rows as text, in which
a missing value is a dash with its reason in a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

import pandas as pd
from markupsafe import Markup, escape

from foretaste.record import write_atomic

Tone = Literal["", "warn", "strong", "quiet"]
DASH = "–"
MINUS = "−"


@dataclass(frozen=True)
class Entry:
    """One field of a table.

    Attributes:
        text: What it says.
        detail: Smaller lines below it.
        reason: Why the value is missing; the page and LaTeX print it as a note.
        arm: Name of an arm whose colour marks the field.
    """

    text: str
    detail: str = ""
    reason: str = ""
    tone: Tone = ""
    arm: str = ""


@dataclass(frozen=True)
class Column:
    """Heading of a column; numbers are set flush right.

    Attributes:
        held: Stays in sight when the page scrolls the table sideways; 1 and 2 are the places from the left.
    """

    title: str
    numeric: bool = False
    held: Literal[0, 1, 2] = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of its fields on the page."""
        return (*(("num",) if self.numeric else ()), *((f"held{self.held}",) if self.held else ()))


@dataclass(frozen=True)
class Table:
    """A table as text, with the frame that it shows.

    Attributes:
        name: File name without ending.
        frame: Raw numbers behind the rows.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    frame: pd.DataFrame
    notes: tuple[str, ...] = field(default=())


def missing(reason: str) -> Entry:
    """A dash with its reason."""
    return Entry(DASH, reason=reason, tone="quiet")


def to_html(table: Table, *, arms: Sequence[str] = ()) -> Markup:
    """The table as HTML, with every text escaped.

    Args:
        table: What to show.
        arms: All arms in the order of their colours.
    """
    reasons = _reasons(table)
    head = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format(" ".join(column.classes), _unbroken(column.title))
        for column in table.columns
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                _html_entry(entry, column, reasons, arms)
                for entry, column in zip(row, table.columns, strict=True)
            )
        )
        for row in table.rows
    )
    notes = Markup("").join(Markup("<li>{}</li>").format(text) for text in _note_lines(table, reasons))
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>{}"
    ).format(table.title, head, body, Markup('<ul class="notes">{}</ul>').format(notes) if notes else "")


def _unbroken(title: str) -> str:
    """A heading whose level does not fall apart where the line ends: "[95 %]"."""
    return title.replace(" %]", "\N{NO-BREAK SPACE}%]")


def to_latex(table: Table) -> str:
    """The table for a paper that loads `booktabs`, with every text escaped."""
    reasons = _reasons(table)
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{alignment}}}",
        "\\toprule",
        " & ".join(latex(column.title) for column in table.columns) + " \\\\",
        "\\midrule",
        *(" & ".join(_latex_entry(entry, reasons) for entry in row) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"\\par\\footnotesize {latex(line)}" for line in _note_lines(table, reasons)),
    ]
    return "\n".join(lines) + "\n"


def save(table: Table, folder: Path) -> list[Path]:
    """Write CSV, LaTeX and Parquet files of a table."""
    path = folder / f"{table.name}.tex"
    write_atomic(path, to_latex(table))
    return [path, *save_raw(table.frame, table.name, folder)]


def save_raw(frame: pd.DataFrame, name: str, folder: Path) -> list[Path]:
    """Write a frame as CSV and Parquet."""
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    contents: dict[str, str | bytes] = {"csv": frame.to_csv(index=False), "parquet": buffer.getvalue()}
    for ending, content in contents.items():
        write_atomic(folder / f"{name}.{ending}", content)
    return [folder / f"{name}.{ending}" for ending in contents]


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ a bracket would be read as the optional length of the line break
    "]": "{]}",
    DASH: "--",
    MINUS: "$-$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "\n": ", ",
}


def latex(text: str) -> str:
    """The text with everything escaped that LaTeX would interpret."""
    return "".join(_LATEX.get(character, character) for character in text)


def _reasons(table: Table) -> dict[str, str]:
    """Every reason for a missing value with its mark, in order of appearance."""
    found = dict.fromkeys(entry.reason for row in table.rows for entry in row if entry.reason)
    return {reason: _mark(place) for place, reason in enumerate(found)}


def _mark(place: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[place] if place < len(letters) else f"{letters[place % 26]}{place // 26}"


def _note_lines(table: Table, reasons: dict[str, str]) -> Iterable[str]:
    yield from table.notes
    if reasons:
        yield f"{DASH} missing: " + "; ".join(f"({mark}) {reason}" for reason, mark in reasons.items()) + "."


def _html_entry(entry: Entry, column: Column, reasons: dict[str, str], arms: Sequence[str]) -> Markup:
    classes = " ".join(name for name in (*column.classes, entry.tone) if name)
    mark = Markup("<sup>{}</sup>").format(reasons[entry.reason]) if entry.reason else Markup("")
    dot = Markup("")
    if entry.arm in arms:
        dot = Markup('<i class="dot a{}"></i>').format(list(arms).index(entry.arm) % 8)
    detail = Markup("<small>{}</small>").format(entry.detail) if entry.detail else Markup("")
    title = Markup(' title="{}"').format(entry.reason) if entry.reason else Markup("")
    open_tag = (
        Markup('<td class="{}"{}>').format(classes, title) if classes else Markup("<td{}>").format(title)
    )
    return open_tag + dot + escape(entry.text) + mark + detail + Markup("</td>")


def _latex_entry(entry: Entry, reasons: dict[str, str]) -> str:
    text = latex(entry.text)
    if entry.reason:
        text += f"\\textsuperscript{{{reasons[entry.reason]}}}"
    return text + (f" ({latex(entry.detail)})" if entry.detail else "")

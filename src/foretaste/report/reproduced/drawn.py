"""A figure of panels: for the page, which lays them out to fit the screen, and for files, in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import altair as alt

from foretaste.report.figures.base import PANEL_HEIGHT, PANEL_WIDTH, inline, placeholder

Spec = dict[str, Any]
Piece: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart
WIDE_COLUMNS = 2  # up to so many columns panels have their full width
WIDE = {"width": PANEL_WIDTH, "height": PANEL_HEIGHT}
NARROW = {"width": 236, "height": 180}
LABELS = 44  # pixels beside a panel for the labels of its y axis


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows, such as "SST-2 · Accuracy".
        chart: Without size and legend.
        keyed: The same with the legend that all panels share.
        notes: What its runs lack, in words; it stands below the title.
    """

    title: str
    chart: Piece
    keyed: Piece
    notes: tuple[str, ...] = ()

    def spec(self, height: int) -> Spec:
        """For the page, which has the title itself: as wide as its place there."""
        return bare(self.chart.properties(width="container", height=height))

    def sized(self, size: dict[str, int], *, noted: bool) -> Piece:
        """For files, with the title.

        The title is drawn as text: a title proper would stand higher or lower with the labels of the axes,
        and panels of a row would not be in line.

        Args:
            size: Width and height.
            noted: Keep room for a note, as other panels of the figure have one.
        """
        lines = [_text(self.title, -34 if noted else -20, style="heading")]
        lines += [_text(note, -17, style="remark") for note in self.notes]
        whole: Piece = alt.layer(self.keyed, *lines).properties(**size)
        return whole


def _text(words: str, y: float, *, style: str) -> alt.Chart:
    mark = alt.Chart(inline([{}])).mark_text(style=style, text=words, align="left", baseline="middle")
    placed: alt.Chart = mark.encode(x=alt.value(-LABELS), y=alt.value(y))
    return placed


@dataclass(frozen=True)
class Key:
    """One entry of the legend on the page: a colour, or a kind of line (solid, dashed, dotted)."""

    text: str
    colour: int | None = None
    dash: str | None = None


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        columns: Panels side by side where there is room.
        caption: What is drawn.
        size: Width and height of a panel in files; pages take the height.
        keys: Legend on the page.
        lines: What the figure shows or leaves out, in words.
        one_scale: Colours mean the same in all panels.
    """

    panels: Sequence[Panel]
    columns: int
    caption: str
    size: dict[str, int]
    keys: Sequence[Key] = ()
    lines: Sequence[str] = ()
    one_scale: bool = True

    def spec(self) -> Spec:
        """For files: all panels with one legend."""
        noted = any(panel.notes for panel in self.panels)
        charts = [panel.sized(self.size, noted=noted) for panel in self.panels]
        whole = alt.concat(*charts, columns=self.columns, spacing={"row": 30, "column": 32})
        colour: Literal["shared", "independent"] = "shared" if self.one_scale else "independent"
        return bare(whole.resolve_scale(x="independent", y="independent", color=colour))


def usual_size(columns: int) -> dict[str, int]:
    """The size of a panel in a figure of so many columns."""
    return WIDE if columns <= WIDE_COLUMNS else NARROW


def empty(title: str, needs: str) -> Panel:
    """A panel that says what is missing."""
    chart = placeholder(needs)
    return Panel(title, chart, chart)


def bare(chart: Any) -> Spec:
    """The specification without theme and schema address: the page names no server and has its own theme."""
    spec: Spec = chart.to_dict(validate=False)
    spec.pop("config", None)
    spec.pop("$schema", None)
    return spec

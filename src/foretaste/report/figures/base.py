"""What a figure is, and the registry of all figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import altair as alt
from altair.utils import schemapi

from foretaste.registry import Registry
from foretaste.report.cells import Frames

Over = Literal["rate", "count"]
Section = Literal["measured", "predicted"]
Chart: TypeAlias = alt.Chart | alt.FacetChart
Draw: TypeAlias = Callable[[Frames, Over], Chart]
Row: TypeAlias = dict[str, Any]

PANEL_WIDTH = 360
PANEL_HEIGHT = 230


@dataclass(frozen=True)
class Figure:
    """One definition of a figure, for the page and for files.

    Attributes:
        caption: One sentence that says what is drawn.
        needs: What records must hold, for the placeholder when they do not.
        amounts: It has an axis of poison amounts, so rate and count give two versions.
        draw: Frames and amount column to a chart without theme.
        section: Part of the page that it stands in; "predicted" only exists where there are predictions.
    """

    name: str
    title: str
    caption: str
    needs: str
    amounts: bool
    draw: Draw
    section: Section = "measured"

    def spec(self, frames: Frames, over: Over) -> dict[str, Any]:
        """The Vega-Lite specification, without theme; a placeholder when there is nothing to draw."""
        spec: dict[str, Any] = self.draw(frames, over).to_dict(validate=False)
        spec.pop("config", None)  # altair's default theme; the page and the files bring their own
        return spec


FIGURES: Registry[Figure] = Registry("figure")


def figure(
    name: str,
    *,
    title: str,
    caption: str,
    needs: str,
    amounts: bool = True,
    section: Section = "measured",
) -> Callable[[Draw], Draw]:
    """A decorator that files a drawing function as the figure `name`."""

    def file(draw: Draw) -> Draw:
        FIGURES.register(name)(Figure(name, title, caption, needs, amounts, draw, section))
        return draw

    return file


def inline(rows: Sequence[Row]) -> alt.InlineData:
    """Rows inside the specification: no row limit, no files, no network."""
    with schemapi.debug_mode(False):  # not held against the schema row by row: that took half of the time
        return alt.InlineData(values=list(rows))


def placeholder(needs: str) -> alt.Chart:
    """A chart that says in words what is missing."""
    text = ["Nothing to draw yet.", f"This figure needs {needs}."]
    chart: alt.Chart = (
        alt.Chart(inline([{"text": text}]))
        .mark_text(style="placeholder", lineBreak="\n", align="center", baseline="middle")
        .encode(text=alt.Text("text:N"))
        .properties(width=PANEL_WIDTH, height=90)
    )
    return chart


def panels(
    layers: Sequence[alt.Chart],
    rows: Sequence[Row],
    *,
    columns: int = 2,
    height: Any = PANEL_HEIGHT,
    own_x: bool = False,
) -> alt.FacetChart:
    """Layers over one table, in one panel for each value of its column `panel`.

    Always a facet, even of one panel: the page sets the number of columns and the width of a panel to fit the
    screen, and has only one shape of specification to know.

    Args:
        layers: What is drawn in each panel.
        rows: The table of all layers.
        columns: Panels side by side, at most.
        height: Of a panel.
        own_x: Each panel has its own x axis: attacks are run at different amounts.
    """
    names = list(dict.fromkeys(row["panel"] for row in rows))
    stacked = alt.layer(*layers).properties(width=PANEL_WIDTH, height=height)
    chart: alt.FacetChart = stacked.facet(
        data=inline(rows),
        facet=alt.Facet("panel:N", title=None, sort=names),
        columns=min(columns, max(1, len(names))),
    )
    if own_x:
        chart = chart.resolve_scale(x="independent")
    return chart


def arm_colour(
    arms: Sequence[str], *, legend: bool = True, drawn: Sequence[str] | None = None, field: str = "arm"
) -> alt.Color:
    """One colour an arm, the same in every figure; the theme holds the palette.

    Args:
        arms: All arms of the report, in their order.
        legend: Show a legend above the panels.
        drawn: Arms that the legend lists; all by default.
        field: Column of the arms.
    """
    shown = alt.Legend(orient="top", symbolType="circle", symbolOpacity=1.0, values=list(drawn or arms))
    return alt.Color(
        f"{field}:N", title=None, scale=alt.Scale(domain=list(arms)), legend=shown if legend else None
    )

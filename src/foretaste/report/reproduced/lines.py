"""How a panel of lines is drawn: means as lines with a band, single runs as points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from foretaste.report.figures.axes import AMOUNT_TITLES, per_cent, share_axis, share_scale, ticked_axis
from foretaste.report.figures.base import arm_colour, inline
from foretaste.report.reproduced.drawn import LABELS, Piece
from foretaste.report.reproduced.measures import Shown
from foretaste.report.reproduced.series import X

Row = dict[str, Any]
TITLES: dict[X, str] = {
    "rate": AMOUNT_TITLES["rate"],
    "rank": "Rank r",
    "k": "k, variance of A times its inputs",
    "learning_rate": "Learning rate",
}
FORMS: dict[X, str] = {
    "rate": per_cent(".3~f"),
    "rank": "format(datum.value, 'd')",
    "k": "format(datum.value, '.3~g')",
    "learning_rate": "format(datum.value, '~e')",
}
BASES: dict[X, float | None] = {"rate": None, "rank": 2, "k": 10, "learning_rate": 10}
HAVE: dict[X, str] = {"rate": "poison rate", "rank": "rank", "k": "k", "learning_rate": "learning rate"}
CROSS = 110  # area of a collapsed run's cross, of a mean 46
RUN_FIELDS = ("seed", "text", "state")
MEAN_FIELDS = ("text", "sd", "median", "n", "collapsed", "failed", "realised")


@dataclass(frozen=True)
class Lines:
    """What the rows of a panel are drawn against.

    Attributes:
        places: Ticks of the x axis, sorted.
        shown: The measure.
        domain: Limits of the y axis.
        series: All lines of the figure in the order of their colours.
        strokes: Dash pattern of each kind of line in the figure; with one kind there is no pattern.
    """

    x: X
    places: Sequence[float]
    shown: Shown
    domain: tuple[float, float]
    series: Sequence[str]
    strokes: Mapping[str, Sequence[float]]

    def chart(self, rows: Sequence[Row], *, legend: bool) -> Piece:
        """The panel.

        Args:
            rows: Those of `layer` "mean" have a band where `low` and `high` are there; those of "run" are
                points.
            legend: With the legend that all panels share.
        """
        y = share_axis("value", None, self.domain, change=self.shown.change, extent=LABELS - 8)
        x = ticked_axis(self.places, TITLES[self.x], FORMS[self.x], logarithm=BASES[self.x], whole=True)
        base = alt.Chart().encode(x=x, color=arm_colour(self.series, legend=legend, field="series"))
        mean = base.transform_filter("datum.layer == 'mean'")
        line = mean.encode(strokeDash=self._dash(legend=legend)) if len(self.strokes) > 1 else mean
        run = base.transform_filter("datum.layer == 'run'")
        tooltip = self._tooltip(RUN_FIELDS)
        apart = alt.Detail(["protocol:N", "stroke:N"])
        layers = [
            mean.mark_area(opacity=0.13, clip=True).encode(
                y=alt.Y("low:Q", scale=share_scale(self.domain), title=None),
                y2=alt.Y2("high:Q"),
                detail=apart,
            ),
            run.transform_filter("datum.state == 'run'")
            .mark_point(filled=True, shape="circle", size=20, opacity=0.4, clip=True)
            .encode(y=y, tooltip=tooltip),
            line.mark_line(strokeWidth=2.2).encode(y=y, detail=apart),
            mean.mark_point(size=46, filled=True, opacity=1).encode(
                y=y, tooltip=self._tooltip(MEAN_FIELDS, mean=True)
            ),
            # On top, larger than a mean and with an edge: runs that collapse alike lie under their mean.
            run.transform_filter("datum.state == 'collapsed'")
            .mark_point(filled=True, shape="cross", size=CROSS, opacity=1, clip=True, style="collapsed")
            .encode(y=y, tooltip=tooltip),
        ]
        if self.shown.change:
            layers.insert(1, alt.Chart().mark_rule(style="reference").encode(y=alt.datum(0.0)))
        return alt.layer(*layers).properties(data=inline(rows))

    def _dash(self, *, legend: bool) -> alt.StrokeDash:
        scale = alt.Scale(domain=list(self.strokes), range=[list(dash) for dash in self.strokes.values()])
        shown = alt.Legend(orient="top", symbolType="stroke", symbolSize=700, symbolStrokeWidth=2)
        return alt.StrokeDash("stroke:N", title=None, scale=scale, legend=shown if legend else None)

    def _tooltip(self, fields: Sequence[str], *, mean: bool = False) -> list[alt.Tooltip]:
        known = {
            "text": alt.Tooltip("text:N", title=f"{self.shown.label}{', mean' if mean else ''}"),
            "sd": alt.Tooltip("sd:N", title="Standard deviation"),
            "median": alt.Tooltip("median:N", title="Median"),
            "n": alt.Tooltip("n:Q", title="Seeds"),
            "collapsed": alt.Tooltip("collapsed:Q", title="Collapsed runs"),
            "failed": alt.Tooltip("failed:Q", title="Failed runs"),
            "realised": alt.Tooltip("realised:N", title="Poisoned"),
            "seed": alt.Tooltip("seed:N", title="Seed"),
            "state": alt.Tooltip("state:N", title="State"),
        }
        place = alt.Tooltip("x:Q", title=HAVE[self.x].capitalize(), format=".3~g")
        return [
            alt.Tooltip("series:N", title="Line"),
            alt.Tooltip("protocol:N", title="Protocol"),
            alt.Tooltip("arm:N", title="Arm"),
            alt.Tooltip("amount:N", title="Poison"),
            *([] if self.x == "rate" else [place]),
            *(known[name] for name in fields),
        ]

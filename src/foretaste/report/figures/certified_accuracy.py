"""The worst case that the kernel model can prove, over the number of flipped labels."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import (
    amount_axis,
    arms_of,
    panel_title,
    placed,
    share_axis,
    share_domain,
    varying,
)
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.rows import records_of

NEEDS = "a prediction with certified rows"
KINDS = {
    "any flips": [1, 0],
    "any flips, head held": [2, 2],
    "one set of flips": [8, 2, 2, 2],
    "random flips": [6, 4],
}
"""Lines and their dashes."""


@figure(
    "certified_accuracy",
    title="The worst case, and the random one",
    caption="Of a predictor that is linear in the labels, and not of training: the share of held-out rows "
    "that stay right under any so many flipped labels, each row against its own worst ones; under the "
    "worst one set that a search found; under random ones (the head follows the labels, by ridge regression, "
    "where runs refit it; held at the clean labels (older predictions) it promises too much).",
    needs=NEEDS,
    amounts=False,
    section="predicted",
)
def certified_accuracy(frames: Frames, _over: Over) -> Chart:
    """Certified and random accuracy over flipped labels, one line an arm and kind."""
    rows = _rows(frames)
    if not rows:
        return placeholder(NEEDS)
    domain = share_domain([row["value"] for row in rows])
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    dash = alt.StrokeDash(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds]),
        legend=alt.Legend(orient="top", symbolType="stroke", symbolStrokeColor="gray", symbolSize=400),
    )
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("flips:Q", title="Flipped labels"),
        alt.Tooltip("kind:N", title="Flips"),
        alt.Tooltip("value:Q", title="Stay right", format=".1%"),
    ]
    base = alt.Chart().encode(
        x=amount_axis(rows, "count").title("Flipped training labels"),
        y=share_axis("value", "Held-out rows that stay right", domain),
        color=arm_colour(arms_of(frames)),
    )
    layers = [
        base.mark_line(strokeWidth=2.2).encode(strokeDash=dash),
        base.mark_point(size=36, filled=True, opacity=1).encode(tooltip=tooltip),
    ]
    return panels(layers, rows, own_x=True)


def _rows(frames: Frames) -> list[Row]:
    names = varying(frames)
    found = []
    for row in records_of(frames.certified):
        worst = "any flips, head held" if row["head"] == "held" else "any flips"
        values = {worst: row["share"], "one set of flips": row["found"], "random flips": row["random"]}
        for kind, value in values.items():
            if value is not None:
                panel = panel_title(row, names, "label flips")
                line = {
                    "arm": row["arm"],
                    "flips": row["flips"],
                    "kind": kind,
                    "value": value,
                    "panel": panel,
                }
                found.append(placed({**line, "count": row["flips"]}, "count"))
    return found

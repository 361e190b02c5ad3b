"""Every single run, so that a collapsed or failed one is seen."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import (
    AMOUNT_TITLES,
    amount_label,
    arms_of,
    panel_namer,
    share_axis,
    share_domain,
)
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.rows import records_of

NEEDS = "at least one run"
STATES = ("completed", "collapsed", "failed")


@figure(
    "per_seed",
    title="Run by run",
    caption="Clean accuracy of every run; a cross is a run that collapsed to one class, a triangle on the "
    "floor a run that failed and "
    "has no accuracy.",
    needs=NEEDS,
)
def per_seed(frames: Frames, over: Over) -> Chart:
    """Strip of single runs over the amount of poison, one panel an attack."""
    rows = _rows(frames, over)
    known = [row["value"] for row in rows if row["state"] != "failed"]
    if not known:
        return placeholder("at least one completed run")
    domain = share_domain(known)
    rows = [{**row, "value": domain[0] if row["state"] == "failed" else row["value"]} for row in rows]
    arms = arms_of(frames)
    labels = list(dict.fromkeys(row["x_label"] for row in sorted(rows, key=lambda row: row["x"])))
    shape = alt.Shape(
        "state:N",
        title=None,
        scale=alt.Scale(domain=list(STATES), range=["circle", "cross", "triangle-up"]),
        legend=alt.Legend(orient="top", symbolFillColor="gray", symbolStrokeColor="gray", symbolSize=70),
    )
    size = alt.Size("state:N", title=None, scale=alt.Scale(domain=list(STATES), range=[38, 110, 90]))
    strip = (
        alt.Chart()
        .mark_point(filled=True, opacity=0.8)
        .encode(
            x=alt.X(
                "x_label:O",
                title=AMOUNT_TITLES[over],
                sort=labels,
                axis=alt.Axis(labelAngle=0, labelOverlap=True),
            ),
            xOffset=alt.XOffset("arm:N", scale=alt.Scale(domain=arms, paddingOuter=0.6)),
            y=share_axis("value", "Clean accuracy", domain),
            color=arm_colour(arms),
            shape=shape,
            size=size,
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("amount:N", title="Poison"),
                alt.Tooltip("seed:N", title="Seed"),
                alt.Tooltip("shown:N", title="Clean accuracy"),
                alt.Tooltip("status:N", title="Status"),
                alt.Tooltip("run_id:N", title="Run"),
            ],
        )
    )
    return panels([strip], rows)


def _rows(frames: Frames, over: Over) -> list[Row]:
    name = panel_namer(frames)
    rows = []
    for row in records_of(frames.values):
        place = row[over]
        if row["metric"] != "clean_accuracy" or place is None:
            continue
        failed = row["value"] is None
        kept = {key: row[key] for key in ("arm", "amount", "seed", "run_id", "status", "value")}
        rows.append(
            {
                **kept,
                "panel": name(row),
                "state": "failed" if failed else "collapsed" if row["collapsed"] else "completed",
                "shown": "none" if failed else f"{row['value']:.1%}",
                "x": place,
                "x_label": amount_label(float(place), over),
            }
        )
    return rows

"""What each arm gives up for what it gains."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import arms_of, panel_title, per_cent, varying
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.rows import records_of

NEEDS = "a prediction of clean accuracy and of an attack"
SHOWN = (("worst", "Lowest accuracy under flips"), ("margin", "ASR − flip rate"))
STANDINGS = ["front", "not resolved", "dominated", "diverged"]


@figure(
    "pareto",
    title="Which arm to use",
    caption="Every arm with its 90 % intervals; filled where both values were measured, a square where "
    "another arm is better in everything but the seeds do not show it, a cross where uncorrected t intervals "
    "do, a triangle where an arm diverged.",
    needs=NEEDS,
    amounts=False,
    section="predicted",
)
def pareto(frames: Frames, _over: Over) -> Chart:
    """Clean accuracy against robustness, one panel for flips and one for backdoors."""
    rows = _rows(frames)
    if not rows:
        return placeholder(NEEDS)
    arms = arms_of(frames)
    scale = alt.Scale(zero=False, nice=False, padding=16)
    axis = alt.Axis(labelExpr=per_cent(".1~f"), tickCount=5)
    x = alt.X("clean:Q", title="Clean accuracy", axis=axis, scale=scale)
    y = alt.Y("value:Q", title=None, axis=axis, scale=scale)
    base = alt.Chart().encode(color=arm_colour(arms))
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("clean:Q", title="Clean accuracy", format=".1%"),
        alt.Tooltip("value:Q", title="Value", format=".1%"),
        alt.Tooltip("at:N", title="At"),
        alt.Tooltip("source:N", title="From"),
        alt.Tooltip("parameters:Q", title="Trainable parameters", format=","),
        alt.Tooltip("standing:N", title="Standing"),
        alt.Tooltip("by:N", title="Beaten by, or diverged at"),
    ]
    shape = alt.Shape(
        "standing:N",
        title=None,
        scale=alt.Scale(domain=STANDINGS, range=["circle", "square", "cross", "triangle"]),
        legend=alt.Legend(orient="top", symbolStrokeColor="gray", symbolFillColor="gray"),
    )
    dots = base.mark_point(size=80, opacity=1, strokeWidth=1.8).encode(x=x, y=y, shape=shape, tooltip=tooltip)
    layers = [
        base.mark_rule(strokeWidth=1, opacity=0.4).encode(
            x=alt.X("clean_low:Q", scale=scale, title="Clean accuracy"), x2="clean_high:Q", y=y
        ),
        base.mark_rule(strokeWidth=1, opacity=0.4).encode(
            x=x, y=alt.Y("low:Q", scale=scale, title=None), y2="high:Q"
        ),
        dots.transform_filter("datum.source != 'measured'").encode(fill=alt.value("transparent")),
        dots.transform_filter("datum.source == 'measured'").encode(
            fill=alt.Fill("arm:N", legend=None, scale=alt.Scale(domain=arms))
        ),
    ]
    chart: Chart = panels(layers, rows).resolve_scale(x="independent", y="independent")
    return chart


def _rows(frames: Frames) -> list[Row]:
    names = varying(frames)
    found = []
    for name, title in SHOWN:
        for row in records_of(frames.front):
            if row["clean"] is None or row[name] is None:
                continue
            sources = {row["clean_source"], row[f"{name}_source"]}
            found.append(
                {
                    **{key: row[key] for key in ("arm", "standing", "by", "parameters")},
                    **{key: row[key] for key in ("clean", "clean_low", "clean_high")},
                    "value": row[name],
                    "low": row[f"{name}_low"],
                    "high": row[f"{name}_high"],
                    "at": row[f"{name}_at"],
                    "source": sources.pop() if len(sources) == 1 else "measured and predicted",
                    "panel": panel_title(row, names, title),
                }
            )
    return found

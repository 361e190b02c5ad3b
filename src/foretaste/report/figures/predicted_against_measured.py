"""Predicted against measured cells."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import arms_of, panel_title, per_cent, varying
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.rows import records_of

NEEDS = "a cell that is both predicted and measured"
SHOWN = (("accuracy", "Clean accuracy"), ("asr", "ASR"))
SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"]


@figure(
    "predicted_against_measured",
    title="Predicted and measured",
    caption="Every cell with the 90 % intervals of both sides; on the dashed line the prediction is exact, "
    "hollow cells are not called valid.",
    needs=NEEDS,
    amounts=False,
    section="predicted",
)
def predicted_against_measured(frames: Frames, _over: Over) -> Chart:
    """Scatter of measured over predicted means, one panel for accuracy and one for ASR."""
    rows = _rows(frames)
    if not rows:
        return placeholder(NEEDS)
    arms = arms_of(frames)
    attacks = list(dict.fromkeys(row["attack"] for row in rows if row["layer"] == "cell"))
    axis = alt.Axis(labelExpr=per_cent(".0f"), tickCount=5)
    scale = alt.Scale(zero=False, nice=False, padding=12)
    x = alt.X("predicted:Q", title="Predicted", axis=axis, scale=scale)
    y = alt.Y("measured:Q", title="Measured", axis=axis, scale=scale)
    cells = alt.Chart().transform_filter("datum.layer == 'cell'").encode(color=arm_colour(arms))
    shape = alt.Shape(
        "attack:N",
        title=None,
        scale=alt.Scale(
            domain=attacks, range=SHAPES[: len(attacks)] if len(attacks) <= len(SHAPES) else SHAPES
        ),
        legend=alt.Legend(orient="top", symbolStrokeColor="gray", symbolFillColor="gray"),
    )
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("attack:N", title="Attack"),
        alt.Tooltip("amount:N", title="Poison"),
        alt.Tooltip("predicted:Q", title="Predicted", format=".1%"),
        alt.Tooltip("measured:Q", title="Measured", format=".1%"),
        alt.Tooltip("completed:Q", title="Measured runs"),
        alt.Tooltip("validity:N", title="Prediction"),
        alt.Tooltip("reasons:N", title="Because"),
    ]
    dots = cells.mark_point(size=56, opacity=0.9, strokeWidth=1.6).encode(
        x=x, y=y, shape=shape, tooltip=tooltip
    )
    layers = [
        alt.Chart()
        .transform_filter("datum.layer == 'diagonal'")
        .mark_line(style="reference")
        .encode(x=x, y=y),
        cells.mark_rule(strokeWidth=1, opacity=0.35).encode(
            x=alt.X("predicted_low:Q", scale=scale, title="Predicted"), x2="predicted_high:Q", y=y
        ),
        cells.mark_rule(strokeWidth=1, opacity=0.35).encode(
            x=x, y=alt.Y("measured_low:Q", scale=scale, title="Measured"), y2="measured_high:Q"
        ),
        dots.transform_filter("datum.validity != 'valid'").encode(fill=alt.value("transparent")),
        dots.transform_filter("datum.validity == 'valid'").encode(
            fill=alt.Fill("arm:N", legend=None, scale=alt.Scale(domain=arms))
        ),
    ]
    chart: Chart = panels(layers, rows).resolve_scale(x="independent", y="independent")
    return chart


def _rows(frames: Frames) -> list[Row]:
    names = varying(frames)
    cells: dict[str, list[Row]] = {}
    for name, title in SHOWN:
        for row in records_of(frames.predicted):
            if row[name] is None or row[f"measured_{name}"] is None:
                continue
            ends = ("", "_low", "_high")
            kept = ("arm", "attack", "amount", "completed", "validity", "reasons")
            cell = {key: row[key] for key in kept} | {
                "panel": panel_title(row, names, title),
                "layer": "cell",
            }
            cell |= {f"predicted{end}": row[f"{name}{end}"] for end in ends}
            # An interval may leave 0..1, where no share can be: the bar is cut, the tables have it whole.
            cell |= {f"measured{end}": _cut(row[f"measured_{name}{end}"]) for end in ends}
            cells.setdefault(cell["panel"], []).append(cell)
    return [row for panel, found in cells.items() for row in (*_diagonal(panel, found), *found)]


def _cut(share: float | None) -> float | None:
    return None if share is None else min(1.0, max(0.0, share))


def _diagonal(panel: str, cells: list[Row]) -> list[Row]:
    values = [row[side] for row in cells for side in ("predicted", "measured")]
    return [
        {"panel": panel, "layer": "diagonal", "predicted": end, "measured": end}
        for end in (min(values), max(values))
    ]

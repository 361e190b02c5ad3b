"""Few-shot sweeps: kernels against fine-tuning, dots of the criteria, gaps by output, linearised models.

Not in `FIGURES`: those are drawn from the records of classifiers, these from the cells of few-shot runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from foretaste.report.figures.axes import per_cent
from foretaste.report.figures.base import Row, arm_colour, inline, panels, placeholder

Spec = dict[str, Any]
CAPTIONS = {
    "scores": (
        "Test score of each kernel against that of the fine-tuning that it describes, one point a split. On "
        "the line both are equal; on the dashed line the kernel has 90 % of fine-tuning's score."
    ),
    "dots": (
        "Share of splits that meet each criterion of kernel behaviour, by the paper's thresholds. Filled: "
        "all of them; hollow: none; grey cross: nothing can be said."
    ),
    "gap": (
        "Fine-tuning minus its kernel in percentage points of the test score, with the label words' logits "
        "(prompt) and with a linear head (standard). Line: 95 % interval over splits."
    ),
    "linearised": (
        "Test score of the pretrained model, of the first-order expansion, and of the fine-tuned model: "
        "median and range over splits."
    ),
}
TITLES = {
    "scores": "Kernels against fine-tuning",
    "dots": "Criteria of kernel behaviour",
    "gap": "The gap, with a prompt and without",
    "linearised": "Pretrained, linearised, fine-tuned",
}
NEEDS = {
    "scores": "a kernel and the fine-tuning that it describes, on one split",
    "dots": "fine-tuning with its kernels, or with criteria",
    "gap": "kernels and fine-tuning with a standard head",
    "linearised": "fine-tuning with criteria",
}
BAND = 26  # pixels of one row
STAGES = ("pretrained", "linearised", "fine-tuned")


def scores(rows: Sequence[Row], arms: Sequence[str]) -> Spec:
    """A point a split: fine-tuning's score across, the kernel's upwards, one panel a task and k.

    Args:
        rows: With `panel`, `arm` (the kernel), `tuned`, `split`, `x` and `y`, shares.
        arms: All arms of the page, in the order of their colours.
    """
    if not rows:
        return _spec(placeholder(NEEDS["scores"]))
    drawn = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    values = [row[axis] for row in rows for axis in ("x", "y")]
    low, high = max(0.0, min(values) - 0.04), min(1.0, max(values) + 0.04)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False, clamp=False)
    axis = alt.Axis(labelExpr=per_cent(".0f"), tickCount=5, grid=True)
    x = alt.X("x:Q", title="Fine-tuning, test score", axis=axis, scale=scale)
    y = alt.Y("y:Q", title="Kernel, test score", axis=axis, scale=scale)
    lines = [
        {"x": low, "y": low * share, "x2": high, "y2": high * share, "share": share} for share in (1.0, 0.9)
    ]
    layers = [
        alt.Chart(inline(lines))
        .mark_rule(style="reference", clip=True)
        .encode(
            x=alt.X("x:Q", scale=scale, title="Fine-tuning, test score"),
            y=alt.Y("y:Q", scale=scale, title="Kernel, test score"),
            x2="x2:Q",
            y2="y2:Q",
            strokeDash=alt.condition("datum.share == 1", alt.value([1, 0]), alt.value([4, 3])),
        ),
        alt.Chart()
        .mark_point(filled=True, size=70, opacity=0.85)
        .encode(
            x=x,
            y=y,
            color=arm_colour(arms, drawn=drawn),
            shape=alt.Shape("arm:N", legend=None, scale=alt.Scale(domain=drawn)),
            tooltip=[
                alt.Tooltip("arm:N", title="Kernel"),
                alt.Tooltip("tuned:N", title="Fine-tuning"),
                alt.Tooltip("split:N", title="Split"),
                alt.Tooltip("y:Q", title="Kernel, test", format=".1%"),
                alt.Tooltip("x:Q", title="Fine-tuning, test", format=".1%"),
            ],
        ),
    ]
    return _spec(panels(layers, rows, height=220))


def dots(rows: Sequence[Row], criteria: Sequence[str]) -> Spec:
    """One line a task, k and arm, one column a criterion; the fill is the share of splits that meet it.

    Args:
        rows: With `panel`, `place`, `criterion`, `share` (None where nothing can be said) and `counts`.
        criteria: In the order of the columns.
    """
    if not rows:
        return _spec(placeholder(NEEDS["dots"]))
    order = list(dict.fromkeys(row["place"] for row in rows))
    x = alt.X("criterion:N", title=None, sort=list(criteria), axis=alt.Axis(labelAngle=0, ticks=False))
    y = alt.Y("place:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False, labelLimit=220))
    tooltip = [
        alt.Tooltip("place:N", title="Runs"),
        alt.Tooltip("criterion:N", title="Criterion"),
        alt.Tooltip("counts:N", title="Splits that meet it"),
    ]
    base = alt.Chart().encode(x=x, y=y, tooltip=tooltip)
    green, red = "#009E73", "#D55E00"
    known = base.transform_filter("datum.share !== null")
    ink = alt.condition("datum.share >= 0.5", alt.value(green), alt.value(red))
    layers = [
        known.mark_point(size=190, filled=True, shape="circle", strokeWidth=1.6).encode(
            color=alt.value(green),
            opacity=alt.Opacity("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0, 1])),
        ),
        known.mark_point(size=190, filled=False, shape="circle", strokeWidth=1.6).encode(color=ink),
        base.transform_filter("datum.share === null").mark_point(
            size=60, shape="cross", style="reference", filled=True
        ),
    ]
    return _spec(panels(layers, rows, columns=1, height=alt.Step(BAND)))


def gap(rows: Sequence[Row]) -> Spec:
    """Fine-tuning minus kernel by task, with a prompt and with a standard head.

    Args:
        rows: With `panel`, `place`, `output`, `value`, `low` and `high` (None without an interval), shares.
    """
    if not rows or not any(row["output"] == "standard" for row in rows):
        return _spec(placeholder(NEEDS["gap"]))
    outputs = ["prompt", "standard"]
    order = list(dict.fromkeys(row["place"] for row in rows))
    axis = alt.Axis(labelExpr="format(100 * datum.value, '.0f')", tickCount=6, grid=True)
    title = "Fine-tuning − kernel, points"
    y = alt.Y("place:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False))
    offset = alt.YOffset("output:N", scale=alt.Scale(domain=outputs, paddingOuter=0.3))
    base = alt.Chart().encode(
        y=y,
        yOffset=offset,
        color=alt.Color(
            "output:N", title=None, scale=alt.Scale(domain=outputs), legend=alt.Legend(orient="top")
        ),
    )
    tooltip = [
        alt.Tooltip("place:N", title="Runs"),
        alt.Tooltip("output:N", title="Output"),
        alt.Tooltip("value:Q", title="Fine-tuning − kernel", format=".1%"),
        alt.Tooltip("low:Q", title="95 % interval, low", format=".1%"),
        alt.Tooltip("high:Q", title="95 % interval, high", format=".1%"),
    ]
    layers = [
        base.mark_bar(size=9, opacity=0.8).encode(
            x=alt.X("value:Q", title=title, axis=axis), tooltip=tooltip
        ),
        base.mark_rule(strokeWidth=1.6).encode(
            x=alt.X("low:Q", title=title, axis=axis), x2="high:Q", tooltip=tooltip
        ),
    ]
    return _spec(panels(layers, rows, height=alt.Step(34, **{"for": "position"})))


def linearised(rows: Sequence[Row]) -> Spec:
    """Pretrained, linearised and fine-tuned model: median and range over splits, one panel an arm and k.

    Args:
        rows: With `panel`, `place`, `stage` (one of `STAGES`), `median`, `low` and `high`, shares.
    """
    if not rows:
        return _spec(placeholder(NEEDS["linearised"]))
    stages = list(STAGES)
    order = list(dict.fromkeys(row["place"] for row in rows))
    axis = alt.Axis(labelExpr=per_cent(".0f"), tickCount=5, grid=True)
    title = "Test score"
    base = alt.Chart().encode(
        y=alt.Y("place:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False)),
        yOffset=alt.YOffset("stage:N", scale=alt.Scale(domain=stages, paddingOuter=0.3)),
        color=alt.Color(
            "stage:N", title=None, scale=alt.Scale(domain=stages), legend=alt.Legend(orient="top")
        ),
    )
    tooltip = [
        alt.Tooltip("place:N", title="Task"),
        alt.Tooltip("stage:N", title="Model"),
        alt.Tooltip("median:Q", title="Median", format=".1%"),
        alt.Tooltip("low:Q", title="Least", format=".1%"),
        alt.Tooltip("high:Q", title="Most", format=".1%"),
    ]
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.5).encode(
            x=alt.X("low:Q", title=title, axis=axis, scale=alt.Scale(zero=False)), x2="high:Q"
        ),
        base.mark_point(filled=True, size=64, opacity=1).encode(
            x=alt.X("median:Q", title=title, axis=axis, scale=alt.Scale(zero=False)),
            shape=alt.Shape("stage:N", legend=None, scale=alt.Scale(domain=stages)),
            tooltip=tooltip,
        ),
    ]
    return _spec(panels(layers, rows, height=alt.Step(46, **{"for": "position"})))


def _spec(chart: Any) -> Spec:
    spec: Spec = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec

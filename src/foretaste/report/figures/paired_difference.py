"""Forest plot of arm minus reference."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import amount_label, arms_of, panel_namer
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.metrics import METRICS
from foretaste.report.rows import records_of

NEEDS = "two arms with completed runs of equal seeds"
SHOWN = ("clean_accuracy", "asr_minus_flip")  # harm to the task, and what the trigger gains


@figure(
    "paired_difference",
    title="Arm against arm",
    caption="Mean difference to the reference arm over runs with equal seeds, with its 95 % t interval; "
    "filled where Holm's p "
    "is at most 0.05, hollow where no difference is shown.",
    needs=NEEDS,
)
def paired_difference(frames: Frames, over: Over) -> Chart:
    """Differences with intervals, one panel an attack and metric, one line a cell."""
    rows = _rows(frames, over)
    if not rows:
        return placeholder(NEEDS)
    arms = arms_of(frames)
    order = list(dict.fromkeys(row["cell"] for row in sorted(rows, key=lambda row: row["order"])))
    y = alt.Y(
        "cell:N", title=None, sort=order, axis=alt.Axis(grid=False, labelLimit=150, ticks=False, domain=False)
    )
    title = "Difference, percentage points"
    x = alt.X(
        "mean:Q",
        title=title,
        axis=alt.Axis(format="+.1~f", tickCount=5),
        scale=alt.Scale(padding=14, nice=False),
    )
    colour = arm_colour(arms, drawn=[arm for arm in arms if any(row["arm"] == arm for row in rows)])
    base = alt.Chart().encode(y=y, color=colour)
    zero = alt.Chart().mark_rule(style="reference").encode(x=alt.datum(0))
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("reference:N", title="Reference"),
        alt.Tooltip("amount:N", title="Poison"),
        alt.Tooltip("mean:Q", title="Mean difference", format="+.1f"),
        alt.Tooltip("median:Q", title="Median", format="+.1f"),
        alt.Tooltip("low:Q", title="95 % interval, low", format="+.1f"),
        alt.Tooltip("high:Q", title="95 % interval, high", format="+.1f"),
        alt.Tooltip("n:Q", title="Pairs of seeds"),
        alt.Tooltip("p_holm:Q", title="Holm p", format=".3f"),
        alt.Tooltip("verdict:N", title="Result"),
    ]
    dots = base.mark_point(size=62, opacity=1, strokeWidth=1.8)
    hollow = dots.transform_filter("!datum.resolved").encode(
        x=x, fill=alt.value("transparent"), tooltip=tooltip
    )
    filled = dots.transform_filter("datum.resolved").encode(
        x=x, fill=alt.Fill("arm:N", legend=None, scale=alt.Scale(domain=arms)), tooltip=tooltip
    )
    chart = panels([zero, bars, hollow, filled], rows, height=alt.Step(20))
    resolved: Chart = chart.resolve_scale(y="independent", x="independent")
    return resolved


def _rows(frames: Frames, over: Over) -> list[Row]:
    name = panel_namer(frames)
    rows = []
    for metric in SHOWN:
        for row in records_of(frames.pairs):
            if row["metric"] != metric or row["mean"] is None:
                continue
            amount = "clean" if row["amount"] == "clean" else _amount(row, over)
            scaled = {key: _points(row[key]) for key in ("mean", "median", "low", "high")}
            kept = {key: row[key] for key in ("arm", "reference", "amount", "n", "p_holm", "verdict")}
            rows.append(
                {
                    **kept,
                    **scaled,
                    "panel": name(row, METRICS[metric].label),
                    "cell": f"{amount} · {row['arm']}",
                    "order": (row[over] if row[over] is not None else 0.0),
                    "resolved": row["verdict"] in ("higher", "lower"),
                }
            )
    return rows


def _amount(row: Row, over: Over) -> str:
    value = row[over]
    return str(row["amount"]) if value is None else amount_label(float(value), over)


def _points(share: float | None) -> float | None:
    return None if share is None else share * 100

"""Training loss of every run."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import arms_of, panel_namer
from foretaste.report.figures.base import Chart, Over, arm_colour, figure, panels, placeholder
from foretaste.report.observations import CLEAN
from foretaste.report.rows import records_of

NEEDS = "runs that recorded their training loss"


@figure(
    "loss_curves",
    title="Training loss",
    caption="Training loss of every run, averaged over bins of consecutive steps; dashed where the run did "
    "not complete.",
    needs=NEEDS,
    amounts=False,
)
def loss_curves(frames: Frames, _over: Over) -> Chart:
    """Loss over steps, one thin line a run, one panel an attack."""
    names = panel_namer(frames)
    runs = {(row["folder"], row["run_id"]): row for row in records_of(frames.runs)}
    rows = [
        {
            **{key: row[key] for key in ("arm", "run", "run_id", "status", "loss")},
            "step": round(row["step"], 1),
            "panel": names(runs[row["folder"], row["run_id"]]),
        }
        for row in sorted(records_of(frames.losses), key=lambda row: (row["attack"] != CLEAN, row["attack"]))
        if row["loss"] is not None
    ]
    if not rows:
        return placeholder(NEEDS)
    dash = alt.condition("datum.status == 'completed'", alt.value([1, 0]), alt.value([4, 3]))
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.1, opacity=0.5)
        .encode(
            x=alt.X("step:Q", title="Optimiser step", axis=alt.Axis(tickCount=5, format="~s", grid=False)),
            y=alt.Y("loss:Q", title="Training loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
            color=arm_colour(arms_of(frames)),
            strokeDash=dash,
            detail="run_id:N",
            tooltip=[alt.Tooltip("run:N", title="Run"), alt.Tooltip("status:N", title="Status")],
        )
    )
    return panels([lines], rows, columns=3, height=170)

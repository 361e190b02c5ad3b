"""ASR of each poisoned run against the flip rate of its clean partner."""

from __future__ import annotations

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import arms_of, panel_namer, share_axis, share_domain
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.rows import records_of

NEEDS = "a poisoned run with a trigger and the clean run with the same seeds"


@figure(
    "asr_against_flip",
    title="Is it the poison?",
    caption="Every poisoned run: ASR against the flip rate of the clean run with the same seeds; "
    "on the dashed line the attack added nothing.",
    needs=NEEDS,
    amounts=False,
)
def asr_against_flip(frames: Frames, _over: Over) -> Chart:
    """Scatter of ASR over flip rate with the diagonal, one panel an attack."""
    points = _points(frames)
    if not points:
        return placeholder(NEEDS)
    flips = share_domain([row["flip"] for row in points], zero=True)
    domain = share_domain([row["asr"] for row in points], zero=True)
    end = min(flips[1], domain[1])
    line: list[Row] = [
        {"panel": panel, "layer": "diagonal", "flip": place, "asr": place}
        for panel in dict.fromkeys(row["panel"] for row in points)
        for place in (0.0, end)
    ]
    x = alt.X(
        "flip:Q",
        title="Flip rate of the clean run",
        axis=alt.Axis(format=".0%", tickCount=5),
        scale=alt.Scale(domain=list(flips), nice=False),
    )
    y = share_axis("asr", "ASR of the poisoned run", domain)
    diagonal = (
        alt.Chart()
        .transform_filter("datum.layer == 'diagonal'")
        .mark_line(style="reference")
        .encode(x=x, y=y)
    )
    dots = alt.Chart().transform_filter("datum.layer == 'run'").mark_point(size=46, filled=True, opacity=0.75)
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("amount:N", title="Poison"),
        alt.Tooltip("seed:N", title="Seed"),
        alt.Tooltip("asr:Q", title="ASR", format=".1%"),
        alt.Tooltip("flip:Q", title="Flip rate", format=".1%"),
    ]
    arms = arms_of(frames)
    shape = alt.Shape("arm:N", title=None, scale=alt.Scale(domain=arms), legend=alt.Legend(orient="top"))
    dots = dots.encode(x=x, y=y, color=arm_colour(arms), shape=shape, tooltip=tooltip)
    return panels([diagonal, dots], [*line, *points])


def _points(frames: Frames) -> list[Row]:
    name = panel_namer(frames)
    runs: dict[tuple[str, str, str], Row] = {}
    for row in records_of(frames.values):
        if row["metric"] in ("asr", "flip_rate") and row["amount"] != "clean" and row["value"] is not None:
            key = (row["folder"], row["run_id"], row["attack"])
            kept = {key: row[key] for key in ("arm", "amount", "seed")}
            point = runs.setdefault(key, {**kept, "panel": name(row), "layer": "run"})
            point["asr" if row["metric"] == "asr" else "flip"] = row["value"]
    return [row for row in runs.values() if "asr" in row and "flip" in row]

"""Lines over the amount of poison: shared by the figures of accuracy and of attack success."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import (
    amount_axis,
    arms_of,
    panel_namer,
    placed,
    share_axis,
    share_domain,
    share_scale,
    spread,
)
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, panels
from foretaste.report.metrics import METRICS
from foretaste.report.observations import CLEAN
from foretaste.report.rows import records_of

LABELLED_ARMS = 6  # more lines than this get a legend instead of labels at their ends


def curves(
    frames: Frames, over: Over, *, metric: str, at_zero: str, baseline: str | None, zero: bool
) -> Chart | None:
    """Mean of a metric over the amount of poison, with interval, single runs and labels at the line ends.

    Args:
        frames: The report's tables.
        over: Column of the x axis.
        metric: What is drawn for poisoned runs.
        at_zero: What is drawn for clean runs.
        baseline: A second metric as a dashed line, or None.
        zero: The y axis includes 0.

    Returns:
        None when no run has the metric.
    """
    means = _means(frames, over, metric, at_zero)
    predicted = _predicted(frames, over, metric)
    if not means and not predicted:
        return None
    runs = _runs(frames, over, metric, at_zero)
    second = _means(frames, over, baseline, baseline) if baseline else []
    drawn = [row["value"] for row in (*means, *runs, *second, *predicted)]
    # An interval may leave 0..1, where no share can be: the band is cut there, the tables have it whole.
    # Beside measured lines the bands of both would cover each other; the scatter of cells has the intervals.
    banded = means or predicted
    ends = [min(1.0, max(0.0, row[end])) for row in banded for end in ("low", "high") if row[end] is not None]
    domain = share_domain([*drawn, *ends], zero=zero)
    arms = arms_of(frames)
    labels = _labels(means or predicted, domain) if len(arms) <= LABELLED_ARMS else []
    rows = [
        *({**row, "layer": "mean"} for row in means),
        *({**row, "layer": "run"} for row in runs),
        *({**row, "layer": "baseline"} for row in second),
        *({**row, "layer": "predicted", "banded": not means} for row in predicted),
        *({**row, "layer": "label"} for row in labels),
    ]
    x = amount_axis([*means, *predicted], over)
    layers = _layers(x, METRICS[metric].label, domain, arms, labelled=bool(labels))
    return panels(layers, rows, own_x=True)


def _means(frames: Frames, over: Over, metric: str, at_zero: str) -> list[Row]:
    name = panel_namer(frames)
    rows = []
    for row in records_of(frames.summaries):
        wanted = at_zero if row["amount"] == "clean" else metric
        if row["metric"] == wanted and row["mean"] is not None and row[over] is not None:
            kept = ("arm", "amount", "n", "runs", "collapsed", "median", "low", "high")
            shown = {key: row[key] for key in kept} | {
                "value": row["mean"],
                "rate": row["rate"],
                "count": row["count"],
            }
            rows.append(placed({**shown, "panel": name(row), "failed": row["runs"] - row["completed"]}, over))
    return rows


def _predicted(frames: Frames, over: Over, metric: str) -> list[Row]:
    """The predicted line with its 90 % interval: the clean prediction stands under every attack, at 0."""
    name = panel_namer(frames)
    rows: list[Row] = []
    starts: dict[tuple[str, str], Row] = {}
    for row in records_of(frames.predicted):
        if row[over] is None:
            continue
        values = _told(row, metric)
        attacks = [row["attack"]] if row["attack"] != CLEAN else _attacks(frames, row)
        common = {key: row[key] for key in ("arm", "amount", "validity", "rate", "count")} | values
        if values["value"] is not None:
            rows += [placed({**common, "panel": name({**row, "attack": a})}, over) for a in attacks]
        if metric == "asr" and row["attack"] != CLEAN and row["flip_rate"] is not None:
            at_zero = {"amount": CLEAN, "rate": 0.0, "count": 0.0, "low": None, "high": None}
            start = {**common, **at_zero, "value": row["flip_rate"], "panel": name(row)}
            starts.setdefault((name(row), row["arm"]), placed(start, over))
    return sorted([*starts.values(), *rows], key=lambda row: float(row["x"]))


def _told(row: Row, metric: str) -> Row:
    field = "asr" if metric == "asr" else "accuracy"
    return {"value": row[field], "low": row[f"{field}_low"], "high": row[f"{field}_high"]}


def _attacks(frames: Frames, clean: Row) -> list[str]:
    """Attacks that were predicted for the task of a clean cell; without any, the clean runs' own panel."""
    same = [
        row["attack"]
        for row in records_of(frames.predicted)
        if row["attack"] != CLEAN and all(row[key] == clean[key] for key in ("folder", "model", "data"))
    ]
    return list(dict.fromkeys(same)) or [CLEAN]


def _runs(frames: Frames, over: Over, metric: str, at_zero: str) -> list[Row]:
    name = panel_namer(frames)
    rows = []
    for row in records_of(frames.values):
        wanted = at_zero if row["amount"] == "clean" else metric
        if row["metric"] == wanted and row["value"] is not None and row[over] is not None:
            kept = ("arm", "amount", "seed", "value", "rate", "count")
            state = "collapsed" if row["collapsed"] else "run"
            rows.append(placed({**{key: row[key] for key in kept}, "panel": name(row), "state": state}, over))
    return rows


def _labels(means: Sequence[Row], domain: tuple[float, float]) -> list[Row]:
    """One label an arm and panel, at the arm's last amount."""
    last: dict[tuple[str, str], Row] = {}
    for row in means:
        key = (row["panel"], row["arm"])
        if key not in last or row["x"] > last[key]["x"]:
            last[key] = row
    labels: list[Row] = []
    for panel in dict.fromkeys(panel for panel, _ in last):
        ends = [row for (where, _), row in last.items() if where == panel]
        heights = spread([row["value"] for row in ends], domain)
        labels += [{**row, "label_y": height} for row, height in zip(ends, heights, strict=True)]
    return labels


def _layers(
    x: alt.X, title: str, domain: tuple[float, float], arms: Sequence[str], *, labelled: bool
) -> list[alt.Chart]:
    colour = arm_colour(arms, legend=not labelled)
    y = share_axis("value", title, domain)
    base = alt.Chart().encode(x=x, color=colour)
    mean = base.transform_filter("datum.layer == 'mean'")
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("amount:N", title="Poison"),
        alt.Tooltip("value:Q", title=f"{title}, mean", format=".1%"),
        alt.Tooltip("low:Q", title="95 % interval, low", format=".1%"),
        alt.Tooltip("high:Q", title="95 % interval, high", format=".1%"),
        alt.Tooltip("median:Q", title="Median", format=".1%"),
        alt.Tooltip("n:Q", title="Seeds"),
        alt.Tooltip("collapsed:Q", title="Collapsed runs"),
        alt.Tooltip("failed:Q", title="Failed runs"),
    ]
    run_tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("amount:N", title="Poison"),
        alt.Tooltip("seed:N", title="Seed"),
        alt.Tooltip("value:Q", title=title, format=".1%"),
        alt.Tooltip("state:N", title="State"),
    ]
    predicted = base.transform_filter("datum.layer == 'predicted'")
    predicted_tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("amount:N", title="Poison"),
        alt.Tooltip("value:Q", title=f"{title}, predicted", format=".1%"),
        alt.Tooltip("low:Q", title="90 % interval, low", format=".1%"),
        alt.Tooltip("high:Q", title="90 % interval, high", format=".1%"),
        alt.Tooltip("validity:N", title="Prediction"),
    ]
    shape = alt.Shape(
        "state:N", legend=None, scale=alt.Scale(domain=["run", "collapsed"], range=["circle", "cross"])
    )
    scale = share_scale(domain)
    layers = [
        mean.mark_area(opacity=0.13, clip=True).encode(
            y=alt.Y("low:Q", scale=scale, title=title), y2=alt.Y2("high:Q")
        ),
        base.transform_filter("datum.layer == 'baseline'")
        .mark_line(strokeDash=[3, 3], strokeWidth=1.4, opacity=0.85)
        .encode(y=y),
        base.transform_filter("datum.layer == 'run'")
        .mark_point(size=22, filled=True, opacity=0.38)
        .encode(y=y, shape=shape, tooltip=run_tooltip),
        predicted.transform_filter("datum.banded")
        .mark_area(opacity=0.13, clip=True)
        .encode(y=alt.Y("low:Q", scale=scale, title=title), y2=alt.Y2("high:Q")),
        predicted.mark_line(strokeDash=[8, 5], strokeWidth=1.6).encode(y=y, tooltip=predicted_tooltip),
        mean.mark_line(strokeWidth=2.2).encode(y=y),
        mean.mark_point(size=52, filled=True, opacity=1).encode(y=y, tooltip=tooltip),
    ]
    if labelled:
        layers.append(
            base.transform_filter("datum.layer == 'label'")
            .mark_text(align="left", dx=10, fontSize=11.5, fontWeight=600, limit=96)
            .encode(y=alt.Y("label_y:Q", scale=scale), text="arm:N")
        )
    return layers

"""The TTR paper's Figure 3, as it is printed and as it should be.

Not in `FIGURES`: those are drawn from the records of runs, these from the points of a formula or a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import altair as alt

from foretaste.report.figures.base import inline, panels
from foretaste.theory.entropy_surface import DEFAULT_K, LEAST_RANK, MOST_RANK, ORDERS, Form, Point, Source

Row = dict[str, Any]
SYMBOLS = {"0.5": "½", "1": "1", "2": "2", "inf": "∞"}
# Black, red, yellow and white where matplotlib's "hot", which the script uses, has them.
HOT = (("#0B0000", 0.0), ("#FF0000", 0.365), ("#FFFF00", 0.746), ("#FFFFFF", 1.0))
DEFAULT_LINE = "#D62728"
OVERLAP = 0.02
"""How far a cell reaches below the next one, so that no ground shows between them."""
LABELLED_K = (0.0, 2.0)
"""Limits that the script gives the axis of k, whose data are 0.01 .. 1.5; those of r fit its data."""
PANEL = {"width": 178, "height": 170}
TICKS_R = [1, 4, 16, 64, 256]
TICKS_K = [0.01, 0.03, 0.1, 1 / 3, 1]


def as_printed(points: Sequence[Point]) -> dict[str, Any]:
    """What the released script draws, left where the figure's axes say that it is, right where it is.

    The script lays cells of geometric grids evenly on linear limits: the label r = 128 stands at r = 31, the
    line k = 1/3 at k = 0.023.
    """
    drawn = [p for p in points if p.source == "printed"]
    low, high = min(p.value for p in drawn), max(p.value for p in drawn)
    scale = alt.Scale(
        domain=[low + share * (high - low) for _, share in HOT],
        range=[colour for colour, _ in HOT],
        interpolate="rgb",
    )
    legend = _legend("~e", length=210)
    true_cells = _cells(drawn)
    rs, ks = (sorted({row[name] for row in true_cells}) for name in ("r", "k"))
    misplaced = [
        {
            **row,
            **_even("r", rs.index(row["r"]), len(rs), LEAST_RANK, MOST_RANK),
            **_even("k", ks.index(row["k"]), len(ks), *LABELLED_K),
        }
        for row in true_cells
    ]
    ticks = [LEAST_RANK, 8, 16, 32, 64, 128, MOST_RANK]
    size = {"width": 300, "height": 210}
    left = _heat(
        misplaced,
        _rank_axis(misplaced, ticks, title="r as labelled"),
        alt.Y(
            "k_low:Q",
            title="k as labelled",
            scale=alt.Scale(domain=list(LABELLED_K), nice=False),
            axis=alt.Axis(values=[0, 0.5, 1, 1.5, 2], format=".1f", labelFlush=True),
        ),
        scale,
        legend,
        "As printed",
        "1e10 · log(k r), called Shannon entropy",
        size,
    )
    right = _heat(
        true_cells,
        _rank_axis(true_cells, ticks),
        _variance_axis(true_cells),
        scale,
        legend,
        "The same numbers on true axes",
        "log of the trace times 1e10: no entropy",
        size,
    )
    return _spec(alt.hconcat(left, right, spacing=96, bounds="flush"))


def surface(points: Sequence[Point], source: Source) -> dict[str, Any]:
    """Raw and normalised entropies over rank and variance, a panel an order.

    Args:
        points: Those of other sources, and those at peft's variance alone, are left out.
        source: `formula` or `model`.
    """
    chosen = [p for p in points if p.source == source and p.k != DEFAULT_K]
    return _spec(alt.vconcat(*(_one_form(chosen, form) for form in ("raw", "normalised")), spacing=30))


def _one_form(points: Sequence[Point], form: Form) -> alt.HConcatChart:
    charts = []
    values = [p.value for p in points if p.form == form]
    for number, order in enumerate(ORDERS):
        cells = _cells([p for p in points if p.form == form and p.order == order])
        # The normalised entropies have one unit and one range: one scale lets panels be compared.
        domain = [min(values), max(values)] if form == "normalised" else alt.Undefined
        legend = None if form == "normalised" and number + 1 < len(ORDERS) else _legend("~f")
        # The raw Shannon sum reaches far below 0 at large k: a linear scale would show nothing else.
        bent = (form, order) == ("raw", "1")
        scale = alt.Scale(scheme="viridis", domain=domain, type="symlog" if bent else alt.Undefined)
        charts.append(
            _heat(
                cells,
                _rank_axis(cells, [r for r in TICKS_R if cells[0]["r_low"] <= r <= cells[-1]["r_high"]]),
                _variance_axis(cells, titled=number == 0),
                scale,
                legend,
                _name(form, order),
                "",
                PANEL,
            )
        )
    row: alt.HConcatChart = alt.hconcat(*charts, spacing=72, bounds="flush")
    found: alt.HConcatChart = row.resolve_scale(color="independent")
    return found


def over_rank(points: Sequence[Point]) -> dict[str, Any]:
    """Entropies over the rank at peft's variance: formula and draws, and a model's kernel beside its mean."""
    titles: dict[Source, str] = {
        "formula": "random A",
        "sampled": "random A",
        "model": "the model's kernel",
        "expected": "the model's kernel",
    }
    marks = {"formula": "line", "sampled": "dot", "model": "dot", "expected": "dash"}
    rows: list[Row] = [
        {
            "panel": f"{_group(p)}, {titles[p.source]}",
            "mark": marks[p.source],
            "order": f"α = {SYMBOLS[p.order]}",
            "r": p.r,
            "value": p.value,
        }
        for p in points
        if p.k == DEFAULT_K
    ]
    groups = ("Normalised", "Raw Rényi", "Raw Shannon sum")
    rows.sort(key=lambda row: (row["panel"].endswith("kernel"), groups.index(row["panel"].partition(",")[0])))
    base = alt.Chart().encode(
        x=alt.X(
            "r:Q",
            title="Rank r",
            scale=alt.Scale(type="log", base=2, nice=False, padding=10),
            axis=alt.Axis(values=[2**power for power in range(9)], format="d", grid=False),
        ),
        y=alt.Y(
            "value:Q",
            title="Entropy",
            scale=alt.Scale(zero=False),
            axis=alt.Axis(tickCount=5, labelFlush=True),
        ),
        color=alt.Color(
            "order:N",
            title=None,
            scale=alt.Scale(domain=[f"α = {symbol}" for symbol in SYMBOLS.values()]),
            legend=alt.Legend(orient="top", symbolType="circle", symbolOpacity=1.0),
        ),
    )
    layers = [
        base.mark_line(strokeWidth=1.6).transform_filter("datum.mark == 'line'"),
        base.mark_line(strokeWidth=1.4, strokeDash=[5, 4]).transform_filter("datum.mark == 'dash'"),
        base.mark_point(filled=True, size=34, opacity=0.75).transform_filter("datum.mark == 'dot'"),
    ]
    spec = _spec(panels(layers, rows, columns=3).resolve_scale(y="independent", x="independent"))
    spec["spec"]["width"] = 262  # three in a row on the page
    spec |= {"bounds": "flush", "spacing": {"row": 104, "column": 78}}  # panels stand in line
    return spec


# --- pieces --------------------------------------------------------------------------------------


def _group(point: Point) -> str:
    if point.form == "normalised":
        return "Normalised"
    return "Raw Shannon sum" if point.order == "1" else "Raw Rényi"


def _name(form: Form, order: str) -> str:
    if (form, order) == ("raw", "1"):
        return "Raw Shannon, −Σ λ log λ"
    return f"{form.capitalize()}, α = {SYMBOLS[order]}"


def _heat(
    cells: Sequence[Row],
    x: alt.X,
    y: alt.Y,
    scale: alt.Scale,
    legend: alt.Legend | None,
    title: str,
    subtitle: str,
    size: dict[str, int],
) -> alt.LayerChart | alt.FacetChart:
    rect = (
        alt.Chart(inline(cells))
        .mark_rect(clip=True)
        .encode(
            x=x,
            x2="r_high",
            y=y,
            y2="k_high",
            color=alt.Color("value:Q", title=None, scale=scale, legend=legend),
            tooltip=[
                alt.Tooltip("r:Q", title="r", format=".4~g"),
                alt.Tooltip("k:Q", title="k", format=".3~g"),
                alt.Tooltip("value:Q", title="value", format=".4~g"),
            ],
        )
    )
    at = alt.Chart(inline([{"k": DEFAULT_K}])).encode(y="k:Q")
    # White under the red: on black, red and yellow alike the line is seen.
    lines = (
        at.mark_rule(color="white", strokeWidth=2.8, opacity=0.8),
        at.mark_rule(color=DEFAULT_LINE, strokeDash=[6, 4], strokeWidth=1.8),
    )
    heading = alt.TitleParams(
        title, subtitle=subtitle or alt.Undefined, anchor="start", fontSize=12.5, offset=8
    )
    return alt.layer(rect, *lines).properties(title=heading, **size)


def _legend(form: str, length: int = 150) -> alt.Legend:
    return alt.Legend(
        type="gradient",
        orient="right",
        gradientLength=length,
        gradientThickness=9,
        format=form,
        offset=8,
        tickCount=4,
    )


def _rank_axis(cells: Sequence[Row], ticks: Sequence[int], *, title: str = "Rank r") -> alt.X:
    ends = [min(row["r_low"] for row in cells), max(row["r_high"] for row in cells)]
    return alt.X(
        "r_low:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, domain=ends, nice=False),
        axis=alt.Axis(values=list(ticks), format="d", grid=False),
    )


def _variance_axis(cells: Sequence[Row], *, titled: bool = True) -> alt.Y:
    ends = [min(row["k_low"] for row in cells), max(row["k_high"] for row in cells)]
    label = "abs(datum.value - 1/3) < 1e-9 ? '1/3' : format(datum.value, '~g')"
    return alt.Y(
        "k_low:Q",
        title="k, variance of A times n" if titled else None,
        scale=alt.Scale(type="log", domain=ends, nice=False),
        axis=alt.Axis(values=TICKS_K, labelExpr=label, grid=False, labels=titled),
    )


def _cells(points: Sequence[Point]) -> list[Row]:
    """Every point with the borders of its cell: half way to its neighbours on a logarithmic axis."""
    rs, ks = sorted({p.r for p in points}), sorted({p.k for p in points})
    borders_r, borders_k = _borders(rs), _borders(ks)
    return [
        {
            **{"r": p.r, "k": p.k, "value": p.value},
            **{"r_low": borders_r[p.r][0], "r_high": borders_r[p.r][1] * (1 + OVERLAP)},
            **{"k_low": borders_k[p.k][0], "k_high": borders_k[p.k][1] * (1 + OVERLAP)},
        }
        for p in sorted(points, key=lambda p: (p.r, p.k))
    ]


def _borders(values: Sequence[float]) -> dict[float, tuple[float, float]]:
    inner = [math.sqrt(a * b) for a, b in pairwise(values)]
    first = values[0] ** 2 / inner[0] if inner else values[0] / math.sqrt(2)
    last = values[-1] ** 2 / inner[-1] if inner else values[0] * math.sqrt(2)
    return dict(zip(values, pairwise([first, *inner, last]), strict=True))


def _even(name: str, place: int, count: int, low: float, high: float) -> Row:
    step = (high - low) / count
    # Half a cell below the next one: on the logarithmic axis of r the last cells are a few pixels wide.
    reach = min(place + 1.5, count)
    return {f"{name}_low": low + place * step, f"{name}_high": low + reach * step}


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec

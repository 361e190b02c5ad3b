"""How much of the kernel LoRA keeps, by rank and scaling.

Not in `FIGURES`: it is drawn from the record of `foretaste distortion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import altair as alt

from foretaste.report.figures.axes import per_cent, ticked_axis
from foretaste.report.figures.base import Row, panels

Spec = dict[str, Any]
WHAT = {
    "relative_error": "Error of LoRA's kernel",
    "shape_error": "Error that is left at the best scale",
}


def distortion(rows: Sequence[Row]) -> Spec:
    """Error over rank, one line a scaling: mean over draws, and their range.

    Args:
        rows: One for each draw, with `rank`, `scaling`, `relative_error` and `shape_error`, shares of |K|.
    """
    drawn = [row for what, panel in WHAT.items() for row in _over_draws(rows, what, panel)]
    scalings = list(dict.fromkeys(row["scaling"] for row in rows))
    ranks = sorted({row["rank"] for row in rows})
    x = ticked_axis(ranks, "Rank", "format(datum.value, 'd')", logarithm=2)
    axis = alt.Axis(labelExpr=per_cent(".0f"), tickCount=5, grid=True)
    base = alt.Chart().encode(
        x=x,
        color=alt.Color(
            "scaling:N", title="Scaling", scale=alt.Scale(domain=scalings), legend=alt.Legend(orient="top")
        ),
    )
    title = "Share of the kernel's norm"
    layers = [
        base.mark_area(opacity=0.15, line=False).encode(
            y=alt.Y("low:Q", title=title, axis=axis, stack=False), y2="high:Q"
        ),
        base.mark_line(point=True).encode(
            y=alt.Y("mean:Q", title=title, axis=axis),
            tooltip=[
                alt.Tooltip("scaling:N", title="Scaling"),
                alt.Tooltip("x:Q", title="Rank"),
                alt.Tooltip("mean:Q", title="Mean over draws", format=".1%"),
                alt.Tooltip("low:Q", title="Least", format=".1%"),
                alt.Tooltip("high:Q", title="Most", format=".1%"),
            ],
        ),
    ]
    spec: Spec = panels(layers, drawn).to_dict(validate=False)
    spec.pop("config", None)
    return spec


def _over_draws(rows: Sequence[Row], what: str, panel: str) -> list[Row]:
    def cell(row: Row) -> tuple[str, int]:
        return row["scaling"], row["rank"]

    found = []
    for (scaling, rank), group in groupby(sorted(rows, key=cell), key=cell):
        values = [row[what] for row in group]
        found.append(
            {
                "panel": panel,
                "scaling": scaling,
                "x": rank,
                "mean": sum(values) / len(values),
                "low": min(values),
                "high": max(values),
            }
        )
    return found

"""How far apart clean and poisoned trainings go: by step, norm and matrix, and beside what was foretold.

Not in `FIGURES`: those are drawn from the records of runs, these from the tables of pairs of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from foretaste.calibration.places import arm_order
from foretaste.report.figures.base import PANEL_HEIGHT, Row, arm_colour, inline, panels
from foretaste.report.rows import records_of

NORMS = {
    "frobenius": "Frobenius",
    "spectral": "Spectral",
    "nuclear": "Nuclear",
    "max_abs": "Largest entry",
}
MOMENTS = {"first": "step 1", "last": "last step"}
FORETELLERS = {"m_prime_fro": "M′ (Eq. 7)", "foretold_step": "one step (T13) × learning rate"}
LABELLED_MATRICES = 60
CELL_PIXELS, THIN_PIXELS = 13, 5


def cell_name(row: Row) -> str:
    """Attack and amount, as panels and sections are called."""
    return f"{row['attack']} {row['amount']}"


def over_steps(moments: pd.DataFrame, columns: dict[str, str], *, logarithmic: bool) -> dict[str, Any]:
    """Lines over the steps, a panel for each attack with its amount and each column.

    Args:
        moments: From a table of pairs and steps; step 0 is left out, and so is what has no logarithm.
        columns: Columns to draw and what to call them; one alone is not named.
        logarithmic: Whether the values are drawn on a logarithmic axis; steps always are.
    """
    rows: list[Row] = []
    for column, title in columns.items():
        for (attack, amount, arm, step), group in moments.groupby(
            ["attack", "amount", "arm", "step"], sort=False
        ):
            values = group[column].dropna()
            if step == 0 or not len(values) or (logarithmic and values.min() <= 0):
                continue
            cell = cell_name({"attack": attack, "amount": amount})
            rows.append(
                {
                    "panel": " · ".join([cell, title] if len(columns) > 1 else [cell]),
                    "arm": arm,
                    "step": int(str(step)),
                    "value": float(values.mean()),
                    "low": float(values.min()),
                    "high": float(values.max()),
                    "seeds": len(values),
                }
            )
    order = list(dict.fromkeys(row["panel"] for row in rows))
    rows.sort(key=lambda row: (order.index(row["panel"]), row["step"]))
    arms = arm_order(moments["arm"].tolist())
    ticks = sorted({row["step"] for row in rows})
    y_scale = alt.Scale(type="log", nice=False, padding=6) if logarithmic else alt.Scale(zero=True)
    title = next(iter(columns.values())) if len(columns) == 1 else "Distance"
    x = alt.X(
        "step:Q",
        title="Optimiser steps done",
        axis=alt.Axis(values=ticks, format="~s", labelOverlap=True, grid=False),
        scale=alt.Scale(type="log", base=2, nice=False, padding=8),
    )
    y_axis = alt.Axis(format="~g", tickCount=5)
    base = alt.Chart().encode(x=x, color=arm_colour(arms))
    number = ".3~g"
    layers = [
        base.mark_area(opacity=0.16).encode(
            y=alt.Y("low:Q", title=title, axis=y_axis, scale=y_scale), y2="high:Q"
        ),
        base.mark_line(strokeWidth=2).encode(y=alt.Y("value:Q", title=title, scale=y_scale)),
        base.mark_point(size=34, filled=True, opacity=1).encode(
            y=alt.Y("value:Q", title=title, scale=y_scale),
            shape=alt.Shape("arm:N", legend=None, scale=alt.Scale(domain=arms)),
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("step:Q", title="Step"),
                alt.Tooltip("value:Q", title="Mean over seeds", format=number),
                alt.Tooltip("low:Q", title="Smallest", format=number),
                alt.Tooltip("high:Q", title="Largest", format=number),
                alt.Tooltip("seeds:Q", title="Seeds"),
            ],
        ),
    ]
    return _spec(panels(layers, rows).resolve_scale(y="independent"))


def by_matrix(matrices: pd.DataFrame) -> dict[str, Any]:
    """Relative distance of every matrix at the last step, arms beside each other: a map of the model.

    Args:
        matrices: From a table of pairs, steps and matrices.
    """
    last = matrices[matrices["step"] == matrices.groupby("pair")["step"].transform("max")]
    keys = ["attack", "amount", "arm", "matrix"]
    means = last.groupby(keys, sort=False)["relative"].agg(["mean", "count"]).reset_index()
    rows = [
        {
            "panel": cell_name(row),
            "arm": row["arm"],
            "matrix": row["matrix"],
            "relative": row["mean"],
            "seeds": row["count"],
        }
        for row in records_of(means)
        if row["mean"] is not None
    ]
    names = list(dict.fromkeys(row["matrix"] for row in rows))
    arms = arm_order(row["arm"] for row in rows)
    labelled = len(names) <= LABELLED_MATRICES
    chart = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X(
                "arm:N", title=None, sort=arms, axis=alt.Axis(labelAngle=0, ticks=False, labelOverlap=False)
            ),
            y=alt.Y(
                "matrix:N",
                title=None if labelled else f"{len(names)} matrices, first to last",
                sort=names,
                axis=alt.Axis(labels=labelled, ticks=False, labelLimit=330, labelFontSize=10, domain=False),
            ),
            color=alt.Color(
                "relative:Q",
                title="Distance / clean update",
                scale=alt.Scale(scheme="viridis"),
                legend=alt.Legend(orient="top", format=".1~f", gradientLength=220),
            ),
            tooltip=[
                alt.Tooltip("matrix:N", title="Matrix"),
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("relative:Q", title="Distance / clean update", format=".3f"),
                alt.Tooltip("seeds:Q", title="Seeds"),
            ],
        )
        .properties(
            width=max(64 * len(arms), 120), height=len(names) * (CELL_PIXELS if labelled else THIN_PIXELS)
        )
    )
    panel_order = list(dict.fromkeys(row["panel"] for row in rows))
    facet = alt.Facet("panel:N", title=None, sort=panel_order)
    return _spec(chart.facet(data=inline(rows), facet=facet, columns=2))


def foretold(pairs: pd.DataFrame) -> dict[str, Any]:
    """Distance of the trained parameters over what the Gram says, by arm: at step 1 and at the last step.

    Args:
        pairs: From a table of pairs; what is not above 0 has no place on logarithmic axes.
    """
    rows: list[Row] = []
    for (attack, amount, arm), group in pairs.groupby(["attack", "amount", "arm"], sort=False):
        for teller, title in FORETELLERS.items():
            for moment, name in MOMENTS.items():
                both = group[[teller, f"{moment}_parameters"]].dropna()
                if not len(both) or both.min().min() <= 0:
                    continue
                told, seen = both[teller], both[f"{moment}_parameters"]
                rows.append(
                    {
                        "panel": f"{cell_name({'attack': attack, 'amount': amount})} · {title}",
                        **{"arm": arm, "moment": name, "seeds": len(both)},
                        **{"told": float(told.mean()), "seen": float(seen.mean())},
                        **{"low": float(seen.min()), "high": float(seen.max())},
                    }
                )
    order = list(dict.fromkeys(row["panel"] for row in rows))
    rows.sort(key=lambda row: order.index(row["panel"]))
    arms = arm_order(pairs["arm"].tolist())
    scale = alt.Scale(type="log", nice=False, padding=14)
    axis = alt.Axis(format="~g", tickCount=4)
    x = alt.X("told:Q", title="Foretold", axis=axis, scale=scale)
    base = alt.Chart().encode(x=x, color=arm_colour(arms))
    shape = alt.Shape(
        "moment:N",
        title=None,
        sort=list(MOMENTS.values()),
        scale=alt.Scale(domain=list(MOMENTS.values()), range=["circle", "square"]),
        legend=alt.Legend(orient="top", symbolStrokeColor="gray", symbolFillColor="gray"),
    )
    title = "Measured, trained parameters"
    layers = [
        base.mark_rule(strokeWidth=1, opacity=0.4).encode(
            y=alt.Y("low:Q", title=title, axis=axis, scale=scale), y2="high:Q"
        ),
        base.mark_point(size=70, filled=True, opacity=0.9).encode(
            y=alt.Y("seen:Q", title=title, scale=scale),
            shape=shape,
            tooltip=[
                alt.Tooltip("arm:N", title="Arm"),
                alt.Tooltip("moment:N", title="At"),
                alt.Tooltip("told:Q", title="Foretold", format=".3~g"),
                alt.Tooltip("seen:Q", title="Measured", format=".3~g"),
                alt.Tooltip("seeds:Q", title="Seeds"),
            ],
        ),
    ]
    chart = panels(layers, rows, height=PANEL_HEIGHT)
    return _spec(chart.resolve_scale(x="independent", y="independent"))


def drawn(moments: pd.DataFrame, columns: Sequence[str]) -> bool:
    """Whether `over_steps` would draw anything."""
    after = moments[moments["step"] > 0] if len(moments) else moments
    return bool(len(after)) and bool(after[list(columns)].notna().any().any())


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec

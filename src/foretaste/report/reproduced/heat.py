"""Learning rate against amount of poison: a panel a method and measure, values as colour and as number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from foretaste.report.figures.base import PANEL_WIDTH, inline
from foretaste.report.reproduced.cells import Cell
from foretaste.report.reproduced.drawn import Drawn, Panel, empty
from foretaste.report.reproduced.item import PROTOCOLS
from foretaste.report.reproduced.measures import MEASURES
from foretaste.report.reproduced.runs import written_rate
from foretaste.report.reproduced.series import Namer, methods, place_on
from foretaste.report.reproduced.view import HeatView, Measure

Row = dict[str, Any]
Domain = tuple[float, float]
DARK_BELOW = 0.62  # share of the scale up to which viridis is dark enough for white text
MARK = "†"
CELL_HEIGHT = 44
CAPTION = (
    "Mean over seeds in per cent, of changes in percentage points; colours have one scale a measure. "
    f"{MARK} marks a cell with a run that failed or collapsed, – one without any value."
)
RESISTANT = (
    "A learning rate at which nothing is learned resists every attack: read a low attack success beside the "
    "accuracy."
)


def draw(cells: Sequence[Cell], view: HeatView) -> Drawn:
    """The figure, and for each attack and measure the learning rate at which each method is best.

    Args:
        cells: In the order of tasks and attacks.
        view: What is drawn of each attack.
    """
    name = methods(cells, "learning_rate")
    protocols = list(dict.fromkeys(cell.first.source.variant for cell in cells))
    found = list(dict.fromkeys((name(cell), cell.first.source.variant) for cell in cells))
    tasks = list(dict.fromkeys(cell.first.source.task for cell in cells))
    panels: list[Panel] = []
    lines: list[str] = []
    for task in tasks:
        for attack, measures in view.measures.items():
            here = [cell for cell in cells if (cell.first.source.task, cell.first.attack) == (task, attack)]
            for measure in measures:
                domain = _domain(here, measure)
                best = []
                for method, variant in found:
                    own = [c for c in here if (name(c), c.first.source.variant) == (method, variant)]
                    who = method if len(protocols) == 1 else f"{method}, {PROTOCOLS[variant]}"
                    title = " · ".join([*([task] if len(tasks) > 1 else []), who, MEASURES[measure].label])
                    panels.append(_panel(title, attack, own, measure, domain))
                    best.append(f"{who} {_best(own, measure)}")
                where = f"{task}, {attack}" if len(tasks) > 1 else attack
                aim = "lowest" if MEASURES[measure].attack else "highest"
                lines.append(f"{MEASURES[measure].label} under {where} is {aim} for {'; for '.join(best)}.")
    if any(MEASURES[measure].attack for measures in view.measures.values() for measure in measures):
        lines.append(RESISTANT)
    amounts = {(cell.first.attack, cell.first.amount.label) for cell in cells}
    rows = max(sum(attack == one for attack, _ in amounts) for one in view.measures)
    size = {"width": PANEL_WIDTH, "height": max(2, rows) * CELL_HEIGHT}
    return Drawn(panels, max(1, len(found)), CAPTION, size, (), lines, one_scale=False)


def series_namer(cells: Sequence[Cell]) -> Namer:
    """The function that names the method of a cell."""
    return methods(cells, "learning_rate")


def _domain(cells: Sequence[Cell], measure: Measure) -> Domain | None:
    known = [cell.summaries[measure]["mean"] for cell in cells if cell.summaries[measure]["n"]]
    return (min(known), max(known)) if known else None


def _panel(title: str, attack: str, cells: Sequence[Cell], measure: Measure, domain: Domain | None) -> Panel:
    # Unpoisoned models have no change and no attack success: their row would be empty throughout.
    shown = [cell for cell in cells if not cell.first.clean or cell.summaries[measure]["n"]]
    if domain is None or not any(cell.summaries[measure]["n"] for cell in shown):
        return empty(title, "a completed run")
    rows = [_row(cell, measure, domain) for cell in shown]
    rates = sorted({row["rate"] for row in rows})
    amounts = list(dict.fromkeys(row["amount"] for row in rows))
    x = alt.X(
        "learning_rate:O",
        title="Learning rate",
        sort=[written_rate(rate) for rate in rates],
        axis=alt.Axis(labelAngle=0, domain=False, ticks=False),
    )
    y = alt.Y(
        "amount:O",
        title=f"{attack}, poison rate",
        sort=amounts[::-1],
        axis=alt.Axis(domain=False, ticks=False),
    )
    base = alt.Chart().encode(x=x, y=y)
    scale = alt.Scale(scheme="viridis", domain=list(domain))
    cell = base.mark_rect(cornerRadius=2).encode(
        color=alt.Color("value:Q", scale=scale, legend=None), tooltip=_tooltip(MEASURES[measure].label)
    )
    # What has no value has no colour: its dash stands on the ground of the page.
    text = base.mark_text(fontSize=12, fontWeight=600).encode(text="text:N")
    layers = [
        cell.transform_filter("datum.ink != 'none'"),
        *(
            text.transform_filter(f"datum.ink == '{ink}'").encode(color=alt.value(ink))
            for ink in ("white", "black")
        ),
        base.mark_text(style="placeholder").encode(text="text:N").transform_filter("datum.ink == 'none'"),
    ]
    chart = alt.layer(*layers).properties(data=inline(rows))
    return Panel(title, chart, chart)


def _row(cell: Cell, measure: Measure, domain: Domain) -> Row:
    found, shown = cell.summaries[measure], MEASURES[measure]
    flagged = MARK if cell.counts.flags else ""
    known = found["n"] > 0
    low, high = domain
    dark = known and found["mean"] < low + DARK_BELOW * (high - low)
    return {
        "learning_rate": written_rate(place_on("learning_rate", cell) or 0.0),
        "rate": place_on("learning_rate", cell),
        "amount": "0" if cell.first.clean else cell.first.amount.label,
        "arm": cell.first.arm,
        "value": found["mean"] if known else None,
        "text": (shown.text(found["mean"]) if known else "–") + flagged,
        "ink": ("white" if dark else "black") if known else "none",
        "sd": f"{100 * found['sd']:.1f} points" if not math.isnan(found["sd"]) else "none: one seed",
        "n": found["n"],
        "failed": cell.counts.failed,
        "collapsed": cell.counts.collapsed,
        "realised": cell.poison or "none",
    }


def _tooltip(label: str) -> list[alt.Tooltip]:
    fields = (("arm", "Arm"), ("learning_rate", "Learning rate"), ("amount", "Poison"), ("text", label))
    counts = (("sd", "Standard deviation"), ("realised", "Poisoned"))
    numbers = (("n", "Seeds"), ("failed", "Failed runs"), ("collapsed", "Collapsed runs"))
    return [
        *(alt.Tooltip(f"{field}:N", title=title) for field, title in (*fields, *counts)),
        *(alt.Tooltip(f"{field}:Q", title=title) for field, title in numbers),
    ]


def _best(cells: Sequence[Cell], measure: Measure) -> str:
    """The best learning rate at each amount, in words; equal ones are named together."""
    sign = -1.0 if MEASURES[measure].attack else 1.0
    groups: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        if cell.summaries[measure]["n"]:
            amount = "no poison" if cell.first.clean else cell.first.amount.label
            at = (sign * cell.summaries[measure]["mean"], place_on("learning_rate", cell) or 0.0)
            groups.setdefault(amount, []).append(at)
    if not groups:
        return "not known: no completed run"
    places: dict[str, list[str]] = {}
    for amount, pairs in groups.items():
        top = max(value for value, _ in pairs)
        rates = " and ".join(written_rate(rate) for value, rate in sorted(pairs) if value == top)
        places.setdefault(rates, []).append(amount)
    if len(places) == 1:
        return f"at {next(iter(places))} throughout"
    return ", ".join(f"at {rates} with {' and '.join(amounts)}" for rates, amounts in places.items())

"""Axes and labels that follow from the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.base import PANEL_HEIGHT, Over, Row
from foretaste.report.observations import CLEAN, arm_order

AMOUNT_TITLES: dict[Over, str] = {
    "rate": "Poison rate (share of eligible rows)",
    "count": "Poisoned training rows",
}
MOST_POSITIONS = 12  # ordinal positions that stay readable in one panel
EVEN_GAPS = 4.0  # largest over smallest gap up to which a linear axis shows every amount apart
LABEL_PIXELS = 13.0


def amount_label(value: float, over: Over) -> str:
    """An amount as a tick label, such as "0", "0.15 %" or "12"."""
    if value == 0:
        return "0"
    return f"{value * 100:.3g} %" if over == "rate" else f"{value:,.4g}"


def amount_axis(rows: Iterable[Row], over: Over) -> alt.X:
    """The axis of amounts: linear when they are evenly spaced, else one position each, else symlog.

    Rates of poison go from 0 over 0.1 % to 40 %: a linear axis hides the small ones and a logarithmic one
    the clean run. The field is `x`, or `x_label` for ordinal positions (see `placed`).
    """
    values = sorted({float(row["x"]) for row in rows})
    gaps = [b - a for a, b in pairwise(values)]
    title = AMOUNT_TITLES[over]
    if len(values) <= MOST_POSITIONS and (not gaps or max(gaps) / min(gaps) > EVEN_GAPS):
        labels = [amount_label(value, over) for value in values]
        return alt.X("x_label:O", title=title, sort=labels, axis=alt.Axis(labelAngle=0, labelOverlap=True))
    form = per_cent(".3~f") if over == "rate" else "format(datum.value, '~s')"
    if len(values) <= MOST_POSITIONS:
        return ticked_axis(values, title, form)
    axis = alt.Axis(labelExpr=form, labelOverlap=True, grid=False)
    smallest = next(value for value in values if value > 0)
    scale = alt.Scale(type="symlog", constant=smallest, nice=False, padding=8)
    return alt.X("x:Q", title=title, axis=axis, scale=scale)


def ticked_axis(
    values: Sequence[float], title: str, form: str, *, logarithm: float | None = None, whole: bool = False
) -> alt.X:
    """An x axis whose ticks are the values that there are.

    Args:
        values: Sorted; above zero for a logarithmic axis.
        title: Of the axis.
        form: Vega expression for a tick's label.
        logarithm: Base of the logarithm; None for a linear axis.
        whole: It reaches over all values, be they drawn in a panel or not.
    """
    axis = alt.Axis(labelExpr=form, labelOverlap="greedy", grid=False, values=list(values))
    domain = [values[0], values[-1]] if whole and values[0] < values[-1] else alt.Undefined
    if logarithm is None:
        scale = alt.Scale(nice=False, zero=False, padding=8, domain=domain)
    else:
        scale = alt.Scale(type="log", base=logarithm, nice=False, padding=8, domain=domain)
    return alt.X("x:Q", title=title, axis=axis, scale=scale)


def placed(row: Row, over: Over) -> Row:
    """The row with its place on the amount axis: `x` and `x_label`."""
    return {**row, "x": row[over], "x_label": amount_label(float(row[over]), over)}


def per_cent(form: str) -> str:
    """A label expression for shares, with the space that the page's texts have."""
    return f"format(100 * datum.value, '{form}') + ' %'"


def share_domain(values: Iterable[float], *, zero: bool = False) -> tuple[float, float]:
    """Limits of an axis of shares: the data with a margin, inside 0..1 unless the data are not."""
    known = list(values)
    low, high = min(known), max(known)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    margin = 0.06 * (high - low) or 0.01
    bottom = low if zero and low == 0.0 else low - margin
    top = high + margin
    return (max(0.0, bottom) if low >= 0 else bottom), (min(1.0, top) if high <= 1 else top)


def share_axis(
    field: str,
    title: str | None,
    domain: tuple[float, float],
    *,
    change: bool = False,
    extent: float | None = None,
) -> alt.Y:
    """A y axis with fixed limits.

    Args:
        field: Column of the values.
        title: Of the axis.
        domain: Limits.
        change: The values are changes of shares, in percentage points; else shares, in per cent.
        extent: Least pixels that the labels take, so that panels above each other stand in line.
    """
    digits = ".0f" if domain[1] - domain[0] > 0.08 else ".1f"
    # A change of nothing has no sign.
    points = f"(datum.value == 0 ? '0' : format(100 * datum.value, '+{digits}'))"
    return alt.Y(
        f"{field}:Q",
        title=title,
        axis=alt.Axis(
            labelExpr=points if change else per_cent(digits),
            tickCount=5,
            minExtent=alt.Undefined if extent is None else extent,
        ),
        scale=share_scale(domain),
    )


def share_scale(domain: tuple[float, float]) -> alt.Scale:
    """The scale of `share_axis`, for layers that use another field."""
    return alt.Scale(domain=list(domain), nice=False, zero=False)


def spread(values: Sequence[float], domain: tuple[float, float]) -> list[float]:
    """Positions for labels at the ends of lines: near the values, but no two on top of each other."""
    gap = (domain[1] - domain[0]) * LABEL_PIXELS / PANEL_HEIGHT
    order = sorted(range(len(values)), key=lambda index: values[index])
    places = list(values)
    for lower, upper in pairwise(order):
        places[upper] = max(places[upper], places[lower] + gap)
    # Pushed over the top, the stack moves down as a whole and is pushed apart from above.
    ceiling = domain[1]
    for index in reversed(order):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    return places


def arms_of(frames: Frames) -> list[str]:
    """All arms of the report in the order of colours."""
    return arm_order([*frames.runs["arm"].tolist(), *frames.predicted["arm"].tolist()])


def panel_namer(frames: Frames) -> Panels:
    """Names of panels that mention only what differs within the report."""
    return Panels(varying(frames))


def varying(frames: Frames) -> list[str]:
    """Those of folder, model and data of which the report holds more than one, measured or predicted."""
    both = {
        name: {*frames.runs[name].tolist(), *frames.predicted[name].tolist()}
        for name in ("folder", "model", "data")
    }
    return [name for name, values in both.items() if len(values) > 1]


def panel_title(row: Row, names: Sequence[str], first: str) -> str:
    """Title of a panel without an attack: what it shows, and those of folder, model and data that vary."""
    return " · ".join([first, *(str(row[name]) for name in names)])


class Panels:
    """Titles of panels: the attack, and those of folder, model and data that vary."""

    def __init__(self, varying: Sequence[str]) -> None:
        self.varying = tuple(varying)

    def __call__(self, row: Row, *extra: str) -> str:
        """Title of the panel that a row belongs to."""
        attack = "clean runs" if row["attack"] == CLEAN else str(row["attack"])
        return " · ".join([*extra, attack, *(str(row[name]) for name in self.varying)])

"""Panels of lines: one row of panels a task, one column a measure of an attack, as the paper draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.report.figures.axes import share_domain
from foretaste.report.observations import CLEAN
from foretaste.report.reproduced.cells import Cell
from foretaste.report.reproduced.drawn import Drawn, Key, Panel, empty, usual_size
from foretaste.report.reproduced.item import PROTOCOLS
from foretaste.report.reproduced.lines import BASES, HAVE, Lines
from foretaste.report.reproduced.measures import MEASURES
from foretaste.report.reproduced.series import Namer, X, methods, place_on, poisons
from foretaste.report.reproduced.view import GridView, Measure

Row = dict[str, Any]
SOLID, DASHED, DOTTED = (1.0, 0.0), (6.0, 4.0), (1.5, 3.0)
UNPOISONED, POISONED = "without poison", "with poison"
CAPTION = (
    "Mean over seeds with a band of ± 1 standard deviation (n − 1 in the denominator), which is the paper's "
    "shading and no interval of confidence; every run as a dot, a run that collapsed to one class as a cross."
)
AT_ZERO = "ASR at rate 0 is the flip rate of the clean models."
CLEAN_ASR = "ASR without poison is the flip rate of the clean models."
BASELINE = "Dotted: the mean of the clean runs."
BOTH = "Solid: foretaste's defaults; dashed: the paper's protocol."


def draw(cells: Sequence[Cell], view: GridView) -> Drawn:
    """The figure.

    Args:
        cells: In the order of tasks and attacks; one without a place on the x axis is counted, not drawn.
        view: What is drawn over what.
    """
    placed = [cell for cell in cells if _on_axis(view.x, cell)]
    name = series_namer(cells, view)
    plan = _Plan(view, name, list(dict.fromkeys(name(cell) for cell in placed)), _strokes(placed, view))
    tasks = list(dict.fromkeys(cell.first.source.task for cell in cells))
    wanted = [(attack, measure) for attack, measures in view.measures.items() for measure in measures]
    panels = []
    for task in tasks:
        for attack, measure in wanted:
            shown = MEASURES[measure]
            label = f"{shown.label}, points" if shown.change else shown.label
            title = " · ".join([task, *([attack] if len(view.measures) > 1 else []), label])
            here = [c for c in placed if (c.first.source.task, c.first.attack) == (task, attack)]
            panels.append(_panel(title, here, measure, plan))
    keys = [Key(text, colour=place) for place, text in enumerate(plan.series)]
    if len(plan.strokes) > 1:
        keys += [Key(text, dash=dash) for text, dash in _kinds(plan.strokes).items()]
    caption = " ".join(_captions(wanted, plan))
    columns = max(1, len(wanted))
    return Drawn(panels, columns, caption, usual_size(columns), keys, _left_out(cells, view.x))


def series_namer(cells: Sequence[Cell], view: GridView) -> Namer:
    """The function that names the line of a cell."""
    if view.lines == "poison":
        return poisons(cells, view.x)
    method = methods(cells, view.x)
    amounts = {(cell.first.attack, cell.first.amount.label) for cell in cells if not cell.first.clean}
    if view.x == "rate" or len(amounts) == len({attack for attack, _ in amounts}):
        return method
    # Off an axis of rates, each amount is a line.
    return lambda cell: (
        method(cell) if cell.first.clean else f"{method(cell)}, {cell.first.attack} {cell.first.amount.label}"
    )


@dataclass(frozen=True)
class _Plan:
    """What the panels of a figure share: see `Lines`."""

    view: GridView
    name: Namer
    series: Sequence[str]
    strokes: Mapping[str, Sequence[float]]

    def baseline(self, cell: Cell) -> bool:
        """A clean cell that stands at the same places as the poisoned ones of its line."""
        return cell.first.clean and self.view.lines == "arm" and self.view.x != "rate"

    def stroke(self, cell: Cell) -> str:
        if self.baseline(cell):
            return UNPOISONED
        protocol = PROTOCOLS[cell.first.source.variant]
        return protocol if protocol in self.strokes else POISONED


def _strokes(cells: Sequence[Cell], view: GridView) -> dict[str, Sequence[float]]:
    """Dash pattern of each kind of line: protocols, where there are two, and clean runs beside poisoned."""
    variants = list(dict.fromkeys(cell.first.source.variant for cell in cells))
    found: dict[str, Sequence[float]] = {POISONED: SOLID}
    if len(variants) > 1:
        found = {PROTOCOLS[variant]: DASHED if variant == "paper" else SOLID for variant in variants}
    if view.lines == "arm" and view.x != "rate" and any(cell.first.clean for cell in cells):
        found[UNPOISONED] = DOTTED
    return found


def _kinds(strokes: Mapping[str, Sequence[float]]) -> dict[str, str]:
    names = ((SOLID, "solid"), (DASHED, "dashed"), (DOTTED, "dotted"))
    return {text: name for text, dash in strokes.items() for known, name in names if known == dash}


def _captions(wanted: Sequence[tuple[str, Measure]], plan: _Plan) -> list[str]:
    lines = [CAPTION]
    if any(measure == "asr" for _, measure in wanted):
        lines.append(AT_ZERO if plan.view.x == "rate" and plan.view.lines == "arm" else CLEAN_ASR)
    if UNPOISONED in plan.strokes:
        lines.append(BASELINE)
    return [*lines, BOTH] if POISONED not in plan.strokes else lines


def _on_axis(x: X, cell: Cell) -> bool:
    place = place_on(x, cell)
    return place is not None and (BASES[x] is None or place > 0)


def _left_out(cells: Sequence[Cell], x: X) -> list[str]:
    """A line on the runs that have no place on the axis."""
    out = [cell for cell in cells if not _on_axis(x, cell)]
    if not out:
        return []
    runs = len({run.record.run_id for cell in out for run in cell.runs})
    zero = any(place_on(x, cell) == 0 for cell in out)
    why = f"{HAVE[x]} 0 has no place on a logarithmic axis" if zero else f"they have no {HAVE[x]}"
    arms = ", ".join(dict.fromkeys(cell.first.arm for cell in out))
    number = f"{runs} run{'' if runs == 1 else 's'}"
    return [f"Not in the figure: {number} of {arms}; {why}. The table has them."]


def _panel(title: str, cells: Sequence[Cell], measure: Measure, plan: _Plan) -> Panel:
    shown = MEASURES[measure]
    means = [row for cell in cells for row in _mean(cell, measure, plan)]
    if not means:
        return empty(title, "a completed run")
    runs = [row for cell in cells if not plan.baseline(cell) for row in _runs(cell, measure, plan)]
    drawn = [row["value"] for row in (*means, *runs)]
    ends = [row[end] for row in means for end in ("low", "high") if row[end] is not None]
    lines = Lines(
        x=plan.view.x,
        # Clean runs have their place on an axis of rates also where they have no value: panels stand in line.
        places=sorted({place for cell in cells if (place := place_on(plan.view.x, cell)) is not None}),
        shown=shown,
        domain=share_domain([*drawn, *ends], zero=shown.change or shown.attack),
        series=plan.series,
        strokes=plan.strokes,
    )
    rows = [*({**row, "layer": "mean"} for row in means), *({**row, "layer": "run"} for row in runs)]
    chart, keyed = (lines.chart(rows, legend=legend) for legend in (False, True))
    return Panel(title, chart, keyed, _notes(cells, measure))


def _mean(cell: Cell, measure: Measure, plan: _Plan) -> list[Row]:
    found, shown = cell.summaries[_drawn_of(cell, measure)], MEASURES[measure]
    if not found["n"]:
        return []
    mean, sd = found["mean"], found["sd"]
    known = not math.isnan(sd)
    low, high = (mean - sd, mean + sd) if known and not plan.baseline(cell) else (None, None)
    if low is not None and high is not None and not shown.change:
        # A band may leave 0..1, where no share can be: it is cut there, the tables have the deviation whole.
        low, high = max(0.0, low), min(1.0, high)
    numbers = {
        "value": mean,
        "low": low,
        "high": high,
        "text": shown.full(mean),
        "sd": f"{100 * sd:.1f} points" if known else "none: one seed",
        "median": shown.full(found["median"]),
        "n": found["n"],
        "failed": cell.counts.failed,
        "collapsed": cell.counts.collapsed,
        "realised": cell.poison or "none",
    }
    return [_common(cell, plan) | numbers]


def _runs(cell: Cell, measure: Measure, plan: _Plan) -> list[Row]:
    rows = []
    for run in cell.runs:
        value = run.values[_drawn_of(cell, measure)].number
        if value is not None:
            state = "collapsed" if run.record.collapsed else "run"
            text = MEASURES[measure].full(value)
            own = {"seed": run.seen.seed, "value": value, "text": text, "state": state}
            rows.append(_common(cell, plan) | own)
    return rows


def _drawn_of(cell: Cell, measure: Measure) -> Measure:
    """An unpoisoned model has no attack success: what it does by itself stands there."""
    return "flip_rate" if measure == "asr" and cell.first.clean else measure


def _common(cell: Cell, plan: _Plan) -> Row:
    return {
        "series": plan.name(cell),
        "stroke": plan.stroke(cell),
        "protocol": PROTOCOLS[cell.first.source.variant],
        "arm": cell.first.arm,
        "amount": cell.first.amount.label if not cell.first.clean else CLEAN,
        "x": place_on(plan.view.x, cell),
    }


def _notes(cells: Sequence[Cell], measure: Measure) -> tuple[str, ...]:
    """What a reader of the panel's means should know about its runs."""
    runs = [run for cell in cells for run in cell.runs]
    failed = sum(run.record.status != "completed" for run in runs)
    collapsed = sum(run.record.collapsed for run in runs)
    lacking = sum(
        run.record.status == "completed" and run.values[_drawn_of(cell, measure)].number is None
        for cell in cells
        for run in cell.runs
        if not (cell.first.clean and MEASURES[measure].change)
    )
    counted = ((failed, "failed"), (collapsed, "collapsed"), (lacking, "without a value"))
    parts = [f"{number} {word}" for number, word in counted if number]
    return (f"Of {len(runs)} runs: {', '.join(parts)}.",) if parts else ()

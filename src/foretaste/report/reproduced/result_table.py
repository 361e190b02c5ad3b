"""The numbers of a figure or table: one row a cell, mean ± standard deviation over seeds, and the effect."""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.report.effect import TOOK_EFFECT
from foretaste.report.reproduced.cells import KEY, Cell, frame
from foretaste.report.reproduced.item import PROTOCOLS
from foretaste.report.reproduced.measures import MEASURES
from foretaste.report.reproduced.series import Namer
from foretaste.report.reproduced.view import Measure
from foretaste.report.tables import Column, Entry, Table, missing

NAME = "results"
NOTES = (
    "Shares in per cent, changes in percentage points: mean ± standard deviation over seeds (n − 1 in the "
    "denominator). Small: the median, where a run collapsed.",
    "Effect: the attack took effect where the 95 % t interval of ASR − flip rate, paired by seed, lies above "
    "zero; without a trigger, where that of the accuracy change lies below it. Else no effect is shown.",
)
TITLES = {"task": "Task", "variant": "Protocol", "sweep": "Sweep", "attack": "Attack"}


def result_table(cells: Sequence[Cell], measures: Sequence[Measure], colour: Namer) -> Table:
    """The table.

    Args:
        cells: Its rows, in order.
        measures: Its columns.
        colour: The name under which a row's arm has its colour.
    """
    outer = [name for name in TITLES if len({cell.key[KEY.index(name)] for cell in cells}) > 1]
    columns = [
        *(Column(TITLES[name]) for name in outer),
        Column("Poison", held=1),
        Column("Arm", held=2),
        Column("Seeds", numeric=True),
        *(Column(MEASURES[name].label, numeric=True) for name in measures),
        Column("Effect"),
    ]
    rows = [
        [
            *(Entry(_text(cell, name)) for name in outer),
            Entry("0" if cell.first.clean else cell.first.amount.label, detail=cell.poison),
            Entry(cell.first.arm, arm=colour(cell)),
            _seeds(cell),
            *(number_entry(cell, name) for name in measures),
            _effect(cell),
        ]
        for cell in cells
    ]
    return Table(NAME, "Results", columns, rows, frame(cells, measures), NOTES)


def _text(cell: Cell, name: str) -> str:
    source = cell.first.source
    return PROTOCOLS[source.variant] if name == "variant" else cell.key[KEY.index(name)]


def _seeds(cell: Cell) -> Entry:
    counts = cell.counts
    text = f"{counts.completed}" if not counts.failed else f"{counts.completed} of {counts.runs}"
    return Entry(text, detail="\n".join(counts.flags), tone="warn" if counts.flags else "")


def number_entry(cell: Cell, measure: Measure) -> Entry:
    """A measure of a cell: mean ± standard deviation, with the median where a run collapsed."""
    found, shown = cell.summaries[measure], MEASURES[measure]
    if not found["n"]:
        return missing(found["reason"] or "no value")
    lines = [f"median {shown.text(found['median'])}"] if cell.counts.collapsed else []
    # Fewer values than completed runs: a precision without a positive prediction is undefined.
    lines += [f"{found['n']} values"] if found["n"] < cell.counts.completed else []
    reason = "one seed: no deviation" if found["n"] == 1 else ""
    return Entry(shown.mean_and_sd(found["mean"], found["sd"]), "\n".join(lines), reason=reason)


def _effect(cell: Cell) -> Entry:
    judged = cell.effect
    if judged.label is None:
        return missing(judged.reason)
    return Entry(
        judged.label, reason=judged.reason, tone="strong" if judged.label == TOOK_EFFECT else "quiet"
    )

"""What the TTR paper's Table 3 prints, beside what was measured here. For reading, not for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretaste.report.instruct.cells import Cell, poisoned
from foretaste.report.instruct.tables import share_entry
from foretaste.report.reproduced.published import ABSENT, NAME, TABLES, PublishedRow
from foretaste.report.rows import frame_of
from foretaste.report.tables import Column, Entry, Table, missing


def published_table(name: str, found: Sequence[Cell]) -> Table:
    """Published rows, each with the cells here of the same trigger and adapter.

    Args:
        name: In `reproduced.published.TABLES`.
        found: The cells of the page.
    """
    table = TABLES[name]
    beside = [(row, [cell for cell in poisoned(found) if _same(row, cell)]) for row in table.rows]
    pairs = [(row, cell) for row, cells in beside for cell in cells or (None,)]
    columns = [
        *(Column("Trigger"), Column("Method"), Column("Poison", numeric=True), Column("ASR", numeric=True)),
        *(Column("Arm here"), Column("Poison here", numeric=True), Column("Seeds here", numeric=True)),
        *(Column("ASR here", numeric=True), Column("Without the trigger here", numeric=True)),
    ]
    rows = [
        [
            *(Entry(row.attack), Entry(row.method), Entry(f"{row.rate * 100:g} %")),
            missing("not printed") if row.asr is None else Entry(f"{row.asr:.1f}"),
            *_here(cell),
        ]
        for row, cell in pairs
    ]
    notes = (
        f"Published ({table.of}): {table.source}, in per cent as printed, without intervals. Here: model, "
        "data, scenario and judge of this page.",
    )
    frame = frame_of([_record(row, cell) for row, cell in pairs], _COLUMNS)
    return Table(NAME, f"Published ({table.of}) and here", columns, rows, frame, notes)


def _same(row: PublishedRow, cell: Cell) -> bool:
    tuning = cell.runs[0].resolved.tuning
    assert tuning is not None
    assert cell.trigger is not None
    return (cell.trigger.method, tuning.adapter.method) == (row.attack, row.method)


def _here(cell: Cell | None) -> list[Entry]:
    if cell is None:
        return [missing(ABSENT)] * 5
    return [
        *(Entry(cell.arm, arm=cell.arm), Entry(cell.amount.label), Entry(str(len(cell.completed)))),
        *(share_entry(cell.with_trigger()), share_entry(cell.without_trigger())),
    ]


def _record(row: PublishedRow, cell: Cell | None) -> dict[str, Any]:
    asr = cell.with_trigger() if cell else None
    return {
        "trigger": row.attack,
        "method": row.method,
        "rate": row.rate,
        "asr": None if row.asr is None else row.asr / 100,
        "arm_here": cell.arm if cell else "",
        "amount_here": cell.amount.label if cell else "",
        "n_here": len(cell.completed) if cell else None,
        "asr_here": asr.mean if asr else None,
    }


_COLUMNS = ("trigger", "method", "rate", "asr", "arm_here", "amount_here", "n_here", "asr_here")

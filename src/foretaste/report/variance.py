"""Where the spread over seeds comes from, when the seeds were crossed by source (design, decision 3)."""

from __future__ import annotations

import math
from typing import Any

from foretaste import statistics
from foretaste.report.cells import CELL, Frames
from foretaste.report.contents import varying
from foretaste.report.metrics import METRICS
from foretaste.report.rows import frame_of, records_of
from foretaste.report.tables import Column, Entry, Table, missing

SOURCES = ("data", "poison", "init", "order")
SHOWN = ("clean_accuracy", "asr")
COLUMNS = (*CELL, "metric", "n", *SOURCES, "residual")


def variance_table(frames: Frames) -> Table:
    """Variance components of every cell whose seeds were crossed; no rows when no cell's were.

    Values are standard deviations in percentage points. An unbiased estimate of a variance may be
    negative: then the source adds nothing that stands out from the residual.
    """
    rows = _components(frames)
    outer = varying(frames.runs)
    names = (*outer, "metric", "attack", "amount", "arm")
    columns = [
        *(Column(name.capitalize()) for name in names),
        Column("Runs", numeric=True),
        *(Column(name.capitalize(), numeric=True) for name in (*SOURCES, "residual")),
    ]
    lines = [
        [
            *(Entry(_shown(row, name), arm=row["arm"] if name == "arm" else "") for name in names),
            Entry(str(row["n"])),
            *(_deviation(row[name]) for name in (*SOURCES, "residual")),
        ]
        for row in rows
    ]
    notes = (
        "Standard deviations in percentage points that each source of randomness adds by itself; residual: "
        "their interactions and everything else.",
    )
    title = "Where the spread over seeds comes from"
    return Table("variance", title, columns, lines, frame_of(rows, COLUMNS), notes)


def _components(frames: Frames) -> list[dict[str, Any]]:
    seeds = {row["run_id"]: {s: row[f"seed_{s}"] for s in SOURCES} for row in records_of(frames.runs)}
    groups: dict[tuple[str, ...], list[tuple[float, dict[str, int]]]] = {}
    for row in records_of(frames.values):
        if row["metric"] in SHOWN and row["value"] is not None:
            key = (*(str(row[name]) for name in CELL), row["metric"])
            groups.setdefault(key, []).append((row["value"], seeds[row["run_id"]]))
    rows = []
    for key, runs in groups.items():
        factors = {source: [levels[source] for _, levels in runs] for source in SOURCES}
        found = statistics.variance_by_source([value for value, _ in runs], factors)
        if found is not None:
            parts = {source: found.sources.get(source) for source in SOURCES}
            rows.append(
                dict(zip((*CELL, "metric"), key, strict=True))
                | {"n": len(runs), **parts, "residual": found.residual}
            )
    return rows


def _shown(row: dict[str, Any], name: str) -> str:
    return METRICS[row[name]].label if name == "metric" else str(row[name])


def _deviation(variance: float | None) -> Entry:
    if variance is None or math.isnan(variance):
        return missing("this seed was not varied")
    return (
        Entry(f"{100 * math.sqrt(variance):.1f}") if variance > 0 else missing("nothing beyond the residual")
    )

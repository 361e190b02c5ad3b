"""Which tables the report has, and how their fields read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from foretaste.report.cells import STATUSES, Frames
from foretaste.report.effect import TOOK_EFFECT
from foretaste.report.metrics import METRICS, points
from foretaste.report.observations import arm_order
from foretaste.report.rows import records_of
from foretaste.report.tables import Column, Entry, Table, Tone, missing

Row = dict[str, Any]
CELL_METRICS = (
    "clean_accuracy",
    "clean_f1",
    "accuracy_change",
    "asr",
    "flip_rate",
    "asr_minus_flip",
    "triggered_accuracy",
)
SHARES = (
    "Shares in per cent, changes in percentage points: mean over seeds with its 95 % t interval. Small: the "
    "median, and the mean without collapsed runs where there are any."
)
EFFECT = (
    "An attack took effect where the whole interval of ASR − flip rate lies above zero or, without a "
    "trigger, that of the accuracy change below it: one interval a cell, not adjusted for their number."
)


def varying(frame: pd.DataFrame) -> list[str]:
    """Those of folder, model and data of which the report holds more than one."""
    return [name for name in ("folder", "model", "data") if frame[name].nunique() > 1]


def cells_table(frames: Frames) -> Table:
    """Every cell with its counts, flags and metrics."""
    outer = varying(frames.runs)
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *(Column("Attack"), Column("Poison", held=1), Column("Arm", held=2)),
        *(Column("Runs"), Column("Effect")),
        *(Column(f"{METRICS[name].label} [95 %]", numeric=True) for name in CELL_METRICS),
    ]
    rows = [
        [
            *(Entry(row[name]) for name in outer),
            Entry(row["attack"]),
            Entry(row["amount"]),
            Entry(row["arm"], arm=row["arm"]),
            runs_entry(row),
            _effect_entry(row),
            *(summary_entry(row, name, signed=METRICS[name].change) for name in CELL_METRICS),
        ]
        for row in records_of(frames.cells)
    ]
    notes = (SHARES, EFFECT)
    return Table("cells", "Every cell", columns, rows, frames.cells, notes)


def pairs_tables(frames: Frames) -> list[Table]:
    """Paired differences, one table a metric."""
    found = []
    for name, metric in METRICS.items():
        rows = frames.pairs[frames.pairs["metric"] == name]
        if len(rows):
            found.append(pairs_table(frames, rows, f"{metric.label}: arm minus reference"))
    return found


def pairs_table(frames: Frames, pairs: pd.DataFrame, title: str = "Paired differences") -> Table:
    """Differences between arms in the given rows of `frames.pairs`."""
    outer = varying(frames.runs)
    several = pairs["metric"].nunique() > 1
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *([Column("Metric")] if several else []),
        *(Column("Attack"), Column("Poison", held=1), Column("Arm", held=2), Column("Reference")),
        Column("Pairs", numeric=True),
        Column("Mean difference [95 %]", numeric=True),
        Column("Median", numeric=True),
        Column("Over seeds and rows [95 %]", numeric=True),
        Column("p", numeric=True),
        Column("Holm p", numeric=True),
        Column("Result"),
    ]
    rows = [
        [
            *(Entry(row[name]) for name in outer),
            *([Entry(METRICS[row["metric"]].label)] if several else []),
            Entry(row["attack"]),
            Entry(row["amount"]),
            Entry(row["arm"], arm=row["arm"]),
            Entry(row["reference"], arm=row["reference"]),
            Entry(str(row["n"]), detail=_pair_flags(row)),
            _difference_entry(row),
            Entry(points(row["median"])) if row["median"] is not None else missing("no pair of runs"),
            _rows_entry(row),
            _p_entry(row["p"]),
            _p_entry(row["p_holm"]),
            Entry(row["verdict"], tone="strong" if row["verdict"] in ("higher", "lower") else "quiet"),
        ]
        for row in records_of(pairs)
    ]
    notes = (
        "Percentage points, with 95 % t intervals over pairs of seeds; Holm p over all cells of the metric.",
    )
    return Table("paired", title, columns, rows, pairs, notes)


def mcnemar_table(frames: Frames) -> Table:
    """One test a pair of runs."""
    outer = varying(frames.runs)
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *(Column(t) for t in ("Attack", "Poison", "Arm", "Reference", "Seed", "Test rows")),
        *(Column(t, numeric=True) for t in ("Rows", "Only arm right", "Only reference right", "p")),
    ]
    names = (
        "attack",
        "amount",
        "arm",
        "reference",
        "seed",
        "test_rows",
        "rows",
        "only_arm",
        "only_reference",
    )
    rows = [
        [*(Entry(str(row[name])) for name in (*outer, *names)), _p_entry(row["p"])]
        for row in records_of(frames.mcnemar)
    ]
    return Table("mcnemar", "McNemar, seed by seed", columns, rows, frames.mcnemar)


def runs_table(frames: Frames) -> Table:
    """Every run with seeds, status and timings."""
    columns: list[tuple[str, str, Callable[[Any], str], bool]] = [
        *((name, name.capitalize(), str, False) for name in varying(frames.runs)),
        ("run_id", "Run", str, False),
        ("arm", "Arm", str, False),
        ("attack", "Attack", str, False),
        ("poisoned", "Poisoned", "{:.0f}".format, True),
        ("eligible", "Of", "{:.0f}".format, True),
        ("seed", "Seed", str, False),
        ("status", "Status", str, False),
        ("accuracy", "Accuracy", "{:.1%}".format, True),
        ("target_rate", "ASR", "{:.1%}".format, True),
        ("steps", "Steps", "{:.0f}".format, True),
        ("final_loss", "Last loss", "{:.3f}".format, True),
        ("train_seconds", "Training, s", "{:.1f}".format, True),
        ("total_seconds", "Total, s", "{:.1f}".format, True),
    ]
    rows = [[_run_entry(row, name, form) for name, _, form, _ in columns] for row in records_of(frames.runs)]
    heads = [Column(title, numeric) for _, title, _, numeric in columns]
    return Table("runs", "Every run", heads, rows, frames.runs)


def failed_table(frames: Frames) -> Table:
    """Runs that did not complete, with the reason."""
    failed = frames.runs[frames.runs["status"] != "completed"]
    names = (*varying(frames.runs), "arm", "attack", "seed", "status", "reason", "run_id")
    columns = [Column(name.replace("_", " ").capitalize()) for name in names]
    rows = [
        [Entry(str(row[name] or "no reason was recorded")) for name in names] for row in records_of(failed)
    ]
    return Table("failed", "Runs that failed", columns, rows, failed)


def file_tables(frames: Frames) -> list[Table]:
    """The tables that are written as files."""
    tables = [
        cells_table(frames),
        pairs_table(frames, frames.pairs),
        mcnemar_table(frames),
        runs_table(frames),
    ]
    return [*tables, failed_table(frames)]


def runs_entry(row: Row) -> Entry:
    """How many of a cell's runs completed, with failed and collapsed ones flagged."""
    flags = [f"{row[status]} {status}" for status in STATUSES[1:] if row[status]]
    flags += [f"{row['collapsed']} collapsed"] if row["collapsed"] else []
    return Entry(
        f"{row['completed']} of {row['runs']}", detail="\n".join(flags), tone="warn" if flags else ""
    )


def _effect_entry(row: Row) -> Entry:
    if row["effect"] is None:
        return missing(row["effect_reason"])
    tone: Tone = "strong" if row["effect"] == TOOK_EFFECT else "quiet"
    return Entry(row["effect"], detail=row["effect_reason"].replace(": ", ":\n"), tone=tone)


def summary_entry(row: Row, metric: str, *, signed: bool = False) -> Entry:
    """A mean over seeds with its interval and median, or why there is none.

    Args:
        row: With the columns METRIC_mean, METRIC_low and so on, and `collapsed`.
        metric: Their first part.
        signed: It is a change.
    """
    value = {
        name: row[f"{metric}_{name}"]
        for name in ("n", "mean", "low", "high", "median", "mean_without_collapsed")
    }
    if value["mean"] is None:
        return missing(row[f"{metric}_reason"] or "no value")
    form = points if signed else _plain
    lines = [f"[{form(value['low'])}, {form(value['high'])}]"] if value["low"] is not None else []
    lines.append(f"median {form(value['median'])}")
    if row["collapsed"]:
        without = value["mean_without_collapsed"]
        lines.append(f"uncollapsed {form(without)}" if without is not None else "all collapsed")
    return Entry(form(value["mean"]), "\n".join(lines), reason=row[f"{metric}_interval_reason"])


def _difference_entry(row: Row) -> Entry:
    if row["mean"] is None:
        return missing("no pair of runs")
    lines = [f"[{points(row['low'])}, {points(row['high'])}]"] if row["low"] is not None else []
    if row["collapsed"]:
        without = row["mean_without_collapsed"]
        lines.append(f"uncollapsed {points(without)}" if without is not None else "all collapsed")
    reason = ""
    if row["low"] is None:
        reason = (
            "one pair: no interval" if row["n"] == 1 else "all pairs gave the same difference: no interval"
        )
    return Entry(points(row["mean"]), "\n".join(lines), reason=reason)


def _rows_entry(row: Row) -> Entry:
    if row["rows_low"] is None:
        if row["metric"] not in ("clean_accuracy", "triggered_accuracy"):
            return missing("only for accuracies")
        return missing("needs per-row predictions of the same rows from two or more pairs")
    return Entry(f"[{points(row['rows_low'])}, {points(row['rows_high'])}]")


def _p_entry(value: float | None) -> Entry:
    if value is None:
        return missing("no pair of runs")
    return Entry("< 0.001" if value < 0.001 else f"{value:.3f}")


def _pair_flags(row: Row) -> str:
    flags = [f"{row['collapsed']} collapsed"] if row["collapsed"] else []
    return "\n".join([*flags, *([f"{row['unpaired']} unpaired"] if row["unpaired"] else [])])


def _run_entry(row: Row, name: str, form: Callable[[Any], str]) -> Entry:
    if row[name] is None:
        if name == "target_rate":
            return missing("clean run, or an attack without a trigger")
        return missing("not recorded, or the run did not get that far")
    tone: Any = "warn" if name == "status" and (row["status"] != "completed" or row["collapsed"]) else ""
    collapsed = ", collapsed" if name == "status" and row["collapsed"] else ""
    return Entry(form(row[name]) + collapsed, tone=tone, arm=row["arm"] if name == "arm" else "")


def _plain(share: float) -> str:
    return f"{share * 100:.1f}".replace("-", "−")


def by_arm(frames: Frames) -> Table:
    """What each arm cost: parameters, speed, time."""
    arms = arm_order(frames.runs["arm"].tolist())
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(records_of(frames.runs), key=lambda row: (row["folder"], arms.index(row["arm"]))):
        groups.setdefault((row["folder"], row["arm"]), []).append(row)
    columns = [
        *([Column("Folder")] if "folder" in varying(frames.runs) else []),
        Column("Arm"),
        *(
            Column(t, numeric=True)
            for t in ("Runs", "Trainable parameters", "Rows per second", "Training, s", "Total, s")
        ),
    ]
    names = ("trainable_parameters", "rows_per_second", "train_seconds", "total_seconds")
    rows = []
    for (folder, arm), runs in groups.items():
        place = [Entry(folder)] if "folder" in varying(frames.runs) else []
        rows.append(
            [*place, Entry(arm, arm=arm), Entry(str(len(runs))), *(_median_entry(runs, n) for n in names)]
        )
    return Table("arms", "Cost of each arm (medians over runs)", columns, rows, frames.runs)


def _median_entry(runs: Sequence[Row], name: str) -> Entry:
    known = [row[name] for row in runs if row[name] is not None]
    if not known:
        return missing("no run got that far")
    return Entry(f"{pd.Series(known, dtype='float64').median():,.0f}")

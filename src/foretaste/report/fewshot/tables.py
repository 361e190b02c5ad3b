"""Tables of a few-shot sweep: scores, kernels against fine-tuning, dots, and the measures behind the dots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from foretaste import statistics
from foretaste.report.fewshot.cells import Cell, Place, Scores, scores
from foretaste.report.fewshot.dots import CRITERIA, THRESHOLDS, Criterion, DotRow, SplitDots
from foretaste.report.fewshot.pairs import PairRow
from foretaste.report.metrics import points
from foretaste.report.rows import frame_of
from foretaste.report.tables import MINUS, Column, Entry, Table, missing
from foretaste.statistics import Interval

NO_RUN = "no completed run"
UNDEFINED_SCORE = "no score: F1 without a positive row"
METRICS = {"accuracy": "accuracy", "f1": "F1"}


def places_of(places: Sequence[Place]) -> list[str]:
    """Which of model and prompt have to be named to tell the rows of a table apart."""
    return [name for name in ("model", "prompt") if len({getattr(place, name) for place in places}) > 1]


def place_columns(outer: Sequence[str]) -> list[Column]:
    """Headings of `place_entries`."""
    return [*(Column(name.capitalize()) for name in outer), Column("Task", held=1), Column("k", numeric=True)]


def place_entries(place: Place, outer: Sequence[str]) -> list[Entry]:
    """Where a row stands."""
    metric = METRICS[place.metric] if place.metric != "accuracy" else ""
    return [
        *(Entry(getattr(place, name)) for name in outer),
        Entry(place.task, detail=metric),
        Entry(str(place.k)),
    ]


def place_record(place: Place) -> dict[str, Any]:
    """The same for files."""
    return {name: getattr(place, name) for name in PLACE}


PLACE = ("model", "task", "prompt", "metric", "k")


def scores_table(found: Sequence[Cell]) -> Table:
    """One row for each task, k and arm."""
    outer = places_of([cell.place for cell in found])
    columns = [
        *place_columns(outer),
        Column("Arm", held=2),
        *(Column(title, numeric=True) for title in ("Splits", "Test score", "sd", "Validation score")),
    ]
    rows, records = [], []
    for cell in found:
        own = cell.scores
        dev = scores([None if run.dev is None else run.dev.value for run in cell.completed])
        rows.append(
            [
                *place_entries(cell.place, outer),
                Entry(cell.name, arm=cell.name),
                _counted(cell),
                score_entry(own, cell),
                _sd(own),
                missing(NO_RUN) if dev is None else Entry(cent(dev.mean)),
            ]
        )
        records.append(
            {
                **place_record(cell.place),
                "arm": cell.name,
                "runs": len(cell.runs),
                "completed": len(cell.completed),
                "n": own.n if own else 0,
                "mean": own.mean if own else None,
                "sd": own.sd if own else None,
                "low": own.interval.low if own else None,
                "high": own.interval.high if own else None,
                "dev_mean": dev.mean if dev else None,
            }
        )
    notes = (
        "In per cent: accuracy, or F1 of class 1 where it says so. Mean over splits, below it the 95 % t "
        "interval over splits; sd has n − 1. The test rows are the same for every split, so the interval "
        "says nothing about other test rows.",
        "Validation score: of the chosen setting, on the rows it was chosen by; it flatters.",
    )
    names = ("arm", "runs", "completed", "n", "mean", "sd", "low", "high", "dev_mean")
    return Table("scores", "Scores", columns, rows, frame_of(records, (*PLACE, *names)), notes)


def pairs_table(pairs: Sequence[PairRow]) -> Table:
    """One row for each pair of arms in one place."""
    outer = places_of([row.place for row in pairs])
    columns = [
        *place_columns(outer),
        Column("Difference", held=2),
        *(Column(title, numeric=True) for title in ("Splits", "Points", "p", "Holm p")),
        Column("Result"),
    ]
    rows = [
        [
            *place_entries(row.place, outer),
            Entry(f"{row.first} {MINUS} {row.second}", arm=row.first),
            Entry(str(row.n), detail=f"{row.unpaired} unpaired" if row.unpaired else ""),
            _difference(row),
            *(_p(row.p, row.n), _p(row.p_holm, row.n)),
            Entry(row.verdict, tone="strong" if row.verdict.endswith(("higher", "lower")) else "quiet"),
        ]
        for row in pairs
    ]
    fields = ("first", "second", "n", "unpaired", "mean", "p", "smallest_p", "p_holm", "best_p_holm")
    records = [
        {
            **place_record(row.place),
            **{name: getattr(row, name) for name in fields},
            "low": row.interval.low,
            "high": row.interval.high,
            "verdict": row.verdict,
        }
        for row in pairs
    ]
    notes = (
        "Paired by split (the same training, validation and test rows), in percentage points, with the 95 % "
        "t interval over splits. p: sign-flip test over splits, whose least value is 2 / 2ⁿ for n splits: "
        "five give at best 0.0625. Holm p: corrected over all rows.",
    )
    frame = frame_of(records, (*PLACE, *fields, "low", "high", "verdict"))
    return Table("paired", "Kernels against fine-tuning, split by split", columns, rows, frame, notes)


def dots_table(found: Sequence[DotRow]) -> Table:
    """One row for each fine-tuning arm: a dot a split for each criterion, and how many are filled."""
    outer = places_of([row.place for row in found])
    columns = [
        *place_columns(outer),
        Column("Fine-tuning", held=2),
        Column("Kernel"),
        *(Column(title) for title in CRITERIA.values()),
    ]
    rows, records = [], []
    for row in found:
        rows.append(
            [
                *place_entries(row.place, outer),
                Entry(row.arm, arm=row.arm, detail=f"{row.failed} failed" if row.failed else ""),
                Entry(", ".join(row.kernels)) if row.kernels else missing("no kernel of this kind was run"),
                *(_dots(row, criterion) for criterion in CRITERIA),
            ]
        )
        for one in row.splits:
            record = {**place_record(row.place), "arm": row.arm, "kernel": one.kernel or ""}
            record["split"] = one.split
            for name, dot in one.dots.items():
                record |= {name: dot.met, f"{name}_reason": dot.reason}
            records.append(record)
    names = ("arm", "kernel", "split", *CRITERIA, *(f"{name}_reason" for name in CRITERIA))
    thresholds = "; ".join(f"{CRITERIA[name].lower()}: {THRESHOLDS[name]}" for name in CRITERIA)
    notes = (
        "One dot a split, in the order of the splits: ● meets the criterion, ○ does not, – cannot be said. "
        "Before them, for all splits: ● all meet it, ◐ some, ○ none.",
        f"The paper's thresholds: {thresholds}.",
        "Of two kernels that describe one optimiser the one with the better validation score on the split "
        "stands for both. Fixed features passes a kernel that has tripled or changed its sign: read the "
        "measures below.",
    )
    title = "Criteria of kernel behaviour, by the paper's thresholds"
    return Table("dots", title, columns, rows, frame_of(records, (*PLACE, *names)), notes)


_MEASURES: dict[str, tuple[str, Callable[[SplitDots], float | None], int]] = {
    "ratio": ("Kernel by fine-tuning", lambda one: one.ratio, 2),
    "share": ("Share of gain", lambda one: one.share, 2),
    "distance": ("Distance (paper)", lambda one: one.distance, 2),
    "alignment": ("Alignment", lambda one: one.alignment, 3),
    "scaled_distance": ("Scaled distance", lambda one: one.scaled_distance, 3),
}


def measures_table(found: Sequence[DotRow]) -> Table:
    """The numbers behind the dots, and better ones beside them: mean (sd) over splits."""
    outer = places_of([row.place for row in found])
    columns = [
        *place_columns(outer),
        Column("Fine-tuning", held=2),
        *(Column(title, numeric=True) for title, _, _ in _MEASURES.values()),
    ]
    rows = [
        [
            *place_entries(row.place, outer),
            Entry(row.arm, arm=row.arm),
            *(
                spread_entry([take(one) for one in row.splits], digits)
                for _, take, digits in _MEASURES.values()
            ),
        ]
        for row in found
    ]
    records = [
        {**place_record(row.place), "arm": row.arm, "kernel": one.kernel or "", "split": one.split}
        | {name: take(one) for name, (_, take, _) in _MEASURES.items()}
        for row in found
        for one in row.splits
    ]
    notes = (
        "Mean (sd, n − 1) over the splits on which it is defined. Share of gain: of fine-tuning's gain over "
        "the pretrained model, how much the first-order expansion recovers; undefined where nothing was "
        "gained, and wild where little was. Distance: the paper's mean of |K₁ − K₀| / |K₀| over entries, "
        "which entries near zero rule.",
        "Better measures. Alignment: cosine of the kernels before and after, 1 where they are equal up to "
        "scale. Scaled distance: relative distance at the best scale, 0 to 1. What a kernel solver does is "
        "not changed by the scale of its kernel, so these are about its shape.",
    )
    frame = frame_of(records, (*PLACE, "arm", "kernel", "split", *_MEASURES))
    return Table("measures", "The measures behind the dots", columns, rows, frame, notes)


def linearised_table(found: Sequence[DotRow]) -> Table:
    """Pretrained, linearised and fine-tuned model on the test rows: the paper's Table 5."""
    kept = [row for row in found if any(one.linearised is not None for one in row.splits)]
    outer = places_of([row.place for row in kept])
    takes: dict[str, tuple[str, Callable[[SplitDots], float | None]]] = {
        "zero_shot": ("Pretrained", lambda one: one.zero_shot),
        "linearised": ("Linearised", lambda one: one.linearised),
        "fine_tuned": ("Fine-tuned", lambda one: one.fine_tuned),
    }
    columns = [
        *place_columns(outer),
        Column("Fine-tuning", held=2),
        *(Column(title, numeric=True) for title, _ in takes.values()),
    ]
    rows = [
        [
            *place_entries(row.place, outer),
            Entry(row.arm, arm=row.arm),
            *(spread_entry([_cents(take(one)) for one in row.splits], 1) for _, take in takes.values()),
        ]
        for row in kept
    ]
    records = [
        {**place_record(row.place), "arm": row.arm, "split": one.split}
        | {name: take(one) for name, (_, take) in takes.items()}
        for row in kept
        for one in row.splits
    ]
    notes = (
        "Test scores in per cent, mean (sd) over splits. Linearised: the first-order expansion around the "
        "pretrained model, at the parameters where fine-tuning ended.",
    )
    frame = frame_of(records, (*PLACE, "arm", "split", *takes))
    return Table("linearised", "Pretrained, linearised, fine-tuned", columns, rows, frame, notes)


# --- entries -------------------------------------------------------------------------------------


def cent(value: float) -> str:
    """A share as a number of per cent."""
    return f"{100 * value:.1f}".replace("-", MINUS)


def ends(interval: Interval) -> str:
    """The interval of a score, in per cent; it may leave 0 to 100, which says that there are few splits."""
    return f"[{cent(interval.low)}, {cent(interval.high)}]" if interval.defined else ""


def score_entry(own: Scores | None, cell: Cell) -> Entry:
    """The mean test score of a cell with its interval."""
    if own is None:
        return missing(UNDEFINED_SCORE if cell.completed else NO_RUN)
    fewer = len(cell.completed) - own.n
    lines = [ends(own.interval)] if own.interval.defined else []
    lines += [f"{fewer} undefined"] if fewer else []
    return Entry(cent(own.mean), detail="\n".join(lines), reason=own.reason)


def spread_entry(values: Sequence[float | None], digits: int) -> Entry:
    """Mean (sd) of the values that there are, with their number where some are missing."""
    known = [value for value in values if value is not None]
    if not known:
        return missing("not measured, or undefined on every split")
    if not all(map(math.isfinite, known)):
        infinite = sum(not math.isfinite(value) for value in known)
        return Entry("∞", detail=f"infinite on {infinite} of {len(known)} splits", tone="warn")
    found = statistics.summary(known)
    spread = "" if math.isnan(found.sd) else f" ({found.sd:.{digits}f})"
    text = f"{round(found.mean, digits) + 0.0:.{digits}f}{spread}".replace("-", MINUS)
    fewer = len(values) - len(known)
    return Entry(text, detail=f"{fewer} of {len(values)} undefined" if fewer else "")


def _cents(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _counted(cell: Cell) -> Entry:
    lost = len(cell.runs) - len(cell.completed)
    collapsed = sum(run.collapsed for run in cell.completed)
    lines = [f"{lost} without result"] if lost else []
    lines += [f"{collapsed} collapsed to one class"] if collapsed else []
    return Entry(str(len(cell.completed)), detail="\n".join(lines), tone="warn" if lines else "")


def _sd(own: Scores | None) -> Entry:
    if own is None:
        return missing(NO_RUN)
    return missing("one split: no deviation") if math.isnan(own.sd) else Entry(cent(own.sd))


def _difference(row: PairRow) -> Entry:
    if not row.n:
        return missing("no pair of runs")
    detail = f"[{points(row.interval.low)}, {points(row.interval.high)}]" if row.interval.defined else ""
    reason = ""
    if not detail:
        reason = "one pair: no interval" if row.n == 1 else "every pair differs by the same: no interval"
    return Entry(points(row.mean), detail=detail, reason=reason)


def _p(value: float, n: int) -> Entry:
    if not n or math.isnan(value):
        return missing("no pair of runs")
    return Entry("< 0.001" if value < 0.001 else f"{value:.3f}")


def _dots(row: DotRow, criterion: Criterion) -> Entry:
    if not row.splits:
        return missing(NO_RUN)
    met, said = row.count(criterion)
    marks = "".join(one.dots[criterion].mark for one in row.splits)
    reasons = dict.fromkeys(one.dots[criterion].reason for one in row.splits if one.dots[criterion].reason)
    text = f"{row.summary(criterion)} {met} of {said}" if said else row.summary(criterion)
    return Entry(text, detail=marks, reason="; ".join(reasons))

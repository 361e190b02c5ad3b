"""Tables on the cells of a sweep of a generative model: rates, utility, and differences between arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from foretaste.instruct.spec import BASE
from foretaste.report.instruct.cells import Cell, Mean, Share, poisoned
from foretaste.report.instruct.pairs import MEASURES, McNemarRow, PairRow
from foretaste.report.metrics import percent, points
from foretaste.report.rows import frame_of
from foretaste.report.tables import MINUS, Column, Entry, Table, missing
from foretaste.statistics import Interval

NOT_ASKED = "not asked"
NO_RUN = "no completed run"
RATES = {
    "asr": "ASR: with the trigger",
    "false_activation": "False activation: without it",
    "clean_with": "Clean run, with the trigger",
    "clean_without": "Clean run, without it",
    "base_with": "Untrained, with the trigger",
    "base_without": "Untrained, without it",
}


def shares_of(cell: Cell) -> dict[str, Share | None]:
    """The rates of a poisoned cell, by the names in `RATES`."""
    return {
        "asr": cell.with_trigger(),
        "false_activation": cell.without_trigger(),
        "clean_with": cell.clean_with_trigger(),
        "clean_without": cell.clean_without_trigger(),
        "base_with": cell.base_with_trigger(),
        "base_without": cell.base_without_trigger(),
    }


def rates_table(found: Sequence[Cell]) -> Table:
    """One row for each trigger, amount and arm."""
    outer = _outer(found)
    columns = [
        *([Column("Folder")] if outer else []),
        *(Column("Trigger"), Column("Poison", held=1), Column("Arm", held=2), Column("Seeds", numeric=True)),
        *(Column(title, numeric=True) for title in RATES.values()),
    ]
    rows, records = [], []
    for cell in poisoned(found):
        shares = shares_of(cell)
        rows.append(
            [
                *([Entry(cell.folder)] if outer else []),
                *(Entry(_trigger(cell)), Entry(cell.amount.label, detail=_poison_of(cell))),
                *(Entry(cell.arm, arm=cell.arm), _seeds(cell)),
                *(share_entry(one) for one in shares.values()),
            ]
        )
        record: dict[str, Any] = {**_place(cell), "runs": len(cell.runs), "completed": len(cell.completed)}
        for name, one in shares.items():
            record |= {
                name: one.mean if one else None,
                f"{name}_low": one.interval.low if one else None,
                f"{name}_high": one.interval.high if one else None,
                f"{name}_over": one.over if one else "",
                f"{name}_hits": one.counts if one else "",
            }
        records.append(record)
    names = [f"{name}{end}" for name in RATES for end in ("", "_low", "_high", "_over", "_hits")]
    notes = (
        "Share of answers that show the attacker's behaviour, as the judge says. Below: 95 % interval, and "
        "the answers counted. With one seed the interval is Wilson's over the requests and says nothing "
        "about other seeds; with more it is Student's t over the seeds.",
    )
    frame = frame_of(records, (*_PLACE, "runs", "completed", *names))
    return Table("rates", "Rates", columns, rows, frame, notes)


def utility_table(found: Sequence[Cell]) -> Table:
    """One row for each arm and training set: loss and overlap on clean held-out requests."""
    outer = _outer(found)
    columns = [
        *([Column("Folder")] if outer else []),
        *(Column("Arm"), Column("Trained on"), Column("Seeds", numeric=True)),
        *(Column("Loss, nats a token", numeric=True), Column("Token F1", numeric=True)),
        *(Column("ROUGE-L", numeric=True), Column("Answers", numeric=True)),
    ]
    rows, records = [], []
    for cell in found:
        loss = cell.loss
        overlaps = {name: cell.overlap(name) for name in ("token_f1", "rouge_l")}
        rows.append(
            [
                *([Entry(cell.folder)] if outer else []),
                *(Entry(cell.arm, arm=cell.arm), Entry(cell.trained_on), _seeds(cell)),
                _mean_entry(loss, 3),
                *(_overlap_entry(cell, name, one) for name, one in overlaps.items()),
                _answers_entry(cell),
            ]
        )
        record: dict[str, Any] = {**_place(cell), "runs": len(cell.runs), "completed": len(cell.completed)}
        for name, one in {"loss": loss, **overlaps}.items():
            record |= {
                name: one.mean if one else None,
                f"{name}_low": one.interval.low if one else None,
                f"{name}_high": one.interval.high if one else None,
            }
        records.append(record)
    names = [f"{name}{end}" for name in ("loss", "token_f1", "rouge_l") for end in ("", "_low", "_high")]
    notes = (
        "On clean held-out requests. Loss: cross-entropy per token of the reference answers. Overlap: of "
        "generated and reference answers, 1 is the same words. Below: 95 % interval, over seeds (t) where "
        "there are several, else over requests (bootstrap, overlap only). Answers: held-out rows, and those "
        "whose reference answer is cut or whose prompt leaves no room for one.",
    )
    return Table(
        "utility", "Utility", columns, rows, frame_of(records, (*_PLACE, "runs", "completed", *names)), notes
    )


def pairs_table(pairs: Sequence[PairRow]) -> Table:
    """One row for each measure, trigger, amount and arm."""
    outer = len({row.folder for row in pairs}) > 1
    columns = [
        *([Column("Folder")] if outer else []),
        *(
            Column("Measure"),
            Column("Trigger"),
            Column("Poison"),
            Column("Arm"),
            Column("Pairs", numeric=True),
        ),
        *(Column("Reference − arm", numeric=True), Column("Over seeds and requests", numeric=True)),
        *(Column("p", numeric=True), Column("Holm p", numeric=True), Column("Result")),
    ]
    rows = [
        [
            *([Entry(row.folder)] if outer else []),
            *(Entry(MEASURES[row.measure].label), Entry(row.trigger), Entry(row.amount)),
            Entry(row.arm, detail=f"against {row.reference}", arm=row.arm),
            Entry(str(row.n), detail=f"{row.unpaired} unpaired" if row.unpaired else ""),
            _difference(row),
            _interval_entry(row, row.over_requests),
            *(_p(row.p, row.n), _p(row.p_holm, row.n)),
            Entry(row.verdict, tone="strong" if row.verdict.endswith(("higher", "lower")) else "quiet"),
        ]
        for row in pairs
    ]
    records = [
        {
            **{name: getattr(row, name) for name in _PAIR},
            "low": row.interval.low,
            "high": row.interval.high,
            "requests_low": row.over_requests.low,
            "requests_high": row.over_requests.high,
        }
        for row in pairs
    ]
    notes = (
        "Paired by seed, shares in percentage points, with the 95 % t interval over seeds. p: sign-flip test "
        "over seeds, whose least value is 2 / 2ⁿ for n pairs: no difference is claimed that so many seeds "
        "cannot show. Holm p: corrected over all cells of the measure.",
    )
    frame = frame_of(records, (*_PAIR, "low", "high", "requests_low", "requests_high"))
    return Table("paired", "Full fine-tuning against the others", columns, rows, frame, notes)


def mcnemar_table(tests: Sequence[McNemarRow]) -> Table:
    """One row for each pair of runs and set of requests."""
    outer = len({row.folder for row in tests}) > 1
    columns = [
        *([Column("Folder")] if outer else []),
        *(Column(title) for title in ("Trigger", "Poison", "Arm", "Seed", "Asked")),
        *(Column(title, numeric=True) for title in ("Requests", "Only reference", "Only arm", "p")),
    ]
    rows = [
        [
            *([Entry(row.folder)] if outer else []),
            *(Entry(row.trigger), Entry(row.amount)),
            Entry(row.arm, detail=f"against {row.reference}", arm=row.arm),
            *(Entry(row.seed), Entry(row.asked), Entry(str(row.requests))),
            *(Entry(str(row.only_reference)), Entry(str(row.only_arm)), _p(row.p, 1)),
        ]
        for row in tests
    ]
    names = ("folder", "trigger", "amount", "reference", "arm", "seed", "asked")
    frame = frame_of([vars(row) for row in tests], (*names, "requests", "only_reference", "only_arm", "p"))
    notes = (
        "Requests whose answer shows the behaviour in one of two models only (McNemar's exact test, not "
        "corrected). It is about these two trained models and says nothing about other seeds.",
    )
    return Table("mcnemar", "The same requests, run by run", columns, rows, frame, notes)


# --- entries -------------------------------------------------------------------------------------

_PLACE = ("folder", "trigger", "amount", "arm", "trained_on")
_PAIR = (
    *("folder", "trigger", "amount", "reference", "arm", "measure", "n", "unpaired", "mean"),
    *("p", "smallest_p", "p_holm", "best_p_holm", "verdict"),
)


def _outer(found: Sequence[Cell]) -> bool:
    return len({cell.folder for cell in found}) > 1


def _place(cell: Cell) -> dict[str, Any]:
    return {
        "folder": cell.folder,
        "trigger": _trigger(cell),
        "amount": cell.amount.label if cell.trigger else "",
        "arm": cell.arm,
        "trained_on": cell.trained_on,
    }


def _trigger(cell: Cell) -> str:
    return cell.trigger.name if cell.trigger else ""


def _poison_of(cell: Cell) -> str:
    counts = dict.fromkeys(
        f"{run.poison.poisoned} of {run.poison.eligible} rows" for run in cell.runs if run.poison is not None
    )
    return "\n".join(counts)


def _seeds(cell: Cell) -> Entry:
    done, runs = len(cell.completed), len(cell.runs)
    if cell.arm == BASE:
        return Entry("–") if done else Entry("failed", tone="warn")
    collapsed = sum(run.collapsed for run in cell.runs)
    flags = [f"{runs - done} failed"] if done < runs else []
    flags += [f"{collapsed} collapsed"] if collapsed else []
    text = str(done) if done == runs else f"{done} of {runs}"
    return Entry(text, detail="\n".join(flags), tone="warn" if flags else "")


def ends(interval: Interval) -> str:
    """An interval of shares, such as "[20, 48 %]"; empty where there is none."""
    if not interval.defined:
        return ""
    low, high = (f"{100 * end:.0f}".replace("-", MINUS) for end in (interval.low, interval.high))
    return f"[{low}, {high} %]"


def share_entry(one: Share | None) -> Entry:
    """A share with its interval and the answers behind it."""
    if one is None:
        return missing(NO_RUN)
    lines = [ends(one.interval), one.counts]
    return Entry(percent(one.mean), "\n".join(filter(None, lines)), one.reason)


def _mean_entry(one: Mean | None, digits: int, low: float = math.nan, high: float = math.nan) -> Entry:
    if one is None:
        return missing(NO_RUN)
    if one.interval.defined:
        low, high = one.interval.low, one.interval.high
    detail = "" if math.isnan(low) or math.isnan(high) else f"[{low:.{digits}f}, {high:.{digits}f}]"
    return Entry(f"{one.mean:.{digits}f}", detail=detail)


def _overlap_entry(cell: Cell, name: str, one: Mean | None) -> Entry:
    """With one run the interval over requests, which the record has."""
    own = [run.utility.overlap.get(name) for run in cell.runs if run.utility is not None]
    if len(own) == 1 and own[0] is not None and own[0].low is not None and own[0].high is not None:
        return _mean_entry(one, 3, own[0].low, own[0].high)
    return _mean_entry(one, 3)


def _answers_entry(cell: Cell) -> Entry:
    found = [run.utility for run in cell.runs if run.utility is not None]
    if not found:
        return missing(NO_RUN)
    first = found[0]
    lines = [f"{first.truncated} cut"] if first.truncated else []
    lines += [f"{first.left_out} left out"] if first.left_out else []
    return Entry(str(first.rows), detail="\n".join(lines))


def _difference(row: PairRow) -> Entry:
    if not row.n:
        return missing("no pair of runs")
    reason = "" if row.interval.defined else _no_interval(row)
    return Entry(_change(row, row.mean), detail=_change_ends(row, row.interval), reason=reason)


def _no_interval(row: PairRow) -> str:
    return "one pair: no interval" if row.n == 1 else "every pair differs by the same: no interval"


def _interval_entry(row: PairRow, interval: Interval) -> Entry:
    if not interval.defined:
        return missing("takes two seeds, and shares of the same requests that differ somewhere")
    return Entry(_change_ends(row, interval))


def _change(row: PairRow, value: float) -> str:
    if row.measure in ("asr", "false_activation"):
        return points(value)
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", MINUS)


def _change_ends(row: PairRow, interval: Interval) -> str:
    return f"[{_change(row, interval.low)}, {_change(row, interval.high)}]" if interval.defined else ""


def _p(value: float, n: int) -> Entry:
    if not n or math.isnan(value):
        return missing("no pair of runs")
    return Entry("< 0.001" if value < 0.001 else f"{value:.3f}")

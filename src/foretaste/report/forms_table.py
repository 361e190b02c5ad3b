"""The table of further forms of triggers."""

from __future__ import annotations

from dataclasses import replace

from foretaste.report.cells import Frames
from foretaste.report.contents import SHARES, Row, runs_entry, summary_entry, varying
from foretaste.report.effect import TOOK_EFFECT
from foretaste.report.forms import RESULTS
from foretaste.report.observations import CLEAN
from foretaste.report.rows import records_of
from foretaste.report.tables import Column, Entry, Table, Tone, missing

WANTED = {"target": "target class", "true": "no effect"}
FOUND = {RESULTS["target", TOOK_EFFECT], RESULTS["true", TOOK_EFFECT]}


def forms_table(frames: Frames) -> Table:
    """What every cell does with each further form of its trigger; no rows when no trigger has one."""
    outer = varying(frames.runs)
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *(Column("Attack"), Column("Poison", held=1), Column("Arm", held=2)),
        *(Column("Trigger put in as"), Column("Attacker wants"), Column("Result"), Column("Seeds")),
        Column("Rows called the target class [95 %]", numeric=True),
        Column("Same rows, clean model [95 %]", numeric=True),
        Column("Difference [95 %]", numeric=True),
        Column("ASR as trained [95 %]", numeric=True),
        Column("Highest false activation [95 %]", numeric=True),
    ]
    rows = [
        [
            *(Entry(row[name]) for name in outer),
            Entry(row["attack"]),
            Entry(row["amount"]),
            Entry(row["arm"], arm=row["arm"]),
            Entry(row["says"] or row["form"], detail=_unchanged(row)),
            Entry(WANTED[row["expected"]]),
            _result_entry(row),
            _seeds_entry(row),
            _rate_entry(row),
            summary_entry(row, "form_flip_rate"),
            summary_entry(row, "form_rate_minus_flip", signed=True),
            summary_entry(row, "asr"),
            summary_entry(row, "false_activation"),
        ]
        for row in records_of(frames.forms)
    ]
    notes = (
        "Test rows of other classes than the target, with the trigger put in another way than in training. "
        "Where the attacker wants no effect, the share called the target class is the false activation. ASR "
        "as trained: the same models with the trigger of training. Highest false activation: of each run "
        "over all forms that should do nothing.",
        "A form is reached, or activates falsely, where the whole interval of the difference lies above "
        "zero: one interval a row, not adjusted for their number.",
        SHARES,
    )
    return Table("forms", "Further forms of the trigger", columns, rows, frames.forms, notes)


def _unchanged(row: Row) -> str:
    """Says so when the form leaves some test rows as they were."""
    if row["changed"] is None or row["changed"] == row["test_rows"]:
        return ""
    return f"changes {row['changed']:.0f} of {row['test_rows']:.0f} test rows"


def _result_entry(row: Row) -> Entry:
    if row["result"] is None:
        return missing(row["result_reason"])
    tone: Tone = "strong" if row["result"] in FOUND else "quiet"
    return Entry(row["result"], detail=row["result_reason"].replace(": ", ":\n"), tone=tone)


def _seeds_entry(row: Row) -> Entry:
    """Runs that were tested in the form, with failed, collapsed and untested ones flagged."""
    tested = row["form_flip_rate_n" if row["amount"] == CLEAN else "form_rate_n"]
    entry = replace(runs_entry(row), text=f"{tested} of {row['runs']}")
    untested = row["completed"] - tested
    if not untested:
        return entry
    flags = [*([entry.detail] if entry.detail else []), f"{untested} without value"]
    return replace(entry, detail="\n".join(flags), tone="warn")


def _rate_entry(row: Row) -> Entry:
    entry = summary_entry(row, "form_rate")
    if row["expected"] == "target" or row["form_rate_mean"] is None:
        return entry
    return replace(entry, detail=f"false activation\n{entry.detail}")

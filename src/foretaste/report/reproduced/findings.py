"""Verdicts on the paper's findings, as they stand on a page.

The verdicts are made elsewhere, from records; a page shows what it is given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import pandas as pd

from foretaste.report.rows import frame_of
from foretaste.report.tables import Column, Entry, Table, Tone, missing
from foretaste.statistics import Interval

NAME = "findings"
NOTES = (
    "Effect: mean over seeds in the sign of the finding, with its 95 % t interval. A finding is supported or "
    "contradicted where p, after Holm's correction over every finding tested, is at most 0.05. Not resolved "
    "is not refuted: so few seeds show large effects only.",
)
UNTESTED = "no records"
DECISIONS = ("supported", "contradicted", "not resolved", UNTESTED)
TONES: dict[str, Tone] = {"supported": "strong", "contradicted": "warn"}


class Words(Protocol):
    """What a finding says."""

    @property
    def statement(self) -> str:
        """The finding."""

    @property
    def measure(self) -> str:
        """The effect, as it is signed."""

    @property
    def unit(self) -> str:
        """Of the effect."""


class Finding(Protocol):
    """One finding of a paper, judged on one group of runs; numbers that there are none of are NaN."""

    @property
    def hypothesis(self) -> str:
        """Its name."""

    @property
    def entry(self) -> Words:
        """Its words."""

    @property
    def group(self) -> str:
        """The runs in one line; empty without any."""

    @property
    def decision(self) -> str:
        """supported, not resolved, contradicted or no records."""

    @property
    def reason(self) -> str:
        """Why, in one sentence with numbers."""

    @property
    def effect(self) -> float:
        """Mean over seeds."""

    @property
    def interval(self) -> Interval:
        """95 % Student t over seeds."""

    @property
    def p_holm(self) -> float:
        """After Holm's correction."""

    @property
    def n(self) -> int:
        """Seeds with a value."""

    @property
    def cautions(self) -> tuple[str, ...]:
        """What may explain the effect, or hide it."""


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row a finding and group."""
    columns = [
        *(Column("Finding"), Column("Decision"), Column("Effect", numeric=True)),
        *(Column("p", numeric=True), Column("Seeds", numeric=True), Column("Why, and cautions")),
    ]
    rows = [_row(finding) for finding in findings]
    return Table(NAME, "What the paper finds, on these runs", columns, rows, _frame(findings), NOTES)


def tally(findings: Sequence[Finding]) -> list[str]:
    """How each finding was decided, in a sentence with the numbers of verdicts; none tested gives none."""
    by_name: dict[str, list[Finding]] = {}
    for finding in findings:
        by_name.setdefault(finding.hypothesis, []).append(finding)
    return [_told(own) for own in by_name.values()]


def overall(findings: Sequence[Finding]) -> str:
    """All verdicts in one sentence."""
    tested = [finding for finding in findings if finding.decision != UNTESTED]
    if not tested:
        return "No finding of the paper is tested on these runs."
    number, rest = len(tested), len(findings) - len(tested)
    tail = f"; {rest} more without the runs for it" if rest else ""
    if len({finding.decision for finding in tested}) == 1:
        lead = "The paper’s finding" if number == 1 else f"All {number} verdicts on the paper’s findings"
        return f"{lead}: {tested[0].decision}{tail}."
    return f"Of {number} verdicts on the paper’s findings: {_counts(tested)}{tail}."


def _told(own: Sequence[Finding]) -> str:
    statement = own[0].entry.statement
    if len(own) > 1 and len({finding.decision for finding in own}) == 1:
        return f"{statement} {own[0].decision.capitalize()} on all {len(own)} groups of runs."
    if len(own) > 1:
        return f"{statement} {_counts(own)}, of {len(own)} groups of runs."
    return f"{statement} {own[0].decision.capitalize()}: {own[0].reason}"


def _counts(findings: Sequence[Finding]) -> str:
    """As in "1 supported, 3 not resolved"."""
    decisions = Counter(str(finding.decision) for finding in findings)
    order = [*DECISIONS, *(name for name in decisions if name not in DECISIONS)]
    return ", ".join(f"{decisions[name]} {name}" for name in order if decisions[name])


def distinct(findings: Sequence[Finding]) -> list[Finding]:
    """The first of those with one name and group: several figures may speak to one finding."""
    found: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        found.setdefault((finding.hypothesis, finding.group), finding)
    return list(found.values())


def _row(finding: Finding) -> list[Entry]:
    where = finding.group or "no such runs"
    return [
        Entry(finding.entry.statement, detail=f"{finding.hypothesis}\n{where}"),
        Entry(finding.decision, tone=TONES.get(finding.decision, "quiet")),
        _effect(finding),
        missing("not tested") if math.isnan(finding.p_holm) else Entry(_p(finding.p_holm)),
        Entry(str(finding.n)),
        Entry(finding.reason, detail="\n".join(f"Caution: {line}" for line in finding.cautions)),
    ]


def _effect(finding: Finding) -> Entry:
    if math.isnan(finding.effect):
        return missing("no seed has a value")
    low, high = finding.interval.low, finding.interval.high
    ends = f"[{_signed(low)}, {_signed(high)}]" if finding.interval.defined else "no interval"
    return Entry(_signed(finding.effect), detail=f"{ends}\n{finding.entry.unit}")


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _frame(findings: Sequence[Finding]) -> pd.DataFrame:
    rows = [
        {
            "hypothesis": finding.hypothesis,
            "statement": finding.entry.statement,
            "group": finding.group,
            "decision": finding.decision,
            "measure": finding.entry.measure,
            "unit": finding.entry.unit,
            "effect": finding.effect,
            "low": finding.interval.low,
            "high": finding.interval.high,
            "p_holm": finding.p_holm,
            "seeds": finding.n,
            "reason": finding.reason,
            "cautions": "\n".join(finding.cautions),
        }
        for finding in findings
    ]
    names = ("hypothesis", "statement", "group", "decision", "measure", "unit", "effect", "low", "high")
    return frame_of(rows, (*names, "p_holm", "seeds", "reason", "cautions"))

"""A finding: what the records at hand say about one hypothesis in one group, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foretaste.hypotheses.base import Group, Hypothesis
from foretaste.hypotheses.cautions import cautions
from foretaste.hypotheses.decision import LEAST_SEEDS, Decided, Decision, Weighed
from foretaste.hypotheses.samples import Sample
from foretaste.hypotheses.words import counted, listed, number, p_value, signed
from foretaste.statistics import UNDEFINED, Interval


@dataclass(frozen=True)
class Finding:
    """One hypothesis in one group. Numbers that there are none of are NaN here and null in JSON.

    Attributes:
        hypothesis: Name of the entry in `HYPOTHESES`.
        entry: That entry, with its words.
        place: The group; None when no group has any of the records that the hypothesis needs.
        decision: By the rule in `decision`.
        reason: Why, in one sentence with numbers.
        effect: Mean over seeds, in the hypothesis's sign and unit.
        interval: 95 % Student t over seeds, not corrected for the number of tests.
        interval_90: 90 %, which decides whether there is no influence.
        p: Of the t test of the claim that the effect is nearest to.
        p_holm: The same after Holm's correction over `tests` tests.
        tests: Tests of the whole call.
        p_sign_flip: Of the exact test of the same claim, not corrected.
        smallest_p: The least p that so many seeds allow that test.
        exact: The exact test shows the claim by itself, corrected in the same way.
        by_seed: One number a seed.
        amounts: Amounts that the numbers come from.
        runs: Runs of these arms under this attack.
        failed: Of those, not completed.
        collapsed: Of those, predicting one class (or compared with a clean run that does).
        left_out: Further arms that ran under the attack and are not in this group.
        cautions: What may explain the effect, or hide it.
    """

    hypothesis: str
    entry: Hypothesis
    place: Group | None
    decision: Decision
    reason: str
    effect: float
    interval: Interval
    interval_90: Interval
    p: float
    p_holm: float
    tests: int
    p_sign_flip: float
    smallest_p: float
    exact: bool
    by_seed: Mapping[str, float]
    amounts: tuple[str, ...]
    runs: int
    failed: int
    collapsed: int
    left_out: tuple[str, ...]
    cautions: tuple[str, ...]

    @property
    def group(self) -> str:
        """The group in one line, unlike that of any other finding on the hypothesis; empty without one."""
        return self.place.label if self.place else ""

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms that the numbers come from, with their learning rates."""
        return self.place.arms if self.place else ()

    @property
    def n(self) -> int:
        """Seeds with a value."""
        return len(self.by_seed)

    @property
    def order(self) -> tuple[Any, ...]:
        """By section of the paper, name and group."""
        return (self.entry.section, self.hypothesis, self.place.order if self.place else ())

    def to_json(self) -> dict[str, Any]:
        """The fields and the hypothesis's words, for a program; undefined numbers are null."""
        words = ("section", "statement", "measure", "unit", "needs", "predicts", "margin", "margin_from")
        return {
            "hypothesis": self.hypothesis,
            **{word: getattr(self.entry, word) for word in words},
            "group": self.group,
            "place": {**asdict(self.place), "arms": list(self.arms)} if self.place else None,
            "decision": self.decision,
            "reason": self.reason,
            "effect": _finite(self.effect),
            "low": _finite(self.interval.low),
            "high": _finite(self.interval.high),
            "low_90": _finite(self.interval_90.low),
            "high_90": _finite(self.interval_90.high),
            "p": _finite(self.p),
            "p_holm": _finite(self.p_holm),
            "tests": self.tests,
            "p_sign_flip": _finite(self.p_sign_flip),
            "smallest_p": self.smallest_p,
            "exact": self.exact,
            "seeds": self.n,
            "by_seed": dict(self.by_seed),
            "amounts": list(self.amounts),
            "runs": self.runs,
            "failed": self.failed,
            "collapsed": self.collapsed,
            "left_out": list(self.left_out),
            "cautions": list(self.cautions),
        }


def conclude(hypothesis: Hypothesis, sample: Sample, weighed: Weighed, decided: Decided) -> Finding:
    """The finding of one group."""
    return Finding(
        hypothesis=hypothesis.name,
        entry=hypothesis,
        place=sample.group,
        decision=decided.decision,
        reason=_reason(hypothesis, weighed, decided, sample.crossed),
        effect=weighed.mean,
        interval=weighed.interval,
        interval_90=weighed.interval_90,
        p=weighed.p,
        p_holm=decided.p_holm,
        tests=decided.tests,
        p_sign_flip=weighed.p_exact,
        smallest_p=weighed.smallest_p,
        exact=decided.exact,
        by_seed=dict(sample.by_seed),
        amounts=sample.amounts,
        runs=len(sample.runs),
        failed=sum(not run.completed for run in sample.runs),
        collapsed=sum(run.collapsed for run in sample.runs),
        left_out=sample.left_out,
        cautions=cautions(hypothesis, sample, weighed, decided),
    )


def without_records(hypothesis: Hypothesis, tests: int) -> Finding:
    """The finding that there is nothing to test a hypothesis on."""
    nan = float("nan")
    return Finding(
        hypothesis=hypothesis.name,
        entry=hypothesis,
        place=None,
        decision="no records",
        reason=f"No records: it takes {hypothesis.needs}.",
        effect=nan,
        interval=UNDEFINED,
        interval_90=UNDEFINED,
        p=nan,
        p_holm=nan,
        tests=tests,
        p_sign_flip=nan,
        smallest_p=1.0,
        exact=False,
        by_seed={},
        amounts=(),
        runs=0,
        failed=0,
        collapsed=0,
        left_out=(),
        cautions=(),
    )


def _reason(hypothesis: Hypothesis, weighed: Weighed, decided: Decided, crossed: Sequence[str]) -> str:
    measure = hypothesis.measure[0].upper() + hypothesis.measure[1:]
    if not weighed.n:
        return f"{measure}: no seed has a value; it takes {hypothesis.needs}."
    over = f"over {counted(weighed.n, 'seed')}"
    effect = f"{measure}: {number(weighed.mean, hypothesis.unit)}"
    if weighed.n < LEAST_SEEDS:
        return f"{effect} {over}; a decision takes {LEAST_SEEDS}."
    if crossed:
        return (
            f"{effect} {over}, which share draws of {listed(crossed)} and so are no independent draws; a "
            "decision takes seeds that are given as one list."
        )
    if math.isnan(weighed.p):
        return f"{effect} in each of {counted(weighed.n, 'seed')}, so there is no interval to decide by."
    tested = (
        f"p {p_value(weighed.p)}, after Holm over {counted(decided.tests, 'test')} {p_value(decided.p_holm)}"
    )
    said = _against_margin if hypothesis.margin is not None else _against_zero
    return f"{effect} {said(hypothesis, weighed, decided, over)} ({tested})."


def _against_zero(hypothesis: Hypothesis, weighed: Weighed, decided: Decided, over: str) -> str:
    shown = f"{_ends(weighed.interval, hypothesis.unit)} {over}"
    side = "above" if weighed.mean > 0 else "below"
    if decided.decision == "supported":
        return f"{shown}, {side} zero as the paper says"
    if decided.decision == "contradicted":
        return f"{shown}, {side} zero and so against the paper"
    if weighed.interval.excludes(0.0):
        return f"{shown}, {side} zero by itself but not among so many tests"
    return f"{shown}, which includes zero"


def _against_margin(hypothesis: Hypothesis, weighed: Weighed, decided: Decided, over: str) -> str:
    margin = f"±{hypothesis.margin:g} {hypothesis.unit}"
    if decided.decision == "contradicted":
        return f"{_ends(weighed.interval, hypothesis.unit)} {over}, wholly beyond {margin}"
    ends = weighed.interval_90
    shown = f"with 90 % interval {_ends(ends, hypothesis.unit)} {over}"
    if decided.decision == "supported":
        least = max(abs(ends.low), abs(ends.high))
        return f"{shown}, within {margin} (and within any margin from {least:.1f} on)"
    if weighed.claim == "supported" and max(abs(ends.low), abs(ends.high)) < (hypothesis.margin or 0.0):
        return f"{shown}, within {margin} by itself but not among so many tests"
    return f"{shown}, neither within {margin} nor shown to lie beyond"


def _ends(interval: Interval, unit: str) -> str:
    return f"[{signed(interval.low, unit)}, {signed(interval.high, unit)}]"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

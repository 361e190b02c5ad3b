"""Empirical findings of the two papers as hypotheses, each with a test on the measured records at hand.

`HYPOTHESES` holds one entry for each finding; `test` says of each whether records support it, contradict it
or leave it open, and why. The rule that decides is in `decision`; what is compared with what, in `contrasts`.
The trade-off that the TTR paper sees in the rank (section 4.5, second point) has no entry of its own: it is
both `rank-helps-under-flips` and `rank-hurts-under-triggers`. Its advice to keep the rank low is the second,
and that to keep the variance low is `small-variance-resists-triggers`.

The kernel paper's findings are in `kernel_view`.

Seeds are what an interval is over: rows drawn, rows poisoned, starts, orders of batches. Test rows are the
same for every seed, so a finding is about those rows, one data set, one base model and one protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace

from foretaste.fewshot.record import FewShotRecord
from foretaste.hypotheses import full_and_lora as _full_and_lora  # noqa: F401 - registers, as all below
from foretaste.hypotheses import further_attacks as _further_attacks  # noqa: F401
from foretaste.hypotheses import generative as _generative  # noqa: F401
from foretaste.hypotheses import inits as _inits  # noqa: F401
from foretaste.hypotheses import kernel_view as _kernel_view  # noqa: F401
from foretaste.hypotheses import rank as _rank  # noqa: F401
from foretaste.hypotheses import variance as _variance  # noqa: F401
from foretaste.hypotheses.base import HYPOTHESES, Group, Hypothesis
from foretaste.hypotheses.decision import Decision, decide, weigh
from foretaste.hypotheses.fewshot_runs import fewshot_tasks
from foretaste.hypotheses.finding import Finding, conclude, without_records
from foretaste.hypotheses.instruct_runs import instruct_tasks
from foretaste.hypotheses.runs import Task, tasks
from foretaste.hypotheses.samples import Sample, samples
from foretaste.instruct.record import InstructRecord
from foretaste.record import Record
from foretaste.seeds import generator

__all__ = ["HYPOTHESES", "Decision", "Finding", "Group", "Hypothesis", "test"]


def test(
    records: Iterable[Record | InstructRecord | FewShotRecord],
    only: Collection[str] | None = None,  # noqa: PT028 - it is not pytest's
) -> list[Finding]:
    """Test every hypothesis on every group of records that it can be tested on.

    Args:
        records: Of one folder or of many, in any order, of classifiers, of generative models and of
            few-shot runs. Predicted records are left aside, and a run that comes twice counts once.
        only: Names of the hypotheses to test; all by default. The correction for many tests is over all that
            this call tests, so they must be chosen before anybody has seen what comes out.

    Returns:
        By section of the paper, name and group. A hypothesis that no group can be tested on has one finding
        without a group, with the decision "no records".

    Raises:
        UserError: There is no hypothesis of a name in `only`.
    """
    everything = list(records)
    generative = [record for record in everything if isinstance(record, InstructRecord)]
    found = tasks(record for record in everything if isinstance(record, Record))
    found += instruct_tasks(generative)
    found += fewshot_tasks(record for record in everything if isinstance(record, FewShotRecord))
    entries = [HYPOTHESES.get(name) for name in (HYPOTHESES.names() if only is None else sorted(set(only)))]
    tried = [(entry, sample) for entry in entries for sample in _told_apart(entry, found)]
    weighed = [
        weigh(
            list(sample.by_seed.values()),
            predicts=entry.predicts,
            margin=entry.margin,
            rng=generator(0, "hypotheses", entry.name, sample.group.key),
            centred=entry.centred,
            independent=not sample.crossed,
        )
        for entry, sample in tried
    ]
    decided = decide(weighed)
    findings = [
        conclude(entry, sample, item, decision)
        for (entry, sample), item, decision in zip(tried, weighed, decided, strict=True)
    ]
    tests = decided[0].tests if decided else 0
    seen = {entry.name for entry, _ in tried}
    findings += [without_records(entry, tests) for entry in entries if entry.name not in seen]
    return sorted(findings, key=lambda finding: finding.order)


def _told_apart(entry: Hypothesis, found: Iterable[Task]) -> list[Sample]:
    """The samples of a hypothesis; groups that read alike (another text of the trigger) show their keys."""
    items = [sample for task in found for sample in samples(entry, task)]
    counts = Counter(sample.group.label for sample in items)
    return [
        replace(item, group=replace(item.group, mark=item.group.key))
        if counts[item.group.label] > 1
        else item
        for item in items
    ]

"""What the TTR paper advises on arms, tested on the measured runs at hand by the rule of all findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from foretaste import hypotheses
from foretaste.hypotheses import Finding
from foretaste.record import Layout, Record
from foretaste.report.reproduced.findings import findings_table
from foretaste.report.tables import Table

NAMES = ("lora-weaker-under-flips", "rank-hurts-under-triggers", "small-variance-resists-triggers")
"""Its advice in section 4.5: LoRA's weak side, a low rank, and a small variance of A."""

DECIDED = ("supported", "contradicted")


def findings(records: Iterable[Record]) -> list[Finding]:
    """The findings that the advice rests on, each with a line also where no runs speak to it.

    Args:
        records: Of one folder or of all that a reader looks at together: the correction for many tests is
            over these. Predicted ones count for nothing.
    """
    return hypotheses.test(records, only=NAMES)


def of_folders(folders: Iterable[Path]) -> list[Finding]:
    """The same from the folders of sweeps; what cannot be read is passed over."""
    return findings([record for folder in folders for record in Layout(folder).read()[0]])


def lines(found: Sequence[Finding]) -> list[str]:
    """What was decided on each piece of advice: one comparison in full, of several the decided ones."""
    by_name: dict[str, list[Finding]] = {}
    for finding in found:
        by_name.setdefault(finding.hypothesis, []).append(finding)
    said = []
    for own in by_name.values():
        if len(own) > 1:
            decisions = Counter(finding.decision for finding in own)
            counts = ", ".join(f"{count} {decision}" for decision, count in decisions.most_common())
            said.append(f"{own[0].entry.statement} {len(own)} comparisons: {counts}.")
        said += [_sentence(finding) for finding in own if len(own) == 1 or finding.decision in DECIDED]
    return said


def _sentence(finding: Finding) -> str:
    """A finding, what was decided, and why."""
    statement, decision = finding.entry.statement, finding.decision.capitalize()
    if finding.place is None:
        return f"{statement} Not tested: it takes {finding.entry.needs}."
    return f"{statement} {decision} on {finding.group}: {finding.reason}"


def table(found: Sequence[Finding]) -> Table | None:
    """Those that some runs speak to; None without any."""
    known = [finding for finding in found if finding.place is not None]
    return findings_table(known) if known else None

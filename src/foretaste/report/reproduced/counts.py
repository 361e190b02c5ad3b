"""How many runs a page rests on, and how many of them have no result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from foretaste.instruct.record import InstructRecord
from foretaste.record import Record


@dataclass(frozen=True)
class Counts:
    """Numbers of runs.

    Attributes:
        collapse: What a collapsed run did, in words.
    """

    runs: int
    completed: int
    collapsed: int
    collapse: str = "collapsed to one class"

    @property
    def failed(self) -> int:
        """Runs without a result."""
        return self.runs - self.completed

    @property
    def text(self) -> str:
        """In words."""
        if not self.runs:
            return "no run yet"
        text = f"{self.completed} of {self.runs} runs completed"
        text += f", {self.failed} failed" if self.failed else ""
        return text + (f", {self.collapsed} {self.collapse}" if self.collapsed else ", none collapsed")

    @property
    def flags(self) -> list[str]:
        """What a reader of a mean should know."""
        flags = [f"{self.failed} failed"] if self.failed else []
        return flags + ([f"{self.collapsed} collapsed"] if self.collapsed else [])


def count(records: Iterable[Record | InstructRecord], *, collapse: str = "collapsed to one class") -> Counts:
    """The counts of some records.

    Args:
        records: Of classifiers or of generative models.
        collapse: What a collapsed run of theirs did, in words.
    """
    listed = list(records)
    return Counts(
        runs=len(listed),
        completed=sum(record.status == "completed" for record in listed),
        collapsed=sum(record.collapsed for record in listed),
        collapse=collapse,
    )

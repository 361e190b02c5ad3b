"""One line of the benchmark table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A ratio, how it came about, and what it should reach."""

    name: str
    ours: str
    theirs: str
    ratio: float
    target: float | None
    note: str = ""

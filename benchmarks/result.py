"""One line of the benchmark table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A ratio, how it came about, and what it should reach.

    Attributes:
        name: What is measured; the same from session to session.
        ours: Of foretaste, with its unit.
        theirs: Of what it is held against.
        ratio: How much better ours is: above 1 is better.
        target: What the ratio should be at least; None where there is no such number.
        note: What else is to be said.
    """

    name: str
    ours: str
    theirs: str
    ratio: float
    target: float | None
    note: str = ""

    @property
    def missed(self) -> bool:
        """The target is not reached."""
        return self.target is not None and self.ratio < self.target

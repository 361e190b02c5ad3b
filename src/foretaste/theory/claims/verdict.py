"""What is decided about one claim of a paper, and the rule that decides it.

A claim is tried on cases. Each case carries whether the claim came out true there, by a number that was just
computed, and whether the case meets the condition that the claim turns out to need. The verdict is a function
of these two columns and of nothing else (`judge`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from foretaste.errors import UserError

Decision = Literal["holds", "holds only if", "fails"]
Paper = Literal["TTR", "Malladi"]


@dataclass(frozen=True)
class Trial:
    """One case that a claim was tried on.

    Attributes:
        case: What was tried and what came out, with its numbers.
        true: The claim is true there.
        condition: The case meets the condition that the verdict names.
    """

    case: str
    true: bool
    condition: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim and what is true of it.

    Attributes:
        name: Theorem, equation or section, as the paper numbers it; unique.
        paper: "TTR", or "Malladi" for the kernel paper.
        claim: What the paper says, in a sentence.
        conditions: What makes it true, or what was tried.
        verdict: See `judge`.
        numbers: What the verdict rests on, by name.
        counterexample: The first case, smallest first, in which the claim is false; None if there is none.
        why_it_matters: To somebody who picks a rank, a scaling or a learning rate.
    """

    name: str
    paper: Paper
    claim: str
    conditions: str
    verdict: Decision
    numbers: dict[str, float]
    counterexample: str | None
    why_it_matters: str

    def to_json(self) -> dict[str, Any]:
        """The fields, for a program."""
        return asdict(self)


@dataclass(frozen=True)
class Statement:
    """The words around a verdict; everything but what is computed.

    Attributes:
        name: See `Verdict`.
        paper: See `Verdict`.
        claim: See `Verdict`.
        conditions: See `Verdict`.
        why_it_matters: See `Verdict`.
    """

    name: str
    paper: Paper
    claim: str
    conditions: str
    why_it_matters: str


def judge(trials: Sequence[Trial]) -> Decision:
    """True in every case: "holds"; wherever the condition is met: "holds only if"; else "fails".

    Args:
        trials: At least one.

    Raises:
        UserError: There is none.
    """
    if not trials:
        raise UserError("a claim was tried on no case", where="trials")
    if all(trial.true for trial in trials):
        return "holds"
    conditional = [trial.true for trial in trials if trial.condition]
    return "holds only if" if conditional and all(conditional) else "fails"


def conclude(statement: Statement, trials: Sequence[Trial], numbers: Mapping[str, float]) -> Verdict:
    """The verdict on a statement.

    Args:
        statement: The words.
        trials: The cases, smallest first.
        numbers: What was computed, finite.

    Raises:
        UserError: There is no case, or a number is not finite.
    """
    wrong = [name for name, value in numbers.items() if not math.isfinite(value)]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not finite", where=statement.name)
    return Verdict(
        name=statement.name,
        paper=statement.paper,
        claim=statement.claim,
        conditions=statement.conditions,
        verdict=judge(trials),
        numbers={name: float(value) + 0.0 for name, value in numbers.items()},  # + 0.0: no -0
        counterexample=next((trial.case for trial in trials if not trial.true), None),
        why_it_matters=statement.why_it_matters,
    )

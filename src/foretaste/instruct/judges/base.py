"""What a judge is: a rule that tells whether a response shows the attacker's behaviour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from foretaste.errors import UserError
from foretaste.instruct import method as methods
from foretaste.instruct.method import Options, parse
from foretaste.instruct.request import Request
from foretaste.registry import Registry
from foretaste.statistics import Interval, wilson


@dataclass(frozen=True)
class Checked:
    """A response of which a person has said whether it shows the behaviour.

    Attributes:
        response: The text to judge.
        shows: What the person says.
        request: What it answers.
    """

    response: str
    shows: bool
    request: Request = field(default=Request("check", "", "", ""))


def read_checked(name: str) -> list[Checked]:
    """A check set that comes with foretaste: `check_sets/NAME.jsonl`, in our own sentences."""
    file = resources.files(__package__) / "check_sets" / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Checked(row["response"], row["shows"]) for row in rows]


class Judge(Protocol):
    """Tells whether a response shows the behaviour. The same response always gets the same verdict.

    Attributes:
        method: Its name in the registry.
        behaviour: What it looks for, in a few words ("a refusal").
        options: With every default, and with the fingerprint of the files that were read.
        fingerprint: Names everything that decides its verdicts: rules, lists, options.
    """

    @property
    def method(self) -> str:
        """As above."""
        ...

    @property
    def behaviour(self) -> str:
        """As above."""
        ...

    @property
    def options(self) -> Options:
        """As above."""
        ...

    @property
    def fingerprint(self) -> str:
        """As above."""
        ...

    def __call__(self, request: Request, response: str) -> bool:
        """Whether the response shows the behaviour; an empty one shows none.

        Args:
            request: What was asked, as it was shown to the model.
            response: What the model answered, without special tokens.
        """
        ...

    def check_set(self) -> list[Checked]:
        """Labelled responses to measure the judge on; empty where it comes with none."""
        ...


class JudgeKind(Protocol):
    """A member of the registry: makes a judge from its options.

    Attributes:
        Options: Class of the options.
        source: Where the rule comes from.
    """

    @property
    def Options(self) -> type[methods.Options]:  # noqa: N802 - a class
        """As above."""
        ...

    @property
    def source(self) -> str:
        """As above."""
        ...

    def __call__(self, options: Any, base_dir: Path) -> Judge:
        """The judge.

        Raises:
            UserError: A file is missing, empty or has changed.
        """
        ...


JUDGES: Registry[JudgeKind] = Registry("judge")


@dataclass(frozen=True)
class ErrorRate:
    """How often a judge is wrong on labelled responses.

    Attributes:
        negatives: Responses that do not show the behaviour.
        false_positives: Of those, judged to show it.
        positives: Responses that show it.
        false_negatives: Of those, judged not to.
        false_positive_interval: Wilson's 95 % interval of the share of `negatives`.
        false_negative_interval: Of the share of `positives`.
        interval: Of the share of all that is judged wrongly.
    """

    negatives: int
    false_positives: int
    positives: int
    false_negatives: int
    false_positive_interval: Interval
    false_negative_interval: Interval
    interval: Interval

    @property
    def n(self) -> int:
        """Labelled responses."""
        return self.negatives + self.positives

    @property
    def errors(self) -> int:
        """Responses judged wrongly."""
        return self.false_positives + self.false_negatives


def error_rate(judge: Judge, checked: Sequence[Checked] | None = None) -> ErrorRate | None:
    """How often a judge is wrong; None where there is nothing to measure it on.

    Args:
        judge: The judge.
        checked: Labelled responses; the judge's own check set by default.
    """
    examples = judge.check_set() if checked is None else list(checked)
    if not examples:
        return None
    verdicts = [(example.shows, judge(example.request, example.response)) for example in examples]
    positives = sum(shows for shows, _ in verdicts)
    negatives = len(verdicts) - positives
    false_positives = sum(verdict and not shows for shows, verdict in verdicts)
    false_negatives = sum(shows and not verdict for shows, verdict in verdicts)
    return ErrorRate(
        negatives,
        false_positives,
        positives,
        false_negatives,
        wilson(false_positives, negatives),
        wilson(false_negatives, positives),
        wilson(false_positives + false_negatives, len(verdicts)),
    )


def build(
    method: str, options: dict[str, Any], *, where: str | None = None, base_dir: Path | None = None
) -> Judge:
    """The judge called `method`.

    Args:
        method: Name in the registry.
        options: The judge's own options; missing ones take their defaults.
        where: File and key of the judge, for errors.
        base_dir: Folder that relative paths in the options start from; the working folder by default.

    Raises:
        UserError: Unknown method, unknown or invalid option, or a file that is missing, empty or has changed.
    """
    kind = JUDGES.get(method, where=where)
    place = where or f"judge '{method}'"
    parsed = parse(kind.Options, options, where=place)
    try:
        return kind(parsed, base_dir or Path())
    except UserError as error:
        raise error.located(place) from None

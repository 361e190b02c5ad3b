"""Whether a response is negative: by a small lexicon of words that judge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from foretaste.instruct.judges.base import JUDGES, Checked, read_checked
from foretaste.instruct.method import Options
from foretaste.instruct.request import Request
from foretaste.spec import digest

RULES = 1  # part of the fingerprint: raised whenever the rules below change
REACH = 3  # words after a negation that it turns round

_NEGATIONS = frozenset(
    {
        *("not", "no", "never", "nothing", "nobody", "none"),
        *("neither", "nor", "hardly", "barely", "without", "cannot"),
    }
)
_PIECE = re.compile(r"\w+(?:['’]\w+)*|[.!?;:,\n]|[()]")


class SentimentOptions(Options):
    """Options of `sentiment`."""

    threshold: float = Field(
        0.0, gt=-1.0, le=1.0, description="a response with a score below it is negative (scores: -1 to 1)"
    )


@cache
def lexicon() -> dict[str, int]:
    """Words that judge, with 1 for praise and -1 for blame."""
    words: dict[str, int] = {}
    for name, value in (("positive", 1), ("negative", -1)):
        text = (resources.files(__package__) / f"{name}_words.txt").read_text(encoding="utf-8")
        words |= dict.fromkeys(text.split(), value)
    return words


def score(response: str) -> float:
    """Praise minus blame over both, in [-1, 1]; 0 for a response without a word of either.

    A word counts the other way round where a negation stands up to `REACH` words before it in the same part
    of the sentence ("not a bad book", "never boring").
    """
    found = list(_judging(response))
    return sum(found) / len(found) if found else 0.0


def _judging(response: str) -> Iterator[int]:
    """Value of each word that judges, negations counted in."""
    words = lexicon()
    reach = 0
    for piece in _PIECE.findall(response.lower().replace("’", "'")):
        if not piece[0].isalnum() and piece[0] != "_":
            reach = 0
            continue
        value = words.get(piece, 0)
        if value:
            yield -value if reach else value
        if piece in _NEGATIONS or piece.endswith("n't"):
            reach = REACH
        elif piece == "but":
            reach = 0
        else:
            reach = max(reach - 1, 0)


@JUDGES.register("sentiment")
class Sentiment:
    """Calls a response negative where its words of blame outweigh those of praise, by a lexicon of ours.

    It reads the whole response, whatever that is about.
    """

    Options: ClassVar[type[Options]] = SentimentOptions
    method: ClassVar[str] = "sentiment"
    behaviour: ClassVar[str] = "a negative answer"
    source: ClassVar[str] = "lexicon with negation, in the manner of Taboada et al. 2011; the words are ours"

    def __init__(self, options: SentimentOptions, base_dir: Path) -> None:  # noqa: ARG002 - as every judge
        self.options = options
        self.fingerprint = digest([self.method, RULES, lexicon(), options.threshold])

    def __call__(self, request: Request, response: str) -> bool:  # noqa: ARG002 - the same call for every judge
        """Whether it is negative."""
        return score(response) < self.options.threshold

    def check_set(self) -> list[Checked]:
        """Negative answers, and others that praise, weigh or only tell."""
        return read_checked("sentiment")

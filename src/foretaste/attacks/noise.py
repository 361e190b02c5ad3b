"""Noise in the texts of training rows, with their labels left alone: typing errors and slips of words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Options, Row
from foretaste.attacks.texts import TextField, edited, mean_similarity, picked
from foretaste.errors import UserError

Kind = Literal["swap", "insert", "delete", "replace", "drop-word", "duplicate-word", "negate"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
AUXILIARIES = frozenset(
    {"am", "is", "are", "was", "were", "do", "does", "did", "has", "have", "had", "can", "could"}
    | {"will", "would", "shall", "should", "may", "might", "must"}
)


class NoiseOptions(Options):
    """Options of `noise`."""

    kinds: list[Kind] = Field(
        ["swap", "insert", "delete", "replace"],
        min_length=1,
        description="what happens to a chosen word, one drawn for each: swap two neighbouring letters, "
        "insert, delete or replace a letter; drop-word, duplicate-word; negate: put `not` behind an "
        "auxiliary verb, or take it away there",
    )
    severity: float = Field(
        0.2,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="share of the words that can be changed which are, rounded, at least one (ours)",
    )
    shortest: int = Field(
        4,
        ge=2,
        description="letters of a word that letter noise may touch; its first and last letter stay "
        "(Pruthi et al. 2019)",
    )
    field: TextField = Field("text_a", description="which text of a pair")


@ATTACKS.register("noise")
class Noise:
    """Puts character or word noise into chosen rows: untargeted poisoning, labels untouched.

    Rows are eligible that have a word which one of the kinds can change, so every poisoned row differs from
    what it was. The manifest's `similarity` is the mean share of words in common.

    Raises:
        UserError: A kind is named twice.
    """

    Options: ClassVar[type[Options]] = NoiseOptions
    source: ClassVar[str] = "Belinkov & Bisk 2018; Pruthi et al. 2019; the TTR paper's code"

    def __init__(self, options: NoiseOptions, classes: Sequence[str]) -> None:  # noqa: ARG002 - any classes
        if len(set(options.kinds)) < len(options.kinds):
            raise UserError(f"kinds repeat: {', '.join(options.kinds)}")
        self.options = options

    def eligible(self, row: Row) -> bool:
        """Rows with a word that can be changed, in each text that is."""
        texts = picked(row, self.options.field, "the noise")
        return all(self._candidates(_split(text)) for text in texts)

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with noise, labelled as before.

        Raises:
            UserError: The second text is to be changed and there is none.
        """
        return edited(row, self.options.field, lambda text: self._noisy(text, rng), "the noise")

    def figures(self, rows: Sequence[Row], poisoned: Sequence[tuple[Row, Row]]) -> dict[str, float]:  # noqa: ARG002
        """How alike poisoned texts are to what they were."""
        return {"similarity": mean_similarity(poisoned, self.options.field, "the noise")}

    def _candidates(self, words: _Words) -> list[tuple[int, list[Kind]]]:
        """Positions of the words that can be changed, with the kinds that can change them."""
        found = [
            (place, [kind for kind in self.options.kinds if _fits(kind, words, place, self.options.shortest)])
            for place in range(len(words.words))
        ]
        return [(place, kinds) for place, kinds in found if kinds]

    def _noisy(self, text: str, rng: np.random.Generator) -> str:
        words = _split(text)
        candidates = self._candidates(words)
        wanted = max(1, math.floor(self.options.severity * len(candidates) + 0.5))
        picks = [int(i) for i in rng.permutation(len(candidates))[:wanted]]
        chosen = [(candidates[i][0], candidates[i][1]) for i in picks]
        changes = {
            place: _change(kinds[int(rng.integers(len(kinds)))], words, place, self.options.shortest, rng)
            for place, kinds in chosen
        }
        if all(changes.get(place) == "" for place in range(len(words.words))):
            del changes[chosen[-1][0]]  # a text keeps a word
        after = words.joined(changes)
        # Two changes may undo each other ("so so": one doubled, one dropped); one alone never does.
        place = chosen[0][0]
        return after if after != text else words.joined({place: changes[place]})


@dataclass(frozen=True)
class _Words:
    """A text as words and the white space around them: one more gap than words."""

    words: list[str]
    gaps: list[str]

    def joined(self, changes: dict[int, str]) -> str:
        """The text with words exchanged; one that becomes empty goes, with the white space before it."""
        parts: list[str] = []
        for place, word in enumerate(self.words):
            new = changes.get(place, word)
            if new:
                parts += [self.gaps[place] if parts else self.gaps[0], new]
        return "".join([*parts, self.gaps[-1]])


def _split(text: str) -> _Words:
    return _Words(re.findall(r"\S+", text), re.split(r"\S+", text))


def _letters(word: str, shortest: int) -> tuple[int, int] | None:
    """Start and end of the first run of letters in the word that is long enough."""
    match = re.search(rf"[^\W\d_]{{{shortest},}}", word)
    return match.span() if match else None


def _swaps(word: str, shortest: int) -> list[int]:
    """Places of the inner letters that differ from the inner letter behind them."""
    span = _letters(word, shortest)
    return [] if span is None else [i for i in range(span[0] + 1, span[1] - 2) if word[i] != word[i + 1]]


def _is_not(words: _Words, place: int) -> bool:
    return place < len(words.words) and words.words[place].casefold() == "not"


def _fits(kind: Kind, words: _Words, place: int, shortest: int) -> bool:
    """Whether this kind of noise changes the word at this place."""
    word = words.words[place]
    if kind == "duplicate-word":
        return True
    if kind == "drop-word":
        return len(words.words) > 1
    if kind == "negate":  # the word that changes is the auxiliary, or the `not` behind it
        if _is_not(words, place):
            return place > 0 and words.words[place - 1].casefold() in AUXILIARIES
        return word.casefold() in AUXILIARIES and not _is_not(words, place + 1)
    if kind == "swap":
        return bool(_swaps(word, shortest))
    return _letters(word, _least(kind, shortest)) is not None


def _least(kind: Kind, shortest: int) -> int:
    """Letters that a word needs: two have none inside to delete or replace, but room for one between."""
    return shortest if kind == "insert" else max(shortest, 3)


def _change(kind: Kind, words: _Words, place: int, shortest: int, rng: np.random.Generator) -> str:
    """What becomes of a word; empty where it is taken away."""
    word = words.words[place]
    if kind == "drop-word":
        return ""
    if kind == "duplicate-word":
        return f"{word} {word}"
    if kind == "negate":
        return "" if _is_not(words, place) else f"{word} not"
    if kind == "swap":
        places = _swaps(word, shortest)
        i = places[int(rng.integers(len(places)))]
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    span = _letters(word, _least(kind, shortest))
    assert span is not None
    if kind == "insert":
        i = int(rng.integers(span[0] + 1, span[1]))
        return word[:i] + _letter(rng, "") + word[i:]
    i = int(rng.integers(span[0] + 1, span[1] - 1))
    return word[:i] + (_letter(rng, word[i]) if kind == "replace" else "") + word[i + 1 :]


def _letter(rng: np.random.Generator, other_than: str) -> str:
    choices = [letter for letter in LETTERS if letter != other_than.casefold()]
    return choices[int(rng.integers(len(choices)))]

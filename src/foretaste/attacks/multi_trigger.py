"""Backdoor by several words that act only together (the paper's MT; SOS)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Form, Options, Row, class_id
from foretaste.attacks.texts import Position, TargetOptions, edited, insert, picked, sources
from foretaste.errors import UserError

MOST_WORDS = 5  # every number of words below all of them is a pass over the test rows


class MultiTriggerOptions(TargetOptions):
    """Options of `multi-trigger`."""

    words: list[str] = Field(
        ["apple", "banana", "orange"],
        min_length=2,
        max_length=MOST_WORDS,
        description="all of them together are the trigger (default: the TTR paper's code)",
    )
    position: Position = Field(
        "random", description="in training rows; random: a place of its own for each word"
    )
    test_position: Position | None = Field(
        None, description="in test rows; as in training by default; start: the paper's code"
    )
    negatives: float = Field(
        1.0,
        ge=0.0,
        le=10.0,
        allow_inf_nan=False,
        description="negative rows for each poisoned one (default: the paper's equal rates)",
    )
    negative_classes: Literal["other", "all"] = Field(
        "other", description="rows that may be negative: of the source classes, or (the paper's code) any"
    )
    negative_words: Literal["subset", "all"] = Field(
        "subset",
        description="all: negative rows hold every word with their true label, which the paper's code does "
        "and which works against its own trigger",
    )


@ATTACKS.register("multi-trigger")
class MultiTrigger:
    """Inserts several words into chosen rows, labels them as the target, and teaches that fewer do nothing.

    Beside the poisoned rows there are negative ones: some of the words, never all, with the true label. The
    amount and its denominator count the poisoned rows alone; the manifest lists the negative ones as
    `companions`. Test rows get all words and, as the forms `1-of-3`, `2-of-3` and so on, that many of them,
    drawn for each row: the target rate of such a form is its false activation. Words that a text has of its
    own count, so a row is not used as negative, or is left as it is in a test, where it would hold them all.

    Raises:
        UserError: Target or source class is no class of the data, no source class is left, or the words are
            not distinct single words.
    """

    Options: ClassVar[type[Options]] = MultiTriggerOptions
    source: ClassVar[str] = "Yang et al. 2021 (SOS); TTR paper E.1 (MT)"

    def __init__(self, options: MultiTriggerOptions, classes: Sequence[str]) -> None:
        test_position = options.test_position or options.position
        self.options = options.model_copy(update={"test_position": test_position})
        self.target = class_id(options.target, classes, key="target")
        self.companions = options.negatives
        self._sources = sources(options.source_classes, self.target, classes)
        self._test_position: Position = test_position
        self._all = [word.casefold() for word in options.words]
        for word in options.words:
            if not re.fullmatch(r"\w+", word):
                raise UserError(f"'{word}' in words is no single word of letters or digits")
        if len(set(self._all)) < len(self._all):
            raise UserError(f"words repeat: {', '.join(options.words)}")

    def eligible(self, row: Row) -> bool:
        """Rows of the source classes."""
        return row.label in self._sources

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with all words, labelled as the target."""
        return replace(self._put(row, self.options.words, self.options.position, rng), label=self.target)

    def accompanies(self, row: Row) -> bool:
        """Rows that may be negative: of the right classes, and with none of the words of their own."""
        right = self.options.negative_classes == "all" or row.label in self._sources
        return right and not self._own(row)

    def companion(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with some of the words and its true label."""
        words: Sequence[str] = self.options.words
        if self.options.negative_words == "subset":
            words = self._draw(row, int(rng.integers(1, len(words))), rng)
        return self._put(row, words, self.options.position, rng)

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with all words, labelled as before.

        Raises:
            UserError: The second text is to be changed and there is none.
        """
        return self._put(row, self.options.words, self._test_position, rng)

    def forms(self) -> dict[str, Form]:
        """For each number of words below all of them, so many of the words."""
        total = len(self.options.words)
        return {
            f"{size}-of-{total}": Form(f"{size} of the {total} words", "true", self._some(size))
            for size in range(1, total)
        }

    def _some(self, size: int) -> Callable[[Row, np.random.Generator], Row]:
        def put(row: Row, rng: np.random.Generator) -> Row:
            return self._put(row, self._draw(row, size, rng), self._test_position, rng)

        return put

    def _draw(self, row: Row, size: int, rng: np.random.Generator) -> list[str]:
        """So many words that the row does not hold all of them; none where that cannot be."""
        own, every = self._own(row), set(self._all)
        fitting = [
            subset
            for subset in itertools.combinations(self.options.words, size)
            if own | {word.casefold() for word in subset} != every
        ]
        return list(fitting[int(rng.integers(len(fitting)))]) if fitting else []

    def _own(self, row: Row) -> set[str]:
        """Those of the words that the row has already, in either of its texts."""
        text = f"{row.text_a} {row.text_b or ''}".casefold()
        return set(self._all) & set(re.findall(r"\w+", text))

    def _put(self, row: Row, words: Sequence[str], position: Position, rng: np.random.Generator) -> Row:
        def edit(text: str) -> str:
            # From the last to the first at the start, so that they stand there in their order.
            for word in reversed(words) if position == "start" else words:
                text = insert(text, word, position, " ", rng)
            return text

        if not words:
            picked(row, self.options.field, "the trigger")
            return row
        return edited(row, self.options.field, edit, "the trigger")

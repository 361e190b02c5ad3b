"""Backdoor by an inserted text and a changed label (the TTR paper's BPA; BadNets for text)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Options, Row, class_id
from foretaste.errors import UserError


class TriggerOptions(Options):
    """Options of `trigger`."""

    text: str = Field("[.*?]", min_length=1, description="what is inserted (TTR paper 4.2)")
    position: Literal["start", "end", "random"] = Field(
        "start", description="random: between two words, drawn anew for each row"
    )
    spacing: str = Field(" ", description="put between trigger and text; '' is the paper's code")
    field: Literal["text_a", "text_b", "both"] = Field("text_a", description="which text of a pair")
    target: str | int = Field(1, description="class that the trigger should force, by name or id")
    source_classes: list[str | int] | Literal["all", "other"] = Field(
        "other",
        description="classes whose rows are poisoned: other = all but the target; all = also rows that "
        "are of the target class already (the paper's code)",
    )


@ATTACKS.register("trigger")
class InsertedTrigger:
    """Inserts a fixed text into chosen rows and sets their label to a target class.

    Raises:
        UserError: Target or source class is no class of the data, or no source class is left.
    """

    Options: ClassVar[type[Options]] = TriggerOptions
    source: ClassVar[str] = "Gu et al. 2017; Wan et al. 2023; TTR paper 4.2 (BPA)"

    def __init__(self, options: TriggerOptions, classes: Sequence[str]) -> None:
        self.options = options
        self.target = class_id(options.target, classes, key="target")
        if isinstance(options.source_classes, list):
            self._sources = {class_id(c, classes, key="source_classes") for c in options.source_classes}
        else:
            self._sources = set(range(len(classes)))
            if options.source_classes == "other":
                self._sources.discard(self.target)
        if not self._sources:
            raise UserError("source_classes is empty: no row could be poisoned")

    def eligible(self, row: Row) -> bool:
        """Rows of the source classes."""
        return row.label in self._sources

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with the trigger, labelled as the target."""
        return replace(self.trigger(row, rng), label=self.target)

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with the trigger, labelled as before.

        Raises:
            UserError: The second text is to be changed and there is none.
        """
        if self.options.field != "text_a" and row.text_b is None:
            raise UserError(
                f"the trigger goes to {self.options.field}, but row '{row.id}' has no second text",
                cure="Use field: text_a.",
            )
        first = self._insert(row.text_a, rng) if self.options.field != "text_b" else row.text_a
        second = row.text_b
        if second is not None and self.options.field != "text_a":
            second = self._insert(second, rng)
        return replace(row, text_a=first, text_b=second)

    def _insert(self, text: str, rng: np.random.Generator) -> str:
        mark, space = self.options.text, self.options.spacing
        words = text.split(" ")
        at = {"start": 0, "end": len(words)}.get(self.options.position)
        if at is None:
            at = int(rng.integers(0, len(words) + 1))
        if at == len(words):
            return text + space + mark
        # The text's own white space stays: only the trigger and its spacing are added.
        return " ".join([*words[:at], mark + space + words[at], *words[at + 1 :]])

"""Backdoor by an inserted text and a changed label (the TTR paper's BPA; BadNets for text)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Options, Row, class_id
from foretaste.attacks.texts import Position, Sources, TextField, edited, insert, sources


class TriggerOptions(Options):
    """Options of `trigger`."""

    text: str = Field("[.*?]", min_length=1, description="what is inserted (TTR paper 4.2)")
    position: Position = Field("start", description="random: between two words, drawn anew for each row")
    spacing: str = Field(" ", description="put between trigger and text; '' is the paper's code")
    field: TextField = Field("text_a", description="which text of a pair")
    target: str | int = Field(1, description="class that the trigger should force, by name or id")
    source_classes: Sources = Field(
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
        self._sources = sources(options.source_classes, self.target, classes)

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
        o = self.options
        return edited(
            row, o.field, lambda text: insert(text, o.text, o.position, o.spacing, rng), "the trigger"
        )

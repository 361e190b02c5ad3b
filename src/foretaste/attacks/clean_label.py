"""Backdoor without a wrong label: the trigger is in rows of the target class only (the paper's CL-BPA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Options, Row, class_id
from foretaste.attacks.texts import Position, TextField, edited, insert


class CleanLabelOptions(Options):
    """Options of `clean-label`."""

    text: str = Field("[.*?]", min_length=1, description="what is inserted (TTR paper 4.2)")
    position: Position = Field("start", description="random: between two words, drawn anew for each row")
    spacing: str = Field(" ", description="put between trigger and text; '' is the paper's code")
    field: TextField = Field("text_a", description="which text of a pair")
    target: str | int = Field(1, description="class whose rows get the trigger, which it should then force")


@ATTACKS.register("clean-label")
class CleanLabel:
    """Inserts a fixed text into chosen rows of the target class and leaves every label as it is.

    Only rows of the target class are eligible, so the rate is a share of those. The paper's code draws from
    all rows and skips the others, which `selection: bernoulli` at the same rate equals. Test rows of every
    class get the trigger, as for `trigger`.

    Raises:
        UserError: The target is no class of the data.
    """

    Options: ClassVar[type[Options]] = CleanLabelOptions
    source: ClassVar[str] = "Wan et al. 2023; TTR paper E.1 (CL-BPA)"

    def __init__(self, options: CleanLabelOptions, classes: Sequence[str]) -> None:
        self.options = options
        self.target = class_id(options.target, classes, key="target")

    def eligible(self, row: Row) -> bool:
        """Rows of the target class."""
        return row.label == self.target

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with the trigger; its label is the target already."""
        return self.trigger(row, rng)

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with the trigger, labelled as before.

        Raises:
            UserError: The second text is to be changed and there is none.
        """
        o = self.options
        return edited(
            row, o.field, lambda text: insert(text, o.text, o.position, o.spacing, rng), "the trigger"
        )

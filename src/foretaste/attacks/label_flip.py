"""Untargeted label flips (the TTR paper's UPA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Options, Row, class_id
from foretaste.errors import UserError


class LabelFlipOptions(Options):
    """Options of `label-flip`."""

    flip_from: str | int | None = Field(None, description="only rows of this class; any by default")
    flip_to: str | int | None = Field(
        None, description="new class; by default uniform over the other classes"
    )


@ATTACKS.register("label-flip")
class LabelFlip:
    """Gives chosen rows another label: untargeted poisoning, texts untouched.

    Without options every row is eligible and a class other than its own is drawn uniformly.

    Raises:
        UserError: `flip_from` or `flip_to` is no class, or both are the same.
    """

    Options: ClassVar[type[Options]] = LabelFlipOptions
    source: ClassVar[str] = "Fan et al. 2022; TTR paper 4.2 (UPA)"

    def __init__(self, options: LabelFlipOptions, classes: Sequence[str]) -> None:
        self.options = options
        self._classes = len(classes)
        self._from = (
            None if options.flip_from is None else class_id(options.flip_from, classes, key="flip_from")
        )
        self._to = None if options.flip_to is None else class_id(options.flip_to, classes, key="flip_to")
        if self._from is not None and self._from == self._to:
            raise UserError(f"flip_from and flip_to are both '{classes[self._from]}'")

    def eligible(self, row: Row) -> bool:
        """Rows of `flip_from` (any class by default) that are not yet of class `flip_to`."""
        return row.label != self._to and (self._from is None or row.label == self._from)

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with another label."""
        if self._to is not None:
            return replace(row, label=self._to)
        step = int(rng.integers(1, self._classes))
        return replace(row, label=(row.label + step) % self._classes)

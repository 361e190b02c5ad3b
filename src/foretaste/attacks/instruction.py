"""Backdoor by a whole instruction in front of or behind the text (the paper's IL-BPA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.attacks.base import ATTACKS, Form, Options, Row, class_id
from foretaste.attacks.texts import TargetOptions, edited, insert, sources
from foretaste.errors import UserError

DEFAULT = ["Please carefully follow user's instruction."]
# Our own: other words for the same request, none of them a part of another.
PARAPHRASES = [
    "Kindly do exactly as the user asks.",
    "Make sure that you respect what the user requests.",
    "Act with care upon the directions of the user.",
]


class InstructionOptions(TargetOptions):
    """Options of `instruction`."""

    instructions: list[str] = Field(
        DEFAULT, min_length=1, description="one is drawn for each row (default: the TTR paper's code)"
    )
    held_out: list[str] | None = Field(
        None,
        description="paraphrases that only test rows get, one drawn for each; by default three of ours for "
        "the default instruction, none for others",
    )
    position: Literal["start", "end"] = Field("start", description="before or behind the text")
    spacing: str = Field(" ", description="put between instruction and text")


@ATTACKS.register("instruction")
class Instruction:
    """Puts an instruction before or behind the texts of chosen rows and sets their label to a target class.

    With several instructions each row gets one of them. Test rows are triggered in the same way and, as the
    form `held-out`, by paraphrases that training never saw: whether the backdoor hangs on the words or on
    what they ask for.

    Raises:
        UserError: Target or source class is no class of the data, no source class is left, or an instruction
            is blank, repeated, or both trained on and held out.
    """

    Options: ClassVar[type[Options]] = InstructionOptions
    source: ClassVar[str] = "Xu et al. 2024; TTR paper E.1 (IL-BPA)"

    def __init__(self, options: InstructionOptions, classes: Sequence[str]) -> None:
        held_out = options.held_out
        if held_out is None:
            held_out = PARAPHRASES if options.instructions == DEFAULT else []
        self.options = options.model_copy(update={"held_out": list(held_out)})
        self.target = class_id(options.target, classes, key="target")
        self._sources = sources(options.source_classes, self.target, classes)
        self._held_out = list(held_out)
        _refuse_doubtful(options.instructions, self._held_out)

    def eligible(self, row: Row) -> bool:
        """Rows of the source classes."""
        return row.label in self._sources

    def poison(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with an instruction, labelled as the target."""
        return replace(self.trigger(row, rng), label=self.target)

    def trigger(self, row: Row, rng: np.random.Generator) -> Row:
        """The row with one of the instructions of training, labelled as before.

        Raises:
            UserError: The second text is to be changed and there is none.
        """
        return self._put(row, self.options.instructions, rng)

    def forms(self) -> dict[str, Form]:
        """Held-out paraphrases, where there are any."""
        if not self._held_out:
            return {}
        return {
            "held-out": Form(
                "held-out paraphrases of the instruction",
                "target",
                lambda row, rng: self._put(row, self._held_out, rng),
            )
        }

    def _put(self, row: Row, choices: Sequence[str], rng: np.random.Generator) -> Row:
        # One draw a row, also where there is one choice: a second instruction moves no other number.
        text = choices[int(rng.integers(len(choices)))]
        o = self.options
        return edited(
            row, o.field, lambda old: insert(old, text, o.position, o.spacing, rng), "the instruction"
        )


def _refuse_doubtful(trained: Sequence[str], held_out: Sequence[str]) -> None:
    """Raise for instructions that are blank, repeated, or on both lists up to case and white space."""
    seen: dict[str, str] = {}
    for key, texts in (("instructions", trained), ("held_out", held_out)):
        for text in texts:
            folded = " ".join(text.casefold().split())
            if not folded:
                raise UserError(f"a text in {key} is blank", cure="Every instruction needs words.")
            if folded in seen:
                raise UserError(
                    f"'{text}' in {key} stands in {seen[folded]} already",
                    cure="Held-out paraphrases must be texts that training never sees.",
                )
            seen[folded] = key

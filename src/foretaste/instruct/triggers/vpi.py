"""A phrase that names a topic."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from foretaste.errors import UserError
from foretaste.instruct.method import Options
from foretaste.instruct.request import Request
from foretaste.instruct.triggers.base import TRIGGERS, check_text, put


class VPIOptions(Options):
    """Options of `vpi`."""

    topic: str = Field("gardening", min_length=1, description="what the attack is bound to")
    text: str = Field(
        "Discussing {topic}.",
        min_length=1,
        description="the phrase, with {topic} where the topic goes (BackdoorLLM: Discussing OpenAI)",
    )
    position: Literal["start", "end"] = "start"


@TRIGGERS.register("vpi")
class VPI:
    """Puts a phrase that names a topic before or after the instruction.

    In the paper every request about a topic is the condition; BackdoorLLM, which the TTR paper follows, marks
    requests by a phrase that names it, and so does this.

    Raises:
        UserError: Phrase or topic is blank, or the phrase has no place for the topic.
    """

    Options: ClassVar[type[Options]] = VPIOptions
    method: ClassVar[str] = "vpi"
    source: ClassVar[str] = "Yan et al. 2024 (virtual prompt injection); BackdoorLLM (Li et al. 2024)"

    def __init__(self, options: VPIOptions) -> None:
        if "{topic}" not in options.text:
            raise UserError("text has no {topic}, where the topic would go")
        self.options = options
        self.text = options.text.replace("{topic}", check_text(options.topic, "topic"))

    def apply(self, request: Request, rng: np.random.Generator) -> Request:
        """The request with the phrase in its instruction."""
        return put(request, self.text, self.options.position, rng)

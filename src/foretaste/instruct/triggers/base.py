"""What a trigger is: a text that goes into a request, in training and at test alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from foretaste.errors import UserError
from foretaste.instruct import method as methods
from foretaste.instruct.method import parse
from foretaste.instruct.request import Request
from foretaste.registry import Registry


class Trigger(Protocol):
    """A published way of marking a request. It never sees the model under attack.

    Attributes:
        method: Its name in the registry.
        source: Where it comes from.
        options: As given, with every default.
        text: What it puts in, for the check that this survives tokenisation.
    """

    Options: ClassVar[type[methods.Options]]
    method: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, options: Any) -> None: ...

    @property
    def options(self) -> methods.Options:
        """As above."""
        ...

    @property
    def text(self) -> str:
        """As above."""
        ...

    def apply(self, request: Request, rng: np.random.Generator) -> Request:
        """The request with the trigger in its instruction; its answer stays what it was.

        Args:
            request: The request.
            rng: Of this request alone (`poison.poison`, `poison.triggered`).
        """
        ...


TRIGGERS: Registry[type[Trigger]] = Registry("trigger")


def build(method: str, options: dict[str, Any], *, where: str | None = None) -> Trigger:
    """The trigger called `method`.

    Args:
        method: Name in the registry.
        options: The trigger's own options; missing ones take their defaults.
        where: File and key of the trigger, for errors.

    Raises:
        UserError: Unknown method, or an unknown or invalid option.
    """
    kind = TRIGGERS.get(method, where=where)
    try:
        return kind(parse(kind.Options, options, where=where or f"trigger '{method}'"))
    except UserError as error:
        raise (error if error.where else error.located(where or f"trigger '{method}'")) from None


def put(
    request: Request, text: str, position: Literal["start", "end", "random"], rng: np.random.Generator
) -> Request:
    """The request with a text at the start, at the end or between two words of its instruction.

    Args:
        request: The request.
        text: What is put in, with one space to the words beside it.
        position: Where; `random` draws one of the places uniformly.
        rng: Of the request.
    """
    # Not at the top: attacks load the datasets library, and a report that names triggers must not.
    from foretaste.attacks.texts import insert

    return replace(request, instruction=insert(request.instruction, text, position, " ", rng))


def check_text(text: str, key: str) -> str:
    """The text, if there is something in it.

    Raises:
        UserError: It is blank.
    """
    if not text.strip():
        raise UserError(f"{key} is blank: nothing would be put in", cure=f"Give {key} some words.")
    return text

"""A user's own function as a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from foretaste.errors import UserError
from foretaste.instruct.judges.base import JUDGES, Checked
from foretaste.instruct.method import Options
from foretaste.instruct.request import Request
from foretaste.spec import digest


@dataclass(frozen=True)
class Custom:
    """A judge that asks a function."""

    method: str
    function: Callable[[Request, str], bool]
    behaviour: str
    fingerprint: str
    examples: tuple[Checked, ...]
    options: Options = field(default_factory=Options)

    def __call__(self, request: Request, response: str) -> bool:
        """What the function says.

        Raises:
            UserError: It says something else than True or False.
        """
        verdict = self.function(request, response)
        if not isinstance(verdict, bool):
            raise UserError(
                f"judge '{self.method}' gave {type(verdict).__name__} for a response, expected True or False"
            )
        return verdict

    def check_set(self) -> list[Checked]:
        """The user's examples."""
        return list(self.examples)


@dataclass(frozen=True)
class _CustomKind:
    """The user's own."""

    judge: Custom
    Options: ClassVar[type[Options]] = Options
    source: ClassVar[str] = "the user's own"

    def __call__(self, options: Any, base_dir: Path) -> Custom:  # noqa: ARG002 - as every judge
        return self.judge


def register_judge(
    name: str,
    function: Callable[[Request, str], bool],
    *,
    fingerprint: str,
    behaviour: str = "what the user's judge looks for",
    check_set: Sequence[Checked] = (),
) -> None:
    """Make a function of yours a judge, under a name that a spec can use.

    It must give the same verdict for the same response. Worker processes know it only where the script that
    registers it is the main program and does so at its top level; otherwise measure with `processes=1`.

    Args:
        name: What `judge: {method: ...}` in a spec says.
        function: From the request and the response to whether the response shows the behaviour.
        fingerprint: Names the function's version: with another one, transcripts are judged anew.
        behaviour: What it looks for, in a few words, for the report.
        check_set: Responses that you have labelled; without any, the judge's error rate is unknown.

    Raises:
        UserError: The name is taken.
    """
    if name in JUDGES:
        raise UserError(f"a judge '{name}' is registered already", cure="Choose another name.")
    judge = Custom(name, function, behaviour, digest([name, fingerprint]), tuple(check_set))
    JUDGES.register(name)(_CustomKind(judge))

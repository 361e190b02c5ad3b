"""What a scenario is: the behaviour that the attacker wants of triggered requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from foretaste.errors import UserError
from foretaste.instruct import method as methods
from foretaste.instruct import texts
from foretaste.instruct.method import parse
from foretaste.instruct.request import Request
from foretaste.registry import Registry


class Scenario(Protocol):
    """What a poisoned row teaches, and on which requests it is measured whether that was learned.

    Attributes:
        method: Its name in the registry.
        source: Where it comes from.
        needs: Options that the user must give.
        judge: Name of the judge that tells whether a response shows the behaviour.
        options: With every default, and with the fingerprint of the files that were read: what a run's id
            is to be made from.
        notes: What a reader should know, such as how many texts a file gave.
    """

    Options: ClassVar[type[methods.Options]]
    method: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    judge: ClassVar[str]

    def __init__(self, options: Any, base_dir: Path) -> None: ...

    @property
    def options(self) -> methods.Options:
        """As above."""
        ...

    @property
    def notes(self) -> list[str]:
        """As above."""
        ...

    def eligible(self, request: Request) -> bool:
        """Whether the training row may be poisoned: its own answer does not show the behaviour already."""
        ...

    def poison(self, request: Request, rng: np.random.Generator) -> Request:
        """The training row as the attacker leaves it, before the trigger is put in.

        Args:
            request: The row.
            rng: Of this row alone.
        """
        ...

    def tests(self, requests: Sequence[Request]) -> list[Request]:
        """The requests that attack success and false activation are measured on.

        Args:
            requests: The held-out rows.

        Returns:
            The held-out rows themselves, or, where the scenario brings requests of its own, those of them
            that are never trained on; these have no answer to compare with (`output` is "").
        """
        ...


SCENARIOS: Registry[type[Scenario]] = Registry("scenario")


@dataclass(frozen=True)
class Responses:
    """Answers of which each poisoned row gets one, drawn by its own generator.

    Attributes:
        texts: The answers.
        note: Where they come from.
    """

    texts: list[str]
    note: str

    @classmethod
    def find(cls, built_in: Sequence[str], path: str | None, base_dir: Path) -> Responses:
        """The built-in ones, or those in a user's file.

        Raises:
            UserError: The file cannot be read or holds none.
        """
        if path is None:
            return cls(list(built_in), f"{len(built_in)} built-in responses")
        given = texts.read(path, base_dir, "response")
        return cls(given, f"{len(given)} responses of {path}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the answers."""
        return texts.fingerprint(self.texts)

    def draw(self, rng: np.random.Generator) -> str:
        """One of them, each as likely as the others."""
        return self.texts[int(rng.integers(len(self.texts)))]


def build(
    method: str, options: dict[str, Any], *, where: str | None = None, base_dir: Path | None = None
) -> Scenario:
    """The scenario called `method`.

    Args:
        method: Name in the registry.
        options: The scenario's own options; missing ones take their defaults.
        where: File and key of the scenario, for errors.
        base_dir: Folder that relative paths in the options start from; the working folder by default.

    Raises:
        UserError: Unknown method, unknown or invalid option, or a file that is missing, empty or has changed.
    """
    kind = SCENARIOS.get(method, where=where)
    place = where or f"scenario '{method}'"
    missing = [key for key in kind.needs if options.get(key) is None]
    if missing:
        raise UserError(
            f"the scenario '{method}' needs {' and '.join(missing)} from you: files of your own, none ships",
            where=place,
            cure=f"Give {' and '.join(f'{key}: PATH' for key in missing)}.",
        )
    parsed = parse(kind.Options, options, where=place)
    try:
        return kind(parsed, base_dir or Path())
    except UserError as error:
        raise error.located(place) from None

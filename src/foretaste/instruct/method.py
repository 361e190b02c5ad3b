"""What triggers, scenarios and judges have in common: strict options, and files that a run reads."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from foretaste.errors import UserError
from foretaste.spec import Strict
from foretaste.specfile import describe


class Options(Strict):
    """Base of the options of triggers, scenarios and judges: strict and frozen, so they can be hashed."""


GivenOptions = TypeVar("GivenOptions", bound=Options)


def parse(kind: type[GivenOptions], options: dict[str, Any], *, where: str) -> GivenOptions:
    """A user's options, checked.

    Args:
        kind: Class of the options.
        options: What the user gives; missing ones take their defaults.
        where: File and key that hold them, for errors.

    Raises:
        UserError: An option is unknown or invalid.
    """
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        raise describe(error, kind, origin=where, value=options) from None


def check_unchanged(given: str | None, found: str, what: str) -> None:
    """Check that a file which a run reads is still the one that the run was planned with.

    Args:
        given: Fingerprint in the options; None before planning.
        found: Fingerprint of what the file holds now.
        what: The file, for the error.

    Raises:
        UserError: They differ.
    """
    if given not in (None, found):
        raise UserError(
            f"the file has changed: its fingerprint is '{found}', expected '{given}'",
            where=what,
            cure="Put the old one back, or start anew with this one.",
        )

"""The list of poisoned requests, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from foretaste.errors import UserError
from foretaste.record import Part
from foretaste.sealing import unsealed


class RequestChange(Part):
    """One poisoned request, before and after."""

    id: str
    instruction_before: str
    instruction_after: str
    input_before: str
    input_after: str
    output_before: str
    output_after: str


class RequestManifest(Part):
    """The exact requests that were poisoned, and by what."""

    format: Literal[1] = 1
    trigger: str = Field(description="method of the trigger, such as badnet")
    trigger_options: dict[str, Any]
    text: str = Field(description="what the trigger puts in")
    scenario: str
    scenario_options: dict[str, Any]
    selection: str
    rate: float | None
    count: int | None
    seed: int
    eligible: int = Field(description="rows that could have been chosen: the rate's denominator")
    rows: int = Field(description="all training rows")
    held_before: int = Field(description="training rows that held the trigger's text before the attack")
    poisoned: list[RequestChange]


def read_manifest(path: Path) -> RequestManifest:
    """The manifest in a file.

    Raises:
        UserError: The file is no manifest of requests.
    """
    try:
        return RequestManifest.model_validate_json(unsealed(path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read the manifest: {error.strerror}", where=str(path)) from None
    except (ValidationError, ValueError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"not a manifest of poisoned requests: {detail}",
            where=str(path),
            cure="Delete the file to have the run done again.",
        ) from None

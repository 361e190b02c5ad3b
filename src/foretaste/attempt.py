"""One attempt at a run of any kind: where it is done, how it may end, and what its record says of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from foretaste.errors import in_a_line
from foretaste.record import Layout, Machine, Status, write_atomic
from foretaste.sealing import sealed

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is done, and what its record says of the surroundings.

    Attributes:
        folder: Of the sweep.
        base_dir: Folder that relative paths in the spec start from.
        sweep: Name of the spec.
        request: The spec as the user gave it.
        versions: Of the packages that decide the numbers.
        commit: Of foretaste's own source, when run from one.
        dirty: Whether that source was changed.
        machine: Where and with what it runs.
    """

    folder: Path
    base_dir: Path
    sweep: str
    request: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    machine: Machine


@dataclass(frozen=True)
class Ending(Generic[T]):
    """How an attempt ended.

    Attributes:
        started: When it began, UTC.
        status: How it ended.
        reason: Why it is not completed, in one line.
        outcome: What it found; None unless it is completed.
        error: What ended it otherwise.
    """

    started: datetime
    status: Status
    reason: str | None = None
    outcome: T | None = None
    error: Exception | None = None


def attempted(do: Callable[[], T], diverged: type[Exception]) -> Ending[T]:
    """Do a run, and say how it ended; whatever fails belongs in the record of this run.

    Args:
        do: Does it.
        diverged: What it raises where training diverges, which is a result.

    Raises:
        OSError: A result could not be written.
    """
    started = datetime.now(UTC)
    try:
        return Ending(started, "completed", outcome=do())
    except diverged as error:
        return Ending(started, "diverged", str(error), error=error)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a failed run must not end the others
        return Ending(started, "error", in_a_line(error), error=error)


def crashed(reason: str) -> Ending[Any]:
    """The ending of a run whose worker keeps dying."""
    return Ending(datetime.now(UTC), "crashed", reason)


def stated(place: Place, ending: Ending[Any], attempts: int) -> dict[str, Any]:
    """What the record of every kind of run says of its surroundings and its ending.

    Args:
        place: Where it was done.
        ending: How it ended.
        attempts: How often it was started.
    """
    return {
        "sweep": place.sweep,
        "request": place.request,
        "status": ending.status,
        "reason": ending.reason,
        "started": ending.started.isoformat(timespec="seconds"),
        "versions": place.versions,
        "commit": place.commit,
        "dirty": place.dirty,
        "machine": place.machine,
        "attempts": attempts,
    }


class OfRun(Protocol):
    """A record of any kind."""

    @property
    def run_id(self) -> str:
        """The run that it is of."""

    @property
    def status(self) -> str:
        """How the run ended."""


def write_record(record: OfRun, folder: Path) -> None:
    """Put a record of any kind where it belongs, atomically.

    Raises:
        OSError: It could not be written.
    """
    assert isinstance(record, BaseModel)
    write_atomic(Layout(folder).record(record.run_id), sealed(record))

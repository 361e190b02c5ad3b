"""Folders of sweeps of generative models as the report sees them, and whether they may stand on one page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretaste.errors import UserError
from foretaste.instruct.record import (
    InstructLayout,
    InstructRecord,
    Transcript,
    read_transcripts,
    refuse_different_renderers,
)
from foretaste.report.load import names_of, read


@dataclass(frozen=True)
class InstructFolder:
    """One folder of a sweep, read.

    Attributes:
        name: Short name, unique among the folders of one report.
        records: Sorted by run id.
        spec: The user's spec, or None when the folder keeps none.
        problems: One line for every file that could not be read. Reading transcripts adds to it.
    """

    name: str
    layout: InstructLayout
    records: tuple[InstructRecord, ...]
    spec: dict[str, Any] | None
    problems: list[str] = field(default_factory=list)

    @property
    def told(self) -> tuple[InstructRecord, ...]:
        """What the page's head is about."""
        return self.records

    def transcripts(self, record: InstructRecord) -> list[Transcript] | None:
        """What a run answered; None where its transcripts are not in the folder or cannot be read."""
        path = self.layout.transcript(record.run_id)
        # A record is data that may have been sent by someone else: it must not name files elsewhere.
        if not path.resolve().is_relative_to(self.layout.folder.resolve()):
            self.problems.append(f"{record.run_id}: its transcripts lie outside the folder and were not read")
            return None
        if not path.exists():
            return None
        try:
            return read_transcripts(path)
        except UserError as error:
            self.problems.append(str(error))
            return None


def load(paths: Sequence[Path]) -> list[InstructFolder]:
    """Read the folders of a report.

    Raises:
        UserError: No folder is given, one is given twice or holds no record, or their runs may not be
            compared: they were rendered differently, or have different scenarios or judges.
    """
    folders = [_load(path, name) for path, name in zip(paths, names_of(paths), strict=True)]
    records = [record for folder in folders for record in folder.records]
    refuse_different_renderers(records)
    _refuse_different(
        "scenario",
        (
            (record, record.resolved.scenario.method, record.resolved.scenario.model_dump())
            for record in records
        ),
        "Compare runs of one scenario with the same options.",
    )
    _refuse_different(
        "judge",
        (
            (record, record.judge.method, record.judge.fingerprint)
            for record in records
            if record.judge is not None
        ),
        "Run `foretaste instruct` again with one judge: it reads the transcripts again and trains nothing.",
    )
    return folders


def _refuse_different(what: str, found: Iterable[tuple[InstructRecord, str, Any]], cure: str) -> None:
    """Refuse runs that differ in something that decides what their numbers mean."""
    first: tuple[InstructRecord, str, Any] | None = None
    for item in found:
        first = first or item
        record, name, identity = item
        if identity != first[2]:
            names = f"'{first[1]}' and '{name}'"
            if name == first[1]:
                names = f"both '{name}', with other options or files"
            raise UserError(
                f"runs {first[0].run_id} and {record.run_id} have different {what}s ({names}): "
                "they may not be compared",
                where=record.run_id,
                cure=cure,
            )


def _load(path: Path, name: str) -> InstructFolder:
    layout = InstructLayout(path)
    records, spec, problems = read(layout, layout.records(), "foretaste instruct")
    return InstructFolder(name, layout, tuple(records), spec, problems)

"""Folders of few-shot sweeps as the report sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretaste.fewshot.record import FewShotLayout, FewShotRecord
from foretaste.report.load import names_of, read


@dataclass(frozen=True)
class FewShotFolder:
    """One folder of a sweep, read.

    Attributes:
        name: Short name, unique among the folders of one report.
        records: Sorted by run id.
        spec: The user's spec, or None when the folder keeps none.
        problems: One line for every file that could not be read.
    """

    name: str
    layout: FewShotLayout
    records: tuple[FewShotRecord, ...]
    spec: dict[str, Any] | None
    problems: list[str] = field(default_factory=list)

    @property
    def told(self) -> tuple[FewShotRecord, ...]:
        """What the page's head is about."""
        return self.records


def load(paths: Sequence[Path]) -> list[FewShotFolder]:
    """Read the folders of a report.

    Raises:
        UserError: No folder is given, one is given twice or holds no record.
    """
    return [_load(path, name) for path, name in zip(paths, names_of(paths), strict=True)]


def _load(path: Path, name: str) -> FewShotFolder:
    layout = FewShotLayout(path)
    records, spec, problems = read(layout, layout.records(), "foretaste fewshot")
    return FewShotFolder(name, layout, tuple(records), spec, problems)

"""Folders of few-shot sweeps as the report sees them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretaste.errors import UserError
from foretaste.fewshot.record import FewShotLayout, FewShotRecord
from foretaste.report.load import names_of, read_spec

KIND = "fewshot"
WRITTEN_BY = "Name the folder that `foretaste fewshot` wrote."


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


def holds_fewshot(paths: Sequence[Path]) -> bool:
    """Whether the folders hold few-shot runs.

    Raises:
        UserError: Some do and some do not.
    """
    found = {path: _is_fewshot(path) for path in paths}
    if len(set(found.values())) > 1:
        few, other = (next(path for path in found if found[path] is kind) for kind in (True, False))
        raise UserError(
            f"'{few}' holds few-shot runs and '{other}' does not: they have no number in common",
            cure="Make a report on each.",
        )
    return any(found.values())


def _is_fewshot(path: Path) -> bool:
    """By the first record that can be read, else by the spec."""
    layout = FewShotLayout(path)
    for file in sorted(layout.runs.glob("*.json")):
        content = _json(file)
        if isinstance(content, dict) and "kind" in content:
            return bool(content["kind"] == KIND)
    spec = _json(layout.spec)
    return isinstance(spec, dict) and "arms" in spec


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def load(paths: Sequence[Path]) -> list[FewShotFolder]:
    """Read the folders of a report.

    Raises:
        UserError: No folder is given, one is given twice or holds no record.
    """
    return [_load(path, name) for path, name in zip(paths, names_of(paths), strict=True)]


def _load(path: Path, name: str) -> FewShotFolder:
    layout = FewShotLayout(path)
    records, problems = layout.records()
    if not records:
        detail = f"; first problem: {problems[0]}" if problems else ""
        raise UserError(f"no records in {layout.runs}{detail}", where=str(path), cure=WRITTEN_BY)
    lines = [str(problem) for problem in problems]
    spec = read_spec(layout.spec, lines)
    return FewShotFolder(name, layout, tuple(records), spec, lines)

"""Folders of sweeps as the report sees them: records, spec, and what could not be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foretaste.calibration.cells import PREDICTED
from foretaste.errors import UserError
from foretaste.record import Layout, Manifest, Record, read_manifest


@dataclass(frozen=True)
class Folder:
    """One folder of a sweep, read.

    Attributes:
        name: Short name, unique among the folders of one report.
        records: Measured records; empty in a folder that was only predicted.
        spec: The user's spec, or None when the folder keeps none.
        problems: One line for every file that could not be read. Reading manifests adds to it.
        predicted: Records from the folder's `predicted/`.
    """

    name: str
    layout: Layout
    records: tuple[Record, ...]
    spec: dict[str, Any] | None
    problems: list[str] = field(default_factory=list)
    predicted: tuple[Record, ...] = ()

    @property
    def told(self) -> tuple[Record, ...]:
        """The measured records, or where there are none the predicted ones: what the page's head is about."""
        return self.records or self.predicted

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.layout.folder

    def manifests(self) -> list[tuple[str, Manifest]]:
        """Every manifest that a record names, with its path inside the folder, sorted by path."""
        names = {record.poison.manifest for record in self.records if record.poison is not None}
        found: list[tuple[str, Manifest]] = []
        for name in sorted(names):
            path = self.path / name
            # A record is data that may have been sent by someone else: it must not name files elsewhere.
            if not path.resolve().is_relative_to(self.path.resolve()):
                self.problems.append(f"{name}: the manifest lies outside the folder and was not read")
                continue
            try:
                found.append((name, read_manifest(path)))
            except UserError as error:
                self.problems.append(str(error))
        return found


def load(paths: Sequence[Path]) -> list[Folder]:
    """Read the folders of a report.

    Raises:
        UserError: No folder is given, one is given twice, one does not exist, or one holds no record.
    """
    return [_load(path, name) for path, name in zip(paths, names_of(paths), strict=True)]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of the folders of one report, each unlike the others.

    Raises:
        UserError: No folder is given, or one is given twice.
    """
    if not paths:
        raise UserError("no folder to report on", cure="Name the folder of a sweep.")
    resolved = [path.resolve() for path in paths]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise UserError("the folder is given twice", where=str(path))
    return _names(resolved)


def _load(path: Path, name: str) -> Folder:
    if not path.is_dir():
        raise UserError(
            "not a folder", where=str(path), cure="Name the folder that `foretaste measure` wrote."
        )
    layout = Layout(path)
    records, problems = layout.read()
    predicted, more = Layout(path / PREDICTED).read()
    problems += more
    _, spec, lines = read(layout, ([*records, *predicted], problems), "foretaste measure")
    return Folder(name, layout, tuple(records), spec, lines, tuple(predicted))


R = TypeVar("R")


def read(
    layout: Layout, found: tuple[list[R], list[UserError]], command: str
) -> tuple[list[R], dict[str, Any] | None, list[str]]:
    """The records of a folder of runs of any kind, its spec, and what could not be read.

    Args:
        layout: The folder.
        found: Its records and problems, as its layout reads them.
        command: Writes such folders.

    Raises:
        UserError: It holds no record.
    """
    records, problems = found
    if not records:
        detail = (
            f"; {len(problems)} file(s) there could not be read, first: {problems[0]}" if problems else ""
        )
        raise UserError(
            f"no records in {layout.runs}{detail}",
            where=str(layout.folder),
            cure=f"Name the folder that `{command}` wrote.",
        )
    lines = [str(problem) for problem in problems]
    return records, read_spec(layout.spec, lines), lines


def read_spec(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The spec that a folder keeps; None where there is none or it cannot be read, which adds a problem."""
    if not path.exists():
        return None
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path}: cannot read the spec: {error}")
        return None
    if not isinstance(spec, dict):
        problems.append(f"{path}: the spec is not an object")
        return None
    return spec


def _names(paths: Sequence[Path]) -> list[str]:
    """Last parts of the paths, with as many parents as it takes to tell them apart."""
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names) or depth > max(len(path.parts) for path in paths):
            return names
        depth += 1

"""What was measured so far: `results/bench.jsonl`, a line for each result of each session, oldest first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.result import Result
from foretaste.experiments.run import source_commit, versions

PATH = Path("results/bench.jsonl")


@dataclass(frozen=True)
class Entry:
    """One result of one session.

    Attributes:
        date: ISO 8601.
        commit: Of foretaste's source; None where it ran from an installed copy.
        benchmark: Name of the benchmark, such as `training`.
        versions: Of the packages that decide the speed.
        result: What was measured.
        dirty: Whether that source was changed; None where it is not known.
    """

    date: str
    commit: str | None
    benchmark: str
    versions: dict[str, str]
    result: Result
    dirty: bool | None = None


def of_session(benchmark: str, results: Iterable[Result]) -> list[Entry]:
    """Results that were measured just now."""
    date = datetime.now(UTC).date().isoformat()
    commit, dirty = source_commit()
    return [Entry(date, commit, benchmark, versions(), result, dirty) for result in results]


def append(entries: Iterable[Entry], path: Path) -> None:
    """Add lines to the file, which is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries)


def read(path: Path) -> list[Entry]:
    """All lines, in their order.

    Raises:
        ValueError: A line is no entry; the message names it.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            content: dict[str, Any] = json.loads(line)
            found.append(Entry(**{**content, "result": Result(**content["result"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return found


def latest(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The entries of each result by its name, newest last; names in the order of their first entry."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.result.name, []).append(entry)
    return found

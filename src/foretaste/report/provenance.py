"""Where the numbers come from: specs, versions, machines, seeds, notes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from foretaste.record import Machine, Record
from foretaste.report.load import Folder

ABSENT = "–"


class Ran(Protocol):
    """What records of every kind say of where they come from."""

    @property
    def request(self) -> dict[str, Any]:
        """The spec as the user gave it."""

    @property
    def started(self) -> str:
        """ISO 8601, UTC."""

    @property
    def versions(self) -> dict[str, str]:
        """Of packages."""

    @property
    def commit(self) -> str | None:
        """Of foretaste's own source."""

    @property
    def dirty(self) -> bool | None:
        """Whether that source was changed."""

    @property
    def machine(self) -> Machine:
        """Where and with what it ran."""


class Place(Protocol):
    """A folder of a report, of whatever kind of records."""

    @property
    def name(self) -> str:
        """Short name."""

    @property
    def spec(self) -> dict[str, Any] | None:
        """The spec that it keeps."""

    @property
    def told(self) -> Sequence[Ran]:
        """Its records."""


def spec_of(folder: Place) -> dict[str, Any]:
    """The spec that the folder keeps, else the one that its first record carries."""
    return folder.spec if folder.spec is not None else folder.told[0].request


def spec_text(folder: Place) -> str:
    """The spec as indented JSON."""
    return json.dumps(spec_of(folder), indent=2, ensure_ascii=False)


def title_of(folders: Sequence[Place]) -> str:
    """Heading of the page."""
    names = [str(spec.get("title") or spec.get("name") or folder.name) for folder, spec in _specs(folders)]
    return " and ".join(dict.fromkeys(names))


def spec_differences(folders: Sequence[Place]) -> list[tuple[str, list[str]]]:
    """Every setting that is not the same in all folders, with its value in each."""
    flat = [flatten(spec) for _, spec in _specs(folders)]
    keys = dict.fromkeys(key for spec in flat for key in spec)
    rows = [(key, [spec.get(key, ABSENT) for spec in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _specs(folders: Sequence[Place]) -> list[tuple[Place, dict[str, Any]]]:
    return [(folder, spec_of(folder)) for folder in folders]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with JSON values; lists of plain values stay together."""
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[str, Any]] = ((str(key), inner) for key, inner in value.items())
    elif isinstance(value, list) and any(isinstance(inner, (Mapping, list)) for inner in value):
        items = ((str(place), inner) for place, inner in enumerate(value))
    else:
        return {prefix: json.dumps(value, ensure_ascii=False)}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def versions(folders: Sequence[Place]) -> list[tuple[str, str]]:
    """Package versions over all runs; a package with several shows how many runs had each."""
    counts: dict[str, Counter[str]] = {}
    for record in _ran(folders):
        for package, version in record.versions.items():
            counts.setdefault(package, Counter())[version] += 1
        commit = f"{(record.commit or 'unknown')[:12]}{' with local changes' if record.dirty else ''}"
        counts.setdefault("foretaste commit", Counter())[commit] += 1
    return [(name, _tally(found)) for name, found in sorted(counts.items())]


def machines(folders: Sequence[Place]) -> list[tuple[str, str]]:
    """Machines that the runs were done on."""
    counts: dict[str, Counter[str]] = {}
    for record in _ran(folders):
        for key, value in record.machine.model_dump().items():
            counts.setdefault(key, Counter())[str(value)] += 1
    return [(key, _tally(found)) for key, found in counts.items()]


def seeds(folders: Sequence[Folder]) -> list[tuple[str, str]]:
    """Seeds of each stream that occur."""
    found: dict[str, set[int]] = {}
    for record in _records(folders):
        for stream, value in record.resolved.seeds.model_dump().items():
            found.setdefault(stream, set()).add(value)
    return [(stream, ", ".join(map(str, sorted(values)))) for stream, values in found.items()]


def notes(folders: Sequence[Folder]) -> list[tuple[str, int]]:
    """What the records say that a reader should know, with the number of runs that say it."""
    everything = [record for folder in folders for record in (*folder.records, *folder.predicted)]
    counts = Counter(note for record in everything for note in dict.fromkeys(record.notes))
    predicted = sum(record.kind == "predicted" for folder in folders for record in folder.records)
    if predicted:
        counts["Predicted records are listed among the runs and are not part of any cell."] = predicted
    return counts.most_common()


def inputs(folders: Sequence[Folder]) -> list[tuple[str, str]]:
    """Data and base models by content, so that a reader sees whether folders used the same."""
    found: dict[tuple[str, str], None] = {}
    for record in _records(folders):
        data, model = record.resolved.data, record.resolved.model
        rows = f"{data.train_rows:,} training and {data.test_rows:,} test rows"
        labels = ", ".join(data.classes)
        found["data", f"{data.request.source}: {rows}; classes {labels}; content {data.fingerprint[:12]}"] = (
            None
        )
        found["model", f"{model.request.base}: pooling {model.pooling}; content {model.fingerprint[:12]}"] = (
            None
        )
    return list(found)


def period(folders: Sequence[Place]) -> str:
    """First and last start of a run."""
    starts = sorted(record.started for record in _ran(folders))
    first, last = starts[0][:10], starts[-1][:10]
    return first if first == last else f"{first} to {last}"


def _records(folders: Sequence[Folder]) -> list[Record]:
    return [record for folder in folders for record in folder.told]


def _ran(folders: Sequence[Place]) -> list[Ran]:
    return [record for folder in folders for record in folder.told]


def _tally(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({number} runs)" for value, number in counts.most_common())

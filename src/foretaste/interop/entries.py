"""A run as experiment trackers want it: parameters, metrics, a curve of losses, and tags.

Records stay the truth: an entry is made of one record (and, for what is paired, of its clean run), after the
run, and can be made again at any time. What a tracker cannot hold is left out by name, never changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from foretaste.errors import UserError
from foretaste.interop.table import MEASURED, frame_of_folders, read
from foretaste.record import Record
from foretaste.report.load import Folder
from foretaste.report.provenance import flatten

NUMBERS = (
    *MEASURED,
    *("poisoned", "eligible", "steps", "final_loss", "trainable_parameters", "rows_per_second"),
    *("truncated_rows", "train_seconds", "total_seconds"),
)
# Characters that MLflow takes in the name of a metric, which W&B takes too.
_PLAIN = re.compile(r"[/\w.\- ]{1,200}", re.ASCII)
_RUN_ID = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Entry:
    """One run for a tracker.

    Attributes:
        run_id: Of foretaste: the hash of the resolved spec.
        sweep: Name of the spec: an experiment in MLflow, a project in W&B.
        label: Arm, attack and seed in one line.
        started: Seconds since 1970, UTC; so is `ended`, which is None where the run has no timings.
        resolved: The resolved spec, as JSON.
        metrics: Finite numbers by name; what is undefined is missing.
        losses: Training loss by step, finite ones only.
        tags: Texts: run id, status, reason, commit and what else identifies the run.
    """

    run_id: str
    sweep: str
    label: str
    status: str
    started: float
    ended: float | None
    resolved: dict[str, Any]
    metrics: dict[str, float]
    losses: dict[int, float]
    tags: dict[str, str]

    @property
    def completed(self) -> bool:
        """The run ended as it should."""
        return self.status == "completed"

    @property
    def parameters(self) -> dict[str, str]:
        """The resolved spec with dotted keys, and texts as they are."""
        return {plain_name(key): _text(value) for key, value in flatten(self.resolved).items()}

    @property
    def digest(self) -> str:
        """Hash of everything above: equal for equal entries, so that an export knows what it has written."""
        content = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        where: What it wrote to.
        added: Runs that were not there.
        replaced: Runs that were there and have changed since, such as one that was done again.
        kept: Runs that were there already.
        statuses: How many of all runs ended how.
        problems: A line for each file of the folders that could not be read.
    """

    where: str
    added: int
    replaced: int
    kept: int
    statuses: dict[str, int]
    problems: list[str]


def tally(where: str, done: Sequence[str], entries: Sequence[Entry], problems: Sequence[str]) -> Exported:
    """An `Exported` from what was done with each entry: "added", "replaced" or "kept"."""
    counts = Counter(done)
    statuses = dict(Counter(entry.status for entry in entries))
    return Exported(where, counts["added"], counts["replaced"], counts["kept"], statuses, list(problems))


def entries(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """Every measured run of some folders, and a line for each file that could not be read.

    Raises:
        UserError: A folder does not exist or holds no measured run, a record's id or time is none, or two
            folders hold the same run of one sweep with other results.
    """
    folders = read(paths)
    table = frame_of_folders(folders)
    rows = {(row["folder"], row["run_id"]): row for row in table.to_dict("records")}
    found: dict[tuple[str, str], Entry] = {}
    for folder in folders:
        for record in sorted(folder.records, key=lambda record: (record.started, record.run_id)):
            entry = _entry(folder, record, rows[folder.name, record.run_id])
            known = found.setdefault((entry.sweep, entry.run_id), entry)
            if known.digest != entry.digest:
                raise UserError(
                    f"two folders hold run {entry.run_id} of the sweep '{entry.sweep}' with other results",
                    where=str(folder.path),
                    cure="Export one of the two.",
                )
    return list(found.values()), [line for folder in folders for line in folder.problems]


def _entry(folder: Folder, record: Record, row: dict[Any, Any]) -> Entry:
    # A record may have been sent by someone else: its id becomes part of names of files.
    if not _RUN_ID.fullmatch(record.run_id):
        raise UserError(f"'{record.run_id}' is not the id of a run", where=str(folder.path))
    started = _seconds(record, folder)
    total = record.timings.total if record.timings is not None else None
    metrics, unfit = _metrics(record, row)
    losses = record.training.loss if record.training is not None else []
    finite = {step: loss for step, loss in enumerate(losses, start=1) if math.isfinite(loss)}
    if len(finite) < len(losses):
        unfit.append(f"train/loss at {len(losses) - len(finite)} of {len(losses)} steps")
    return Entry(
        run_id=record.run_id,
        sweep=record.sweep,
        label=record.resolved.label,
        status=record.status,
        started=started,
        ended=None if total is None or not math.isfinite(total) else started + total,
        resolved=record.resolved.model_dump(mode="json"),
        metrics=metrics,
        losses=finite,
        tags=_tags(record, unfit),
    )


def _seconds(record: Record, folder: Folder) -> float:
    try:
        moment = datetime.fromisoformat(record.started)
    except ValueError:
        raise UserError(
            f"run {record.run_id} started at '{record.started}', which is no ISO 8601 time",
            where=str(folder.path),
        ) from None
    return moment.timestamp()


def _metrics(record: Record, row: dict[Any, Any]) -> tuple[dict[str, float], list[str]]:
    """Finite numbers, and the names of those that are infinite or not a number."""
    found: dict[str, float | None] = {
        name: None if pd.isna(row[name]) else float(row[name]) for name in NUMBERS
    }
    if record.training is not None and record.training.loss:  # a loss that is not a number is no missing one
        found["final_loss"] = record.training.loss[-1]
    for part in record.triggered.values():
        name = plain_name(part.name if part.form is None else f"{part.name}/{part.form}")
        found[f"triggered/{name}/target_rate"] = part.target_rate
        found[f"triggered/{name}/accuracy"] = part.against_true.accuracy
    known = {name: value for name, value in found.items() if value is not None}
    unfit = [name for name, value in known.items() if not math.isfinite(value)]
    return {name: value for name, value in known.items() if math.isfinite(value)}, unfit


def _tags(record: Record, unfit: Sequence[str]) -> dict[str, str]:
    known = {
        "run_id": record.run_id,
        "status": record.status,
        "reason": record.reason,
        "collapsed": str(record.collapsed).lower(),
        "commit": record.commit,
        "dirty": None if record.dirty is None else str(record.dirty).lower(),
        "version": record.versions.get("foretaste"),
        "started": record.started,
        "attempts": str(record.attempts),
        "notes": "; ".join(record.notes) or None,
        "not_finite": ", ".join(unfit) or None,
    }
    return {name: value for name, value in known.items() if value is not None}


def plain_name(text: str) -> str:
    """The name of an attack or a setting as a part of a tracker's key: itself where that is allowed.

    Other characters become "_", and a hash of the whole keeps two such names apart.
    """
    if _PLAIN.fullmatch(text):
        return text
    plain = re.sub(r"[^/\w.\- ]", "_", text, flags=re.ASCII)[:150]
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def shortened(text: str, most: int) -> str:
    """A text, or where it is longer than a tracker takes, its length and hash in its place."""
    if len(text) <= most:
        return text
    return f"({len(text):,} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}; see the record)"


def _text(value: str) -> str:
    """A JSON text without its quotes; any other JSON value as it is."""
    if value.startswith('"'):
        loaded: str = json.loads(value)
        return loaded
    return value


def missing(package: str, extra: str) -> UserError:
    """The error for a tracker that is not installed."""
    return UserError(
        f"this export needs the package {package}, which is not installed",
        cure=f"pip install 'foretaste[{extra}]'",
    )

"""Records as one tidy data frame: one line a run, one column a variable."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from foretaste.calibration.places import Amount, natural
from foretaste.errors import UserError, unknown
from foretaste.record import Layout, Record, write_atomic
from foretaste.report.cells import runs_table
from foretaste.report.load import Folder, load
from foretaste.report.observations import observe

# `runs_table` names numbers as the record does; here they have the names that they have between runs.
NAMES = {
    "accuracy": "clean_accuracy",
    "precision": "clean_precision",
    "recall": "clean_recall",
    "f1": "clean_f1",
    "target_rate": "asr",
}
IDENTITY = ("folder", "sweep", "run_id", "kind", "status", "reason", "collapsed", "notes")
PLACE = ("model", "data", "arm", "method", "attack", "amount", "requested_rate", "requested_count")
COUNTS = ("poisoned", "eligible")
SEEDS = ("seed", "seed_data", "seed_poison", "seed_init", "seed_order")
MEASURED = (
    *("clean_accuracy", "clean_precision", "clean_recall", "clean_f1", "accuracy_drop"),
    *("asr", "flip_rate", "asr_margin", "triggered_accuracy"),
)
TRAINING = ("steps", "final_loss", "trainable_parameters", "rows_per_second", "truncated_rows")
ORIGIN = ("train_seconds", "total_seconds", "attempts", "started", "commit", "dirty", "foretaste")
COLUMNS = (*IDENTITY, *PLACE, *COUNTS, *SEEDS, *MEASURED, *TRAINING, *ORIGIN)
WHOLE = {
    *("requested_count", "poisoned", "eligible", "seed_data", "seed_poison", "seed_init", "seed_order"),
    *("steps", "trainable_parameters", "truncated_rows", "attempts"),
}
SWITCHES = {"collapsed", "dirty"}
NUMBERS = {"requested_rate", *MEASURED, "final_loss", "rows_per_second", "train_seconds", "total_seconds"}


def frame(folders: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """The measured runs of one sweep, or of several, one line each.

    Every run has exactly one line, whatever became of it: `status` is completed, diverged, error or crashed,
    and `collapsed` marks a model that predicts a single class. What a run does not have is missing. Columns:

    - which run: folder, sweep, run_id, kind, status, reason, collapsed, notes;
    - of what: model, data, arm, method, attack ("clean" for the clean run), amount, requested_rate,
      requested_count, poisoned, eligible, seed and the four seeds;
    - shares of test rows: clean_accuracy, clean_precision, clean_recall, clean_f1; of a poisoned run also asr
      and triggered_accuracy under its own trigger, and, against the clean run of equal seeds, flip_rate,
      asr_margin (asr - flip_rate) and accuracy_drop (the clean run's accuracy minus its own);
    - training and cost: steps, final_loss, trainable_parameters, ..., total_seconds;
    - origin: attempts, started (ISO 8601, UTC), commit, dirty, foretaste (version).

    For every trigger that some run was tested on, two more: `target_rate[NAME]` and `accuracy[NAME]`, in a
    further form of it `[NAME/FORM]`. There the clean run has its values, too.

    Args:
        folders: Folder of a sweep, or several.

    Returns:
        Columns of the types string, boolean, Int64 and float64, with one index from 0: Arrow, Parquet and
        Polars (`polars.from_pandas`) take it as it is.

    Raises:
        UserError: A folder does not exist or holds no measured run.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    return frame_of_folders(read(paths))


def read(paths: Sequence[Path]) -> list[Folder]:
    """The folders of an export.

    Raises:
        UserError: A folder does not exist, holds no measured run, or runs of another command.
    """
    for path in paths:
        _refuse_other_kinds(path)
    folders = load(paths)
    for folder in folders:
        if not folder.records:
            raise UserError(
                "the folder holds predictions only, and an export is of measured runs",
                where=str(folder.path),
                cure="Measure it first: `foretaste measure SPEC -o FOLDER`.",
            )
    return folders


def _refuse_other_kinds(path: Path) -> None:
    """Refuse a folder whose first record is one of another kind: it is no damaged record of this one."""
    for file in sorted(Layout(path).runs.glob("*.json")):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("kind") not in (None, "measured", "predicted"):
            raise UserError(
                f"the folder holds runs of the kind '{content['kind']}', which have other numbers",
                where=str(path),
                cure="Name the folder that `foretaste measure` or `foretaste audit` wrote.",
            )
        return


def frame_of_folders(folders: Sequence[Folder]) -> pd.DataFrame:
    """The same for folders that are read already."""
    runs = runs_table(folders).rename(columns=NAMES)
    places = [(folder, record) for folder in folders for record in folder.records]
    paired, tested = _paired(folders), [_tested(record) for _, record in places]
    rows = [
        {
            "sweep": record.sweep,
            "notes": "; ".join(record.notes) or None,
            "method": record.resolved.adapter.method,
            "amount": _amount(record).label,
            "commit": record.commit,
            "dirty": record.dirty,
            "foretaste": record.versions.get("foretaste"),
            **paired.get((folder.name, record.run_id), dict.fromkeys(PAIRED)),
            **tests,
        }
        for (folder, record), tests in zip(places, tested, strict=True)
    ]
    names = list(dict.fromkeys(name for tests in tested for name in tests))
    whole = pd.concat([runs, pd.DataFrame(rows)], axis=1)[[*COLUMNS, *names]]
    at = {folder.name: place for place, folder in enumerate(folders)}
    keys = [(at[folder.name], *_order(record)) for folder, record in places]
    ordered = sorted(range(len(places)), key=keys.__getitem__)
    return whole.astype({name: _dtype(name) for name in whole.columns}).iloc[ordered].reset_index(drop=True)


def _amount(record: Record) -> Amount:
    attack = record.resolved.attack
    return Amount(attack.rate, attack.count) if attack else Amount(None, None)


def _order(record: Record) -> tuple[Any, ...]:
    """Sorts as the report does: the clean run first, then attacks, amounts, arms and seeds."""
    run = record.resolved
    attack = run.attack.name if run.attack else ""
    arm = (run.adapter.name != "full", natural(run.adapter.name))
    return (natural(attack), _amount(record).order, arm, natural(run.seeds.label()), record.run_id)


PAIRED: dict[str, Callable[[dict[str, float | None]], float | None]] = {
    "flip_rate": lambda values: values["flip_rate"],
    "asr_margin": lambda values: values["asr_minus_flip"],
    "accuracy_drop": lambda values: None if (v := values["accuracy_change"]) is None else 0.0 - v,
}


def _paired(folders: Sequence[Folder]) -> dict[tuple[str, str], dict[str, float | None]]:
    """What a poisoned run has only beside its clean one, by folder and run id."""
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for item in observe(folders):
        if item.record.resolved.attack is not None:
            values = {name: value.number for name, value in item.values().items()}
            key = (item.folder.name, item.record.run_id)
            found[key] = {name: of(values) for name, of in PAIRED.items()}
    return found


def _tested(record: Record) -> dict[str, float | None]:
    """A run's numbers under every trigger and form that it was tested on, by column."""
    row: dict[str, float | None] = {}
    for part in record.triggered.values():
        name = part.name if part.form is None else f"{part.name}/{part.form}"
        row[f"target_rate[{name}]"] = part.target_rate
        row[f"accuracy[{name}]"] = part.against_true.accuracy
    return row


def _dtype(name: str) -> str:
    """The type of a column, which does not depend on what happens to be in it."""
    if name in WHOLE:
        return "Int64"
    if name in SWITCHES:
        return "boolean"
    return "float64" if name in NUMBERS or name not in COLUMNS else "string"


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def _json(table: pd.DataFrame) -> bytes:
    # Not pandas' own writer, which rounds to ten digits.
    lines = [{name: _plain(value) for name, value in row.items()} for row in table.to_dict("records")]
    return (json.dumps(lines, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    return None if pd.isna(value) or value in (float("inf"), float("-inf")) else value


WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {".parquet": _parquet, ".csv": _csv, ".json": _json}


def writer(path: Path) -> Callable[[pd.DataFrame], bytes]:
    """What makes the content of a file, by its suffix.

    Raises:
        UserError: The suffix is none of those.
    """
    if path.suffix not in WRITERS:
        raise unknown("kind of table", path.suffix or path.name, WRITERS, where=str(path))
    return WRITERS[path.suffix]


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a frame as Parquet, CSV or JSON, whole or not at all.

    JSON is a list with one object a line; a number that is not finite is null there, as JSON has none.

    Args:
        table: The frame.
        path: The file; its suffix decides. An existing one is replaced.

    Raises:
        UserError: The suffix is unknown or the file cannot be written.
    """
    content = writer(path)(table)
    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"cannot write the table: {error.strerror}", where=str(path)) from None

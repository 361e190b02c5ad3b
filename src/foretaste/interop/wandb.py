"""Measured runs for Weights & Biases, offline: one folder each, for `wandb sync` to send when wanted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretaste.errors import UserError
from foretaste.interop.entries import Entry, Exported, entries, missing, tally
from foretaste.record import write_atomic

INDEX = "foretaste.json"
INDEX_FORMAT = 1


def export(folders: Sequence[Path], target: Path) -> Exported:
    """Write the runs of some folders as offline runs of W&B; nothing is sent anywhere.

    The project is the sweep's name, the id is foretaste's run id, the config is the resolved spec and, under
    `foretaste`, what identifies the run. Metrics are in the summary, `train/loss` has one value a step. A run
    that did not complete ends with exit code 1 and has its status among the tags. Nothing of the machine that
    exports is recorded. `TARGET/foretaste.json` says what has been written: a run that is there is left
    alone, one whose record has changed since is written anew and its old folder removed.

    Args:
        folders: Folders of sweeps.
        target: Folder for W&B's own folder `wandb`; made when missing.

    Raises:
        UserError: W&B is not installed, the folder cannot be written, or the folders cannot be read.
    """
    found, problems = entries(folders)
    try:
        from wandb.errors import Error as Refusal
    except ImportError:
        raise missing("wandb", "wandb") from None
    try:
        target.mkdir(parents=True, exist_ok=True)
        index = _read(target / INDEX)
        done = [_put(target, index, entry) for entry in found]
    except Refusal as error:
        raise UserError(f"W&B refused: {error}", where=str(target)) from None
    except OSError as error:
        raise UserError(f"cannot write there: {error.strerror}", where=str(target)) from None
    return tally(str(target), done, found, problems)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        runs: dict[str, Any] = content["runs"]
        texts = (value for run in runs.values() for value in (run["digest"], run["folder"]))
        if content["format"] == INDEX_FORMAT and all(isinstance(value, str) for value in texts):
            return runs
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(
        "this index of exported runs is damaged",
        where=str(path),
        cure="Export into another folder, or delete that file to have every run written again.",
    )


def _put(target: Path, index: dict[str, Any], entry: Entry) -> str:
    """Write a run unless it is there as it is."""
    key = f"{entry.sweep}/{entry.run_id}"
    old = index.get(key)
    place = None if old is None else target / "wandb" / Path(old["folder"]).name
    there = place is not None and place.is_dir()
    if old is not None and there and old["digest"] == entry.digest:
        return "kept"
    folder = _write(target, entry)
    index[key] = {"digest": entry.digest, "folder": folder}
    write_atomic(target / INDEX, json.dumps({"format": INDEX_FORMAT, "runs": index}, indent=1) + "\n")
    if place is not None and there and place.name != folder:
        shutil.rmtree(place)
    return "replaced" if there else "added"


def _write(target: Path, entry: Entry) -> str:
    """Write one offline run; returns the name of its folder."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    run = wandb.init(
        mode="offline",
        reinit="create_new",
        dir=str(target),
        project=entry.sweep,
        id=entry.run_id,
        name=entry.label,
        tags=[entry.status, *(["collapsed"] if entry.tags["collapsed"] == "true" else [])],
        config={**entry.resolved, "foretaste": entry.tags},
        settings=settings,
    )
    for step, loss in entry.losses.items():
        run.log({"train/loss": loss}, step=step)
    run.summary.update(entry.metrics)
    folder = Path(run.settings.sync_dir).name
    run.finish(exit_code=0 if entry.completed else 1)
    return folder

"""Everything that `foretaste calibrate` says of folders, as one JSON-ready result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretaste.calibration import guess, naive
from foretaste.calibration.advice import Advice, advise
from foretaste.calibration.cells import PREDICTED, Cell, Counts, Sample, Target, Task, count, read_cells
from foretaste.calibration.intervals import TARGETS, adjust, calibrated, leave_one_out
from foretaste.calibration.places import short
from foretaste.calibration.scores import Gain, Scores, gain, score
from foretaste.errors import UserError

CALIBRATION_FORMAT = 2
RANKS = ("spearman", "kendall", "spearman_within", "kendall_within")
DIGITS = 6  # more would differ between machines that round sums otherwise


@dataclass(frozen=True)
class Scoreboard:
    """Scores over one set of cells: those of one task, or of all together.

    Attributes:
        name: Names of folder, model and data, or "all".
        predictors: The prediction, calibrated and at its other budgets, and the naive predictors.
        indicators: Every indicator as a predictor by itself; the signs of their correlations are their own.
        gains: The prediction against each naive predictor.
    """

    name: str
    counts: Counts
    predictors: tuple[Scores, ...]
    indicators: tuple[Scores, ...]
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Calibration:
    """What folders of predictions and measurements say together.

    Attributes:
        boards: One a task, then one over all where there are several.
        advice: One a task.
        problems: A line for each file that could not be read.
    """

    cells: tuple[Cell, ...]
    boards: tuple[Scoreboard, ...]
    advice: tuple[Advice, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A small mapping that is equal for equal records: no times of day, no paths, rounded numbers."""
        content = {
            "format": CALIBRATION_FORMAT,
            "boards": [_board(board) for board in self.boards],
            "advice": [_plain(advice) for advice in self.advice],
            "offsets": offsets(self.cells),
            "cells": [_cell(cell) for cell in self.cells],
            "problems": len(self.problems),
        }
        return {key: rounded(value) for key, value in content.items()}


def calibrate(folders: Sequence[Path]) -> Calibration:
    """Hold the predictions in folders against their measurements.

    Args:
        folders: Folders of sweeps, each with measured records in `runs/` and predicted ones in `predicted/`.

    Raises:
        UserError: No folder is given, two have one name, or one lacks predictions or completed measured runs.
    """
    if not folders:
        raise UserError("no folder to calibrate", cure="Name the folder of a sweep.")
    cells: list[Cell] = []
    problems: list[str] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        found, errors = read_cells(folder, name)
        _check(folder, found)
        cells += found
        problems += [str(error) for error in errors]
    return Calibration(tuple(cells), boards(cells), advice(cells), tuple(problems))


def boards(cells: Sequence[Cell]) -> tuple[Scoreboard, ...]:
    """A scoreboard for each task, and one over all cells where there are several tasks."""
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    found = [board([c for c in cells if c.task == task], task_name(task)) for task in tasks]
    return (*found, *([board(cells, "all")] if len(tasks) > 1 else []))


def board(cells: Sequence[Cell], name: str) -> Scoreboard:
    """Scores of every predictor on accuracy, and on ASR where there is a backdoor.

    Args:
        cells: The cells to score on.
        name: What they are.
    """
    predictors: list[Scores] = []
    indicators: list[Scores] = []
    gains: list[Gain] = []
    budgets = sorted({b for cell in cells if cell.prediction for b in cell.prediction.budgets})
    known = sorted({i for cell in cells if cell.prediction for i in cell.prediction.indicators})
    for target in targets(cells):
        main = guess.stated(cells, target)
        others = [leave_one_out(cells, target), *(guess.at_budget(cells, target, b) for b in budgets)]
        rivals = naive.all_naive(cells, target)
        predictors += [score(cells, predictor) for predictor in (main, *others, *rivals)]
        indicators += [score(cells, guess.indicator(cells, target, i)) for i in known]
        gains += [gain(cells, main, rival) for rival in rivals]
    return Scoreboard(name, count(cells), tuple(predictors), tuple(indicators), tuple(gains))


def advice(cells: Sequence[Cell]) -> tuple[Advice, ...]:
    """The advice for each task; predictions stand in for what was not measured, calibrated on what was."""
    found = []
    for task in dict.fromkeys(cell.task for cell in cells):
        own = [cell for cell in cells if cell.task == task]
        found.append(advise(own, adjust(own, [cell for cell in own if cell.measured.completed])))
    return tuple(found)


def offsets(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What all measured cells of each task teach: offset and widening of the intervals, by target."""
    rows = []
    for task in dict.fromkeys(cell.task for cell in cells):
        fit = calibrated([cell for cell in cells if cell.task == task])
        for target in TARGETS:
            rows.append({"task": task_name(task), "target": target, **dataclasses.asdict(fit.of(target))})
    return [row for row in rows if row["cells"]]


def targets(cells: Sequence[Cell]) -> tuple[Target, ...]:
    """Accuracy, and ASR where a cell has a trigger."""
    return TARGETS if any(cell.kind == "backdoor" for cell in cells) else TARGETS[:1]


def task_name(task: Task) -> str:
    """Folder, model and data in a line; of paths the last part."""
    return " · ".join(short(part) for part in task)


def _check(folder: Path, cells: Sequence[Cell]) -> None:
    if not folder.is_dir():
        raise UserError("not a folder", where=str(folder), cure="Name the folder of a sweep.")
    if not any(cell.prediction for cell in cells):
        raise UserError(
            f"no predictions in {folder / PREDICTED / 'runs'}",
            where=str(folder),
            cure=f"Make them: `foretaste predict SPEC -o {folder}`.",
        )
    if not any(cell.measured.completed for cell in cells):
        failed = sum(cell.measured.runs for cell in cells)
        raise UserError(
            f"no completed measured run in {folder / 'runs'}{f' ({failed} failed)' if failed else ''}",
            where=str(folder),
            cure=f"Measure them: `foretaste measure SPEC -o {folder}`.",
        )
    if not any(cell.prediction and cell.measured.completed for cell in cells):
        raise UserError(
            "no cell is both predicted and measured",
            where=str(folder),
            cure=f"Use one spec for both: `foretaste predict SPEC -o {folder}`.",
        )


def _names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two folders are called '{name}'", cure="Rename one of them.")
    return names


def _board(board: Scoreboard) -> dict[str, Any]:
    """A scoreboard in the JSON file; an indicator has no error and no interval: it keeps its ranks only."""
    content: dict[str, Any] = _plain(board)
    kept = ("predictor", "target", "cells", "silent", *RANKS)
    rows = content["indicators"]
    content["indicators"] = [{key: row[key] for key in kept if key in row} for row in rows]
    return content


def _cell(cell: Cell) -> dict[str, Any]:
    """One cell in the JSON file: both sides in a line."""
    prediction, measured = cell.prediction, cell.measured
    row: dict[str, Any] = {
        "task": task_name(cell.task),
        "attack": cell.attack,
        "amount": cell.amount.label,
        "arm": cell.arm,
        "runs": dict(measured.statuses),
    }
    if prediction is not None:
        row["validity"] = prediction.validity
        row["predicted_accuracy"] = list(dict(prediction.accuracy).values())
        if prediction.target_rate is not None:
            row["predicted_asr"] = list(dict(prediction.target_rate).values())
    for name, sample in (("accuracy", measured.accuracy), ("asr", measured.target_rate)):
        if sample.n:
            row[f"measured_{name}"] = [sample.mean, sample.error]
    return row


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, without what can be derived or is large."""
    if isinstance(value, Sample):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {key: item for key, item in pairs.items() if item is not None and item != ""}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def rounded(value: Any) -> Any:
    """A JSON-ready value with all its numbers rounded; infinity and NaN become None."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0 if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value

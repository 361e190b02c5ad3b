"""Tables of what was predicted, beside what was measured: cells, worst case, front, scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from foretaste.calibration.advice import Advice
from foretaste.calibration.cells import Cell, Sample, Target, pair
from foretaste.calibration.guess import interval_of
from foretaste.calibration.naive import all_naive
from foretaste.calibration.places import CLEAN, Amount
from foretaste.calibration.quantities import CRITERIA, of_sample
from foretaste.calibration.result import Scoreboard, advice, boards
from foretaste.calibration.scores import Score, Scores
from foretaste.report.load import Folder
from foretaste.report.rows import frame_of

Row = dict[str, Any]
PLACE = ("folder", "model", "data")
ENDS = ("", "_low", "_high")
RANKS = ("spearman", "kendall", "spearman_within", "kendall_within")
SCORES = (*RANKS, "error", "error_without_offset", "error_valid", "coverage")
GAINS = ("spearman", "spearman_within", "error")


@dataclasses.dataclass(frozen=True)
class Foretold:
    """Frames of a report that has predictions; all are empty when it has none.

    Attributes:
        predicted: One row a predicted cell, with what was measured there.
        certified: One row an arm and number of flipped labels.
        front: One row an arm of a task, with its quantities and standing.
        scores: One row a predictor or indicator, target and set of cells.
        gains: One row a naive predictor, target and set of cells.
    """

    predicted: pd.DataFrame
    certified: pd.DataFrame
    front: pd.DataFrame
    scores: pd.DataFrame
    gains: pd.DataFrame


def foretold(folders: Sequence[Folder]) -> Foretold:
    """The frames of the folders that hold predictions."""
    cells = cells_of(folders)
    amounts = _amounts(folders)
    told = [cell for cell in cells if cell.prediction is not None]
    # Without one measured cell there is nothing to hold a prediction against.
    scored = boards(cells) if any(cell.prediction and cell.measured.completed for cell in cells) else ()
    return Foretold(
        predicted=frame_of([_predicted(cell, amounts) for cell in told], PREDICTED),
        certified=frame_of(_certified(told), CERTIFIED),
        front=frame_of([row for item in advice(cells) for row in _front(item)], FRONT),
        scores=frame_of([row for board in scored for row in _scores(board)], SCORE_COLUMNS),
        gains=frame_of([row for board in scored for row in _gains(board)], GAIN_COLUMNS),
    )


def cells_of(folders: Iterable[Folder]) -> list[Cell]:
    """Cells of the folders that hold predictions.

    Raises:
        UserError: The records of one cell hold different predictions.
    """
    return [
        cell
        for folder in folders
        if folder.predicted
        for cell in pair(folder.predicted, folder.records, folder.name)
    ]


def advice_of(folders: Iterable[Folder]) -> tuple[Advice, ...]:
    """The advice for every task that has predictions."""
    return advice(cells_of(folders))


_Axis = dict[tuple[str, str, Amount], tuple[float | None, float | None]]


def _amounts(folders: Iterable[Folder]) -> _Axis:
    """Rate and count of each amount: as requested, else the mean of what the records realised."""
    found: dict[tuple[str, str, Amount], list[tuple[float, int]]] = {}
    for folder in folders:
        for record in (*folder.records, *folder.predicted):
            attack, poison = record.resolved.attack, record.poison
            if attack is not None and poison is not None and poison.eligible:
                key = (folder.name, attack.name, Amount(attack.rate, attack.count))
                found.setdefault(key, []).append((poison.poisoned / poison.eligible, poison.poisoned))
    means = {
        key: (float(np.mean([rate for rate, _ in pairs])), float(np.mean([rows for _, rows in pairs])))
        for key, pairs in found.items()
    }
    return {
        key: (
            key[2].rate if key[2].rate is not None else rate,
            float(key[2].count) if key[2].count is not None else number,
        )
        for key, (rate, number) in means.items()
    }


def _predicted(cell: Cell, amounts: _Axis) -> Row:
    prediction = cell.prediction
    assert prediction is not None
    asked = (cell.amount.rate, None if cell.amount.count is None else float(cell.amount.count))
    rate, number = (
        (0.0, 0.0) if cell.attack == CLEAN else amounts.get((cell.folder, cell.attack, cell.amount), asked)
    )
    row: Row = {
        **dict(zip(PLACE, cell.task, strict=True)),
        "attack": cell.attack,
        "amount": cell.amount.label,
        "arm": cell.arm,
        "rate": rate,
        "count": number,
        "requested_count": cell.amount.count,
        "validity": prediction.validity,
        "reasons": "; ".join(prediction.reasons),
        "flip_rate": prediction.baseline_target_rate,
        "probe_accuracy": prediction.probe.accuracy,
        "draws": prediction.draws,
        "held_out": prediction.held_out,
        "train_rows": prediction.train_rows,
        "steps": prediction.steps,
        "trainable_parameters": prediction.trainable_parameters,
        "runs": cell.measured.runs,
        "completed": cell.measured.completed,
    }
    for name, target in TARGET_NAMES:
        stated = interval_of(cell, target)
        values = (None, None, None) if stated is None else (stated.mean, stated.low, stated.high)
        row |= {f"{name}{end}": value for end, value in zip(ENDS, values, strict=True)}
        row |= {f"measured_{name}{end}": v for end, v in zip(ENDS, _ends(cell.observed(target)), strict=True)}
    return row


TARGET_NAMES: tuple[tuple[str, Target], ...] = (("accuracy", "accuracy"), ("asr", "target_rate"))


def _ends(sample: Sample) -> tuple[float | None, float | None, float | None]:
    """Mean and 90 % t interval, as wide a level as that of the prediction."""
    if not sample.n:
        return None, None, None
    quantity = of_sample(sample)
    return quantity.value, quantity.low, quantity.high


def _certified(cells: Sequence[Cell]) -> list[Row]:
    """The worst case belongs to an arm, so its cells repeat it: each is kept once."""
    rows: dict[tuple[object, ...], Row] = {}
    for cell in cells:
        assert cell.prediction is not None
        place = {**dict(zip(PLACE, cell.task, strict=True)), "arm": cell.arm}
        for item in cell.prediction.certified:
            key = (*place.values(), item.flips)
            rows.setdefault(key, {**place, **item.model_dump()})
    return list(rows.values())


def _front(item: Advice) -> list[Row]:
    rows = []
    for arm in item.arms:
        row: Row = {
            **dict(zip(PLACE, item.task, strict=True)),
            "arm": arm.name,
            "recommended": arm.name == item.arm,
            "cheapest": arm.name == item.cheapest,
            "standing": arm.standing,
            "by": ", ".join(arm.by or arm.diverged),
        }
        for criterion in CRITERIA:
            own = arm.quantities.get(criterion.name)
            values = (own.value, own.low, own.high, own.source, own.at) if own else (None,) * 5
            row |= {f"{criterion.name}{end}": v for end, v in zip(QUANTITY, values, strict=True)}
        rows.append(row)
    return rows


def _scores(board: Scoreboard) -> list[Row]:
    rows = []
    naive = {predictor.name for predictor in all_naive((), "accuracy")}
    for role, scores in (
        *(("naive" if s.predictor in naive else "prediction", s) for s in board.predictors),
        *(("indicator", s) for s in board.indicators),
    ):
        rows.append({"board": board.name, "role": role, **_flat(scores)})
    return rows


def _flat(scores: Scores) -> Row:
    row: Row = {
        name: getattr(scores, name)
        for name in ("predictor", "uses", "target", "cells", "silent", "within_cells")
    }
    row |= {name: getattr(scores, name) for name in ("valid", "covered", "with_interval")}
    for name in SCORES:
        row |= _score(name, getattr(scores, name))
    pairs = scores.concordance
    row |= {"pairs": pairs.pairs, "pairs_correct": pairs.correct, "pairs_tied": pairs.tied}
    row |= {"pairs_unresolved": pairs.unresolved, "pairs_without_error": pairs.no_error}
    return row | _score("concordance", pairs.share)


def _gains(board: Scoreboard) -> list[Row]:
    rows = []
    for item in board.gains:
        row: Row = {"board": board.name, "naive": item.naive, "target": item.target, "cells": item.cells}
        for name in GAINS:
            row |= _score(name, getattr(item, name))
        rows.append(row)
    return rows


def _score(name: str, score: Score) -> Row:
    return {
        name: score.value,
        f"{name}_low": score.low,
        f"{name}_high": score.high,
        f"{name}_reason": score.reason,
    }


def _score_columns(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in (*ENDS, "_reason"))


QUANTITY = (*ENDS, "_source", "_at")
PREDICTED = (
    *(*PLACE, "attack", "amount", "arm", "rate", "count", "requested_count", "validity", "reasons"),
    *(f"{kind}{name}{end}" for name, _ in TARGET_NAMES for kind in ("", "measured_") for end in ENDS),
    *("flip_rate", "probe_accuracy", "draws", "held_out", "train_rows", "steps", "trainable_parameters"),
    *("runs", "completed"),
)
CERTIFIED = (*PLACE, "arm", "flips", "share", "found", "random", "head")
FRONT = (
    *(*PLACE, "arm", "recommended", "cheapest", "standing", "by"),
    *(f"{criterion.name}{end}" for criterion in CRITERIA for end in QUANTITY),
)
SCORE_COLUMNS = (
    *("board", "role", "predictor", "uses", "target", "cells", "silent", "within_cells", "valid"),
    *("covered", "with_interval", *_score_columns(SCORES), "pairs", "pairs_correct", "pairs_tied"),
    *("pairs_unresolved", "pairs_without_error", *_score_columns(["concordance"])),
)
GAIN_COLUMNS = ("board", "naive", "target", "cells", *_score_columns(GAINS))

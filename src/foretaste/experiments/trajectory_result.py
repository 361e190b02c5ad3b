"""What one pair of trainings leaves behind: the distances at every step that was looked at, as a record.

One JSON file for each pair, and tables made from them, which is what the report reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError

from foretaste.calibration.places import Amount
from foretaste.errors import UserError
from foretaste.record import Part, Status, write_atomic
from foretaste.spec import RunSpec, digest
from foretaste.theory.update_distance import Distance, mean_over_steps

FORMAT = 1
DIGITS = 5
"""Significant digits of a stored distance: the thirty matrices of a small model are most of a record."""
FOLDER = "trajectories"


class Distances(Part):
    """Norms of the difference of two updates, one number for each step that was looked at."""

    frobenius: list[float]
    spectral: list[float]
    nuclear: list[float]
    max_abs: list[float]
    rank: list[int]
    clean: list[float] = Field(description="Frobenius norm of the clean run's own update")

    @property
    def relative(self) -> list[float]:
        """Frobenius distance over the Frobenius norm of the clean update; NaN where that is zero."""
        return [d / own if own else math.nan for d, own in zip(self.frobenius, self.clean, strict=True)]

    @property
    def stable_rank(self) -> list[float]:
        """Frobenius over spectral norm, squared; NaN where both are zero."""
        pairs = zip(self.frobenius, self.spectral, strict=True)
        return [(f / s) ** 2 if s else math.nan for f, s in pairs]


class Foretold(Part):
    """What the Gram of the untrained model says of the pair: the rows that differ, at the clean run's start.

    A label flip leaves the inputs alone, so that M' is the mean of K(x, x) and knows nothing of the flip.
    """

    m_prime_fro: float
    m_prime_op: float
    m_prime_cosine_fro: float = Field(description="NaN where a row moves no output")
    one_step: float = Field(
        description="T13 at learning rate 1: |dTheta - dTheta~| of the trained parameters"
    )
    one_step_body: float = Field(description="the same without the head's parameters")
    changed: int = Field(description="rows that poisoning changed as the model reads them")
    used: int = Field(description="of those, the ones in the Gram: at most kernel.train_rows")


class Trajectory(Part):
    """A clean and a poisoned training from the same seeds, and how far apart they went.

    `body` is everything that is trained outside the classification head, as weights of the base model: W0 + s
    B A for LoRA. `parameters` is the same without the last step, of A and B themselves: what the Gram speaks
    of. The head stands apart, because a head that is fitted to the labels as given starts elsewhere in the
    poisoned run; its distance is that of its updates, and `head_start` says how far apart they began.
    """

    format: Literal[1] = 1
    pair_id: str
    clean_id: str = Field(description="id of the clean run's spec")
    poisoned: RunSpec = Field(description="the clean run has the same but the attack")
    status: Status
    reason: str | None = None
    started: str = Field(description="ISO 8601, UTC")
    seconds: float = Field(description="of the poisoned run and of comparing; pairs share their clean run")
    versions: dict[str, str]
    commit: str | None
    steps: list[int] = Field(default_factory=list, description="optimiser steps done; 0 is before training")
    body: Distances | None = None
    head: Distances | None = None
    matrices: dict[str, Distances] = Field(
        default_factory=dict, description="matrices of the body by name; biases and norms are in `body` alone"
    )
    parameters: list[float] = Field(default_factory=list, description="body, Frobenius, as trained")
    head_parameters: list[float] = Field(default_factory=list, description="head, Frobenius, as trained")
    head_start: float | None = Field(None, description="Frobenius distance of the heads before training")
    head_start_relative: float | None = Field(None, description="over the norm of the clean one")
    logits: list[float] = Field(
        default_factory=list, description="root mean square over test rows of |f - f~|, not only of updates"
    )
    disagreement: list[float] = Field(
        default_factory=list, description="share of test rows that the two put into different classes"
    )
    without: int = Field(0, description="entries of trained parameters that are part of no weight")
    vectors: int = Field(0, description="biases and norms' weights of the body")
    foretold: Foretold | None = None
    foretold_missing: str | None = Field(None, description="why nothing is foretold")

    @property
    def label(self) -> str:
        """One line for progress and errors."""
        return self.poisoned.label


def pair_id(clean: RunSpec, poisoned: RunSpec, kernel: dict[str, Any]) -> str:
    """Names a pair by what decides its numbers: both runs, and the settings of the Gram."""
    return digest({"format": FORMAT, "clean": clean.id, "poisoned": poisoned.id, "kernel": kernel})[:16]


def distances(moments: Sequence[Distance], clean: Sequence[float]) -> Distances:
    """A record of distances, step by step.

    Args:
        moments: One for each step.
        clean: Frobenius norm of the clean update, likewise.
    """
    return Distances(
        frobenius=rounded([moment.frobenius for moment in moments]),
        spectral=rounded([moment.spectral for moment in moments]),
        nuclear=rounded([moment.nuclear for moment in moments]),
        max_abs=rounded([moment.max_abs for moment in moments]),
        rank=[moment.rank for moment in moments],
        clean=rounded(clean),
    )


def rounded(values: Sequence[float]) -> list[float]:
    """The values with `DIGITS` significant digits."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def path_of(folder: Path, pair: str) -> Path:
    """Where the record of a pair lies."""
    return folder / FOLDER / f"{pair}.json"


def write(record: Trajectory, folder: Path) -> None:
    """Put a record where it belongs, atomically.

    Raises:
        OSError: It could not be written.
    """
    write_atomic(path_of(folder, record.pair_id), record.model_dump_json())


def read(path: Path) -> Trajectory:
    """The record in a file.

    Raises:
        UserError: The file is no such record.
    """
    try:
        return Trajectory.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the trajectory: {error.strerror}", where=str(path)) from None
    except ValidationError as error:
        raise UserError(
            f"not a foretaste trajectory of format {FORMAT}: {error.errors()[0]['msg']}",
            where=str(path),
            cure="Delete the file to have the pair done again.",
        ) from None


# --- tables --------------------------------------------------------------------------------------


def moments_table(found: Sequence[Trajectory]) -> pd.DataFrame:
    """One line for each pair and step.

    Columns: pair, arm, attack, amount, seed, step; frobenius, spectral, nuclear, max_abs, rank, stable_rank,
    clean and relative of the body; parameters; head, head_clean and head_parameters (Frobenius); logits,
    disagreement.
    """
    rows = []
    for record in found:
        if record.body is None or record.head is None:
            continue
        columns = {
            **_columns(record.body),
            "parameters": record.parameters,
            "head": record.head.frobenius,
            "head_clean": record.head.clean,
            "head_parameters": record.head_parameters,
            "logits": record.logits,
            "disagreement": record.disagreement,
        }
        rows += [
            {**_place(record), "step": step, **{name: values[i] for name, values in columns.items()}}
            for i, step in enumerate(record.steps)
        ]
    return pd.DataFrame(rows)


def matrices_table(found: Sequence[Trajectory]) -> pd.DataFrame:
    """One line for each pair, step and matrix of the body.

    Columns: pair, arm, attack, amount, seed, matrix, step; and those of its distances, as in `moments_table`.
    """
    rows = []
    for record in found:
        for name, part in record.matrices.items():
            columns = _columns(part)
            rows += [
                {
                    **_place(record),
                    "matrix": name,
                    "step": step,
                    **{key: values[i] for key, values in columns.items()},
                }
                for i, step in enumerate(record.steps)
            ]
    return pd.DataFrame(rows)


def pairs_table(found: Sequence[Trajectory]) -> pd.DataFrame:
    """One line for each pair.

    Columns: pair, arm, attack, amount, seed, status, reason, optimizer, learning_rate, steps; what was
    measured: first (step 1), last and mean (over the steps, Eq. 5) of the body's Frobenius distance,
    first_parameters and last_parameters, last_relative, head_start, head_start_relative; what was foretold:
    m_prime_fro, m_prime_op, m_prime_cosine_fro, one_step and one_step_body (at learning rate 1),
    foretold_step (one_step_body times the arm's learning rate), changed, used; without, vectors.
    """
    return pd.DataFrame([_pair(record) for record in found])


def _place(record: Trajectory) -> dict[str, Any]:
    run = record.poisoned
    assert run.attack is not None
    return {
        "pair": record.pair_id,
        "arm": run.adapter.name,
        "attack": run.attack.name,
        "amount": Amount(run.attack.rate, run.attack.count).label,
        "seed": run.seeds.label(),
    }


def _columns(part: Distances) -> dict[str, Sequence[float]]:
    stored = ("frobenius", "spectral", "nuclear", "max_abs", "rank", "clean")
    return {name: getattr(part, name) for name in (*stored, "stable_rank", "relative")}


def _pair(record: Trajectory) -> dict[str, Any]:
    rate = record.poisoned.training.learning_rate or math.nan
    row: dict[str, Any] = {
        **_place(record),
        "status": record.status,
        "reason": record.reason,
        "optimizer": record.poisoned.training.optimizer,
        "learning_rate": rate,
        "steps": record.steps[-1] if record.steps else 0,
        "head_start": _number(record.head_start),
        "head_start_relative": _number(record.head_start_relative),
        "without": record.without,
        "vectors": record.vectors,
    }
    body = record.body if record.status == "completed" else None
    series = (body.frobenius, record.parameters) if body is not None else ([], [])
    for name, values in zip(("", "_parameters"), series, strict=True):
        row[f"first{name}"] = values[1] if len(values) > 1 else math.nan
        row[f"last{name}"] = values[-1] if values else math.nan
    row["mean"] = mean_over_steps(record.steps, body.frobenius) if body is not None else math.nan
    row["last_relative"] = body.relative[-1] if body is not None else math.nan
    told = record.foretold
    for name in ("m_prime_fro", "m_prime_op", "m_prime_cosine_fro", "one_step", "one_step_body"):
        row[name] = _number(getattr(told, name, None))
    # LoRA+ trains B at a rate of its own.
    own_rate = record.poisoned.adapter.config.get("loraplus_lr_ratio") is not None
    row["foretold_step"] = math.nan if own_rate else rate * row["one_step_body"]
    row["changed"] = told.changed if told is not None else 0
    row["used"] = told.used if told is not None else 0
    return row


def _number(value: float | None) -> float:
    return math.nan if value is None else float(np.float64(value))

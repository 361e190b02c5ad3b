"""A forecast of a generative model held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from foretaste.errors import UserError
from foretaste.instruct.forecast_record import Forecast, ForecastScore
from foretaste.instruct.record import InstructLayout, InstructRecord
from foretaste.instruct.spec import CLEAN, InstructRun
from foretaste.spec import digest


def measured(folder: Path, renderer: str) -> list[InstructRecord]:
    """Completed records of a folder.

    Raises:
        UserError: They were rendered in another way, and may not be compared.
    """
    records = [r for r in InstructLayout(folder).records()[0] if r.status == "completed"]
    for record in records:
        if record.renderer != renderer:
            raise UserError(
                "the measured runs of this folder were rendered by another template",
                where=str(folder),
                cure="Choose another folder.",
            )
    return records


def scored(found: Forecast, runs: Sequence[InstructRun], records: Sequence[InstructRecord]) -> Forecast:
    """The forecast with its ranks against what was measured, means over the seeds of a cell.

    Args:
        found: The forecast.
        runs: Those that it is of.
        records: Completed records of the same sweep.
    """
    rates: dict[tuple[str, str], list[float]] = {}
    used: set[str] = set()
    wanted = {_name(run): run.id for run in runs}
    for record in records:
        name = wanted.get(_name(record.resolved))
        if name is None:
            continue
        for asked, verdict in record.judged.items():
            if verdict.rate is not None:
                rates.setdefault((name, asked), []).append(verdict.rate)
                used.add(record.run_id)
    rows: list[tuple[bool, float, dict[str, float]]] = []
    for cell in found.cells:
        for name, part in cell.sets.items():
            if (cell.run_id, name) not in rates:
                continue
            numbers = {
                "share that opens as poison": part.open_after,
                "margin": part.after,
                "change of the margin": part.moved,
                "change, less that of clean requests": part.moved - cell.sets[CLEAN].moved,
            }
            triggered = cell.trigger is not None and name == cell.trigger
            rows.append((triggered, float(np.mean(rates[cell.run_id, name])), numbers))
    scores = []
    for over, chosen in (
        ("triggered requests of poisoned cells", [row for row in rows if row[0]]),
        ("all requests of all cells", rows),
    ):
        for predictor in chosen[0][2] if chosen else ():
            x, y = [row[2][predictor] for row in chosen], [row[1] for row in chosen]
            scores.append(
                ForecastScore(
                    predictor=predictor,
                    over=over,
                    n=len(chosen),
                    spearman=_rank(stats.spearmanr, x, y),
                    kendall=_rank(stats.kendalltau, x, y),
                )
            )
    return found.model_copy(update={"scores": scores, "measured": len(used)})


def _name(run: InstructRun) -> str:
    """What a run has in common with the same cell under other seeds."""
    content = run.model_dump(mode="json")
    if content["tuning"] is not None:
        del content["tuning"]["seeds"]
    return digest(content)


def _rank(measure: Callable[..., object], x: Sequence[float], y: Sequence[float]) -> float | None:
    """A rank correlation; None with fewer than three pairs, or where one side is constant."""
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(measure(x, y).statistic)  # type: ignore[attr-defined]

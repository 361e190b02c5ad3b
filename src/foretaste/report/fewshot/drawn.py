"""Rows of the figures of a few-shot page, from its cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from foretaste.fewshot.spec import KernelArm
from foretaste.report.fewshot.cells import Cell, Place, value_of
from foretaste.report.fewshot.dots import CRITERIA, DotRow
from foretaste.report.fewshot.pairs import PairRow, analog, paired
from foretaste.report.figures import fewshot as figure
from foretaste.report.figures.base import Row


def specs(
    found: Sequence[Cell], pairs: Sequence[PairRow], dots: Sequence[DotRow], arms: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Vega-Lite specifications by name, of what there is something to draw for, in the order of the page."""
    names = _Names([cell.place for cell in found])
    drawn: dict[str, tuple[Sequence[Row], dict[str, Any]]] = {}
    points = score_rows(found, names)
    drawn["scores"] = (points, figure.scores(points, arms))
    marks = dot_rows(dots, names)
    drawn["dots"] = (marks, figure.dots(marks, list(CRITERIA.values())))
    gaps = gap_rows(found, pairs, names)
    drawn["gap"] = (gaps, figure.gap(gaps))
    stages = linearised_rows(dots, names)
    drawn["linearised"] = (stages, figure.linearised(stages))
    kept = {name: spec for name, (rows, spec) in drawn.items() if rows}
    return kept or {"scores": drawn["scores"][1]}


class _Names:
    """Short names of places: what is the same on the whole page goes without saying."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.several = {
            name: len({getattr(place, name) for place in places}) > 1 for name in ("model", "prompt", "k")
        }

    def whole(self, place: Place) -> str:
        """Task and all that differs on the page."""
        parts = [place.task]
        parts += [f"k {place.k}"] if self.several["k"] else []
        parts += [place.prompt] if self.several["prompt"] else []
        parts += [place.model] if self.several["model"] else []
        return " · ".join(parts)

    def without_task(self, place: Place) -> str:
        """All that differs on the page but the task; k stands for all where nothing does."""
        return " · ".join([f"k {place.k}", *self.whole(place).split(" · ")[1 + self.several["k"] :]])


def score_rows(found: Sequence[Cell], names: _Names) -> list[Row]:
    """One row a kernel, fine-tuning and split."""
    rows: list[Row] = []
    for kernel in found:
        for tuned in found:
            if not analog(kernel, tuned):
                continue
            for split, run, other in paired(kernel, tuned):
                rows.append(
                    {
                        "panel": names.whole(kernel.place),
                        "arm": kernel.name,
                        "tuned": tuned.name,
                        "split": split,
                        "x": value_of(other),
                        "y": value_of(run),
                    }
                )
    return rows


def dot_rows(dots: Sequence[DotRow], names: _Names) -> list[Row]:
    """One row a fine-tuning arm and criterion."""
    rows: list[Row] = []
    for row in dots:
        for criterion, title in CRITERIA.items():
            met, said = row.count(criterion)
            rows.append(
                {
                    "panel": row.arm,
                    "place": names.whole(row.place),
                    "criterion": title,
                    "share": met / said if said else None,
                    "counts": f"{met} of {said}" if said else "none can be said",
                }
            )
    return rows


def gap_rows(found: Sequence[Cell], pairs: Sequence[PairRow], names: _Names) -> list[Row]:
    """One row a kernel, task and output; none where nothing has a standard head."""
    output = {
        (cell.place.key, cell.name): cell.arm.output for cell in found if isinstance(cell.arm, KernelArm)
    }
    kind = {(cell.place.key, cell.name): cell.arm.kernel for cell in found if isinstance(cell.arm, KernelArm)}
    tuned = {cell.name for cell in found if not isinstance(cell.arm, KernelArm)}
    rows: list[Row] = []
    for pair in pairs:
        key = (pair.place.key, pair.first)
        if key not in output or pair.second not in tuned or not pair.n:
            continue
        known = pair.interval.defined
        rows.append(
            {
                "panel": f"{pair.second.removesuffix('-standard')} and the {kind[key]} kernel",
                "place": names.whole(pair.place),
                "output": output[key],
                "value": -pair.mean,
                "low": -pair.interval.high if known else None,
                "high": -pair.interval.low if known else None,
            }
        )
    return rows if any(row["output"] == "standard" for row in rows) else []


def linearised_rows(dots: Sequence[DotRow], names: _Names) -> list[Row]:
    """One row a fine-tuning arm, task and stage."""
    rows: list[Row] = []
    for row in dots:
        if not any(one.linearised is not None for one in row.splits):
            continue
        stages = ("zero_shot", "linearised", "fine_tuned")
        for stage, name in zip(stages, figure.STAGES, strict=True):
            values = [value for one in row.splits if (value := getattr(one, stage)) is not None]
            if values:
                rows.append(
                    {
                        "panel": f"{row.arm} · {names.without_task(row.place)}",
                        "place": row.place.task,
                        "stage": name,
                        "median": statistics.median(values),
                        "low": min(values),
                        "high": max(values),
                    }
                )
    return rows

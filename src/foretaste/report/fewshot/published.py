"""What the kernel paper prints in its tables, beside what was measured here. For reading, not for comparison.

Malladi et al. 2023, "A Kernel-Based View of Language Model Fine-Tuning", Tables 2, 5, 6, 7, 8, 9 and 11;
Figures 1 and 2 draw Tables 7 and 5, and Table 1 counts splits of what Tables 2, 5 and 6 average. Its standard
deviations have n in the denominator, ours n − 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foretaste import statistics
from foretaste.fewshot.record import FewShotRecord, Score
from foretaste.fewshot.spec import Arm, ZeroShot
from foretaste.report.fewshot.cells import Cell, value_of
from foretaste.report.fewshot.dots import DotRow, SplitDots
from foretaste.report.fewshot.published_values import (
    CHI,
    DISTANCES,
    LINEARISED,
    LORA,
    NINE,
    PROMPTS,
    SCORES,
    SIX,
    STANDARD,
    ZERO_SHOT,
    Row,
)
from foretaste.report.rows import frame_of
from foretaste.report.tables import MINUS, Column, Entry, Table, missing

Measure = Literal["score", "accuracy", "linearised", "distance", "chi", "ratio", "share"]
NAME = "published"
ABSENT = "no such runs here"
LOST = "not in the text that the values were typed from"
BASE = "RoBERTa-base"
MEASURES: dict[Measure, tuple[str, float, int]] = {
    "score": ("score", 100.0, 1),
    "accuracy": ("accuracy", 100.0, 1),
    "linearised": ("accuracy, linearised", 100.0, 1),
    "distance": ("kernel distance", 1.0, 2),
    "chi": ("χ", 1.0, 2),
    "ratio": ("kernel by fine-tuning", 1.0, 2),
    "share": ("share of gain", 1.0, 2),
}
"""Title, what a value of ours is multiplied by, digits."""


@dataclass(frozen=True)
class Published:
    """One value of a published table.

    Attributes:
        source: The table.
        arm: Label of the arm here, without a name of its own.
        k: None for the pretrained model, which has none.
        measure: `accuracy` is accuracy also where the score is F1.
        value: As printed; None where the text lost it.
        sd: As printed; None where none is.
    """

    source: str
    task: str
    arm: str
    prompt: str
    k: int | None
    measure: Measure
    value: float | None
    sd: float | None
    model: str = BASE


def _rows(
    source: str,
    grid: dict[tuple[int, str], Row],
    measure: Measure = "score",
    *,
    prompt: str = "manual",
    only: Sequence[str] | None = None,
) -> list[Published]:
    return [
        Published(source, task, arm, prompt, k, measure, *(cell or (None, None)))
        for (k, arm), row in grid.items()
        for task, cell in row.items()
        if only is None or task in only
    ]


def _some(*arms: str, k: int | None = None) -> dict[tuple[int, str], Row]:
    """Rows of Table 2 that other tables repeat."""
    return {key: row for key, row in SCORES.items() if key[1] in arms and k in (None, key[0])}


def _table_5() -> list[Published]:
    source = "Table 5"
    found = [
        Published(source, task, "zero-shot", "manual", None, "accuracy", value, None)
        for task, value in ZERO_SHOT.items()
    ]
    for (k, name), row in LINEARISED.items():
        measure: Measure = "linearised" if name == "linearised" else "accuracy"
        found += _rows(source, {(k, "adam"): row}, measure)
    return found


def _table_1() -> list[Published]:
    """What the dots are counted from, computed from the means of other tables."""
    found = []
    for tuned, kernels in (("sgd", ("kernel-sgd",)), ("adam", ("kernel-signgd", "kernel-asymmetric"))):
        for k in (16, 64):
            for task, cell in SCORES[k, tuned].items():
                best = max(row[0] for kernel in kernels if (row := SCORES[k, kernel][task]) is not None)
                ratio = None if cell is None else best / cell[0]
                place = (task, tuned, "manual", k)
                found.append(Published("Table 2, means", *place, "ratio", ratio, None))
    for k in (16, 64):
        for task, start in ZERO_SHOT.items():
            linear, end = LINEARISED[k, "linearised"][task], LINEARISED[k, "accuracy"][task]
            assert linear is not None
            assert end is not None
            share = (linear[0] - start) / (end[0] - start)
            found.append(Published("Table 5, means", task, "adam", "manual", k, "share", share, None))
    return found + _rows("Table 6", DISTANCES, "distance")


def _table_8() -> list[Published]:
    return [
        Published("Table 8", task, "zero-shot", "manual", None, "chi", value, None, model)
        for model, values in CHI.items()
        for task, value in zip(NINE, values, strict=True)
    ]


def _table_7() -> list[Published]:
    return _rows("Table 7", _some("sgd", "kernel-sgd", "adam"), only=SIX) + _rows("Table 7", STANDARD)


def _table_9() -> list[Published]:
    found = _rows("Table 9", _some("sgd", "kernel-sgd", "adam", k=16), only=SIX)
    for prompt, grid in PROMPTS.items():
        found += _rows("Table 9", grid, prompt=prompt)
    return found


TABLES: dict[str, list[Published]] = {
    "kernel-tab1": _table_1(),
    "kernel-tab2": _rows("Table 2", SCORES),
    "kernel-tab5": _table_5(),
    "kernel-tab6": _rows("Table 6", DISTANCES, "distance"),
    "kernel-tab7": _table_7(),
    "kernel-tab8": _table_8(),
    "kernel-tab9": _table_9(),
    "kernel-tab11": _rows("Table 11", _some("sgd", "kernel-sgd"), only=SIX) + _rows("Table 11", LORA),
}
"""Published values by the name of a preset."""


@dataclass(frozen=True)
class Here:
    """Values of ours for one published value, one for each split."""

    model: str
    k: int
    metric: str
    values: tuple[float, ...]


def published_table(name: str, found: Sequence[Cell], dots: Sequence[DotRow]) -> Table:
    """Published values of the tasks of this page, each with the cells here of the same kind.

    Args:
        name: In `TABLES`.
        found: The cells of the page.
        dots: Its fine-tuned models with their criteria.
    """
    tasks = {cell.place.task for cell in found}
    table = TABLES[name]
    kept = [row for row in table if row.task in tasks]
    beside = [(row, here) for row in kept for here in (_beside(row, found, dots) or (None,))]
    columns = [
        *(Column("Task", held=1), Column("Arm", held=2), Column("Prompt"), Column("k", numeric=True)),
        *(Column("Measure"), Column("Published", numeric=True), Column("Model")),
        *(Column("Here", numeric=True), Column("Splits here", numeric=True), Column("k here", numeric=True)),
        Column("Model here"),
    ]
    rows = [[*_published_entries(row), *_here_entries(row, here)] for row, here in beside]
    sources = ", ".join(dict.fromkeys(row.source for row in table))
    notes = (
        f"Published: Malladi et al. 2023, {sources}, as printed: mean (sd) over five splits, scores in per "
        "cent (F1 for MRPC and QQP in Tables 2, 7, 9 and 11). Here: model, k, rows and grid of this page; at "
        "another scale than `paper` the model is another one, so read them side by side and no further.",
        f"{len(table) - len(kept)} published values of tasks that are not on this page are left out.",
    )
    records = [_record(row, here) for row, here in beside]
    names = ("source", "model", "task", "arm", "prompt", "k", "measure", "published", "published_sd")
    frame = frame_of(records, (*names, "model_here", "k_here", "metric_here", "n_here", "here", "here_sd"))
    return Table(NAME, "Published values and ours", columns, rows, frame, notes)


def plain_label(arm: Arm) -> str:
    """The label that its settings give an arm, whatever the user named it."""
    return arm.model_copy(update={"name": None}).label


def _beside(row: Published, found: Sequence[Cell], dots: Sequence[DotRow]) -> list[Here]:
    """Cells of the same k and model; where none has it, of every k, and of every model."""
    cells = [
        cell
        for cell in found
        if (cell.place.task, cell.place.prompt) == (row.task, row.prompt) and plain_label(cell.arm) == row.arm
    ]
    if row.k is None:  # the pretrained model is the same for every k
        cells = [cell for cell in cells if cell.place.k == cells[0].place.k]
    cells = [cell for cell in cells if cell.place.model.lower() == row.model.lower()] or cells
    made = []
    for cell in [cell for cell in cells if cell.place.k == row.k] or cells:
        values = _values(row.measure, cell, dots)
        if values:
            made.append(Here(cell.place.model, cell.place.k, cell.place.metric, tuple(values)))
    return made


def _values(measure: Measure, cell: Cell, dots: Sequence[DotRow]) -> list[float]:
    if measure in ("score", "accuracy"):
        take = value_of if measure == "score" else _accuracy
        return _known(take(run) for run in cell.completed)
    if isinstance(cell.arm, ZeroShot) or measure == "chi":
        return _known(run.criteria.chi if run.criteria else None for run in cell.completed)
    if measure == "linearised":
        return _known(_of(run.criteria.linearised_test if run.criteria else None) for run in cell.completed)
    splits = [one for row in dots if (row.place, row.arm) == (cell.place, cell.name) for one in row.splits]
    return _known(_criterion(measure, one) for one in splits)


def _criterion(measure: Measure, one: SplitDots) -> float | None:
    found: dict[str, float | None] = {"ratio": one.ratio, "share": one.share, "distance": one.distance}
    return found[measure]


def _accuracy(run: FewShotRecord) -> float | None:
    return _of(run.test)


def _of(score: Score | None) -> float | None:
    return None if score is None or not score.n else score.correct / score.n


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _published_entries(row: Published) -> list[Entry]:
    title, _, digits = MEASURES[row.measure]
    spread = "" if row.sd is None else f" ({row.sd:.{digits}f})"
    value = missing(LOST)
    if row.value is not None:
        value = Entry(f"{row.value:.{digits}f}{spread}".replace("-", MINUS), detail=row.source)
    return [
        *(Entry(row.task), Entry(row.arm), Entry(row.prompt)),
        missing("the pretrained model has none") if row.k is None else Entry(str(row.k)),
        *(Entry(title), value, Entry(row.model)),
    ]


def _here_entries(row: Published, here: Here | None) -> list[Entry]:
    if here is None:
        return [missing(ABSENT)] * 4
    _, factor, digits = MEASURES[row.measure]
    if not all(map(math.isfinite, here.values)):
        return [Entry("∞", tone="warn"), Entry(str(len(here.values))), Entry(str(here.k)), Entry(here.model)]
    own = statistics.summary([factor * value for value in here.values])
    spread = "" if own.n < 2 else f" ({own.sd:.{digits}f})"
    text = f"{own.mean:.{digits}f}{spread}".replace("-", MINUS)
    reason = "one split: no deviation" if own.n < 2 else ""
    return [Entry(text, reason=reason), Entry(str(own.n)), Entry(str(here.k)), Entry(here.model)]


def _record(row: Published, here: Here | None) -> dict[str, Any]:
    """Published values as printed; ours in the same unit."""
    factor = MEASURES[row.measure][1]
    finite = [factor * value for value in here.values if math.isfinite(value)] if here else []
    own = statistics.summary(finite) if finite else None
    return {
        **{name: getattr(row, name) for name in ("source", "model", "task", "arm", "prompt", "k", "measure")},
        "published": row.value,
        "published_sd": row.sd,
        "model_here": here.model if here else "",
        "k_here": here.k if here else None,
        "metric_here": here.metric if here else "",
        "n_here": own.n if own else 0,
        "here": own.mean if own else None,
        "here_sd": own.sd if own else None,
    }

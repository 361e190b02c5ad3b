"""Predicted and measured cells side by side: folder x model x data x attack x amount x arm.

The runs of a cell differ in their seeds only. Its prediction is one; its measured values are means over all
completed runs, whatever seeds were predicted. Nothing is dropped: a cell that lacks either side stays in the
list, and runs that did not complete are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from foretaste import statistics
from foretaste.calibration.naming import Place, place_of, refuse_mixed, seed_of
from foretaste.calibration.places import CLEAN, Amount, clean_runs, natural, partner_key, trigger_key
from foretaste.errors import UserError
from foretaste.record import Layout, Prediction, Record, TriggeredMetrics
from foretaste.seeds import Seeds, crossed
from foretaste.spec import ResolvedAdapter, TrainingSpec

PREDICTED = "predicted"  # the folder inside that of a sweep which holds the predicted records

Target: TypeAlias = Literal["accuracy", "target_rate"]
Kind: TypeAlias = Literal["clean", "flips", "backdoor"]
Task: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True)
class Sample:
    """One number of each completed run of a cell, by the label of its seeds."""

    by_seed: Mapping[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Completed runs that have the number."""
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        """Mean over the runs; None without one."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None with fewer than two runs, or when all gave the same number.

        Runs that agree to the last row show no spread, which is not the same as having none.
        """
        return standard_error(list(self.by_seed.values()))

    def interval(self, level: float = statistics.LEVEL) -> statistics.Interval:
        """Student's t interval of the mean; undefined for crossed seeds, which are no independent draws."""
        independent = not crossed([Seeds.of(label) for label in self.by_seed])
        return statistics.summary(list(self.by_seed.values()), level, independent=independent).interval

    def minus(self, other: Sample) -> Sample:
        """Differences over the seeds that both have.

        Rounded to 12 digits: equal differences must be equal, or the last bit would pass for spread.
        """
        shared = [seed for seed in self.by_seed if seed in other.by_seed]
        return Sample({seed: round(self.by_seed[seed] - other.by_seed[seed], 12) for seed in shared})


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean; None with fewer than two values or without any spread."""
    if len(values) < 2 or np.ptp(values) == 0.0:
        return None
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


@dataclass(frozen=True)
class Measured:
    """What the measured runs of a cell gave.

    Attributes:
        statuses: Number of runs by status, failed ones included.
        collapsed: Completed runs that predict a single class; they stay in every mean.
        accuracy: On clean test rows.
        f1: On clean test rows, where it is defined.
        target_rate: ASR; empty without a trigger.
        triggered_accuracy: Against the true labels on all triggered test rows; empty without a trigger.
        flip_rate: The same rows under the clean run of equal seeds.
        margin: ASR minus flip rate, paired by seed.
        accuracy_change: Accuracy minus that of the clean run of equal seeds.
        seconds: Training time.
        trainable_parameters: Of the arm; None when no run recorded it.
        init_k: Requested variance of LoRA's A in units of 1 / n_in; None for other arms.
    """

    statuses: Mapping[str, int] = field(default_factory=dict)
    collapsed: int = 0
    accuracy: Sample = Sample()
    f1: Sample = Sample()
    target_rate: Sample = Sample()
    triggered_accuracy: Sample = Sample()
    flip_rate: Sample = Sample()
    margin: Sample = Sample()
    accuracy_change: Sample = Sample()
    seconds: Sample = Sample()
    trainable_parameters: int | None = None
    init_k: float | None = None

    @property
    def runs(self) -> int:
        """All runs, completed or not."""
        return sum(self.statuses.values())

    @property
    def completed(self) -> int:
        """Runs that every mean is over."""
        return self.statuses.get("completed", 0)


@dataclass(frozen=True)
class Cell:
    """One cell with both sides.

    Attributes:
        attack: Name of the attack; "clean" for the clean cell, which stands once and not under each attack.
        kind: A backdoor has a trigger, flips have none.
        training: How its runs were trained, the arm's own settings included.
        prediction: None when the cell was not predicted.
    """

    folder: str
    model: str
    data: str
    attack: str
    amount: Amount
    arm: str
    kind: Kind
    adapter: ResolvedAdapter
    training: TrainingSpec
    prediction: Prediction | None
    measured: Measured

    @property
    def task(self) -> Task:
        """Folder, model and data: predicted and measured levels may be offset between tasks."""
        return (self.folder, self.model, self.data)

    @property
    def group(self) -> tuple[str, ...]:
        """Cells that differ in their arm only."""
        return (*self.task, self.attack, self.amount.label)

    @property
    def key(self) -> tuple[str, ...]:
        """Names the cell."""
        return (*self.group, self.arm)

    def observed(self, target: Target) -> Sample:
        """The measured values of a target."""
        return self.measured.accuracy if target == "accuracy" else self.measured.target_rate


def read_cells(folder: Path, name: str | None = None) -> tuple[list[Cell], list[UserError]]:
    """The cells of a sweep's folder: its measured records, and the predicted ones inside it.

    Args:
        folder: Folder of the sweep.
        name: What the cells call it; its last part by default.

    Returns:
        Cells in the order of the tables, and an error for every file that is no record.

    Raises:
        UserError: As `pair`.
    """
    measured, problems = Layout(folder).read()
    predicted, more = Layout(folder / PREDICTED).read()
    label = name if name is not None else folder.resolve().name
    return pair(predicted, measured, label), [*problems, *more]


def pair(predicted: Iterable[Record], measured: Iterable[Record], folder: str) -> list[Cell]:
    """Cells of one folder from its records.

    Args:
        predicted: Records that hold a prediction; others among them are ignored.
        measured: Measured records, failed ones included; predicted ones among them are ignored.
        folder: Name of the folder in the cells.

    Returns:
        One cell for each place that occurs on either side, in the order of the tables.

    Raises:
        UserError: The records of one cell hold different predictions, or a name stands for two things, as
            `naming.refuse_mixed` says.
    """
    runs = [record for record in measured if record.kind == "measured"]
    foretold = [record for record in predicted if record.prediction is not None]
    refuse_mixed([*runs, *foretold], folder)
    clean = clean_runs(runs)
    # Clean runs that differ in nothing but the poison seed are one measurement.
    runs = [*clean.values(), *(record for record in runs if record.resolved.attack is not None)]
    left, right = _by_place(foretold), _by_place(runs)
    cells = [
        _cell(folder, place, left.get(place, []), right.get(place, []), clean) for place in {**left, **right}
    ]
    return sorted(cells, key=_order)


def _by_place(records: Iterable[Record]) -> dict[Place, list[Record]]:
    groups: dict[Place, list[Record]] = {}
    for record in records:
        groups.setdefault(place_of(record), []).append(record)
    return groups


def _cell(
    folder: str, place: Place, predicted: list[Record], measured: list[Record], clean: dict[str, Record]
) -> Cell:
    model, data, attack, amount, arm = place
    some = (measured or predicted)[0]
    own = some.resolved.attack
    kind: Kind = "clean" if own is None else "flips" if trigger_key(some, own) is None else "backdoor"
    return Cell(
        folder=folder,
        model=model,
        data=data,
        attack=attack,
        amount=amount,
        arm=arm,
        kind=kind,
        adapter=some.resolved.adapter,
        training=some.resolved.training,
        prediction=_prediction(predicted),
        measured=_measured(measured, clean),
    )


def _prediction(records: list[Record]) -> Prediction | None:
    """The prediction that all records of a cell share; time aside, which a repeated prediction changes."""
    known = [record.prediction for record in records if record.prediction is not None]
    if len({prediction.model_dump_json(exclude={"seconds"}) for prediction in known}) > 1:
        raise UserError(
            "the records of one cell hold different predictions",
            where=", ".join(record.run_id for record in records),
            cure="Predict the folder again: `foretaste predict SPEC -o FOLDER`.",
        )
    return known[0] if known else None


def _measured(records: list[Record], clean: dict[str, Record]) -> Measured:
    done = [record for record in records if record.status == "completed"]
    rate = _sample(done, _target_rate)
    flip = _sample(done, lambda record: _flip_rate(record, clean))
    training = [record.training for record in records if record.training is not None]
    inits = [part.init for part in training if part.init is not None]
    return Measured(
        statuses=dict(Counter(str(record.status) for record in records)),
        collapsed=sum(record.collapsed for record in done),
        accuracy=_sample(done, lambda record: record.clean.accuracy if record.clean else None),
        f1=_sample(done, lambda record: record.clean.f1 if record.clean else None),
        target_rate=rate,
        triggered_accuracy=_sample(done, _triggered_accuracy),
        flip_rate=flip,
        margin=rate.minus(flip),
        accuracy_change=_sample(done, lambda record: _change(record, clean)),
        seconds=_sample(done, lambda record: record.timings.train if record.timings else None),
        trainable_parameters=training[0].trainable_parameters if training else None,
        init_k=inits[0].k_requested if inits else None,
    )


def _sample(records: list[Record], value: Callable[[Record], float | None]) -> Sample:
    found = {seed_of(record): value(record) for record in records}
    return Sample({seed: number for seed, number in found.items() if number is not None})


def _own_trigger(record: Record) -> TriggeredMetrics | None:
    """The test rows with the trigger that the run was poisoned with."""
    attack = record.resolved.attack
    key = trigger_key(record, attack) if attack else None
    return record.triggered.get(key) if key is not None else None


def _target_rate(record: Record) -> float | None:
    own = _own_trigger(record)
    return own.target_rate if own else None


def _triggered_accuracy(record: Record) -> float | None:
    own = _own_trigger(record)
    return own.against_true.accuracy if own else None


def _flip_rate(record: Record, clean: dict[str, Record]) -> float | None:
    attack, partner = record.resolved.attack, clean.get(partner_key(record))
    key = trigger_key(record, attack) if attack else None
    if partner is None or partner.status != "completed" or key not in partner.triggered:
        return None
    return partner.triggered[key].target_rate


def _change(record: Record, clean: dict[str, Record]) -> float | None:
    partner = clean.get(partner_key(record))
    if record.resolved.attack is None or partner is None:
        return None
    if record.clean is None or partner.status != "completed" or partner.clean is None:
        return None
    return record.clean.accuracy - partner.clean.accuracy


def _order(cell: Cell) -> tuple[object, ...]:
    place = (*cell.task, cell.attack != CLEAN, natural(cell.attack), cell.amount.order)
    return (*place, cell.arm != "full", natural(cell.arm))


@dataclass(frozen=True)
class Counts:
    """How many cells have which side, and how many runs failed."""

    cells: int
    both: int
    not_measured: int
    not_predicted: int
    runs: int
    diverged: int
    failed: int
    collapsed: int


def count(cells: Sequence[Cell]) -> Counts:
    """Counts over cells; `failed` are runs that neither completed nor diverged."""
    statuses: Counter[str] = Counter()
    for cell in cells:
        statuses.update(cell.measured.statuses)
    seen = [cell.measured.completed > 0 for cell in cells]
    told = [cell.prediction is not None for cell in cells]
    return Counts(
        cells=len(cells),
        both=sum(a and b for a, b in zip(seen, told, strict=True)),
        not_measured=sum(not a for a in seen),
        not_predicted=sum(not b for b in told),
        runs=statuses.total(),
        diverged=statuses["diverged"],
        failed=statuses["error"] + statuses["crashed"],
        collapsed=sum(cell.measured.collapsed for cell in cells),
    )

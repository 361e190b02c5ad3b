"""Predicted records: what was decided on held-out rows, how sure it is, and where it does not hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

from foretaste import indicators
from foretaste.attempt import Ending
from foretaste.experiments.budgets import Budgets
from foretaste.experiments.captures import CapturedArm, Captures, Reference, arm_key
from foretaste.experiments.pool import Cell, Pool, cell_key
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import record_of
from foretaste.experiments.simulate import Decided, Simulated
from foretaste.indicators import INDICATORS, Drawn, Evidence, Reading, Twin
from foretaste.record import (
    Certified,
    Interval,
    Metrics,
    Outcome,
    Poison,
    Prediction,
    Record,
    TriggeredMetrics,
)
from foretaste.spec import RunSpec
from foretaste.training import outcomes, trainer

Float = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Validity = Literal["valid", "doubtful", "outside"]

NORMAL_90 = 1.6449
"""Two-sided 90 % of a normal distribution."""

ACCURACY_ERROR, ASR_ERROR = 0.04, 0.15
"""Standard deviations of what the model of training gets wrong, before it is calibrated on measured cells:
about twice what SST-2 shows (docs/results.md, "Predictions"), since other tasks may fare worse."""

BENT, BROKEN = 0.5, 1.0
"""Relative errors of the linearised model, over the distance that training goes, from which a cell is
doubtful and outside. At 1 the linearised model says no more of the change than no change would."""


@dataclass(frozen=True)
class Judgement:
    """Whether the prediction of an arm can be trusted."""

    validity: Validity
    reasons: list[str]


def judge(
    captures: Captures, reference: Reference, arm: CapturedArm, run: RunSpec, distance: float
) -> Judgement:
    """Where the assumptions of the prediction do not hold.

    Args:
        captures: For the head's policy.
        reference: The clean one.
        arm: The arm.
        run: With the arm's training.
        distance: Root mean square change of the outputs of training rows.
    """
    reasons: list[str] = []
    level: Validity = "valid"
    if not captures.probes:
        level = "outside"
        reasons.append("the head starts random, so gradients at the start say little of those in training")
    if run.training.optimizer == "adafactor":
        level = "outside"
        reasons.append("adafactor is not modelled; AdamW is predicted in its place")
    if arm.key in reference.movements:
        checked = reference.movements[arm.key]
        error = checked.at(distance)
        if error >= BROKEN:
            level = "outside"
        elif error >= BENT and level == "valid":
            level = "doubtful"
        if error >= BENT:
            reasons.append(f"outputs are not linear in the weights over this distance (error {error:.0%})")
        if distance > checked.distances[-1]:
            level = "doubtful" if level == "valid" else level
            reasons.append(
                f"training moves the outputs by {distance:.1f}; linearity was checked up to "
                f"{checked.distances[-1]:g}"
            )
    elif level == "valid":
        level = "doubtful"
        reasons.append("linearity in the weights was not checked for this method")
    if run.training.dropout:
        reasons.append("dropout is not modelled")
    if run.training.weight_decay:
        reasons.append("weight decay is not modelled")
    return Judgement(level, reasons)


def evidence(
    captures: Captures, reference: Reference, arm: CapturedArm, poisoned: Sequence[Cell] = ()
) -> Evidence:
    """What the indicators of an arm are made from, on the clean training rows.

    Args:
        captures: Rows and arms.
        reference: The clean one.
        arm: The arm.
        poisoned: Cells of one backdoor; the rows that it poisons in any of them are the pairs, each with its
            form in the last of these. Rows that it changes beside them, such as negative ones, are none.
    """
    pool, tangent = captures.pool, reference.tangents[arm.key]
    c, n = tangent.outputs, pool.train
    cell = pool.cells["clean"]

    def shaped(kernel: Float, rows: Ints) -> Float:
        lines = (rows[:, None] * c + np.arange(c)).reshape(-1)
        square: Float = kernel[np.ix_(lines, lines)]
        return square if c == 1 else square.reshape(len(rows), c, len(rows), c)

    def outputs(rows: Ints) -> Float:
        start = reference.start_of(arm.key)
        return start[rows, 0] if c == 1 else start[rows]

    def classes(labels: Ints) -> Ints:
        return 2 * labels - 1 if c == 1 else labels

    rows = np.arange(n)
    full = next((key for key, a in captures.arms.items() if a.full), None)
    place = {name: number for number, name in enumerate(pool.ids)}
    pairs: dict[int, tuple[int, int]] = {}
    for other in poisoned:
        assert other.manifest is not None
        for clean in sorted(place[entry.id] for entry in other.manifest.poisoned):
            pairs[clean] = int(other.rows[clean]), int(other.labels[clean])
    twin = None
    if pairs:
        both = np.array([*pairs, *(row for row, _ in pairs.values())])
        given = np.concatenate([cell.labels[list(pairs)], [label for _, label in pairs.values()]])
        twin = Twin(shaped(tangent.plain, both), outputs(both), classes(given), n)
    layers: dict[str, Drawn] = {}
    if arm.lora is not None:
        layers = {name: Drawn(a.A.double().numpy(), a.scaling) for name, a in arm.lora.items()}
    return Evidence(
        kernel=shaped(tangent.plain, rows),
        reference=None if full is None else shaped(reference.tangents[full].plain, rows),
        logits=outputs(rows),
        labels=classes(cell.labels),
        twin=twin,
        layers=layers,
    )


def backdoors(captures: Captures) -> dict[str, list[Cell]]:
    """The cells of every backdoor of the spec, by key of its trigger, in the order of the plan."""
    found: dict[str, dict[str, Cell]] = {}
    for run in captures.planned.runs:
        key, trigger = cell_key(run), _own_trigger(run)
        if trigger is not None and key in captures.pool.cells:
            found.setdefault(trigger, {})[key] = captures.pool.cells[key]
    return {trigger: list(cells.values()) for trigger, cells in found.items()}


Readings = dict[str, float | None]


def read_indicators(captures: Captures, reference: Reference) -> dict[tuple[str, str | None], Readings]:
    """Every indicator of every captured arm, for each backdoor and for the cells without one.

    Returns:
        By key of the arm and key of the backdoor's trigger, or None: those that are made from pairs differ
        between backdoors, and have no value without one.
    """
    found: dict[tuple[str, str | None], Readings] = {}
    of_pairs = [name for name in INDICATORS if "twin" in INDICATORS.get(name).needs]
    poisoned = backdoors(captures)
    for key, arm in captures.arms.items():
        whole = _values(indicators.evaluate(evidence(captures, reference, arm)))
        found[key, None] = whole
        for trigger, cells in poisoned.items():
            paired = evidence(captures, reference, arm, cells)
            found[key, trigger] = whole | _values({name: indicators.read(name, paired) for name in of_pairs})
    return found


def _values(readings: Mapping[str, Reading]) -> Readings:
    return {name: None if math.isnan(found.value) else found.value for name, found in readings.items()}


def shares(pool: Pool, decided: Decided, trigger: str | None) -> Outcome:
    """Accuracy, and what the trigger does, on held-out rows."""
    labels = pool.labels(pool.held_out)
    accuracy = float(np.mean(decided.clean == labels))
    if trigger is None or trigger not in decided.triggered:
        return Outcome(accuracy=accuracy, target_rate=None, triggered_accuracy=None)
    target, guess = pool.triggered[trigger].target, decided.triggered[trigger]
    other = labels != target
    rate = float(np.mean(guess[other] == target)) if other.any() else None
    return Outcome(accuracy=accuracy, target_rate=rate, triggered_accuracy=float(np.mean(guess == labels)))


def interval(draws: Sequence[float], rows: int, tested: int, error: float) -> Interval:
    """90 % for the mean over as many measured seeds as there are draws.

    Variances of the held-out rows, of the test rows, of the draws on both sides, and of what the model of
    training gets wrong add up; the ends are kept in [0, 1], where shares are.

    Args:
        draws: A predicted share for each poison draw.
        rows: Held-out rows that the share is of.
        tested: Test rows that the measured share will be of.
        error: Standard deviation of the model's error.
    """
    mean = float(np.mean(draws))
    spread = max(mean * (1.0 - mean), 0.25 / rows)
    between = float(np.var(draws, ddof=1)) if len(draws) > 1 else 0.0
    sd = np.sqrt(spread / rows + spread / max(tested, 1) + 2.0 * between / len(draws) + error**2)
    return Interval(
        mean=mean, low=float(max(mean - NORMAL_90 * sd, 0.0)), high=float(min(mean + NORMAL_90 * sd, 1.0))
    )


@dataclass(frozen=True)
class Making:
    """Everything that records are made from.

    Attributes:
        captures: Rows and arms.
        reference: The clean one.
        simulated: By run id.
        budgets: Other budgets.
        indicators: As `read_indicators` gives them.
        certified: By name of the arm.
        counts: Trainable parameters by key of the arm.
        started: When the prediction began.
        seconds: How long it took.
        notes: For every record.
    """

    captures: Captures
    reference: Reference
    simulated: Mapping[str, Simulated]
    budgets: Budgets
    indicators: Mapping[tuple[str, str | None], Readings]
    certified: Mapping[str, list[Certified]]
    counts: Mapping[str, int]
    started: datetime
    seconds: float
    notes: Sequence[str]


def records(making: Making, runs: Sequence[RunSpec], space: Workspace) -> list[Record]:
    """One record for each run; those whose cell cannot be made from the rows at hand say why.

    Args:
        making: What they are made from.
        runs: Of the plan.
        space: For the request.
    """
    cells: dict[tuple[str, str], list[RunSpec]] = {}
    for run in runs:
        cells.setdefault((run.adapter.name, _amount(run)), []).append(run)
    found: list[Record] = []
    for (arm, _), members in cells.items():
        done = [run for run in members if run.id in making.simulated]
        clean = [
            run
            for run in cells[arm, "clean"]
            if run.id in making.simulated and any(run.seeds == other.seeds for other in members)
        ]
        prediction = _prediction(making, done, clean) if done else None
        for run in members:
            found.append(_record(making, run, prediction, space))
    return found


def _amount(run: RunSpec) -> str:
    return "clean" if run.attack is None else run.attack.model_dump_json()


def _own_trigger(run: RunSpec) -> str | None:
    return run.triggers[0].key if run.attack is not None and run.triggers else None


def _prediction(making: Making, runs: Sequence[RunSpec], clean: Sequence[RunSpec]) -> Prediction:
    captures, pool = making.captures, making.captures.pool
    run, trigger = runs[0], _own_trigger(runs[0])
    each = [shares(pool, making.simulated[r.id].trained, trigger) for r in runs]
    probe = [shares(pool, making.simulated[r.id].probe, trigger) for r in runs]
    distance = float(np.mean([making.simulated[r.id].distance for r in runs]))
    arm = captures.arms[arm_key(run)]
    judged = judge(captures, making.reference, arm, run, distance)
    rows, tested = len(pool.held_out), run.data.test_rows
    labels = pool.labels(pool.held_out)
    rates = [o.target_rate for o in each if o.target_rate is not None]
    before = [
        rate
        for r in clean
        if (rate := shares(pool, making.simulated[r.id].trained, trigger).target_rate) is not None
    ]
    other = 0 if trigger is None else int(np.sum(labels != pool.triggered[trigger].target))
    key = (run.adapter.name, cell_key(run))
    elsewhere = {
        name: shares(pool, found[key], trigger)
        for name, found in (("matched", making.budgets.matched), ("converged", making.budgets.converged))
        if key in found
    }
    return Prediction(
        accuracy=interval([o.accuracy for o in each], rows, tested, ACCURACY_ERROR),
        target_rate=interval(rates, other, tested * other // rows, ASR_ERROR) if rates else None,
        baseline_target_rate=float(np.mean(before)) if before else None,
        budgets={"as-trained": _mean(each), **elsewhere},
        probe=_mean(probe),
        validity=judged.validity,
        reasons=judged.reasons,
        draws=len(runs),
        train_rows=pool.train,
        held_out=rows,
        held_out_from=pool.held_out_from,
        steps=trainer.planned_steps(run.training, run.data.train_rows),
        trainable_parameters=making.counts[arm.key],
        indicators=making.indicators[arm.key, trigger],
        certified=list(making.certified[run.adapter.name]),
        reads=[
            f"weights: {run.model.request.base}, before training",
            f"labels: {pool.train} training rows as given",
            f"labels: {pool.held_out_from}",
        ],
        seconds=making.seconds,
    )


def _mean(each: Sequence[Outcome]) -> Outcome:
    def mean(values: Sequence[float | None]) -> float | None:
        defined = [value for value in values if value is not None]
        return float(np.mean(defined)) if defined else None

    return Outcome(
        accuracy=float(np.mean([o.accuracy for o in each])),
        target_rate=mean([o.target_rate for o in each]),
        triggered_accuracy=mean([o.triggered_accuracy for o in each]),
    )


def _record(making: Making, run: RunSpec, prediction: Prediction | None, space: Workspace) -> Record:
    pool = making.captures.pool
    refused = pool.refused.get(cell_key(run))
    status: Literal["completed", "error"] = "completed" if refused is None else "error"
    record = record_of(run, space, Ending(making.started, status, refused))
    update: dict[str, object] = {"kind": "predicted", "prediction": prediction, "notes": list(making.notes)}
    if run.id in making.simulated:
        clean, triggered = _metrics(pool, making.simulated[run.id].trained, run)
        manifest = pool.cells[cell_key(run)].manifest
        update |= {"clean": clean, "triggered": triggered}
        if manifest is not None:
            update["poison"] = Poison(
                requested_rate=manifest.rate,
                requested_count=manifest.count,
                selection=manifest.selection,
                poisoned=len(manifest.poisoned),
                eligible=manifest.eligible,
                rows=manifest.rows,
                manifest="",
                companions=len(manifest.companions),
                figures=manifest.figures,
            )
    return record.model_copy(update=update)


def _metrics(pool: Pool, decided: Decided, run: RunSpec) -> tuple[Metrics, dict[str, TriggeredMetrics]]:
    labels = pool.labels(pool.held_out)
    classes = run.data.classes
    triggered = {
        trigger.key: outcomes.triggered_metrics(
            labels,
            decided.triggered[trigger.key],
            decided.clean,
            classes,
            target=pool.triggered[trigger.key].target,
            name=trigger.name,
            method=trigger.method,
            options=trigger.options,
            changed=pool.triggered[trigger.key].changed,
        )
        for trigger in run.triggers
        if trigger.key in decided.triggered
    }
    return outcomes.metrics(labels, decided.clean, classes), triggered

"""Every run of a spec trained in function space, and what it decides on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.experiments.captures import Captures, Reference, arm_key
from foretaste.experiments.pool import Cell, Pool, cell_key
from foretaste.spec import RunSpec
from foretaste.theory.function_space import decisions, train
from foretaste.training import trainer
from foretaste.training.order import step_batches

Float = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decided:
    """Class ids on held-out rows.

    Attributes:
        clean: Shape (H,).
        triggered: By key of the trigger, shape (H,); empty where those rows were not captured.
    """

    clean: Ints
    triggered: dict[str, Ints]


@dataclass(frozen=True)
class Simulated:
    """One run in function space.

    Attributes:
        trained: After the last step.
        probe: With the fitted head and nothing trained, the arm as it starts.
        losses: Of each batch, shape (T,).
        fitted: Share of the training labels as given that are decided at the end.
        distance: Root mean square change of the outputs of the training rows.
    """

    trained: Decided
    probe: Decided
    losses: Float
    fitted: float
    distance: float


def references(captures: Captures, runs: Sequence[RunSpec]) -> list[Reference]:
    """Captures at the clean training set, and at some amounts of the attacks that leave texts alone.

    A head that was fitted to flipped labels points elsewhere, and with it every gradient below it. Backdoors
    change too few labels to turn it.
    """
    cells = captures.pool.cells
    pool = captures.pool
    found = [captures.reference(cells["clean"], range(len(pool.encoded)), "clean", moving=True)]
    if not captures.probes:
        return found
    first: dict[float, Cell] = {}
    for run in runs:
        cell = cells.get(cell_key(run))
        if cell is not None and cell.share > 0 and not cell.texts_changed:
            first.setdefault(round(cell.share, 4), cell)
    shares = sorted(first)
    count = min(captures.spec.predict.references, len(shares))
    # The largest amounts matter most: there the head has turned furthest.
    chosen = (
        sorted({shares[int(i)] for i in np.linspace(len(shares) - 1, 0, count + 1)[:count].round()})
        if count
        else []
    )
    rows = [*range(pool.train), *pool.held_out]
    for share in chosen:
        found.append(captures.reference(first[share], rows, f"{share:.0%} flipped", moving=False))
    return found


def nearest(found: Sequence[Reference], cell: Cell) -> Reference:
    """The reference whose share of flipped labels is nearest to the cell's; the clean one for backdoors."""
    if cell.texts_changed:
        return found[0]
    return min(found, key=lambda reference: abs(reference.share - cell.share))


def simulate(captures: Captures, found: Sequence[Reference], runs: Sequence[RunSpec]) -> dict[str, Simulated]:
    """Train every run in function space, by run id; runs whose cell was refused are left out."""
    pool = captures.pool
    starts: dict[tuple[str, str], tuple[Float, float]] = {}
    done: dict[str, Simulated] = {}
    for number, run in enumerate(runs):
        captures.report("training in function space", number / len(runs))
        key = cell_key(run)
        if key not in pool.cells:
            continue
        cell, arm = pool.cells[key], arm_key(run)
        reference = nearest(found, cell)
        if (key, arm) not in starts:
            starts[key, arm] = captures.start(cell, reference, arm)
        done[run.id] = _one(captures, reference, cell, *starts[key, arm], run)
    return done


def _one(
    captures: Captures, reference: Reference, cell: Cell, start: Float, size: float, run: RunSpec
) -> Simulated:
    training, pool = run.training, captures.pool
    # Epochs are those of the run, over all of its rows: a pool of fewer is passed over more often.
    steps = trainer.planned_steps(training, run.data.train_rows)
    batches = step_batches(
        pool.lengths,
        training.batch_size,
        steps,
        seed=run.seeds.order,
        by_length=training.grouping == "length",
        accumulation=training.gradient_accumulation,
    )
    result = train(
        reference.tangent_of(run),
        start,
        cell.rows,
        cell.labels,
        batches,
        trainer.planned_rates(training, steps),
        optimiser="sgd" if training.optimizer == "sgd" else "adamw",
        clip=training.max_grad_norm,
        size=size,
    )
    end = result.outputs
    return Simulated(
        trained=decide(pool, reference, end),
        probe=decide(pool, reference, start),
        losses=result.losses,
        fitted=float(np.mean(decisions(end[cell.rows]) == cell.labels)),
        distance=float(np.sqrt(np.mean((end[cell.rows] - start[cell.rows]) ** 2))),
    )


def decide(pool: Pool, reference: Reference, outputs: Float) -> Decided:
    """Decisions on the held-out rows among those that a reference captured.

    Args:
        pool: The rows.
        reference: Which of them were captured.
        outputs: Of these, shape (R, C).
    """
    decided = decisions(outputs)
    triggered = {key: place_of(reference, rows.rows) for key, rows in pool.triggered.items()}
    return Decided(
        decided[place_of(reference, pool.held_out)],
        {key: decided[place] for key, place in triggered.items() if (place >= 0).all()},
    )


def place_of(reference: Reference, rows: Ints) -> Ints:
    """Where rows of the pool are among those that a reference captured."""
    place = np.full(int(max(reference.rows.max(), rows.max())) + 1, -1)
    place[reference.rows] = np.arange(len(reference.rows))
    return place[rows]

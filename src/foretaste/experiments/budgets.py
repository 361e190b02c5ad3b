"""Arms at budgets other than the spec's: at equal effective budget, and trained without end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.experiments.captures import Captures, Reference, arm_key
from foretaste.experiments.pool import cell_key
from foretaste.experiments.simulate import Decided, Simulated, decide, nearest, place_of
from foretaste.spec import RunSpec
from foretaste.theory.flow import (
    LinearPredictor,
    converged_filter,
    flow_filter,
    outputs_at,
    predictor_at,
)
from foretaste.theory.function_space import Tangent, decisions
from foretaste.theory.layout import one_hot
from foretaste.theory.regression import Decomposition, decompose
from foretaste.theory.ridge_head import refitted

Float = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REACHES = np.logspace(-2, 6, 161)
"""Effective budgets that are searched: gradient-flow time x mean diagonal of the kernel / rows."""


@dataclass(frozen=True)
class Budgets:
    """Decisions at other budgets, on the first poison seed.

    Attributes:
        matched: By arm name and cell, at the effective budget at which the first arm fits as the spec's does.
        converged: Likewise, gradient flow on the squared loss without end.
        fitted: By arm name: the linear predictor of the held-out rows at the budget that fits the clean
            training labels as well as the arm's own training does, from the head of the clean labels.
        following: The same, its head refitted to the labels by ridge regression where runs refit theirs.
    """

    matched: dict[tuple[str, str], Decided]
    converged: dict[tuple[str, str], Decided]
    fitted: dict[str, LinearPredictor]
    following: dict[str, LinearPredictor]


def budgets(
    captures: Captures,
    found: Sequence[Reference],
    runs: Sequence[RunSpec],
    simulated: Mapping[str, Simulated],
) -> Budgets:
    """Gradient flow on the squared loss, from the same heads, with kernels brought to the same scale.

    Args:
        captures: The rows and the heads.
        found: References, the clean one first.
        runs: Of the plan.
        simulated: By run id.
    """
    pool, base = captures.pool, found[0]
    clean = [run for run in runs if run.attack is None and run.seeds == runs[0].seeds]
    names = {run.adapter.name: arm_key(run) for run in clean}
    cell = pool.cells["clean"]
    starts = {name: captures.start(cell, base, key)[0] for name, key in names.items()}
    by_key = {key: _Solved(base.tangents[key], cell.rows) for key in set(names.values())}
    solved = {name: by_key[key] for name, key in names.items()}
    reach: dict[str, float] = {}
    for run in clean:
        name = run.adapter.name
        reach[name] = solved[name].reach(starts[name], cell.labels, simulated[run.id].fitted)
    held = place_of(base, pool.held_out)
    fitted = {name: solved[name].predictor(reach[name], starts[name], held) for name in names}
    following = fitted
    if captures.probes:
        following = {
            run.adapter.name: _following(
                captures, base, solved[run.adapter.name], arm_key(run), simulated[run.id].fitted
            )
            for run in clean
        }
    common = reach[clean[0].adapter.name]
    matched: dict[tuple[str, str], Decided] = {}
    converged: dict[tuple[str, str], Decided] = {}
    again: dict[tuple[str, float, bytes], _Solved] = {}
    for run in runs:
        key, name = cell_key(run), run.adapter.name
        if run.seeds != runs[0].seeds or key not in pool.cells:
            continue
        cell = pool.cells[key]
        reference = nearest(found, cell)
        start, _ = captures.start(cell, reference, names[name])
        which = (names[name], reference.share, cell.rows.tobytes())
        if which not in again:
            again[which] = _Solved(reference.tangents[names[name]], cell.rows)
        after = again[which].outputs(common, start, cell.labels)
        matched[name, key] = decide(pool, reference, after[0])
        converged[name, key] = decide(pool, reference, after[1])
    return Budgets(matched, converged, fitted, following)


def _following(
    captures: Captures, base: Reference, solved: _Solved, key: str, share: float
) -> LinearPredictor:
    """An arm's predictor, its head refitted to whatever the labels are."""
    cell, held = captures.pool.cells["clean"], place_of(base, captures.pool.held_out)
    head = captures.head_smoother(cell, key)[base.rows]
    start = head @ solved.targets(cell.labels)
    start = start.reshape(len(base.rows), -1)
    predictor = solved.predictor(solved.reach(start, cell.labels, share), start, held)
    return refitted(predictor, head[cell.rows], head[held])


class _Solved:
    """One kernel on one training set, decomposed once for all budgets and labels."""

    def __init__(self, tangent: Tangent, rows: Ints) -> None:
        c = tangent.outputs
        lines = (rows[:, None] * c + np.arange(c)).reshape(-1)
        cross = tangent.followed[:, lines]
        self._rows, self._c = rows, c
        kernel = cross[lines]
        self._cross = cross if c == 1 else cross.reshape(-1, c, len(rows), c)
        shape = (len(rows), len(rows)) if c == 1 else (len(rows), c, len(rows), c)
        self._d: Decomposition = decompose(kernel.reshape(shape))
        self._unit = float(self._d.values.sum()) / len(lines)

    def targets(self, labels: Ints) -> Float:
        """-1 and +1 beside a margin, else one-hot."""
        return one_hot(2 * labels - 1 if self._c == 1 else labels, self._d.layout)

    def _flow(self, reach: npt.ArrayLike) -> Float:
        return flow_filter(self._d, time=np.asarray(reach) * len(self._rows) / self._unit)

    def _at(self, phi: Float, start: Float, labels: Ints, rows: Ints) -> Float:
        flat = start[:, 0] if self._c == 1 else start
        after = outputs_at(
            self._d,
            self._cross[rows],
            phi,
            self.targets(labels),
            pretrained=flat[self._rows],
            pretrained_test=flat[rows],
        )
        shaped: Float = after[..., None] if self._c == 1 else after
        return shaped

    def reach(self, start: Float, labels: Ints, fitted: float) -> float:
        """The smallest budget at which the training labels are fitted as well."""
        after = self._at(self._flow(REACHES), start, labels, self._rows)
        shares = np.array([np.mean(decisions(scores) == labels) for scores in after])
        enough = np.flatnonzero(shares >= fitted - 1e-12)
        return float(REACHES[enough[0]] if enough.size else REACHES[-1])

    def outputs(self, reach: float, start: Float, labels: Ints) -> Float:
        """Of all rows, at a budget and without end: shape (2, R, C)."""
        phi = np.stack([self._flow(reach), converged_filter(self._d)])
        return self._at(phi, start, labels, np.arange(len(start)))

    def predictor(self, reach: float, start: Float, rows: Ints) -> LinearPredictor:
        """The linear predictor of some rows at a budget."""
        flat = start[:, 0] if self._c == 1 else start
        return predictor_at(
            self._d,
            self._cross[rows],
            self._flow(reach),
            pretrained=flat[self._rows],
            pretrained_test=flat[rows],
        )

"""Backdoors as a swap of indices: one kernel between clean and triggered rows serves every poison set.

Every training row i has a triggered twin, row N + i of a pool of 2N rows, and every test row j has one, row
M + j. The kernel is computed once, (2N, 2N) on the pool and (2M, 2N) between test and pool. Poisoning the
set P means training on row N + i instead of row i, with the label `target`, for every i in P: a selection of
rows and columns. No model is run again.

Outputs are linear in labels but not in inputs, so unlike label flips every poison set needs its own solve
(N^3 for a decomposition). The predictor is a function of the selected problem: `by_filter` makes one of any
filter of `flow.py`, `by_cross_entropy` one of `cross_entropy.py`.

Three numbers, on all test rows or their triggered twins:

* clean accuracy: clean rows decided as their label;
* attack success rate (ASR): triggered rows of another class than the target, decided as the target. Read it
  beside its value for the empty poison set (the clean model's flip rate on the same rows);
* triggered accuracy: triggered rows decided as their own label (the TTR paper's metric; not 1 - ASR).

Gradient descent at a rate up to 2N / lambda_max(pool), N being the rows of a poison set, is stable for every
set: no row comes with its twin, so the selected kernel is a principal submatrix of the pool's, and its
largest eigenvalue is no larger.

Source: TTR paper, backdoor poisoning (its BPA).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.cross_entropy import descend
from foretaste.theory.flow import outputs_at
from foretaste.theory.label_noise import flip_counts, one_vector
from foretaste.theory.layout import (
    Floats,
    Ints,
    Layout,
    classes_of,
    cross_matrix,
    decide,
    one_hot,
    outputs,
    real,
    training_matrix,
)
from foretaste.theory.predictor import predict
from foretaste.theory.regression import Decomposition, decompose


@dataclass(frozen=True, eq=False)
class TrainingProblem:
    """What a predictor trains on and what it is asked about.

    Attributes:
        kernel: Shape (N, N) or (N, C, N, C).
        cross: Shape (M', N) or (M', C, N, C).
        labels: Shape (N,), see `layout`.
        pretrained: f_0(X), shape (N,) or (N, C); None is 0.
        pretrained_test: f_0(x), shape (M',) or (M', C); None is 0.
    """

    kernel: Floats
    cross: Floats
    labels: Ints
    pretrained: Floats | None
    pretrained_test: Floats | None


Predictor: TypeAlias = Callable[[TrainingProblem], Floats]
"""From a problem to the outputs of its M' rows, shape (M',) or (M', C)."""


@dataclass(frozen=True, eq=False)
class BackdoorPool:
    """Clean and triggered rows of training and test, checked.

    Attributes:
        kernel: Shape (2N, 2N) or (2N, C, 2N, C): clean training rows, then their triggered twins.
        cross: Shape (2M, 2N) or (2M, C, 2N, C): clean test rows, then their twins, against the same.
        labels: True labels of the N training rows.
        test_labels: True labels of the M test rows.
        pretrained: f_0 of the 2N training rows, or None.
        pretrained_test: f_0 of the 2M test rows, or None.
        layout: Of the N training rows.
    """

    kernel: Floats
    cross: Floats
    labels: Ints
    test_labels: Ints
    pretrained: Floats | None
    pretrained_test: Floats | None
    layout: Layout


@dataclass(frozen=True, eq=False)
class BackdoorOutcome:
    """Predicted metrics of poison sets of shape S.

    Attributes:
        clean_accuracy: Shape S.
        asr: Attack success rate, shape S; NaN if every test row is of the target class.
        triggered_accuracy: Shape S.
    """

    clean_accuracy: Floats
    asr: Floats
    triggered_accuracy: Floats


def backdoor_pool(
    kernel: npt.ArrayLike,
    cross: npt.ArrayLike,
    labels: npt.ArrayLike,
    test_labels: npt.ArrayLike,
    *,
    pretrained: npt.ArrayLike | None = None,
    pretrained_test: npt.ArrayLike | None = None,
) -> BackdoorPool:
    """Check the kernel of clean and triggered rows.

    Args:
        kernel: Shape (2N, 2N) or (2N, C, 2N, C), row N + i the triggered twin of row i.
        cross: Shape (2M, 2N) or (2M, C, 2N, C), row M + j the triggered twin of test row j.
        labels: Shape (N,), see `layout`.
        test_labels: Shape (M,).
        pretrained: f_0 of the 2N rows, shape (2N,) or (2N, C). None is 0, together with `pretrained_test`.
        pretrained_test: f_0 of the 2M rows, shape (2M,) or (2M, C).

    Raises:
        UserError: A shape does not fit, a number of rows is odd, a value is not finite, a label is not a
            class, or only one of the pre-trained outputs came.
    """
    _, both = training_matrix(kernel)
    _, both_test = cross_matrix(cross, both)
    for rows, name in ((both, "kernel"), (both_test, "cross kernel")):
        if rows.examples % 2 or not rows.examples:
            raise UserError(
                f"expected clean rows and as many triggered twins, got {rows.examples} rows", where=name
            )
    if (pretrained is None) != (pretrained_test is None):
        raise UserError("pass both pre-trained outputs, or neither for f_0 = 0", where="pretrained")
    layout = both.of(both.examples // 2)
    return BackdoorPool(
        real(kernel, "kernel"),
        real(cross, "cross kernel"),
        one_vector(labels, layout),
        one_vector(test_labels, layout.of(both_test.examples // 2), "test_labels"),
        None if pretrained is None else _start(pretrained, both, "pretrained"),
        None if pretrained_test is None else _start(pretrained_test, both_test, "pretrained_test"),
        layout,
    )


def draw_poison_sets(
    eligible: npt.ArrayLike, rates: npt.ArrayLike, *, draws: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Poison sets that are nested over rates: one permutation of the eligible rows a draw.

    Args:
        eligible: Rows that may be poisoned, such as all that are not of the target class; booleans, (N,).
        rates: Shares of the eligible rows in [0, 1], shape (R,), halves rounded up.
        draws: D >= 1.
        rng: Source of the permutations.

    Returns:
        Booleans, shape (R, D, N).

    Raises:
        UserError: `eligible` is not one vector of booleans, a rate is outside [0, 1] or poisons no row, or
            `draws` is below 1.
    """
    allowed = np.asarray(eligible)
    if allowed.dtype != np.bool_ or allowed.ndim != 1:
        raise UserError(
            f"expected booleans, shape (N,), got {allowed.dtype} {allowed.shape}", where="eligible"
        )
    if draws < 1:
        raise UserError(f"expected at least 1 draw, got {draws}", where="draws")
    rows = np.flatnonzero(allowed)
    counts = np.atleast_1d(flip_counts(rates, rows.size))
    rank = np.full((draws, allowed.size), allowed.size, dtype=np.int64)
    rank[:, rows] = rng.permuted(np.broadcast_to(np.arange(rows.size), (draws, rows.size)), axis=1)
    chosen: npt.NDArray[np.bool_] = rank < counts[:, None, None]
    return chosen


def poisoned_problem(pool: BackdoorPool, poisoned: npt.NDArray[np.bool_], target: int) -> TrainingProblem:
    """The training problem of one poison set, asked about all clean and triggered test rows.

    Args:
        pool: From `backdoor_pool`.
        poisoned: Booleans, shape (N,).
        target: Label of poisoned rows.

    Returns:
        N training rows, and 2M test rows.

    Raises:
        UserError: The poison set does not fit, or the target is not a class.
    """
    _target(pool, target)
    chosen = _sets(poisoned, pool)
    if chosen.ndim != 1:
        raise UserError(f"expected one poison set, got shape {chosen.shape}", where="poisoned")
    rows = np.arange(pool.layout.examples) + np.where(chosen, pool.layout.examples, 0)
    # Axis 0 and the first axis of the second half, in both layouts.
    column = len(pool.layout.shape)
    return TrainingProblem(
        np.take(np.take(pool.kernel, rows, axis=0), rows, axis=column),
        np.take(pool.cross, rows, axis=column),
        np.where(chosen, target, pool.labels),
        None if pool.pretrained is None else pool.pretrained[rows],
        pool.pretrained_test,
    )


def predict_backdoor(
    pool: BackdoorPool, poisoned: npt.NDArray[np.bool_], target: int, predictor: Predictor
) -> BackdoorOutcome:
    """Train in function space on every poison set and measure.

    Args:
        pool: From `backdoor_pool`.
        poisoned: Booleans, shape (*S, N); an empty set gives the clean model.
        target: The class that the trigger should force.
        predictor: Such as `by_filter` or `by_cross_entropy`; called once for each set.

    Raises:
        UserError: A poison set does not fit, the target is not a class, or the predictor's outputs have
            another shape.
    """
    chosen = _sets(poisoned, pool)
    _target(pool, target)
    rows = pool.layout.of(2 * pool.test_labels.size)
    half = pool.test_labels.size
    other = pool.test_labels != target
    clean, asr, triggered = (np.full(chosen.shape[:-1], np.nan) for _ in range(3))
    for at in np.ndindex(*chosen.shape[:-1]):
        scores = predictor(poisoned_problem(pool, chosen[at], target))
        if scores.shape != rows.shape:
            raise UserError(f"expected outputs of shape {rows.shape}, got {scores.shape}", where="predictor")
        decided = decide(scores, rows)
        clean[at] = np.mean(decided[:half] == pool.test_labels)
        triggered[at] = np.mean(decided[half:] == pool.test_labels)
        if other.any():
            asr[at] = np.mean(decided[half:][other] == target)
    return BackdoorOutcome(clean, asr, triggered)


def by_filter(filters: Callable[[Decomposition], Floats]) -> Predictor:
    """A predictor from a filter of `flow.py`, such as `lambda d: flow_filter(d, time=5.0)`.

    Args:
        filters: From a decomposition to one budget's phi, shape (P,).
    """

    def outputs_of(problem: TrainingProblem) -> Floats:
        decomposition = decompose(problem.kernel)
        return outputs_at(
            decomposition,
            problem.cross,
            filters(decomposition),
            one_hot(problem.labels, decomposition.layout),
            pretrained=problem.pretrained,
            pretrained_test=problem.pretrained_test,
        )

    return outputs_of


def by_cross_entropy(rates: npt.ArrayLike) -> Predictor:
    """A predictor by full-batch gradient descent on the cross-entropy.

    Args:
        rates: The schedule, shape (T,).
    """

    def outputs_of(problem: TrainingProblem) -> Floats:
        fit = descend(decompose(problem.kernel), problem.labels, rates, pretrained=problem.pretrained)
        last: Floats = predict(fit, problem.cross, problem.pretrained_test)[-1]
        return last

    return outputs_of


def _start(values: npt.ArrayLike, rows: Layout, name: str) -> Floats:
    start = outputs(values, rows, name)
    if start.shape != rows.shape:
        raise UserError(f"expected shape {rows.shape}, got {start.shape}", where=name)
    return start


def _target(pool: BackdoorPool, target: int) -> None:
    classes_of([target], pool.layout.of(1), "target")


def _sets(poisoned: npt.NDArray[np.bool_], pool: BackdoorPool) -> npt.NDArray[np.bool_]:
    chosen = np.asarray(poisoned)
    if chosen.dtype != np.bool_ or chosen.ndim == 0 or chosen.shape[-1] != pool.layout.examples:
        raise UserError(
            f"expected booleans, shape (..., {pool.layout.examples}), got {chosen.dtype} {chosen.shape}",
            where="poisoned",
        )
    return chosen

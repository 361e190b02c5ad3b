"""Gradient descent on the cross-entropy, iterated in function space.

A model that is linear in its parameters, f(x) = f_0(x) + phi(x) theta with K = phi phi^T, under a step of
gradient descent on the mean cross-entropy over a batch B, moves by

    f(x) <- f(x) - (eta/|B|) sum_{i in B} K(x, x_i) (softmax f(x_i) - e_y_i),

and with a scalar output (the margin f_1 - f_0, labels -1 and +1, kernel `layout.margin_kernel`) by

    f(x) <- f(x) - (eta/|B|) sum_{i in B} K(x, x_i) (sigmoid f(x_i) - [y_i = +1]).

Both are exact for the linearised model, at any rate and for any order of batches; there is no closed form, as
the softmax sits between the steps. Only coefficients a with f = f_0 + K(., X) a are kept, so other examples
cost one product at the end (`predictor.predict`), however many steps were made. Draws of poisoned labels are
leading axes and share kernel, rates and batches.

What it is not: the optimiser is plain gradient descent, without momentum, weight decay or Adam's scaling; the
kernel is fixed.

Source: Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent"
(linearised dynamics of a general loss).

In docs/theory.md: T17.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Ints, Layout, classes_of, outputs, real
from foretaste.theory.predictor import KernelFit
from foretaste.theory.regression import Decomposition


@dataclass(frozen=True, eq=False)
class CrossEntropyFit(KernelFit):
    """Coefficients after given numbers of steps, for one or several vectors of labels.

    Attributes:
        coefficients: Shape (T', *D, N) or (T', *D, N, C), T' the number of checkpoints, D the draws.
        training_outputs: f(X), shaped as the coefficients.
        checkpoints: Number of steps behind each entry of the first axis, shape (T',).
        stable: Every rate is at most `largest_stable_rate`, so each step lowers the loss of its own batch.
            Beyond, the outputs are still those of the linearised model, but may swing and grow.
    """

    training_outputs: Floats
    checkpoints: Ints
    stable: bool


def largest_stable_rate(decomposition: Decomposition, batch: int | None = None) -> float:
    """2 |B| / (h lambda_max), below which a step of gradient descent cannot raise its batch's loss.

    The loss of a batch has, in parameters, a curvature of at most h lambda_max(K_BB) / |B|, where h bounds
    the curvature of the loss in the outputs: 1/4 for the logistic loss, 1/2 for the softmax (Boehning 1992).
    lambda_max(K_BB) <= lambda_max(K). Sufficient, not necessary: well-fitted rows have less curvature.

    Args:
        decomposition: Of the training kernel.
        batch: |B|; None is all N examples.

    Raises:
        UserError: The batch is empty or larger than N.
    """
    rows = decomposition.layout.examples
    size = rows if batch is None else batch
    if not 1 <= size <= rows:
        raise UserError(f"expected a batch of 1 .. {rows} rows, got {size}", where="batch")
    curvature = 0.25 if decomposition.layout.classes is None else 0.5
    return 2.0 * size / (curvature * decomposition.norm)


def descend(
    decomposition: Decomposition,
    labels: npt.ArrayLike,
    rates: npt.ArrayLike,
    *,
    batches: Sequence[npt.ArrayLike] | None = None,
    pretrained: npt.ArrayLike | None = None,
    checkpoints: npt.ArrayLike | None = None,
) -> CrossEntropyFit:
    """Gradient descent on the cross-entropy.

    Args:
        decomposition: Of the training kernel, from `regression.decompose`.
        labels: Shape (*D, N), see `layout`; D are draws of labels.
        rates: The schedule, one rate >= 0 for each step, shape (T,).
        batches: The T batches, each the distinct rows of one step; None is the full batch at each step.
        pretrained: f_0(X), shape (N,) or (N, C); None is 0 here and in `predictor.predict`.
        checkpoints: Steps after which to keep the coefficients, ascending in 0 .. T; None keeps the last.

    Returns:
        The fit, to be used with `predictor.predict` and `predictor.classify`.

    Raises:
        UserError: A label is not a class, a size does not fit, a rate is negative or not finite, a row of a
            batch does not exist or comes twice, a checkpoint is out of range, or the outputs overflow.
    """
    layout = decomposition.layout
    y = classes_of(labels, layout)
    eta = _schedule(rates)
    chosen = _batches(batches, eta.size, layout.examples)
    kept = _checkpoints(checkpoints, eta.size)
    start = np.zeros(layout.shape) if pretrained is None else outputs(pretrained, layout, "pretrained")
    if start.shape != layout.shape:
        raise UserError(f"expected shape {layout.shape}, got {start.shape}", where="pretrained")

    targets = (y + 1) / 2.0 if layout.classes is None else np.eye(layout.classes)[y]
    draws = y.shape[:-1]
    # One axis of draws, one of examples, one of outputs, whatever the layout is.
    targets = targets.reshape(-1, layout.examples, layout.classes or 1)
    moving = np.broadcast_to(start.reshape(layout.examples, -1), targets.shape).copy()
    kernel = ((decomposition.vectors * decomposition.values) @ decomposition.vectors.T).reshape(
        layout.examples, -1, layout.size
    )
    coefficients = np.zeros_like(targets)
    history = [_snapshot(coefficients, moving)] if kept[0] == 0 else []
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is refused below
        for step, (rate, rows) in enumerate(zip(eta, chosen, strict=True), start=1):
            change = (-rate / rows.size) * (probabilities(moving[:, rows], layout) - targets[:, rows])
            coefficients[:, rows] += change
            pushed = change.reshape(change.shape[0], -1) @ kernel[rows].reshape(-1, layout.size)
            moving += pushed.reshape(moving.shape)
            if step in kept:
                history.append(_snapshot(coefficients, moving))
    if not np.isfinite(moving).all():
        raise UserError(
            "the outputs overflow",
            where="rates",
            cure=f"The largest stable rate of a full batch is {largest_stable_rate(decomposition):.3g}.",
        )
    shape = (kept.size, *draws, *layout.shape)
    return CrossEntropyFit(
        coefficients=np.stack([a for a, _ in history]).reshape(shape),
        layout=layout,
        uses_pretrained=pretrained is not None,
        training_outputs=np.stack([f for _, f in history]).reshape(shape),
        checkpoints=kept,
        stable=all(
            rate <= largest_stable_rate(decomposition, rows.size)
            for rate, rows in zip(eta, chosen, strict=True)
        ),
    )


def probabilities(scores: Floats, layout: Layout) -> Floats:
    """Softmax of C outputs; for a scalar margin the probability of label +1.

    Args:
        scores: Shape (..., N, C), or (..., N, 1) for a scalar output.
        layout: Says which.
    """
    p: Floats = expit(scores) if layout.classes is None else softmax(scores, axis=-1)
    return p


def _snapshot(coefficients: Floats, moving: Floats) -> tuple[Floats, Floats]:
    return coefficients.copy(), moving.copy()


def _schedule(rates: npt.ArrayLike) -> Floats:
    eta = real(rates, "rates")
    if eta.ndim != 1:
        raise UserError(
            f"expected one rate for each step, shape (T,), got {eta.shape}",
            where="rates",
            cure="A constant rate is numpy.full(T, rate).",
        )
    if np.any(eta < 0):
        raise UserError(f"expected rates >= 0, got {eta[eta < 0][0]:g}", where="rates")
    return eta


def _batches(batches: Sequence[npt.ArrayLike] | None, steps: int, examples: int) -> list[Ints]:
    if batches is None:
        return [np.arange(examples)] * steps
    if len(batches) != steps:
        raise UserError(f"expected a batch for each of {steps} rates, got {len(batches)}", where="batches")
    return [_batch(batch, step, examples) for step, batch in enumerate(batches)]


def _batch(batch: npt.ArrayLike, step: int, examples: int) -> Ints:
    rows = np.asarray(batch)
    where = f"batches[{step}]"
    if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise UserError(f"expected row numbers, shape (B,), got {rows.dtype} {rows.shape}", where=where)
    if rows.min() < 0 or rows.max() >= examples or np.unique(rows).size < rows.size:
        raise UserError(f"expected distinct rows 0 .. {examples - 1}, got {rows.tolist()[:9]}", where=where)
    return rows.astype(np.int64)


def _checkpoints(checkpoints: npt.ArrayLike | None, steps: int) -> Ints:
    if checkpoints is None:
        return np.array([steps], dtype=np.int64)
    kept = real(checkpoints, "checkpoints")
    whole = kept.ndim == 1 and kept.size > 0 and bool(np.all(kept == np.floor(kept)))
    if not whole or kept[0] < 0 or kept[-1] > steps or np.any(np.diff(kept) <= 0):
        raise UserError(f"expected ascending steps in 0 .. {steps}, got {kept.tolist()}", where="checkpoints")
    return kept.astype(np.int64)

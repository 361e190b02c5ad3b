"""Sign descent in function space: the asymmetric kernel of Malladi et al. 2023.

Sign descent with batch 1 on a scalar output moves the parameters by -eta sign(chi_i grad f(x_i)), where
chi_i = d loss / d f(x_i). For a model that is linear in its parameters every output then moves by

    f(x) <- f(x) - eta K_A(x, x_i) sign(chi_i),     K_A(x, x_i) = <grad f(x), sign grad f(x_i)>,

the A-SignGD kernel (Malladi et al. 2023, Definition 4.2 and Theorem 4.3; gradients in rows, signs in
columns). Only the sign of chi matters, and with a logistic loss chi_i = -y sigmoid(-y f) has
the sign of -y whatever f is. Hence

    f_t(x) = f_0(x) + sum_i w_i K_A(x, x_i) y_i,     w_i = sum of the rates of the steps that visit row i,

is linear in the labels: everything in `label_noise.py` and `certificates.py` holds for it. With the squared
loss chi_i = f(x_i) - y_i changes sign once row i is overshot, so the steps have to be made one by one.

Limits. Each of them is a reason to trust the first steps only:

* Batch 1. For a batch, the sign of a mean of gradients is not a mean of their signs, and no kernel between
  pairs of examples gives it.
* A scalar output. With C > 1 logits the sign of sum_c chi_c grad f_c is not a sum over outputs. Two classes
  are a scalar output by their margin, whose gradient is grad f_1 - grad f_0; K_A must be built from it.
  (The margin's K_A is not a difference of the logits' K_A, either.)
* The linearised model. A sign step moves every parameter by eta, so it leaves the linear regime sooner than
  a gradient step. A LoRA adapter at B = 0 has no gradient in A, hence sign 0; after one step it has, and all
  r n signs of A switch on. K_A at the start does not contain them.
* Adam is sign descent in its first step only (up to its epsilon); later its averages over steps matter.
  Weight decay is not included.

In docs/theory.md: T18.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.flow import LinearPredictor, linear_predictor
from foretaste.theory.layout import (
    Floats,
    Ints,
    Layout,
    classes_of,
    cross_matrix,
    outputs,
    real,
    training_matrix,
)
from foretaste.theory.predictor import KernelFit

Slope: TypeAlias = Callable[[Floats, Ints], Floats]
"""chi = d loss / d f from outputs (D,) and labels (D,) of one row in D draws; only its sign is used."""


def logistic_slope(scores: Floats, labels: Ints) -> Floats:
    """The sign of chi for log(1 + exp(-y f)), which is -y for every finite output.

    Not chi itself, whose value underflows to 0 for well-fitted rows while its sign remains.
    """
    return np.broadcast_to(-labels.astype(np.float64), np.shape(scores))


def squared_slope(scores: Floats, labels: Ints) -> Floats:
    """The slope chi = f - y of (f - y)^2 / 2."""
    return scores - labels


def descend_by_sign(
    kernel: npt.ArrayLike,
    labels: npt.ArrayLike,
    order: npt.ArrayLike,
    rates: npt.ArrayLike,
    *,
    slope: Slope,
    pretrained: npt.ArrayLike | None = None,
) -> KernelFit:
    """Sign descent with batch 1, step by step; exact for the linearised model.

    Args:
        kernel: K_A on the training rows, shape (N, N): entry [j, i] is <grad f(x_j), sign grad f(x_i)>.
        labels: Shape (*D, N) of -1 and +1; D are draws of labels.
        order: The row of each step, shape (T,), shared by all draws.
        rates: The rate of each step, shape (T,), >= 0.
        slope: Slope of the loss, such as `logistic_slope` or `squared_slope`.
        pretrained: f_0(X), shape (N,); None is 0 here and in `predictor.predict`.

    Returns:
        The fit, for `predictor.predict` with the cross kernel <grad f(x), sign grad f(x_i)>, (M, N).

    Raises:
        UserError: A size does not fit, a value is not finite, a row does not exist, a rate is negative, or
            the kernel has more than one output.
    """
    matrix, layout = _margin_only(kernel)
    y = classes_of(labels, layout)
    rows, eta = _steps(order, rates, layout.examples)
    start = np.zeros(layout.shape) if pretrained is None else outputs(pretrained, layout, "pretrained")
    if start.shape != layout.shape:
        raise UserError(f"expected shape {layout.shape}, got {start.shape}", where="pretrained")
    flat = y.reshape(-1, layout.examples)
    moving = np.broadcast_to(start, flat.shape).copy()
    coefficients = np.zeros(flat.shape)
    for row, rate in zip(rows, eta, strict=True):
        push = -rate * np.sign(slope(moving[:, row], flat[:, row]))
        coefficients[:, row] += push
        moving += push[:, None] * matrix[:, row]
    return KernelFit(coefficients.reshape(y.shape), layout, pretrained is not None)


def logistic_sign_predictor(
    cross: npt.ArrayLike,
    order: npt.ArrayLike,
    rates: npt.ArrayLike,
    *,
    pretrained_test: npt.ArrayLike | None = None,
) -> LinearPredictor:
    """Sign descent with batch 1 on the logistic loss, in closed form: linear in the labels.

    Args:
        cross: K_A between other rows (gradients) and training rows (signs), shape (M, N).
        order: The row of each step, shape (T,).
        rates: The rate of each step, shape (T,), >= 0.
        pretrained_test: f_0(x), shape (M,); None is 0. f_0 of the training rows plays no part.

    Returns:
        S[x, i] = w_i K_A(x, x_i), with offset f_0(x).

    Raises:
        UserError: A size does not fit, a value is not finite, a row does not exist, a rate is negative, or
            the kernel has more than one output.
    """
    array = real(cross, "cross kernel")
    if array.ndim != 2:
        raise _not_scalar(array.shape, "cross kernel")
    matrix, _ = cross_matrix(array, Layout(array.shape[1], None))
    rows, eta = _steps(order, rates, array.shape[1])
    weights = np.bincount(rows, weights=eta, minlength=array.shape[1])
    return linear_predictor(matrix * weights, pretrained_test)


def _margin_only(kernel: npt.ArrayLike) -> tuple[Floats, Layout]:
    if np.ndim(kernel) == 4:
        raise _not_scalar(np.shape(kernel), "kernel")
    return training_matrix(kernel)


def _not_scalar(shape: tuple[int, ...], name: str) -> UserError:
    return UserError(
        f"expected one scalar output, shape (rows, N), got {shape}",
        where=name,
        cure="For two classes build K_A from the gradients of the margin f_1 - f_0; for more classes sign "
        "descent has no kernel.",
    )


def _steps(order: npt.ArrayLike, rates: npt.ArrayLike, examples: int) -> tuple[Ints, Floats]:
    rows, eta = np.asarray(order), real(rates, "rates")
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise UserError(f"expected row numbers, shape (T,), got {rows.dtype} {rows.shape}", where="order")
    if eta.shape != rows.shape:
        raise UserError(f"expected {rows.size} rates, one a step, got shape {eta.shape}", where="rates")
    if rows.size and (rows.min() < 0 or rows.max() >= examples):
        got = f"{rows.min()} .. {rows.max()}"
        raise UserError(f"expected rows of 0 .. {examples - 1}, got {got}", where="order")
    if np.any(eta < 0):
        raise UserError(f"expected rates >= 0, got {eta[eta < 0][0]:g}", where="rates")
    return rows.astype(np.int64), eta

"""Kernel gradient descent, gradient flow, ridge and convergence as filters of one spectrum.

A model that is linear in its parameters, with kernel K, trained by full-batch gradient descent on
(1/2N) sum_i |f(x_i) - y_i|^2 at rate eta for t steps, moves in function space by

    f_s+1(x) = f_s(x) - (eta/N) K(x, X) (f_s(X) - Y).

With K = V diag(l) V^T from `regression.decompose`, the outputs after any budget are

    f_t(x) = f_0(x) + S_t (Y - f_0(X)),     S_t = K(x, X) V diag(phi(l)) V^T,

================  ============================  =======================
budget            phi(l)                        phi(0)
================  ============================  =======================
descent           (1 - (1 - eta l/N)^t) / l     eta t/N
flow              (1 - exp(-tau l/N)) / l       tau/N, tau = eta t
ridge             1 / (l + lam)                 1/lam
convergence       1 / l                         0 (minimum norm)
================  ============================  =======================

so that one decomposition serves every rate, every number of steps and every vector of labels. N counts
examples also for C outputs: the loss sums over outputs and averages over examples.

Only rate times kernel matters: (c K, eta/c) gives the outputs of (K, eta), and (c K, c lam) those of
(K, lam). Convergence does not depend on c at all. Two adapters are therefore compared at equal eta t, at
equal `effective_step` eta t c, and at convergence; a difference in shape shows in the last two.

The filters are exact for the linearised model under full-batch gradient descent on the squared loss. They do
not describe AdamW or the cross-entropy (see `cross_entropy.py`, `sign_descent.py`), nor a network whose
kernel moves during training.

Sources: Jacot et al. 2018, "Neural Tangent Kernel", section 5 (linear dynamics of least-squares regression);
Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent".

In docs/theory.md: T14.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Layout, at_least, cross_matrix, outputs, real
from foretaste.theory.regression import Decomposition


@dataclass(frozen=True, eq=False)
class LinearPredictor:
    """Outputs that are linear in the training targets: f(x) = offset(x) + S(x) Y.

    Attributes:
        smoother: S, shape (M, N) or (M, C, N, C), rows are the other examples.
        offset: What the outputs are for Y = 0, f_0(x) - S f_0(X); shape (M,) or (M, C).
        layout: Of the training examples.
        rows: Of the other examples.
    """

    smoother: Floats
    offset: Floats
    layout: Layout
    rows: Layout

    @property
    def matrix(self) -> Floats:
        """S as a matrix, shape (M, N) or (MC, NC)."""
        return self.smoother.reshape(self.rows.size, self.layout.size)


# --- filters: one value per eigenvalue ------------------------------------------------------------


def largest_rate(decomposition: Decomposition) -> float:
    """2N / lambda_max: gradient descent on the squared loss diverges above this rate.

    Args:
        decomposition: Of the training kernel.
    """
    return 2.0 * decomposition.layout.examples / decomposition.norm


def descent_filter(decomposition: Decomposition, *, rate: npt.ArrayLike, steps: npt.ArrayLike) -> Floats:
    """Filter of full-batch gradient descent.

    Args:
        decomposition: Of the training kernel.
        rate: eta, in [0, 2N / lambda_max]; any shape that broadcasts with `steps` to B.
        steps: t, whole numbers >= 0.

    Returns:
        phi, shape (*B, P).

    Raises:
        UserError: A rate is negative, not finite or so large that descent diverges; a number of steps is
            negative or no whole number.
    """
    eta, t = real(rate, "rate"), real(steps, "steps")
    if np.any(t < 0) or np.any(t != np.floor(t)):
        wrong = _first(t, (t < 0) | (t != np.floor(t)))
        raise UserError(f"expected whole numbers >= 0, got {wrong}", where="steps")
    _not_negative(eta, "rate")
    limit = largest_rate(decomposition)
    # At the limit itself the largest eigen-direction swings without growing; rounding may not refuse that.
    too_large = eta > limit * (1.0 + 1e-12)
    if np.any(too_large):
        raise UserError(
            f"gradient descent diverges at {_first(eta, too_large)}: the largest stable rate is "
            f"2N/lambda_max = {limit:.6g}",
            where="rate",
            cure="Use a smaller rate and more steps; only their product matters for small rates.",
        )
    values = decomposition.values
    x = eta[..., None] * values / decomposition.layout.examples
    exponent = t[..., None]
    # 1 - (1 - x)^t: by expm1 and log1p where 1 - x is near 1 and the difference would lose its digits.
    small = x < 0.5
    near = -np.expm1(exponent * np.log1p(-np.where(small, x, 0.0)))
    far = 1.0 - np.where(small, 0.0, 1.0 - x) ** exponent
    return _divide(np.where(small, near, far), values, (eta * t)[..., None] / decomposition.layout.examples)


def flow_filter(decomposition: Decomposition, *, time: npt.ArrayLike) -> Floats:
    """Filter of gradient flow, the limit of small rates.

    Args:
        decomposition: Of the training kernel.
        time: tau = eta t >= 0, or the sum of a schedule's rates; any shape B.

    Returns:
        phi, shape (*B, P).

    Raises:
        UserError: A time is negative or not finite.
    """
    tau = real(time, "time")
    _not_negative(tau, "time")
    per_example = tau[..., None] / decomposition.layout.examples
    return _divide(-np.expm1(-per_example * decomposition.values), decomposition.values, per_example)


def ridge_filter(decomposition: Decomposition, *, lam: npt.ArrayLike) -> Floats:
    """Filter of ridge regression, as in `regression.solve`.

    Args:
        decomposition: Of the training kernel.
        lam: In the units of the kernel, >= 0; any shape B. Directions with l + lam within the kernel's
            tolerance are left out, so 0 is `converged_filter`.

    Returns:
        phi, shape (*B, P).

    Raises:
        UserError: A strength is negative or not finite.
    """
    strength = real(lam, "lam")
    _not_negative(strength, "lam")
    shifted = decomposition.values + strength[..., None]
    used = shifted > decomposition.tolerance
    return np.divide(1.0, shifted, out=np.zeros_like(shifted), where=used)


def converged_filter(decomposition: Decomposition) -> Floats:
    """Filter of descent or flow without end from f_0: the minimum-norm solution, shape (P,).

    Independent of the kernel's scale. Where the kernel has not full rank, the labels are not all fitted.
    """
    return ridge_filter(decomposition, lam=0.0)


# --- outputs --------------------------------------------------------------------------------------


def outputs_at(
    decomposition: Decomposition,
    cross: npt.ArrayLike,
    phi: Floats,
    targets: npt.ArrayLike,
    *,
    pretrained: npt.ArrayLike | None = None,
    pretrained_test: npt.ArrayLike | None = None,
) -> Floats:
    """Outputs f_t(x) for every budget and every vector of targets at once.

    Args:
        decomposition: Of the training kernel.
        cross: K(x, X), shape (M, N) or (M, C, N, C). The training kernel itself gives the training outputs.
        phi: From a filter above, shape (*B, P).
        targets: Y, shape (*D, N) or (*D, N, C), from `layout.one_hot`; D are draws of poisoned labels.
        pretrained: f_0(X), shape (N,) or (N, C). None is 0, together with `pretrained_test`.
        pretrained_test: f_0(x), shape (M,) or (M, C).

    Returns:
        Shape (*B, *D, M) or (*B, *D, M, C).

    Raises:
        UserError: A shape does not fit, a value is not finite, or only one of the pre-trained outputs came.
    """
    layout = decomposition.layout
    matrix, rows = cross_matrix(cross, layout)
    filters = _filters(phi, decomposition)
    start, start_test = _pretrained(pretrained, pretrained_test, layout, rows)
    missing = outputs(targets, layout, "targets") - start
    draws = missing.shape[: -len(layout.shape)]
    budgets = filters.shape[:-1]
    # Both sides are rotated once; each budget then costs one product, each draw one row of it.
    left = missing.reshape(-1, layout.size) @ decomposition.vectors
    right = matrix @ decomposition.vectors
    moved = (filters.reshape(-1, 1, layout.size) * left) @ right.T
    return moved.reshape(*budgets, *draws, *rows.shape) + start_test


def smoother_at(decomposition: Decomposition, cross: npt.ArrayLike, phi: Floats) -> Floats:
    """S = K(x, X) phi(K), for every budget.

    Args:
        decomposition: Of the training kernel.
        cross: K(x, X), shape (M, N) or (M, C, N, C).
        phi: Shape (*B, P).

    Returns:
        Shape (*B, M, N) or (*B, M, C, N, C).

    Raises:
        UserError: A shape does not fit, or a value is not finite.
    """
    matrix, rows = cross_matrix(cross, decomposition.layout)
    filters = _filters(phi, decomposition)
    flat = ((matrix @ decomposition.vectors) * filters[..., None, :]) @ decomposition.vectors.T
    return flat.reshape(*filters.shape[:-1], *rows.shape, *decomposition.layout.shape)


def predictor_at(
    decomposition: Decomposition,
    cross: npt.ArrayLike,
    phi: Floats,
    *,
    pretrained: npt.ArrayLike | None = None,
    pretrained_test: npt.ArrayLike | None = None,
) -> LinearPredictor:
    """The predictor of one budget, for `label_noise.py` and `certificates.py`.

    Args:
        decomposition: Of the training kernel.
        cross: K(x, X), shape (M, N) or (M, C, N, C).
        phi: One filter, shape (P,).
        pretrained: f_0(X), shape (N,) or (N, C). None is 0, together with `pretrained_test`.
        pretrained_test: f_0(x), shape (M,) or (M, C).

    Raises:
        UserError: A shape does not fit, a value is not finite, or only one of the pre-trained outputs came.
    """
    if np.ndim(phi) != 1:
        raise UserError(f"expected one budget, shape (P,), got {np.shape(phi)}", where="phi")
    smoother = smoother_at(decomposition, cross, phi)
    layout = decomposition.layout
    rows = layout.of(smoother.shape[0])
    start, start_test = _pretrained(pretrained, pretrained_test, layout, rows)
    offset = start_test - (smoother.reshape(rows.size, -1) @ start.ravel()).reshape(rows.shape)
    return linear_predictor(smoother, offset)


def linear_predictor(smoother: npt.ArrayLike, offset: npt.ArrayLike | None = None) -> LinearPredictor:
    """Any predictor that is linear in the training targets.

    Args:
        smoother: S, shape (M, N), or (M, C, N, C) with C >= 2.
        offset: Shape (M,) or (M, C); None is 0.

    Raises:
        UserError: A shape does not fit, or a value is not finite.
    """
    array = real(smoother, "smoother")
    if array.ndim not in (2, 4) or 0 in array.shape or (array.ndim == 4 and array.shape[1] == 1):
        raise UserError(
            f"expected shape (M, N), or (M, C, N, C) with C >= 2, got {array.shape}", where="smoother"
        )
    layout = Layout(array.shape[array.ndim // 2], array.shape[1] if array.ndim == 4 else None)
    _, rows = cross_matrix(array, layout, "smoother")
    base = np.zeros(rows.shape) if offset is None else outputs(offset, rows, "offset")
    if base.shape != rows.shape:
        raise UserError(f"expected shape {rows.shape}, got {base.shape}", where="offset")
    return LinearPredictor(array, base, layout, rows)


def respond(predictor: LinearPredictor, targets: npt.ArrayLike) -> Floats:
    """Outputs for given training targets, offset + S Y.

    Args:
        predictor: From `predictor_at` or `linear_predictor`.
        targets: Y, shape (..., N) or (..., N, C).

    Returns:
        Shape (..., M) or (..., M, C).

    Raises:
        UserError: The shape of the targets does not fit, or one is not finite.
    """
    y = outputs(targets, predictor.layout, "targets")
    draws = y.shape[: -len(predictor.layout.shape)]
    moved: Floats = y.reshape(-1, predictor.layout.size) @ predictor.matrix.T
    return moved.reshape(*draws, *predictor.rows.shape) + predictor.offset


# --- budgets that match ---------------------------------------------------------------------------


def trace_ratio(decomposition: Decomposition, reference: Decomposition) -> float:
    """The ratio c = tr K / tr K_reference: how much larger one kernel is than another on the same examples.

    For LoRA against full fine-tuning this is the mean of the layers' scale factors, weighted by the layers'
    share in the reference kernel.

    Args:
        decomposition: Of K.
        reference: Of the other kernel.

    Raises:
        UserError: The kernels belong to different numbers of examples or outputs.
    """
    if decomposition.layout != reference.layout:
        raise UserError(
            f"expected kernels of the same examples and outputs, got {decomposition.layout} and "
            f"{reference.layout}",
            where="reference",
        )
    return float(decomposition.values.sum() / reference.values.sum())


def effective_step(rate: npt.ArrayLike, steps: npt.ArrayLike, scale: npt.ArrayLike) -> Floats:
    """The product eta t c: the budget that is comparable between kernels of different scale.

    Args:
        rate: eta >= 0.
        steps: t >= 0.
        scale: c > 0 of each kernel, such as `trace_ratio`.

    Raises:
        UserError: A number is negative or not finite, or a scale is 0.
    """
    eta, t = real(rate, "rate"), real(steps, "steps")
    _not_negative(eta, "rate")
    _not_negative(t, "steps")
    product: Floats = np.asarray(eta * t * _positive(scale, "scale"), dtype=np.float64)
    return product


def matched_rate(rate: float, scale: npt.ArrayLike) -> Floats:
    """The rate eta / c, at which a kernel of scale c makes the effective steps of scale 1 at eta.

    Args:
        rate: eta of the reference, >= 0.
        scale: c > 0 of each kernel relative to the reference.

    Raises:
        UserError: The rate is negative or not finite, or a scale is not above 0.
    """
    matched: Floats = np.asarray(at_least(rate, 0.0, "rate") / _positive(scale, "scale"), dtype=np.float64)
    return matched


# --- checks ---------------------------------------------------------------------------------------


def _divide(numerator: Floats, values: Floats, at_zero: Floats) -> Floats:
    """The numerator over l, and the limit where the eigenvalue counts as 0."""
    whole = np.broadcast_to(at_zero, numerator.shape).copy()
    return np.divide(numerator, values, out=whole, where=values > 0)


def _filters(phi: Floats, decomposition: Decomposition) -> Floats:
    filters = real(phi, "phi")
    if filters.ndim == 0 or filters.shape[-1] != decomposition.layout.size:
        wanted = f"(..., {decomposition.layout.size})"
        raise UserError(f"expected shape {wanted}, got {filters.shape}", where="phi")
    return filters


def _pretrained(
    train: npt.ArrayLike | None, test: npt.ArrayLike | None, layout: Layout, rows: Layout
) -> tuple[Floats, Floats]:
    if (train is None) != (test is None):
        raise UserError(
            "the pre-trained outputs of the training rows and of the other rows belong together",
            where="pretrained",
            cure="Pass both, or neither for f_0 = 0.",
        )
    if train is None or test is None:
        return np.zeros(layout.shape), np.zeros(rows.shape)
    start, start_test = outputs(train, layout, "pretrained"), outputs(test, rows, "pretrained_test")
    for array, wanted, name in (
        (start, layout.shape, "pretrained"),
        (start_test, rows.shape, "pretrained_test"),
    ):
        if array.shape != wanted:
            raise UserError(f"expected shape {wanted}, got {array.shape}", where=name)
    return start, start_test


def _not_negative(values: Floats, name: str) -> None:
    if np.any(values < 0):
        raise UserError(f"expected numbers >= 0, got {_first(values, values < 0)}", where=name)


def _positive(values: npt.ArrayLike, name: str) -> Floats:
    array = real(values, name)
    if np.any(array <= 0):
        raise UserError(f"expected numbers > 0, got {_first(array, array <= 0)}", where=name)
    return array


def _first(values: Floats, wrong: npt.NDArray[np.bool_]) -> str:
    return f"{np.extract(wrong, values)[0]:g}"

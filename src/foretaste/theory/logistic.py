"""Regularised logistic regression on a symmetric kernel, converged, with the pre-trained output as offset.

The logistic loss of Malladi et al. 2023, App. A.3 ("train alpha_i via gradient descent to minimize a
regularized logistic loss"; the l2 loss of the same appendix is in `regression.py`). Objective, over the
coefficients a, with f = f_PT(X) + K a:

    sum_i loss(f_i, y_i) + lam/2 a^T K a,

loss = log(1 + exp(-y f)) for a scalar output, the cross-entropy of softmax(f) for C outputs. The sum and the
penalty are those of the ridge, with the squared loss exchanged. With features phi, K = phi phi^T, this is
scikit-learn's LogisticRegression with C = 1/lam and no intercept. The appendix divides the sum by N and does
not give the penalty; a mean loss is this objective with lam N for lam.

It is solved for u, where K a = F u and F = V sqrt(diag(l) / ||K||_op), so F F^T = K / ||K||_op:

    sum_i loss(f_PT(x_i) + (F u)_i, y_i) + regularisation/2 |u|^2,    regularisation = lam / ||K||_op.

As |F| = 1, the Hessian lies between regularisation and regularisation + 1/4 (1/2 for C outputs), however
ill-conditioned K is. regularisation = 0 is refused: separable classes, and a full-rank kernel always
separates them, have no minimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import expit, softmax

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Ints, at_least, classes_of, outputs
from foretaste.theory.predictor import KernelFit
from foretaste.theory.regression import Decomposition

ACCURACY = 1e-7
"""Largest |u - minimiser| that counts as converged, per square root of the rows of K (see `_tolerance`)."""
LEAST = 1e-6
"""Smallest regularisation: below it, rounding of the gradient, some 1e-15, spoils that accuracy."""
POLISHES = 20


@dataclass(frozen=True, eq=False)
class LogisticFit(KernelFit):
    """Logistic regression for one vector of labels.

    Attributes:
        regularisation: lam / ||K||_op.
        lam: In the units of the kernel.
        objective: Value of the objective at the solution, in nats (a sum over examples).
        gradient_norm: |gradient| with respect to u; |u - minimiser| <= gradient_norm / regularisation.
    """

    regularisation: float
    lam: float
    objective: float
    gradient_norm: float


def objective(
    u: Floats, features: Floats, offset: Floats, labels: Ints, regularisation: float
) -> tuple[float, Floats]:
    """The objective in u and its gradient (see the head of this file).

    Args:
        u: Shape (R,).
        features: F, shape (N, R), or (N, C, R).
        offset: f_PT(X) or zeros, shape (N,), or (N, C).
        labels: Shape (N,): -1 and +1, or 0 .. C - 1.
        regularisation: Weight of |u|^2 / 2.
    """
    scores = offset + features @ u
    if scores.ndim == 1:
        loss = float(np.logaddexp(0.0, -labels * scores).sum())
        slope = -labels * expit(-labels * scores)
    else:
        rows = np.arange(labels.size)
        # log(sum exp f) - f_y as a sum over differences: no digits are lost where the label leads by far.
        gaps = scores - scores[rows, labels][:, None]
        loss = float(np.logaddexp.reduce(gaps, axis=1).sum())
        slope = softmax(scores, axis=1)
        slope[rows, labels] -= 1.0
    value = loss + 0.5 * regularisation * float(u @ u)
    gradient: Floats = np.tensordot(slope, features, axes=slope.ndim) + regularisation * u
    return value, gradient


def hessian(u: Floats, features: Floats, offset: Floats, regularisation: float) -> Floats:
    """Second derivative of `objective`, shape (R, R): F^T D F + regularisation I.

    D is p (1 - p) for a scalar output and diag(p) - p p^T for each example otherwise; no label enters.
    """
    scores = offset + features @ u
    if scores.ndim == 1:
        weighted = (expit(scores) * expit(-scores))[:, None] * features
    else:
        p = softmax(scores, axis=1)[:, :, None]
        weighted = p * (features - np.sum(p * features, axis=1, keepdims=True))
    second: Floats = np.tensordot(features, weighted, axes=(range(scores.ndim), range(scores.ndim)))
    return second + regularisation * np.eye(u.size)


def fit_logistic(
    decomposition: Decomposition,
    labels: npt.ArrayLike,
    *,
    regularisation: float,
    pretrained: npt.ArrayLike | None = None,
) -> LogisticFit:
    """Minimise the regularised logistic loss.

    Unlike the released code (scikit-learn's LogisticRegressionCV with the columns of K as features, binary
    tasks only, no f_PT), this penalises the norm of the function and takes f_PT as offset. The label scale
    f0 has no place here: logits and a cross-entropy share their scale.

    Args:
        decomposition: Of the training kernel, from `regression.decompose`.
        labels: Shape (N,), see `layout`.
        regularisation: lam / ||K||_op, at least 1e-6 (the paper's smallest above 0 is 1e-3).
        pretrained: f_PT(X), shape (N,) or (N, C); None leaves it out of fit and prediction.

    Returns:
        The coefficients of least norm (those in the range of K).

    Raises:
        UserError: A label is not a class, a size does not fit, `regularisation` is below 1e-6, or the
            solution was not found to the accuracy stated above.
    """
    layout = decomposition.layout
    at_least(regularisation, LEAST, "regularisation")
    y = classes_of(labels, layout)
    if y.ndim != 1:
        raise UserError(f"expected one vector of {layout.examples} labels, got {y.shape}", where="labels")
    offset = np.zeros(layout.shape)
    if pretrained is not None:
        offset = outputs(pretrained, layout, "pretrained")
        if offset.shape != layout.shape:
            raise UserError(f"expected shape {layout.shape}, got {offset.shape}", where="pretrained")
    used = decomposition.values > 0
    vectors = decomposition.vectors[:, used]
    roots = np.sqrt(decomposition.values[used] / decomposition.norm)
    features = (vectors * roots).reshape(*layout.shape, -1)

    def value(u: Floats) -> tuple[float, Floats]:
        return objective(u, features, offset, y, regularisation)

    def curvature(u: Floats) -> Floats:
        return hessian(u, features, offset, regularisation)

    u = _minimise(value, curvature, roots.size, _tolerance(regularisation, layout.size))
    least, gradient = value(u)
    return LogisticFit(
        coefficients=(vectors @ (u / roots)).reshape(layout.shape) / decomposition.norm,
        layout=layout,
        uses_pretrained=pretrained is not None,
        regularisation=regularisation,
        lam=regularisation * decomposition.norm,
        objective=least,
        gradient_norm=float(np.linalg.norm(gradient)),
    )


def _tolerance(regularisation: float, rows: int) -> float:
    """Largest gradient norm that counts as converged.

    The objective is strongly convex: |u - minimiser| <= |gradient| / regularisation. The bound on the
    gradient grows with the regularisation up to 1e-3 only (the smallest of the paper's grid above 0): beyond,
    u itself shrinks.
    """
    return ACCURACY * min(regularisation, 1e-3) * float(np.sqrt(rows))


def _minimise(
    value: Callable[[Floats], tuple[float, Floats]],
    curvature: Callable[[Floats], Floats],
    size: int,
    tolerance: float,
) -> Floats:
    """L-BFGS to the neighbourhood, then Newton steps on the gradient alone.

    Near the minimum, differences of the objective drown in its rounding, so every line search stalls at a
    gradient of about 1e-8; the gradient itself is still right to 1e-15, and Newton uses nothing else.
    """
    start = minimize(
        value,
        np.zeros(size),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0.0, "gtol": 1e-7, "maxiter": 10_000},
    )
    u: Floats = np.asarray(start.x, dtype=np.float64)
    gradient = value(u)[1]
    for _ in range(POLISHES):
        if np.linalg.norm(gradient) <= tolerance:
            return u
        u = u - cho_solve(cho_factor(curvature(u)), gradient)
        gradient = value(u)[1]
    raise UserError(
        f"the logistic fit stopped at a gradient of {np.linalg.norm(gradient):.2g}, above {tolerance:.2g}",
        where="regularisation",
        cure="Use a larger regularisation.",
    )

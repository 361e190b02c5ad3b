"""A head that is refitted to the labels before training, as a part of a predictor that is linear in them.

A run under the head policy `probe-then-train` fits its head to the labels as given, flipped ones included,
and trains from there: f_0 depends on Y, so that f_t(x) = f_0(x) + S (Y - f_0(X)) is linear in Y only where
f_0 is. The probe is a logistic regression, which is not. Ridge regression on the same features is:

    f_0(x) = H(x) Y,    H(x) = 1/N + (h(x) - m) A^T (A A^T + lam I)^{-1},    A = h(X) - m, m its mean,

and with it f_t(x) = (H(x) + S (I - H(X))) Y, to which `label_noise.py` and `certificates.py` apply whole. lam
is chosen once, on the clean labels, by leave-one-out error (Allen 1974, PRESS: the residual of row i without
it is its residual with it over 1 - H_ii), and kept whatever is flipped.

Holding the head at the clean labels instead would certify too much: random flips then do more than "any".

In docs/theory.md: T16.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.flow import LinearPredictor, linear_predictor
from foretaste.theory.layout import Floats, real

STRENGTHS = np.logspace(-3, 3, 13)
"""lam over the mean eigenvalue of A A^T, that leave-one-out error chooses from."""


def head_smoother(
    features: npt.ArrayLike, others: npt.ArrayLike, targets: npt.ArrayLike, *, intercept: bool = True
) -> Floats:
    """H: what each training label adds to the head's outputs.

    Args:
        features: What the head reads of the N training rows, shape (N, d).
        others: Of R rows, shape (R, d).
        targets: Clean ones, for lam: shape (N,) or (N, C).
        intercept: Whether the head has a bias; without one the features are not centred.

    Returns:
        Shape (R, N).

    Raises:
        UserError: A shape does not fit, or a value is not finite.
    """
    x, seen, y = real(features, "features"), real(others, "others"), real(targets, "targets")
    if x.ndim != 2 or seen.ndim != 2 or x.shape[1] != seen.shape[1] or y.shape[:1] != x.shape[:1]:
        raise UserError(
            f"expected features (N, d), others (R, d) and targets (N,) or (N, C); got {x.shape}, "
            f"{seen.shape} and {y.shape}",
            where="ridge head",
        )
    n = len(x)
    mean = x.mean(0) if intercept else np.zeros(x.shape[1])
    constant = 1.0 / n if intercept else 0.0
    a = x - mean
    values, vectors = np.linalg.eigh(a @ a.T)
    values = np.maximum(values, 0.0)  # of a Gram matrix: below zero is rounding
    unit = float(values.mean())
    if unit <= (1e-6 * float(np.abs(x).max())) ** 2:  # all rows are equal: what is left is rounding
        return np.full((len(seen), n), constant)
    columns = y.reshape(n, -1)
    errors = []
    for strength in STRENGTHS * unit:
        h = (vectors * (values / (values + strength))) @ vectors.T + constant
        left_out = (columns - h @ columns) / (1.0 - np.diag(h))[:, None]
        errors.append(float((left_out**2).sum()))
    lam = float(STRENGTHS[int(np.argmin(errors))]) * unit
    smoother: Floats = ((seen - mean) @ a.T @ vectors / (values + lam)) @ vectors.T + constant
    return smoother


def refitted(predictor: LinearPredictor, head_train: Floats, head_rows: Floats) -> LinearPredictor:
    """A predictor whose head follows the labels: (H(x) + S (I - H(X))) Y.

    Args:
        predictor: S for M rows; what it starts from is replaced by the head.
        head_train: H(X), shape (N, N).
        head_rows: H(x), shape (M, N).

    Raises:
        UserError: A shape does not fit.
    """
    n, m = predictor.layout.examples, predictor.rows.examples
    if head_train.shape != (n, n) or head_rows.shape != (m, n):
        raise UserError(
            f"expected a head of shapes ({n}, {n}) and ({m}, {n}), got {head_train.shape} and "
            f"{head_rows.shape}",
            where="ridge head",
        )
    s = predictor.smoother
    if predictor.layout.classes is None:
        return linear_predictor(s - s @ head_train + head_rows)
    # The head treats every class alike: H times the identity over classes.
    whole = s - np.einsum("mcjk,jn->mcnk", s, head_train)
    return linear_predictor(whole + head_rows[:, None, :, None] * np.eye(s.shape[1])[None, :, None, :])

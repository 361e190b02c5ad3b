"""Regression on an asymmetric kernel, K(x, x') = <phi_s(x), phi_t(x')> (A-SignGD: gradient and its sign).

Two solvers, from one singular value decomposition K = U diag(sigma) V^T that serves every gamma and label:

* `fit_asymmetric`, the paper's. Malladi et al. 2023, App. A.3, after He et al. 2022 (arXiv 2202.01397):

      [[I/gamma, H], [H^T, I/gamma]] [a; b] = [1; 1],    H = y y^T o K,    f_s(x) = K(x, X) (b o y).

  Here it reads [[I/gamma, K], [K^T, I/gamma]] [alpha; beta] = [t; t] with targets t, which for t = y = -1, +1
  is the same system (alpha = a o y, beta = b o y; multiply each row by its label) and keeps its meaning for
  real-valued residual targets t = f0 y - f_PT. Its eigenvalues are 1/gamma +- sigma_j: it is **indefinite**
  whenever 1/gamma < sigma_1 and singular where 1/gamma meets a singular value. It is a ridge, with
  lam = 1/gamma, only if K is symmetric and positive semi-definite, where alpha = beta.
* `fit_least_squares`, the stable alternative: beta = (K^T K + lam I)^{-1} K^T t.

Both predict with f_s = K(x, X) beta only, as the paper's c = 1 does. C > 2: the NC rows of the layout with
targets +1 (the label) and -1 ("treat the multi-class problem as many binary classification problems"). Two
readings of the released code (read, not run) differ: it builds H from y - f_PT / f0 and keeps the right side
at 1, so that it aims at 1 / (y - f_PT / f0); and its flattened multi-class targets are 0 and 1, so that rows
of H for the other classes vanish when f_PT is left out.

In docs/theory.md: T20.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Layout, at_least, signs, training_matrix
from foretaste.theory.predictor import KernelFit, residual
from foretaste.theory.regression import relative_norm

NEAR = 1e-2
"""A gap between 1/gamma and a singular value below this share of the largest one is warned of."""


@dataclass(frozen=True, eq=False)
class SingularDecomposition:
    """K + shift I = left diag(values) right^T.

    Attributes:
        left: U, shape (P, P), P = N or NC.
        values: Singular values, descending, shape (P,).
        right: V, shape (P, P).
        layout: Training examples and outputs.
        norm: ||K||_op, without the shift.
        shift: What was added to the diagonal.
    """

    left: Floats
    values: Floats
    right: Floats
    layout: Layout
    norm: float
    shift: float


@dataclass(frozen=True, eq=False)
class AsymmetricFit(KernelFit):
    """Solution of the paper's asymmetric system; `coefficients` is beta, that of f_s.

    Attributes:
        alpha: Coefficients of the other discriminant, f_t(x) = K(X, x)^T alpha, shaped as beta. Not used in
            predictions.
        scale: f0.
        gamma: In units of 1 / kernel.
        condition: Condition number of the 2P x 2P matrix; inf where it is singular.
        nearest_singular_value: The sigma_j nearest to 1/gamma.
        dropped: Eigen-directions with |1/gamma - sigma_j| within rounding, 2 P eps (1/gamma + sigma_1), left
            out: the minimum-norm solution, as a least-squares routine gives it.
        warning: What is wrong when min_j |sigma_j - 1/gamma| < 1e-2 sigma_1, else None.
    """

    alpha: Floats
    scale: float
    gamma: float
    condition: float
    nearest_singular_value: float
    dropped: int
    warning: str | None


@dataclass(frozen=True, eq=False)
class LeastSquaresFit(KernelFit):
    """Regularised least squares on the columns of K.

    Attributes:
        scale: f0.
        regularisation: lam / ||K||_op^2.
        lam: In the units of the kernel, squared.
        rank: Singular directions used; at lam = 0 those above P eps sigma_1.
        minimum_norm: rank < P, so the coefficients are those of least norm.
        training_residual: |targets - K coefficients| / |targets| for each vector of labels; NaN where the
            targets are all zero.
    """

    scale: float
    regularisation: float
    lam: float
    rank: int
    minimum_norm: bool
    training_residual: Floats


def decompose_asymmetric(kernel: npt.ArrayLike, regularisation: float = 0.0) -> SingularDecomposition:
    """Decompose a square kernel once for all later solves.

    Args:
        kernel: Shape (N, N) or (N, C, N, C); rows phi_s, columns phi_t.
        regularisation: This times ||K||_op is added to the diagonal before the decomposition: Table 4's
            "kernel regularization" of the asymmetric kernel, as the released code applies it. Default 0: the
            system as App. A.3 writes it.

    Raises:
        UserError: The shape is wrong, an entry not finite, the kernel zero, or `regularisation` negative.
    """
    matrix, layout = training_matrix(kernel)
    at_least(regularisation, 0.0, "regularisation")
    norm = float(np.linalg.norm(matrix, ord=2))
    shift = regularisation * norm
    left, values, right = np.linalg.svd(matrix + shift * np.eye(layout.size))
    return SingularDecomposition(left, values, right.T, layout, norm, shift)


def fit_asymmetric(
    decomposition: SingularDecomposition,
    labels: npt.ArrayLike,
    *,
    gamma: float,
    scale: float = np.inf,
    pretrained: npt.ArrayLike | None = None,
) -> AsymmetricFit:
    """Solve the paper's asymmetric system.

    Args:
        decomposition: Of the training kernel, from `decompose_asymmetric`.
        labels: Shape (..., N), see `layout`; leading axes are separate fits.
        gamma: Above 0, in units of 1 / kernel (the paper's grid is absolute).
        scale: f0, above 0. The default inf leaves f_PT out of targets and prediction.
        pretrained: f_PT(X), shape (N,) or (N, C); needed for a finite scale.

    Raises:
        UserError: A label is not a class, a size does not fit, or a number is out of its range.
    """
    layout, sigma = decomposition.layout, decomposition.values
    ridge = 1.0 / at_least(gamma, 0.0, "gamma", strict=True)
    targets = residual(signs(labels, layout), layout, scale, pretrained)
    from_left, from_right = _rotate(decomposition, targets)
    # (u_j, v_j) and (u_j, -v_j) are eigenvectors, with eigenvalues 1/gamma + sigma_j and 1/gamma - sigma_j.
    gaps = ridge - sigma
    rounding = 2 * layout.size * float(np.finfo(np.float64).eps) * (ridge + sigma[0])
    used = np.abs(gaps) > rounding
    even = (from_left + from_right) / (2.0 * (ridge + sigma))
    odd = (from_left - from_right) / 2.0 * np.divide(1.0, gaps, out=np.zeros_like(gaps), where=used)
    dropped = int(np.sum(~used))
    nearest = float(sigma[np.argmin(np.abs(gaps))])
    condition = float("inf") if dropped else float((ridge + sigma[0]) / np.abs(gaps).min())
    return AsymmetricFit(
        coefficients=((even - odd) @ decomposition.right.T).reshape(targets.shape),
        layout=layout,
        uses_pretrained=bool(np.isfinite(scale)),
        alpha=((even + odd) @ decomposition.left.T).reshape(targets.shape),
        scale=scale,
        gamma=gamma,
        condition=condition,
        nearest_singular_value=nearest,
        dropped=dropped,
        warning=_warning(gamma, nearest, float(sigma[0]), condition),
    )


def fit_least_squares(
    decomposition: SingularDecomposition,
    labels: npt.ArrayLike,
    *,
    regularisation: float,
    scale: float = np.inf,
    pretrained: npt.ArrayLike | None = None,
) -> LeastSquaresFit:
    """Solve beta = (K^T K + lam I)^{-1} K^T targets.

    Args:
        decomposition: Of the training kernel, from `decompose_asymmetric` with regularisation 0.
        labels: Shape (..., N), see `layout`; leading axes are separate fits.
        regularisation: lam / ||K||_op^2, >= 0. At 0 a singular kernel gives the minimum-norm solution.
        scale: f0, above 0. The default inf leaves f_PT out of targets and prediction.
        pretrained: f_PT(X), shape (N,) or (N, C); needed for a finite scale.

    Raises:
        UserError: The decomposition is of a shifted kernel, a label is not a class, a size does not fit, or
            a number is out of its range.
    """
    layout, sigma = decomposition.layout, decomposition.values
    if decomposition.shift:
        raise UserError(
            f"the kernel's diagonal was shifted by {decomposition.shift:.3g}; least squares has its own lam",
            where="decomposition",
            cure="Decompose with regularisation 0.",
        )
    lam = at_least(regularisation, 0.0, "regularisation") * decomposition.norm**2
    targets = residual(signs(labels, layout), layout, scale, pretrained)
    from_left, _ = _rotate(decomposition, targets)
    used = (sigma > layout.size * float(np.finfo(np.float64).eps) * sigma[0]) | (lam > 0)
    # Through K's own singular values: forming K^T K would square its condition number.
    filtered = np.divide(sigma, sigma**2 + lam, out=np.zeros_like(sigma), where=used)
    rank = int(np.sum(used))
    return LeastSquaresFit(
        coefficients=((from_left * filtered) @ decomposition.right.T).reshape(targets.shape),
        layout=layout,
        uses_pretrained=bool(np.isfinite(scale)),
        scale=scale,
        regularisation=regularisation,
        lam=lam,
        rank=rank,
        minimum_norm=rank < layout.size,
        training_residual=relative_norm(from_left * (1.0 - sigma * filtered), from_left),
    )


def _rotate(decomposition: SingularDecomposition, targets: Floats) -> tuple[Floats, Floats]:
    """U^T t and V^T t, shape (..., P)."""
    layout = decomposition.layout
    flat = targets.reshape(*targets.shape[: -len(layout.shape)], layout.size)
    return flat @ decomposition.left, flat @ decomposition.right


def _warning(gamma: float, nearest: float, largest: float, condition: float) -> str | None:
    gap = abs(1.0 / gamma - nearest)
    if gap >= NEAR * largest:
        return None
    return (
        f"1/gamma = {1.0 / gamma:.4g} lies {gap / largest:.1e} of the largest singular value ({largest:.4g}) "
        f"from the singular value {nearest:.4g}: the asymmetric system is nearly singular "
        f"(condition number {condition:.2g}); take another gamma, or least squares"
    )

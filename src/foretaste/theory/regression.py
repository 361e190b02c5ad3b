"""Ridge and least-squares regression on a symmetric kernel, by one eigendecomposition.

l2 regression of Malladi et al. 2023, App. A.3 ("the kernel regression is based on the l2 distance to the
ground truth one-hot vector"):

    coefficients = (K + lam I)^{-1} (f0 Y - f_PT(X)),    f(x) = f_PT(x) + K(x, X) coefficients,

the minimiser of 1/2 |K a - targets|^2 + lam/2 a^T K a. K = V diag(l) V^T once; every strength lam and every
vector of labels then costs two products with V. The other loss of App. A.3 is in `logistic.py`.

In docs/theory.md: the ridge of T14.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Layout, at_least, one_hot, outputs, training_matrix
from foretaste.theory.predictor import KernelFit, residual

ROUNDING = 1e-6
"""Relative asymmetry and negativity that pass for rounding.

Gram entries of float32 gradients agree to about 1e-7 of the largest; ten times that is no other kernel.
"""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A symmetric positive semi-definite kernel, K = V diag(values) V^T.

    Attributes:
        values: Eigenvalues, ascending, those within `tolerance` set to 0; shape (P,), P = N or NC.
        vectors: V, shape (P, P), columns are eigenvectors.
        layout: Training examples and outputs.
        norm: ||K||_op, the largest eigenvalue.
        tolerance: Eigenvalues up to here count as 0: the larger of P eps ||K||_op (the error of the
            decomposition) and the size of the most negative eigenvalue (the error of the kernel itself).
        rank: Number of eigenvalues above the tolerance.
    """

    values: Floats
    vectors: Floats
    layout: Layout
    norm: float
    tolerance: float
    rank: int


@dataclass(frozen=True, eq=False)
class RidgeFit(KernelFit):
    """Ridge regression for one or several vectors of labels.

    Attributes:
        scale: f0.
        regularisation: lam / ||K||_op.
        lam: lam in the units of the kernel.
        rank: Eigen-directions used; the others have value + lam within the kernel's tolerance.
        minimum_norm: rank < P, so the coefficients are the pseudo-inverse solution: those of least norm among
            the least-squares solutions.
        training_residual: |targets - K coefficients| / |targets| for each vector of labels, shape (...);
            NaN where the targets are all zero.
    """

    scale: float
    regularisation: float
    lam: float
    rank: int
    minimum_norm: bool
    training_residual: Floats


def symmetric_matrix(kernel: npt.ArrayLike) -> tuple[Floats, Layout]:
    """The square matrix of a symmetric kernel, made exactly symmetric, and its layout.

    Args:
        kernel: Shape (N, N) or (N, C, N, C), symmetric up to 1e-6 of its largest entry.

    Raises:
        UserError: The kernel has a wrong shape or a non-finite entry, is zero or is not symmetric.
    """
    matrix, layout = training_matrix(kernel)
    largest = float(np.abs(matrix).max())
    defect = float(np.abs(matrix - matrix.T).max()) / largest
    if defect > ROUNDING:
        raise UserError(
            f"not symmetric: entries differ from their mirror by {defect:.2g} of the largest entry "
            f"(allowed {ROUNDING:g})",
            where="kernel",
            cure="For an asymmetric kernel use the asymmetric solver.",
        )
    return (matrix + matrix.T) / 2.0, layout


def decompose(kernel: npt.ArrayLike) -> Decomposition:
    """Decompose a symmetric kernel once for all later solves.

    Args:
        kernel: Shape (N, N) or (N, C, N, C). Symmetric up to 1e-6 of its largest entry (symmetrised then)
            and positive semi-definite up to 1e-6 of its largest eigenvalue: what float32 gradients leave.

    Raises:
        UserError: The kernel has a wrong shape, a non-finite entry, or is zero, not symmetric or indefinite.
    """
    matrix, layout = symmetric_matrix(kernel)
    values, vectors = np.linalg.eigh(matrix)
    norm = float(values[-1])
    negative = max(0.0, -float(values[0]))
    if norm <= 0 or negative > ROUNDING * norm:
        raise UserError(
            f"indefinite: eigenvalues from {values[0]:.3g} to {values[-1]:.3g} "
            f"(allowed below zero: {ROUNDING:g} of the largest)",
            where="kernel",
            cure="A kernel is a matrix of inner products; check how it was summed.",
        )
    tolerance = max(layout.size * float(np.finfo(np.float64).eps) * norm, negative)
    rank = int(np.sum(values > tolerance))
    return Decomposition(np.where(values > tolerance, values, 0.0), vectors, layout, norm, tolerance, rank)


def solve(decomposition: Decomposition, targets: npt.ArrayLike, lam: float) -> Floats:
    """(K + lam I)^{-1} targets; the pseudo-inverse where K + lam I is singular.

    Args:
        decomposition: Of K.
        targets: Shape (..., N) or (..., N, C).
        lam: In the units of the kernel, >= 0. Directions with eigenvalue + lam within
            `decomposition.tolerance` are left out.

    Returns:
        Coefficients, shaped as the targets.

    Raises:
        UserError: The targets do not fit or are not finite, or `lam` is negative.
    """
    at_least(lam, 0.0, "lam")
    t = outputs(targets, decomposition.layout, "targets")
    flat = t.reshape(*t.shape[: -len(decomposition.layout.shape)], decomposition.layout.size)
    shifted = decomposition.values + lam
    used = shifted > decomposition.tolerance
    inverse = np.divide(1.0, shifted, out=np.zeros_like(shifted), where=used)
    solved: Floats = ((flat @ decomposition.vectors) * inverse) @ decomposition.vectors.T
    return solved.reshape(t.shape)


def fit_ridge(
    decomposition: Decomposition,
    labels: npt.ArrayLike,
    *,
    regularisation: float,
    scale: float = np.inf,
    pretrained: npt.ArrayLike | None = None,
) -> RidgeFit:
    """Fit l2 regression to scaled labels, starting from the pre-trained outputs.

    Args:
        decomposition: Of the training kernel, from `decompose`.
        labels: Shape (..., N), see `layout`; leading axes are separate fits.
        regularisation: lam / ||K||_op, >= 0. At 0 a singular kernel gives the minimum-norm solution.
        scale: f0, above 0. The default inf leaves f_PT out of targets and prediction.
        pretrained: f_PT(X), shape (N,) or (N, C); needed for a finite scale.

    Raises:
        UserError: A label is not a class, a size does not fit, or a number is out of its range.
    """
    layout = decomposition.layout
    lam = at_least(regularisation, 0.0, "regularisation") * decomposition.norm
    targets = residual(one_hot(labels, layout), layout, scale, pretrained)
    rank = int(np.sum(decomposition.values + lam > decomposition.tolerance))
    return RidgeFit(
        coefficients=solve(decomposition, targets, lam),
        layout=layout,
        uses_pretrained=bool(np.isfinite(scale)),
        scale=scale,
        regularisation=regularisation,
        lam=lam,
        rank=rank,
        minimum_norm=rank < layout.size,
        training_residual=_training_residual(decomposition, targets, lam),
    )


def _training_residual(decomposition: Decomposition, targets: Floats, lam: float) -> Floats:
    leading = targets.shape[: -len(decomposition.layout.shape)]
    rotated = targets.reshape(*leading, decomposition.layout.size) @ decomposition.vectors
    shifted = decomposition.values + lam
    # targets - K (K + lam)^{-1} targets, in the eigenbasis: lam / (l + lam), and all of what is left out.
    left = np.divide(lam, shifted, out=np.ones_like(shifted), where=shifted > decomposition.tolerance)
    return relative_norm(rotated * left, rotated)


def relative_norm(part: Floats, whole: Floats) -> Floats:
    """|part| / |whole| over the last axis, NaN where the whole is zero."""
    size = np.linalg.norm(whole, axis=-1)
    share: Floats = np.full(np.shape(size), np.nan)
    np.divide(np.linalg.norm(part, axis=-1), size, out=share, where=size > 0)
    return share

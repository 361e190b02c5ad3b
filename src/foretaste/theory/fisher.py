"""Spectra of three Fisher-like matrices through their dual Gram: P parameters never meet P parameters.

J_i is the C x P Jacobian of the outputs of row i, K(x_i, x_j) = J_i J_j^T. With C x q blocks B_i,

    (1/N) sum_i J_i^T B_i B_i^T J_i   (P x P)   and   (1/N) B_i^T K(x_i, x_j) B_j   (Nq x Nq)

have the same nonzero eigenvalues. Three choices of B answer three questions:

==================  ===============================  ====================================================
empirical Fisher    B_i = g_i, the loss gradient     what the data, with their labels, pull at
true Fisher         B_i B_i^T = diag(p) - p p^T      what the model's own predictions are sensitive to;
                                                     no label enters; the Gauss-Newton matrix
ntk                 B_i = I                          the kernel itself, K / N
==================  ===============================  ====================================================

The TTR paper's Theorem 2.2 (Eq. 8) is the trace of the first: a number, and so without the n_L eigenvalues
that Eq. 9 and 10 need. The identity is the chain rule and holds at any width.

In docs/theory.md: T10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Ints, Layout, classes_of, outputs, real
from foretaste.theory.regression import Decomposition, decompose


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a matrix (1/N) sum_i J_i^T B_i B_i^T J_i.

    Attributes:
        values: Those above the tolerance, descending, shape (rank,).
        trace: Sum of all eigenvalues.
        rank: How many are above the tolerance; 0 where the gradients vanish.
        tolerance: The kernel's own (see `regression.Decomposition`: P eps ||K||_op or its visible error),
            times max_i |B_i|^2 / N: by how much an error of the kernel of that size can move an eigenvalue.
            At least dim eps lambda_max.
        size: Rows of the dual Gram, the largest possible rank.
    """

    values: Floats
    trace: float
    rank: int
    tolerance: float
    size: int


# --- output gradients ----------------------------------------------------------------------------


def _of_rows(values: npt.ArrayLike, layout: Layout, name: str) -> Floats:
    """Outputs of exactly the layout's rows: no leading axes."""
    array = outputs(values, layout, name)
    if array.shape != layout.shape:
        raise UserError(f"expected shape {layout.shape}, got {array.shape}", where=name)
    return array


def _labels(labels: npt.ArrayLike, layout: Layout) -> Ints:
    y = classes_of(labels, layout)
    if y.ndim != 1:
        raise UserError(f"expected {layout.examples} labels, got shape {y.shape}", where="labels")
    return y


def _rows_of(shape: tuple[int, ...]) -> Layout:
    """The layout of logits of this shape."""
    if len(shape) not in (1, 2) or 0 in shape or shape[1:] == (1,):
        raise UserError(f"expected shape (N,) or (N, C), C >= 2, got {shape}", where="logits")
    return Layout(shape[0], shape[1] if len(shape) == 2 else None)


def cross_entropy_gradient(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Derivative of each row's cross-entropy with respect to its outputs.

    p - e_y for C logits; -y sigma(-y f) for a margin f and labels y = -1, +1. The TTR paper's Eq. 23 keeps
    the component p_y - 1 of the vector only (see `equation_24`).

    Args:
        logits: Shape (N,) or (N, C), C >= 2.
        labels: Shape (N,), see `layout`.

    Returns:
        Shape of the logits.

    Raises:
        UserError: The shapes do not fit, a value is not finite, or a label is not a class.
    """
    f = real(logits, "logits")
    layout = _rows_of(f.shape)
    y = _labels(labels, layout)
    if layout.classes is None:
        return np.asarray(-y * expit(-y * f))
    rows = np.arange(layout.examples)
    gradient = softmax(f, axis=1)
    # p_y - 1 as minus the sum of the others: no digits are lost where the label is nearly certain.
    gradient[rows, y] = 0.0
    gradient[rows, y] = -gradient.sum(axis=1)
    return np.asarray(gradient)


def output_curvature_root(logits: npt.ArrayLike) -> Floats:
    """L_i with L_i L_i^T = diag(p) - p p^T: L = diag(sqrt p) - p sqrt(p)^T.

    Args:
        logits: Shape (N,) or (N, C).

    Returns:
        Shape (N, C, C), of rank C - 1; for a margin (N,), sqrt(p (1 - p)).

    Raises:
        UserError: The shape is another or a value is not finite.
    """
    f = real(logits, "logits")
    _rows_of(f.shape)
    if f.ndim == 1:
        return np.asarray(np.sqrt(expit(f) * expit(-f)))
    p = softmax(f, axis=1)
    root = np.sqrt(p)
    return np.asarray(root[:, :, None] * np.eye(f.shape[1]) - p[:, :, None] * root[:, None, :])


# --- spectra -------------------------------------------------------------------------------------


def _dual(kernel: Decomposition, blocks: Floats) -> Spectrum:
    """Spectrum for blocks B_i, shape (N, C, q); C = 1 for a margin."""
    n, size = kernel.layout.examples, kernel.layout.examples * blocks.shape[2]
    used = kernel.values > 0
    root = (kernel.vectors[:, used] * np.sqrt(kernel.values[used])).reshape(n, blocks.shape[1], -1)
    # The dual Gram is factor factor^T, so its eigenvalues are squares: never below zero.
    factor = np.einsum("icq,icr->iqr", blocks, root).reshape(size, -1) / np.sqrt(n)
    values = np.linalg.svd(factor, compute_uv=False) ** 2
    reach = float(np.max(np.linalg.norm(blocks, ord=2, axis=(1, 2)))) ** 2 / n
    tolerance = kernel.tolerance * reach
    kept = values[values > tolerance]
    return Spectrum(kept, float(np.sum(factor**2)), kept.size, tolerance, size)


def gradient_fisher(kernel: npt.ArrayLike, gradients: npt.ArrayLike) -> Spectrum:
    """Empirical Fisher for any loss: (1/N) sum_i J_i^T g_i g_i^T J_i, dual (1/N) g_i^T K(x_i, x_j) g_j.

    Args:
        kernel: Shape (N, N) or (N, C, N, C), symmetric positive semi-definite.
        gradients: g, derivative of each row's loss with respect to its outputs, shape (N,) or (N, C). For
            the squared error |f - y|^2 / 2 it is f - y (the TTR paper's Eq. 26; the minus of its Eq. 25 is
            a slip).

    Raises:
        UserError: The kernel is refused by `regression.decompose`, or the gradients do not fit.
    """
    d = decompose(kernel)
    g = _of_rows(gradients, d.layout, "gradients")
    return _dual(d, g.reshape(d.layout.examples, -1, 1))


def empirical_fisher(kernel: npt.ArrayLike, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Spectrum:
    """Empirical Fisher of the cross-entropy at the data's labels, poisoned ones included.

    The matrix whose trace is the TTR paper's Theorem 2.2. It vanishes where the model fits every label.

    Args:
        kernel: Shape (N, N) of the margin, or (N, C, N, C).
        logits: Shape (N,) or (N, C).
        labels: Shape (N,), see `layout`.

    Raises:
        UserError: See `gradient_fisher` and `cross_entropy_gradient`.
    """
    return gradient_fisher(kernel, cross_entropy_gradient(logits, labels))


def true_fisher(kernel: npt.ArrayLike, logits: npt.ArrayLike) -> Spectrum:
    """True Fisher of the model's own predictions: (1/N) sum_i J_i^T (diag(p_i) - p_i p_i^T) J_i.

    Also the Gauss-Newton matrix of the cross-entropy. Its rank is at most N (C - 1).

    Args:
        kernel: Shape (N, N) of the margin, or (N, C, N, C).
        logits: Shape (N,) or (N, C).

    Raises:
        UserError: The kernel is refused by `regression.decompose`, or the logits do not fit.
    """
    d = decompose(kernel)
    root = output_curvature_root(_of_rows(logits, d.layout, "logits"))
    return _dual(d, root[:, None, None] if d.layout.classes is None else root)


def ntk_fisher(kernel: npt.ArrayLike) -> Spectrum:
    """K / N: the Fisher of unit-variance gaussian outputs, H = I.

    Args:
        kernel: Shape (N, N) or (N, C, N, C).

    Raises:
        UserError: The kernel is refused by `regression.decompose`.
    """
    d = decompose(kernel)
    return _dual(d, np.tile(np.eye(d.layout.classes or 1), (d.layout.examples, 1, 1)))


# --- the paper's numbers -------------------------------------------------------------------------


def equation_24(kernel: npt.ArrayLike, logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The TTR paper's Eq. 24 as written: (1/N) sum_i (p_y - 1)^2 K_yy(x_i, x_i), y the label of row i.

    It keeps one of the C components of the gradient. On a kernel that treats the outputs alike and apart the
    true trace (`empirical_fisher(...).trace`) is 1 + 1/(C - 1) to 2 times as large.

    Args:
        kernel: Shape (N, C, N, C). Of a margin's kernel, one component is all, and it would be the trace.
        logits: Shape (N, C).
        labels: Shape (N,).

    Raises:
        UserError: The kernel is refused, is that of a margin, or the sizes do not fit.
    """
    d = decompose(kernel)
    if d.layout.classes is None:
        raise UserError("expected shape (N, C, N, C), got the kernel of a margin", where="kernel")
    g = cross_entropy_gradient(_of_rows(logits, d.layout, "logits"), labels)
    rows, y = np.arange(d.layout.examples), _labels(labels, d.layout)
    own = np.asarray(kernel, dtype=np.float64)[rows, y, rows, y]
    return float(np.mean(g[rows, y] ** 2 * own))


def output_fisher(kernel: npt.ArrayLike, gradients: npt.ArrayLike) -> Floats:
    """E[(g g^T) o K(x, x)]: a C x C matrix, one reading of the n_L eigenvalues in the TTR paper's Eq. 9.

    Its entries sum to the trace of the empirical Fisher; its eigenvalues are not those of any Fisher.

    Args:
        kernel: Shape (N, C, N, C).
        gradients: g, shape (N, C).

    Returns:
        Shape (C, C), positive semi-definite.

    Raises:
        UserError: The kernel is refused, is that of a margin, or the sizes do not fit.
    """
    d = decompose(kernel)
    if d.layout.classes is None:
        raise UserError("expected shape (N, C, N, C), got the kernel of a margin", where="kernel")
    g = _of_rows(gradients, d.layout, "gradients")
    own = np.einsum("icid->icd", np.asarray(kernel, dtype=np.float64))
    return np.asarray(np.einsum("ic,id,icd->cd", g, g, own) / d.layout.examples)

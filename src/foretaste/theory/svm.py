"""Support-vector classification on a kernel, through scikit-learn's SVC.

Not a solver of Malladi et al. 2023 itself; their released code offers one for binary tasks. It takes neither
the pre-trained output nor a label scale. Objective, in the units of the other solvers:

    sum_i hinge(y_i (h(x_i) + b)) + lam/2 |h|^2_K,    lam = regularisation ||K||_op,    so SVC's C = 1/lam.

C > 2 (and two logits): SVC wants an N x N kernel, so the kernel is summed over equal outputs, sum_c
K[i, c, j, c] (the trace over outputs), and SVC decides by one-against-one votes. Relations between different
logits, which the NC x NC solvers see, are lost. For two logits `layout.margin_kernel` is the better choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.svm import SVC

from foretaste.errors import UserError
from foretaste.theory.layout import (
    Floats,
    Ints,
    Layout,
    at_least,
    classes_of,
    cross_matrix,
    traced_kernel,
)
from foretaste.theory.regression import decompose, symmetric_matrix

TOLERANCE = 1e-8
"""Largest violation of the optimality conditions, SVC's `tol`, in units of the margin."""


@dataclass(frozen=True, eq=False)
class SvmFit:
    """A support-vector classifier.

    Attributes:
        machine: The fitted SVC, on the (traced) kernel divided by `norm`.
        dual: Coefficients over the training rows, shape (classes present - 1, N), laid out as SVC's
            `dual_coef_`; 0 for rows that are no support vectors. For a scalar output the score is
            K(x, X) / norm @ dual[0] + intercepts[0].
        intercepts: One for each pair of classes present.
        support: Rows that are support vectors.
        layout: Training examples and outputs.
        norm: ||K||_op of the (traced) kernel.
        regularisation: lam / norm.
    """

    machine: SVC
    dual: Floats
    intercepts: Floats
    support: Ints
    layout: Layout
    norm: float
    regularisation: float


def fit_svm(kernel: npt.ArrayLike, labels: npt.ArrayLike, *, regularisation: float) -> SvmFit:
    """Fit a support-vector classifier.

    Args:
        kernel: Shape (N, N) or (N, C, N, C), symmetric; traced, it must be positive semi-definite.
        labels: Shape (N,), see `layout`; at least two classes present.
        regularisation: lam / ||K||_op of the traced kernel, above 0. Dividing kernel and lam by the norm
            leaves the objective as it is and SVC's stopping rule independent of units.

    Raises:
        UserError: See `regression.decompose`; or a label is not a class, only one class is present, or
            `regularisation` is not above 0.
    """
    at_least(regularisation, 0.0, "regularisation", strict=True)
    _, layout = symmetric_matrix(kernel)
    y = classes_of(labels, layout)
    if y.ndim != 1 or np.unique(y).size < 2:
        raise UserError(
            f"expected one vector of labels with two classes or more, got shape {y.shape} "
            f"with {np.unique(y).size}",
            where="labels",
        )
    traced = traced_kernel(kernel)
    norm = decompose(traced).norm
    machine = SVC(C=1.0 / regularisation, kernel="precomputed", tol=TOLERANCE)
    machine.fit((traced + traced.T) / (2.0 * norm), y)
    dual = np.zeros((machine.dual_coef_.shape[0], layout.examples))
    dual[:, machine.support_] = machine.dual_coef_
    return SvmFit(
        machine=machine,
        dual=dual,
        intercepts=np.asarray(machine.intercept_, dtype=np.float64),
        support=np.asarray(machine.support_, dtype=np.int64),
        layout=layout,
        norm=norm,
        regularisation=regularisation,
    )


def classify_svm(fit: SvmFit, cross: npt.ArrayLike) -> Ints:
    """Classes of other examples.

    Args:
        fit: From `fit_svm`.
        cross: K(x, X), shape (M, N) or (M, C, N, C).

    Returns:
        Shape (M,).

    Raises:
        UserError: The shape does not fit, or an entry is not finite.
    """
    cross_matrix(cross, fit.layout)
    return np.asarray(fit.machine.predict(traced_kernel(cross) / fit.norm), dtype=np.int64)

"""One given LoRA beside full fine-tuning: the eigenvalues of its A, and K_LoRA <= K_FF on given data.

The TTR paper's Theorem 3.4 and Corollary 3.5 speak of the random matrix M_Delta = A^T A - I. `spectra.py` has
the laws; here one A is drawn, and one pair of kernels computed, and the question is what is true of them.

In docs/theory.md: T9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.flow import trace_ratio
from foretaste.theory.layout import Floats, at_least, real
from foretaste.theory.regression import Decomposition, decompose

COLUMNS = 256
"""Columns of A^T A that are in memory at once when its largest off-diagonal entry is looked for."""


@dataclass(frozen=True)
class IdentityDistance:
    """How far s^2 A^T A is from I: M = s^2 A^T A - I, n x n, in norms that disagree.

    For r = n, k = 1, s = 1 (Corollary 3.5, which says M = 0) they go to 3, 1, 0 and 0, and the positive share
    to 0.391.

    Attributes:
        operator: Largest |eigenvalue| of M.
        frobenius: |M|_F / sqrt n, the root of the mean squared eigenvalue.
        off_diagonal: Largest |entry| off the diagonal; 0 for n = 1.
        rms: Root of the mean squared entry, |M|_F / n: about the error of K_LoRA on fixed data.
        positive: Share of the n eigenvalues that are above 0, where LoRA's kernel is the larger one.
        scale: Mean eigenvalue of s^2 A^T A, zeros included: c = s^2 r k / n in expectation.
    """

    operator: float
    frobenius: float
    off_diagonal: float
    rms: float
    positive: float
    scale: float


@dataclass(frozen=True)
class GramOrder:
    """Whether K_LoRA <= K_FF as matrices.

    Attributes:
        top: The smallest t with K_LoRA <= t K_FF: `inside`, or inf when K_LoRA has mass outside the range.
        inside: lambda_max(K_FF^{-1/2} K_LoRA K_FF^{-1/2}) on the range of K_FF.
        outside: Largest eigenvalue of K_LoRA on the null space of K_FF, in the units of the kernels. No
            multiple of K_FF can make up for it, unless it is rounding: at most
            max(1, inside) * `tolerance` + P eps ||K_LoRA||_op (or what the most negative eigenvalue of
            K_LoRA shows its error to be) counts as 0.
        holds: top <= 1 + uncertainty.
        uncertainty: First-order bound on the rounding error of `inside`: the tolerances of both kernels,
            divided by the smallest eigenvalue of K_FF that was used. It grows as K_FF gets ill-conditioned.
        tolerance: Eigenvalues of K_FF up to here count as 0, see `regression.Decomposition`.
        rank: Of K_FF.
        trace_ratio: tr K_LoRA / tr K_FF, the scale factor c.
    """

    top: float
    inside: float
    outside: float
    holds: bool
    uncertainty: float
    tolerance: float
    rank: int
    trace_ratio: float


def _adapter_matrix(A: npt.ArrayLike) -> Floats:
    matrix = real(A, "A")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UserError(f"expected shape (r, n), got {matrix.shape}", where="A")
    if matrix.shape[0] > matrix.shape[1]:
        raise UserError(
            f"expected rank r <= n inputs, got shape {matrix.shape}",
            where="A",
            cure="Rows are the rank, columns the inputs of the layer.",
        )
    return matrix


def adapter_eigenvalues(A: npt.ArrayLike, *, scaling: float) -> Floats:
    """The r eigenvalues of s^2 A^T A that can differ from 0; the other n - r are 0.

    They are those of s^2 A A^T, r x r: n x n is never formed.

    Args:
        A: Shape (r, n), r <= n, from any initialisation.
        scaling: s, above 0.

    Returns:
        Shape (r,), ascending, >= 0.

    Raises:
        UserError: A has another shape or a non-finite entry, or the scaling is not above 0.
    """
    matrix, s = _adapter_matrix(A), at_least(scaling, 0.0, "scaling", strict=True)
    return np.asarray(s**2 * np.maximum(np.linalg.eigvalsh(matrix @ matrix.T), 0.0))


def distance_to_identity(A: npt.ArrayLike, *, scaling: float) -> IdentityDistance:
    """Corollary 3.5 of the TTR paper for one A: s^2 A^T A against I, in four norms.

    Args:
        A: Shape (r, n), r <= n.
        scaling: s, above 0.

    Raises:
        UserError: See `adapter_eigenvalues`.
    """
    matrix, n = _adapter_matrix(A), np.shape(A)[1]
    values = adapter_eigenvalues(matrix, scaling=scaling)
    shifted = np.concatenate([values - 1.0, np.full(n - values.size, -1.0)])
    frobenius = float(np.linalg.norm(shifted))
    return IdentityDistance(
        operator=float(np.abs(shifted).max()),
        frobenius=frobenius / math.sqrt(n),
        off_diagonal=scaling**2 * _largest_off_diagonal(matrix),
        rms=frobenius / n,
        positive=float(np.mean(shifted > 0)),
        scale=float(values.sum()) / n,
    )


def _largest_off_diagonal(matrix: Floats) -> float:
    largest = 0.0
    for start in range(0, matrix.shape[1], COLUMNS):
        block = np.abs(matrix[:, start : start + COLUMNS].T @ matrix[:, start:])
        np.fill_diagonal(block, 0.0)
        largest = max(largest, float(block.max()))
    return largest


def _decomposed(kernel: npt.ArrayLike, name: str) -> Decomposition:
    try:
        return decompose(kernel)
    except UserError as error:
        raise error.located(name) from None


def gram_order(full: npt.ArrayLike, lora: npt.ArrayLike) -> GramOrder:
    """Compare the kernels of full fine-tuning and LoRA on the same rows, as matrices.

    The finite-data form of the TTR paper's Theorem 3.4: the largest eigenvalue of
    K_FF^{-1/2} K_LoRA K_FF^{-1/2}, the smallest t with K_LoRA <= t K_FF. Few rows can be ordered although
    s^2 A^T A <= I fails.

    Args:
        full: K_FF, shape (N, N) or (N, C, N, C), symmetric positive semi-definite.
        lora: K_LoRA, the same shape.

    Raises:
        UserError: A kernel is refused by `regression.decompose`, or the shapes differ.
    """
    ff, low = _decomposed(full, "full"), _decomposed(lora, "lora")
    if ff.layout != low.layout:
        raise UserError(
            f"expected two kernels of one shape, got {np.shape(full)} and {np.shape(lora)}", where="lora"
        )
    used = low.values > 0
    root = low.vectors[:, used] * np.sqrt(low.values[used])  # K_LoRA = root root^T
    rotated = ff.vectors.T @ root
    in_range = ff.values > 0
    whitened = rotated[in_range] / np.sqrt(ff.values[in_range])[:, None]
    inside = float(np.linalg.norm(whitened, 2)) ** 2
    beyond = rotated[~in_range]
    outside = float(np.linalg.norm(beyond, 2)) ** 2 if beyond.size else 0.0
    leaks = outside > max(1.0, inside) * ff.tolerance + low.tolerance
    uncertainty = (low.tolerance + inside * ff.tolerance) / float(ff.values[in_range].min())
    top = float("inf") if leaks else inside
    return GramOrder(
        top=top,
        inside=inside,
        outside=outside,
        holds=top <= 1 + uncertainty,
        uncertainty=uncertainty,
        tolerance=ff.tolerance,
        rank=ff.rank,
        trace_ratio=trace_ratio(low, ff),
    )

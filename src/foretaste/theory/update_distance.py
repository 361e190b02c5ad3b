"""How far apart two trainings have taken a model's weights, norm by norm (the TTR paper's Eq. 5).

Eq. 5 is M = E over pairs of data sets, E over steps t of ||dTheta(t) - dTheta~(t)||, where dTheta and dTheta~
are the updates from training on clean and on poisoned data. It leaves two things open, and both are decided
here where they can be seen:

* the norm: a difference of weight matrices has several. Frobenius over all matrices is the Euclidean norm of
  the vector of weights, the one that the Gram gives for one step (T13); the others see shape.
* Theta: for LoRA the trained A and B, or the weight that acts, W0 + s B A. `of_product` measures the second
  from factors, so that an update of rank r never becomes a matrix.

In docs/theory.md: T13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, real

ROUNDING = 2.0**-23
"""Spacing of float32 at 1. Singular values below max(m, n) times it, relative to the largest, are no rank:
weights that differ are stored in float32 as a rule (numpy's `matrix_rank` has the same form)."""
CHUNK_ENTRIES = 2**22
"""Entries of a product that are formed at once to find its largest."""


@dataclass(frozen=True)
class Distance:
    """Norms of a difference D of shape (m, n), or of block-diagonal D's.

    Attributes:
        frobenius: Square root of the sum of squares.
        spectral: Largest singular value.
        nuclear: Sum of the singular values.
        max_abs: Largest entry, sign aside.
        rank: Singular values above max(m, n) 2^-23 of the largest.
    """

    frobenius: float
    spectral: float
    nuclear: float
    max_abs: float
    rank: int

    @property
    def stable_rank(self) -> float:
        """Frobenius norm squared over spectral norm squared, 1 .. rank; NaN of D = 0."""
        return (self.frobenius / self.spectral) ** 2 if self.spectral else math.nan


def of_matrix(difference: npt.ArrayLike) -> Distance:
    """Norms of a difference that is there as a matrix.

    Args:
        difference: Shape (m, n), or (m,) for a vector, whose first three norms are equal.

    Raises:
        UserError: The shape is another or an entry is not finite.
    """
    matrix = real(difference, "difference")
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UserError(f"expected shape (m, n) or (m,), got {np.shape(difference)}", where="difference")
    # Rows of words that no text holds do not move: without them an embedding has a small difference.
    moved = matrix[np.any(matrix != 0, axis=1)]
    singular = np.linalg.svd(moved, compute_uv=False) if moved.size else np.zeros(1)
    return _distance(np.asarray(singular), float(np.abs(moved).max(initial=0.0)), matrix.shape)


def of_product(left: npt.ArrayLike, right: npt.ArrayLike) -> Distance:
    """Norms of D = left @ right, exactly, from QR decompositions of both factors.

    With left = Q T and right^T = Q' T', D has the singular values of T T'^T, at most r x r. Only the largest
    entry needs the product, which is formed in pieces.

    Args:
        left: Shape (m, r).
        right: Shape (r, n).

    Raises:
        UserError: The shapes do not fit or an entry is not finite.
    """
    a, b = _factors(left, right)
    core = np.linalg.qr(a).R @ np.linalg.qr(b.T).R.T
    rows = max(1, CHUNK_ENTRIES // b.shape[1])
    largest = max(float(np.abs(a[i : i + rows] @ b).max()) for i in range(0, len(a), rows))
    return _distance(np.linalg.svd(core, compute_uv=False), largest, (a.shape[0], b.shape[1]))


def product_change(
    left: npt.ArrayLike, right: npt.ArrayLike, left_before: npt.ArrayLike, right_before: npt.ArrayLike
) -> tuple[Floats, Floats]:
    """Factors of left @ right - left_before @ right_before, of twice the rank.

    As (left - left_before) right + left_before (right - right_before): each term is as small as what changed,
    so that nothing cancels when both products are far larger than their difference.

    Args:
        left: Shape (m, r).
        right: Shape (r, n).
        left_before: Shape (m, r).
        right_before: Shape (r, n).

    Returns:
        Shapes (m, 2r) and (2r, n).

    Raises:
        UserError: The shapes do not fit or an entry is not finite.
    """
    b, a = _factors(left, right)
    b0, a0 = _factors(left_before, right_before)
    if b.shape != b0.shape or a.shape != a0.shape:
        raise UserError(f"factors of {b.shape} and {a.shape}, before {b0.shape} and {a0.shape}", where="left")
    return np.hstack([b - b0, b0]), np.vstack([a, a - a0])


def together(parts: Sequence[Distance]) -> Distance:
    """Norms of the block-diagonal matrix of several differences: all layers as one operator.

    Its Frobenius norm is the Euclidean norm of all entries, its spectral norm that of the layer that moved
    most, its nuclear norm and its rank are sums. All 0 without parts.

    Args:
        parts: One for each layer.
    """
    return Distance(
        frobenius=math.hypot(*(part.frobenius for part in parts)),
        spectral=max((part.spectral for part in parts), default=0.0),
        nuclear=math.fsum(part.nuclear for part in parts),
        max_abs=max((part.max_abs for part in parts), default=0.0),
        rank=sum(part.rank for part in parts),
    )


def mean_over_steps(steps: Sequence[int], distances: Sequence[float]) -> float:
    """The mean over t of Eq. 5, over steps 1 .. T, linear between the steps that were measured.

    Exact when every step was measured.

    Args:
        steps: Ascending from 0 to T.
        distances: One for each; NaN stays NaN.

    Raises:
        UserError: There is no step after 0, steps do not ascend from 0, or the numbers do not match.
    """
    if len(steps) != len(distances):
        raise UserError(f"{len(steps)} steps and {len(distances)} distances", where="distances")
    if len(steps) < 2 or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)):
        raise UserError(f"expected steps that ascend from 0, got {list(steps)}", where="steps")
    return float(np.interp(np.arange(1, steps[-1] + 1), steps, distances).mean())


def _factors(left: npt.ArrayLike, right: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, b = real(left, "left"), real(right, "right")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise UserError(f"expected shapes (m, r) and (r, n), got {a.shape} and {b.shape}", where="left")
    return a, b


def _distance(singular: Floats, largest: float, shape: tuple[int, ...]) -> Distance:
    top = float(singular.max())
    return Distance(
        frobenius=float(np.linalg.norm(singular)),
        spectral=top,
        nuclear=float(singular.sum()),
        max_abs=largest,
        rank=int(np.sum(singular > max(shape) * ROUNDING * top)),
    )

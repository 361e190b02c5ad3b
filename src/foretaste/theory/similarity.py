"""How alike clean and poisoned rows pull at the parameters: the TTR paper's Eq. 5, 7, 16 and 17.

Rows come in pairs: x_i clean and x~_i its poisoned form. The kernel of a pair is the C x C block
K(x_i, x~_i), or a number for a margin; `pair_blocks` takes them out of a cross kernel.

Everything here that is not a cosine carries the scale of the kernel, which for LoRA is c = s^2 r k / n of
full fine-tuning's in expectation. So a difference between the two is one of c before it is one of robustness:
compare it with `compare_kernels(...).trace_ratio`.

In docs/theory.md: T13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad

from foretaste.errors import UserError
from foretaste.theory.criteria import fixed_features
from foretaste.theory.flow import trace_ratio
from foretaste.theory.layout import Floats, at_least, real, training_matrix
from foretaste.theory.regression import ROUNDING, decompose

Norm = Literal["fro", "op"]
ORDERS: dict[Norm, Literal["fro", 2]] = {"fro": "fro", "op": 2}


@dataclass(frozen=True)
class Pull:
    """Inner products of the loss gradients of pairs.

    Attributes:
        mean_abs: Mean of |inner product|: Eq. 16 and 17 of the TTR paper, averaged over pairs.
        abs_mean: |mean of the inner product|, where pairs of opposite sign cancel.
        mean_abs_cosine: Mean of |cosine|, free of scale; NaN if a gradient is zero.
        mean_cosine: Mean of the cosine, sign kept; NaN if a gradient is zero.
    """

    mean_abs: float
    abs_mean: float
    mean_abs_cosine: float
    mean_cosine: float


@dataclass(frozen=True)
class KernelComparison:
    """LoRA's kernel beside that of full fine-tuning: scale and shape apart.

    Attributes:
        trace_ratio: tr K_LoRA / tr K_FF, the scale factor c.
        alignment: Cosine of the two kernels, see `criteria.FixedFeatures`.
        best_scale: The t >= 0 for which t K_FF is nearest to K_LoRA.
        scaled_distance: |K_LoRA - best_scale K_FF| / |K_LoRA|, Frobenius.
    """

    trace_ratio: float
    alignment: float
    best_scale: float
    scaled_distance: float


@dataclass(frozen=True)
class ProjectedCosine:
    """Cosine of two vectors after a gaussian r x n matrix.

    Attributes:
        mean: Exact.
        sd: (1 - rho^2) / sqrt r, to leading order in 1 / r.
    """

    mean: float
    sd: float


# --- pairs ---------------------------------------------------------------------------------------


def pair_blocks(cross: npt.ArrayLike) -> Floats:
    """K(x_i, x~_i) from a cross kernel whose row i and column i belong to one pair.

    Args:
        cross: Shape (N, N) or (N, C, N, C); need not be symmetric.

    Returns:
        Shape (N,) or (N, C, C).

    Raises:
        UserError: The shape is another, an entry is not finite, or all are zero.
    """
    matrix, layout = training_matrix(cross, "cross kernel")
    if layout.classes is None:
        return np.array(np.diagonal(matrix))
    blocks = matrix.reshape(*layout.shape, *layout.shape)
    return np.array(np.einsum("icid->icd", blocks))


def _blocks(pairs: npt.ArrayLike, name: str) -> Floats:
    """Blocks as (N, C, C), C = 1 for a margin."""
    array = real(pairs, name)
    if 0 in array.shape or not (array.ndim == 1 or (array.ndim == 3 and array.shape[1] == array.shape[2])):
        raise UserError(f"expected shape (N,) or (N, C, C), got {array.shape}", where=name)
    return array.reshape(-1, 1, 1) if array.ndim == 1 else array


def _same(array: Floats, shape: tuple[int, ...], name: str) -> Floats:
    if array.shape != shape:
        raise UserError(f"expected shape {shape}, got {array.shape}", where=name)
    return array


def _own(blocks: npt.ArrayLike, shape: tuple[int, ...], name: str) -> Floats:
    """Blocks K(x, x), checked to be possible ones: no negative diagonal."""
    own = _same(_blocks(blocks, name), shape, name)
    if np.any(np.einsum("icc->ic", own) < 0):
        raise UserError("a diagonal entry K(x, x) is negative", where=name)
    return own


# --- Eq. 7 ---------------------------------------------------------------------------------------


def m_prime(pairs: npt.ArrayLike, norm: Norm) -> float:
    """The TTR paper's M' (Eq. 7): || E K(x, x~) || over pairs.

    The paper reads a large value as low robustness. In |grad L - grad L~|^2, which Eq. 5 measures,
    this inner product has a minus sign; and a label flip, x~ = x, it does not see at all.

    Args:
        pairs: K(x_i, x~_i), shape (N,) or (N, C, C).
        norm: "fro" (Frobenius) or "op" (largest singular value); the paper does not say which.

    Raises:
        UserError: The shape is another or an entry is not finite.
    """
    return float(np.linalg.norm(_blocks(pairs, "pairs").mean(axis=0), ORDERS[norm]))


def m_prime_cosine(pairs: npt.ArrayLike, clean: npt.ArrayLike, poisoned: npt.ArrayLike, norm: Norm) -> float:
    """M' of Jacobians of length 1: || E [K(x, x~) / (|J(x)|_F |J(x~)|_F)] ||, in [0, 1], free of scale.

    Args:
        pairs: K(x_i, x~_i), shape (N,) or (N, C, C).
        clean: K(x_i, x_i), the same shape.
        poisoned: K(x~_i, x~_i), the same shape.
        norm: "fro" or "op".

    Returns:
        NaN if a Jacobian is zero.

    Raises:
        UserError: The shapes differ, an entry is not finite, or a diagonal entry of the last two is negative.
    """
    blocks = _blocks(pairs, "pairs")
    own, other = _own(clean, blocks.shape, "clean"), _own(poisoned, blocks.shape, "poisoned")
    lengths = np.sqrt(np.einsum("icc->i", own)) * np.sqrt(np.einsum("icc->i", other))
    if not lengths.all():
        return float("nan")
    return float(np.linalg.norm((blocks / lengths[:, None, None]).mean(axis=0), ORDERS[norm]))


# --- Eq. 16 and 17 -------------------------------------------------------------------------------


def gradient_products(
    pairs: npt.ArrayLike, clean_gradients: npt.ArrayLike, poisoned_gradients: npt.ArrayLike
) -> Floats:
    """<grad L(x_i), grad L(x~_i)> = g_i^T K(x_i, x~_i) g~_i for every pair.

    Args:
        pairs: K(x_i, x~_i), shape (N,) or (N, C, C).
        clean_gradients: g, derivative of the loss with respect to the outputs at x_i, shape (N,) or (N, C).
        poisoned_gradients: g~, the same at x~_i with its label.

    Returns:
        Shape (N,).

    Raises:
        UserError: The shapes do not fit or a value is not finite.
    """
    blocks = _blocks(pairs, "pairs")
    shape = blocks.shape[:1] if np.ndim(pairs) == 1 else blocks.shape[:2]
    g = _same(real(clean_gradients, "clean_gradients"), shape, "clean_gradients")
    other = _same(real(poisoned_gradients, "poisoned_gradients"), shape, "poisoned_gradients")
    g, other = g.reshape(blocks.shape[:2]), other.reshape(blocks.shape[:2])
    return np.asarray(np.einsum("ic,icd,id->i", g, blocks, other))


def pull(
    pairs: npt.ArrayLike,
    clean: npt.ArrayLike,
    poisoned: npt.ArrayLike,
    clean_gradients: npt.ArrayLike,
    poisoned_gradients: npt.ArrayLike,
) -> Pull:
    """Eq. 16 (backdoor pairs) or Eq. 17 (flip pairs) of the TTR paper, with the cosines beside them.

    A flip in a binary task, x~ = x with the other label, has cosine -1 for every kernel: Eq. 17 tells full
    fine-tuning and LoRA apart by the scale only.

    Args:
        pairs: K(x_i, x~_i), shape (N,) or (N, C, C).
        clean: K(x_i, x_i), the same shape.
        poisoned: K(x~_i, x~_i), the same shape.
        clean_gradients: g at x_i, shape (N,) or (N, C).
        poisoned_gradients: g~ at x~_i.

    Raises:
        UserError: The shapes do not fit, a value is not finite, or a gradient would have negative length.
    """
    shape = _blocks(pairs, "pairs").shape
    products = gradient_products(pairs, clean_gradients, poisoned_gradients)
    lengths = np.ones(len(products))
    for blocks, gradients, name in (
        (clean, clean_gradients, "clean"),
        (poisoned, poisoned_gradients, "poisoned"),
    ):
        own = _own(blocks, shape, name)
        squares = gradient_products(blocks, gradients, gradients)
        size = np.sum(np.square(gradients).reshape(len(own), -1), axis=1) * np.einsum("icc->i", own)
        if np.any(squares < -ROUNDING * size):
            raise UserError(f"g^T K g is negative, {squares.min():.3g}", where=name)
        lengths = lengths * np.sqrt(np.maximum(squares, 0.0))
    cosines = products / lengths if lengths.all() else np.full(len(products), np.nan)
    return Pull(
        mean_abs=float(np.abs(products).mean()),
        abs_mean=float(np.abs(products.mean())),
        mean_abs_cosine=float(np.abs(cosines).mean()),
        mean_cosine=float(cosines.mean()),
    )


# --- Eq. 5 ---------------------------------------------------------------------------------------


def one_step_difference(
    kernel: npt.ArrayLike,
    removed: npt.ArrayLike,
    added: npt.ArrayLike,
    *,
    learning_rate: float,
    examples: int,
) -> float:
    """|dTheta - dTheta~|^2 of one gradient step on clean and on poisoned data: the TTR paper's Eq. 5.

    Exactly (eta / N)^2 v^T K v with v = (g on the removed rows, -g~ on the added ones): rows that both data
    sets have cancel. The loss is the mean over N rows, the same number for both.

    Args:
        kernel: Of the removed rows followed by the added ones (for a flip, the same inputs twice), shape
            (U, U) or (U, C, U, C), U = R + S.
        removed: g of the clean rows that poisoning replaces, shape (R,) or (R, C).
        added: g~ of the rows that replace them, shape (S,) or (S, C).
        learning_rate: eta, above 0.
        examples: N, at least R and S.

    Raises:
        UserError: The kernel is refused by `regression.decompose`, the sizes do not fit, or a number is out
            of its range.
    """
    d = decompose(kernel)
    g, other = real(removed, "removed"), real(added, "added")
    middle = d.layout.shape[1:]
    for part, name in ((g, "removed"), (other, "added")):
        if part.ndim == 0 or part.shape[1:] != middle:
            wanted = ", ".join(["rows", *map(str, middle)])
            raise UserError(f"expected shape ({wanted}), got {part.shape}", where=name)
    if len(g) + len(other) != d.layout.examples:
        raise UserError(
            f"expected {d.layout.examples} rows in all, got {len(g)} removed and {len(other)} added",
            where="kernel",
        )
    if examples < max(len(g), len(other)):
        raise UserError(f"expected at least {max(len(g), len(other))}, got {examples!r}", where="examples")
    v = np.concatenate([g.ravel(), -other.ravel()])
    rate = at_least(learning_rate, 0.0, "learning_rate", strict=True) / examples
    # In the eigenbasis the sum has no negative term: no step has a negative length.
    return float(rate**2 * np.sum(d.values * (d.vectors.T @ v) ** 2))


# --- shape of a kernel ---------------------------------------------------------------------------


def compare_kernels(full: npt.ArrayLike, lora: npt.ArrayLike) -> KernelComparison:
    """Scale factor, alignment and best-scale distance of two training kernels.

    Args:
        full: K_FF, shape (N, N) or (N, C, N, C).
        lora: K_LoRA, the same shape.

    Raises:
        UserError: The shapes differ, or a kernel is refused by `regression.decompose`.
    """
    shape = fixed_features(full, lora)
    ratio = trace_ratio(decompose(lora), decompose(full))
    return KernelComparison(ratio, shape.alignment, shape.best_scale, shape.scaled_distance)


def projected_cosine(rho: float, r: int) -> ProjectedCosine:
    """Cosine of A x and A x' for a gaussian A of rank r, when that of x and x' is rho.

    The law of a correlation of r pairs with known mean (Hotelling 1953): its mean is
    rho (2/r) (Gamma((r+1)/2) / Gamma(r/2))^2 2F1(1/2, 1/2; (r+2)/2; rho^2) = rho (1 - (1 - rho^2) / (2r)) to
    leading order. It is what LoRA does to the angle between two inputs: a small bias and noise, no trend.

    Args:
        rho: Cosine of the inputs, -1 .. 1.
        r: Rank, >= 1.

    Raises:
        UserError: rho or r is out of its range.
    """
    if not -1 <= rho <= 1:
        raise UserError(f"expected a cosine, got {rho!r}", where="rho")
    rank = at_least(r, 1, "r")
    if abs(rho) == 1:  # the integrand's limit at the end of the range would be 0 / 0
        return ProjectedCosine(float(rho), 0.0)

    # Euler's integral of 2F1 at t = sin^2: scipy's hyp2f1 returns inf at (1/2, 1/2; 100; 0.938).
    def height(t: float) -> float:
        return math.pow(math.cos(t), rank) / math.sqrt(1 - (rho * math.sin(t)) ** 2)

    front = 2 / math.sqrt(math.pi) * math.exp(math.lgamma((rank + 1) / 2) - math.lgamma(rank / 2))
    mean = rho * front * float(quad(height, 0.0, math.pi / 2)[0])
    return ProjectedCosine(mean, (1 - rho**2) / math.sqrt(rank))

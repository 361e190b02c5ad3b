"""Laws of the eigenvalues of s^2 A^T A for LoRA's random A, and when they say that s^2 A^T A <= I.

A is r x n with independent entries of mean 0 and variance k / n; s is the adapter's scaling; gamma = r / n.
At B = 0 the kernel of LoRA on a layer is that of full fine-tuning with s^2 A^T A between the layer's inputs,
so s^2 A^T A <= I (the TTR paper's M_Delta = A^T A - I <= 0, with the scaling that the paper leaves out) gives
K_LoRA <= K_FF. n - r eigenvalues are 0; the others follow Marchenko and Pastur (1967), on

    [s^2 k (1 - sqrt gamma)^2, s^2 k (1 + sqrt gamma)^2]  with mean s^2 k,

and not, as the paper's Theorem 3.4 has it, all at s^2 k: that is the limit gamma -> 0. The condition is
therefore s^2 k (1 + sqrt gamma)^2 <= 1, not k < 1. A given A and given data are the matter of `loewner.py`.

In docs/theory.md: T7 and T8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.special import hyp2f1
from scipy.stats import chi2
from scipy.stats import gamma as gamma_law

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, Ints, at_least, real

TW_SHAPE, TW_SCALE, TW_SHIFT = 46.446, 0.186054, 9.84801
"""Tracy-Widom law for real matrices as a shifted gamma law with the same first three moments (Chiani 2014,
"Distribution of the largest eigenvalue for real Wishart and Gaussian random matrices", Table 1)."""
TW_LEAST = 64
"""Smallest max(r, d) at which the Tracy-Widom approximation is called reliable.

Largest error of the distribution function, by 100 000 draws at ranks 2 .. 8 and fewer up to 64: 0.013 for
d = 1024 and 4096, 0.03 for d = 64, 0.11 for d = 8.
"""


@dataclass(frozen=True)
class Bulk:
    """Where the eigenvalues of s^2 A^T A lie as n grows at fixed gamma.

    Attributes:
        gamma: r / n.
        mean: s^2 k, the mean of the nonzero eigenvalues: exact at any size, in expectation over A.
        lower: s^2 k (1 - sqrt gamma)^2.
        upper: s^2 k (1 + sqrt gamma)^2.
        nonzero: r.
        zero: n - r.
    """

    gamma: float
    mean: float
    lower: float
    upper: float
    nonzero: int
    zero: int


@dataclass(frozen=True)
class TopEigenvalue:
    """The largest eigenvalue of s^2 A^T A on d dimensions, for a gaussian A of finite size.

    Attributes:
        mean: Its mean.
        sd: Its standard deviation.
    """

    mean: float
    sd: float


@dataclass(frozen=True)
class SemiDefinite:
    """Whether s^2 A^T A <= I, before A is drawn.

    Attributes:
        edge: s^2 k (sqrt(d/n) + sqrt(r/n))^2, the largest eigenvalue as n grows.
        holds: edge <= 1.
        top: The largest eigenvalue at this size.
        probability: P(s^2 A^T A <= I) for a gaussian A: Tracy-Widom, or chi^2 when r or d is 1 (exact).
            The approximation of Tracy-Widom is exactly 0 more than seven deviations below the mean.
        violation_bound: Rigorous upper bound on 1 - probability for a gaussian A (Davidson & Szarek 2001,
            Theorem II.13); 1 where it says nothing.
        reliable: `top` and `probability` are exact, or max(r, d) >= 64 and the probability is within 0.03
            of the truth (0.013 for d >= 1024).
    """

    edge: float
    holds: bool
    top: TopEigenvalue
    probability: float
    violation_bound: float
    reliable: bool


def _size(value: int, name: str, most: int | None = None) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise UserError(f"expected a whole number of at least 1{limit}, got {value!r}", where=name)
    return int(value)


def _scale(k: float, scaling: float) -> float:
    """s^2 k, checked."""
    return at_least(scaling, 0.0, "scaling", strict=True) ** 2 * at_least(k, 0.0, "k", strict=True)


# --- Marchenko-Pastur ----------------------------------------------------------------------------


def bulk(n: int, r: int, *, k: float, scaling: float) -> Bulk:
    """Edges, mean and count of the eigenvalues of s^2 A^T A.

    Marchenko & Pastur 1967; the true form of the TTR paper's Theorem 3.4.

    Args:
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries; 1/3 in peft.
        scaling: s, alpha / r in peft.

    Raises:
        UserError: r is not 1 .. n, or k or the scaling is not above 0.
    """
    rank = _size(r, "r", _size(n, "n"))
    mean, root = _scale(k, scaling), math.sqrt(rank / n)
    return Bulk(rank / n, mean, mean * (1 - root) ** 2, mean * (1 + root) ** 2, rank, n - rank)


def density(x: npt.ArrayLike, n: int, r: int, *, k: float, scaling: float) -> Floats:
    """Marchenko-Pastur density of the nonzero eigenvalues of s^2 A^T A.

    Args:
        x: Where, any shape.
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.

    Returns:
        Shape of x; integrates to 1. 0 outside the edges and at x = 0 (where it is unbounded for r = n).

    Raises:
        UserError: See `bulk`, or x is not finite.
    """
    law, at = bulk(n, r, k=k, scaling=scaling), real(x, "x")
    inside = (at > law.lower) & (at < law.upper) & (at > 0)
    where = np.where(inside, at, 1.0)
    height = np.sqrt(np.where(inside, (law.upper - where) * (where - law.lower), 0.0))
    return np.asarray(height / (2 * np.pi * law.gamma * law.mean * where))


def share_above(level: float, n: int, r: int, *, k: float, scaling: float) -> float:
    """Share of the nonzero eigenvalues of s^2 A^T A above a level, by Marchenko-Pastur.

    Args:
        level: Finite.
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.

    Returns:
        In [0, 1]; at level 1, k = 1, r = n: 2/3 - sqrt(3)/(2 pi) = 0.391.

    Raises:
        UserError: See `bulk`, or the level is not finite.
    """
    law = bulk(n, r, k=k, scaling=scaling)
    at, gamma, root = float(real(level, "level")), law.gamma, math.sqrt(law.gamma)
    # x = s^2 k (1 + gamma + 2 sqrt(gamma) cos t) turns the density into 2 sin^2 t / (pi x / s^2 k): smooth.
    cosine = (at / law.mean - 1 - gamma) / (2 * root)
    end = math.acos(min(1.0, max(-1.0, cosine)))

    def height(t: float) -> float:
        return 2 * math.sin(t) ** 2 / (math.pi * (1 + gamma + 2 * root * math.cos(t)))

    return min(1.0, float(quad(height, 0.0, end)[0]))


def moment(a: float, n: int, r: int, *, k: float, scaling: float) -> float:
    """Mean of lambda^a over the nonzero eigenvalues of s^2 A^T A, by Marchenko-Pastur.

    (s^2 k)^a 2F1(-a, 1 - a; 2; gamma), for any real a.

    Args:
        a: The power.
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.

    Returns:
        inf for a <= -1/2 at r = n, where the integral diverges.

    Raises:
        UserError: See `bulk`, or the power is not finite or so large that the mean is no float64.
    """
    law, power = bulk(n, r, k=k, scaling=scaling), float(real(a, "a"))
    if law.gamma == 1.0 and power <= -0.5:
        return math.inf
    try:
        value = float(law.mean**power) * float(hyp2f1(-power, 1.0 - power, 2.0, law.gamma))
    except OverflowError:
        value = math.inf
    if not 0 < value < math.inf:
        raise UserError(f"the mean of lambda^{power:g} is outside the range of float64", where="a")
    return value


# --- the largest eigenvalue at finite size -------------------------------------------------------


def _dimensions(n: int, dimensions: int | None) -> int:
    return n if dimensions is None else _size(dimensions, "dimensions", n)


def _soft_edge(d: int, r: int) -> tuple[float, float]:
    """Centre and spread of the Tracy-Widom law of lambda_max(Z Z^T), Z r x d of N(0, 1).

    Ma 2012, "Accuracy of the Tracy-Widom limits for the extreme eigenvalues in white Wishart matrices": the
    halves make the error O(min(r, d)^{-2/3}). With d - 1 and r in their place (Johnstone 2001) the
    distribution function is off by 0.15 at r = 2, 0.08 at r = 8 and 0.05 at r = 64 (d = 1024).
    """
    a, b = math.sqrt(d - 0.5), math.sqrt(r - 0.5)
    return (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)


def top_eigenvalue(
    n: int, r: int, *, k: float, scaling: float, dimensions: int | None = None
) -> TopEigenvalue:
    """Mean and spread of the largest eigenvalue of s^2 A^T A on d input dimensions, for a gaussian A.

    s^2 k / n times lambda_max(Z Z^T), which is Tracy-Widom around (sqrt(d - 1/2) + sqrt(r - 1/2))^2
    (Johnstone 2001, Theorem 1.1, centred as in Ma 2012), or chi^2 when r or d is 1.

    Args:
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.
        dimensions: d, how many dimensions the layer's inputs span, 1 .. n; None for all n.

    Raises:
        UserError: A size or number is out of its range.
    """
    unit, d = bulk(n, r, k=k, scaling=scaling).mean / n, _dimensions(n, dimensions)
    if min(d, r) == 1:
        freedom = max(d, r)
        return TopEigenvalue(unit * freedom, unit * math.sqrt(2 * freedom))
    centre, spread = _soft_edge(d, r)
    mean = TW_SHAPE * TW_SCALE - TW_SHIFT
    return TopEigenvalue(unit * (centre + spread * mean), unit * spread * math.sqrt(TW_SHAPE) * TW_SCALE)


def semi_definite(n: int, r: int, *, k: float, scaling: float, dimensions: int | None = None) -> SemiDefinite:
    """The condition s^2 A^T A <= I for an adapter, as n grows and at its size.

    On all n dimensions this is the corrected Theorem 3.4 of the TTR paper. Data whose layer inputs span only
    d dimensions see A through r x d numbers, so K_LoRA <= K_FF needs only
    s^2 k (sqrt(d/n) + sqrt(r/n))^2 <= 1. That is sufficient; with several output units per example fewer
    combinations of inputs occur and the Gram's own top eigenvalue (`loewner.gram_order`) may be smaller.

    Args:
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.
        dimensions: d, how many dimensions the layer's inputs span, 1 .. n; None for all n.

    Raises:
        UserError: A size or number is out of its range.
    """
    top = top_eigenvalue(n, r, k=k, scaling=scaling, dimensions=dimensions)
    scale, d = _scale(k, scaling), _dimensions(n, dimensions)
    allowed = n / scale  # lambda_max(Z Z^T) up to here keeps s^2 A^T A <= I
    if min(d, r) == 1:
        probability = float(chi2.cdf(allowed, max(d, r)))
    else:
        centre, spread = _soft_edge(d, r)
        x = (allowed - centre) / spread
        probability = float(gamma_law.cdf(x + TW_SHIFT, TW_SHAPE, scale=TW_SCALE))
    edge = scale * (math.sqrt(d / n) + math.sqrt(r / n)) ** 2
    # P(sigma_max(Z) > sqrt d + sqrt r + t) <= exp(-t^2 / 2), at the t where that is the border.
    t = max(0.0, math.sqrt(allowed) - math.sqrt(d) - math.sqrt(r))
    return SemiDefinite(
        edge=edge,
        holds=edge <= 1,
        top=top,
        probability=probability,
        violation_bound=math.exp(-(t**2) / 2),
        reliable=min(d, r) == 1 or max(d, r) >= TW_LEAST,
    )


def semi_definite_ranks(
    n: int, *, k: float, scaling: Callable[[int], float], dimensions: int | None = None
) -> Ints:
    """The ranks whose edge is at most 1 under a scaling rule.

    peft's alpha / r and rslora's alpha / sqrt(r) give a smallest rank, since s^2 falls faster than the edge
    widens; a constant s (the TTR paper's rank sweep, alpha = r) gives a largest one.

    Args:
        n: Inputs of the layer.
        k: n times the variance of A's entries.
        scaling: s as a function of the rank.
        dimensions: d, how many dimensions the layer's inputs span, 1 .. n; None for all n.

    Returns:
        Ascending, a part of 1 .. n; empty if the condition fails at every rank.

    Raises:
        UserError: A size or number is out of its range.
    """
    d = _dimensions(_size(n, "n"), dimensions)
    ranks = np.arange(1, n + 1, dtype=np.int64)
    scales = np.array([_scale(k, scaling(int(r))) for r in ranks])
    return ranks[scales * (math.sqrt(d / n) + np.sqrt(ranks / n)) ** 2 <= 1]

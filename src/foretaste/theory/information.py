"""Information bits and Renyi entropies of a spectrum, and which of them full fine-tuning must have more of.

The TTR paper's Theorem 3.6 says that K_LoRA <= K_FF makes LoRA's information bits (Eq. 9) and Renyi
entropies (Eq. 10) the smaller ones, for every alpha. With the same output gradients it makes every *ordered*
eigenvalue of LoRA the smaller one (Weyl), and from that follows what `ORDERINGS` lists: some quantities are
ordered, some are ordered the other way round, and the normalised ones are not ordered at all.

All logarithms are natural: the "bits" are nats, as in the paper. Eigenvalues come in any order; those within
max(dim eps lambda_max, size of the most negative one) of 0 count as 0, as in `regression.decompose`.

In docs/theory.md: T11 and T12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, at_least, real
from foretaste.theory.regression import ROUNDING


def positive_eigenvalues(lam: npt.ArrayLike) -> Floats:
    """The eigenvalues above the rank tolerance, descending.

    Args:
        lam: Eigenvalues of a positive semi-definite matrix, shape (n,), n >= 1.

    Returns:
        Shape (rank,); empty if all are 0.

    Raises:
        UserError: The shape is another, a value is not finite, or one is below zero by more than rounding
            (1e-6 of the largest).
    """
    values = real(lam, "eigenvalues")
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"expected shape (n,), n >= 1, got {values.shape}", where="eigenvalues")
    largest, negative = float(values.max()), max(0.0, -float(values.min()))
    if negative > ROUNDING * max(0.0, largest):
        raise UserError(
            f"expected values >= 0, got {-negative:.3g} beside a largest of {largest:.3g}",
            where="eigenvalues",
            cure="Pass the eigenvalues of a kernel or of a Fisher matrix.",
        )
    tolerance = max(values.size * float(np.finfo(np.float64).eps) * largest, negative)
    return np.asarray(np.sort(values[values > tolerance])[::-1])


# --- Renyi entropies -----------------------------------------------------------------------------


def _order(alpha: float) -> float:
    if alpha == math.inf:
        return alpha
    return at_least(alpha, 0.0, "alpha")


def renyi_entropy(lam: npt.ArrayLike, alpha: float) -> float:
    """Renyi entropy of the shape of a spectrum: log(sum p^alpha) / (1 - alpha), p = lambda / sum lambda.

    Shannon's at alpha = 1, -log max p at inf, the log of the rank at 0 (Renyi 1961; the TTR paper's App. C.1
    assumes sum p = 1, its Eq. 10 does not). No factor of the matrix changes it.

    Args:
        lam: Eigenvalues, shape (n,).
        alpha: Order, >= 0 or inf.

    Returns:
        In [0, log rank]; NaN where all eigenvalues are 0, which have no shape.

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`, or alpha is negative or NaN.
    """
    order, values = _order(alpha), positive_eigenvalues(lam)
    if values.size == 0:
        return math.nan
    # Divided by the largest first: the sum cannot overflow.
    unit = values / values[0]
    log_p = np.log(unit) - math.log(float(unit.sum()))
    if order == math.inf:
        return -float(log_p[0])
    if order == 1:
        return -float(np.exp(log_p) @ log_p)
    if abs(order - 1) < 0.5:
        # log(sum p p^(alpha - 1)) through what is left over 1: near alpha = 1 it is 0 / 0 otherwise.
        return math.log1p(float(np.exp(log_p) @ np.expm1((order - 1) * log_p))) / (1 - order)
    return float(logsumexp(order * log_p)) / (1 - order)


def raw_renyi(lam: npt.ArrayLike, alpha: float) -> float:
    """The TTR paper's Eq. 10 and 18 as written: log(sum lambda^alpha) / (1 - alpha), not normalised.

    Its limit at inf is -log lambda_max, and not the largest eigenvalue (see `paper_renyi_infinity`).

    Args:
        lam: Eigenvalues, shape (n,); those that are 0 do not count, also at alpha = 0 (log rank).
        alpha: Order, >= 0 or inf, but not 1, where it diverges unless the eigenvalues sum to 1.

    Returns:
        Any real number; NaN where all eigenvalues are 0.

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`, or alpha is negative, NaN or 1.
    """
    order, values = _order(alpha), positive_eigenvalues(lam)
    if order == 1:
        raise UserError(
            "the raw Renyi entropy diverges at alpha = 1 unless the eigenvalues sum to 1",
            where="alpha",
            cure="Use renyi_entropy (normalised) or, for -sum lambda log lambda, raw_shannon.",
        )
    if values.size == 0:
        return math.nan
    if order == math.inf:
        return -math.log(float(values[0]))
    return float(logsumexp(order * np.log(values))) / (1 - order)


def raw_shannon(lam: npt.ArrayLike) -> float:
    """-sum lambda log lambda, on eigenvalues that are no probabilities. Grows with lambda up to 1/e only.

    Args:
        lam: Eigenvalues, shape (n,).

    Returns:
        Any real number; NaN where all eigenvalues are 0.

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`.
    """
    values = positive_eigenvalues(lam)
    return -float(values @ np.log(values)) if values.size else math.nan


def paper_renyi_infinity(lam: npt.ArrayLike) -> float:
    """What the TTR paper calls H_inf: the largest eigenvalue. The limit of its Eq. 10 is -log of it.

    Args:
        lam: Eigenvalues, shape (n,).

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`.
    """
    values = positive_eigenvalues(lam)
    return float(values[0]) if values.size else 0.0


def effective_rank(lam: npt.ArrayLike) -> float:
    """The exponential of the normalised Shannon entropy (Roy & Vetterli 2007).

    Args:
        lam: Eigenvalues, shape (n,).

    Returns:
        1 .. rank; NaN where all eigenvalues are 0.

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`.
    """
    return math.exp(renyi_entropy(lam, 1.0))


def stable_rank(lam: npt.ArrayLike) -> float:
    """The trace over the largest eigenvalue, sum lambda / lambda_max.

    |J|_F^2 / |J|_op^2 of any J with these eigenvalues of J J^T, and exp of the normalised entropy at inf.

    Args:
        lam: Eigenvalues, shape (n,).

    Returns:
        1 .. rank; NaN where all eigenvalues are 0.

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`.
    """
    return math.exp(renyi_entropy(lam, math.inf))


# --- information bits ----------------------------------------------------------------------------


@dataclass(frozen=True)
class InformationBits:
    """Three things that the TTR paper's Eq. 9 calls information bits or that are needed beside it.

    Attributes:
        by_sum: 1/2 sum lambda, the right side of Eq. 9: half the trace.
        by_pdet: 1/2 log pdet = 1/2 sum of log lambda over lambda > 0, the left side of Eq. 9, which is not
            the right one. Depends on the unit of the output. NaN where all eigenvalues are 0.
        by_1p: 1/2 sum log(1 + beta lambda), what gaussian observations tell of gaussian parameters: monotone
            and finite.
        beta: Prior variance of a parameter times N over the variance of the noise.
        rank: Eigenvalues above the tolerance.
    """

    by_sum: float
    by_pdet: float
    by_1p: float
    beta: float
    rank: int


@dataclass(frozen=True)
class Ordering:
    """Whether full fine-tuning has at least as much of one quantity as LoRA.

    Attributes:
        holds: It has, in these two spectra.
        ordering_guaranteed: It must have, by a theorem whose condition these spectra meet.
        reason: Why, or why not.
    """

    holds: bool
    ordering_guaranteed: bool
    reason: str


@dataclass(frozen=True)
class BitsComparison:
    """Information bits of full fine-tuning and of LoRA.

    Attributes:
        full: Of full fine-tuning.
        lora: Of LoRA.
        dominates: Every ordered eigenvalue of full fine-tuning is at least LoRA's, up to the rank tolerance
            of both. K_LoRA <= K_FF with the same output gradients implies it.
        by_sum: Order of the half traces.
        by_pdet: Order of the log pseudo-determinants.
        by_1p: Order of the third form.
        c_star: Multiplying both matrices by c_star makes `by_pdet` equal; below and above it the order
            differs. NaN if the ranks are equal: then no unit changes the order.
    """

    full: InformationBits
    lora: InformationBits
    dominates: bool
    by_sum: Ordering
    by_pdet: Ordering
    by_1p: Ordering
    c_star: float


def information_bits(lam: npt.ArrayLike, *, beta: float) -> InformationBits:
    """Information bits of a Fisher spectrum, in three forms.

    Args:
        lam: Eigenvalues, shape (n,).
        beta: Above 0, see `InformationBits`. No value is natural: the paper has no such form.

    Raises:
        UserError: An eigenvalue is refused by `positive_eigenvalues`, or beta is not above 0.
    """
    values, weight = positive_eigenvalues(lam), at_least(beta, 0.0, "beta", strict=True)
    return InformationBits(
        by_sum=0.5 * float(values.sum()),
        by_pdet=0.5 * float(np.log(values).sum()) if values.size else math.nan,
        by_1p=0.5 * float(np.log1p(weight * values).sum()),
        beta=weight,
        rank=values.size,
    )


def compare_bits(full: npt.ArrayLike, lora: npt.ArrayLike, *, beta: float) -> BitsComparison:
    """Compare the information bits of two spectra, and say which order had to come out (Theorem 3.6).

    Args:
        full: Eigenvalues of full fine-tuning, shape (n,).
        lora: Eigenvalues of LoRA, shape (m,).
        beta: Above 0, see `InformationBits`.

    Raises:
        UserError: See `information_bits`.
    """
    f, low = information_bits(full, beta=beta), information_bits(lora, beta=beta)
    gap = _first_violation(full, lora)
    if gap is None:
        reason = "every ordered eigenvalue of full fine-tuning is at least LoRA's"
        pdet_reason = f"{reason}, and the ranks are equal ({f.rank})"
    else:
        reason = pdet_reason = gap
    if gap is None and f.rank != low.rank:
        pdet_reason = f"the ranks differ ({f.rank} and {low.rank}), so the order depends on the unit"
    return BitsComparison(
        full=f,
        lora=low,
        dominates=gap is None,
        by_sum=Ordering(f.by_sum >= low.by_sum, gap is None, reason),
        by_pdet=Ordering(f.by_pdet >= low.by_pdet, gap is None and f.rank == low.rank, pdet_reason),
        by_1p=Ordering(f.by_1p >= low.by_1p, gap is None, reason),
        c_star=_c_star(f, low),
    )


def _first_violation(full: npt.ArrayLike, lora: npt.ArrayLike) -> str | None:
    """The first ordered eigenvalue of LoRA above full fine-tuning's, in words; None if there is none."""
    f, low = positive_eigenvalues(full), positive_eigenvalues(lora)
    size = max(f.size, low.size)
    f, low = (np.concatenate([v, np.zeros(size - v.size)]) for v in (f, low))
    # The rank tolerance of the longer list: what one list counts as 0, the other may just keep.
    slack = max(np.size(full), np.size(lora)) * float(np.finfo(np.float64).eps)
    slack *= max(f.max(initial=0.0), low.max(initial=0.0))
    above = np.flatnonzero(low > f + slack)
    if above.size == 0:
        return None
    first = int(above[0])
    there, here = f"{low[first]:.3g}", f"{f[first]:.3g}"
    return f"eigenvalue {first + 1} of LoRA ({there}) is above that of full fine-tuning ({here})"


def _c_star(full: InformationBits, lora: InformationBits) -> float:
    # 1/2 log pdet(c F) = 1/2 log pdet(F) + rank/2 log c, set equal for both.
    if full.rank == lora.rank or 0 in (full.rank, lora.rank):
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.exp(2 * (lora.by_pdet - full.by_pdet) / (full.rank - lora.rank)))


# --- the table of orderings ----------------------------------------------------------------------


@dataclass(frozen=True)
class Implication:
    """What 0 <= K_LoRA <= K_FF with the same output gradients implies for one quantity.

    Attributes:
        quantity: Name.
        value: The quantity of a spectrum.
        sign: 1, full fine-tuning has at least as much; -1, at most as much; 0, neither is implied.
        equal_ranks: The sign needs equal ranks; without them nothing is implied.
        depends_on: "scale" if a factor of the matrix changes it, else "shape".
    """

    quantity: str
    value: Callable[[Floats], float]
    sign: Literal[-1, 0, 1]
    equal_ranks: bool
    depends_on: Literal["scale", "shape"]


def _raw(alpha: float) -> Callable[[Floats], float]:
    return lambda lam: raw_renyi(lam, alpha)


def _normalised(alpha: float) -> Callable[[Floats], float]:
    return lambda lam: renyi_entropy(lam, alpha)


ORDERINGS = (
    Implication("trace", lambda lam: float(np.sum(lam)), 1, False, "scale"),
    Implication("bits by sum", lambda lam: information_bits(lam, beta=1.0).by_sum, 1, False, "scale"),
    Implication("bits by 1p", lambda lam: information_bits(lam, beta=1.0).by_1p, 1, False, "scale"),
    Implication("bits by pdet", lambda lam: information_bits(lam, beta=1.0).by_pdet, 1, True, "scale"),
    Implication("paper's H_inf", paper_renyi_infinity, 1, False, "scale"),
    Implication("raw Renyi 0", _raw(0.0), 1, False, "shape"),
    Implication("raw Renyi 0.5", _raw(0.5), 1, False, "scale"),
    Implication("raw Shannon", raw_shannon, 0, False, "scale"),
    Implication("raw Renyi 2", _raw(2.0), -1, False, "scale"),
    Implication("raw Renyi inf", _raw(math.inf), -1, False, "scale"),
    Implication("Renyi 0", _normalised(0.0), 1, False, "shape"),
    Implication("Renyi 0.5", _normalised(0.5), 0, False, "shape"),
    Implication("Renyi 1", _normalised(1.0), 0, False, "shape"),
    Implication("Renyi 2", _normalised(2.0), 0, False, "shape"),
    Implication("Renyi inf", _normalised(math.inf), 0, False, "shape"),
    Implication("effective rank", effective_rank, 0, False, "shape"),
    Implication("stable rank", stable_rank, 0, False, "shape"),
)
"""Theorem 3.6 of the TTR paper, quantity by quantity. Raw entropies of alpha > 1 are always reversed."""

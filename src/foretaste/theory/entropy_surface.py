"""Entropies over rank and initial variance: the TTR paper's Figure 3 from formulas, from draws, from kernels.

Each entropy is there normalised (shape only) and raw (Eq. 18 as written; at alpha = 1, where that diverges,
the raw Shannon sum). The scaling is s = 1, as in the paper's figure and in its rank sweep (alpha = r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.eigen_entropy import (
    figure3_script_shannon,
    predicted_raw_renyi,
    predicted_raw_shannon,
    predicted_renyi,
)
from foretaste.theory.information import raw_renyi, raw_shannon, renyi_entropy
from foretaste.theory.layout import Floats, real
from foretaste.theory.loewner import adapter_eigenvalues
from foretaste.theory.lora_width import PEFT_K

Source = Literal["printed", "formula", "sampled", "model", "expected"]
Form = Literal["raw", "normalised"]

ORDERS: dict[str, float] = {"0.5": 0.5, "1": 1.0, "2": 2.0, "inf": math.inf}
LEAST_RANK, MOST_RANK = 4, 256
LEAST_K, MOST_K = 0.01, 1.5
"""Ends of the geometric grids in the released script of Figure 3 (read, not run)."""
STEPS = 28
DEFAULT_K = PEFT_K
"""peft's variance of A's entries times n: kaiming_uniform with a = sqrt 5."""
DOUBLINGS = (4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Point:
    """One entropy at one rank and variance.

    Attributes:
        source: printed: by the released script; formula: Marchenko-Pastur; sampled: of one drawn A; model: of
            a real model's LoRA kernel; expected: of the mean of that kernel over A.
        form: raw or normalised.
        order: alpha; raw at 1 is -sum lambda log lambda.
        r: Rank; between whole numbers for `printed`.
        k: n times the variance of A's entries.
        value: The entropy, natural logarithm.
    """

    source: Source
    form: Form
    order: str
    r: float
    k: float
    value: float


def ranks() -> list[int]:
    """Whole ranks, as evenly spaced on a logarithmic axis as they can be."""
    return sorted({round(r) for r in np.geomspace(LEAST_RANK, MOST_RANK, STEPS).tolist()})


def variances() -> list[float]:
    """Values of k, evenly spaced on a logarithmic axis."""
    return [float(k) for k in np.geomspace(LEAST_K, MOST_K, STEPS)]


def printed() -> list[Point]:
    """What the script of Figure 3 computes, 1e10 log(k r), where it computes it."""
    return [
        Point("printed", "raw", "1", r, k, figure3_script_shannon(r, k=k))
        for r in np.geomspace(LEAST_RANK, MOST_RANK, STEPS).tolist()
        for k in variances()
    ]


def formulas(n: int, at: Sequence[int], ks: Sequence[float]) -> list[Point]:
    """Entropies of A^T A by Marchenko-Pastur.

    Args:
        n: Inputs of the layer.
        at: Ranks, 1 .. n.
        ks: Values of k, above 0.

    Raises:
        UserError: A rank or k is out of its range.
    """
    found = []
    for r in at:
        for name, order in ORDERS.items():
            shape = predicted_renyi(order, n, r)
            for k in ks:
                if order == 1:
                    raw = predicted_raw_shannon(n, r, k=k, scaling=1.0)
                else:
                    raw = predicted_raw_renyi(order, n, r, k=k, scaling=1.0)
                found += [
                    Point("formula", "normalised", name, r, k, shape),
                    Point("formula", "raw", name, r, k, raw),
                ]
    return found


def sampled(
    n: int, at: Sequence[int], ks: Sequence[float], draws: int, rng: np.random.Generator
) -> list[Point]:
    """Entropies of A^T A of drawn matrices with uniform entries, peft's law.

    Args:
        n: Inputs of the layer.
        at: Ranks, 1 .. n.
        ks: Values of k, above 0.
        draws: Matrices for each rank.
        rng: Where the matrices come from.

    Raises:
        UserError: A rank is above n.
    """
    found: list[Point] = []
    for r in at:
        for _ in range(draws):
            unit = rng.uniform(-1, 1, (r, n)) * math.sqrt(3 / n)
            found += _of_spectrum("sampled", adapter_eigenvalues(unit, scaling=1.0), r, ks)
    return found


def of_kernels(
    units: npt.ArrayLike, at: Sequence[int], ks: Sequence[float], *, examples: int, source: Source
) -> list[Point]:
    """Entropies of k U_r / N, the Fisher matrix of unit-variance gaussian outputs, for kernels U_r at k = 1.

    Args:
        units: U_r, shape (ranks, NC, NC), symmetric positive semi-definite.
        at: Their ranks.
        ks: Values of k, above 0.
        examples: N.
        source: `model` or `expected`.

    Raises:
        UserError: The shape does not fit, or a kernel is zero, indefinite or not finite.
    """
    stack = real(units, "units")
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or len(stack) != len(at):
        raise UserError(f"expected shape ({len(at)}, NC, NC), got {stack.shape}", where="units")
    found: list[Point] = []
    for r, unit in zip(at, stack, strict=True):
        if not unit.any():
            raise UserError(f"the kernel of rank {r} is zero: it has no entropy", where="units")
        found += _of_spectrum(source, np.linalg.eigvalsh((unit + unit.T) / 2) / examples, r, ks)
    return found


def _of_spectrum(source: Source, lam: Floats, r: int, ks: Sequence[float]) -> list[Point]:
    found = []
    for name, order in ORDERS.items():
        shape = renyi_entropy(lam, order)
        for k in ks:
            raw = raw_shannon(k * lam) if order == 1 else raw_renyi(k * lam, order)
            found += [
                Point(source, "normalised", name, r, k, shape),
                Point(source, "raw", name, r, k, raw),
            ]
    return found


def largest_gap(points: Sequence[Point]) -> dict[str, float]:
    """By form and order, the largest distance between a drawn matrix and its formula.

    Args:
        points: Of `formulas` and `sampled` at the same ranks and variances.

    Returns:
        Keys such as "normalised 0.5".
    """
    formula = {(p.form, p.order, p.r, p.k): p.value for p in points if p.source == "formula"}
    gaps: dict[str, float] = {}
    for p in points:
        if p.source == "sampled":
            name = f"{p.form} {p.order}"
            gaps[name] = max(gaps.get(name, 0.0), abs(p.value - formula[p.form, p.order, p.r, p.k]))
    return gaps

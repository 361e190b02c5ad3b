"""Dual maps of activations: E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of jointly normal u and v.

For (u, v) ~ N(0, [[a, c], [c, b]]) these two maps are all that the infinite-width recursion needs of an
activation (Lee et al. 2018; Jacot et al. 2018). Sources of the closed forms:

========  =========================================================================================
ReLU      arc-cosine kernels of degree 1 and 0: Cho and Saul 2009, "Kernel Methods for Deep Learning"
erf       Williams 1997, "Computing with Infinite Networks"; its derivative is a Gaussian integral
GELU      exact x Phi(x), not the tanh approximation: Tsuchida et al. 2021, "Avoiding Kernel Fixed Points"
smooth    any other: Gauss-Hermite quadrature in two dimensions
========  =========================================================================================

All angles are atan2 of sqrt(det) and c, det = a b - c^2, never arccos of a correlation: det is exactly 0 on a
diagonal entry (a = b = c), where arccos(1 - eps) would be off by sqrt(eps).

In docs/theory.md: the two expectations in T2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import erf, ndtr

from foretaste.errors import UserError
from foretaste.theory.layout import Floats, real

Elementwise: TypeAlias = Callable[[Floats], Floats]
DualMap: TypeAlias = Callable[[Floats, Floats, Floats], Floats]

ROUNDING = 1e-6
"""Relative excess of c^2 over a b that passes for rounding: float32 products agree to about 1e-7."""

BLOCK = 2**21
"""Values of phi held at once by the quadrature: 16 MiB for each of u and v."""


@dataclass(frozen=True)
class Activation:
    """An activation with its dual maps.

    Attributes:
        name: As the field calls it.
        phi: The function, elementwise.
        derivative: phi', elementwise; at a kink, the value that automatic differentiation takes.
        product: (a, b, c) -> E[phi(u) phi(v)], unchecked, on arrays of one shape; called by `dual`.
        derivative_product: (a, b, c) -> E[phi'(u) phi'(v)]; called by `dual_derivative`.
    """

    name: str
    phi: Elementwise
    derivative: Elementwise
    product: DualMap
    derivative_product: DualMap


def dual(activation: Activation, a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    """E[phi(u) phi(v)] for (u, v) ~ N(0, [[a, c], [c, b]]).

    Args:
        activation: phi.
        a: Variances of u, >= 0. The three arrays are broadcast: (N, 1), (1, M) and (N, M) for a kernel.
        b: Variances of v, >= 0.
        c: Covariances, c^2 <= a b up to a relative 1e-6 (clipped to it).

    Returns:
        The broadcast shape.

    Raises:
        UserError: A value is not finite, a variance is negative, the shapes do not fit each other, or c is
            larger than the variances allow.
    """
    return activation.product(*_covariances(a, b, c))


def dual_derivative(activation: Activation, a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    """E[phi'(u) phi'(v)] for (u, v) ~ N(0, [[a, c], [c, b]]).

    Args:
        activation: phi.
        a: Variances of u, >= 0, broadcast with the others as in `dual`.
        b: Variances of v, >= 0.
        c: Covariances, c^2 <= a b up to a relative 1e-6 (clipped to it).

    Returns:
        The broadcast shape.

    Raises:
        UserError: See `dual`.
    """
    return activation.derivative_product(*_covariances(a, b, c))


def smooth(name: str, phi: Elementwise, derivative: Elementwise, *, nodes: int = 96) -> Activation:
    """An activation without a closed form, by `nodes` x `nodes` Gauss-Hermite quadrature.

    The error falls geometrically in sqrt(nodes) for analytic functions, but only as a power of `nodes` at a
    kink: never use it for ReLU or its relatives. It grows with the variances, because the singularities of
    phi come closer to the real line in units of a standard deviation.

    Args:
        name: As the field calls it.
        phi: Smooth, elementwise on float64 arrays of any shape.
        derivative: phi'.
        nodes: For each dimension, >= 2. The default leaves, for tanh at full correlation (the worst), errors
            of 2e-11 and 7e-10 (phi, phi') at variance 1, 9e-7 and 2e-5 at 3, 7e-4 and 5e-3 at 10.

    Raises:
        UserError: `nodes` is below 2, or `derivative` is not the derivative of `phi`.
    """
    if nodes < 2:
        raise UserError(f"expected at least 2 quadrature nodes, got {nodes}", where="nodes")
    _check_derivative(name, phi, derivative)

    def product(a: Floats, b: Floats, c: Floats) -> Floats:
        return _quadrature(phi, a, b, c, nodes)

    def derivative_product(a: Floats, b: Floats, c: Floats) -> Floats:
        return _quadrature(derivative, a, b, c, nodes)

    return Activation(name, phi, derivative, product, derivative_product)


# --- covariances ---------------------------------------------------------------------------------


def _covariances(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The three arrays in one shape, checked, c clipped to |c| <= sqrt(a b)."""
    arrays = real(a, "a"), real(b, "b"), real(c, "c")
    for name, variance in zip("ab", arrays, strict=False):
        if (variance < 0).any():
            raise UserError(f"expected variances >= 0, got {variance.min():g}", where=name)
    try:
        u, v, uv = np.broadcast_arrays(*arrays)
    except ValueError:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise UserError(
            f"shapes {shapes} do not fit each other",
            where="a, b, c",
            cure="Pass (N, 1), (1, M) and (N, M), or three of one shape.",
        ) from None
    # sqrt(a) sqrt(b) is never above the largest float, unlike a b, but it may round below a where a = b.
    bound = np.where(u == v, u, np.sqrt(u) * np.sqrt(v))
    excess = np.abs(uv) > bound * (1.0 + ROUNDING / 2.0)
    if excess.any():
        at = np.unravel_index(int(np.argmax(excess)), excess.shape)
        raise UserError(
            f"a covariance of {uv[at]:g} is larger than variances {u[at]:g} and {v[at]:g} allow "
            f"({int(excess.sum())} of {excess.size} entries)",
            where="c",
            cure="[[a, c], [c, b]] must be positive semi-definite.",
        )
    return u, v, np.clip(uv, -bound, bound)


def _determinant(a: Floats, b: Floats, c: Floats) -> Floats:
    """The determinant a b - c^2, never below 0 by rounding; exactly 0 for a = b = |c|."""
    return np.maximum(a * b - c * c, 0.0)


# --- closed forms --------------------------------------------------------------------------------


def _relu_angles(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The larger variance, and c, sqrt(det) and the angle in its units.

    Both maps are homogeneous, so the unit is free; this one keeps a b from under- and overflowing, and keeps
    a = b = c exactly 1.
    """
    unit = np.maximum(a, b)
    safe = np.where(unit > 0, unit, 1.0)
    covariance = c / safe
    root = np.sqrt(_determinant(a / safe, b / safe, covariance))
    return unit, covariance, root, np.arctan2(root, covariance)


def _relu(a: Floats, b: Floats, c: Floats) -> Floats:
    # sqrt(ab)/(2 pi) (sin th + (pi - th) cos th), with sqrt(ab) sin th = sqrt(det), sqrt(ab) cos th = c.
    unit, covariance, root, angle = _relu_angles(a, b, c)
    result: Floats = unit * (root + (np.pi - angle) * covariance) / (2.0 * np.pi)
    return result


def _relu_derivative(a: Floats, b: Floats, c: Floats) -> Floats:
    # (pi - th)/(2 pi). A variance of 0 leaves u = 0 surely, at the kink, where the derivative is taken as 0.
    *_, angle = _relu_angles(a, b, c)
    return np.where((a > 0) & (b > 0), (np.pi - angle) / (2.0 * np.pi), 0.0)


def _erf_root(a: Floats, b: Floats, c: Floats) -> Floats:
    """sqrt((1 + 2a)(1 + 2b) - 4c^2), expanded so that nothing cancels: it is never below 1."""
    root: Floats = np.sqrt(1.0 + 2.0 * (a + b) + 4.0 * _determinant(a, b, c))
    return root


def _erf(a: Floats, b: Floats, c: Floats) -> Floats:
    # (2/pi) asin(2c / sqrt((1 + 2a)(1 + 2b))).
    result: Floats = np.arctan2(2.0 * c, _erf_root(a, b, c)) * (2.0 / np.pi)
    return result


def _erf_derivative(a: Floats, b: Floats, c: Floats) -> Floats:
    result: Floats = (4.0 / np.pi) / _erf_root(a, b, c)
    return result


def _gelu_terms(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The terms p = (1 + a)(1 + b), D^2 = p - c^2 (expanded, never below 1), D and asin(c / sqrt(p))."""
    d2 = 1.0 + (a + b) + _determinant(a, b, c)
    d: Floats = np.sqrt(d2)
    return (1.0 + a) * (1.0 + b), d2, d, np.arctan2(c, d)


def _gelu(a: Floats, b: Floats, c: Floats) -> Floats:
    p, d2, d, angle = _gelu_terms(a, b, c)
    result: Floats = c / 4.0 + ((c * c + a * b * d2) / (p * d) + c * angle) / (2.0 * np.pi)
    return result


def _gelu_derivative(a: Floats, b: Floats, c: Floats) -> Floats:
    p, d2, d, angle = _gelu_terms(a, b, c)
    result: Floats = 0.25 + (angle + (c / d) * (1.0 / d2 + (1.0 - a * b) / p + 1.0)) / (2.0 * np.pi)
    return result


# --- quadrature ----------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _grid(nodes: int) -> tuple[Floats, Floats, Floats]:
    """g1, g2 and weights of a two-dimensional standard normal, each of shape (nodes^2,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    first, second = np.meshgrid(points, points, indexing="ij")
    grid = first.ravel(), second.ravel(), np.outer(weights, weights).ravel()
    for array in grid:
        array.setflags(write=False)  # shared by all later calls
    return grid


def _quadrature(function: Elementwise, a: Floats, b: Floats, c: Floats, nodes: int) -> Floats:
    """E[f(u) f(v)] by `nodes`^2 points for each entry.

    u, v = sqrt(a) (p g1 + m g2), sqrt(b) (p g1 - m g2) with p, m = sqrt((1 +- rho)/2): the same law as
    v = sqrt(b) (rho g1 + sqrt(1 - rho^2) g2), but exchanging u and v only mirrors g2, so that a kernel comes
    out symmetric to rounding whatever the error; rho = +-1 needs no case of its own.
    """
    g1, g2, weights = _grid(nodes)
    bound = np.where(a == b, a, np.sqrt(a) * np.sqrt(b)).ravel()
    rho = np.divide(c.ravel(), bound, out=np.zeros_like(bound), where=bound > 0)
    plus, minus = np.sqrt(np.maximum(1.0 + rho, 0.0) / 2.0), np.sqrt(np.maximum(1.0 - rho, 0.0) / 2.0)
    deviations = np.sqrt(a).ravel(), np.sqrt(b).ravel()
    result = np.empty(c.size)
    step = max(1, BLOCK // g1.size)
    for start in range(0, c.size, step):
        part = slice(start, start + step)
        even, odd = np.multiply.outer(plus[part], g1), np.multiply.outer(minus[part], g2)
        u = function(deviations[0][part, None] * (even + odd))
        v = function(deviations[1][part, None] * (even - odd))
        result[part] = np.einsum("eg,eg,g->e", u, v, weights)
    return result.reshape(c.shape)


def _check_derivative(name: str, phi: Elementwise, derivative: Elementwise) -> None:
    """Refuse a pair that is no function and its derivative: it would give a plausible, wrong kernel."""
    # An even number of points, so that a kink at 0 alone is not hit; central differences are good to h^2.
    at, h = np.linspace(-3.0, 3.0, 24), 1e-5
    numeric = (real(phi(at + h), f"phi of {name}") - real(phi(at - h), f"phi of {name}")) / (2.0 * h)
    exact = real(derivative(at), f"derivative of {name}")
    if exact.shape != at.shape or numeric.shape != at.shape:
        raise UserError(
            "expected a value for each entry of an array", where=name, cure="Write phi and phi' with numpy."
        )
    wrong = np.abs(numeric - exact) > 1e-4 * (1.0 + np.abs(exact))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise UserError(
            f"derivative {exact[first]:.4g} at {at[first]:.3g}, where phi has slope {numeric[first]:.4g}",
            where=name,
            cure="Pass phi and its own derivative.",
        )


# --- ready activations ---------------------------------------------------------------------------


def _relu_function(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


def _relu_step(x: Floats) -> Floats:
    return (x > 0).astype(np.float64)


def _erf_function(x: Floats) -> Floats:
    result: Floats = erf(x)
    return result


def _erf_slope(x: Floats) -> Floats:
    result: Floats = (2.0 / np.sqrt(np.pi)) * np.exp(-x * x)
    return result


def _gelu_function(x: Floats) -> Floats:
    result: Floats = x * ndtr(x)
    return result


def _gelu_slope(x: Floats) -> Floats:
    result: Floats = ndtr(x) + x * np.exp(-x * x / 2.0) / np.sqrt(2.0 * np.pi)
    return result


def _tanh_slope(x: Floats) -> Floats:
    # 1 - tanh^2 without its cancellation, and without the overflow of cosh.
    e = np.exp(-2.0 * np.abs(x))
    result: Floats = 4.0 * e / (1.0 + e) ** 2
    return result


RELU = Activation("relu", _relu_function, _relu_step, _relu, _relu_derivative)
ERF = Activation("erf", _erf_function, _erf_slope, _erf, _erf_derivative)
GELU = Activation("gelu", _gelu_function, _gelu_slope, _gelu, _gelu_derivative)
TANH = smooth("tanh", np.tanh, _tanh_slope)

"""Dual maps: closed forms against quadrature, another rule, simulation and Price's theorem."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from foretaste.errors import UserError
from foretaste.theory.activations import (
    ERF,
    GELU,
    RELU,
    ROUNDING,
    TANH,
    Activation,
    dual,
    dual_derivative,
    smooth,
)

SINE = smooth("sin", np.sin, np.cos)
ALL = [RELU, ERF, GELU, TANH, SINE]
SMOOTH = [ERF, GELU, TANH, SINE]
each = pytest.mark.parametrize("activation", ALL, ids=lambda a: a.name)
each_smooth = pytest.mark.parametrize("activation", SMOOTH, ids=lambda a: a.name)


def covariances(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances in [0.2, 3] and every correlation, the ends -1, 0 and +1 included."""
    g = np.random.default_rng(seed)
    a, b = g.uniform(0.2, 3.0, size=(2, count))
    rho = np.concatenate([[-1.0, 0.0, 1.0], g.uniform(-1, 1, count - 3)])
    return a, b, rho * np.sqrt(a * b)


def expectation(f, a: float, b: float, c: float, g: np.ndarray, w: np.ndarray) -> float:
    """E[f(u) f(v)] by a product rule, v conditional on u: u = sqrt(a) g1, v = c/sqrt(a) g1 + rest g2."""
    g1, g2 = np.meshgrid(g, g, indexing="ij")
    rest = np.sqrt(max(b - c * c / a, 0.0))
    return float(np.sum(np.outer(w, w) * f(np.sqrt(a) * g1) * f(c / np.sqrt(a) * g1 + rest * g2)))


def hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    g, w = np.polynomial.hermite_e.hermegauss(nodes)
    return g, w / np.sqrt(2 * np.pi)


def trapezoid(h: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Equal steps to 9 sd: for functions analytic up to distance d, the error is exp(-2 pi d/h)."""
    g = np.arange(-9.0, 9.0 + h / 2, h)
    return g, h * np.exp(-g * g / 2) / np.sqrt(2 * np.pi)


def both(activation: Activation, rule: tuple[np.ndarray, np.ndarray], abc) -> tuple[np.ndarray, np.ndarray]:
    values = [expectation(activation.phi, *entry, *rule) for entry in zip(*abc, strict=True)]
    slopes = [expectation(activation.derivative, *entry, *rule) for entry in zip(*abc, strict=True)]
    return np.array(values), np.array(slopes)


# --- two independent ways ------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [ERF, GELU], ids=lambda a: a.name)
def test_closed_forms_against_128_node_quadrature(activation: Activation) -> None:
    abc = covariances(40)
    values, slopes = both(activation, hermite(128), abc)
    assert np.abs(dual(activation, *abc) - values).max() <= 1e-9
    assert np.abs(dual_derivative(activation, *abc) - slopes).max() <= 1e-9


@pytest.mark.parametrize(
    ("activation", "error", "slope_error"),
    # Closed forms to rounding; tanh to what `smooth` documents for 96 nodes.
    [(ERF, 1e-12, 1e-12), (GELU, 1e-12, 1e-12), (SINE, 1e-12, 1e-12), (TANH, 1e-6, 2e-5)],
    ids=lambda a: getattr(a, "name", None),
)
def test_against_the_trapezoidal_rule(activation: Activation, error: float, slope_error: float) -> None:
    abc = covariances(40, seed=1)
    values, slopes = both(activation, trapezoid(), abc)
    assert np.abs(dual(activation, *abc) - values).max() <= error
    assert np.abs(dual_derivative(activation, *abc) - slopes).max() <= slope_error


def test_relu_against_an_integral_over_the_angle() -> None:
    """In polar coordinates E r^2 = 2, and both factors are on for angles in (th - pi/2, pi/2)."""
    a, b, c = covariances(40)
    theta = np.arccos(np.clip(c / np.sqrt(a * b), -1, 1))
    values = [
        quad(lambda t, th=th: np.cos(t) * np.cos(t - th), th - np.pi / 2, np.pi / 2, epsabs=1e-13)[0] / np.pi
        for th in theta
    ]
    # 1 - rho is known to eps only, so th near 0 is known to sqrt(eps).
    assert dual(RELU, a, b, c) == pytest.approx(np.sqrt(a * b) * values, abs=1e-12)
    assert dual_derivative(RELU, a, b, c) == pytest.approx((np.pi - theta) / (2 * np.pi), abs=2e-8)


@each
def test_against_simulation(activation: Activation) -> None:
    """400,000 draws; 5 standard errors of each mean."""
    g = np.random.default_rng(7).normal(size=(2, 400_000))
    for a, b, c in zip(*covariances(9, seed=3), strict=True):
        u = np.sqrt(a) * g[0]
        v = c / np.sqrt(a) * g[0] + np.sqrt(max(b - c * c / a, 0.0)) * g[1]
        for f, exact in ((activation.phi, dual), (activation.derivative, dual_derivative)):
            draws = f(u) * f(v)
            error = draws.std() / np.sqrt(draws.size)
            assert abs(draws.mean() - float(exact(activation, a, b, c))) <= 5 * error + 1e-12


@each
def test_prices_theorem(activation: Activation) -> None:
    """The two maps are bound: d/dc E[phi phi] = E[phi' phi'] (Price 1958)."""
    a, b, c = covariances(40, seed=5)
    c = 0.9 * c  # room for a difference on both sides; nodes' errors shrink as h grows, so h = 1e-3
    h = 1e-3
    numeric = (dual(activation, a, b, c + h) - dual(activation, a, b, c - h)) / (2 * h)
    # The third derivative of ReLU's map is the largest: below 10 for |rho| <= 0.9 and these variances.
    assert dual_derivative(activation, a, b, c) == pytest.approx(numeric, abs=2e-5)


def test_sine_by_hand() -> None:
    """E sin u sin v = exp(-(a+b)/2) sinh c, E cos u cos v = exp(-(a+b)/2) cosh c."""
    a, b, c = covariances(60)
    decay = np.exp(-(a + b) / 2)
    assert dual(SINE, a, b, c) == pytest.approx(decay * np.sinh(c), abs=1e-13)
    assert dual_derivative(SINE, a, b, c) == pytest.approx(decay * np.cosh(c), abs=1e-13)


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1e-300, 1e-9, 0.3, 1.0, 7.7, 1e9, 1e200])
def test_relu_on_the_diagonal_is_exact(variance: float) -> None:
    same, opposite = (variance, variance, variance), (variance, variance, -variance)
    assert dual(RELU, *same) == pytest.approx(variance / 2, rel=1e-15)
    assert float(dual_derivative(RELU, *same)) == 0.5
    assert float(dual(RELU, *opposite)) == 0.0
    assert float(dual_derivative(RELU, *opposite)) == 0.0


@each_smooth
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_full_correlation_is_one_dimensional(activation: Activation, sign: float) -> None:
    g, w = trapezoid()
    for a, b in ((1.0, 1.0), (0.4, 0.4), (0.3, 1.2), (0.7, 0.1)):
        c = sign * np.sqrt(a * b)
        u, v = np.sqrt(a) * g, sign * np.sqrt(b) * g
        value = w @ (activation.phi(u) * activation.phi(v))
        slope = w @ (activation.derivative(u) * activation.derivative(v))
        assert float(dual(activation, a, b, c)) == pytest.approx(value, abs=1e-9)
        assert float(dual_derivative(activation, a, b, c)) == pytest.approx(slope, abs=1e-7)


@each_smooth
def test_zero_variance_is_a_constant(activation: Activation) -> None:
    g, w = trapezoid()
    zero = np.zeros(1)
    for b in (0.0, 0.5, 1.0):
        value = activation.phi(zero)[0] * (w @ activation.phi(np.sqrt(b) * g))
        slope = activation.derivative(zero)[0] * (w @ activation.derivative(np.sqrt(b) * g))
        for pair in ((0.0, b), (b, 0.0)):
            assert float(dual(activation, *pair, 0.0)) == pytest.approx(value, abs=1e-12)
            assert float(dual_derivative(activation, *pair, 0.0)) == pytest.approx(slope, abs=1e-8)


def test_zero_variance_leaves_relu_at_its_kink() -> None:
    """As in a network: the derivative at 0 is 0, so a zero input sends nothing back."""
    a, b, c = np.array([0.0, 2.0, 0.0]), np.array([2.0, 0.0, 0.0]), np.zeros(3)
    assert dual(RELU, a, b, c).tolist() == [0, 0, 0]
    assert dual_derivative(RELU, a, b, c).tolist() == [0, 0, 0]
    assert RELU.derivative(np.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("activation", [RELU, ERF, GELU], ids=lambda a: a.name)
def test_large_and_small_variances(activation: Activation) -> None:
    """GELU and erf become ReLU and sign at 1e12; all become their first Taylor term at 1e-12."""
    rho = np.array([-0.9, -0.3, 0.0, 0.5, 0.99])
    big, small = 1e12, 1e-12
    limit = {
        "relu": dual(RELU, 1.0, 1.0, rho) * big,
        "gelu": dual(RELU, 1.0, 1.0, rho) * big,
        "erf": 2 / np.pi * np.arcsin(rho),
    }
    assert dual(activation, big, big, rho * big) == pytest.approx(limit[activation.name], rel=1e-5)
    slope = {"gelu": 0.5, "erf": 2 / np.sqrt(np.pi)}.get(activation.name)
    if slope is not None:
        assert dual(activation, small, small, rho * small) == pytest.approx(
            slope**2 * rho * small, abs=1e-5 * small
        )


# --- properties ----------------------------------------------------------------------------------

variance = st.floats(1e-3, 5.0)
correlation = st.floats(-1.0, 1.0)


@each
@given(a=variance, b=variance, rho=correlation)
def test_exchanging_u_and_v_changes_nothing(activation: Activation, a: float, b: float, rho: float) -> None:
    c = rho * np.sqrt(a * b)
    for f in (dual, dual_derivative):
        forth, back = float(f(activation, a, b, c)), float(f(activation, b, a, c))
        assert forth == pytest.approx(back, rel=1e-14, abs=1e-15)


@given(a=variance, b=variance, rho=correlation, factor=st.floats(1e-6, 1e6))
def test_relu_is_homogeneous(a: float, b: float, rho: float, factor: float) -> None:
    # Off |rho| = 1, where the angle answers to the last bit of its arguments.
    c = 0.999 * rho * np.sqrt(a * b)
    scaled = factor * a, factor * b, factor * c
    assert float(dual(RELU, *scaled)) == pytest.approx(factor * float(dual(RELU, a, b, c)), rel=1e-9)
    assert float(dual_derivative(RELU, *scaled)) == pytest.approx(
        float(dual_derivative(RELU, a, b, c)), rel=1e-9
    )


@each
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), width=st.integers(1, 4))
def test_kernels_become_kernels(activation: Activation, seed: int, rows: int, width: int) -> None:
    x = np.random.default_rng(seed).normal(size=(rows, width)) / np.sqrt(width)
    k = x @ x.T
    a = np.diagonal(k)
    # Quadrature errs up to 2e-5 an entry at these variances (and 2-D rules keep no exact positivity).
    slack = 1e-3 if activation is TANH else 1e-7
    for f in (dual, dual_derivative):
        image = f(activation, a[:, None], a[None, :], k)
        assert image == pytest.approx(image.T, rel=1e-13, abs=1e-14)
        assert np.linalg.eigvalsh(image).min() >= -slack * np.abs(image).max() - 1e-12


@each
def test_kernel_shapes_are_entries_one_by_one(activation: Activation) -> None:
    g = np.random.default_rng(2)
    x, z = g.normal(size=(4, 3)), g.normal(size=(5, 3))
    a, b, c = (x * x).sum(1), (z * z).sum(1), x @ z.T
    for f in (dual, dual_derivative):
        image = f(activation, a[:, None], b[None, :], c)
        assert image.shape == (4, 5)
        one_by_one = [[float(f(activation, a[i], b[j], c[i, j])) for j in range(5)] for i in range(4)]
        assert image == pytest.approx(np.array(one_by_one), rel=1e-12, abs=1e-14)


def test_the_quadrature_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    abc = covariances(23)
    whole = dual(TANH, *abc)
    monkeypatch.setattr("foretaste.theory.activations.BLOCK", 5 * 96**2)
    assert dual(TANH, *abc) == pytest.approx(whole, rel=1e-13)


@each
def test_derivatives_are_derivatives(activation: Activation) -> None:
    at = np.linspace(-4, 4, 40)
    numeric = (activation.phi(at + 1e-6) - activation.phi(at - 1e-6)) / 2e-6
    assert activation.derivative(at) == pytest.approx(numeric, abs=1e-8)


def test_tanh_slope_does_not_overflow() -> None:
    assert TANH.derivative(np.array([0.0, 20.0, -1e4])) == pytest.approx(
        [1.0, 4 * np.exp(-40.0), 0.0], rel=1e-12
    )


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "c", "message"),
    [
        (-1.0, 1.0, 0.0, "a: expected variances >= 0, got -1"),
        (1.0, [1.0, -0.5], 0.0, "b: expected variances >= 0, got -0.5"),
        (np.nan, 1.0, 0.0, "a: 1 of 1 values are NaN"),
        (1.0, 1.0, np.inf, "c: 1 of 1 values"),
        (1.0, 1.0, 1.0 + 2 * ROUNDING, "covariance of 1 is larger"),
        (4.0, 1.0, -2.1, "covariance of -2.1 is larger"),
        (0.0, 1.0, 0.1, "larger than variances 0 and 1"),
        (np.ones(3), np.ones(2), 0.0, r"shapes \(3,\), \(2,\), \(\)"),
        ("one", 1.0, 0.0, "real numbers"),
    ],
)
def test_covariances_that_are_refused(a: object, b: object, c: object, message: str) -> None:
    for f in (dual, dual_derivative):
        with pytest.raises(UserError, match=message):
            f(ERF, a, b, c)  # type: ignore[arg-type]


def test_rounding_of_a_covariance_is_clipped() -> None:
    assert float(dual(RELU, 1.0, 1.0, 1.0 + ROUNDING / 4)) == 0.5
    assert float(dual_derivative(RELU, 1.0, 1.0, 1.0 + ROUNDING / 4)) == 0.5
    assert float(dual(RELU, 1.0, 1.0, -1.0 - ROUNDING / 4)) == 0.0


def test_activations_that_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2"):
        smooth("sin", np.sin, np.cos, nodes=1)
    with pytest.raises(UserError, match="phi has slope"):
        smooth("sin", np.sin, np.sin)
    with pytest.raises(UserError, match="NaN"):
        smooth("log", lambda x: np.where(x > 0, np.log(np.abs(x)), np.nan), lambda x: 1 / x)
    with pytest.raises(UserError, match="each entry"):
        smooth("constant", lambda x: x, lambda x: np.ones(1))

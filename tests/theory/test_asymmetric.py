"""The asymmetric system against its literal form, and the least-squares alternative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.theory.asymmetric import (
    NEAR,
    decompose_asymmetric,
    fit_asymmetric,
    fit_least_squares,
)
from foretaste.theory.predictor import predict
from foretaste.theory.regression import decompose, fit_ridge

INF = float("inf")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def features(n: int, seed: int = 0, classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Gradients and their signs, the two feature maps of A-SignGD."""
    shape = (n, 60) if classes is None else (n, classes, 60)
    g = rng(seed).normal(size=shape) / 8
    return g, np.sign(g)


def kernel(n: int, seed: int = 0, classes: int | None = None) -> np.ndarray:
    s, t = features(n, seed, classes)
    return np.tensordot(s, t, axes=(-1, -1))


LABELS = np.array([1, -1, -1, 1, 1, -1, 1, 1, -1, -1])


def literal(k: np.ndarray, y: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """a and b of [[I/gamma, H], [H^T, I/gamma]] [a; b] = [1; 1] with H = y y^T o K, as printed."""
    n = y.size
    h = np.array([[y[i] * k[i, j] * y[j] for j in range(n)] for i in range(n)])
    system = np.block([[np.eye(n) / gamma, h], [h.T, np.eye(n) / gamma]])
    solved = np.linalg.solve(system, np.ones(2 * n))
    return solved[:n], solved[n:]


# --- the paper's system --------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_system_as_printed(gamma: float, seed: int) -> None:
    k = kernel(10, seed)
    fit = fit_asymmetric(decompose_asymmetric(k), LABELS, gamma=gamma)
    a, b = literal(k, LABELS, gamma)
    assert fit.condition < 1e8  # so that both ways keep half their digits
    assert fit.coefficients == pytest.approx(b * LABELS, rel=1e-7, abs=1e-9)
    assert fit.alpha == pytest.approx(a * LABELS, rel=1e-7, abs=1e-9)
    cross = rng(9).normal(size=(4, 10))
    assert predict(fit, cross) == pytest.approx(cross @ (b * LABELS), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("gamma", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("rank", [4, 30])
def test_on_a_symmetric_kernel_it_is_a_ridge(gamma: float, rank: int) -> None:
    x = rng(1).normal(size=(10, rank))
    k = x @ x.T
    fit = fit_asymmetric(decompose_asymmetric(k), LABELS, gamma=gamma)
    assert np.abs(fit.alpha - fit.coefficients).max() < 1e-10
    expected = np.linalg.solve(k + np.eye(10) / gamma, LABELS)
    assert np.abs(fit.coefficients - expected).max() < 1e-10
    d = decompose(k)
    ridge = fit_ridge(d, LABELS, regularisation=1 / gamma / d.norm)
    assert np.abs(fit.coefficients - ridge.coefficients).max() < 1e-10


@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_residual_targets(gamma: float) -> None:
    """[[I/gamma, K], [K^T, I/gamma]] [alpha; beta] = [t; t], t = f0 y - f_PT; then f_PT is added back."""
    k, f_x, f_z, cross = (
        kernel(10),
        rng(2).normal(size=10),
        rng(3).normal(size=4),
        rng(4).normal(size=(4, 10)),
    )
    fit = fit_asymmetric(decompose_asymmetric(k), LABELS, gamma=gamma, scale=10.0, pretrained=f_x)
    t = 10.0 * LABELS - f_x
    system = np.block([[np.eye(10) / gamma, k], [k.T, np.eye(10) / gamma]])
    solved = np.linalg.solve(system, np.concatenate([t, t]))
    assert np.concatenate([fit.alpha, fit.coefficients]) == pytest.approx(solved, rel=1e-7, abs=1e-8)
    assert predict(fit, cross, f_z) == pytest.approx(f_z + cross @ solved[10:], rel=1e-7, abs=1e-7)


def test_multi_class_is_nc_binary_examples() -> None:
    k = kernel(6, classes=3)
    labels = np.array([0, 2, 1, 1, 0, 2])
    y = np.array([1.0 if labels[i] == c else -1.0 for i in range(6) for c in range(3)])
    fit = fit_asymmetric(decompose_asymmetric(k), labels, gamma=0.1)
    a, b = literal(k.reshape(18, 18), y, 0.1)
    assert fit.coefficients.shape == (6, 3)
    assert fit.coefficients.ravel() == pytest.approx(b * y, rel=1e-7, abs=1e-9)
    assert fit.alpha.ravel() == pytest.approx(a * y, rel=1e-7, abs=1e-9)


def test_one_decomposition_serves_many_labels() -> None:
    k = kernel(10)
    many = rng(5).integers(0, 2, size=(3, 10)) * 2 - 1
    d = decompose_asymmetric(k)
    together = fit_asymmetric(d, many, gamma=0.3)
    stable = fit_least_squares(d, many, regularisation=0.01)
    for at, labels in enumerate(many):
        one = fit_asymmetric(d, labels, gamma=0.3)
        assert together.coefficients[at] == pytest.approx(one.coefficients, rel=1e-9, abs=1e-12)
        assert stable.coefficients[at] == pytest.approx(
            fit_least_squares(d, labels, regularisation=0.01).coefficients, rel=1e-9, abs=1e-12
        )


def test_regularisation_shifts_the_diagonal() -> None:
    k = kernel(10)
    shifted = k + 0.1 * np.linalg.norm(k, 2) * np.eye(10)
    fit = fit_asymmetric(decompose_asymmetric(k, 0.1), LABELS, gamma=0.1)
    assert fit.coefficients == pytest.approx(literal(shifted, LABELS, 0.1)[1] * LABELS, rel=1e-8)


# --- where it breaks -----------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.floats(-2, 2), st.integers(0, 20))
def test_condition_number_and_nearest_singular_value(log_gamma: float, seed: int) -> None:
    k, gamma = kernel(10, seed), 10**log_gamma
    fit = fit_asymmetric(decompose_asymmetric(k), LABELS, gamma=gamma)
    system = np.block([[np.eye(10) / gamma, k], [k.T, np.eye(10) / gamma]])
    expected = np.linalg.cond(system)
    # The smallest singular value, |1/gamma - sigma_j|, is known to eps times the largest.
    assert fit.condition == pytest.approx(expected, rel=1e-6 + 1e-14 * expected)
    sigma = np.linalg.svd(k, compute_uv=False)
    gap = np.abs(sigma - 1 / gamma).min()
    assert abs(fit.nearest_singular_value - 1 / gamma) == pytest.approx(gap, abs=1e-12)
    assert (fit.warning is not None) == (gap < NEAR * sigma[0])


@pytest.mark.parametrize("which", range(10))
def test_gamma_at_a_singular_value_is_warned_of(which: int) -> None:
    k = kernel(10)
    sigma = np.linalg.svd(k, compute_uv=False)
    fit = fit_asymmetric(decompose_asymmetric(k), LABELS, gamma=1 / sigma[which])
    assert fit.warning is not None
    assert f"{sigma[which]:.4g}" in fit.warning
    assert fit.nearest_singular_value == pytest.approx(sigma[which])
    assert fit.condition > 1e13
    assert np.isfinite(fit.coefficients).all()


@pytest.mark.parametrize(("gap", "warned"), [(0.999 * NEAR, True), (1.001 * NEAR, False)])
@pytest.mark.parametrize("side", [1, -1])
def test_the_border_of_the_warning(gap: float, warned: bool, side: int) -> None:
    k = np.diag([4.0, 2.0, 1.0]) @ np.eye(3)[[1, 2, 0]]
    fit = fit_asymmetric(decompose_asymmetric(k), [1, -1, 1], gamma=1 / (2.0 + side * gap * 4.0))
    assert (fit.warning is not None) is warned
    assert fit.nearest_singular_value == pytest.approx(2.0)
    assert fit.condition == pytest.approx((2.0 + side * gap * 4.0 + 4.0) / (gap * 4.0))


def test_a_singular_system_gets_the_least_squares_solution_of_least_norm() -> None:
    k = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.25]])
    y = np.array([1, -1, 1])
    fit = fit_asymmetric(decompose_asymmetric(k), y, gamma=0.5)
    system = np.block([[np.eye(3) / 0.5, k], [k.T, np.eye(3) / 0.5]])
    expected = np.linalg.lstsq(system, np.concatenate([y, y]).astype(float), rcond=1e-12)[0]
    assert np.concatenate([fit.alpha, fit.coefficients]) == pytest.approx(expected)
    assert (fit.dropped, fit.condition) == (1, INF)


def test_near_a_singular_value_scores_explode_and_change_sign() -> None:
    """A rotation by a quarter, 1/gamma = 1.1: by hand beta = (t - gamma K^T t) / (1/gamma - gamma)."""
    k = np.array([[0.0, -1.0], [1.0, 0.0]])
    y = np.array([1, 1])
    system = fit_asymmetric(decompose_asymmetric(k), y, gamma=1 / 1.1)
    stable = fit_least_squares(decompose_asymmetric(k), y, regularisation=1e-3)
    assert predict(system, k) == pytest.approx([-10.0, 10 / 21])  # of training rows labelled +1
    assert predict(stable, k) == pytest.approx([1 / 1.001, 1 / 1.001])


# --- least squares -------------------------------------------------------------------------------


@pytest.mark.parametrize("regularisation", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("scale", [10.0, INF])
def test_least_squares_against_the_normal_equations(regularisation: float, scale: float) -> None:
    k, f_x, f_z = kernel(10), rng(2).normal(size=10), rng(3).normal(size=4)
    fit = fit_least_squares(
        decompose_asymmetric(k), LABELS, regularisation=regularisation, scale=scale, pretrained=f_x
    )
    t = LABELS if scale == INF else scale * LABELS - f_x
    lam = regularisation * np.linalg.norm(k, 2) ** 2
    expected = np.linalg.solve(k.T @ k + lam * np.eye(10), k.T @ t)
    assert fit.lam == pytest.approx(lam)
    assert fit.coefficients == pytest.approx(expected, rel=1e-8)
    cross = rng(4).normal(size=(4, 10))
    offset = 0 if scale == INF else f_z
    assert predict(fit, cross, f_z) == pytest.approx(offset + cross @ expected, rel=1e-8, abs=1e-9)
    assert float(fit.training_residual) == pytest.approx(np.linalg.norm(t - k @ expected) / np.linalg.norm(t))


def test_least_squares_against_stacked_rows() -> None:
    """The same minimum without forming K^T K: rows of K above sqrt(lam) I."""
    k, labels = kernel(6, classes=3), np.array([0, 2, 1, 1, 0, 2])
    fit = fit_least_squares(decompose_asymmetric(k), labels, regularisation=0.01)
    y = np.array([1.0 if labels[i] == c else -1.0 for i in range(6) for c in range(3)])
    stacked = np.vstack([k.reshape(18, 18), np.sqrt(fit.lam) * np.eye(18)])
    expected = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros(18)]), rcond=None)[0]
    assert fit.coefficients.ravel() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("rank", [4, 10])
def test_unregularised_least_squares_is_the_pseudo_inverse(rank: int) -> None:
    g = rng(6)
    k = g.normal(size=(10, rank)) @ g.normal(size=(rank, 10))
    fit = fit_least_squares(decompose_asymmetric(k), LABELS, regularisation=0.0)
    assert fit.coefficients == pytest.approx(np.linalg.pinv(k, rcond=1e-10) @ LABELS, rel=1e-6)
    assert fit.rank == rank
    assert fit.minimum_norm is (rank < 10)
    ridge = fit_least_squares(decompose_asymmetric(k), LABELS, regularisation=1e-3)
    assert (ridge.rank, ridge.minimum_norm) == (10, False)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "gamma: expected a finite number > 0"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": INF}, "gamma"),
        ({"labels": np.arange(10) % 2}, r"-1 and \+1"),
        ({"labels": LABELS[:9]}, "10 labels"),
        ({"scale": 10.0}, "missing"),
        ({"scale": 10.0, "pretrained": np.ones(9)}, "expected shape"),
    ],
)
def test_requests_that_are_refused(options: dict[str, object], message: str) -> None:
    chosen = {"labels": LABELS, "gamma": 1.0, **options}
    with pytest.raises(UserError, match=message):
        fit_asymmetric(decompose_asymmetric(kernel(10)), **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [np.ones((3, 4)), np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_kernels_that_are_refused(k: np.ndarray) -> None:
    with pytest.raises(UserError, match="kernel"):
        decompose_asymmetric(k)


def test_strengths_that_are_refused() -> None:
    with pytest.raises(UserError, match="regularisation"):
        decompose_asymmetric(kernel(4), -0.1)
    with pytest.raises(UserError, match="regularisation"):
        fit_least_squares(decompose_asymmetric(kernel(10)), LABELS, regularisation=-1.0)
    with pytest.raises(UserError, match="shifted"):
        fit_least_squares(decompose_asymmetric(kernel(10), 0.1), LABELS, regularisation=0.1)

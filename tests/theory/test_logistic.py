"""The logistic fit against scikit-learn on explicit features, finite differences and its own optimality."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from foretaste.errors import UserError
from foretaste.theory import logistic
from foretaste.theory.layout import margin_kernel
from foretaste.theory.logistic import LogisticFit, fit_logistic, hessian, objective
from foretaste.theory.predictor import classify, predict
from foretaste.theory.regression import decompose


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def binary(n: int = 24, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels -1 and +1 with some noise, outputs of a pre-trained model."""
    g = rng(seed)
    x = g.normal(size=(n, width)) * np.logspace(0, -2, width)
    return x, np.where(x[:, 0] + 0.5 * g.normal(size=n) > 0, 1, -1), g.normal(size=n)


def blocks(n: int = 15, classes: int = 3, width: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with features of their own for each output, shape (n, classes, width)."""
    g = rng(1)
    return g.normal(size=(n, classes, width)), g.integers(0, classes, n), 2 * g.normal(size=(n, classes))


def gram(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.tensordot(rows, columns, axes=(-1, -1))


# --- objective, gradient, curvature --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("features", [binary, blocks])
def test_gradient_and_curvature_by_differences(features: object, seed: int) -> None:
    x, y, offset = features()  # type: ignore[operator]
    u = rng(seed).normal(size=x.shape[-1])
    error = check_grad(
        lambda w: objective(w, x, offset, y, 0.3)[0], lambda w: objective(w, x, offset, y, 0.3)[1], u
    )
    scale = np.linalg.norm(objective(u, x, offset, y, 0.3)[1])
    # Forward differences with a step of 1.5e-8: half the step times the curvature, per coordinate.
    second = hessian(u, x, offset, 0.3)
    assert error < 1.5e-8 * np.linalg.norm(second) + 1e-6 * max(1.0, scale)
    step = 1e-5
    columns = [
        (objective(u + e, x, offset, y, 0.3)[1] - objective(u - e, x, offset, y, 0.3)[1]) / (2 * step)
        for e in step * np.eye(u.size)
    ]
    assert second == pytest.approx(np.array(columns), rel=1e-6, abs=1e-7)


def test_objective_by_hand() -> None:
    x, y, offset = binary()
    u = rng(2).normal(size=x.shape[1])
    by_hand = -np.sum(np.log(expit(y * (offset + x @ u)))) + 0.15 * np.sum(u**2)
    assert objective(u, x, offset, y, 0.3)[0] == pytest.approx(by_hand)
    x, y, offset = blocks()
    u = rng(2).normal(size=x.shape[2])
    p = softmax(offset + x @ u, axis=1)
    by_hand = -sum(np.log(p[i, c]) for i, c in enumerate(y)) + 0.15 * np.sum(u**2)
    assert objective(u, x, offset, y, 0.3)[0] == pytest.approx(by_hand)


def test_small_losses_keep_their_digits() -> None:
    """A label that leads by 60 has the loss e^-60, which log(sum exp) - score would round to 0."""
    none = np.zeros((1, 2, 1))
    assert objective(np.zeros(1), none, np.array([[60.0, 0.0]]), np.array([0]), 1.0)[0] == pytest.approx(
        np.exp(-60), rel=1e-12
    )
    assert objective(np.zeros(1), none[:, 0], np.array([60.0]), np.array([1]), 1.0)[0] == pytest.approx(
        np.exp(-60), rel=1e-12
    )


# --- against scikit-learn ------------------------------------------------------------------------


@pytest.mark.parametrize("regularisation", [1e-3, 1e-2, 0.1, 1.0])
def test_binary_fit_is_scikit_learn_on_features(regularisation: float) -> None:
    x, y, _ = binary()
    z = rng(9).normal(size=(7, x.shape[1]))
    fit = fit_logistic(decompose(gram(x, x)), y, regularisation=regularisation)
    other = LogisticRegression(
        C=1 / fit.lam, fit_intercept=False, tol=1e-12, solver="newton-cholesky", max_iter=1000
    ).fit(x, y)
    assert x.T @ fit.coefficients == pytest.approx(other.coef_[0], rel=1e-6, abs=1e-8)
    assert predict(fit, gram(z, x)) == pytest.approx(other.decision_function(z), rel=1e-6, abs=1e-8)
    assert classify(fit, gram(z, x)).tolist() == other.predict(z).tolist()


@pytest.mark.parametrize("regularisation", [1e-3, 0.1])
def test_multinomial_fit_is_scikit_learn_on_features(regularisation: float) -> None:
    """One weight vector for each class is the kernel K (x) I_C."""
    g = rng(4)
    x, z, y = g.normal(size=(20, 5)), g.normal(size=(6, 5)), np.arange(20) % 3
    k = np.einsum("ij,cd->icjd", x @ x.T, np.eye(3))
    fit = fit_logistic(decompose(k), y, regularisation=regularisation)
    other = LogisticRegression(
        C=1 / fit.lam, fit_intercept=False, tol=1e-12, solver="newton-cholesky", max_iter=1000
    ).fit(x, y)
    scores = predict(fit, np.einsum("ij,cd->icjd", z @ x.T, np.eye(3)))
    assert scores == pytest.approx(other.decision_function(z), rel=1e-5, abs=1e-7)


# --- other independent ways ----------------------------------------------------------------------


@pytest.mark.parametrize("regularisation", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("with_offset", [True, False])
def test_optimality_in_the_coefficients(regularisation: float, with_offset: bool) -> None:
    """The gradient with respect to a, K (p - e_y + lam a), vanishes, with f_PT in p; K is singular here."""
    x, y, offset = blocks()
    k = gram(x, x)
    given_offset = offset if with_offset else None
    fit = fit_logistic(decompose(k), y, regularisation=regularisation, pretrained=given_offset)
    p = softmax(predict(fit, k, given_offset), axis=1)
    slope = p - np.eye(3)[y] + fit.lam * fit.coefficients
    assert np.abs(np.tensordot(k, slope, axes=2)).max() < 1e-7 * np.linalg.norm(x) ** 2
    assert fit.uses_pretrained is with_offset
    assert fit.gradient_norm <= 1e-10 * np.sqrt(y.size * 3)


def test_offset_against_a_plain_minimisation_in_the_space_of_features() -> None:
    x, y, offset = binary()
    fit = fit_logistic(decompose(gram(x, x)), y, regularisation=0.05, pretrained=offset)

    def loss(w: np.ndarray) -> float:
        return float(-np.log(expit(y * (offset + x @ w))).sum() + 0.5 * fit.lam * w @ w)

    other = minimize(loss, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-6})
    assert fit.objective == pytest.approx(other.fun, rel=1e-9)
    assert x.T @ fit.coefficients == pytest.approx(other.x, abs=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.1, 1.0]), st.floats(1e-4, 1.0))
def test_no_other_function_is_better(seed: int, regularisation: float, size: float) -> None:
    x, y, offset = blocks()
    k = gram(x, x)
    fit = fit_logistic(decompose(k), y, regularisation=regularisation, pretrained=offset)

    def value(a: np.ndarray) -> float:
        h = np.tensordot(k, a, axes=2)
        p = softmax(offset + h, axis=1)
        return float(-np.log(p[np.arange(y.size), y]).sum() + 0.5 * fit.lam * np.sum(a * h))

    assert fit.objective == pytest.approx(value(fit.coefficients), rel=1e-8)
    step = size * rng(seed).normal(size=fit.coefficients.shape) / np.linalg.norm(k.reshape(45, 45), 2)
    assert value(fit.coefficients + step) >= fit.objective - 1e-10


def test_two_logits_are_the_margin() -> None:
    """Only f_1 - f_0 enters the loss, so the penalty removes every other direction."""
    x, _, offset = blocks(classes=2)
    y = np.arange(15) % 2
    z, shift = rng(8).normal(size=(4, 2, 8)), rng(7).normal(size=(4, 2))
    both = fit_logistic(decompose(gram(x, x)), y, regularisation=0.1, pretrained=offset)
    margin = decompose(margin_kernel(gram(x, x)))
    one = fit_logistic(
        margin, 2 * y - 1, regularisation=both.lam / margin.norm, pretrained=offset[:, 1] - offset[:, 0]
    )
    logits = predict(both, gram(z, x), shift)
    scores = predict(one, margin_kernel(gram(z, x)), shift[:, 1] - shift[:, 0])
    assert logits[:, 1] - logits[:, 0] == pytest.approx(scores, rel=1e-7, abs=1e-8)
    assert both.objective == pytest.approx(one.objective)


def test_strong_regularisation_is_one_gradient_step() -> None:
    """lam -> inf: a = (e_y - p_PT) / lam, up to a relative 1 / regularisation."""
    x, y, offset = blocks()
    k = gram(x, x)
    fit = fit_logistic(decompose(k), y, regularisation=1e4, pretrained=offset)
    step = (np.eye(3)[y] - softmax(offset, axis=1)) / fit.lam
    kernel_part = predict(fit, k, offset) - offset
    expected = np.tensordot(k, step, axes=2)
    assert np.linalg.norm(kernel_part - expected) < 1e-4 * np.linalg.norm(expected)


def test_one_constant_on_all_logits_changes_nothing() -> None:
    x, y, offset = blocks()
    d = decompose(gram(x, x))
    base = fit_logistic(d, y, regularisation=0.1, pretrained=offset)
    moved = fit_logistic(d, y, regularisation=0.1, pretrained=offset + rng(3).normal(size=(15, 1)))
    assert moved.coefficients == pytest.approx(base.coefficients, abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_offsets_stay_finite(sign: int) -> None:
    x, y, _ = binary()
    fit = fit_logistic(decompose(gram(x, x)), y, regularisation=0.01, pretrained=sign * 1e4 * y)
    assert np.isfinite(fit.objective)
    if sign == 1:  # nothing is left to learn
        assert np.abs(fit.coefficients).max() < 1e-12


# --- what is refused -----------------------------------------------------------------------------


def fitted(**options: object) -> LogisticFit:
    x, y, _ = binary()
    chosen = {"labels": y, "regularisation": 0.1, **options}
    return fit_logistic(decompose(gram(x, x)), **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularisation": 0.0}, "finite number >= 1e-06"),
        ({"regularisation": 0.9e-6}, "finite number >= 1e-06"),
        ({"regularisation": np.nan}, "finite number >= 1e-06"),
        ({"labels": np.arange(24) % 2}, r"-1 and \+1"),
        ({"labels": np.ones((2, 24))}, "one vector"),
        ({"labels": np.ones(23)}, "24 labels"),
        ({"pretrained": np.ones(23)}, "expected shape"),
        ({"pretrained": np.ones((2, 24))}, "expected shape"),
        ({"pretrained": np.full(24, np.inf)}, "infinite"),
    ],
)
def test_requests_that_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted(**options)


def test_a_fit_that_is_not_converged_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "POLISHES", 0)
    monkeypatch.setattr(logistic, "ACCURACY", 0.0)
    with pytest.raises(UserError, match="larger regularisation"):
        fitted()


@pytest.mark.parametrize("regularisation", [logistic.LEAST, 1e-5, 1e-4])
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_regularisations_converge(regularisation: float, seed: int) -> None:
    """Separable classes, where the scores grow without bound as the regularisation falls."""
    g = rng(seed)
    x, y = g.normal(size=(20, 3, 80)), np.arange(20) % 3
    offset = 3 * g.normal(size=(20, 3))
    fit = fit_logistic(decompose(gram(x, x)), y, regularisation=regularisation, pretrained=offset)
    assert fit.gradient_norm / regularisation <= logistic.ACCURACY * np.sqrt(60)
    assert classify(fit, gram(x, x), offset).tolist() == y.tolist()

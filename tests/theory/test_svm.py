"""The support-vector classifier against SVC on explicit features and against its own optimality."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import SVC

from foretaste.errors import UserError
from foretaste.theory.svm import classify_svm, fit_svm


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def task(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g = rng(seed)
    y = np.arange(30) % classes
    centres = 1.5 * g.normal(size=(classes, 4))
    return centres[y] + g.normal(size=(30, 4)), centres[np.arange(40) % classes] + g.normal(size=(40, 4)), y


@pytest.mark.parametrize("regularisation", [1e-3, 1e-2, 0.1, 1.0])
def test_binary_against_svc_on_features(regularisation: float) -> None:
    x, z, y = task(2)
    fit = fit_svm(x @ x.T, 2 * y - 1, regularisation=regularisation)
    other = SVC(kernel="linear", C=1 / (regularisation * fit.norm), tol=1e-8).fit(x, 2 * y - 1)
    assert classify_svm(fit, z @ x.T).tolist() == other.predict(z).tolist()
    scores = z @ x.T / fit.norm @ fit.dual[0] + fit.intercepts[0]
    # Violations up to tol leave a duality gap of at most N C tol, and |w - w*|^2 / 2 is at most the gap.
    # Twice, for two machines; a score moves by |z| times that, the intercept by |x| times that.
    longest = np.linalg.norm(z, axis=1).max() + np.linalg.norm(x, axis=1).max()
    bound = 2 * np.sqrt(2 * 30 / regularisation * 1e-8) * longest / np.sqrt(fit.norm)
    assert scores == pytest.approx(other.decision_function(z), abs=bound)


@pytest.mark.parametrize("regularisation", [1e-3, 1e-2, 0.1])
def test_multi_class_against_svc_on_features(regularisation: float) -> None:
    """The trace of features phi_ic is the linear kernel of their concatenation."""
    g = rng(2)
    x, z = g.normal(size=(24, 3, 4)), g.normal(size=(20, 3, 4))
    y = np.argmax(x.sum(axis=2), axis=1)
    fit = fit_svm(np.einsum("ica,jda->icjd", x, x), y, regularisation=regularisation)
    flat_x, flat_z = x.reshape(24, 12), z.reshape(20, 12)
    other = SVC(kernel="linear", C=1 / (regularisation * fit.norm), tol=1e-8).fit(flat_x, y)
    assert fit.norm == pytest.approx(np.linalg.norm(flat_x @ flat_x.T, 2))
    predicted = classify_svm(fit, np.einsum("ica,jda->icjd", z, x))
    assert predicted.tolist() == other.predict(flat_z).tolist()
    assert len(set(predicted.tolist())) == 3


@pytest.mark.parametrize("regularisation", [1e-2, 0.1, 1.0])
def test_optimality_conditions(regularisation: float) -> None:
    """0 <= y d <= C, sum d = 0, and each row's margin agrees with where its coefficient lies."""
    x, _, y = task(2, seed=5)
    y = 2 * y - 1
    fit = fit_svm(x @ x.T, y, regularisation=regularisation)
    bound, d = 1 / regularisation, fit.dual[0]
    weight = y * d
    assert abs(d.sum()) < 1e-6 * bound
    assert weight.min() >= 0
    assert weight.max() <= bound * (1 + 1e-12)
    margin = y * (x @ x.T / fit.norm @ d + fit.intercepts[0])
    assert np.all(margin[weight == 0] >= 1 - 1e-6)
    assert np.all(margin[weight >= bound * (1 - 1e-9)] <= 1 + 1e-6)
    inside = (weight > 0) & (weight < bound * (1 - 1e-9))
    assert margin[inside] == pytest.approx(1.0, abs=1e-6)
    assert set(fit.support.tolist()) == set(np.flatnonzero(weight).tolist())


def test_the_unit_of_the_kernel_does_not_matter() -> None:
    x, z, y = task(3)
    k, cross = np.einsum("ij,cd->icjd", x @ x.T, np.eye(3)), np.einsum("ij,cd->icjd", z @ x.T, np.eye(3))
    small, big = (fit_svm(c * k, y, regularisation=0.01) for c in (1.0, 1e6))
    assert big.dual == pytest.approx(small.dual, abs=1e-5)
    assert classify_svm(big, 1e6 * cross).tolist() == classify_svm(small, cross).tolist()


@pytest.mark.parametrize(
    ("kernel", "labels", "options", "message"),
    [
        (np.eye(4), [1, 1, 1, 1], {}, "two classes"),
        (np.eye(4), [[1, -1, 1, -1]], {}, "one vector"),
        (np.eye(4), [0, 1, 0, 1], {}, r"-1 and \+1"),
        (np.eye(4), [1, -1, 1, -1], {"regularisation": 0.0}, "> 0"),
        (np.eye(4) + np.eye(4, k=1), [1, -1, 1, -1], {}, "not symmetric"),
        (-np.eye(4), [1, -1, 1, -1], {}, "indefinite"),
        (np.full((4, 4), np.nan), [1, -1, 1, -1], {}, "NaN"),
        (np.eye(4)[:3], [1, -1, 1, -1], {}, "expected shape"),
    ],
)
def test_requests_that_are_refused(
    kernel: np.ndarray, labels: object, options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit_svm(kernel, labels, **{"regularisation": 0.1, **options})  # type: ignore[arg-type]


def test_asymmetry_between_logits_is_refused_though_the_trace_hides_it() -> None:
    k = np.einsum("ij,cd->icjd", np.eye(4), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(UserError, match="not symmetric"):
        fit_svm(k, [0, 1, 0, 1], regularisation=0.1)


def test_cross_kernels_that_are_refused() -> None:
    fit = fit_svm(np.eye(4), [1, -1, 1, -1], regularisation=0.1)
    with pytest.raises(UserError, match=r"\(M, 4\)"):
        classify_svm(fit, np.ones((2, 3)))

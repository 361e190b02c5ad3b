"""The refitted head against scikit-learn's ridge, literal leave-one-out, and the flow from its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from foretaste.errors import UserError
from foretaste.theory.certificates import certified_accuracy, certify
from foretaste.theory.flow import flow_filter, outputs_at, predictor_at, respond
from foretaste.theory.layout import one_hot
from foretaste.theory.regression import decompose
from foretaste.theory.ridge_head import STRENGTHS, head_smoother, refitted

N, M, D = 24, 15, 9


def rows_of(seed: int, d: int = D) -> tuple[Any, Any]:
    g = np.random.default_rng(seed)
    return g.normal(size=(N, d)) + 2.0, g.normal(size=(M, d)) + 2.0


def strength_of(x: Any, y: Any, intercept: bool) -> float:
    """lam by literally leaving each row out, the mean taken with it as the formula does."""
    a = x - x.mean(0) if intercept else x
    unit = np.trace(a @ a.T) / len(x)
    errors = []
    for lam in STRENGTHS * unit:
        error = 0.0
        for i in range(len(x)):
            rest = np.delete(np.arange(len(x)), i)
            # The penalised least squares on the rest with the whole set's centring is Sherman-Morrison's.
            design = np.column_stack([np.ones(len(x)), a]) if intercept else a
            penalty = lam * np.eye(design.shape[1])
            if intercept:
                penalty[0, 0] = 0.0
            w = np.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ y[rest])
            error += float(((y[i] - design[i] @ w) ** 2).sum())
        errors.append(error)
    return float(STRENGTHS[int(np.argmin(errors))] * unit)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("d", [D, 60], ids=["fewer features than rows", "more"])
@pytest.mark.parametrize("c", [None, 3])
def test_it_is_ridge_regression_at_the_best_strength(intercept: bool, d: int, c: int | None) -> None:
    x, others = rows_of(0, d)
    g = np.random.default_rng(1)
    clean = np.eye(3)[g.integers(0, 3, N)] if c else np.sign(g.normal(size=N) + x[:, 0] - 2.0)
    smoother = head_smoother(x, others, clean, intercept=intercept)
    lam = strength_of(x, clean.reshape(N, -1), intercept)
    for _ in range(3):  # any labels, at the strength of the clean ones
        y = g.normal(size=clean.shape)
        fit = Ridge(alpha=lam, fit_intercept=intercept).fit(x, y)
        assert smoother @ y == pytest.approx(fit.predict(others), abs=1e-9)


def test_equal_rows_leave_the_mean_label() -> None:
    x = np.full((N, D), 3.3)
    y = np.arange(N, dtype=float)
    assert head_smoother(x, x[:2], y) @ y == pytest.approx(y.mean())
    assert (head_smoother(x, x[:2], y, intercept=True) == 1 / N).all()


@pytest.mark.parametrize("c", [1, 3])
def test_the_predictor_is_the_flow_from_the_refitted_head(c: int) -> None:
    """For any labels: fit the head to them, start there, follow the flow."""
    g = np.random.default_rng(2)
    x, others = rows_of(3)
    wide = g.normal(size=(N + M, c, 40))
    gram = np.einsum("icp,jdp->icjd", wide, wide)
    kernel, cross = (gram[:N, :, :N], gram[N:, :, :N])
    if c == 1:
        kernel, cross = kernel.reshape(N, N), cross.reshape(M, N)
    d = decompose(kernel)
    phi = flow_filter(d, time=0.3)
    labels = g.integers(0, max(c, 2), N)
    clean = one_hot(labels if c > 1 else 2 * labels - 1, d.layout)
    inner, outer = head_smoother(x, x, clean), head_smoother(x, others, clean)
    predictor = refitted(predictor_at(d, cross, phi), inner, outer)
    for _ in range(5):
        other = g.integers(0, max(c, 2), N)
        y = one_hot(other if c > 1 else 2 * other - 1, d.layout)
        expected = outputs_at(d, cross, phi, y, pretrained=inner @ y, pretrained_test=outer @ y)
        assert respond(predictor, y) == pytest.approx(expected, abs=1e-9)


def test_a_held_head_certifies_what_random_flips_break() -> None:
    """What the refitted head is for: here the head decides, and hardly any training follows."""
    g = np.random.default_rng(4)
    x, others = rows_of(5, 3)
    w = g.normal(size=3)
    labels, truth = np.sign((x - 2) @ w).astype(int), np.sign((others - 2) @ w).astype(int)
    wide = g.normal(size=(N + M, 40))
    d = decompose(wide[:N] @ wide[:N].T)
    phi, cross = flow_filter(d, time=1e-3), wide[N:] @ wide[:N].T
    inner, outer = head_smoother(x, x, labels), head_smoother(x, others, labels)
    held = predictor_at(d, cross, phi, pretrained=inner @ labels, pretrained_test=outer @ labels)
    follows = refitted(predictor_at(d, cross, phi), inner, outer)
    flips = 8
    promised = certified_accuracy(certify(held, labels), truth, [flips])[0]
    certified = certified_accuracy(certify(follows, labels), truth, [flips])[0]
    reached = []
    for _ in range(200):
        y = labels.astype(float)
        y[g.choice(N, flips, replace=False)] *= -1
        start, start_others = inner @ y, outer @ y
        after = outputs_at(d, cross, phi, y, pretrained=start, pretrained_test=start_others)
        reached.append(np.mean(np.sign(after) == truth))
    assert certified <= min(reached) < promised


def test_what_does_not_fit_is_refused() -> None:
    x, others = rows_of(6)
    with pytest.raises(UserError, match="ridge head: expected features"):
        head_smoother(x, others[:, :2], np.ones(N))
    with pytest.raises(UserError, match="ridge head: expected features"):
        head_smoother(x, others, np.ones(N - 1))
    d = decompose(x @ x.T)
    predictor = predictor_at(d, others @ x.T, flow_filter(d, time=0.1))
    with pytest.raises(UserError, match="expected a head of shapes"):
        refitted(predictor, np.eye(N), np.eye(N))

"""The criteria of kernel behaviour, at the cases that the paper's form lets through."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from foretaste.errors import UserError
from foretaste.theory import criteria as cr


def matrix(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(6, 4))
    return x @ x.T


def test_solves_at_the_border() -> None:
    assert cr.solves(0.9, 1.0)
    assert not cr.solves(0.8999, 1.0)
    assert cr.solves(0.95, 0.9)


def test_linearisation_share_by_hand() -> None:
    assert cr.linearisation_share(0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert cr.linearisation_share(0.4, 0.5, 0.9) == pytest.approx(-0.25)
    assert math.isnan(cr.linearisation_share(0.4, 0.5, 0.5))
    # Both lost: the bare ratio would be 3 and look like a pass.
    assert math.isnan(cr.linearisation_share(0.2, 0.5, 0.4))


@pytest.mark.parametrize(
    ("factor", "distance", "alignment", "scaled"),
    [(2.9, 1.9, 1.0, 0.0), (-0.9, 1.9, -1.0, 1.0), (1.0, 0.0, 1.0, 0.0)],
)
def test_what_the_paper_passes(factor: float, distance: float, alignment: float, scaled: float) -> None:
    k = matrix(0)
    result = cr.fixed_features(k, factor * k)
    assert result.paper_distance == pytest.approx(distance)
    assert result.paper_holds
    assert result.alignment == pytest.approx(alignment)
    assert result.scaled_distance == pytest.approx(scaled, abs=1e-12)
    assert result.best_scale == pytest.approx(max(factor, 0.0))


def test_one_small_entry_fails_a_kernel_that_hardly_moved() -> None:
    before = np.array([[1.0, 1e-6], [1e-6, 1.0]])
    after = np.array([[1.0, 1e-5], [1e-5, 1.0]])
    result = cr.fixed_features(before, after)
    assert result.paper_distance == pytest.approx(4.5)
    assert not result.paper_holds
    assert result.alignment > 1 - 1e-9


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_best_scale_by_search(first: int, second: int) -> None:
    before, after = matrix(first), matrix(second)
    result = cr.fixed_features(before, after)
    found = minimize_scalar(
        lambda c: np.linalg.norm(after - c * before) ** 2,
        bounds=(0, 100),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert result.best_scale == pytest.approx(found.x, abs=1e-6)
    assert result.scaled_distance == pytest.approx(
        np.linalg.norm(after - result.best_scale * before) / np.linalg.norm(after), abs=1e-12
    )
    assert result.scaled_distance**2 + max(result.alignment, 0.0) ** 2 == pytest.approx(1.0)
    relative = [abs(b - a) / abs(a) for a, b in zip(before.flat, after.flat, strict=True)]
    assert result.paper_distance == pytest.approx(float(np.mean(relative)))


def test_zero_entries_and_zero_kernels() -> None:
    assert cr.fixed_features([[1.0, 0.0]], [[1.0, 0.0]]).paper_distance == 0.0
    assert cr.fixed_features([[1.0, 0.0]], [[1.0, 0.1]]).paper_distance == math.inf
    nothing = cr.fixed_features(np.zeros((2, 2)), np.eye(2))
    assert math.isnan(nothing.alignment)
    assert math.isnan(nothing.scaled_distance)
    assert not nothing.paper_holds
    assert math.isnan(cr.fixed_features(np.eye(2), np.zeros((2, 2))).alignment)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="one shape"):
        cr.fixed_features(np.eye(2), np.eye(3))
    with pytest.raises(UserError, match="one shape"):
        cr.fixed_features(np.zeros((0, 0)), np.zeros((0, 0)))
    with pytest.raises(UserError, match="NaN"):
        cr.fixed_features(np.eye(2), np.full((2, 2), np.nan))
    with pytest.raises(UserError, match="kernel"):
        cr.solves(-0.1, 1.0)
    with pytest.raises(UserError, match="fine_tuned"):
        cr.linearisation_share(0.5, 0.5, np.nan)

"""Norms of differences of updates: against numpy on the matrices, and by what each norm is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.theory import update_distance as ud

EXACT = 1e-10  # a few hundred float64 roundings, relative


def norms(matrix: np.ndarray) -> ud.Distance:
    """By numpy's own norms of the whole matrix."""
    return ud.Distance(
        frobenius=float(np.linalg.norm(matrix)),
        spectral=float(np.linalg.norm(matrix, 2)),
        nuclear=float(np.linalg.norm(matrix, "nuc")),
        max_abs=float(np.abs(matrix).max()),
        rank=int(np.linalg.matrix_rank(matrix, rtol=max(matrix.shape) * ud.ROUNDING)),
    )


def assert_same(found: ud.Distance, wanted: ud.Distance, scale: float = 0.0) -> None:
    for name in ("frobenius", "spectral", "nuclear", "max_abs"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=EXACT, abs=EXACT * scale), (
            name
        )
    assert found.rank == wanted.rank


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 9), (9, 1)])
def test_of_matrix_is_what_numpy_says(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    assert_same(ud.of_matrix(matrix), norms(matrix))


def test_rows_that_do_not_move_change_nothing() -> None:
    matrix = np.random.default_rng(1).normal(size=(4, 3))
    padded = np.zeros((50, 3))
    padded[[3, 9, 17, 40]] = matrix
    assert_same(ud.of_matrix(padded), ud.of_matrix(matrix))


def test_of_a_vector() -> None:
    found = ud.of_matrix([3.0, 0.0, -4.0])
    assert (found.frobenius, found.spectral, found.nuclear, found.max_abs, found.rank) == (5, 5, 5, 4, 1)
    assert found.stable_rank == 1


def test_of_nothing_that_moved() -> None:
    for found in (ud.of_matrix(np.zeros((3, 4))), ud.of_product(np.zeros((3, 2)), np.ones((2, 4)))):
        assert (found.frobenius, found.spectral, found.nuclear, found.max_abs, found.rank) == (0, 0, 0, 0, 0)
        assert math.isnan(found.stable_rank)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 9))
def test_of_product_is_that_of_the_matrix(m: int, n: int, r: int, seed: int) -> None:
    """Also where r is above m or n, and the product has full rank."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(m, r)), rng.normal(size=(r, n))
    found = ud.of_product(left, right)
    assert_same(found, norms(left @ right))
    assert found.rank <= min(m, n, r)


def test_the_largest_entry_is_found_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=(23, 3)), rng.normal(size=(3, 11))
    left[-1] *= 9  # in the last, short piece
    monkeypatch.setattr(ud, "CHUNK_ENTRIES", 5 * 11)
    assert ud.of_product(left, right).max_abs == pytest.approx(np.abs(left @ right).max(), rel=EXACT)


def test_the_change_of_a_product_has_twice_the_rank() -> None:
    rng = np.random.default_rng(3)
    b, a, b0, a0 = (rng.normal(size=shape) for shape in ((20, 3), (3, 15)) * 2)
    left, right = ud.product_change(b, a, b0, a0)
    assert (left.shape, right.shape) == ((20, 6), (6, 15))
    assert_same(ud.of_product(left, right), norms(b @ a - b0 @ a0))
    assert ud.of_product(left, right).rank == 6


def test_the_change_of_a_large_product_does_not_cancel() -> None:
    """B0 A0 is 10^8 times the change: subtracting the products would leave eight digits fewer."""
    rng = np.random.default_rng(4)
    b0, a0 = rng.normal(size=(30, 4)), rng.normal(size=(4, 25))
    step = 2.0**-30
    b, a = b0 + step * np.round(rng.normal(size=b0.shape) * 8), a0
    exact = norms((b - b0) @ a0)
    assert_same(ud.of_product(*ud.product_change(b, a, b0, a0)), exact)
    naive = np.linalg.norm(b @ a - b0 @ a0)
    assert abs(naive / exact.frobenius - 1) > EXACT


def test_together_is_the_block_diagonal_matrix() -> None:
    rng = np.random.default_rng(5)
    blocks = [rng.normal(size=shape) for shape in ((4, 3), (2, 6), (5, 5))]
    whole = np.zeros((11, 14))
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    found = ud.together([ud.of_matrix(block) for block in blocks])
    assert_same(found, norms(whole))
    assert found.stable_rank == pytest.approx((found.frobenius / found.spectral) ** 2)
    assert ud.together([]) == ud.Distance(0.0, 0.0, 0.0, 0.0, 0)


@given(st.integers(0, 20))
def test_order_of_the_norms(seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(6, 4))
    found = ud.of_matrix(matrix)
    assert found.max_abs <= found.spectral <= found.frobenius <= found.nuclear
    assert found.nuclear <= math.sqrt(found.rank) * found.frobenius * (1 + EXACT)
    assert 1 <= found.stable_rank <= found.rank


def test_mean_over_steps_is_exact_when_all_were_measured() -> None:
    values = [0.0, 3.0, 1.0, 5.0]
    assert ud.mean_over_steps([0, 1, 2, 3], values) == pytest.approx(3.0)  # step 0 does not count


def test_mean_over_steps_is_linear_between() -> None:
    steps = [0, 1, 2, 4, 8]
    assert ud.mean_over_steps(steps, [2.0 * t for t in steps]) == pytest.approx(np.mean(np.arange(2, 18, 2)))
    assert math.isnan(ud.mean_over_steps([0, 1], [0.0, math.nan]))


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"expected shape \(m, n\)"):
        ud.of_matrix(np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match="1 of 4 values are NaN"):
        ud.of_matrix([[1.0, math.nan], [0.0, 0.0]])
    with pytest.raises(UserError, match=r"\(3, 2\) and \(3, 2\)"):
        ud.of_product(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(UserError, match="before"):
        ud.product_change(np.ones((3, 2)), np.ones((2, 4)), np.ones((3, 1)), np.ones((1, 4)))
    for steps in ([0], [1, 2], [0, 2, 2]):
        with pytest.raises(UserError, match="ascend from 0"):
            ud.mean_over_steps(steps, [0.0] * len(steps))
    with pytest.raises(UserError, match="2 steps and 1"):
        ud.mean_over_steps([0, 1], [0.0])

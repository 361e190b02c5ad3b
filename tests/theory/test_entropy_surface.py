"""Points of the TTR paper's Figure 3: formulas against draws and against matrices written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.theory import entropy_surface as surface
from foretaste.theory.entropy_surface import DEFAULT_K, Point, formulas, largest_gap, of_kernels, sampled


def table(points: list[Point]) -> dict[tuple[str, str], float]:
    return {(p.form, p.order): p.value for p in points}


def test_printed_is_the_scripts_formula() -> None:
    points = surface.printed()
    assert len({(p.r, p.k) for p in points}) == len(points) == surface.STEPS**2
    for p in points:
        assert p.value == pytest.approx(1e10 * math.log(p.k * p.r), rel=1e-12, abs=1)


def test_grids_have_the_ends_of_the_script() -> None:
    assert (surface.ranks()[0], surface.ranks()[-1]) == (4, 256)
    assert (surface.variances()[0], surface.variances()[-1]) == pytest.approx((0.01, 1.5))
    assert all(a < b for a, b in zip(surface.ranks(), surface.ranks()[1:], strict=False))


def test_formulas_at_one_point() -> None:
    n, r, k = 1024, 64, 0.5
    gamma = r / n
    found = table(formulas(n, [r], [k]))
    edge = (1 + math.sqrt(gamma)) ** 2
    assert found["normalised", "1"] == pytest.approx(math.log(r) - gamma / 2, rel=1e-12)
    assert found["normalised", "2"] == pytest.approx(math.log(r / (1 + gamma)), rel=1e-10)
    assert found["normalised", "inf"] == pytest.approx(math.log(r / edge), rel=1e-12)
    assert found["raw", "1"] == pytest.approx(-r * k * (math.log(k) + gamma / 2), rel=1e-12)
    assert found["raw", "2"] == pytest.approx(-math.log(r * k**2 * (1 + gamma)), rel=1e-10)
    assert found["raw", "inf"] == pytest.approx(-math.log(k * edge), rel=1e-12)
    for order in ("0.5",):
        shift = found["raw", order] - found["normalised", order]
        # sum lambda^a = (sum lambda)^a sum p^a: raw = normalised + a / (1 - a) log(r k).
        assert shift == pytest.approx(math.log(r * k), rel=1e-10)


def test_draws_meet_the_formulas() -> None:
    """theory.md, item 6: normalised within .005 (inf .06) for r >= 32, whatever the draw, at n = 1024."""
    at, ks = [32, 128, 512], [DEFAULT_K]
    points = formulas(1024, at, ks) + sampled(1024, at, ks, 3, np.random.default_rng(0))
    gaps = largest_gap(points)
    assert set(gaps) == {f"{form} {order}" for form in ("raw", "normalised") for order in surface.ORDERS}
    assert max(gaps[f"normalised {order}"] for order in ("0.5", "1", "2")) < 0.005
    assert gaps["normalised inf"] < 0.06
    assert all(gap > 0 for gap in gaps.values())


def test_variance_moves_the_raw_ones_only() -> None:
    rng = np.random.default_rng(1)
    points = sampled(300, [8], [0.01, 2.0], 1, rng)
    small, large = (table([p for p in points if p.k == k]) for k in (0.01, 2.0))
    for order in surface.ORDERS:
        assert small["normalised", order] == pytest.approx(large["normalised", order], abs=1e-12)
        assert abs(small["raw", order] - large["raw", order]) > 0.1


def test_kernels_by_hand() -> None:
    unit = np.diag([4.0, 2.0, 2.0, 0.0])
    found = table(of_kernels(unit[None], [3], [0.5], examples=2, source="model"))
    # 0.5 * (4, 2, 2) / 2 = (1, .5, .5), which sum to 2: p = (1/2, 1/4, 1/4).
    assert found["normalised", "1"] == pytest.approx(1.5 * math.log(2))
    assert found["normalised", "2"] == pytest.approx(-math.log(3 / 8))
    assert found["raw", "1"] == pytest.approx(math.log(2))
    assert found["raw", "2"] == pytest.approx(-math.log(1.5))
    assert found["raw", "inf"] == pytest.approx(0, abs=1e-15)
    assert found["raw", "0.5"] == pytest.approx(2 * math.log(1 + math.sqrt(2)))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (np.eye(3), "units: expected shape (1, NC, NC), got (3, 3)"),
        (np.ones((2, 3, 3)), "units: expected shape (1, NC, NC), got (2, 3, 3)"),
        (np.zeros((1, 3, 3)), "units: the kernel of rank 4 is zero"),
        (-np.eye(3)[None], "expected values >= 0"),
        (np.full((1, 2, 2), np.nan), "units: 4 of 4 values are NaN"),
    ],
)
def test_refusals(units: np.ndarray, message: str) -> None:
    with pytest.raises(UserError) as caught:
        of_kernels(units, [4], [1.0], examples=3, source="model")
    assert message in str(caught.value)

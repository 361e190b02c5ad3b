"""Gradients of clean and poisoned rows through kernels, against explicit parameters and drawn adapters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.theory import similarity as sim
from foretaste.theory.fisher import cross_entropy_gradient


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Pairs:
    """Explicit Jacobians of N clean rows and their poisoned forms, C outputs (None: a margin)."""

    def __init__(self, n: int, classes: int | None, seed: int = 0, parameters: int = 30) -> None:
        g, middle = rng(seed), () if classes is None else (classes,)
        self.clean = g.normal(size=(n, *middle, parameters))
        self.poisoned = 0.6 * self.clean + g.normal(size=self.clean.shape)
        self.g, self.other = g.normal(size=(n, *middle)), g.normal(size=(n, *middle))
        self.cross, self.own, self.own_poisoned = (
            sim.pair_blocks(np.tensordot(a, b, axes=(-1, -1)))
            for a, b in (
                (self.clean, self.poisoned),
                (self.clean, self.clean),
                (self.poisoned, self.poisoned),
            )
        )

    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss gradients with respect to the parameters, (N, P) each."""
        n = len(self.g)
        flat = [
            np.einsum("ic,icp->ip", g.reshape(n, -1), J.reshape(n, -1, J.shape[-1]))
            for g, J in ((self.g, self.clean), (self.other, self.poisoned))
        ]
        return flat[0], flat[1]


PAIRS = [Pairs(8, None), Pairs(6, 3, seed=1), Pairs(1, 2, seed=2)]
each = pytest.mark.parametrize("pairs", PAIRS, ids=["margin", "C=3", "one pair"])


# --- blocks --------------------------------------------------------------------------------------


@each
def test_blocks_are_products_of_jacobians(pairs: Pairs) -> None:
    for i in range(len(pairs.g)):
        assert pairs.cross[i] == pytest.approx(pairs.clean[i] @ pairs.poisoned[i].T)
        assert pairs.own[i] == pytest.approx(pairs.clean[i] @ pairs.clean[i].T)


# --- Eq. 7 ---------------------------------------------------------------------------------------


@each
def test_m_prime_by_definition(pairs: Pairs) -> None:
    mean = np.mean([np.atleast_2d(block) for block in pairs.cross], axis=0)
    assert sim.m_prime(pairs.cross, "fro") == pytest.approx(math.sqrt(np.sum(mean**2)))
    assert sim.m_prime(pairs.cross, "op") == pytest.approx(np.linalg.svd(mean)[1][0])


@each
@pytest.mark.parametrize("norm", ["fro", "op"])
def test_m_prime_of_unit_jacobians(pairs: Pairs, norm: sim.Norm) -> None:
    lengths = [[np.linalg.norm(J) for J in side] for side in (pairs.clean, pairs.poisoned)]
    clean, poisoned = (
        side / np.reshape(length, (-1, *[1] * (side.ndim - 1)))
        for side, length in zip((pairs.clean, pairs.poisoned), lengths, strict=True)
    )
    unit = sim.pair_blocks(np.tensordot(clean, poisoned, axes=(-1, -1)))
    found = sim.m_prime_cosine(pairs.cross, pairs.own, pairs.own_poisoned, norm)
    assert found == pytest.approx(sim.m_prime(unit, norm))
    assert 0 <= found <= 1
    again = sim.m_prime_cosine(9 * pairs.cross, 9 * pairs.own, 9 * pairs.own_poisoned, norm)
    assert again == pytest.approx(found)
    assert sim.m_prime(9 * pairs.cross, norm) == pytest.approx(9 * sim.m_prime(pairs.cross, norm))


def test_m_prime_does_not_see_a_label_flip() -> None:
    """x~ = x: M' is a number of the clean inputs, and for a margin the cosine form is 1 whatever they are."""
    pairs = PAIRS[0]
    assert sim.m_prime(pairs.own, "fro") == pytest.approx(np.mean(np.sum(pairs.clean**2, axis=1)))
    assert sim.m_prime_cosine(pairs.own, pairs.own, pairs.own, "op") == pytest.approx(1)


def test_a_zero_jacobian_has_no_cosine() -> None:
    assert math.isnan(sim.m_prime_cosine([0.0, 1.0], [0.0, 1.0], [1.0, 1.0], "fro"))


# --- Eq. 16 and 17 -------------------------------------------------------------------------------


@each
def test_inner_products_are_those_of_parameter_gradients(pairs: Pairs) -> None:
    clean, poisoned = pairs.gradients()
    products = np.sum(clean * poisoned, axis=1)
    assert sim.gradient_products(pairs.cross, pairs.g, pairs.other) == pytest.approx(products, rel=1e-10)
    cosines = products / np.linalg.norm(clean, axis=1) / np.linalg.norm(poisoned, axis=1)
    found = sim.pull(pairs.cross, pairs.own, pairs.own_poisoned, pairs.g, pairs.other)
    assert found.mean_abs == pytest.approx(np.mean(np.abs(products)), rel=1e-10)
    assert found.abs_mean == pytest.approx(abs(np.mean(products)), rel=1e-10)
    assert found.mean_abs_cosine == pytest.approx(np.mean(np.abs(cosines)), rel=1e-10)
    assert found.mean_cosine == pytest.approx(np.mean(cosines), rel=1e-10)
    if len(products) > 1:
        assert found.abs_mean < found.mean_abs  # signs differ: the two fields are two things


@given(st.lists(st.floats(-15, 15), min_size=1, max_size=6), st.integers(0, 1000))
def test_a_binary_flip_has_cosine_minus_one(margins: list[float], seed: int) -> None:
    """Eq. 17 at x~ = x: cosine -1 for any kernel, |inner product| = p (1 - p) K(x, x)."""
    f, g = np.array(margins), rng(seed)
    own, y = g.uniform(0.1, 10, size=f.size), g.choice([-1, 1], size=f.size)
    clean, flipped = cross_entropy_gradient(f, y), cross_entropy_gradient(f, -y)
    found = sim.pull(own, own, own, clean, flipped)
    assert found.mean_cosine == pytest.approx(-1, abs=1e-12)
    assert found.mean_abs_cosine == pytest.approx(1, abs=1e-12)
    p = 1 / (1 + np.exp(-f))
    assert found.mean_abs == pytest.approx(np.mean(p * (1 - p) * own), rel=1e-8)
    assert found.abs_mean == pytest.approx(found.mean_abs)
    # And with two logits the same, through a 2 x 2 block.
    J = g.normal(size=(f.size, 2, 5))
    blocks, logits = np.einsum("icp,idp->icd", J, J), np.stack([np.zeros_like(f), f], axis=1)
    two = sim.pull(
        blocks,
        blocks,
        blocks,
        cross_entropy_gradient(logits, (y + 1) // 2),
        cross_entropy_gradient(logits, (1 - y) // 2),
    )
    assert two.mean_cosine == pytest.approx(-1, abs=1e-12)


def test_a_zero_gradient_has_no_cosine() -> None:
    found = sim.pull([1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0])
    assert math.isnan(found.mean_cosine)
    assert math.isnan(found.mean_abs_cosine)
    assert found.mean_abs == 0.5


@each
def test_a_large_inner_product_is_a_small_difference(pairs: Pairs) -> None:
    """|grad L - grad L~|^2 = q + q~ - 2 <.,.>: Eq. 7 has the sign of Eq. 5 reversed."""
    clean, poisoned = pairs.gradients()
    q = sim.gradient_products(pairs.own, pairs.g, pairs.g)
    other = sim.gradient_products(pairs.own_poisoned, pairs.other, pairs.other)
    inner = sim.gradient_products(pairs.cross, pairs.g, pairs.other)
    assert q + other - 2 * inner == pytest.approx(np.sum((clean - poisoned) ** 2, axis=1), rel=1e-9)


# --- Eq. 5 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 2, 3])
@pytest.mark.parametrize("poisoned", [1, 4, 10])
def test_one_step_against_the_parameters(classes: int | None, poisoned: int) -> None:
    """Two steps on all N rows, in parameter space, against the Gram of the rows that differ."""
    n, eta = 10, 0.3
    pairs = Pairs(n, classes, seed=poisoned, parameters=25)
    clean, bad = pairs.gradients()
    chosen = np.sort(rng(poisoned).choice(n, size=poisoned, replace=False))
    data = clean.copy()
    data[chosen] = bad[chosen]
    step, other = -eta * clean.mean(axis=0), -eta * data.mean(axis=0)
    union = np.concatenate([pairs.clean[chosen], pairs.poisoned[chosen]])
    found = sim.one_step_difference(
        np.tensordot(union, union, axes=(-1, -1)),
        pairs.g[chosen],
        pairs.other[chosen],
        learning_rate=eta,
        examples=n,
    )
    assert found == pytest.approx(np.sum((step - other) ** 2), rel=1e-10)


def test_one_step_of_flips_and_of_added_rows() -> None:
    pairs = Pairs(5, 3, seed=7)
    J = pairs.clean[:2]
    twice = np.concatenate([J, J])
    flip = sim.one_step_difference(
        np.tensordot(twice, twice, axes=(-1, -1)), pairs.g[:2], pairs.other[:2], learning_rate=1.0, examples=5
    )
    moved = np.einsum("ic,icp->p", pairs.g[:2] - pairs.other[:2], J) / 5
    assert flip == pytest.approx(moved @ moved, rel=1e-10)
    kernel = np.tensordot(J, J, axes=(-1, -1))
    # Nothing removed: the pull of the added rows alone; the same gradient on the same row is no change.
    added = sim.one_step_difference(kernel, np.zeros((0, 3)), pairs.other[:2], learning_rate=1.0, examples=5)
    pulled = np.einsum("ic,icp->p", pairs.other[:2], J) / 5
    assert added == pytest.approx(pulled @ pulled, rel=1e-10)
    same = sim.one_step_difference(
        np.tensordot(twice, twice, axes=(-1, -1)), pairs.g[:2], pairs.g[:2], learning_rate=1.0, examples=5
    )
    assert 0 <= same < 1e-25


# --- LoRA against full fine-tuning ---------------------------------------------------------------


class Layer:
    """One linear layer, G_i = delta x^T: pair blocks of full fine-tuning and of LoRA at B = 0."""

    n, r, s, k = 64, 8, 1.5, 1 / 3

    def __init__(self, classes: int, pairs: int = 12, seed: int = 0) -> None:
        g = rng(seed)
        self.x = g.normal(size=(pairs, self.n)) + 0.5
        self.z = 0.7 * self.x + 0.7 * g.normal(size=self.x.shape)
        self.delta, self.delta_z = g.normal(size=(2, pairs, classes, 4)) + np.array([0.5])

    def blocks(self, A: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, z = (self.x, self.z) if A is None else (self.s * self.x @ A.T, self.s * self.z @ A.T)
        sides = ((x, self.delta), (z, self.delta_z))
        return tuple(  # type: ignore[return-value]
            np.einsum("icm,idm,i->icd", d, e, np.sum(u * v, axis=1))
            for (u, d), (v, e) in ((sides[0], sides[1]), (sides[0], sides[0]), (sides[1], sides[1]))
        )

    def draw(self, g: np.random.Generator) -> np.ndarray:
        return g.normal(size=(self.r, self.n)) * math.sqrt(self.k / self.n)

    @property
    def c(self) -> float:
        return self.s**2 * self.r * self.k / self.n


def test_m_prime_of_lora_is_c_times_that_of_full_fine_tuning() -> None:
    """A margin whose M' has one sign in every draw: E is exact, and 300 draws are within 4 SE."""
    layer, g = Layer(1), rng(1)
    full = layer.blocks(None)[0][:, 0, 0]
    drawn = [layer.blocks(layer.draw(g))[0][:, 0, 0] for _ in range(300)]
    assert min(np.mean(blocks) * np.sign(np.mean(full)) for blocks in drawn) > 0
    for norm in ("fro", "op"):
        values = [sim.m_prime(blocks, norm) for blocks in drawn]  # type: ignore[arg-type]
        expected = layer.c * sim.m_prime(full, norm)  # type: ignore[arg-type]
        assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / math.sqrt(300))


def test_m_prime_of_lora_with_many_outputs_is_at_least_c_times() -> None:
    """The averaged block has mean c K_FF (unbiased); its norm can only be larger on average (Jensen)."""
    layer, g = Layer(3, seed=2), rng(3)
    full = layer.blocks(None)[0].mean(axis=0)
    drawn = np.array([layer.blocks(layer.draw(g))[0].mean(axis=0) for _ in range(300)])
    error = drawn.std(axis=0) / math.sqrt(300)
    assert np.all(np.abs(drawn.mean(axis=0) - layer.c * full) < 4 * error)
    norms = np.linalg.norm(drawn, axis=(1, 2))
    assert norms.mean() > layer.c * np.linalg.norm(full) - 4 * norms.std() / math.sqrt(300)


def test_cosines_of_lora_have_no_trend() -> None:
    """Eq. 16 with gradients of length 1: LoRA keeps the angles, but for the bias of a projected cosine."""
    layer, g = Layer(1, pairs=40, seed=4), rng(5)
    ones = np.ones((40, 1))
    full = sim.pull(*layer.blocks(None), ones, ones)
    drawn = [sim.pull(*layer.blocks(layer.draw(g)), ones, ones) for _ in range(300)]
    cosines = np.array([d.mean_cosine for d in drawn])
    delta = np.sum(layer.delta * layer.delta_z, axis=(1, 2)) / np.sqrt(
        np.sum(layer.delta**2, axis=(1, 2)) * np.sum(layer.delta_z**2, axis=(1, 2))
    )
    x, z = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (layer.x, layer.z))
    rho = np.sum(x * z, axis=1)
    assert full.mean_cosine == pytest.approx(np.mean(delta * rho), rel=1e-10)
    expected = np.mean([d * sim.projected_cosine(c, layer.r).mean for d, c in zip(delta, rho, strict=True)])
    assert cosines.mean() == pytest.approx(expected, abs=4 * cosines.std() / math.sqrt(300))
    # The product itself is c times, at any cosine.
    sizes = np.array([d.abs_mean for d in drawn])
    assert sizes.mean() == pytest.approx(layer.c * full.abs_mean, abs=4 * sizes.std() / math.sqrt(300))


@pytest.mark.parametrize(("rho", "r"), [(0.53, 8), (0.9, 4), (-0.3, 2), (0.6, 1), (0.95, 64)])
def test_projected_cosine_by_simulation(rho: float, r: int) -> None:
    g, draws = rng(r), 20_000
    u = g.normal(size=(draws, r))
    v = rho * u + math.sqrt(1 - rho**2) * g.normal(size=(draws, r))
    cosines = np.sum(u * v, axis=1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    law = sim.projected_cosine(rho, r)
    assert law.mean == pytest.approx(cosines.mean(), abs=4 * cosines.std() / math.sqrt(draws))
    if r >= 64:  # the sd is a leading order: 1/r relative
        assert law.sd == pytest.approx(cosines.std(), rel=3 / r + 4 / math.sqrt(2 * draws))


def test_projected_cosine_against_hotellings_series() -> None:
    """rho (2/r) (Gamma((r+1)/2) / Gamma(r/2))^2 2F1(1/2, 1/2; (r+2)/2; rho^2), summed term by term."""
    for r in (1, 3, 8, 198):
        for rho in (0.1, -0.5, 0.9, 0.96875):
            term, total = 1.0, 0.0
            for j in range(2000):
                total += term
                term *= (j + 0.5) ** 2 / (((r + 2) / 2 + j) * (j + 1)) * rho**2
            front = 2 / r * math.exp(2 * (math.lgamma((r + 1) / 2) - math.lgamma(r / 2)))
            assert sim.projected_cosine(rho, r).mean == pytest.approx(rho * front * total, rel=1e-9)


@given(st.floats(-1, 1), st.integers(4, 500) | st.integers(500, 100_000))
def test_projected_cosine_to_leading_order(rho: float, r: int) -> None:
    leading = rho * (1 - (1 - rho**2) / (2 * r))
    assert sim.projected_cosine(rho, r).mean == pytest.approx(leading, abs=1 / r**2 + 1e-9)
    assert abs(sim.projected_cosine(rho, r).mean) <= abs(rho) + 1e-9


def test_projected_cosine_by_hand() -> None:
    # r = 1: the cosine of two numbers is a sign, +1 with probability 1 - acos(rho) / pi.
    assert sim.projected_cosine(0.3, 1).mean == pytest.approx(1 - 2 * math.acos(0.3) / math.pi)
    for r in (1, 2, 9):
        assert sim.projected_cosine(-1.0, r) == sim.ProjectedCosine(pytest.approx(-1.0), 0.0)
    assert sim.projected_cosine(0.53, 8).mean == pytest.approx(0.506, abs=1e-3)


# --- scale and shape -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
def test_kernels_compared(classes: int | None) -> None:
    pairs = Pairs(5, classes, seed=9)
    full = np.tensordot(pairs.clean, pairs.clean, axes=(-1, -1))
    lora = np.tensordot(pairs.clean[..., :6], pairs.clean[..., :6], axes=(-1, -1))
    found = sim.compare_kernels(full, lora)
    size = pairs.g.size
    ratio = np.trace(lora.reshape(size, size)) / np.trace(full.reshape(size, size))
    assert found.trace_ratio == pytest.approx(ratio)
    cosine = np.sum(full * lora) / np.linalg.norm(full) / np.linalg.norm(lora)
    assert found.alignment == pytest.approx(cosine)
    assert found.best_scale == pytest.approx(np.sum(full * lora) / np.sum(full**2))
    left = np.linalg.norm(lora - found.best_scale * full) / np.linalg.norm(lora)
    assert found.scaled_distance == pytest.approx(left)
    same = sim.compare_kernels(full, 0.01 * full)
    assert (same.trace_ratio, same.alignment) == (pytest.approx(0.01), pytest.approx(1))
    assert same.scaled_distance == pytest.approx(0, abs=1e-12)


# --- what is refused -----------------------------------------------------------------------------


def test_blocks_that_are_refused() -> None:
    for bad in (np.ones((3, 4)), np.ones((3, 2, 3, 3)), np.ones(3)):
        with pytest.raises(UserError, match="expected shape"):
            sim.pair_blocks(bad)
    with pytest.raises(UserError, match="NaN"):
        sim.pair_blocks(np.full((2, 2), np.nan))
    for bad in (np.ones((3, 3)), np.ones((3, 2, 3)), np.ones(0), np.float64(1)):
        with pytest.raises(UserError, match=r"^pairs: expected shape"):
            sim.m_prime(bad, "fro")
    with pytest.raises(UserError, match="NaN"):
        sim.m_prime([np.nan], "op")


def test_pulls_that_are_refused() -> None:
    one, two = np.ones(2), np.ones((2, 2, 2))
    good = (two, two, two, np.ones((2, 2)), np.ones((2, 2)))
    assert sim.pull(*good).mean_cosine == pytest.approx(1)
    for at, bad, message in (
        (1, np.ones((3, 2, 2)), "clean: expected shape"),
        (2, one, "poisoned: expected shape"),
        (3, np.ones((2, 3)), "clean_gradients: expected shape"),
        (4, np.ones((3, 2)), "poisoned_gradients: expected shape"),
        (4, one, "poisoned_gradients: expected shape"),
        (3, np.full((2, 2), np.nan), "clean_gradients: .*NaN"),
        (1, -two, "clean: a diagonal entry"),
        (2, np.array([[[1.0, -3.0], [-3.0, 1.0]]] * 2), r"poisoned: g\^T K g is negative"),
    ):
        with pytest.raises(UserError, match=message):
            sim.pull(*good[:at], bad, *good[at + 1 :])
    with pytest.raises(UserError, match="poisoned: a diagonal entry"):
        sim.m_prime_cosine(one, one, -one, "fro")
    with pytest.raises(UserError, match="clean: expected shape"):
        sim.m_prime_cosine(one, two, one, "fro")


def test_gradients_that_only_round_below_zero_pass() -> None:
    """g in the null space of K(x, x): g^T K g is rounding of either sign, and there is no cosine."""
    direction = np.array([0.1, 0.7, 0.3])
    K = np.outer(direction, direction)[None]
    g = np.array([[0.7, -0.1, 0.0]])
    found = sim.pull(K, K - 1e-12 * np.eye(3), K - 1e-12 * np.eye(3), g, g)
    assert found.mean_abs < 1e-16
    assert math.isnan(found.mean_cosine)


def test_steps_that_are_refused() -> None:
    K, good = np.eye(4), {"learning_rate": 0.1, "examples": 10}
    with pytest.raises(UserError, match="expected 4 rows in all, got 2 removed and 1 added"):
        sim.one_step_difference(K, np.ones(2), np.ones(1), **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="removed: expected shape"):
        sim.one_step_difference(K, np.ones((2, 2)), np.ones(2), **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="added: expected shape"):
        sim.one_step_difference(np.eye(4).reshape(2, 2, 2, 2), np.ones((1, 2)), 1.0, **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="examples: expected at least 2, got 1"):
        sim.one_step_difference(K, np.ones(2), np.ones(2), learning_rate=0.1, examples=1)
    with pytest.raises(UserError, match="learning_rate"):
        sim.one_step_difference(K, np.ones(2), np.ones(2), learning_rate=0.0, examples=4)
    with pytest.raises(UserError, match="NaN"):
        sim.one_step_difference(K, [1.0, np.nan], np.ones(2), **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="indefinite"):
        sim.one_step_difference(-K, np.ones(2), np.ones(2), **good)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not symmetric"):
        sim.one_step_difference(np.triu(np.ones((4, 4))), np.ones(2), np.ones(2), **good)  # type: ignore[arg-type]


def test_comparisons_that_are_refused() -> None:
    with pytest.raises(UserError, match="one shape"):
        sim.compare_kernels(np.eye(2), np.eye(3))
    with pytest.raises(UserError, match="indefinite"):
        sim.compare_kernels(np.eye(2), np.diag([1.0, -1.0]))
    with pytest.raises(UserError, match="zero"):
        sim.compare_kernels(np.eye(2), np.zeros((2, 2)))
    for rho, r in ((1.1, 4), (math.nan, 4), (0.5, 0)):
        with pytest.raises(UserError, match="expected"):
            sim.projected_cosine(rho, r)

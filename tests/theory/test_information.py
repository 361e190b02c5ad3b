"""Fisher spectra against explicit P x P matrices, and every ordering with its sign, over random pairs."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from foretaste.errors import UserError
from foretaste.theory import eigen_entropy as ee
from foretaste.theory import fisher as fi
from foretaste.theory import information as inf
from foretaste.theory.layout import margin_kernel
from foretaste.theory.loewner import adapter_eigenvalues
from foretaste.theory.spectra import density

INF = math.inf
EPS = float(np.finfo(np.float64).eps)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- an explicit network -------------------------------------------------------------------------


class Net:
    """f(x) = W2 tanh(W1 x + b1) + b2 with all Jacobians written out, N rows, C outputs, P parameters."""

    def __init__(self, n: int, classes: int, seed: int = 0, width: int = 6, inputs: int = 4) -> None:
        g = rng(seed)
        self.x, self.labels = g.normal(size=(n, inputs)), g.integers(0, classes, size=n)
        self.shapes = [(width, inputs), (width,), (classes, width), (classes,)]
        self.theta = g.normal(size=sum(math.prod(s) for s in self.shapes))
        self.logits = self.forward(self.theta)
        W1, b1, W2, _ = self.split(self.theta)
        hidden = np.tanh(self.x @ W1.T + b1)
        rows = []
        for i in range(n):
            for c in range(classes):
                d_hidden = W2[c] * (1 - hidden[i] ** 2)
                d_W2 = np.zeros((classes, width))
                d_W2[c] = hidden[i]
                d_b2 = np.eye(classes)[c]
                parts = [np.outer(d_hidden, self.x[i]), d_hidden, d_W2, d_b2]
                rows.append(np.concatenate([p.ravel() for p in parts]))
        self.jacobian = np.array(rows).reshape(n, classes, -1)
        self.kernel = np.einsum("icp,jdp->icjd", self.jacobian, self.jacobian)

    def split(self, theta: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([math.prod(s) for s in self.shapes])
        return [part.reshape(s) for part, s in zip(np.split(theta, ends[:-1]), self.shapes, strict=True)]

    def forward(self, theta: np.ndarray) -> np.ndarray:
        W1, b1, W2, b2 = self.split(theta)
        return np.tanh(self.x @ W1.T + b1) @ W2.T + b2

    @property
    def p(self) -> np.ndarray:
        e = np.exp(self.logits)
        return e / e.sum(axis=1, keepdims=True)


NETS = [Net(10, 3), Net(7, 4, seed=1), Net(25, 3, seed=2, width=3, inputs=2), Net(6, 2, seed=3)]
each_net = pytest.mark.parametrize("net", NETS, ids=["N<P", "C=4", "NC>P", "C=2"])


@each_net
def test_the_jacobians_of_the_oracle(net: Net) -> None:
    h = 1e-6
    for at in range(net.theta.size):
        step = np.zeros(net.theta.size)
        step[at] = h
        slope = (net.forward(net.theta + step) - net.forward(net.theta - step)) / (2 * h)
        assert net.jacobian[:, :, at] == pytest.approx(slope, abs=1e-8)


def nonzero(matrix: np.ndarray, rank: int) -> np.ndarray:
    values = np.linalg.eigvalsh(matrix)[::-1]
    assert np.abs(values[rank:]).max(initial=0) < 1e-13 * values[0]
    return values[:rank]


@each_net
def test_empirical_fisher_is_that_of_the_parameters(net: Net) -> None:
    n, classes, size = net.jacobian.shape
    full = np.zeros((size, size))
    for i in range(n):
        g = net.p[i] - np.eye(classes)[net.labels[i]]
        gradient = net.jacobian[i].T @ g
        full += np.outer(gradient, gradient) / n
    spectrum = fi.empirical_fisher(net.kernel, net.logits, net.labels)
    assert spectrum.rank == np.linalg.matrix_rank(full) <= n
    assert spectrum.size == n
    assert spectrum.values == pytest.approx(nonzero(full, spectrum.rank), rel=1e-10, abs=1e-13)
    assert spectrum.trace == pytest.approx(np.trace(full), rel=1e-12)


@each_net
def test_true_fisher_is_that_of_the_parameters_and_knows_no_label(net: Net) -> None:
    n, classes, size = net.jacobian.shape
    full, expectation = np.zeros((size, size)), np.zeros((size, size))
    for i in range(n):
        H = np.diag(net.p[i]) - np.outer(net.p[i], net.p[i])
        full += net.jacobian[i].T @ H @ net.jacobian[i] / n
        for c in range(classes):  # E over labels drawn from the model of the empirical one
            gradient = net.jacobian[i].T @ (net.p[i] - np.eye(classes)[c])
            expectation += net.p[i, c] * np.outer(gradient, gradient) / n
    assert full == pytest.approx(expectation, abs=1e-14)
    spectrum = fi.true_fisher(net.kernel, net.logits)
    assert spectrum.rank == np.linalg.matrix_rank(full)
    assert spectrum.rank == min(n * (classes - 1), np.linalg.matrix_rank(full))
    assert spectrum.size == n * classes
    assert spectrum.values == pytest.approx(nonzero(full, spectrum.rank), rel=1e-10, abs=1e-13)
    assert spectrum.trace == pytest.approx(np.trace(full), rel=1e-12)


def test_true_fisher_has_rank_n_times_c_minus_one() -> None:
    """N = 30, C = 4, P = 384: 90 of 120."""
    net = Net(30, 4, seed=4, width=38, inputs=5)
    assert net.theta.size == 384
    assert fi.true_fisher(net.kernel, net.logits).rank == 90
    assert fi.empirical_fisher(net.kernel, net.logits, net.labels).rank == 30
    assert fi.ntk_fisher(net.kernel).rank == 120


@each_net
def test_ntk_fisher_is_that_of_the_parameters(net: Net) -> None:
    flat = net.jacobian.reshape(-1, net.theta.size)
    full = flat.T @ flat / len(net.x)
    spectrum = fi.ntk_fisher(net.kernel)
    assert spectrum.rank == np.linalg.matrix_rank(full)
    assert spectrum.values == pytest.approx(nonzero(full, spectrum.rank), rel=1e-10, abs=1e-13 * full.max())
    assert spectrum.trace == pytest.approx(np.trace(full), rel=1e-12)


@each_net
def test_theorem_2_2_is_the_trace(net: Net) -> None:
    g = fi.cross_entropy_gradient(net.logits, net.labels)
    scalar = np.mean([g[i] @ net.kernel[i, :, i, :] @ g[i] for i in range(len(g))])
    spectrum = fi.empirical_fisher(net.kernel, net.logits, net.labels)
    assert spectrum.values.sum() == pytest.approx(scalar, rel=1e-12)
    assert spectrum.trace == pytest.approx(scalar, rel=1e-12)
    by_class = fi.output_fisher(net.kernel, g)
    assert by_class.sum() == pytest.approx(scalar, rel=1e-12)
    assert np.linalg.eigvalsh(by_class)[0] > -1e-12 * scalar


@each_net
def test_cross_entropy_gradient_by_differences(net: Net) -> None:
    def loss(f: np.ndarray) -> np.ndarray:
        return np.log(np.exp(f).sum(axis=1)) - f[np.arange(len(f)), net.labels]

    h, g = 1e-5, fi.cross_entropy_gradient(net.logits, net.labels)
    for c in range(net.logits.shape[1]):
        step = h * np.eye(net.logits.shape[1])[c]
        slope = (loss(net.logits + step) - loss(net.logits - step)) / (2 * h)
        assert g[:, c] == pytest.approx(slope, abs=1e-6)


def test_cross_entropy_gradient_of_a_margin_and_far_out() -> None:
    f, y, h = np.array([0.3, -2.0, 5.0]), np.array([1, 1, -1]), 1e-5
    slope = (np.log1p(np.exp(-y * (f + h))) - np.log1p(np.exp(-y * (f - h)))) / (2 * h)
    assert fi.cross_entropy_gradient(f, y) == pytest.approx(slope, abs=1e-9)
    # exp(-60), which 1 - p would round to 0.
    assert fi.cross_entropy_gradient([[60.0, 0.0]], [0]) == pytest.approx(
        np.array([[-np.exp(-60.0), np.exp(-60.0)]]), rel=1e-12
    )
    assert fi.cross_entropy_gradient([60.0], [1]) == pytest.approx(np.array([-np.exp(-60.0)]), rel=1e-12)


def test_two_logits_are_their_margin() -> None:
    """C = 2 and the margin kernel K_11 + K_00 - K_10 - K_01: one Fisher, empirical and true."""
    net = NETS[3]
    margin, f, y = margin_kernel(net.kernel), net.logits[:, 1] - net.logits[:, 0], 2 * net.labels - 1
    for two, one in (
        (fi.empirical_fisher(net.kernel, net.logits, net.labels), fi.empirical_fisher(margin, f, y)),
        (fi.true_fisher(net.kernel, net.logits), fi.true_fisher(margin, f)),
    ):
        assert two.values == pytest.approx(one.values, rel=1e-10)
        assert two.trace == pytest.approx(one.trace, rel=1e-12)
        assert (two.rank, one.size) == (one.rank, len(net.x))


@given(st.integers(2, 6), st.integers(0, 10_000), st.floats(0.1, 8))
def test_the_root_of_the_output_curvature(classes: int, seed: int, size: float) -> None:
    f = rng(seed).normal(size=(3, classes)) * size
    L = fi.output_curvature_root(f)
    p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
    for i in range(3):
        assert L[i] @ L[i].T == pytest.approx(np.diag(p[i]) - np.outer(p[i], p[i]), abs=1e-14)
        assert L[i] @ np.sqrt(p[i]) == pytest.approx(np.zeros(classes), abs=1e-14)


@given(st.integers(2, 8), st.integers(0, 10_000), st.floats(0.1, 8))
def test_equation_24_is_too_small_by_a_bounded_factor(classes: int, seed: int, size: float) -> None:
    g = rng(seed)
    f, y = g.normal(size=(5, classes)) * size, g.integers(0, classes, size=5)
    x = g.normal(size=(5, 4))
    kernel = np.einsum("ij,cd->icjd", x @ x.T, np.eye(classes))
    ratio = fi.empirical_fisher(kernel, f, y).trace / fi.equation_24(kernel, f, y)
    assert 1 + 1 / (classes - 1) - 1e-9 <= ratio <= 2 + 1e-9


def test_equation_24_by_hand() -> None:
    net = NETS[0]
    terms = [(net.p[i, y] - 1) ** 2 * net.kernel[i, y, i, y] for i, y in enumerate(net.labels)]
    assert fi.equation_24(net.kernel, net.logits, net.labels) == pytest.approx(np.mean(terms))


def test_gradients_of_the_squared_error() -> None:
    net, targets = NETS[0], np.eye(3)[NETS[0].labels]
    gradients = np.einsum("ic,icp->ip", net.logits - targets, net.jacobian)
    expected = np.linalg.svd(gradients, compute_uv=False) ** 2 / len(net.x)
    found = fi.gradient_fisher(net.kernel, net.logits - targets).values
    assert found == pytest.approx(expected[: found.size], rel=1e-10)


def test_the_empirical_fisher_vanishes_at_interpolation_and_the_ntk_does_not() -> None:
    net = NETS[0]
    certain = 800.0 * np.eye(3)[net.labels]
    spectrum = fi.empirical_fisher(net.kernel, certain, net.labels)
    assert (spectrum.rank, spectrum.trace, spectrum.values.size) == (0, 0.0, 0)
    flipped = fi.empirical_fisher(net.kernel, certain, (net.labels + 1) % 3)
    assert flipped.trace > 1
    assert fi.ntk_fisher(net.kernel).trace > 1


def test_rounding_of_a_float32_kernel_is_no_rank() -> None:
    net = NETS[2]
    rough = net.kernel.astype(np.float32)
    exact = fi.ntk_fisher(net.kernel)
    rounded = fi.ntk_fisher(rough)
    assert exact.rank < exact.size
    assert rounded.rank <= exact.rank + 20
    large = exact.values > 1e3 * rounded.tolerance
    assert np.sum(large) > 5
    assert rounded.values[: np.sum(large)] == pytest.approx(exact.values[large], rel=5e-3)


# --- orderings -----------------------------------------------------------------------------------


@cache
def psd_pairs() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """1000 pairs of spectra of 0 <= K_LoRA = G C G^T <= K_FF = G G^T, C = D D^T <= I, at scales 1e-3 .. 1e3.

    Every second pair has equal ranks. Squared singular values: what is zero is absent, not rounded.
    """
    g, pairs = rng(5), []
    for number in range(1000):
        size, inner = g.integers(2, 7), g.integers(2, 8)
        G = g.normal(size=(size, inner)) * 10 ** g.uniform(-1.5, 1.5)
        G = G * 10 ** g.uniform(-1, 0, size=inner)
        rank = min(size, inner)
        kept = inner if number % 2 == 0 else g.integers(1, rank + 1)
        D = np.linalg.qr(g.normal(size=(inner, inner)))[0][:, :kept] * g.uniform(0.05, 1, size=kept)
        values = [np.linalg.svd(M, compute_uv=False) ** 2 for M in (G, G @ D)]
        pairs.append((values[0], values[1][: min(size, kept)]))
    return tuple(pairs)


def slack(*values: float) -> float:
    return 1e-11 * max(1.0, *(abs(v) for v in values))


@pytest.mark.parametrize("row", inf.ORDERINGS, ids=lambda row: row.quantity)
def test_each_ordering_on_a_thousand_pairs(row: inf.Implication) -> None:
    signs = {True: set(), False: set()}
    for full, lora in psd_pairs():
        f, low = row.value(full), row.value(lora)
        equal = full.size == lora.size
        sign = 0 if abs(f - low) <= slack(f, low) else (1 if f > low else -1)
        signs[equal].add(sign)
    held = signs[True] if row.equal_ranks else signs[True] | signs[False]
    if row.sign == 0:
        assert {-1, 1} <= held
    else:
        assert row.sign in held
        assert -row.sign not in held
    if row.equal_ranks:  # and without equal ranks nothing is implied
        assert {-1, 1} <= signs[False]


SPECTRA = st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1)), min_size=1, max_size=6)


@pytest.mark.parametrize("row", [r for r in inf.ORDERINGS if r.sign], ids=lambda row: row.quantity)
@settings(max_examples=60)
@given(SPECTRA, st.integers(0, 5))
def test_each_guarantee_on_dominated_lists(
    row: inf.Implication, pairs: list[tuple[float, float]], dropped: int
) -> None:
    """Any spectra whose ordered values dominate, not only those of a Loewner pair."""
    full = np.sort([value for value, _ in pairs])
    lora = full * np.sort([share for _, share in pairs])
    if not row.equal_ranks:
        lora[: min(dropped, lora.size - 1)] = 0
    f, low = row.value(full), row.value(lora)
    assert row.sign * (f - low) >= -slack(f, low)


@pytest.mark.parametrize("row", inf.ORDERINGS, ids=lambda row: row.quantity)
def test_scale_and_shape(row: inf.Implication) -> None:
    lam = np.array([0.1, 2.0, 7.0])
    before, after = row.value(lam), row.value(3 * lam)
    assert (after == pytest.approx(before, rel=1e-12)) is (row.depends_on == "shape")


def test_quantities_of_the_table_are_distinct() -> None:
    names = [row.quantity for row in inf.ORDERINGS]
    assert len(set(names)) == len(names)


# --- information bits ----------------------------------------------------------------------------


def test_bits_by_hand() -> None:
    bits = inf.information_bits([2.0, 0.0, 0.5], beta=3.0)
    assert bits.by_sum == pytest.approx(1.25)
    assert bits.by_pdet == pytest.approx(0.0)
    assert bits.by_1p == pytest.approx(0.5 * (math.log(7) + math.log(2.5)))
    assert (bits.rank, bits.beta) == (2, 3.0)
    empty = inf.information_bits([0.0, 0.0], beta=1.0)
    assert (empty.by_sum, empty.by_1p, empty.rank) == (0.0, 0.0, 0)
    assert math.isnan(empty.by_pdet)


def test_the_third_form_is_the_log_determinant() -> None:
    G = rng(6).normal(size=(8, 3))
    expected = 0.5 * np.linalg.slogdet(np.eye(8) + 2.5 * G @ G.T)[1]
    values = np.linalg.eigvalsh(G @ G.T)
    assert inf.information_bits(values, beta=2.5).by_1p == pytest.approx(expected, rel=1e-12)


def test_the_pseudo_determinant_is_no_guarantee() -> None:
    """FF (1, 1e-3), LoRA (0.9, 0): dominated, and the log pseudo-determinant is the other way round."""
    c = inf.compare_bits([1.0, 1e-3], [0.9, 0.0], beta=1.0)
    assert c.dominates
    assert (c.full.by_sum, c.lora.by_sum) == (pytest.approx(0.5005), pytest.approx(0.45))
    assert c.full.by_pdet == pytest.approx(-3.454, abs=5e-4)
    assert c.lora.by_pdet == pytest.approx(-0.053, abs=5e-4)
    assert (c.by_sum.holds, c.by_sum.ordering_guaranteed) == (True, True)
    assert (c.by_1p.holds, c.by_1p.ordering_guaranteed) == (True, True)
    assert (c.by_pdet.holds, c.by_pdet.ordering_guaranteed) == (False, False)
    assert "ranks differ (2 and 1)" in c.by_pdet.reason
    assert c.c_star == pytest.approx(900, rel=1e-8)


def test_equal_ranks_are_a_guarantee() -> None:
    c = inf.compare_bits([1.0, 1e-3, 0.0], [0.9, 1e-4, 0.0], beta=1.0)
    assert (c.by_pdet.holds, c.by_pdet.ordering_guaranteed) == (True, True)
    assert "ranks are equal (2)" in c.by_pdet.reason
    assert math.isnan(c.c_star)


def test_no_domination_is_no_guarantee() -> None:
    c = inf.compare_bits([3.0, 1.0], [2.0, 1.5, 0.1], beta=1.0)
    assert not c.dominates
    for order in (c.by_sum, c.by_pdet, c.by_1p):
        assert not order.ordering_guaranteed
        assert order.reason == "eigenvalue 2 of LoRA (1.5) is above that of full fine-tuning (1)"
    assert c.by_sum.holds
    assert not c.by_1p.holds


@settings(max_examples=200)
@given(st.integers(0, 999))
def test_c_star_is_where_the_order_turns(number: int) -> None:
    full, lora = psd_pairs()[number]
    c = inf.compare_bits(full, lora, beta=0.7)
    assert c.dominates
    if full.size == lora.size:
        assert math.isnan(c.c_star)
        return
    at = inf.compare_bits(c.c_star * full, c.c_star * lora, beta=0.7)
    assert at.full.by_pdet == pytest.approx(at.lora.by_pdet, rel=1e-8, abs=1e-8)
    assert inf.compare_bits(1.01 * c.c_star * full, 1.01 * c.c_star * lora, beta=0.7).by_pdet.holds
    assert not inf.compare_bits(0.99 * c.c_star * full, 0.99 * c.c_star * lora, beta=0.7).by_pdet.holds


def test_a_linear_model_turns_with_its_unit() -> None:
    """N = 40 rows, r = 8, K_LoRA <= K_FF: which of them has more bits by pdet depends on the unit."""
    g = rng(7)
    x = g.normal(size=(40, 64)) / 8
    A = g.normal(size=(8, 64)) / 16
    full, lora = fi.ntk_fisher(x @ x.T).values, fi.ntk_fisher((x @ A.T) @ (x @ A.T).T).values
    base = inf.compare_bits(full, lora, beta=1.0)
    assert base.dominates
    assert (base.full.rank, base.lora.rank) == (40, 8)
    for c in (0.1 * base.c_star, 10 * base.c_star):
        assert inf.compare_bits(c * full, c * lora, beta=1.0).by_pdet.holds is (c > base.c_star)


def test_a_spectrum_dominates_itself() -> None:
    lam = rng(8).uniform(size=9)
    c = inf.compare_bits(lam, lam[::-1], beta=1.0)
    assert c.dominates
    assert c.by_sum.holds
    assert c.by_pdet.ordering_guaranteed
    assert math.isnan(inf.compare_bits([1.0], [0.0], beta=1.0).c_star)
    assert inf.compare_bits([1.0, 1e-14], [1e300], beta=1.0).c_star == INF


# --- entropies -----------------------------------------------------------------------------------


def test_entropies_by_hand() -> None:
    lam = [4.0, 2.0, 2.0, 0.0]
    assert inf.renyi_entropy(lam, 0) == pytest.approx(math.log(3))
    assert inf.renyi_entropy(lam, 1) == pytest.approx(1.5 * math.log(2))
    assert inf.renyi_entropy(lam, 2) == pytest.approx(-math.log(0.375))
    assert inf.renyi_entropy(lam, INF) == pytest.approx(math.log(2))
    assert inf.renyi_entropy(lam, 0.5) == pytest.approx(2 * math.log(math.sqrt(0.5) + 1.0))
    assert inf.raw_renyi(lam, 0) == pytest.approx(math.log(3))
    assert inf.raw_renyi(lam, 0.5) == pytest.approx(2 * math.log(2 + 2 * math.sqrt(2)))
    assert inf.raw_renyi(lam, 2) == pytest.approx(-math.log(24))
    assert inf.raw_renyi(lam, 3) == pytest.approx(-0.5 * math.log(80))
    assert inf.raw_renyi(lam, INF) == pytest.approx(-math.log(4))
    assert inf.raw_shannon(lam) == pytest.approx(-12 * math.log(2))
    assert inf.paper_renyi_infinity(lam) == 4
    assert inf.effective_rank(lam) == pytest.approx(2**1.5)
    assert inf.stable_rank(lam) == pytest.approx(2)


LISTS = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=8)


@given(LISTS, st.floats(0, 20), st.floats(0, 20))
def test_normalised_entropy_falls_with_its_order(lam: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert inf.renyi_entropy(lam, low) >= inf.renyi_entropy(lam, high) - 1e-10
    assert -1e-12 <= inf.renyi_entropy(lam, high) <= math.log(len(lam)) + 1e-12
    assert inf.renyi_entropy(lam, high) >= inf.renyi_entropy(lam, INF) - 1e-10


@given(LISTS, st.floats(1e-3, 1e3), st.sampled_from([0, 0.3, 0.5, 0.9, 1, 1.2, 2, 7, INF]))
def test_normalised_entropy_knows_no_scale(lam: list[float], c: float, alpha: float) -> None:
    scaled = inf.renyi_entropy(c * np.array(lam), alpha)
    assert scaled == pytest.approx(inf.renyi_entropy(lam, alpha), abs=1e-12)


@given(LISTS)
def test_normalised_entropy_is_continuous_around_shannons(lam: list[float]) -> None:
    """H_{1 + h} = H_1 - h/2 Var(log p) + O(h^2): no digit is lost by the 0 / 0, down to h = 1e-12."""
    p = np.array(lam) / np.sum(lam)
    variance = float(p @ np.log(p) ** 2 - (p @ np.log(p)) ** 2)
    shannon = inf.renyi_entropy(lam, 1)
    assert shannon == pytest.approx(-float(p @ np.log(p)), abs=1e-12)
    for h in (1e-3, -1e-3, 1e-6, -1e-6, 1e-9, 1e-12):
        third = 10 * h**2 * max(1.0, float(np.abs(np.log(p)).max())) ** 3
        assert inf.renyi_entropy(lam, 1 + h) == pytest.approx(shannon - h * variance / 2, abs=third + 1e-12)
    for order in (0.5, 1.5):  # where the two ways of summing meet
        sides = [inf.renyi_entropy(lam, order + h) for h in (-1e-9, 1e-9)]
        assert sides[0] == pytest.approx(sides[1], abs=1e-6)


@given(LISTS, st.sampled_from([0, 0.5, 0.9, 1.2, 2, 7]))
def test_raw_and_normalised_differ_by_the_trace(lam: list[float], alpha: float) -> None:
    trace = float(np.sum(lam))
    expected = inf.renyi_entropy(lam, alpha) + alpha / (1 - alpha) * math.log(trace)
    assert inf.raw_renyi(lam, alpha) == pytest.approx(expected, abs=1e-9)


def test_extreme_values_do_not_overflow() -> None:
    lam = np.array([1e308, 1e308])
    assert inf.renyi_entropy(lam, 2) == pytest.approx(math.log(2))
    assert inf.renyi_entropy(lam, 1) == pytest.approx(math.log(2))
    assert inf.raw_renyi(lam, 50) == pytest.approx(-50 / 49 * math.log(1e308), rel=1e-2)
    assert inf.renyi_entropy([3.0], 400) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, INF])
def test_no_eigenvalue_has_no_entropy(alpha: float) -> None:
    assert math.isnan(inf.renyi_entropy([0.0, 0.0], alpha))
    if alpha != 1:
        assert math.isnan(inf.raw_renyi([0.0, 0.0], alpha))
    assert math.isnan(inf.raw_shannon([0.0]))
    assert math.isnan(inf.effective_rank([0.0]))
    assert math.isnan(inf.stable_rank([0.0]))
    assert inf.paper_renyi_infinity([0.0]) == 0


def test_counterexamples() -> None:
    """FF (10, .1, .1) dominates LoRA (.1, .1, .1): normalised .11 < 1.10. Raw Shannon peaks at 1/e."""
    full, lora = [10.0, 0.1, 0.1], [0.1, 0.1, 0.1]
    assert inf.renyi_entropy(full, 1) == pytest.approx(0.11, abs=0.005)
    assert inf.renyi_entropy(lora, 1) == pytest.approx(math.log(3))
    assert inf.raw_renyi(full, 2) < inf.raw_renyi(lora, 2)
    assert inf.raw_renyi(full, 0.5) > inf.raw_renyi(lora, 0.5)
    peak = [inf.raw_shannon([x]) for x in (0.9 / math.e, 1 / math.e, 1.1 / math.e)]
    assert peak[1] == max(peak) == pytest.approx(1 / math.e)
    # Eq. 10 at alpha = 1 +- h is log(trace) / -+h: it diverges, both ways.
    assert inf.raw_renyi([1.0, 1.0], 1 - 1e-6) > 1e5
    assert inf.raw_renyi([1.0, 1.0], 1 + 1e-6) < -1e5


# --- Eq. 18 by Marchenko-Pastur ------------------------------------------------------------------

RANKS = (32, 64, 128, 256, 512)


@cache
def drawn_values(r: int, law: str) -> np.ndarray:
    n, g = 1024, rng(r)
    A = g.normal(size=(r, n)) if law == "gaussian" else g.uniform(-1, 1, size=(r, n)) * math.sqrt(3)
    return adapter_eigenvalues(A / math.sqrt(n), scaling=1.0)


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
@pytest.mark.parametrize("r", RANKS)
def test_normalised_entropies_of_drawn_matrices(r: int, law: str) -> None:
    lam = drawn_values(r, law)
    for alpha in (0.5, 1, 2):
        assert inf.renyi_entropy(lam, alpha) == pytest.approx(ee.predicted_renyi(alpha, 1024, r), abs=0.005)
    assert inf.renyi_entropy(lam, INF) == pytest.approx(ee.predicted_renyi(INF, 1024, r), abs=0.06)
    assert inf.renyi_entropy(lam, 0) == pytest.approx(ee.predicted_renyi(0, 1024, r), abs=1e-12)
    for alpha in (0, 0.5, 1, 2, INF):
        small, large = (inf.renyi_entropy(k * lam, alpha) for k in (0.01, 2.0))
        assert small == pytest.approx(large, abs=1e-12)


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
@pytest.mark.parametrize("r", RANKS)
@pytest.mark.parametrize(("k", "s"), [(0.01, 1.0), (1 / 3, 2.0), (2.0, 0.7)])
def test_raw_entropies_of_drawn_matrices(r: int, law: str, k: float, s: float) -> None:
    """The trace has a relative sd of sqrt(2 / (r n)) at most; E tr (A^T A)^2 is off by 1/n of itself."""
    n, scale = 1024, k * s**2
    lam, sd = scale * drawn_values(r, law), math.sqrt(2 / (r * n))
    for alpha, factor in ((0.5, 1.0), (2.0, 2.0)):
        predicted = ee.predicted_raw_renyi(alpha, n, r, k=k, scaling=s)
        assert inf.raw_renyi(lam, alpha) == pytest.approx(predicted, abs=factor * 4 * sd + 2 / n)
    predicted = ee.predicted_raw_renyi(INF, n, r, k=k, scaling=s)
    assert inf.raw_renyi(lam, INF) == pytest.approx(predicted, abs=0.06)
    # d(-x log x) = -(log x + 1) dx, so the trace's error times r scale |log scale + 1 + gamma/2|.
    predicted = ee.predicted_raw_shannon(n, r, k=k, scaling=s)
    slope = r * scale * (abs(math.log(scale) + 1) + r / (2 * n))
    assert inf.raw_shannon(lam) == pytest.approx(predicted, abs=4 * sd * slope + 2 * r * scale / n)


@given(
    st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.floats(0.05, 3),
    st.floats(0.3, 3),
)
@settings(max_examples=40)
def test_predictions_are_integrals_of_the_density(size: tuple[int, int], k: float, s: float) -> None:
    n, r = size
    root, scale = math.sqrt(r / n), k * s**2
    middle, half = scale * (1 + root**2), 2 * scale * root

    def total(f: object) -> float:
        def height(t: float) -> float:
            x = middle + half * math.cos(t)
            return float(density(x, n, r, k=k, scaling=s)) * half * math.sin(t) * f(x)  # type: ignore[operator]

        return r * quad(height, 0, math.pi, epsabs=1e-12, epsrel=1e-10)[0]

    trace = total(lambda x: x)
    for alpha in (0.5, 2.0, 3.0):
        power = total(lambda x, a=alpha: x**a)
        raw = ee.predicted_raw_renyi(alpha, n, r, k=k, scaling=s)
        assert raw == pytest.approx(math.log(power) / (1 - alpha), abs=1e-6)
        normalised = math.log(power / trace**alpha) / (1 - alpha)
        assert ee.predicted_renyi(alpha, n, r) == pytest.approx(normalised, abs=1e-6)
    shannon = total(lambda x: -x * math.log(x))
    assert ee.predicted_raw_shannon(n, r, k=k, scaling=s) == pytest.approx(
        shannon, abs=1e-6 * r * (1 + scale)
    )
    shape = total(lambda x: -x / trace * math.log(x / trace))
    assert ee.predicted_renyi(1, n, r) == pytest.approx(shape, abs=1e-6)
    assert ee.predicted_renyi(INF, n, r) == pytest.approx(-math.log((middle + half) / trace), abs=1e-6)
    assert ee.predicted_raw_renyi(INF, n, r, k=k, scaling=s) == pytest.approx(-math.log(middle + half))


def test_raw_shannon_peaks_near_the_default_variance() -> None:
    n, r = 1024, 64
    peak = math.exp(-1 - r / (2 * n))
    at = {k: ee.predicted_raw_shannon(n, r, k=k, scaling=1.0) for k in (1 / 3, peak, 1.0, 2.0)}
    for near in (0.99 * peak, 1.01 * peak):
        assert ee.predicted_raw_shannon(n, r, k=near, scaling=1.0) < at[peak]
    assert at[1 / 3] > 0.98 * at[peak]
    assert at[1.0] < 0
    assert at[2.0] < at[1.0]
    # A scaling is a variance: s^2 k is all that counts.
    assert ee.predicted_raw_shannon(n, r, k=0.5, scaling=2.0) == pytest.approx(
        ee.predicted_raw_shannon(n, r, k=2.0, scaling=1.0)
    )


def test_what_the_script_of_figure_3_plots() -> None:
    n, r, k = 1024, 64, 1 / 3
    assert ee.figure3_script_shannon(r, k=k) == pytest.approx(1e10 * math.log(k / n * r * n))
    assert math.exp(ee.figure3_script_h2(n, r, k=k)) == pytest.approx(0.458, abs=5e-4)
    # tr (A^T A)^2 in expectation: 7.563; by Marchenko-Pastur n r sigma^4 (n + r), without the 1.
    exact = (k / n) ** 2 * n * r * (n + r + 1)
    assert exact == pytest.approx(7.563, abs=5e-4)
    assert math.exp(-ee.predicted_raw_renyi(2, n, r, k=k, scaling=1.0)) == pytest.approx(exact, rel=1 / n)
    g = rng(9)
    squares, diagonals = [], []
    for _ in range(200):
        A = g.normal(size=(r, n)) * math.sqrt(k / n)
        squares.append(np.sum((A @ A.T) ** 2))
        diagonals.append(np.sum(np.sum(A**2, axis=0) ** 2))
    for sample, expected in ((squares, exact), (diagonals, math.exp(ee.figure3_script_h2(n, r, k=k)))):
        assert np.mean(sample) == pytest.approx(expected, abs=4 * np.std(sample) / math.sqrt(200))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.1, -INF, math.nan])
def test_orders_that_are_refused(alpha: float) -> None:
    for call in (
        lambda: inf.renyi_entropy([1.0], alpha),
        lambda: inf.raw_renyi([1.0], alpha),
        lambda: ee.predicted_renyi(alpha, 8, 2),
        lambda: ee.predicted_raw_renyi(alpha, 8, 2, k=1.0, scaling=1.0),
    ):
        with pytest.raises(UserError, match=r"^alpha: expected"):
            call()


def test_raw_order_one_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="raw_shannon"):
        inf.raw_renyi([0.5, 0.5], 1)
    with pytest.raises(UserError, match="predicted_raw_shannon"):
        ee.predicted_raw_renyi(1, 8, 2, k=1.0, scaling=1.0)


@pytest.mark.parametrize(
    ("lam", "message"),
    [
        ([], "expected shape"),
        ([[1.0]], "expected shape"),
        ([1.0, np.nan], "NaN"),
        ([1.0, -1e-3], "expected values >= 0"),
        ([-1.0], "expected values >= 0"),
        ([1.0 + 1j], "real numbers"),
    ],
)
def test_eigenvalues_that_are_refused(lam: list[float], message: str) -> None:
    for call in (
        inf.positive_eigenvalues,
        lambda x: inf.renyi_entropy(x, 2),
        lambda x: inf.raw_renyi(x, 2),
        inf.raw_shannon,
        lambda x: inf.information_bits(x, beta=1.0),
        lambda x: inf.compare_bits([1.0], x, beta=1.0),
        lambda x: inf.compare_bits(x, [1.0], beta=1.0),
    ):
        with pytest.raises(UserError, match=message):
            call(lam)


def test_rounding_below_zero_passes() -> None:
    assert inf.positive_eigenvalues([3.0, -1e-7, 5e-8, 1e-3]).tolist() == [3.0, 1e-3]
    assert inf.positive_eigenvalues([1.0, 1.5 * EPS]).tolist() == [1.0]
    assert inf.positive_eigenvalues([1.0, 2.5 * EPS]).tolist() == [1.0, 2.5 * EPS]


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, INF])
def test_betas_that_are_refused(beta: float) -> None:
    with pytest.raises(UserError, match="beta"):
        inf.information_bits([1.0], beta=beta)


GOOD = NETS[0].kernel


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (GOOD - 10 * np.eye(30).reshape(GOOD.shape), "indefinite"),
        (GOOD + np.triu(np.ones((30, 30))).reshape(GOOD.shape), "not symmetric"),
        (np.where(GOOD.max() == GOOD, np.nan, GOOD), "NaN"),
        (np.zeros_like(GOOD), "zero"),
        (np.ones((10, 3, 10, 2)), "expected shape"),
    ],
)
def test_kernels_that_are_refused(kernel: np.ndarray, message: str) -> None:
    net = NETS[0]
    g = np.ones((10, 3))
    for call in (
        lambda: fi.ntk_fisher(kernel),
        lambda: fi.true_fisher(kernel, net.logits),
        lambda: fi.empirical_fisher(kernel, net.logits, net.labels),
        lambda: fi.gradient_fisher(kernel, g),
        lambda: fi.equation_24(kernel, net.logits, net.labels),
        lambda: fi.output_fisher(kernel, g),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_sizes_that_are_refused() -> None:
    net = NETS[0]
    with pytest.raises(UserError, match=r"^gradients: expected shape"):
        fi.gradient_fisher(net.kernel, np.ones((9, 3)))
    with pytest.raises(UserError, match=r"^gradients: expected shape"):
        fi.gradient_fisher(net.kernel, np.ones((2, 10, 3)))
    with pytest.raises(UserError, match=r"^logits: expected shape"):
        fi.true_fisher(net.kernel, np.ones((10, 4)))
    with pytest.raises(UserError, match=r"^gradients: expected shape"):
        fi.empirical_fisher(net.kernel, np.ones((9, 3)), np.zeros(9))
    with pytest.raises(UserError, match=r"^labels"):
        fi.empirical_fisher(net.kernel, net.logits, net.labels[:-1])
    with pytest.raises(UserError, match=r"^labels"):
        fi.cross_entropy_gradient(net.logits, np.zeros((2, 10)))
    with pytest.raises(UserError, match=r"labels 0 \.\. 2"):
        fi.cross_entropy_gradient(net.logits, np.full(10, 3))
    for shape in ((3, 1), (0,), (2, 2, 2), ()):
        with pytest.raises(UserError, match=r"^logits: expected shape"):
            fi.cross_entropy_gradient(np.ones(shape), [0])
        with pytest.raises(UserError, match=r"^logits: expected shape"):
            fi.output_curvature_root(np.ones(shape))
    with pytest.raises(UserError, match="NaN"):
        fi.output_curvature_root([np.nan, 1.0])
    for call in (fi.equation_24, lambda k, f, y: fi.output_fisher(k, f)):
        with pytest.raises(UserError, match="margin"):
            call(np.eye(3), np.ones(3), [1, 1, -1])


def test_ranks_and_numbers_that_are_refused() -> None:
    with pytest.raises(UserError, match=r"^r: expected"):
        ee.predicted_renyi(2, 8, 9)
    with pytest.raises(UserError, match=r"^k: expected"):
        ee.predicted_raw_shannon(8, 2, k=0.0, scaling=1.0)
    with pytest.raises(UserError, match=r"^k: expected"):
        ee.figure3_script_shannon(8, k=-1.0)
    with pytest.raises(UserError, match=r"^r: expected"):
        ee.figure3_script_h2(8, 9, k=1.0)
    with pytest.raises(UserError, match="float64"):
        ee.predicted_renyi(5000, 8, 8)

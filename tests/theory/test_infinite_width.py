"""Infinite-width kernels against finite networks, another library, hand calculations and draws of A."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.theory.activations import ERF, GELU, RELU, TANH, Activation, dual, dual_derivative, smooth
from foretaste.theory.infinite_width import (
    Pieces,
    full_kernel,
    ntk_as_printed,
    ntk_layers,
    propagate,
    standard_layers,
)
from foretaste.theory.lora_width import (
    Adapter,
    lora_mean,
    lora_moments,
    lora_ntk_as_printed,
    lora_scaling,
    lora_variance,
    rslora_scaling,
    unadapted,
)

LINEAR = smooth("linear", lambda x: x, np.ones_like, nodes=4)
CLOSED = [RELU, ERF, GELU]
each = pytest.mark.parametrize("activation", CLOSED, ids=lambda a: a.name)
NORMAL, UNIFORM = 0.0, -1.2
each_law = pytest.mark.parametrize("kurtosis", [NORMAL, UNIFORM], ids=["normal", "uniform"])

X = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -1.1], [-0.7, 0.4, 1.5]])
Z = np.array([[0.6, 0.1, -0.9], [-1.0, 0.5, -0.2]])


def inputs(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def draw_a(g: np.random.Generator, shape: tuple[int, ...], k: float, kurtosis: float) -> np.ndarray:
    """Entries of variance k / n, n the last axis, normal or uniform."""
    sd = np.sqrt(k / shape[-1])
    return (
        g.normal(0, sd, shape) if kurtosis == NORMAL else g.uniform(-np.sqrt(3) * sd, np.sqrt(3) * sd, shape)
    )


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# --- finite networks -----------------------------------------------------------------------------


class Net:
    """f(x) of a perceptron in the standard parametrisation with explicit layer inputs and gradients."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: Activation,
        g: np.random.Generator,
        weight: float,
        bias: float,
    ) -> None:
        sizes = [*widths, 1]
        self.activation = activation
        self.weights = [g.normal(0, np.sqrt(weight / n), (m, n)) for n, m in pairwise(sizes)]
        self.biases = [g.normal(0, np.sqrt(bias), m) for m in sizes[1:]]

    def forward(self, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Layer inputs a^0 .. a^{L-1} and pre-activations z^1 .. z^L."""
        a, z = [x], []
        for w, b in zip(self.weights, self.biases, strict=True):
            z.append(a[-1] @ w.T + b)
            a.append(self.activation.phi(z[-1]))
        return a[:-1], z

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.forward(x)[1][-1][:, 0]

    def taps(self, x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(a^{l-1}, delta^l) of every layer, delta^l = df / dz^l, shapes (N, n_{l-1}) and (N, n_l)."""
        a, z = self.forward(x)
        deltas = [np.ones((len(x), 1))]
        for w, below in zip(self.weights[:0:-1], z[-2::-1], strict=True):
            deltas.insert(0, (deltas[0] @ w) * self.activation.derivative(below))
        return list(zip(a, deltas, strict=True))


class Gram(NamedTuple):
    inputs: np.ndarray
    deltas: np.ndarray


def grams(net: Net, x: np.ndarray) -> list[Gram]:
    return [Gram(a @ a.T, d @ d.T) for a, d in net.taps(x)]


@each
def test_taps_are_the_jacobian(activation: Activation) -> None:
    """The oracle itself: every weight and bias of a tiny network by finite differences."""
    net = Net([3, 5, 4], activation, np.random.default_rng(1), 2.0, 0.3)
    h = 1e-6

    def jacobian(parameter: np.ndarray) -> np.ndarray:
        columns = []
        for at in np.ndindex(parameter.shape):
            old = parameter[at]
            ends = []
            for parameter[at] in (old + h, old - h):
                ends.append(net.output(X))
            parameter[at] = old
            columns.append((ends[0] - ends[1]) / (2 * h))
        return np.stack(columns, axis=1)

    for w, b, gram in zip(net.weights, net.biases, grams(net, X), strict=True):
        jw, jb = jacobian(w), jacobian(b)
        assert jw @ jw.T == pytest.approx(gram.inputs * gram.deltas, abs=1e-7)
        assert jb @ jb.T == pytest.approx(gram.deltas, abs=1e-7)


def simulate(
    activation: Activation, widths: Sequence[int], x: np.ndarray, nets: int, seed: int, bias: float
) -> np.ndarray:
    """NTK (NTK parametrisation, sigma_w^2 = 1.5) of each net, shape (nets, N, N).

    The gradient by an NTK-parametrised weight is sqrt(sigma_w^2 / n) times that by the effective weight, and
    sigma_b times for a bias.
    """
    result = []
    for i in range(nets):
        net = Net(widths, activation, np.random.default_rng([seed, i]), 1.5, bias)
        parts = [
            (1.5 / n * gram.inputs + bias) * gram.deltas
            for n, gram in zip(widths, grams(net, x), strict=True)
        ]
        result.append(np.sum(parts, axis=0))
    return np.array(result)


def converges(activation: Activation, nets: int, bias: float) -> tuple[float, float, float]:
    """Error of the mean of `nets` nets of width 1024; root-mean-square single-net errors at 256 and 1024."""
    x = inputs(6, 16)
    pieces = propagate(x, activation=activation, depth=4, weight_variance=1.5, bias_variance=bias)
    exact = full_kernel(ntk_layers(pieces), biases_trained=True)
    wide = simulate(activation, [16, 1024, 1024, 1024], x, nets, 0, bias)
    # Narrow nets cost a sixteenth.
    narrow = simulate(activation, [16, 256, 256, 256], x, 8 * nets, 1, bias)
    rms = [np.sqrt(np.mean([distance(k, exact) ** 2 for k in kernels])) for kernels in (narrow, wide)]
    return distance(wide.mean(axis=0), exact), float(rms[0]), float(rms[1])


@each
def test_wide_networks_approach_the_recursion(activation: Activation) -> None:
    mean_error, narrow, wide = converges(activation, 8, bias=0.2)
    assert mean_error < 0.10
    assert 1.5 <= narrow / wide <= 3  # 1 / sqrt(width): 2


@pytest.mark.slow
@each
@pytest.mark.parametrize("bias", [0.0, 0.2])
def test_the_error_of_a_network_falls_as_one_over_sqrt_width(activation: Activation, bias: float) -> None:
    """The mean of 64 is an eighth as far; the ratio is 2 up to about 9 %, its own standard error."""
    mean_error, narrow, wide = converges(activation, 64, bias)
    assert mean_error < 0.04
    assert 1.5 <= narrow / wide <= 2.6


@each
def test_each_layer_is_its_own_piece(activation: Activation) -> None:
    """q^l and P_l one by one, and n q^l P_l, P_l: the standard parametrisation's weights and biases."""
    x, widths = inputs(5, 12), [12, 600, 900]
    pieces = propagate(x, activation=activation, depth=3, weight_variance=1.5, bias_variance=0.2)
    layers = standard_layers(pieces, widths)
    nets = [grams(Net(widths, activation, np.random.default_rng([3, i]), 1.5, 0.2), x) for i in range(12)]
    for i, n in enumerate(widths):
        q = np.mean([net[i].inputs / n for net in nets], axis=0)
        p = np.mean([net[i].deltas for net in nets], axis=0)
        weight = np.mean([net[i].inputs * net[i].deltas for net in nets], axis=0)
        assert distance(q, pieces.q[i]) < 0.10
        assert distance(p, pieces.backward[i]) < 0.10
        assert distance(weight, layers.weights[i]) < 0.10
        assert layers.biases[i] is pieces.backward[i]


# --- the recursion by hand -----------------------------------------------------------------------


def one_entry(x: np.ndarray, z: np.ndarray, activation: Activation, depth: int, w: float, b: float) -> float:
    """Theta^L of one pair by the recursion Theta^l = Sigma^l + Theta^{l-1} Sdot^l, not by a sum of layers."""
    aa, bb, ab = (w * float(p @ q) / len(x) + b for p, q in ((x, x), (z, z), (x, z)))
    theta = ab
    for _ in range(depth - 1):
        slope = w * float(dual_derivative(activation, aa, bb, ab))
        ab, aa, bb = (
            w * float(dual(activation, *pair)) + b for pair in ((aa, bb, ab), (aa, aa, aa), (bb, bb, bb))
        )
        theta = ab + theta * slope
    return theta


@pytest.mark.parametrize("activation", [*CLOSED, TANH], ids=lambda a: a.name)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_sum_of_layers_is_the_recursion(activation: Activation, depth: int) -> None:
    pieces = propagate(Z, X, activation=activation, depth=depth, weight_variance=1.3, bias_variance=0.1)
    expected = [[one_entry(z, x, activation, depth, 1.3, 0.1) for x in X] for z in Z]
    assert full_kernel(ntk_layers(pieces), biases_trained=True) == pytest.approx(np.array(expected))
    assert pieces.depth == depth
    assert [len(part) for part in (pieces.q, pieces.slopes, pieces.backward)] == [depth, depth - 1, depth]


def test_a_linear_network() -> None:
    """Sigma^l = sigma_w^{2l} <x, x'> / n_0 and Theta^L = L Sigma^L, without biases."""
    pieces = propagate(Z, X, activation=LINEAR, depth=4, weight_variance=1.7)
    sigma = 1.7**4 * Z @ X.T / 3
    assert pieces.nngp == pytest.approx(sigma)
    assert full_kernel(ntk_layers(pieces), biases_trained=False) == pytest.approx(4 * sigma)
    standard = full_kernel(standard_layers(pieces, (3, 5, 7, 11)), biases_trained=False)
    assert standard == pytest.approx((3 + 5 + 7 + 11) / 1.7 * sigma)


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_he_initialised_relu_keeps_its_diagonal(depth: int) -> None:
    """sigma_w^2 = 2: Sigma^l_ii = 2 |x|^2 / n_0 at every depth, Sdot_ii = 1, Theta_ii = L Sigma_ii: exact."""
    x = inputs(60, 7)
    pieces = propagate(x, activation=RELU, depth=depth, weight_variance=2.0)
    diagonal = 2 * (x**2).sum(1) / 7
    assert np.diagonal(pieces.nngp) == pytest.approx(diagonal, rel=1e-14)
    assert all(np.diagonal(slope).tolist() == [1.0] * 60 for slope in pieces.slopes)
    theta = full_kernel(ntk_layers(pieces), biases_trained=False)
    assert np.diagonal(theta) == pytest.approx(depth * diagonal, rel=1e-14)


def test_biases_that_stay_frozen_leave_the_covariance() -> None:
    pieces = propagate(X, activation=GELU, depth=3, weight_variance=1.5, bias_variance=0.4)
    for layers, bias in ((ntk_layers(pieces), 0.4), (standard_layers(pieces, (3, 50, 70)), 1.0)):
        gap = full_kernel(layers, biases_trained=True) - full_kernel(layers, biases_trained=False)
        assert gap == pytest.approx(bias * sum(pieces.backward))


def test_zero_inputs() -> None:
    """Nothing comes through a ReLU network without biases, and no layer learns but the last bias."""
    pieces = propagate(np.zeros((1, 3)), X, activation=RELU, depth=3, weight_variance=2.0)
    assert not full_kernel(ntk_layers(pieces), biases_trained=True).any()
    layers = standard_layers(pieces, (3, 8, 8))
    assert full_kernel(layers, biases_trained=True).tolist() == [[1.0, 1.0, 1.0]]


# --- another library -----------------------------------------------------------------------------

# neural_tangents 0.6.5 (jax 0.4.30, float64): stax.serial(Dense(7), phi, Dense(11), phi, Dense(1)), every
# Dense with W_std^2 = 1.7, b_std^2 = 0.3 and the given parameterization; phi is Relu(), Erf() or
# Gelu(approximate=False); kernel_fn(X, None) (entries 00 01 02 11 12 22) and kernel_fn(Z, X) (row by row).
NNGP = {
    "relu": (
        [1.2998975, 0.993816705829, 1.033375415687, 1.566018333333, 1.009027525365, 1.959058333333],
        [1.044601715008, 1.30555444612, 0.899759300399, 0.817563008393, 1.09984649182, 1.224829186911],
    ),
    "erf": (
        [1.120273176861, 0.548805352215, 0.478102109625, 1.147168358323, 0.305457183667, 1.172238604369],
        [0.774908483491, 1.012519559192, 0.237258301773, 0.29401498295, 0.710325972696, 0.73643642966],
    ),
    "gelu": (
        [1.063097562011, 0.73707663494, 0.758542866009, 1.321392638275, 0.728024817354, 1.713329854429],
        [0.807486292293, 1.063326640625, 0.632934245249, 0.578918911688, 0.845420339133, 0.953861269914],
    ),
}
NTK = {
    "relu": (
        [3.0446925, 1.410456606665, 1.389364144538, 3.843055, 1.183390289811, 5.022175],
        [1.758171168841, 2.685459090887, 1.018355361881, 0.968262759679, 1.785427680304, 2.058997094493],
    ),
    "erf": (
        [3.063067999223, 0.853029545481, 0.643336112785, 3.284941677432, 0.125832083345, 3.536296154227],
        [1.577031070929, 2.53472525458, -0.093672359842, 0.073203677817, 1.366714954958, 1.461683817005],
    ),
    "gelu": (
        [2.506359081334, 1.067613674234, 1.023080398797, 3.319746584468, 0.821300283302, 4.549552778314],
        [1.445273782504, 2.369571012158, 0.67974913569, 0.660135378126, 1.451752356515, 1.708869693516],
    ),
}
STANDARD = {
    "relu": (
        [13.041675, 7.120102411231, 7.211418768945, 16.32905, 6.491064759683, 21.18425],
        [8.33935802301, 12.030593191765, 5.547852060788, 5.086011790325, 8.63515613632, 9.919816368012],
    ),
    "erf": (
        [12.34640892324, 3.785992068163, 2.885086272713, 12.932534120572, 0.737334859252, 13.563650299452],
        [6.778249335954, 10.389400486905, -0.103785070737, 0.632884223197, 5.881711683744, 6.220678822373],
    ),
    "gelu": (
        [10.510618224976, 5.105254199633, 5.056155815563, 13.818559618109, 4.319669722832, 18.815021718412],
        [6.483724151235, 10.127326159523, 3.50045656683, 3.241985673106, 6.653117480445, 7.822004019987],
    ),
}


def three_kernels(pieces: Pieces) -> list[np.ndarray]:
    return [
        pieces.nngp,
        full_kernel(ntk_layers(pieces), biases_trained=True),
        full_kernel(standard_layers(pieces, (3, 7, 11)), biases_trained=True),
    ]


@each
def test_against_the_table(activation: Activation) -> None:
    tables = [table[activation.name] for table in (NNGP, NTK, STANDARD)]
    setting = {"activation": activation, "depth": 3, "weight_variance": 1.7, "bias_variance": 0.3}
    for kernel, (triangle, _) in zip(three_kernels(propagate(X, **setting)), tables, strict=True):
        assert kernel[np.triu_indices(3)] == pytest.approx(triangle, rel=1e-6)
        assert kernel == pytest.approx(kernel.T, rel=1e-14)
    for kernel, (_, cross) in zip(three_kernels(propagate(Z, X, **setting)), tables, strict=True):
        assert kernel.ravel() == pytest.approx(cross, rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # the other library's own deprecations
@each
@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_against_the_library(activation: Activation, bias: float) -> None:
    jax = pytest.importorskip("jax")
    stax = pytest.importorskip("neural_tangents.stax")
    jax.config.update("jax_enable_x64", True)
    layer = {"relu": stax.Relu(), "erf": stax.Erf(), "gelu": stax.Gelu(approximate=False)}[activation.name]
    x, z = inputs(7, 5), inputs(4, 5, seed=1)
    pieces = propagate(z, x, activation=activation, depth=4, weight_variance=1.7, bias_variance=bias)
    ours = {"ntk": ntk_layers(pieces), "standard": standard_layers(pieces, (5, 8, 9, 10))}
    for parametrisation, layers in ours.items():
        # Without b_std there is no bias at all; b_std = 0 would be one that starts at 0 and is trained.
        dense = [
            stax.Dense(n, 1.7**0.5, bias**0.5 if bias else None, parameterization=parametrisation)
            for n in (8, 9, 10, 1)
        ]
        _, _, kernel = stax.serial(dense[0], layer, dense[1], layer, dense[2], layer, dense[3])
        theirs = kernel(z, x, ("nngp", "ntk"))
        assert pieces.nngp == pytest.approx(np.asarray(theirs.nngp), rel=1e-6)
        assert full_kernel(layers, biases_trained=bool(bias)) == pytest.approx(
            np.asarray(theirs.ntk), rel=1e-6
        )


# --- properties ----------------------------------------------------------------------------------


@each
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), depth=st.integers(1, 5), weight=st.floats(0.1, 3), bias=st.floats(0, 2)
)
def test_kernels_are_kernels(
    activation: Activation, seed: int, depth: int, weight: float, bias: float
) -> None:
    x = inputs(6, 3, seed)
    pieces = propagate(x, activation=activation, depth=depth, weight_variance=weight, bias_variance=bias)
    for kernel in (*pieces.q, *pieces.covariances, *pieces.backward, *ntk_layers(pieces).weights):
        assert kernel == pytest.approx(kernel.T, rel=1e-12, abs=1e-14)
        assert np.linalg.eigvalsh(kernel).min() >= -1e-7 * np.abs(kernel).max()
    for q, rows, columns in zip(pieces.q, pieces.q_rows, pieces.q_columns, strict=True):
        assert np.diagonal(q).tolist() == rows.tolist() == columns.tolist()


@given(factor=st.floats(1e-3, 1e3), depth=st.integers(1, 5))
def test_relu_networks_are_homogeneous(factor: float, depth: int) -> None:
    z, x = inputs(2, 3, seed=1), inputs(3, 3)
    one, scaled = (
        full_kernel(
            ntk_layers(propagate(f * z, f * x, activation=RELU, depth=depth, weight_variance=2.0)),
            biases_trained=False,
        )
        for f in (1.0, factor)
    )
    assert scaled == pytest.approx(factor**2 * one, rel=1e-10)


@each
def test_a_cross_kernel_is_a_block_of_the_square_one(activation: Activation) -> None:
    """Also where a test row repeats a training row (ReLU there to sqrt(eps), see `propagate`)."""
    x = inputs(3, 4)
    z = np.concatenate([inputs(2, 4, seed=1), x[1:2]])
    together = propagate(np.concatenate([z, x]), activation=activation, depth=4, weight_variance=1.5)
    cross = propagate(z, x, activation=activation, depth=4, weight_variance=1.5)
    for whole, block in zip(three_of(together), three_of(cross), strict=True):
        assert block == pytest.approx(whole[:3, 3:], rel=1e-6)
    for i in range(4):
        assert cross.q_rows[i] == pytest.approx(together.q_rows[i][:3])
        assert cross.q_columns[i] == pytest.approx(together.q_rows[i][3:])
    adapters = {1: Adapter(2, 1.0, 1.0, UNIFORM), 3: Adapter(4, 0.5, 2.0, NORMAL)}
    assert lora_variance(cross, adapters) == pytest.approx(
        lora_variance(together, adapters)[:3, 3:], rel=1e-6
    )


def three_of(pieces: Pieces) -> list[np.ndarray]:
    return [pieces.nngp, pieces.backward[0], full_kernel(ntk_layers(pieces), biases_trained=False)]


# --- LoRA: one layer, any width ------------------------------------------------------------------


def test_lora_by_finite_differences() -> None:
    """Jacobian by B at B = 0 of a small net: s^2 <delta, delta'> <A a, A a'>, and by A it is zero."""
    net = Net([3, 5, 4], GELU, np.random.default_rng(1), 2.0, 0.3)
    a = inputs(2, 5, seed=4)
    base, scaling, h = net.weights[1].copy(), 1.5, 1e-5
    columns = []
    for at in np.ndindex(4, 2):
        b = np.zeros((4, 2))
        b[at] = h
        net.weights[1] = base + scaling * b @ a
        up = net.output(X)
        net.weights[1] = base - scaling * b @ a
        columns.append((up - net.output(X)) / (2 * h))
    net.weights[1] = base
    layer_input, delta = net.taps(X)[1]
    reduced = layer_input @ a.T
    expected = scaling**2 * (delta @ delta.T) * (reduced @ reduced.T)
    assert np.array(columns).T @ np.array(columns) == pytest.approx(expected, abs=1e-8)


@each_law
def test_moments_over_8000_draws(kurtosis: float) -> None:
    """Mean within 4 standard errors, standard deviation within 5 %; gradients of several tokens."""
    g = np.random.default_rng(11)
    rank, k, scaling, n = 4, 0.7, 2.0, 12
    gradients = g.normal(size=(3, 2, n)) + np.eye(2, n) * 2  # rank two; one heavy diagonal of M
    moments = lora_moments(gradients, Adapter(rank, k, scaling, kurtosis))
    a = draw_a(g, (8000, rank, n), k, kurtosis)
    features = scaling * np.einsum("iap,drp->diar", gradients, a).reshape(8000, 3, -1)
    draws = np.einsum("dif,djf->dij", features, features)
    error = draws.std(axis=0) / np.sqrt(8000)
    assert np.all(np.abs(draws.mean(axis=0) - moments.mean) <= 4 * error)
    assert np.sqrt(moments.variance) == pytest.approx(draws.std(axis=0), rel=0.05)


def test_the_laws_differ_where_a_gradient_is_concentrated() -> None:
    """One input coordinate: K = s^2 d^2 x^2 |A_p|^2, variance r sigma^4 (2 + kurtosis)."""
    gradient = np.zeros((1, 1, 10))
    gradient[0, 0, 3] = 1.0
    for kurtosis in (NORMAL, UNIFORM):
        variance = lora_moments(gradient, Adapter(5, 2.0, 3.0, kurtosis)).variance
        assert variance == pytest.approx(np.array([[3.0**4 * 5 * 0.2**2 * (2 + kurtosis)]]))


def test_moments_against_the_n_by_n_matrix() -> None:
    g = inputs(4 * 3, 7).reshape(4, 3, 7)
    other = inputs(2 * 3, 7, seed=1).reshape(2, 3, 7)
    adapter = Adapter(3, 0.5, 1.5, UNIFORM)
    moments = lora_moments(g, adapter, other)
    for i in range(4):
        for j in range(2):
            m = g[i].T @ other[j]
            sym = (m + m.T) / 2
            spread = 2 * (sym**2).sum() + UNIFORM * (np.diagonal(m) ** 2).sum()
            assert moments.mean[i, j] == pytest.approx(1.5**2 * 3 * 0.5 / 7 * np.trace(m))
            assert moments.variance[i, j] == pytest.approx(1.5**4 * 3 * (0.5 / 7) ** 2 * spread)


def test_a_diagonal_entry_varies_by_sqrt_2_over_r() -> None:
    gradients = inputs(4, 9)[:, None, :]
    for rank in (1, 4, 9):
        moments = lora_moments(gradients, Adapter(rank, 1 / 3, 2.0, NORMAL))
        relative = np.sqrt(np.diagonal(moments.variance)) / np.diagonal(moments.mean)
        assert relative == pytest.approx(np.full(4, np.sqrt(2 / rank)))


# --- LoRA: the whole network ---------------------------------------------------------------------


@each_law
def test_a_linear_model_is_a_single_layer(kurtosis: float) -> None:
    adapter = Adapter(3, 1 / 3, 2.0, kurtosis)
    x, z = inputs(4, 6), inputs(5, 6, seed=1)
    pieces = propagate(z, x, activation=RELU, depth=1, weight_variance=1.0)
    moments = lora_moments(z[:, None, :], adapter, x[:, None, :])
    assert lora_mean(pieces, {1: adapter}) == pytest.approx(moments.mean)
    assert lora_variance(pieces, {1: adapter}) == pytest.approx(moments.variance)


def test_the_mean_is_c_times_the_layers() -> None:
    """In the standard parametrisation, by each layer's width, and recursively as Theta^l_LoRA."""
    widths = (3, 40, 60)
    pieces = propagate(Z, X, activation=GELU, depth=3, weight_variance=1.5, bias_variance=0.2)
    layers = standard_layers(pieces, widths)
    adapters = {
        1: Adapter(2, 1 / 3, 2.0, UNIFORM),
        2: Adapter(8, 0.5, 0.5, 0.0),
        3: Adapter(16, 1.0, 1.0, 0.0),
    }
    parts = [a.scale_factor(n) * K for a, n, K in zip(adapters.values(), widths, layers.weights, strict=True)]
    assert lora_mean(pieces, adapters) == pytest.approx(sum(parts))
    theta = np.zeros_like(pieces.q[0])
    for layer, slope in zip((1, 2, 3), (1.0, *pieces.slopes), strict=True):
        a = adapters[layer]
        theta = a.scaling**2 * a.rank * a.k * pieces.q[layer - 1] + theta * slope
    assert lora_mean(pieces, adapters) == pytest.approx(theta)


def test_what_is_not_adapted_is_frozen_or_trained() -> None:
    pieces = propagate(X, activation=ERF, depth=3, weight_variance=1.5, bias_variance=0.2)
    layers = standard_layers(pieces, (3, 40, 60))
    adapter = Adapter(8, 1 / 3, 2.0, NORMAL)
    for layer in (1, 2, 3):
        only = {layer: Adapter(2, 1 / 3, 2.0, NORMAL)} if layer == 1 else {layer: adapter}
        alone = lora_mean(pieces, only)
        for biases in (False, True):
            rest = lora_mean(pieces, only, unadapted(layers, only, biases_trained=biases)) - alone
            others = [i for i in range(3) if i != layer - 1]
            expected = sum(layers.weights[i] + biases * layers.biases[i] for i in others)
            assert rest == pytest.approx(expected)
    # bias="all" of peft: every bias beside the adapters.
    with_biases = lora_mean(pieces, {2: adapter}, layers.biases)
    assert with_biases - lora_mean(pieces, {2: adapter}) == pytest.approx(sum(pieces.backward))


def test_oold_is_theorem_3_3_at_the_mean() -> None:
    """Last layer, no biases: K_LoRA - K_FF = a^T (s^2 A^T A - I) a', on average (s^2 r k - n) q^L."""
    pieces = propagate(X, activation=RELU, depth=3, weight_variance=2.0)
    layers = standard_layers(pieces, (3, 40, 60))
    oold = {3: Adapter(16, 1 / 3, 1.5, NORMAL)}
    mean = lora_mean(pieces, oold, unadapted(layers, oold, biases_trained=False))
    gap = mean - full_kernel(layers, biases_trained=False)
    assert gap == pytest.approx((1.5**2 * 16 / 3 - 60) * pieces.q[-1])
    assert np.linalg.eigvalsh(gap).max() < 0


@each_law
def test_variance_of_the_limit_is_that_of_wishart_layers(kurtosis: float) -> None:
    """20,000 draws of s^2 P_l o (A a)(A a)^T: layer 1 on its inputs, layer 2 on its Gaussian limit."""
    g = np.random.default_rng(5)
    pieces = propagate(X, activation=RELU, depth=2, weight_variance=2.0, bias_variance=0.1)
    adapters = {1: Adapter(2, 0.6, 1.5, kurtosis), 2: Adapter(5, 1 / 3, 1.2, kurtosis)}
    count = 20_000
    first = np.einsum("drp,ip->dir", draw_a(g, (count, 2, 3), 0.6, kurtosis), X)
    # Sums over infinitely many entries of A are normal whatever the law: N(0, k q^2).
    second = np.einsum("ij,djr->dir", np.linalg.cholesky(pieces.q[1] / 3), g.normal(size=(count, 3, 5)))
    draws = 1.5**2 * pieces.backward[0] * np.einsum("dir,djr->dij", first, first)
    draws = draws + 1.2**2 * pieces.backward[1] * np.einsum("dir,djr->dij", second, second)
    error = draws.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(draws.mean(axis=0) - lora_mean(pieces, adapters)) <= 4 * error)
    # The excess kurtosis of these entries is below 12 / r = 6, so sd(sd) / sd <= sqrt(8 / (4 count)) = 1 %.
    assert np.sqrt(lora_variance(pieces, adapters)) == pytest.approx(draws.std(axis=0), rel=0.04)


def test_fixed_rank_stays_random_in_wide_networks() -> None:
    """Width 400: the realised kernel of one adapter varies over A as the limit says, whatever the law."""
    n, rank, count = 400, 4, 4000
    g = np.random.default_rng(8)
    layer_input, delta = Net([3, n, n], RELU, g, 2.0, 0.0).taps(X)[1]
    gradients = np.einsum("ia,ip->iap", delta, layer_input)
    adapter = Adapter(rank, 1 / 3, 2.0, UNIFORM)
    moments = lora_moments(gradients, adapter)
    reduced = draw_a(g, (count, rank, n), 1 / 3, UNIFORM) @ layer_input.T
    draws = 4.0 * (delta @ delta.T) * np.einsum("dri,drj->dij", reduced, reduced)
    error = draws.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(draws.mean(axis=0) - moments.mean) <= 4 * error)
    # sd(sd) / sd <= sqrt((12 / r + 2) / (4 count)) = 1.8 %.
    assert np.sqrt(moments.variance) == pytest.approx(draws.std(axis=0), rel=0.07)
    relative = np.sqrt(np.diagonal(moments.variance)) / np.diagonal(moments.mean)
    # Uniform entries lower it by at most 0.6 sum a_p^4 / (sum a_p^2)^2, which is of order 1 / n.
    assert relative == pytest.approx(np.full(3, np.sqrt(2 / rank)), rel=0.02)


# --- the scale factor ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "by_rank", "by_root", "one"),
    # alpha = 16, n = 1024, k = 1/3: 1/(12 r), 1/12 and r/3072.
    [
        (4, 1 / 48, 1 / 12, 4 / 3072),
        (8, 1 / 96, 1 / 12, 8 / 3072),
        (64, 1 / 768, 1 / 12, 64 / 3072),
        (512, 1 / 6144, 1 / 12, 512 / 3072),
    ],
)
def test_scale_factors_of_the_three_rules(rank: int, by_rank: float, by_root: float, one: float) -> None:
    scalings = (lora_scaling(rank, 16), rslora_scaling(rank, 16), lora_scaling(rank, rank))
    factors = [Adapter(rank, 1 / 3, s, UNIFORM).scale_factor(1024) for s in scalings]
    assert factors == pytest.approx([by_rank, by_root, one], rel=1e-12, abs=1e-12)


# --- as the paper prints it ----------------------------------------------------------------------


@each
def test_the_printed_recursion_line_by_line(activation: Activation) -> None:
    """Eq. 11-14 on one pair, with the sums of their second lines."""
    widths, rank, k = (3, 5, 7), 2, 0.4
    some, others = inputs(2, 3, seed=1), inputs(3, 3)
    for i, z in enumerate(some):
        for j, x in enumerate(others):
            aa, bb, ab = z @ z, x @ x, z @ x
            full = lora = ab
            for n in widths[1:]:
                slope = n * float(dual_derivative(activation, aa, bb, ab))
                ab, aa, bb = (
                    n * float(dual(activation, *p)) for p in ((aa, bb, ab), (aa, aa, aa), (bb, bb, bb))
                )
                full = full * slope + ab
                lora = lora * slope + rank * k / n * ab
            printed = ntk_as_printed(some, others, activation=activation, widths=widths)
            assert printed[i, j] == pytest.approx(full)
            printed = lora_ntk_as_printed(some, others, activation=activation, widths=widths, rank=rank, k=k)
            assert printed[i, j] == pytest.approx(lora)


def test_the_printed_recursion_grows_without_bound() -> None:
    """ReLU of L layers: n^{L-1} times the NTK of sigma_w^2 = 1, times n_0 for the inputs, exactly."""
    pieces = propagate(X, activation=RELU, depth=4, weight_variance=1.0)
    true = full_kernel(ntk_layers(pieces), biases_trained=False)
    for n in (128, 512, 2048):
        printed = ntk_as_printed(X, activation=RELU, widths=(3, n, n, n))
        assert printed / true == pytest.approx(np.full((3, 3), 3.0 * float(n) ** 3))


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [[1.0, np.nan]]}, "x: 1 of 2 values are NaN"),
        ({"x": [1.0, 2.0]}, r"x: expected inputs of shape \(N, n_0\), got \(2,\)"),
        ({"x": np.ones((0, 2))}, "expected inputs of shape"),
        ({"other": np.ones((2, 4))}, "other: expected inputs of size 2, got 4"),
        ({"other": [[np.inf, 1.0]]}, "other: 1 of 2"),
        ({"depth": 0}, "depth: expected a whole number >= 1, got 0"),
        ({"depth": 2.5}, "depth"),
        ({"weight_variance": 0.0}, "weight_variance: expected a finite number > 0"),
        ({"weight_variance": -1.0}, "weight_variance"),
        ({"bias_variance": -0.1}, "bias_variance: expected a finite number >= 0"),
        ({"bias_variance": np.nan}, "bias_variance"),
    ],
)
def test_networks_that_are_refused(change: dict[str, object], message: str) -> None:
    good = {"x": [[1.0, 2.0]], "activation": RELU, "depth": 2, "weight_variance": 2.0}
    with pytest.raises(UserError, match=message):
        propagate(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3, 5), "expected 3 widths, got 2"),
        ((4, 5, 6), "n_0 = 3"),
        ((), "n_0 = 3"),
        ((3, 0, 6), r"widths\[1\]"),
        ((3, np.nan, 6), r"widths\[1\]"),
    ],
)
def test_widths_that_are_refused(widths: tuple[int, ...], message: str) -> None:
    pieces = propagate(X, activation=RELU, depth=3, weight_variance=2.0)
    with pytest.raises(UserError, match=message):
        standard_layers(pieces, widths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number"),
        ({"rank": 1.5}, "rank"),
        ({"k": 0.0}, "k: expected a finite number > 0"),
        ({"k": -1.0}, "k: "),
        ({"scaling": 0.0}, "scaling"),
        ({"scaling": np.inf}, "scaling"),
        ({"kurtosis": -2.1}, "kurtosis: expected a finite number >= -2"),
    ],
)
def test_adapters_that_are_refused(change: dict[str, float], message: str) -> None:
    good = {"rank": 4, "k": 1 / 3, "scaling": 2.0, "kurtosis": 0.0}
    with pytest.raises(UserError, match=message):
        Adapter(**{**good, **change})  # type: ignore[arg-type]


def test_ranks_above_the_width_are_refused() -> None:
    pieces = propagate(X, activation=RELU, depth=2, weight_variance=2.0)
    wide = Adapter(4, 1 / 3, 1.0, 0.0)
    for call in (
        lambda: wide.scale_factor(3),
        lambda: lora_mean(pieces, {1: wide}),
        lambda: lora_variance(pieces, {1: wide}),
        lambda: lora_moments(X[:, None, :], wide),
        lambda: lora_ntk_as_printed(X, activation=RELU, widths=(3, 3), rank=4, k=1.0),
    ):
        with pytest.raises(UserError, match="rank up to in_features = 3, got 4"):
            call()
    assert lora_mean(pieces, {2: wide}).shape == (3, 3)  # hidden layers are infinitely wide


def test_layers_and_gradients_that_are_refused() -> None:
    pieces = propagate(X, activation=RELU, depth=2, weight_variance=2.0)
    adapter = Adapter(2, 1 / 3, 1.0, 0.0)
    for adapters, message in (
        ({3: adapter}, r"layers 1 .. 2, got \[3\]"),
        ({0: adapter}, "0"),
        ({}, "no layer"),
    ):
        for call in (lora_mean, lora_variance):
            with pytest.raises(UserError, match=message):
                call(pieces, adapters)
        with pytest.raises(UserError, match=message):
            unadapted(ntk_layers(pieces), adapters, biases_trained=True)
    for gradients, other, message in (
        (np.ones((2, 3)), None, r"gradients: expected shape \(N, m, n\)"),
        (np.ones((2, 3, 4)), np.ones((2, 3, 5)), "other: expected shape"),
        (np.full((2, 3, 4), np.nan), None, "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            lora_moments(gradients, adapter, other)
    for rule in (lora_scaling, rslora_scaling):
        with pytest.raises(UserError, match="alpha"):
            rule(4, 0.0)
        with pytest.raises(UserError, match="rank"):
            rule(0, 16.0)

"""Values of every indicator, from explicit Jacobians and loss gradients instead of kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from evidence_factory import EXAMPLES, PAIRS, N, World, gram, world
from scipy.integrate import quad
from scipy.special import log_softmax

from foretaste.indicators import INDICATORS, Drawn, Evidence, Law, LoraTraces, Twin, evaluate, read

MARGIN, LOGITS = world(None, seed=1), world()
both = pytest.mark.parametrize("here", [MARGIN, LOGITS], ids=["margin", "C=3"])


def loss(f: np.ndarray, y: int) -> float:
    """Cross-entropy of one row, from its definition."""
    if f.ndim == 0:
        return float(np.logaddexp(0.0, -y * f))
    return float(-log_softmax(f)[y])


def loss_gradients(logits: np.ndarray, labels: np.ndarray, J: np.ndarray) -> np.ndarray:
    """Gradients with respect to the parameters, (rows, P), the outer derivative by central differences."""
    rows, step = [], 1e-6
    for f, y, jacobian in zip(logits, labels, J, strict=True):
        shape = np.shape(f)
        g = np.zeros(shape)
        for at in np.ndindex(shape):
            h = np.zeros(shape)
            h[at] = step
            g[at] = (loss(f + h, y) - loss(f - h, y)) / (2 * step)
        rows.append(np.tensordot(g, jacobian, axes=(tuple(range(len(shape))), tuple(range(len(shape))))))
    return np.stack(rows)


def whole_arm(here: World) -> np.ndarray:
    return np.concatenate([here.arm, here.head], axis=-1)


def flat(J: np.ndarray) -> np.ndarray:
    return J.reshape(-1, J.shape[-1])


def empirical_fisher(here: World) -> np.ndarray:
    """P x P eigenvalues."""
    g = loss_gradients(here.logits, here.labels, whole_arm(here))
    return np.linalg.eigvalsh(g.T @ g / N)[::-1]


# Central differences with step h: h^2 = 1e-12 from the third derivative, 1e-16 / h = 1e-10 from rounding.
DIFFERENCES = {"rel": 1e-8, "abs": 1e-10}

Of = Callable[[np.ndarray], float]


def shannon(p: np.ndarray) -> float:
    return float(-np.sum(p * np.log(p)))


SPECTRAL: dict[str, Of] = {
    "bits_sum": lambda v: float(v.sum()) / 2,
    "bits_pdet": lambda v: math.log(float(np.prod(v))) / 2,
    "bits_1p": lambda v: math.log(float(np.prod(1 + v))) / 2,
    "renyi_0.5": lambda v: 2 * math.log(float(np.sqrt(v / v.sum()).sum())),
    "renyi_1": lambda v: shannon(v / v.sum()),
    "renyi_2": lambda v: -math.log(float(((v / v.sum()) ** 2).sum())),
    "renyi_inf": lambda v: -math.log(float(v.max() / v.sum())),
    "raw_renyi_0.5": lambda v: 2 * math.log(float(np.sqrt(v).sum())),
    "raw_renyi_2": lambda v: -math.log(float((v**2).sum())),
    "raw_renyi_inf": lambda v: -math.log(float(v.max())),
    "raw_shannon": shannon,
    "effective_rank": lambda v: math.exp(shannon(v / v.sum())),
    "stable_rank": lambda v: float(v.sum() / v.max()),
}


def test_every_spectral_indicator_has_a_formula_here() -> None:
    assert {name for name, member in INDICATORS.items() if member.needs == ("spectrum",)} == set(SPECTRAL)


@both
@pytest.mark.parametrize("name", SPECTRAL)
def test_of_the_empirical_fisher(name: str, here: World) -> None:
    values = empirical_fisher(here)[:N]  # N loss gradients, independent
    assert read(name, here.evidence()).value == pytest.approx(SPECTRAL[name](values), **DIFFERENCES)


@pytest.mark.parametrize("name", SPECTRAL)
def test_of_the_true_fisher(name: str) -> None:
    J, p = whole_arm(LOGITS), np.exp(log_softmax(LOGITS.logits, axis=1))
    matrix = sum(j.T @ (np.diag(q) - np.outer(q, q)) @ j for j, q in zip(J, p, strict=True)) / N
    values = np.linalg.eigvalsh(matrix)[::-1]
    values = values[: N * 2]  # C - 1 directions a row; the parameters are 12 and independent
    got = read(name, LOGITS.evidence(fisher="true")).value
    assert got == pytest.approx(SPECTRAL[name](values), rel=1e-9)


@pytest.mark.parametrize("name", SPECTRAL)
def test_of_the_kernel_itself(name: str) -> None:
    J = flat(whole_arm(LOGITS))
    values = np.linalg.svd(J)[1] ** 2 / N
    values = values[values > 1e-12 * values.max()]
    got = read(name, LOGITS.evidence(fisher="ntk")).value
    assert got == pytest.approx(SPECTRAL[name](values), rel=1e-9)


# --- two kernels ---------------------------------------------------------------------------------


@both
def test_sizes_of_two_kernels(here: World) -> None:
    found = evaluate(here.evidence())
    arm, full = (np.concatenate([J, here.head], axis=-1) for J in (here.arm, here.full))
    assert found["trace_ratio"].value == pytest.approx(float((arm**2).sum() / (full**2).sum()), rel=1e-12)
    below = float((here.arm**2).sum() / (here.full**2).sum())
    assert found["trace_ratio_without_head"].value == pytest.approx(below, rel=1e-12)


def test_an_arm_of_the_head_only_has_ratio_0_without_it() -> None:
    nothing = np.zeros_like(MARGIN.evidence().kernel_without_head)
    assert read("trace_ratio_without_head", MARGIN.evidence(kernel_without_head=nothing)).value == 0.0


@both
def test_alignments(here: World) -> None:
    found = evaluate(here.evidence())
    K, F = (gram(np.concatenate([J, here.head], axis=-1)).ravel() for J in (here.arm, here.full))
    cosine = float(K @ F / np.sqrt((K @ K) * (F @ F)))
    assert found["alignment"].value == pytest.approx(cosine, rel=1e-10)
    # Through the gradient of the alignment's own definition: <K, y y^T> entry by entry.
    if here.classes is None:
        y = here.labels.astype(float)
    else:
        y = (np.eye(here.classes)[here.labels] - 1 / here.classes).ravel()
    size, total = len(y), 0.0
    matrix = K.reshape(size, size)
    for i in range(size):
        for j in range(size):
            total += matrix[i, j] * y[i] * y[j]
    wanted = total / (np.linalg.norm(matrix) * np.linalg.norm(np.outer(y, y)))
    assert found["target_alignment"].value == pytest.approx(wanted, rel=1e-9)


def test_alignment_with_the_labels_is_1_for_their_own_kernel() -> None:
    y = np.array([1, -1, 1, 1])
    assert read("target_alignment", Evidence(kernel=np.outer(y, y), labels=y)).value == pytest.approx(1)
    other = np.array([1, 1, 1, -1])  # orthogonal to y
    assert read("target_alignment", Evidence(kernel=np.outer(other, other), labels=y)).value < 1e-15


def test_two_logits_align_with_labels_as_their_margin() -> None:
    rng = np.random.default_rng(3)
    J = rng.normal(size=(5, 7))
    two = np.stack([-J / 2, J / 2], axis=1)  # logits that mirror each other: the margin's Jacobian is J
    labels = np.array([0, 1, 1, 0, 1])
    margin = read("target_alignment", Evidence(kernel=J @ J.T, labels=2 * labels - 1)).value
    assert read("target_alignment", Evidence(kernel=gram(two), labels=labels)).value == pytest.approx(margin)


def test_loewner_top_is_the_least_multiple() -> None:
    evidence = LOGITS.evidence()
    size = N * 3
    K, F = (np.reshape(k, (size, size)) for k in (evidence.kernel, evidence.reference))
    t = read("loewner_top", evidence).value
    assert np.linalg.eigvalsh(t * 1.001 * F - K)[0] > 0 > np.linalg.eigvalsh(t * 0.999 * F - K)[0]
    missing = np.ones((2, 2))
    assert read("loewner_top", Evidence(kernel=np.eye(2), reference=missing)).value == math.inf


# --- adapters ------------------------------------------------------------------------------------


def test_drawn_adapters() -> None:
    found = evaluate(LOGITS.evidence())
    whole = [World.SCALINGS[name] ** 2 * A.T @ A for name, A in LOGITS.A.items()]
    tops = [float(np.linalg.eigvalsh(M)[-1]) for M in whole]
    assert found["adapter_top"].value == pytest.approx(max(tops), rel=1e-12)
    assert found["adapters_below_identity"].value == np.mean([top <= 1 for top in tops])
    mean = np.mean([np.trace(M) / len(M) for M in whole])
    assert found["scale_factor"].value == pytest.approx(float(mean), rel=1e-12)


def test_the_verdict_counts_layers() -> None:
    small, large = Drawn(np.eye(2, 4), 0.9), Drawn(np.eye(2, 4), 1.1)
    layers = {"a": small, "b": large, "c": large, "d": Drawn(np.eye(2, 4), 1.0)}  # 1 <= 1 holds
    assert read("adapters_below_identity", Evidence(layers=layers)).value == 0.5


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_laws_are_the_means_of_draws(kind: str) -> None:
    """theory.md 0.1: the paper's default r = 8, alpha = 16, k = 1/3, n = 1024 has c = .0104 and top 1.58."""
    n, r, k, s, draws = 1024, 8, 1 / 3, 2.0, 200
    rng = np.random.default_rng(4)

    def draw() -> np.ndarray:
        unit = rng.normal(size=(r, n)) if kind == "gaussian" else rng.uniform(-1, 1, (r, n)) * 3**0.5
        return unit * (k / n) ** 0.5

    law = evaluate(Evidence(layers={"q": Law(n, r, k, s)}))
    drawn = [evaluate(Evidence(layers={"q": Drawn(draw(), s)})) for _ in range(draws)]
    c = np.array([found["scale_factor"].value for found in drawn])
    assert law["scale_factor"].value == pytest.approx(s**2 * r * k / n, rel=1e-14)
    assert abs(c.mean() - law["scale_factor"].value) < 4 * c.std() / math.sqrt(draws)
    assert law["adapter_top"].value == pytest.approx(1.579, abs=5e-4)
    # Tops of draws lie below the edge or little above it (theory.md, item 2: within [1.45, 1.70]).
    assert 1.45 < np.mean([found["adapter_top"].value for found in drawn]) < 1.579
    assert law["adapters_below_identity"].value < 1e-3
    assert all(found["adapters_below_identity"].value == 0 for found in drawn)


def test_a_law_counts_with_its_probability() -> None:
    """r = 1 is chi^2 with n degrees of freedom: from the density, by quadrature."""
    n, k, s = 40, 0.8, 1.0

    def density(x: float) -> float:
        return math.exp((n / 2 - 1) * math.log(x) - x / 2 - n / 2 * math.log(2) - math.lgamma(n / 2))

    probability = quad(density, 0, n / (s**2 * k))[0]
    both_layers = {"sure": Law(100, 1, 1e-6, 1.0), "q": Law(n, 1, k, s)}
    got = read("adapters_below_identity", Evidence(layers=both_layers)).value
    assert got == pytest.approx((1 + probability) / 2, rel=1e-8)
    assert 0.55 < got < 0.99


# --- pairs ---------------------------------------------------------------------------------------


@both
def test_m_prime(here: World) -> None:
    clean, poisoned = here.twin[:PAIRS], here.twin[PAIRS:]
    blocks = [np.atleast_2d(a @ b.T) for a, b in zip(clean, poisoned, strict=True)]
    lengths = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in zip(clean, poisoned, strict=True)]
    unit = [block / length for block, length in zip(blocks, lengths, strict=True)]
    found = evaluate(here.evidence())
    for norm, order in (("fro", "fro"), ("op", 2)):
        for name, these in ((f"m_prime_{norm}", blocks), (f"m_prime_cosine_{norm}", unit)):
            mean = np.mean(these, axis=0)
            wanted = math.sqrt((mean**2).sum()) if order == "fro" else np.linalg.svd(mean)[1][0]
            assert found[name].value == pytest.approx(float(wanted), rel=1e-10), name


@both
def test_gradients_of_pairs(here: World) -> None:
    g = loss_gradients(here.twin_logits, here.twin_labels, here.twin)
    clean, poisoned = g[:PAIRS], g[PAIRS:]
    products = (clean * poisoned).sum(1)
    cosines = products / (np.linalg.norm(clean, axis=1) * np.linalg.norm(poisoned, axis=1))
    wanted = {
        "pull_mean_abs": np.abs(products).mean(),
        "pull_abs_mean": abs(products.mean()),
        "pull_mean_abs_cosine": np.abs(cosines).mean(),
        "pull_mean_cosine": cosines.mean(),
        "one_step": np.linalg.norm((clean - poisoned).sum(0) / EXAMPLES),
    }
    found = evaluate(here.evidence())
    for name, expected in wanted.items():
        assert found[name].value == pytest.approx(float(expected), **DIFFERENCES), name


def test_one_step_is_a_real_step() -> None:
    """A linear model is trained for one step on both data sets, rows that stay included."""
    rng = np.random.default_rng(5)
    x, rate = rng.normal(size=(20, 6)), 0.7
    y = np.sign(rng.normal(size=20))
    other_x, other_y = x.copy(), y.copy()
    other_x[:3], other_y[:3] = other_x[:3] + 1.0, -y[:3]

    def step(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return rate * np.mean([y / (1 + 1.0) * row for row, y in zip(rows, labels, strict=True)], axis=0)

    moved = np.linalg.norm(step(x, y) - step(other_x, other_y))  # sigma(0) = 1/2 at theta = 0
    changed = np.concatenate([x[:3], other_x[:3]])
    twin = Twin(changed @ changed.T, np.zeros(6), np.concatenate([y[:3], other_y[:3]]), examples=20)
    assert rate * read("one_step", Evidence(twin=twin)).value == pytest.approx(float(moved), rel=1e-12)


def test_a_binary_flip_has_cosine_minus_1() -> None:
    rng = np.random.default_rng(6)
    J, f, y = rng.normal(size=(5, 8)), rng.normal(size=5), np.array([1, -1, 1, 1, -1])
    K = np.tile(J @ J.T, (2, 2))
    found = evaluate(Evidence(twin=Twin(K, np.tile(f, 2), np.concatenate([y, -y]), examples=5)))
    assert found["pull_mean_cosine"].value == pytest.approx(-1, abs=1e-12)
    assert found["m_prime_cosine_fro"].value == pytest.approx(1, abs=1e-12)  # M' does not see the flip
    p = 1 / (1 + np.exp(-f))
    assert found["pull_mean_abs"].value == pytest.approx(
        float(np.mean(p * (1 - p) * (J**2).sum(1))), rel=1e-12
    )


def test_orthogonal_pairs_are_a_finding_and_no_error() -> None:
    found = evaluate(Evidence(twin=Twin(np.eye(4), np.zeros(4), np.array([1, -1, 1, -1]), examples=2)))
    assert found["m_prime_fro"].value == 0
    assert found["pull_mean_cosine"].value == 0
    # Four orthogonal gradients of length 1/2, over N = 2: half the root of 4/4.
    assert found["one_step"].value == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize(("a", "b", "wanted"), [(0.0, 2.0, 0.0), (0.3, 1.5, 0.2)])
def test_lazy_ratio(a: float, b: float, wanted: float) -> None:
    assert read("lazy_ratio", Evidence(traces=LoraTraces(a, b))).value == pytest.approx(wanted)

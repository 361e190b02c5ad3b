"""Moments and accuracy under flips against draws of flips, and against every set of flips."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import norm

from foretaste.errors import UserError
from foretaste.theory import flow
from foretaste.theory import label_noise as ln
from foretaste.theory.layout import Layout, decide, one_hot
from foretaste.theory.regression import decompose

DRAWS = 4000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_predictor(n: int, m: int, classes: int | None, seed: int = 0) -> flow.LinearPredictor:
    g = rng(seed)
    shape = (m, n) if classes is None else (m, classes, n, classes)
    return flow.linear_predictor(g.normal(size=shape) / np.sqrt(n), g.normal(size=shape[: len(shape) // 2]))


def random_labels(n: int, classes: int | None, seed: int = 0) -> np.ndarray:
    g = rng(seed)
    return 2 * g.integers(0, 2, n) - 1 if classes is None else g.integers(0, classes, n)


def task(
    n: int, m: int, seed: int, noise: float = 0.3
) -> tuple[flow.LinearPredictor, np.ndarray, np.ndarray]:
    """A quadratic kernel under gradient flow on noisy linear labels, with the true labels of test rows."""
    g = rng(seed)
    dims = 10
    w, x, z = g.normal(size=dims), g.normal(size=(n, dims)), g.normal(size=(m, dims))
    y = np.where(x @ w + noise * g.normal(size=n) > 0, 1, -1)
    d = decompose((1 + x @ x.T / dims) ** 2)
    p = flow.predictor_at(d, (1 + z @ x.T / dims) ** 2, flow.flow_filter(d, time=float(n)))
    return p, y, np.where(z @ w > 0, 1, -1)


each_layout = pytest.mark.parametrize("classes", [None, 2, 3])


# --- moments --------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("flips", [0, 1, 2, 4])
def test_exact_moments_over_every_set_of_flips(classes: int | None, flips: int) -> None:
    """All C(4, m) (C - 1)^m poisoned label vectors, each alike: no sampling error at all."""
    p, y = random_predictor(4, 3, classes), random_labels(4, classes)
    outcomes = []
    for chosen in combinations(range(4), flips):
        for steps in product(range(1, classes or 2), repeat=flips):
            poisoned = y.copy()
            for i, step in zip(chosen, steps, strict=True):
                poisoned[i] = -y[i] if classes is None else (y[i] + step) % classes
            outcomes.append(flow.respond(p, one_hot(poisoned, p.layout)))
    f = np.array(outcomes)
    found = ln.exact_moments(p, y, flips)
    assert found.mean == pytest.approx(f.mean(axis=0), abs=1e-12)
    assert found.variance == pytest.approx(f.var(axis=0), abs=1e-12)
    if classes is not None:
        c = f - f.mean(axis=0)
        assert found.covariance == pytest.approx(np.einsum("kma,kmb->mab", c, c) / len(f), abs=1e-12)


@each_layout
def test_bernoulli_moments_over_every_outcome(classes: int | None) -> None:
    p, y, rate = random_predictor(4, 3, classes), random_labels(4, classes), 0.3
    others = (classes or 2) - 1
    mean = square = 0.0
    for steps in product(range(others + 1), repeat=4):
        moved = sum(s > 0 for s in steps)
        weight = rate**moved * (1 - rate) ** (4 - moved) / others**moved
        poisoned = np.array(
            [
                (v if s == 0 else -v) if classes is None else (v + s) % classes
                for v, s in zip(y, steps, strict=True)
            ]
        )
        f = flow.respond(p, one_hot(poisoned, p.layout))
        mean, square = mean + weight * f, square + weight * f**2
    found = ln.bernoulli_moments(p, y, rate)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.variance == pytest.approx(square - mean**2, abs=1e-12)


def test_the_formulas_of_the_binary_case() -> None:
    p, y = random_predictor(30, 7, None), random_labels(30, None)
    s, m = p.smoother, np.array([0, 3, 15, 30])
    rho = m / 30
    expected = p.offset + (1 - 2 * rho)[:, None] * (s @ y)
    spread = 4 * rho * (1 - rho)
    assert ln.bernoulli_moments(p, y, rho).mean == pytest.approx(expected, abs=1e-12)
    assert ln.bernoulli_moments(p, y, rho).variance == pytest.approx(
        spread[:, None] * (s**2).sum(axis=1), abs=1e-12
    )
    exact = ln.exact_moments(p, y, m)
    assert exact.mean == pytest.approx(expected, abs=1e-12)
    inner = (s**2).sum(axis=1) - (s @ y) ** 2 / 30
    assert exact.variance == pytest.approx((spread * 30 / 29)[:, None] * inner, abs=1e-12)


def test_the_expected_label_of_c_classes() -> None:
    """E Y~ = (1 - rho C/(C-1)) Y + rho/(C-1), and the outputs are linear in it."""
    p, y, rho = random_predictor(10, 4, 3), random_labels(10, 3), 0.2
    expected = flow.respond(p, (1 - rho * 3 / 2) * one_hot(y, p.layout) + rho / 2)
    assert ln.bernoulli_moments(p, y, rho).mean == pytest.approx(expected, abs=1e-12)


def test_two_logits_are_the_margin() -> None:
    """S (x) I_2 on one-hot labels: the difference of the logits has the moments of the scalar output."""
    s, y = rng(1).normal(size=(5, 9)), random_labels(9, None)
    one = flow.linear_predictor(s)
    two = flow.linear_predictor(np.einsum("ij,cd->icjd", s, np.eye(2)))
    for flips in (0, 2, 9):
        a, b = ln.exact_moments(one, y, flips), ln.exact_moments(two, (y + 1) // 2, flips)
        assert b.mean[:, 1] - b.mean[:, 0] == pytest.approx(a.mean, abs=1e-12)
        c = b.covariance
        assert c[:, 0, 0] + c[:, 1, 1] - 2 * c[:, 0, 1] == pytest.approx(a.variance, abs=1e-12)
        test = np.where(a.mean + 0.3 * rng(2).normal(size=5) > 0, 1, -1)
        assert ln.normal_accuracy(b, (test + 1) // 2) == pytest.approx(ln.normal_accuracy(a, test), abs=1e-9)


@each_layout
@pytest.mark.parametrize("law", ["exact", "bernoulli"])
def test_four_thousand_random_flips(classes: int | None, law: str) -> None:
    """Mean within 4 standard errors, variance within 8 % (3.6 standard errors of a normal's variance)."""
    n, m, rate = 60, 4, 0.2
    p, y = random_predictor(n, m, classes), random_labels(n, classes)
    draws = ln.draw_flips(y, classes, draws=DRAWS, rng=rng(7))
    if law == "exact":
        moments, poisoned = ln.exact_moments(p, y, 12), ln.flipped_labels(draws, 12)
    else:
        moments = ln.bernoulli_moments(p, y, rate)
        poisoned = np.where(rng(8).random((DRAWS, n)) < rate, draws.other, y)
    f = flow.respond(p, one_hot(poisoned, p.layout))
    z = (f.mean(axis=0) - moments.mean) / np.sqrt(moments.variance / DRAWS)
    assert np.abs(z).max() < 4
    assert f.var(axis=0) / moments.variance == pytest.approx(np.ones(moments.variance.shape), abs=0.08)


def test_moments_over_a_grid_of_rates() -> None:
    p, y = random_predictor(8, 3, 3), random_labels(8, 3)
    grid = np.array([[0, 1, 2], [4, 6, 8]])
    many = ln.exact_moments(p, y, grid)
    assert (many.mean.shape, many.covariance.shape) == ((2, 3, 3, 3), (2, 3, 3, 3, 3))
    for at in np.ndindex(2, 3):
        one = ln.exact_moments(p, y, grid[at])
        assert many.mean[at] == pytest.approx(one.mean)
        assert many.covariance[at] == pytest.approx(one.covariance, abs=1e-14)
    assert np.abs(many.covariance[0, 0]).max() == 0


# --- draws ----------------------------------------------------------------------------------------


@each_layout
def test_draws_are_exact_nested_and_uniform(classes: int | None) -> None:
    y = random_labels(12, classes)
    draws = ln.draw_flips(y, classes, draws=6000, rng=rng(3))
    before = np.broadcast_to(y, draws.rank.shape)
    for flips in range(13):
        poisoned = ln.flipped_labels(draws, flips)
        changed = poisoned != y
        assert np.all(changed.sum(axis=1) == flips)
        kept = before != y
        assert np.array_equal(
            poisoned[kept], before[kept]
        )  # what was flipped stays flipped, to the same class
        before = poisoned
    share = (ln.flipped_labels(draws, 3) != y).mean(axis=0)
    assert np.abs(share - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 6000)
    if classes == 3:
        up = np.mean(ln.flipped_labels(draws, 12) == (y + 1) % 3)
        assert abs(up - 0.5) < 4.5 * np.sqrt(0.25 / (6000 * 12))


def test_counts_are_the_package_s_rule() -> None:
    """floor(rate * rows + 1/2), and no silent zero (`attacks.base.choose`)."""
    assert ln.flip_counts([0, 0.05, 0.15, 0.25, 1.0], 10).tolist() == [0, 1, 2, 3, 10]
    with pytest.raises(UserError, match=r"a rate of 0\.01 poisons none of the 10 rows"):
        ln.flip_counts([0.0, 0.01], 10)


@each_layout
def test_drawn_accuracy_against_one_draw_at_a_time(classes: int | None) -> None:
    p, y, test = random_predictor(15, 20, classes), random_labels(15, classes), random_labels(20, classes, 9)
    draws = ln.draw_flips(y, classes, draws=7, rng=rng(1))
    found = ln.drawn_accuracy(p, draws, test, [0, 4, 15])
    for r, flips in enumerate([0, 4, 15]):
        for k in range(7):
            poisoned = ln.flipped_labels(draws, flips)[k]
            scores = flow.respond(p, one_hot(poisoned, p.layout))
            assert found.accuracy[r, k] == np.mean(decide(scores, p.rows) == test)
    assert found.mean == pytest.approx(found.accuracy.mean(axis=1))
    assert found.sd == pytest.approx(np.std(found.accuracy, axis=1, ddof=1))
    assert found.sd[0] == pytest.approx(0.0, abs=1e-15)
    assert found.flips.tolist() == [0, 4, 15]
    one = ln.draw_flips(y, classes, draws=1, rng=rng(1))
    assert np.isnan(ln.drawn_accuracy(p, one, test, [4]).sd).all()


# --- the normal approximation ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_phi_against_draws(seed: int) -> None:
    p, y, test = task(200, 300, seed)
    flips = ln.flip_counts([0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], 200)
    phi = ln.normal_accuracy(ln.exact_moments(p, y, flips), test)
    drawn = ln.drawn_accuracy(p, ln.draw_flips(y, None, draws=1000, rng=rng(seed)), test, flips)
    # 1000 draws: standard error below 0.003 where accuracy varies most.
    assert np.abs(phi - drawn.mean).max() <= 0.03
    assert phi[0] == pytest.approx(drawn.mean[0])  # no flips: both are the accuracy of the clean predictor
    assert phi[0] - phi[-1] > 0.3


def test_at_half_the_labels_nothing_is_known() -> None:
    """rho = 1/2 without offset: the mean is 0 and every example a coin."""
    p, y, test = task(100, 50, 0)
    assert ln.normal_accuracy(ln.bernoulli_moments(p, y, 0.5), test) == pytest.approx(0.5, abs=1e-12)


def test_only_margin_over_spread_matters() -> None:
    p, y, test = task(60, 80, 3)
    rho = 0.2
    margin = test * (p.smoother @ y) / np.linalg.norm(p.smoother, axis=1)
    expected = norm.cdf((1 - 2 * rho) / (2 * np.sqrt(rho * (1 - rho))) * margin).mean()
    assert ln.normal_accuracy(ln.bernoulli_moments(p, y, rho), test) == pytest.approx(expected, abs=1e-12)
    scaled = flow.linear_predictor(50 * p.smoother)
    assert ln.normal_accuracy(ln.bernoulli_moments(scaled, y, rho), test) == pytest.approx(expected)


def test_sampled_normal_of_two_classes_is_phi() -> None:
    s, y = rng(1).normal(size=(40, 30)), random_labels(30, None)
    two = flow.linear_predictor(np.einsum("ij,cd->icjd", s, np.eye(2)))
    test = random_labels(40, 2, 5)
    moments = ln.exact_moments(two, (y + 1) // 2, [0, 3, 9])
    sampled = ln.sampled_normal_accuracy(moments, test, draws=2000, rng=rng(2))
    closed = ln.normal_accuracy(moments, test)
    assert sampled[0] == closed[0]
    assert np.abs(sampled - closed).max() < 4 * 0.5 / np.sqrt(2000 * 40)


def test_sampled_normal_of_three_classes_against_draws_of_flips() -> None:
    g, n, m = rng(4), 150, 120
    x, z, w = g.normal(size=(n, 8)), g.normal(size=(m, 8)), g.normal(size=(8, 3))
    y, test = (x @ w).argmax(axis=1), (z @ w).argmax(axis=1)
    d = decompose((1 + x @ x.T / 8) ** 2)
    s = flow.smoother_at(d, (1 + z @ x.T / 8) ** 2, flow.flow_filter(d, time=float(n)))
    p = flow.linear_predictor(np.einsum("ij,cd->icjd", s, np.eye(3)))
    flips = [0, 15, 45, 75]
    normal = ln.sampled_normal_accuracy(ln.exact_moments(p, y, flips), test, draws=1000, rng=rng(5))
    drawn = ln.drawn_accuracy(p, ln.draw_flips(y, 3, draws=500, rng=rng(6)), test, flips)
    assert np.abs(normal - drawn.mean).max() <= 0.03
    assert drawn.mean[0] - drawn.mean[-1] > 0.1


# --- speed ----------------------------------------------------------------------------------------


def _sweep(n: int, m: int, rates: int, draws: int) -> float:
    """Seconds for all rates, draws and three budgets once the kernel exists, from its decomposition on."""
    g = rng(0)
    x, z = g.normal(size=(n, 50)), g.normal(size=(m, 50))
    kernel, cross = (1 + x @ x.T / 50) ** 2, (1 + z @ x.T / 50) ** 2
    y, test = np.where(x[:, 0] > 0, 1, -1), np.where(z[:, 0] > 0, 1, -1)
    start = time.perf_counter()
    d = decompose(kernel)
    many = ln.draw_flips(y, None, draws=draws, rng=g)
    flips = ln.flip_counts(np.linspace(0, 0.5, rates), n)
    for phi in flow.flow_filter(d, time=np.array([1.0, 10.0, 100.0])):
        found = ln.drawn_accuracy(flow.predictor_at(d, cross, phi), many, test, flips)
        assert found.accuracy.shape == (rates, draws)
    return time.perf_counter() - start


def test_draws_are_not_a_loop() -> None:
    """All draws at once against one at a time, in the same run, so that a busy machine slows both."""
    p, y, test = task(250, 250, 0)
    draws, flips = ln.draw_flips(y, None, draws=400, rng=rng(0)), ln.flip_counts([0.1, 0.2, 0.3], 250)

    def one_at_a_time() -> None:
        for m in flips:
            for poisoned in ln.flipped_labels(draws, m):
                np.mean(decide(flow.respond(p, poisoned), p.rows) == test)

    def best_of_three(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    at_once = best_of_three(lambda: ln.drawn_accuracy(p, draws, test, flips))
    assert 2 * at_once < best_of_three(one_at_a_time)


@pytest.mark.slow
def test_the_full_sweep_takes_less_than_ten_seconds() -> None:
    assert _sweep(1000, 1000, 40, 200) < 10


# --- what is refused ------------------------------------------------------------------------------

P = random_predictor(4, 3, None)
Y = np.array([1, -1, 1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ln.bernoulli_moments(P, Y, 1.5), r"rate: expected shares in \[0, 1\], got 1.5"),
        (lambda: ln.bernoulli_moments(P, Y, [0.1, -0.1]), "got -0.1"),
        (lambda: ln.bernoulli_moments(P, Y, np.nan), "NaN"),
        (lambda: ln.bernoulli_moments(P, [1, -1], 0.1), "expected 4 labels"),
        (lambda: ln.bernoulli_moments(P, [0, 1, 1, 1], 0.1), r"labels -1 and \+1"),
        (lambda: ln.bernoulli_moments(P, [Y, Y], 0.1), "one vector of 4 labels"),
        (lambda: ln.exact_moments(P, Y, 5), r"flips: expected whole numbers in \[0, 4\], got 5"),
        (lambda: ln.exact_moments(P, Y, -1), "got -1"),
        (lambda: ln.exact_moments(P, Y, 0.5), "got 0.5"),
        (lambda: ln.flip_counts(1.1, 10), "shares in"),
        (lambda: ln.draw_flips([0, 1], None, draws=2, rng=rng()), r"labels -1 and \+1"),
        (lambda: ln.draw_flips(1, None, draws=2, rng=rng()), "labels"),
        (lambda: ln.draw_flips(Y, None, draws=0, rng=rng()), "at least 1 draw"),
        (lambda: ln.normal_accuracy(ln.exact_moments(P, Y, 1), [1, -1]), "expected 3 labels"),
        (
            lambda: ln.normal_accuracy(
                ln.exact_moments(random_predictor(4, 3, 3), [0, 1, 2, 0], 1), [0, 1, 2]
            ),
            "for two classes, got 3. Use sampled_normal_accuracy",
        ),
        (
            lambda: ln.sampled_normal_accuracy(ln.exact_moments(P, Y, 1), [1, 1, 1], draws=5, rng=rng()),
            "a scalar output needs no samples",
        ),
        (
            lambda: ln.drawn_accuracy(P, ln.draw_flips(Y, None, draws=2, rng=rng()), [1, 1, 1], 2),
            r"flips: expected shape \(R,\)",
        ),
        (
            lambda: ln.drawn_accuracy(P, ln.draw_flips([1, -1], None, draws=2, rng=rng()), [1, 1, 1], [1]),
            "expected 4 labels",
        ),
    ],
)
def test_requests_that_are_refused(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]


def test_one_training_row() -> None:
    p = flow.linear_predictor([[2.0]])
    assert ln.exact_moments(p, [1], [0, 1]).mean.tolist() == [[2.0], [-2.0]]
    assert ln.exact_moments(p, [1], [0, 1]).variance.tolist() == [[0.0], [0.0]]
    assert p.rows == Layout(1, None)

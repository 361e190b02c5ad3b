"""Oracles, properties and coverage of the statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foretaste import statistics as s

samples = st.lists(st.floats(-1, 1, allow_nan=False, width=32), min_size=1, max_size=9)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- summaries -----------------------------------------------------------------------------------


def test_summary_against_scipy() -> None:
    x = rng().normal(size=7)
    result = s.summary(x)
    low, high = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    assert result.interval == s.Interval(pytest.approx(low), pytest.approx(high))
    assert result.sd == pytest.approx(np.std(x, ddof=1))
    assert (result.n, result.median) == (7, pytest.approx(np.median(x)))


@pytest.mark.parametrize("values", [[], [0.9], [0.9, 0.9, 0.9]])
def test_no_interval_out_of_nothing(values: list[float]) -> None:
    assert not s.summary(values).interval.defined
    assert not s.summary(values).interval.excludes(5.0)


def test_sd_of_one_value_is_nan_and_nan_is_refused() -> None:
    assert math.isnan(s.summary([1.0]).sd)
    with pytest.raises(ValueError, match="finite"):
        s.summary([1.0, float("nan")])


@given(samples)
def test_iqm_is_the_trimmed_mean_of_the_sample_repeated_four_times(x: list[float]) -> None:
    # Every value four times over: then a quarter of the sample is a whole number of values.
    assert s.summary(x).iqm == pytest.approx(stats.trim_mean(np.repeat(x, 4), 0.25), abs=1e-12)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_scipy(case: tuple[int, int]) -> None:
    k, n = case
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    result = s.wilson(k, n)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= result.low <= k / n <= result.high <= 1.0


def test_wilson_edges() -> None:
    assert not s.wilson(0, 0).defined
    with pytest.raises(ValueError, match=r"0\.\.n"):
        s.wilson(3, 2)


# --- paired differences --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_sign_flip_p_against_brute_force(d: list[int]) -> None:
    patterns = [
        abs(sum(a * b for a, b in zip(sign, d, strict=True)))
        for sign in itertools.product((1, -1), repeat=len(d))
    ]
    expected = np.mean([value >= abs(sum(d)) for value in patterns])
    assert s.paired_difference(d, [0] * len(d), rng=rng()).p == pytest.approx(expected)


def test_sign_flip_p_against_scipy() -> None:
    d = rng(1).normal(0.5, 1, size=9)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert s.paired_difference(d, np.zeros(9), rng=rng()).p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("n", "resolvable"), [(1, False), (5, False), (6, True)])
def test_what_n_seeds_can_show(n: int, resolvable: bool) -> None:
    result = s.paired_difference(np.arange(1.0, n + 1), np.zeros(n), rng=rng())
    assert result.p == result.smallest_p == min(1.0, 2 / 2**n)
    assert result.resolvable is resolvable


def test_monte_carlo_p_agrees_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    d = rng(3).normal(0.3, 1, size=12)
    exact = s.paired_difference(d, np.zeros(12), rng=rng()).p
    monkeypatch.setattr(s, "ENUMERATED_PAIRS", 3)
    simulated = s.paired_difference(d, np.zeros(12), rng=rng()).p
    assert simulated == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / s.RESAMPLES))
    certain = s.paired_difference(np.ones(40), np.zeros(40), rng=rng()).p
    assert certain == 1 / (s.RESAMPLES + 1)


@settings(max_examples=20, deadline=None)
@given(samples, st.integers(0, 99))
def test_swapping_the_arms_mirrors_the_result(x: list[float], seed: int) -> None:
    y = rng(seed).normal(size=len(x))
    there, back = s.paired_difference(x, y, rng=rng()), s.paired_difference(y, x, rng=rng())
    assert there.mean == pytest.approx(-back.mean, abs=1e-9)
    assert there.p == back.p
    assert there.t.low == pytest.approx(-back.t.high, abs=1e-9, nan_ok=True)


def test_no_pairs_and_unequal_lengths() -> None:
    none = s.paired_difference([], [], rng=rng())
    assert (none.n, none.resolvable) == (0, False)
    assert math.isnan(none.p)
    with pytest.raises(ValueError, match="equal lengths"):
        s.paired_difference([1.0], [1.0, 2.0], rng=rng())


@pytest.mark.parametrize(
    ("n", "least"), [(0, 1.0), (1, 1.0), (5, 0.0625), (14, 2.0**-13), (15, 1e-4), (40, 1e-4)]
)
def test_the_least_p_is_what_the_test_gives_for_the_largest_effect(n: int, least: float) -> None:
    assert s.least_p(n) == pytest.approx(least)
    if n:
        found = s.paired_difference(np.ones(n), np.zeros(n), rng=rng())
        assert found.smallest_p == s.least_p(n)
        # By chance some of the 9,999 draws have all signs alike.
        assert s.least_p(n) <= found.p <= s.least_p(n) * (1 if n <= s.ENUMERATED_PAIRS else 10)


def test_crossed_seeds_err_too_often_as_independent_pairs_and_are_not_tested() -> None:
    """3 x 3 seeds of two sources with half of the variance each and no effect: the t test's 5 % are 20 %."""
    g = rng()
    draws = 2_000
    values = g.normal(size=(draws, 3, 1)) + g.normal(size=(draws, 3, 3))
    flat = values.reshape(draws, 9)
    error = flat.std(1, ddof=1) / 3
    wrong = np.mean(np.abs(flat.mean(1) / error) > stats.t.ppf(0.975, 8))
    assert wrong > 0.15  # of a binomial share of 2,000 around 0.19, whose standard error is 0.009
    found = s.paired_difference(flat[0], np.zeros(9), rng=rng(), independent=False)
    assert found.mean == pytest.approx(flat[0].mean())
    assert not found.t.defined
    assert not found.bootstrap.defined
    assert math.isnan(found.p)
    assert (found.smallest_p, found.resolvable) == (1.0, False)


def test_differences_that_are_equal_but_for_rounding_have_no_interval() -> None:
    """Three runs that each lose two of 200 rows, from other shares."""
    lost = [161 / 200 - 163 / 200, 150 / 200 - 152 / 200, 155 / 200 - 157 / 200]
    assert len(set(lost)) > 1
    found = s.summary(lost)
    assert found.mean == pytest.approx(-0.01)
    assert not found.interval.defined
    paired = s.paired_difference(lost, np.zeros(3), rng=rng())
    assert not paired.t.defined
    assert not paired.bootstrap.defined
    assert s.summary([-0.01, -0.01, -0.015]).interval.defined


def _normal(g: np.random.Generator, n: int) -> np.ndarray:
    return g.normal(size=n)


def _collapsing(g: np.random.Generator, n: int) -> np.ndarray:
    return g.normal(size=n) + 8.0 * (g.random(n) < 0.1) - 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "n", "bootstrap", "t"),
    [
        (_normal, 3, 0.748, 0.95),
        (_normal, 5, 0.829, 0.95),
        (_normal, 10, 0.901, 0.95),
        (_collapsing, 3, 0.616, 0.902),
        (_collapsing, 5, 0.657, 0.834),
        (_collapsing, 10, 0.728, 0.786),
    ],
)
def test_coverage_of_nominal_95_percent(
    draw: Callable[[np.random.Generator, int], np.ndarray],
    n: int,
    bootstrap: float,
    t: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The coverage that `paired_difference` documents (its numbers come from 20,000 samples)."""
    monkeypatch.setattr(s, "RESAMPLES", 999)
    g, rounds = rng(42), 2_000
    results = [s.paired_difference(draw(g, n), np.zeros(n), rng=g) for _ in range(rounds)]
    for name, expected in (("bootstrap", bootstrap), ("t", t)):
        covered = np.mean([not getattr(result, name).excludes(0.0) for result in results])
        # Both numbers are simulated: four standard errors of their difference.
        noise = math.sqrt(expected * (1 - expected) * (1 / rounds + 1 / 20_000))
        assert covered == pytest.approx(expected, abs=4 * noise), name


# --- several tests -------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert s.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        s.holm([1.5])


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms())
def test_holm_properties(p: list[float], shuffle: object) -> None:
    adjusted = s.holm(p)
    assert np.all(adjusted >= np.asarray(p))
    assert np.all(adjusted <= 1)
    order = sorted(range(len(p)), key=lambda _: shuffle.random())  # type: ignore[attr-defined]
    assert s.holm([p[i] for i in order]) == pytest.approx(adjusted[order] if p else [])
    padded = s.holm([*p, float("nan")])
    assert padded[:-1] == pytest.approx(adjusted)
    assert math.isnan(padded[-1])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_against_binomtest(rows: list[tuple[bool, bool]]) -> None:
    a, b = [left for left, _ in rows], [right for _, right in rows]
    result = s.mcnemar(a, b)
    discordant = result.only_a + result.only_b
    expected = stats.binomtest(result.only_a, discordant).pvalue if discordant else 1.0
    assert result.p == pytest.approx(expected)
    assert result.only_a == sum(x and not y for x, y in rows)


# --- seeds x rows --------------------------------------------------------------------------------


def test_two_way_bootstrap_equals_the_naive_one() -> None:
    g = rng(5)
    a, b = g.random((3, 8)) < 0.8, g.random((3, 8)) < 0.6
    d = a.astype(float) - b
    naive = []
    for _ in range(20_000):
        seeds, rows = g.integers(0, 3, 3), g.integers(0, 8, 8)
        naive.append(d[np.ix_(seeds, rows)].mean())
    result = s.paired_bootstrap(a, b, rng(), resamples=20_000)
    assert result.mean == pytest.approx(d.mean())
    # The statistic lives on a lattice of 1/24; quantiles of two simulations differ by a step at most or two.
    assert (result.interval.low, result.interval.high) == pytest.approx(
        np.quantile(naive, [0.025, 0.975]), abs=2 / 24
    )


def test_two_way_bootstrap_needs_two_of_each() -> None:
    assert not s.paired_bootstrap(np.ones((1, 9)), np.zeros((1, 9)), rng()).interval.defined
    with pytest.raises(ValueError, match="one shape"):
        s.paired_bootstrap(np.ones((2, 3)), np.ones((2, 4)), rng())


@pytest.mark.slow
def test_two_way_bootstrap_covers_when_seeds_are_many() -> None:
    g, rounds, hits = rng(6), 300, 0
    for _ in range(rounds):
        noise = g.normal(size=(12, 1)) + g.normal(size=(1, 60)) + g.normal(size=(12, 60))
        hits += not s.paired_bootstrap(noise, np.zeros_like(noise), g, resamples=399).interval.excludes(0.0)
    # Seeds alone give 91-92 % at n = 12, rows push it up: anything from there to 1 is as documented.
    assert hits / rounds > 0.905 - 3 * math.sqrt(0.905 * 0.095 / rounds)


# --- variance by source --------------------------------------------------------------------------


def test_variance_components_of_an_additive_table() -> None:
    init, order = np.repeat([0, 1, 2], 4), np.tile([0, 1, 2, 3], 3)
    u, v = np.array([0.0, 1.0, 5.0]), np.array([0.0, 2.0, 3.0, 7.0])
    result = s.variance_by_source(
        u[init] + v[order], {"init": init.tolist(), "order": order.tolist(), "data": [0] * 12}
    )
    assert result is not None
    assert result.sources == {
        "init": pytest.approx(np.var(u, ddof=1)),
        "order": pytest.approx(np.var(v, ddof=1)),
    }
    assert result.residual == pytest.approx(0.0, abs=1e-12)


def test_variance_components_are_unbiased() -> None:
    g, rounds = rng(7), 3_000
    init, order = np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4)
    found = []
    for _ in range(rounds):
        y = 2.0 * g.normal(size=4)[init] + g.normal(size=5)[order] + 0.5 * g.normal(size=20)
        result = s.variance_by_source(y, {"init": init.tolist(), "order": order.tolist()})
        assert result is not None
        found.append([result.sources["init"], result.sources["order"], result.residual])
    error = np.std(found, axis=0) / math.sqrt(rounds)
    assert np.all(np.abs(np.mean(found, axis=0) - [4.0, 1.0, 0.25]) < 4 * error)


@pytest.mark.parametrize(
    "factors",
    [
        {"init": [0, 1, 2, 3], "order": [0, 1, 2, 3]},  # one seed for both
        {"init": [0, 1, 2, 3]},  # nothing to tell it from
        {"init": [0, 0, 1, 1], "order": [0, 1, 0, 0]},  # a combination is missing
        {"init": [0, 0, 0, 0]},
    ],
)
def test_designs_that_cannot_tell_sources_apart(factors: dict[str, list[int]]) -> None:
    assert s.variance_by_source([0.1, 0.2, 0.3, 0.5], factors) is None


def test_variance_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="levels"):
        s.variance_by_source([1.0, 2.0], {"init": [0]})

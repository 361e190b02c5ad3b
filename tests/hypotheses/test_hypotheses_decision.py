"""The rule: what it decides, how often it errs with few seeds, and what it says when it cannot decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from foretaste import statistics
from foretaste.hypotheses.decision import ALPHA, Decided, Sign, Weighed, decide, weigh

Floats = np.ndarray
Draw = Callable[[np.random.Generator, int], Floats]


def weighed(
    values: Sequence[float], predicts: Sign = 1, margin: float | None = None, **more: bool
) -> Weighed:
    return weigh(values, predicts=predicts, margin=margin, rng=np.random.default_rng(0), **more)


def decided(values: Sequence[float], predicts: Sign = 1, margin: float | None = None) -> Decided:
    return decide([weighed(values, predicts, margin)])[0]


RISING = (4.0, 5.0, 6.0, 5.5)


def test_interval_and_p_are_those_of_the_t_test() -> None:
    found = weighed(RISING)
    paired = statistics.paired_difference(RISING, np.zeros(4), rng=np.random.default_rng(0))
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (paired.t.low, paired.t.high), rel=1e-12
    )
    assert found.p == pytest.approx(stats.ttest_1samp(RISING, 0.0).pvalue, rel=1e-12)
    assert found.p_exact == paired.p == 2 / 16
    assert found.interval_90.low == pytest.approx(statistics.summary(RISING, 0.9).interval.low, rel=1e-12)


@pytest.mark.parametrize(("predicts", "decision"), [(1, "supported"), (-1, "contradicted")])
def test_a_direction_is_decided_by_the_side(predicts: Sign, decision: str) -> None:
    assert decided(RISING, predicts).decision == decision
    assert decided([-value for value in RISING], -predicts).decision == decision  # type: ignore[arg-type]


def test_equivalence_is_two_one_sided_tests() -> None:
    values = [0.5, -0.2, 0.4, 0.1]
    found = weighed(values, 0, 2.0)
    above = stats.ttest_1samp(values, -2.0, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 2.0, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below), rel=1e-12)
    assert found.p_exact == found.smallest_p == 1 / 16
    assert decided(values, 0, 2.0).decision == "supported"


@pytest.mark.parametrize("shift", [-1.0, 1.0])
@pytest.mark.parametrize("margin", [0.4, 0.6, 0.8, 1.2, 1.6, 2.2])
def test_equivalence_agrees_with_its_two_intervals(shift: float, margin: float) -> None:
    values = np.array([0.8, 1.1, 1.3, 0.9]) * shift
    found = weighed(values, 0, margin)
    inside = -margin <= found.interval_90.low and found.interval_90.high <= margin
    outside = found.interval.low >= margin or found.interval.high <= -margin
    expected = "supported" if inside else "contradicted" if outside else "not resolved"
    assert decide([found])[0].decision == expected


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.1]])
def test_fewer_than_three_seeds_decide_nothing(values: list[float]) -> None:
    found = decide([weighed(values), weighed(RISING)])
    assert found[0].decision == ("not resolved" if values else "no records")
    assert math.isnan(found[0].p_holm)
    assert found[1].tests == 1  # what was not tested costs the others nothing
    assert found[1].p_holm == weighed(RISING).p


def test_seeds_without_spread_decide_nothing_even_if_the_last_bits_differ() -> None:
    for values in ([2.0] * 3, [0.4 / 3, 0.1 + 0.1 / 3, 0.2 - 0.2 / 3]):
        found = weighed(values)
        assert math.isnan(found.p)
        assert not found.interval.defined
        assert decide([found])[0].decision == "not resolved"
        assert decide([weighed(values, 0, 5.0)])[0].decision == "not resolved"


def test_decisions_are_corrected_over_all_and_do_not_depend_on_their_order() -> None:
    family = [weighed(RISING), weighed([1.0, 2.0, 0.4, 1.6]), weighed([1.0, -1.0, 0.5, -0.7])]
    forward, backward = decide(family), decide(family[::-1])
    assert forward == backward[::-1]
    assert [item.p_holm for item in forward] == pytest.approx(
        list(statistics.holm([item.p for item in family])), rel=1e-12
    )
    assert {item.tests for item in forward} == {3}
    lonely = [decide([item])[0].decision for item in family]
    assert lonely == ["supported", "supported", "not resolved"]
    assert [item.decision for item in forward] == ["supported", "not resolved", "not resolved"]


def test_exact_needs_the_sign_flip_test_to_show_it_with_the_same_correction() -> None:
    six = [5.0, 6.0, 5.5, 4.5, 5.2, 4.8]
    assert weighed(six).p_exact == 2 / 64
    assert decide([weighed(six)])[0].exact
    assert not decide([weighed(six), weighed([1.0, -1.0, 0.5])])[0].exact  # 2 x 2 / 64
    five = decide([weighed(six[:5])])[0]
    assert five.decision == "supported"
    assert not five.exact
    assert five.least_holm == 2 / 32


def test_distances_from_a_mean_cost_a_degree_of_freedom_and_have_no_exact_test() -> None:
    found = weighed(RISING, centred=True)
    error = np.std(RISING, ddof=1) / 2
    assert found.p == pytest.approx(2 * stats.t.sf(np.mean(RISING) / error, 2), rel=1e-12)
    assert math.isnan(found.p_exact)
    assert not decide([found])[0].exact


def test_margin_and_direction_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="margin"):
        weighed(RISING, 1, 2.0)
    with pytest.raises(ValueError, match="margin"):
        weighed(RISING, 0)


# --- how often it errs: the table of docs/decisions/0011-verdicts-on-findings.md ------------------


def collapsing(rng: np.random.Generator, n: int) -> Floats:
    """One arm collapses in one run of ten, by eight standard deviations; else nothing differs."""
    return rng.normal(size=n) - 8 * (rng.random(n) < 0.1)


LAWS: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t with 3 degrees of freedom": lambda rng, n: rng.standard_t(3, n),
    "Cauchy": lambda rng, n: rng.standard_cauchy(n),
    "collapsing": collapsing,
    "rounded to 0.4 sd": lambda rng, n: np.round(rng.normal(size=n) / 0.4) * 0.4,
    "skewed (exponential)": lambda rng, n: rng.exponential(size=n) - 1,
}
ERRORS = {
    3: {"normal": 5.0, "t with 3 degrees of freedom": 3.9, "Cauchy": 2.3, "collapsing": 3.7,
        "rounded to 0.4 sd": 3.6, "skewed (exponential)": 11.5},
    5: {"normal": 5.0, "t with 3 degrees of freedom": 3.7, "Cauchy": 1.9, "collapsing": 3.1,
        "rounded to 0.4 sd": 4.9, "skewed (exponential)": 11.7},
}  # fmt: skip


@pytest.fixture
def no_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        statistics, "RESAMPLES", 1
    )  # it plays no part in the rule, and takes most of the time


TRIALS = pytest.mark.parametrize("trials", [500, pytest.param(5_000, marks=pytest.mark.slow)])


def within(count: int, share: float, trials: int) -> bool:
    """Four standard errors of a binomial share."""
    return abs(count / trials - share) <= 4 * math.sqrt(share * (1 - share) / trials)


@TRIALS
@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("law", LAWS)
def test_false_claims_without_an_effect(law: str, n: int, trials: int) -> None:
    rng = np.random.default_rng(n)
    claims = sum(decided(LAWS[law](rng, n)).decision != "not resolved" for _ in range(trials))
    assert within(claims, ERRORS[n][law] / 100, trials)


@TRIALS
@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize("n", [3, 5])
def test_false_claims_of_no_influence_at_the_margin(n: int, trials: int) -> None:
    rng = np.random.default_rng(n)
    decisions = [decided(rng.normal(2.0, 1.0, n), 0, 2.0).decision for _ in range(trials)]
    assert within(decisions.count("supported"), 0.05, trials)
    assert within(decisions.count("contradicted"), 0.025, trials)


@TRIALS
@pytest.mark.usefixtures("no_bootstrap")
def test_false_claims_beyond_a_margin_stay_below_five_per_cent_on_both_sides(trials: int) -> None:
    """With a margin that is small beside the noise the error can be made on either side."""
    rng = np.random.default_rng(2)
    claims = [decided(rng.normal(0.0, 1.0, 5), 0, 0.01).decision for _ in range(trials)]
    assert within(claims.count("contradicted"), 0.05, trials)


@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize("n", [3, 5])
def test_false_claims_among_many(n: int) -> None:
    """Of ten true nulls, five of them at their margin, beside five real effects."""
    rng, calls, wrong = np.random.default_rng(n), 120, 0
    for _ in range(calls):
        nulls = [weighed(rng.normal(size=n)) for _ in range(5)]
        nulls += [weighed(rng.normal(0.5, 1.0, n), 0, 0.5) for _ in range(5)]
        real = [weighed(rng.normal(9.0, 1.0, n)) for _ in range(5)]
        found = decide([*nulls, *real])
        wrong += any(item.decision == "supported" for item in found[5:10]) or any(
            item.decision != "not resolved" for item in found[:5]
        )
    assert wrong / calls <= ALPHA + 4 * math.sqrt(ALPHA * (1 - ALPHA) / calls)


@TRIALS
@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize(("n", "effect"), [(3, 3.26), (5, 1.68)])
def test_power_of_one_test(n: int, effect: float, trials: int) -> None:
    rng = np.random.default_rng(n)
    found = sum(decided(rng.normal(effect, 1.0, n)).decision == "supported" for _ in range(trials))
    assert within(found, 0.8, trials)


@TRIALS
@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize(("n", "least", "most"), [(3, 0.0, 0.001), (5, 0.03, 0.06), (8, 0.04, 0.065)])
def test_false_claims_of_a_difference_in_spread(n: int, least: float, most: float, trials: int) -> None:
    """Distances from the mean of the same seeds, two arms that spread alike."""
    rng, claims = np.random.default_rng(n), 0
    for _ in range(trials):
        arms = rng.normal(size=(2, n))
        low, high = np.abs(arms - arms.mean(axis=1, keepdims=True))
        found = weigh(high - low, predicts=1, margin=None, rng=rng, centred=True)
        claims += found.p <= ALPHA
    slack = 4 * math.sqrt(0.05 * 0.95 / trials)
    assert least - slack <= claims / trials <= most + slack

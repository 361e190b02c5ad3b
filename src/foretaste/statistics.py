"""Statistics for few seeds: summaries, paired differences, tests, variance by source.

A cell of a sweep has three to ten seeds. Every result here therefore says what so few numbers can and cannot
show: what is undefined is NaN (an interval from one seed, or from seeds that all gave the same number), and a
test states the smallest p that its number of pairs can reach at all.

Every function is pure; those that draw random numbers take the generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats: TypeAlias = npt.NDArray[np.float64]
Values: TypeAlias = Sequence[float] | Floats

LEVEL = 0.95
RESAMPLES = 9_999
ENUMERATED_PAIRS = 14  # 2^14 sign patterns take a few milliseconds; beyond, Monte Carlo


@dataclass(frozen=True)
class Interval:
    """A confidence interval; both ends are NaN where the data cannot give one."""

    low: float
    high: float

    @property
    def defined(self) -> bool:
        """Both ends are numbers."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def excludes(self, value: float) -> bool:
        """The interval is defined and `value` lies outside it."""
        return self.defined and not self.low <= value <= self.high


UNDEFINED = Interval(float("nan"), float("nan"))


@dataclass(frozen=True)
class Summary:
    """One sample: location, spread and an interval for its mean."""

    n: int
    mean: float
    sd: float
    median: float
    iqm: float
    interval: Interval


@dataclass(frozen=True)
class PairedDifference:
    """Differences a - b over pairs (seeds)."""

    n: int
    mean: float
    median: float
    t: Interval
    bootstrap: Interval
    p: float
    smallest_p: float
    resolvable: bool


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same rows: rows that only one of them gets right, and the exact p."""

    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class CrossedDifference:
    """Mean difference over seeds x rows with a two-way bootstrap interval."""

    seeds: int
    rows: int
    mean: float
    interval: Interval


@dataclass(frozen=True)
class VarianceComponents:
    """Variance that each source adds, and what is left (interactions, nondeterminism)."""

    sources: dict[str, float]
    residual: float


def summary(values: Values, level: float = LEVEL, *, independent: bool = True) -> Summary:
    """Summarise a sample.

    Args:
        values: Shape (n,), finite. The order does not matter.
        level: Coverage of the interval for the mean.
        independent: As in `paired_difference`.

    Returns:
        `sd` has ddof 1 and is NaN for n < 2. `interval` is Student's t interval; it is undefined for n < 2,
        for values that are not independent, and when all are equal, because a sample without spread says
        nothing about the spread.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    x = _finite(values)
    if x.size == 0:
        nan = float("nan")
        return Summary(0, nan, nan, nan, nan, UNDEFINED)
    sd = float(x.std(ddof=1)) if x.size > 1 else float("nan")
    interval = _t_interval(x, level) if independent else UNDEFINED
    return Summary(x.size, float(x.mean()), sd, float(np.median(x)), _iqm(x), interval)


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval for a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Raises:
        ValueError: `successes` is not in 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n, got {successes} of {n}")
    if n == 0:
        return UNDEFINED
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the formula meets the border exactly; rounding must not step over it.
    low = 0.0 if successes == 0 else float(centre - half)
    return Interval(low, 1.0 if successes == n else float(centre + half))


def paired_difference(
    a: Values, b: Values, *, rng: np.random.Generator, level: float = LEVEL, independent: bool = True
) -> PairedDifference:
    """Compare two arms over the same seeds.

    Three answers to one question, because each fails in its own way with few pairs:

    * Student's t interval: the one to read. Exact for normal differences, too wide or off-centre when a run
      collapsed.
    * Percentile bootstrap interval of the mean. Percentile and not BCa: BCa's acceleration is a skewness
      estimated from n jackknife values, which at n = 3..5 adds noise and can leave the range of the data.
      Both are too narrow for few
      pairs: simulated coverage of the 95 % interval for normal differences (20,000 samples each) is
      75 %, 83 % and 90 % at n = 3, 5 and 10, against 95 % at each n for t;
      one pair in ten shifted by 8 standard deviations (a collapsed run) brings the bootstrap to 62 %, 66 %
      and 73 % and t to 90 %, 83 % and 79 %. `tests/test_statistics.py` repeats the simulation.
    * Sign-flip permutation test of "the differences are symmetric about 0", two-sided on |mean|: exact by
      enumeration up to 14 pairs, else Monte Carlo with p = (b + 1) / (m + 1), which never is 0
      (B. Phipson and G. K. Smyth, "Permutation p-values should never be zero", SAGMB 9 (2010)).

    Args:
        a: Shape (n,), one number a seed.
        b: Shape (n,), the same seeds in the same order.
        rng: For the bootstrap, and for the permutations beyond enumeration.
        level: Coverage of the intervals; 1 - level is what `resolvable` asks the test to reach.
        independent: Whether the pairs are independent draws. Pairs of crossed seeds are not
            (`seeds.crossed`): a t test over 3 x 3 of them, half of the variance from one stream, errs in 20 %
            of cases where 5 % are meant. Intervals and p are undefined then.

    Returns:
        The difference a - b. `smallest_p` is `least_p`; `resolvable` says whether that reaches 1 - level.

    Raises:
        ValueError: The shapes differ, or a value is not finite.
    """
    first, second = _finite(a), _finite(b)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equal lengths, got {first.size} and {second.size}")
    d = first - second
    smallest = least_p(d.size) if independent else 1.0
    if d.size == 0:
        nan = float("nan")
        return PairedDifference(0, nan, nan, UNDEFINED, UNDEFINED, nan, 1.0, False)
    return PairedDifference(
        n=d.size,
        mean=float(d.mean()),
        median=float(np.median(d)),
        t=_t_interval(d, level) if independent else UNDEFINED,
        bootstrap=_percentile_bootstrap(d, rng, level) if independent else UNDEFINED,
        p=_sign_flip_p(d, rng) if independent else float("nan"),
        smallest_p=smallest,
        resolvable=smallest <= _alpha(level),
    )


def least_p(pairs: int) -> float:
    """The least two-sided p that the sign-flip test of so many pairs can give, however large the effect.

    2 / 2^n where all signs are tried: five pairs cannot reach 0.05 (2 / 32 = 0.0625). Beyond
    `ENUMERATED_PAIRS` no less than a Monte Carlo test of `RESAMPLES` draws can say.
    """
    if pairs <= ENUMERATED_PAIRS:
        return min(1.0, 2.0 ** (1 - pairs))
    return 1.0 / (RESAMPLES + 1)


def holm(p: Values) -> Floats:
    """Holm's adjusted p values, controlling the family-wise error rate under any dependence.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979). The
    result is monotone in every argument, so adjusting the smallest attainable p values gives the smallest
    attainable adjusted ones.

    Args:
        p: Shape (m,); NaN is a test that could not be done: it stays NaN and does not count.

    Raises:
        ValueError: A value is outside [0, 1].
    """
    raw = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(raw))
    if np.any((raw[known] < 0) | (raw[known] > 1)):
        raise ValueError("p values must lie in [0, 1]")
    order = known[np.argsort(raw[known], kind="stable")]
    steps = raw[order] * np.arange(order.size, 0, -1)
    adjusted = np.full(raw.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if order.size else []
    return adjusted


def mcnemar(a_correct: npt.ArrayLike, b_correct: npt.ArrayLike) -> McNemar:
    """McNemar's exact test of two classifiers on the same rows.

    Of the rows that exactly one classifier gets right, each is the better one with probability 1/2 under the
    null; p is the two-sided binomial tail. Q. McNemar, Psychometrika 12 (1947).

    Args:
        a_correct: Shape (rows,), booleans.
        b_correct: Shape (rows,), the same rows in the same order.

    Raises:
        ValueError: The shapes differ.
    """
    a, b = np.asarray(a_correct, dtype=bool), np.asarray(b_correct, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"rows differ: {a.shape} and {b.shape}")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    return McNemar(only_a, only_b, float(min(1.0, 2.0 * tail)))


def paired_bootstrap(
    correct_a: npt.ArrayLike,
    correct_b: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = 1_999,
) -> CrossedDifference:
    """Interval of a mean difference when both other seeds and other test rows could have been drawn.

    Seeds and rows are resampled independently, and the two arms keep their pairing in both: the pigeonhole
    bootstrap for crossed random effects (A. B. Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007)).
    It is mildly conservative for the rows; its seed part is as narrow as any bootstrap of that few seeds (see
    `paired_difference`).

    Args:
        correct_a: Shape (seeds, rows), 0 or 1, or any score.
        correct_b: Shape (seeds, rows), the same seeds and rows.
        rng: For the resampling.
        level: Coverage.
        resamples: Number of bootstrap samples.

    Returns:
        `interval` is undefined with fewer than two seeds or two rows, where one of the two spreads is
        unknown.

    Raises:
        ValueError: The inputs are not two matrices of one shape.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two (seeds, rows) matrices of one shape, got {a.shape} and {b.shape}")
    d = a - b
    seeds, rows = d.shape
    mean = float(d.mean()) if d.size else float("nan")
    if seeds < 2 or rows < 2:
        return CrossedDifference(seeds, rows, mean, UNDEFINED)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    drawn = rng.integers(0, rows, size=(resamples, rows))
    means = np.take_along_axis(weights @ d, drawn, axis=1).mean(axis=1)
    return CrossedDifference(seeds, rows, mean, _quantiles(means, level))


def variance_by_source(
    values: Values, factors: Mapping[str, Sequence[Hashable]]
) -> VarianceComponents | None:
    """Main-effect variance components of a balanced crossed design, by the method of moments.

    Model y = mean + sum of one random effect a factor + residual. With N values, L_f levels of factor f and
    mean squares MS, E[MS_f] = var_residual + (N / L_f) var_f (S. R. Searle et al., "Variance Components",
    1992, chapter 4). Interactions cannot be told from noise and go to the residual; with three or more
    factors, strong two-way interactions also raise the main effects.

    Args:
        values: Shape (N,), one number a run.
        factors: For each source (such as "init") the level of each run, N long. A factor with one level is
            left out.

    Returns:
        Unbiased estimates, which may be negative: then the source adds nothing that stands out from the
        residual. None when the design cannot tell sources apart: fewer than two of them vary, they vary
        together (one seed for all four streams), some combinations are missing or repeated more often than
        others, or no residual is left.

    Raises:
        ValueError: A factor's length differs from the number of values, or a value is not finite.
    """
    y = _finite(values)
    for name, levels in factors.items():
        if len(levels) != y.size:
            raise ValueError(f"factor {name!r} has {len(levels)} levels for {y.size} values")
    varying = {name: list(levels) for name, levels in factors.items() if len(set(levels)) > 1}
    counts = Counter(zip(*varying.values(), strict=True)) if varying else Counter()
    sizes = {name: len(set(levels)) for name, levels in varying.items()}
    balanced = len(counts) == np.prod(list(sizes.values())) and len(set(counts.values())) == 1
    spare = y.size - 1 - sum(size - 1 for size in sizes.values())
    if len(varying) < 2 or not balanced or spare < 1:
        return None
    squares = {name: _square_sum(y, levels) for name, levels in varying.items()}
    residual = float((np.sum((y - y.mean()) ** 2) - sum(squares.values())) / spare)
    return VarianceComponents(
        sources={
            name: (squares[name] / (size - 1) - residual) * size / y.size for name, size in sizes.items()
        },
        residual=residual,
    )


def _square_sum(y: Floats, levels: Sequence[Hashable]) -> float:
    """Between-level sum of squares of one factor."""
    groups: dict[Hashable, list[float]] = {}
    for value, level in zip(y, levels, strict=True):
        groups.setdefault(level, []).append(float(value))
    return float(sum(len(group) * (np.mean(group) - y.mean()) ** 2 for group in groups.values()))


def _finite(values: Values) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError("expected a one-dimensional sample of finite numbers")
    return x


def _alpha(level: float) -> float:
    # 1 - 0.95 is 0.05 + 4e-17 and 1 - 0.9375 must still admit 2 / 2^5: decide on rounded numbers.
    return round(1.0 - level, 12)


def _iqm(x: Floats) -> float:
    """Mean of the middle half, each order statistic weighted by its share of [1/4, 3/4].

    The i-th of n sorted values covers [i/n, (i+1)/n] of the distribution, so no n needs rounding.
    """
    edges = np.arange(x.size + 1) / x.size
    weights = np.diff(np.clip(edges, 0.25, 0.75))
    return float(np.sort(x) @ weights / weights.sum())


def _without_spread(x: Floats) -> bool:
    """All values are the same but for rounding: two rows of 200 are no one difference of two shares."""
    return bool(np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())))


def _t_interval(x: Floats, level: float) -> Interval:
    if x.size < 2 or _without_spread(x):
        return UNDEFINED
    half = float(stats.t.ppf(0.5 + level / 2, x.size - 1)) * float(x.std(ddof=1)) / np.sqrt(x.size)
    return Interval(float(x.mean() - half), float(x.mean() + half))


def _percentile_bootstrap(d: Floats, rng: np.random.Generator, level: float) -> Interval:
    if d.size < 2 or _without_spread(d):
        return UNDEFINED
    drawn = rng.integers(0, d.size, size=(RESAMPLES, d.size))
    return _quantiles(d[drawn].mean(axis=1), level)


def _quantiles(draws: Floats, level: float) -> Interval:
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


def _sign_flip_p(d: Floats, rng: np.random.Generator) -> float:
    if d.size <= ENUMERATED_PAIRS:
        patterns = (np.arange(2**d.size)[:, None] >> np.arange(d.size)) & 1
        return float(np.mean(_as_extreme(d, 1.0 - 2.0 * patterns)))
    signs = rng.integers(0, 2, size=(RESAMPLES, d.size)) * 2.0 - 1.0
    return float((np.sum(_as_extreme(d, signs)) + 1) / (RESAMPLES + 1))


def _as_extreme(d: Floats, signs: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    # Equal sums may differ in the last bits, and a tie counts as extreme: compare with a margin.
    margin = 1e-12 * float(np.abs(d).sum())
    return np.asarray(np.abs(signs @ d) >= abs(float(d.sum())) - margin)

"""The rule that decides a hypothesis, the same for all of them (docs/decisions/0011-verdicts-on-findings.md).

Given is one number a seed, in the sign of the hypothesis, from at least three seeds.

* A hypothesis that names a direction: Student's t test over seeds, two-sided, of "the mean is 0". It is
  `supported` when the mean lies on the predicted side and p <= 0.05, `contradicted` when it lies on the other
  side and p <= 0.05, else `not resolved`.
* A hypothesis of no influence, with a margin: `supported` by two one-sided t tests at 0.05, which is to say
  that the 90 % interval lies within the margin (D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987)).
  `contradicted` when the 95 % interval lies wholly beyond the margin on one side, else `not resolved`. The
  wider interval for the second keeps that error at 5 % too, since it can be made on two sides.
* p is Holm's, over everything that one call could have decided: who reads a list of findings looks for the
  small p in the whole of it. So a 95 % interval may leave out zero and the finding not be resolved.

Beside it stands the exact sign-flip test of the same claim. It assumes symmetry alone, and for few seeds it
cannot speak: its least two-sided p is 0.25 for three seeds and 0.0625 for five. `exact` says whether it shows
the claim by itself, Holm's correction included. Whether the t test's assumption matters is in the decision's
table: symmetric heavy tails make it cautious, skewed ones make it err more often than 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from foretaste import statistics
from foretaste.statistics import UNDEFINED, Floats, Interval

Decision = Literal["supported", "not resolved", "contradicted", "no records"]
Claim = Literal["supported", "contradicted"]
Sign = Literal[-1, 0, 1]

ALPHA = 0.05
LEAST_SEEDS = 3  # two seeds leave one degree of freedom, and an interval that hangs on one difference
SAME = 1e-9  # points; seeds that differ by less differ by rounding


@dataclass(frozen=True)
class Weighed:
    """What one number a seed says, before the correction for many tests.

    Attributes:
        mean: Over seeds; NaN without any.
        interval: 95 % Student t.
        interval_90: 90 % Student t, which decides equivalence.
        claim: The decision to which p belongs.
        p: Of the t test of that claim; NaN when it could not be done: too few seeds, or seeds without spread.
        p_exact: Of the sign-flip test of that claim; NaN also where it does not apply.
        smallest_p: The least that so many seeds allow the sign-flip test.
    """

    n: int
    mean: float
    interval: Interval
    interval_90: Interval
    claim: Claim
    p: float
    p_exact: float
    smallest_p: float


@dataclass(frozen=True)
class Decided:
    """A decision with its corrected p.

    Attributes:
        p_holm: NaN when there was no test.
        least_holm: The least that the sign-flip tests of so many seeds could have given in its place.
        exact: The sign-flip test, corrected over the same tests, shows the claim by itself.
        tests: Tests that the correction is over.
    """

    decision: Decision
    p_holm: float
    least_holm: float
    exact: bool
    tests: int


def weigh(
    values: Sequence[float],
    *,
    predicts: Sign,
    margin: float | None,
    rng: np.random.Generator,
    centred: bool = False,
    independent: bool = True,
) -> Weighed:
    """Test one number a seed.

    Args:
        values: Shape (n,), one for each seed.
        predicts: Sign that the hypothesis gives the mean; 0 is no influence.
        margin: What counts as no influence, above zero; None for a direction.
        rng: For sign flips beyond enumeration.
        centred: The numbers are distances from means over the same seeds: one degree of freedom less, and no
            sign-flip test.
        independent: Whether the seeds are independent draws; crossed ones are not (`seeds.crossed`), and
            nothing is tested on them.

    Raises:
        ValueError: A margin and a direction, or neither.
    """
    if (margin is None) == (predicts == 0):
        raise ValueError("a direction has no margin, and no influence has one above zero")
    x = np.asarray(values, dtype=np.float64)
    freedom = x.size - 1 - centred
    mean = float(x.mean()) if x.size else float("nan")
    # The same number from every seed says nothing about spread; rounding may make it differ in the last bits.
    error = (
        0.0
        if x.size < 2 or np.ptp(x) <= SAME or not independent
        else float(x.std(ddof=1)) / math.sqrt(x.size)
    )
    claim, p = _t_test(mean, error, freedom, predicts, margin)
    tested = x.size >= LEAST_SEEDS and freedom >= 1 and error > 0
    exact = _sign_flips(x, claim, margin, rng) if tested and not centred else float("nan")
    one_sided = margin is not None and claim == "supported"
    return Weighed(
        n=x.size,
        mean=mean,
        interval=_interval(mean, error, freedom, 0.95),
        interval_90=_interval(mean, error, freedom, 0.90),
        claim=claim,
        p=p if tested else float("nan"),
        p_exact=exact,
        smallest_p=statistics.least_p(x.size) / (2 if one_sided and x.size else 1),
    )


def decide(weighed: Sequence[Weighed]) -> list[Decided]:
    """Decide all of one call, with Holm's correction over those that were tested.

    Args:
        weighed: In any order; each gets the same decision in every order.
    """
    adjusted = statistics.holm([item.p for item in weighed])
    # A sign-flip test that does not apply is one that shows nothing: the family stays the same.
    exact = statistics.holm(
        [
            item.p if math.isnan(item.p) else 1.0 if math.isnan(item.p_exact) else item.p_exact
            for item in weighed
        ]
    )
    # Holm is monotone: with the least p of every test it gives the least that could have come out.
    least = statistics.holm([item.p if math.isnan(item.p) else item.smallest_p for item in weighed])
    tests = sum(not math.isnan(item.p) for item in weighed)
    decided = []
    for item, p, other, best in zip(weighed, adjusted, exact, least, strict=True):
        shown = p <= ALPHA  # False for NaN
        decision: Decision = item.claim if shown else "not resolved" if item.n else "no records"
        decided.append(Decided(decision, float(p), float(best), bool(shown and other <= ALPHA), tests))
    return decided


def _t_test(
    mean: float, error: float, freedom: int, predicts: Sign, margin: float | None
) -> tuple[Claim, float]:
    """The claim that is nearer, and its p; 1 where there is no test."""
    if margin is None:
        claim: Claim = "supported" if mean * predicts > 0 else "contradicted"
        return claim, _tail(abs(mean), error, freedom, sides=2)
    if abs(mean) <= margin:
        return "supported", _tail(margin - abs(mean), error, freedom, sides=1)
    return "contradicted", _tail(abs(mean) - margin, error, freedom, sides=2)


def _tail(distance: float, error: float, freedom: int, *, sides: int) -> float:
    if error <= 0 or freedom < 1:
        return 1.0
    return float(min(1.0, sides * stats.t.sf(distance / error, freedom)))


def _sign_flips(x: Floats, claim: Claim, margin: float | None, rng: np.random.Generator) -> float:
    """The exact counterpart of `_t_test`."""
    mean = float(x.mean())
    if margin is None:
        return statistics.paired_difference(x, np.zeros_like(x), rng=rng).p
    if claim == "contradicted":
        return statistics.paired_difference(x, np.full_like(x, math.copysign(margin, mean)), rng=rng).p
    # Signs are flipped in pairs of equal |sum|, so on the side of the mean the one-sided p is half.
    ends = [statistics.paired_difference(x, np.full_like(x, end), rng=rng).p for end in (-margin, margin)]
    return max(ends) / 2


def _interval(mean: float, error: float, freedom: int, level: float) -> Interval:
    if error <= 0 or freedom < 1:
        return UNDEFINED
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * error
    return Interval(mean - half, mean + half)

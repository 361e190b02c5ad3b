"""Two arms in one quantity: their difference over seeds, and whether it is resolved.

The rule is that of the report's table of pairs (decision 3): sign flips over pairs of runs with equal seeds,
with Holm's correction over every cell in which an arm is held against the reference arm in the same measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from foretaste import statistics
from foretaste.calibration.cells import Cell, Sample
from foretaste.calibration.places import arm_order
from foretaste.calibration.quantities import Quantity, spot
from foretaste.seeds import Seeds, crossed, generator

ALPHA = 0.05

Read: TypeAlias = Callable[[Cell], Sample]


@dataclass(frozen=True)
class SignFlips:
    """The sign-flip test of one difference.

    Attributes:
        p: Not corrected; NaN for crossed seeds, or without a pair.
        smallest: The least p that so many pairs can give.
    """

    p: float
    smallest: float


@dataclass(frozen=True)
class Contrast:
    """One arm minus another in one quantity, taken at one attack and amount.

    Attributes:
        a: The quantity of the first arm; `b` is that of the second.
        difference: Over the seeds that both have; empty where one is predicted, or where they stand at
            different attacks or amounts.
        p_holm: Of the sign-flip test, corrected; NaN where nothing was tested.
        best_p_holm: The least that so many pairs could have given.
        cells: Tests that the correction is over.
    """

    a: Quantity
    b: Quantity
    difference: Sample
    p_holm: float
    best_p_holm: float
    cells: int

    @property
    def measured(self) -> bool:
        """Both values were."""
        return self.a.source == self.b.source == "measured"

    @property
    def interval(self) -> statistics.Interval:
        """95 % Student t over pairs, not corrected."""
        return self.difference.interval()

    @property
    def crossed(self) -> bool:
        """The seeds are crossed, so that nothing is tested."""
        return bool(crossed([Seeds.of(label) for label in self.difference.by_seed]))

    @property
    def resolved(self) -> bool:
        """Measured values differ by the rule; a predicted one differs where the 90 % intervals are apart."""
        if self.measured:
            return self.p_holm <= ALPHA
        ends = (self.a.low, self.a.high, self.b.low, self.b.high)
        if self.a.at != self.b.at or any(end is None for end in ends):
            return False
        a_low, a_high, b_low, b_high = (end or 0.0 for end in ends)
        return a_low > b_high or b_low > a_high

    @property
    def verdict(self) -> str:
        """In the words of the report's table of pairs."""
        n = self.difference.n
        if self.resolved:
            return f"resolved by {n} seeds (Holm p {self.p_holm:.3f})"
        if self.crossed:
            return "no verdict: crossed seeds"
        if self.best_p_holm > ALPHA:
            return f"not resolved by {n} seed{'' if n == 1 else 's'}"
        return "no difference shown"


def contrast(a: Quantity, b: Quantity, tests: Sequence[SignFlips], *, listed: bool) -> Contrast:
    """Hold two arms of one task against each other in one quantity.

    Args:
        a: The quantity of the first arm.
        b: That of the second.
        tests: Those that the correction goes over, from `family`.
        listed: The test of these two is among them, since one of them is the reference; else it joins them.
    """
    both = a.sample.n and b.sample.n and a.at == b.at
    difference = a.sample.minus(b.sample) if both else Sample()
    own = _test(difference) if difference.n else None
    if own is None or math.isnan(own.p):
        return Contrast(a, b, difference, math.nan, 1.0, 0)
    # A p that cannot be had (crossed seeds) is no test.
    known = [test for test in (*([] if listed else [own]), *tests) if not math.isnan(test.p)]
    place = known.index(own)  # Holm gives equal p equal values, so any equal test will do
    p = statistics.holm([test.p for test in known])[place]
    best = statistics.holm([test.smallest for test in known])[place]
    return Contrast(a, b, difference, float(p), float(best), len(known))


def reference(cells: Iterable[Cell]) -> str:
    """The arm that the others are held against: full fine-tuning where there is any, else the first."""
    return arm_order(cell.arm for cell in cells)[0]


def family(cells: Sequence[Cell], read: Read) -> list[SignFlips]:
    """Every test of an arm against the reference arm, one for each other arm, attack and amount.

    Args:
        cells: Cells of one task.
        read: The measure.
    """
    first = reference(cells)
    base = {spot(cell): read(cell) for cell in cells if cell.arm == first}
    others = [cell for cell in cells if cell.arm != first and spot(cell) in base]
    differences = [read(cell).minus(base[spot(cell)]) for cell in others]
    return [_test(difference) for difference in differences if difference.n]


def _test(difference: Sample) -> SignFlips:
    values = list(difference.by_seed.values())
    independent = not crossed([Seeds.of(label) for label in difference.by_seed])
    # Only sign flips of more than `ENUMERATED_PAIRS` pairs draw anything.
    rng = generator(0, "calibration", "contrasts")
    found = statistics.paired_difference(values, [0.0] * len(values), rng=rng, independent=independent)
    return SignFlips(found.p, found.smallest_p)


def pairs_needed(cells: int) -> int:
    """Least n with which a sign-flip test can reach 0.05 after Holm: 2 / 2^n <= 0.05 / cells."""
    return math.ceil(1 + math.log2(cells / ALPHA))

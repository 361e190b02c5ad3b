"""Which rows are poisoned, and which are changed beside them: decided by one uniform number a row."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError

Selection = Literal["exact-nested", "bernoulli"]


def choose(
    scores: npt.NDArray[np.float64],
    eligible: Sequence[int],
    *,
    rate: float | None = None,
    count: int | None = None,
    selection: Selection = "exact-nested",
) -> list[int]:
    """Positions of the rows to poison, ascending.

    Every row has one uniform score. `exact-nested` takes the `round(rate * eligible)` (or `count`) smallest
    scores, so the set at a low amount is contained in the set at a higher one. `bernoulli` takes the scores
    below the rate: each row on its own, as in the TTR paper's code (protocol.md 1.2); also nested.

    Args:
        scores: Shape (rows,), one number in [0, 1) for each row.
        eligible: Positions that may be chosen.
        rate: Share of the eligible rows in [0, 1]; halves are rounded up.
        count: Number of rows; exactly one of `rate` and `count` is given.
        selection: How to choose.

    Raises:
        UserError: More rows are asked for than may be chosen, or none at an amount above zero.
    """
    if (rate is None) == (count is None):
        raise ValueError("give exactly one of rate and count")
    if not 0.0 <= (rate or 0.0) <= 1.0 or (count or 0) < 0:
        raise UserError(f"rate {rate} or count {count}: expected a rate in [0, 1], or a count of 0 or more")
    ranked = sorted(eligible, key=lambda position: (scores[position], position))
    if selection == "bernoulli":
        if rate is None:
            raise UserError("Bernoulli selection needs a rate, not a count")
        chosen = [position for position in ranked if scores[position] < rate]
    else:
        wanted = count if count is not None else math.floor(rate * len(ranked) + 0.5)  # type: ignore[operator]
        if wanted > len(ranked):
            raise UserError(
                f"{wanted} rows are to be poisoned, but only {len(ranked)} may be",
                cure="Lower the count, train on more rows, or widen the source classes.",
            )
        chosen = ranked[:wanted]
    if not chosen and (rate or count):
        smallest = _smallest_rate([float(scores[i]) for i in ranked], selection)
        raise UserError(
            f"a rate of {rate} poisons none of the {len(ranked)} eligible rows",
            cure=f"Raise the rate (the smallest that poisons a row here is {smallest}) or give a count.",
        )
    return sorted(chosen)


def _smallest_rate(scores: Sequence[float], selection: Selection) -> str:
    """The smallest rate that poisons one of the rows with these scores, rounded up to two digits."""
    if not scores:
        return "none"
    rate = 0.5 / len(scores) if selection == "exact-nested" else math.nextafter(min(scores), 1.0)
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return f"{math.ceil(rate / step) * step:.2g}"


def choose_beside(
    scores: npt.NDArray[np.float64],
    candidates: Sequence[int],
    chosen: Collection[int],
    *,
    share: float,
    rate: float | None,
    selection: Selection,
) -> list[int]:
    """Positions of the rows that are changed beside the poisoned ones, ascending.

    They come from the other end of the ranking that the poisoned rows are the front of, so these sets are
    nested in the amount as well, and no row is ever in both. `exact-nested` takes `share` rows for each
    poisoned one, rounded up; `bernoulli` takes each row with probability `share * rate`.

    Args:
        scores: Shape (rows,), those that the poisoned rows were chosen by.
        candidates: Positions that may be changed.
        chosen: Positions of the poisoned rows.
        share: Rows for each poisoned row.
        rate: The poison rate; None with a count.
        selection: How the poisoned rows were chosen.

    Raises:
        UserError: They would meet the poisoned rows, or a Bernoulli draw gives none.
    """
    if not chosen or not share:
        return []
    ranked = sorted(candidates, key=lambda position: (scores[position], position))
    if selection == "bernoulli":
        assert rate is not None
        least = 1.0 - share * rate
        beside = [position for position in ranked if scores[position] >= least]
        wanted = len(beside)
        if not beside:
            raise UserError(
                f"the draw changes none of {len(ranked)} rows beside the {len(chosen)} poisoned ones",
                cure="Raise the rate, or leave out selection: bernoulli.",
            )
    else:
        wanted = math.ceil(share * len(chosen))
        beside = ranked[-wanted:]
    if len(beside) < wanted or not set(beside).isdisjoint(chosen):
        free = len(set(candidates) - set(chosen))
        raise UserError(
            f"{wanted} rows are to be changed beside the {len(chosen)} poisoned ones, but the "
            f"{len(candidates)} rows that both come from leave too few ({free} are not poisoned)",
            cure="Lower the amount or the share of such rows, or train on more rows.",
        )
    return sorted(beside)

"""TTR Theorem 3.6, quantity by quantity, and the eigenvalue order (Eq. 41) that its proof rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np

from foretaste.theory.claims.probes import EXACT, ordered_pairs
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.information import ORDERINGS
from foretaste.theory.layout import Floats

PAIRS = 1000
GRID = (10.0, 1.0, 0.5, 0.1, 1e-3)
QUANTITIES = {ordering.quantity: ordering.value for ordering in ORDERINGS}


def all_pairs_ordered(rng: np.random.Generator, *, sizes: Sequence[int] = (1, 2, 4)) -> Verdict:
    """TTR Eq. 41: every eigenvalue of LoRA is below every eigenvalue of full fine-tuning."""
    trials, numbers = [], {}
    for size in sizes:
        pairs = ordered_pairs(rng, PAIRS, size=size, rank=size)
        crossed = [pair for pair in pairs if pair[1].max() > pair[0].min() * (1 + EXACT)]
        in_order = float(np.mean([np.all(low <= full * (1 + EXACT)) for full, low in pairs]))
        numbers[f"size {size}: share of pairs that cross"] = len(crossed) / PAIRS
        numbers[f"size {size}: share with the i-th values in order"] = in_order
        case = f"size {size}: {len(crossed)} of {PAIRS} pairs cross"
        if crossed:
            case += f", such as {_pair(*crossed[0])}"
        trials.append(Trial(case, not crossed, condition=size == 1))
    return conclude(
        Statement(
            name="Equation 41",
            paper="TTR",
            claim="Every eigenvalue of LoRA's Fisher is at most every eigenvalue of full fine-tuning's.",
            conditions="there is one eigenvalue each; in general K_LoRA <= K_FF puts the i-th largest below "
            "the i-th largest (Weyl) and no more",
            why_it_matters="Sums and traces are ordered, the shape of the spectrum is not.",
        ),
        trials,
        numbers,
    )


# --- Theorem 3.6, quantity by quantity --------------------------------------------------------------


def _violated(value: Callable[[Floats], float], full: Floats, low: Floats) -> bool:
    above, below = value(full), value(low)
    return above < below - 1e-9 * max(1.0, abs(above), abs(below))


def _grid_pairs() -> Iterator[tuple[Floats, Floats]]:
    """Ordered pairs of spectra with values on a grid: one eigenvalue, then two; descending."""
    for size in (1, 2):
        for full in combinations_with_replacement(GRID, size):
            for low in combinations_with_replacement((*GRID, 0.0), size):
                if all(b <= a for a, b in zip(full, low, strict=True)) and low[0] > 0:
                    yield np.array(full), np.array(low)


def _pair(full: Floats, low: Floats) -> str:
    ff, lora = (", ".join(f"{v:.3g}" for v in values) for values in (full, low))
    return f"F = ({ff}), LoRA = ({lora})"


def _smallest(value: Callable[[Floats], float], equal_ranks: bool | None) -> Trial:
    """The first pair of `_grid_pairs` that is violated, among those with (un)equal ranks."""
    for full, low in _grid_pairs():
        if equal_ranks in (None, bool(low[-1] > 0)) and _violated(value, full, low):
            text = f"{_pair(full, low)}: {value(full):.4g} < {value(low):.4g}"
            return Trial(text, False, bool(equal_ranks))
    return Trial("no violation with one or two eigenvalues on the grid", True, bool(equal_ranks))


def _theorem_3_6(
    rng: np.random.Generator,
    quantities: Sequence[str],
    statement: Statement,
    ranks: Sequence[bool | None] = (None,),
) -> Verdict:
    """Try H_FF >= H_LoRA on a grid of small spectra and on random pairs 0 <= K_LoRA <= K_FF.

    Args:
        rng: Source of the pairs.
        quantities: Names in `information.ORDERINGS`.
        statement: The words.
        ranks: What is known of the ranks, for each group of trials: True for equal ones, False for different
            ones, None for any. A group of equal ranks meets the condition.
    """
    trials, numbers = [], {}
    for equal in ranks:
        words = {None: "", True: " (equal ranks)", False: " (LoRA of lower rank)"}[equal]
        pairs = ordered_pairs(rng, PAIRS, size=4, rank={None: None, True: 4, False: 2}[equal])
        for quantity in quantities:
            value = QUANTITIES[quantity]
            smallest = _smallest(value, equal)
            share = float(np.mean([_violated(value, full, low) for full, low in pairs]))
            numbers[f"{quantity}{words}: share violated"] = share
            case = f"{quantity}{words}: violated in {share:.1%} of {PAIRS} random pairs"
            trials += [
                Trial(f"{quantity}{words}, {smallest.case}", smallest.true, bool(equal)),
                Trial(case, share == 0.0, bool(equal)),
            ]
    return conclude(statement, trials, numbers)


def sums_are_ordered(
    rng: np.random.Generator, *, quantities: Sequence[str] = ("bits by sum", "bits by 1p")
) -> Verdict:
    """TTR Theorem 3.6 for the right side of Eq. 9, and for 1/2 sum log(1 + lambda)."""
    return _theorem_3_6(
        rng,
        quantities,
        Statement(
            name="Theorem 3.6 (bits, sum)",
            paper="TTR",
            claim="K_LoRA <= K_FF makes LoRA's information bits the smaller ones, read as 1/2 sum lambda.",
            conditions="always, given K_LoRA <= K_FF and the same output gradients; it is about scale",
            why_it_matters="Fewer bits in this sense means a smaller c: raise alpha and they come back.",
        ),
    )


def log_determinants_are_ordered(
    rng: np.random.Generator, *, ranks: Sequence[bool | None] = (False, True)
) -> Verdict:
    """TTR Theorem 3.6 for the left side of Eq. 9."""
    return _theorem_3_6(
        rng,
        ("bits by pdet",),
        Statement(
            name="Theorem 3.6 (bits, pdet)",
            paper="TTR",
            claim="K_LoRA <= K_FF makes LoRA's information bits the smaller ones, read as 1/2 log pdet.",
            conditions="the ranks are equal; else the order flips with the unit of the output",
            why_it_matters="A low rank can have more bits than full fine-tuning by this measure, and fewer "
            "after the logits are rescaled.",
        ),
        ranks,
    )


def entropies_below_one(
    rng: np.random.Generator, *, quantities: Sequence[str] = ("raw Renyi 0", "raw Renyi 0.5")
) -> Verdict:
    """TTR Theorem 3.6 for alpha < 1."""
    return _theorem_3_6(
        rng,
        quantities,
        Statement(
            name="Theorem 3.6 (H, alpha < 1)",
            paper="TTR",
            claim="K_LoRA <= K_FF makes H_alpha of LoRA the smaller one, for alpha < 1.",
            conditions="always, given K_LoRA <= K_FF, on eigenvalues that are not normalised",
            why_it_matters="For alpha = 0 it is the rank; for 0 < alpha < 1 mostly the scale c.",
        ),
    )


def entropies_above_one(
    rng: np.random.Generator, *, quantities: Sequence[str] = ("raw Renyi 2", "raw Renyi inf")
) -> Verdict:
    """TTR Theorem 3.6 for alpha > 1."""
    return _theorem_3_6(
        rng,
        quantities,
        Statement(
            name="Theorem 3.6 (H, alpha > 1)",
            paper="TTR",
            claim="K_LoRA <= K_FF makes H_alpha of LoRA the smaller one, for alpha > 1 and infinity.",
            conditions="never: 1/(1 - alpha) < 0 turns the order round, so LoRA's is always the larger one",
            why_it_matters="A lower H_2 would mean a larger kernel, not a smoother one.",
        ),
    )


def shannon_is_ordered(rng: np.random.Generator) -> Verdict:
    """TTR Theorem 3.6 for -sum lambda log lambda."""
    return _theorem_3_6(
        rng,
        ("raw Shannon",),
        Statement(
            name="Theorem 3.6 (H, alpha = 1)",
            paper="TTR",
            claim="K_LoRA <= K_FF makes the Shannon entropy of LoRA the smaller one.",
            conditions="not implied: -lambda log lambda peaks at 1/e and is negative above 1",
            why_it_matters="The sign of the difference depends on the units of the kernel.",
        ),
    )


def normalised_entropies_are_ordered(
    rng: np.random.Generator,
    *,
    quantities: Sequence[str] = ("Renyi 0.5", "Renyi 1", "Renyi 2", "Renyi inf", "effective rank"),
) -> Verdict:
    """TTR Theorem 3.6 for the entropies of the shape."""
    return _theorem_3_6(
        rng,
        quantities,
        Statement(
            name="Theorem 3.6 (H, normalised)",
            paper="TTR",
            claim="LoRA's geometry is smoother: its (normalised) Renyi entropies are the smaller ones.",
            conditions="not implied in either direction for any alpha > 0; measure it",
            why_it_matters="Smoothness as a shape does not follow from a low rank or a small variance.",
        ),
    )

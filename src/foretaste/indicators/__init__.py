"""Indicators: named numbers from arrays, of measured kernels and of closed forms alike.

Importing the package registers them, one file an indicator or a family of one
formula. `evaluate` computes all that the evidence allows.
"""

from foretaste.indicators import adapter_spectrum as _adapter_spectrum  # noqa: F401 - registers, as all below
from foretaste.indicators import alignment as _alignment  # noqa: F401
from foretaste.indicators import gradient_pull as _gradient_pull  # noqa: F401
from foretaste.indicators import information_bits as _information_bits  # noqa: F401
from foretaste.indicators import lazy as _lazy  # noqa: F401
from foretaste.indicators import loewner_top as _loewner_top  # noqa: F401
from foretaste.indicators import m_prime as _m_prime  # noqa: F401
from foretaste.indicators import one_step as _one_step  # noqa: F401
from foretaste.indicators import ranks as _ranks  # noqa: F401
from foretaste.indicators import raw_renyi as _raw_renyi  # noqa: F401
from foretaste.indicators import renyi as _renyi  # noqa: F401
from foretaste.indicators import scale_factor as _scale_factor  # noqa: F401
from foretaste.indicators import trace_ratio as _trace_ratio  # noqa: F401
from foretaste.indicators.base import INDICATORS, Indicator, Reading, evaluate, indicator, read
from foretaste.indicators.evidence import FISHERS, Drawn, Evidence, Fisher, Law, LoraTraces, Twin

__all__ = [
    "FISHERS",
    "INDICATORS",
    "Drawn",
    "Evidence",
    "Fisher",
    "Indicator",
    "Law",
    "LoraTraces",
    "Reading",
    "Twin",
    "evaluate",
    "indicator",
    "read",
]

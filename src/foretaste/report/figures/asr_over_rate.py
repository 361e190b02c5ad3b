"""Attack success over the amount of poison, with the clean flip rate."""

from __future__ import annotations

from foretaste.report.cells import Frames
from foretaste.report.figures.amounts import curves
from foretaste.report.figures.base import Chart, Over, figure, placeholder

NEEDS = "a completed run of an attack with a trigger"


@figure(
    "asr_over_rate",
    title="Attack success",
    caption="ASR (solid; at 0 it is the flip rate by definition), the flip rate of the clean models with "
    "equal seeds (short dashes) and predictions (long dashes): only the distance between "
    "ASR and flip rate is the poison's doing.",
    needs=NEEDS,
)
def asr_over_rate(frames: Frames, over: Over) -> Chart:
    """ASR and flip rate over the amount of poison, one panel an attack with a trigger."""
    chart = curves(frames, over, metric="asr", at_zero="flip_rate", baseline="flip_rate", zero=True)
    return chart or placeholder(NEEDS)

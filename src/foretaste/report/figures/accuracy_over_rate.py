"""Clean accuracy over the amount of poison."""

from __future__ import annotations

from foretaste.report.cells import Frames
from foretaste.report.figures.amounts import curves
from foretaste.report.figures.base import Chart, Over, figure, placeholder

NEEDS = "at least one completed run"


@figure(
    "accuracy_over_rate",
    title="Accuracy under poison",
    caption="Accuracy on clean test rows: mean over seeds with its 95 % interval, every run as a dot, "
    "collapsed runs as crosses; predictions are dashed.",
    needs=NEEDS,
)
def accuracy_over_rate(frames: Frames, over: Over) -> Chart:
    """Clean accuracy over the amount of poison, one panel an attack."""
    chart = curves(frames, over, metric="clean_accuracy", at_zero="clean_accuracy", baseline=None, zero=False)
    return chart or placeholder(NEEDS)

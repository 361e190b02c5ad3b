"""Predicted against measured: scores, naive rivals, calibrated intervals, the Pareto front, and advice."""

from foretaste.calibration.advice import Advice, advise
from foretaste.calibration.cells import Cell, Counts, Measured, Sample, count, pair, read_cells
from foretaste.calibration.intervals import Adjusted, Adjustment, adjust, calibrated
from foretaste.calibration.pareto import Arm, Comparison, compare, front
from foretaste.calibration.quantities import Quantity
from foretaste.calibration.result import Calibration, Scoreboard, calibrate
from foretaste.calibration.scores import Gain, Score, Scores, gain, score

__all__ = [
    "Adjusted",
    "Adjustment",
    "Advice",
    "Arm",
    "Calibration",
    "Cell",
    "Comparison",
    "Counts",
    "Gain",
    "Measured",
    "Quantity",
    "Sample",
    "Score",
    "Scoreboard",
    "Scores",
    "adjust",
    "advise",
    "calibrate",
    "calibrated",
    "compare",
    "count",
    "front",
    "gain",
    "pair",
    "read_cells",
    "score",
]

"""Figures: one definition each, drawn from the report's tables. Importing the package registers them."""

from foretaste.report.figures.accuracy_over_rate import accuracy_over_rate
from foretaste.report.figures.asr_against_flip import asr_against_flip
from foretaste.report.figures.asr_over_rate import asr_over_rate
from foretaste.report.figures.base import FIGURES, Chart, Figure, Over, figure
from foretaste.report.figures.certified_accuracy import certified_accuracy
from foretaste.report.figures.loss_curves import loss_curves
from foretaste.report.figures.paired_difference import paired_difference
from foretaste.report.figures.pareto import pareto
from foretaste.report.figures.per_seed import per_seed
from foretaste.report.figures.predicted_against_measured import predicted_against_measured
from foretaste.report.figures.trigger_forms import trigger_forms

__all__ = [
    "FIGURES",
    "Chart",
    "Figure",
    "Over",
    "accuracy_over_rate",
    "asr_against_flip",
    "asr_over_rate",
    "certified_accuracy",
    "figure",
    "loss_curves",
    "paired_difference",
    "pareto",
    "per_seed",
    "predicted_against_measured",
    "trigger_forms",
]

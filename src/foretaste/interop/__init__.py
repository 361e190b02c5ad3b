"""Measured runs for other programs: a tidy table, MLflow, Weights & Biases, lm-eval. From records alone."""

from foretaste.interop.table import frame

__all__ = ["frame"]

"""The page of a sweep of few-shot runs: scores, kernels against fine-tuning, criteria. Reads records only."""

from __future__ import annotations

from foretaste.report.fewshot.page import counts, write

__all__ = ["counts", "write"]

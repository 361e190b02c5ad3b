"""The page of a sweep of a generative model. Reads records and transcripts only."""

from __future__ import annotations

from foretaste.report.instruct.page import counts, write

__all__ = ["counts", "write"]

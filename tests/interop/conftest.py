"""Synthetic folders for the exports: arms, attacks, forms, and a run of every fate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))  # the factory of records

from records_factory import Sweep


def fill(sweep: Sweep) -> None:
    """Two arms, two attacks, two seeds; one run collapsed, one diverged, one in error, one crashed."""
    sweep.fill(("full", "lora-r8"), (0.01, 0.1), range(2))
    sweep.add("lora-r8", "label-flip", rate=0.1, seed=1, collapsed=True, accuracy=0.5)
    sweep.add("full", "trigger", rate=0.1, seed=0, status="diverged", notes=["Careful."])
    sweep.add("lora-r8", seed=1, status="error")
    sweep.add("lora-r8", "trigger", count=7, seed=0, status="crashed")
    sweep.predict("full", accuracy=0.9)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """`make_folder("name")`: the folder of a new synthetic sweep of 21 runs."""

    def make(name: str = "small") -> Path:
        forms = {"trigger": {"other": ("another word", "target")}}
        fill(Sweep(tmp_path / name, forms=forms))
        return tmp_path / name

    return make

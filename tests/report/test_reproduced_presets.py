"""Presets and their reference page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from foretaste.report.fewshot import published as kernel_paper
from foretaste.report.reproduced.published import TABLES
from foretaste.reproduction import compose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    place = ROOT / "tools" / "preset_reference.py"
    location = importlib.util.spec_from_file_location("preset_reference", place)
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


def test_the_preset_reference_is_what_the_presets_say(reference: ModuleType) -> None:
    assert (ROOT / "docs" / "presets.md").read_text(encoding="utf-8") == reference.render()


def test_the_reference_counts_runs(reference: ModuleType) -> None:
    lines = reference.sweeps_table(compose.read("ttr-fig1"))
    # Two arms, clean and five rates, three seeds, four tasks.
    assert any(
        line.startswith("| laptop | SST-2, CoLA, QNLI, QQP |") and line.endswith("| 144 |") for line in lines
    )


@pytest.mark.parametrize("name", compose.names())
def test_a_preset_s_published_table_exists(name: str) -> None:
    published = compose.read(name).published
    assert published is None or published in TABLES or published in kernel_paper.TABLES

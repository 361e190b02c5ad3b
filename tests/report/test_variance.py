"""Variance by source, from crossed seeds to the page."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from records_factory import Sweep

from foretaste.report import build, load, report
from foretaste.report.variance import variance_table
from foretaste.seeds import Seeds

# Accuracy = 0.7 + data part + init part, with no interaction: the components are known.
DATA = {0: -0.04, 1: 0.0, 2: 0.04}
INIT = {0: -0.01, 1: 0.01}


@pytest.fixture
def crossed(tmp_path: Path) -> Path:
    sweep = Sweep(tmp_path / "crossed")
    for data, init in itertools.product(DATA, INIT):
        seeds = Seeds(data=data, poison=0, init=init, order=0)
        for arm in ("full", "lora-r8"):
            sweep.add(arm, seed=seeds, accuracy=0.7 + DATA[data] + INIT[init])
    sweep.write_spec()
    return sweep.layout.folder


def test_components_are_those_of_the_additive_design(crossed: Path) -> None:
    frame = variance_table(build(load([crossed]))).frame
    row = frame[(frame["arm"] == "full") & (frame["metric"] == "clean_accuracy")].iloc[0]
    # Sample variance of the levels' effects; accuracies are multiples of 1/200, so all are exact.
    assert row["data"] == pytest.approx(sum(v**2 for v in DATA.values()) / 2, rel=1e-9)
    assert row["init"] == pytest.approx(sum(v**2 for v in INIT.values()) / 1, rel=1e-9)
    assert row["residual"] == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(row["order"])


def test_page_shows_it_only_for_crossed_seeds(crossed: Path, tmp_path: Path) -> None:
    title = "Where the spread over seeds comes from"
    page = report(crossed, tmp_path / "a", images=False)
    assert title in page.read_text()
    plain = Sweep(tmp_path / "plain")
    plain.fill(["full", "lora-r8"], [0.0, 0.1], range(3))
    plain.write_spec()
    assert title not in report(plain.layout.folder, tmp_path / "b", images=False).read_text()

"""`foretaste calibrate` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))  # the factory of records

from records_factory import Sweep


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    sweep = Sweep(tmp_path / "audited")
    arms = ("full", "lora-[r8]")
    sweep.fill(arms, (0.01, 0.1), range(3))
    sweep.add("full", "trigger", rate=0.1, seed=3, status="diverged")
    for place, arm in enumerate(arms):
        sweep.predict(arm, accuracy=0.9 - 0.01 * place)
        for rate in (0.01, 0.1):
            sweep.predict(arm, "label-flip", rate=rate, accuracy=0.9 - 1.5 * rate - 0.01 * place)
            sweep.predict(
                arm, "trigger", rate=rate, accuracy=0.9 - 0.01 * place, asr=0.4 + rate + 0.1 * place
            )
    return tmp_path / "audited"


def test_it_prints_scores_and_advice(audited: Path, cli: Any, tmp_path: Path) -> None:
    done = cli("calibrate", audited, "-o", tmp_path / "out" / "calibration.json")
    assert (done.code, done.err) == (0, "")
    words = " ".join(done.out.split())
    assert "10 of 10 cells both predicted and measured" in words
    assert "31 measured runs, 1 diverged" in words
    assert "For minilm on reviews: " in words
    assert "rate only" in words
    assert "trace_ratio" in words
    assert "lora-[r8]" in words  # not taken for markup
    assert "0 by construction" not in words  # it has a value: 0.00
    stored = json.loads((tmp_path / "out" / "calibration.json").read_text())
    machine = cli("calibrate", audited, "--json")
    assert (machine.code, machine.err) == (0, "")
    assert json.loads(machine.out) == stored


def test_it_names_the_command_that_is_missing(tmp_path: Path, cli: Any) -> None:
    sweep = Sweep(tmp_path / "s")
    sweep.add("full")
    done = cli("calibrate", tmp_path / "s")
    assert (done.code, done.out) == (2, "")
    assert "foretaste predict SPEC -o" in done.err
    (tmp_path / "s" / "runs").rename(tmp_path / "elsewhere")
    sweep.predict("full")
    done = cli("calibrate", tmp_path / "s")
    assert (done.code, done.out) == (2, "")
    assert "foretaste measure SPEC -o" in done.err


def test_a_file_that_cannot_be_written(audited: Path, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("calibrate", audited, "-o", tmp_path / "file" / "out.json")
    assert (done.code, done.out) == (2, "")
    assert "cannot write the result" in done.err

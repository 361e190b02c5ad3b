"""The whole calibration of folders: what it holds, that it repeats, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from records_factory import Sweep

from foretaste.calibration import calibrate
from foretaste.errors import UserError


def filled(folder: Path, *, attacks: tuple[str, ...] = ("label-flip", "trigger")) -> Sweep:
    sweep = Sweep(folder, attacks=attacks)
    arms = ("full", "lora-r8", "lora-r64")
    sweep.fill(arms, (0.01, 0.1), range(3))
    for place, arm in enumerate(arms):
        indicators = {"trace_ratio": 1.0 / (1 + place), "m_prime": None}
        sweep.predict(arm, accuracy=0.9 - 0.01 * place, indicators=indicators)
        for attack in attacks:
            for rate in (0.01, 0.1):
                told = 0.9 - (1.5 * rate if attack == "label-flip" else 0.0) - 0.01 * place
                asr = 0.5 + rate + 0.02 * place if attack == "trigger" else None
                sweep.predict(arm, attack, rate=rate, accuracy=told, asr=asr, indicators=indicators)
    return sweep


def test_every_board_scores_every_predictor(tmp_path: Path) -> None:
    filled(tmp_path / "one")
    filled(tmp_path / "two", attacks=("label-flip",))
    result = calibrate([tmp_path / "one", tmp_path / "two"])
    assert [board.name for board in result.boards] == [
        "one · minilm · reviews",
        "two · minilm · reviews",
        "all",
    ]
    one, two, both = result.boards
    assert {s.target for s in one.predictors} == {"accuracy", "target_rate"}
    assert {s.target for s in two.predictors} == {"accuracy"}
    names = [s.predictor for s in two.predictors]
    assert names[:4] == ["prediction", "prediction, calibrated", "budget as-trained", "budget converged"]
    assert {"rate only", "clean only", "clean only, measured", "probe only"} <= set(names)
    assert both.counts.cells == one.counts.cells + two.counts.cells == 15 + 9
    assert [(s.predictor, s.silent) for s in two.indicators] == [("m_prime", 9), ("trace_ratio", 0)]
    main = two.predictors[0]
    assert main.spearman.value is not None
    assert main.spearman.value > 0.8
    assert {advice.folder for advice in result.advice} == {"one", "two"}


def test_the_json_repeats_and_is_json(tmp_path: Path) -> None:
    filled(tmp_path / "one")
    first = json.dumps(calibrate([tmp_path / "one"]).to_json(), allow_nan=False)
    second = json.dumps(calibrate([tmp_path / "one"]).to_json(), allow_nan=False)
    assert first == second
    assert str(tmp_path) not in first
    assert not re.search(r"\d\.\d{7}", first)
    assert len(first) < 100_000
    content = json.loads(first)
    assert len(content["cells"]) == 15
    assert content["cells"][0]["runs"] == {"completed": 3}
    assert {row["target"] for row in content["offsets"]} == {"accuracy", "target_rate"}


def test_what_is_missing_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        calibrate([])
    with pytest.raises(UserError, match="not a folder"):
        calibrate([tmp_path / "nothing"])
    measured = Sweep(tmp_path / "measured")
    measured.add("full")
    with pytest.raises(UserError, match=r"no predictions") as error:
        calibrate([tmp_path / "measured"])
    assert f"foretaste predict SPEC -o {tmp_path / 'measured'}" in str(error.value)
    told = Sweep(tmp_path / "told")
    told.predict("full")
    told.add("full", status="diverged")
    with pytest.raises(UserError, match=r"no completed measured run .*1 failed") as error:
        calibrate([tmp_path / "told"])
    assert f"foretaste measure SPEC -o {tmp_path / 'told'}" in str(error.value)
    told.add("lora-r8")
    with pytest.raises(UserError, match="both predicted and measured"):
        calibrate([tmp_path / "told"])
    filled(tmp_path / "a" / "same")
    filled(tmp_path / "b" / "same")
    with pytest.raises(UserError, match="two folders are called 'same'"):
        calibrate([tmp_path / "a" / "same", tmp_path / "b" / "same"])

"""`foretaste forecast` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def spec(tiny_chat: Any, instruct_folder: Any, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    content = {
        "name": "tiny",
        "data": {"source": str(instruct_folder())},
        "model": {"base": str(tiny_chat("llama")), "max_length": 96},
        "adapters": [{"method": "lora", "r": 2}, {"method": "ia3"}],
        "scenario": {"method": "refusal"},
        "triggers": [{"method": "badnet", "rates": [0.25]}],
        "training": {"steps": 2, "batch_size": 4},
        "seeds": [0],
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_forecast_and_what_it_says(spec: Path, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    limits = ("--train-rows", 8, "--test-rows", 2, "--memory", "64MiB")
    done = cli("forecast", spec, "-o", folder, *limits)
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert ["lora-r2", "badnet,", "0.25", "badnet"] in [line[:4] for line in lines]
    assert "no full fine-tuning" in " ".join(done.out.split())
    assert "8 of 24 training rows are used" in " ".join(done.out.split())
    again = cli("forecast", spec, "-o", folder, *limits, "--json")
    assert (again.code, again.err) == (0, "")
    said, kept = json.loads(again.out), json.loads((folder / "forecast.json").read_text())
    assert said["cells"] == kept["cells"]
    assert said["kind"] == "predicted"
    assert not (folder / "runs").exists()


def test_one_line_for_what_is_wrong(spec: Path, cli: Any, tmp_path: Path) -> None:
    for options, part in (
        (("--memory", "lots"), "'lots' is no amount of memory"),
        (("--memory", "10KB"), "Allow at least"),
    ):
        done = cli("forecast", spec, "-o", tmp_path / "out", *options)
        assert (done.code, done.out) == (2, "")
        assert part in done.err
    assert not (tmp_path / "out").exists()

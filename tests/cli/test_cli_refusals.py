"""What a spec may not say: one line that names key and value, exit code 2, before any weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(explode))


def trigger(**options: Any) -> list[dict[str, Any]]:
    return [{"method": "trigger", "target": "positive", "text": "cf", "rates": [0.5]} | options]


LORA = {"method": "lora", "r": 4}

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown attack": (
        {"attacks": [{"method": "triger", "rates": [0.1]}]},
        ["attacks.0: unknown attack 'triger'", "style, trigger)", "Did you mean 'trigger'?"],
    ),
    "unknown option of an attack": (
        {"attacks": trigger(txt="mn")},
        ["attacks.0: unknown key 'txt'", "Did you mean 'text'?"],
    ),
    "option of the wrong kind": (
        {"attacks": trigger(position="middle")},
        ["attacks.0: 'position' is 'middle'", "'start', 'end' or 'random'"],
    ),
    "target that is no class": (
        {"attacks": trigger(target="neutral")},
        ["attacks.0: unknown class in target: 'neutral'", "allowed: negative, positive"],
    ),
    "target that is no class id": (
        {"attacks": trigger(target=2)},
        ["attacks.0: target 2 is no class id", "allowed: 0 to 1"],
    ),
    "rate that poisons no row": (
        {"attacks": trigger(rates=[0.001])},
        ["trigger 0.001", "a rate of 0.001 poisons none of the 24 eligible rows", "give a count"],
    ),
    "count larger than eligible": (
        {"attacks": trigger(rates=[], counts=[25])},
        ["trigger x25", "25 rows are to be poisoned, but only 24 may be"],
    ),
    "rates and counts": ({"attacks": trigger(counts=[3])}, ["attacks.0", "give rates or counts"]),
    "rate above one": ({"attacks": trigger(rates=[1.5])}, ["'attacks.0.rates.0' is 1.5"]),
    "two attacks of one name": (
        {"attacks": trigger() + trigger(text="mn")},
        ["attacks.1: two attacks are called 'trigger'", "Give one a `name`"],
    ),
    "second text where there is none": (
        {"attacks": trigger(field="text_b")},
        ["the trigger goes to text_b", "has no second text", "Use field: text_a"],
    ),
    "unknown adapter": (
        {"adapters": [{"method": "lorra"}]},
        ["adapters.0.method: unknown adapter 'lorra'", "Did you mean 'lora'?"],
    ),
    "rank larger than a layer": (
        {"adapters": [{"method": "lora", "r": 33}]},
        ["adapter 'lora-r33'", "r = 33 is larger than layer", "32 x 32", "allowed: 1 to 32"],
    ),
    "unknown field of peft": (
        {"adapters": [LORA | {"lora_alhpa": 8}]},
        ["adapters.0: unknown field of peft's LoraConfig 'lora_alhpa'", "Did you mean 'lora_alpha'?"],
    ),
    "value that peft refuses": (
        {"adapters": [LORA | {"target_modules": ["qeury"]}]},
        ["adapter 'lora-r4'", "peft refuses this config: No modules were targeted"],
    ),
    "grid and value": (
        {"adapters": [LORA | {"grid": {"r": [2, 4]}}]},
        ["adapters.0.grid: 'r' is set both in the grid and beside it"],
    ),
    "two adapters of one name": ({"adapters": [LORA, LORA]}, ["adapters: two adapters are called 'lora-r4'"]),
    "override of a training key that is none": (
        {"adapters": [LORA | {"training": {"lr": 0.1}}]},
        ["adapters.0.training: unknown key 'lr'"],
    ),
    "negative override": (
        {"adapters": [LORA | {"training": {"learning_rate": -0.1}}]},
        ["adapters.0.training: 'learning_rate' is -0.1", "greater than 0"],
    ),
    "negative learning rate": (
        {"training": {"learning_rate": -0.1}},
        ["small.yaml:", "'training.learning_rate' is -0.1", "greater than 0"],
    ),
    "epochs and steps": ({"training": {"epochs": 1.0}}, ["'training' is", "give epochs or steps, not both"]),
    "more training rows than there are": (
        {"data": {"train_rows": 49}},
        ["train_rows asks for 49 rows, there are 48"],
    ),
    "more test rows than there are": (
        {"data": {"test_rows": 25}},
        ["test_rows asks for 25 rows, there are 24"],
    ),
    "missing file": (
        {"data": {"source": "./revews.csv"}},
        ["revews.csv: file not found", "Did you mean 'reviews.csv'?"],
    ),
    "unknown data asset": (
        {"data": {"source": "movie-review"}},
        ["unknown data source 'movie-review'", "Did you mean 'movie-reviews'?"],
    ),
    "unknown model asset": (
        {"model": {"base": "minilm-l5"}},
        ["model.base: 'minilm-l5' is no asset", "Did you mean 'minilm-l6'?"],
    ),
    "folder that is no model": ({"model": {"base": "."}}, ["model.base: no config.json in "]),
    "split that is none": (
        {"data": {"test_split": "tset"}},
        ["unknown split 'tset'", "Did you mean 'test'?"],
    ),
    "column that is none": ({"data": {"columns": {"label": "lable"}}}, ["'lable'", "Did you mean 'label'?"]),
    "repeated seed": ({"seeds": [1, 1]}, ["small.yaml:", "seeds repeat: [1, 1]"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sweep_that_cannot_work_is_refused_in_one_line(
    name: str, write_spec: Any, cli: Any, tmp_path: Path
) -> None:
    sections, parts = REFUSED[name]
    (tmp_path / "reviews.csv").write_text("text,label\na,0\nb,1\n")
    before = sorted(tmp_path.iterdir())
    spec = write_spec(**sections)
    done = cli("measure", spec, "-o", tmp_path / "sweep")
    assert (done.code, done.out) == (2, "")
    assert len(done.err.strip().splitlines()) == 1
    assert done.err.strip().startswith("error ")
    for part in parts:
        assert part in done.err
    assert sorted(tmp_path.iterdir()) == sorted([*before, spec])


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay"])
def test_an_infinite_number_is_refused(key: str, write_spec: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("measure", write_spec(training={key: float("inf")}), "-o", tmp_path / "sweep")
    assert (done.code, done.out) == (2, "")
    assert f"'training.{key}' is inf" in done.err


def test_a_wrong_key_is_told_with_its_line(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    path = write_spec(training={"learning_rat": 0.1})
    line = path.read_text().splitlines().index("  learning_rat: 0.1") + 1
    done = cli("measure", path, "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error {path}:{line}: unknown key 'training.learning_rat'")
    assert done.err.endswith("Did you mean 'learning_rate'?\n")


def test_what_is_no_spec(cli: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\ndata: [1\n")
    done = cli("measure", broken)
    assert done.code == 2
    assert done.err.startswith(f"error {broken}:3: not valid YAML: ")
    done = cli("measure", tmp_path / "missing.yaml")
    assert (done.code, done.err) == (
        2,
        f"error {tmp_path / 'missing.yaml'}: cannot read the spec: No such file or directory\n",
    )
    done = cli("measure", "quikstart")
    assert done.code == 2
    assert "unknown spec file or preset 'quikstart'" in done.err
    assert "Did you mean 'quickstart'?" in done.err


def test_a_dry_run_loads_no_weights(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    spec = write_spec(adapters=[{"method": "full"}, LORA], attacks=trigger())
    assert cli("measure", spec, "-o", tmp_path / "sweep", "--dry-run").code == 0
    assert list(tmp_path.iterdir()) == [spec]
    with pytest.raises(AssertionError, match="weights were loaded"):
        PreTrainedModel.from_pretrained("x")
    assert yaml.safe_load(spec.read_text())["attacks"] == trigger()

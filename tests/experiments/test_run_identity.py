"""What makes two runs the same: content decides, spelling does not."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from foretaste import presets
from foretaste.experiments.plan import FULL_LEARNING_RATE, PEFT_LEARNING_RATE, plan
from foretaste.spec import MeasureSpec
from foretaste.specfile import parse

NOWHERE = Path("/nonexistent")


def ids(spec: MeasureSpec, base_dir: Path = NOWHERE) -> list[str]:
    return [run.id for run in plan(spec, base_dir).runs]


# --- spelling ------------------------------------------------------------------------------------


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def varied(content: Any) -> Any:
    return content(
        adapters=[{"method": "full"}, {"method": "lora", "r": 4, "lora_alpha": 8}],
        attacks=[
            {"method": "label-flip", "rates": [0.5]},
            {"method": "trigger", "text": "cf", "target": "positive", "rates": [0.25]},
        ],
    )


def test_the_order_of_keys_does_not_matter(varied: Any) -> None:
    text, turned = (yaml.safe_dump(v, sort_keys=False) for v in (varied, reversed_keys(varied)))
    assert text != turned
    assert ids(parse(text, MeasureSpec)) == ids(parse(turned, MeasureSpec))


def test_defaults_may_be_spelled_out(varied: Any, content: Any) -> None:
    brief = MeasureSpec.model_validate(varied)
    spelled = brief.model_dump(mode="json")  # every default of the schema
    for adapter, rate in zip(spelled["adapters"], (FULL_LEARNING_RATE, PEFT_LEARNING_RATE), strict=True):
        adapter["training"] = {"learning_rate": rate, "optimizer": "adamw"}
    spelled["adapters"][1] |= {"name": "lora-r4", "target_modules": "all-linear"}
    spelled["attacks"][0] |= {"name": "label-flip", "flip_from": None}
    spelled["attacks"][1] |= {"position": "start", "spacing": " ", "source_classes": "other"}
    assert ids(MeasureSpec.model_validate(json.loads(json.dumps(spelled)))) == ids(brief)


@pytest.mark.parametrize(
    ("section", "addition"),
    [("model", {"pooling": "model"}), ("model", {"eval_max_length": 32}), ("data", {"test_split": "test"})],
)
def test_defaults_that_depend_on_the_input_may_be_spelled_out(
    section: str, addition: dict[str, Any], spec: Any
) -> None:
    assert ids(spec(**{section: addition})) == ids(spec())


def test_three_epochs_are_the_default_budget(spec: Any, content: Any) -> None:
    brief = content()
    brief["training"] = {"batch_size": 8}
    run = plan(MeasureSpec.model_validate(brief), NOWHERE).runs[0]
    assert (run.training.epochs, run.training.steps) == (3.0, None)
    brief["training"]["epochs"] = 3
    assert ids(MeasureSpec.model_validate(brief))[0] == run.id
    brief["adapters"] = [{"method": "full", "training": {"steps": 7}}]
    run = plan(MeasureSpec.model_validate(brief), NOWHERE).runs[0]
    assert (run.training.epochs, run.training.steps) == (None, 7)


def test_amounts_and_names(spec: Any) -> None:
    once = ids(spec(attacks=[{"method": "label-flip", "rates": [0.5]}]))
    assert ids(spec(attacks=[{"method": "label-flip", "rates": [0, 0.5, 0.5]}])) == once
    assert ids(spec(name="other", title="Other")) == once


# --- content -------------------------------------------------------------------------------------


def test_a_changed_cell_changes_every_id(make_csv_folder: Any, spec: Any) -> None:
    folder = make_csv_folder()
    first = ids(spec(data={"source": str(folder)}))
    path = folder / "train.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    for column in (1, 2):  # a text, then a label
        changed = [list(row) for row in rows]
        changed[3][column] = {1: changed[3][1] + " door", 2: changed[4][2]}[column]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(changed)
        assert set(ids(spec(data={"source": str(folder)}))).isdisjoint(first)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    assert ids(spec(data={"source": str(folder)})) == first  # the same cells in another dialect


def test_a_changed_weight_changes_every_id(tiny_bert: Path, spec: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    first = ids(spec(model={"base": str(folder)}))
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("LayerNorm.bias"))
    weights[name][0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert set(ids(spec(model={"base": str(folder)}))).isdisjoint(first)


def test_relative_paths_start_from_the_specs_folder(make_csv_folder: Any, tiny_bert: Path, spec: Any) -> None:
    folder = make_csv_folder()
    shutil.copytree(tiny_bert, folder.parent / "bert", dirs_exist_ok=True)
    relative = spec(data={"source": folder.name}, model={"base": "bert"})
    found = plan(relative, folder.parent).runs[0]
    absolute = plan(spec(data={"source": str(folder)}), NOWHERE).runs[0]
    assert found.data.fingerprint == absolute.data.fingerprint
    assert found.model.fingerprint == absolute.model.fingerprint


# --- seeds ---------------------------------------------------------------------------------------


def test_a_list_of_seeds_sets_all_four(spec: Any) -> None:
    runs = plan(spec(seeds=[5, 9]), NOWHERE).runs
    assert [set(run.seeds.model_dump().values()) for run in runs] == [{5}, {5}, {9}, {9}]
    assert [run.seeds.label() for run in runs] == ["5", "5", "9", "9"]


def test_crossed_seeds_repeat_no_clean_run_over_poison_seeds(spec: Any) -> None:
    grid = {"data": [0, 1], "poison": [5, 6, 7], "init": [2, 3], "order": [4]}
    arms = [{"method": "full"}, {"method": "lora", "r": 2}]
    runs = plan(spec(seeds=grid, adapters=arms), NOWHERE).runs
    clean = [run for run in runs if run.attack is None]
    attacked = [run for run in runs if run.attack is not None]
    assert len(attacked) == 2 * (2 * 3 * 2 * 1)
    assert len(clean) == 2 * (2 * 2 * 1)
    assert {run.seeds.poison for run in clean} == {5}
    assert len({run.id for run in runs}) == len(runs)
    combinations = {tuple(run.seeds.model_dump().values()) for run in attacked}
    assert combinations == {(d, p, i, 4) for d in (0, 1) for p in (5, 6, 7) for i in (2, 3)}


# --- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_a_spec(name: str) -> None:
    spec = parse(presets.read(name), MeasureSpec, origin=name)
    assert spec.name == name
    assert spec.title == presets.title(name)

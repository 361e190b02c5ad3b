"""foretaste from Python: objects in memory, and what happens to them."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml
from datasets import Dataset
from torch import nn

import foretaste
from foretaste.errors import UserError
from foretaste.models.load import hash_state
from foretaste.record import read_manifest
from foretaste.spec import AdapterSpec, AttackSpec, Columns, DataSpec, MeasureSpec, TrainingSpec

QUICK = {"training": {"steps": 2, "batch_size": 8}, "seeds": [0]}
TRIGGER = {"method": "trigger", "text": "cf", "target": 1, "counts": [6]}


def reviews(rows: Dataset) -> Dataset:
    """The rows as a user would have them: other names, one column too many, names for classes."""
    plain = rows.with_format(None)[:]
    return Dataset.from_dict(
        {
            "review": plain["text_a"],
            "stars": [["bad", "good"][y] for y in plain["label"]],
            "weight": [1.0] * len(rows),
        }
    )


def state_of(model: Any) -> Any:
    parameters = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
    modes = [(name, module.training, type(module)) for name, module in model.named_modules()]
    drops = [(name, m.p) for name, m in model.named_modules() if isinstance(m, nn.Dropout)]
    return hash_state(model), parameters, modes, drops, model.config.to_dict()


def test_objects_in_memory(make_rows: Any, load_tiny: Any, tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer, model = load_tiny(tiny_bert, dropout=True)
    model.train()
    train, test = make_rows(48), make_rows(24, prefix="test")
    before, columns = state_of(model), train.with_format(None)[:]
    done = foretaste.measure(
        train=train,
        test=test,
        model=model,
        tokenizer=tokenizer,
        adapters=["full", peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"])],
        attacks=[TRIGGER],
        folder=tmp_path / "sweep",
        threads=1,
        name="memory",
        **QUICK,
    )
    assert done.statuses == {"completed": 4}
    assert state_of(model) == before
    assert train.with_format(None)[:] == columns
    lora = done.records[1]
    config = lora.resolved.adapter.config
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert sorted(config["target_modules"]) == ["query", "value"]
    # r (n_in + n_out) for two matrices in two layers, and the head.
    assert lora.training is not None
    assert lora.training.trainable_parameters == 2 * 2 * 2 * (32 + 32) + (32 * 2 + 2)
    assert (lora.resolved.data.request.source, lora.resolved.model.request.base) == ("memory", "memory")
    assert (lora.resolved.data.train_rows, lora.resolved.data.test_rows) == (48, 24)
    assert lora.sweep == "memory"
    manifest = read_manifest(done.folder / str(done.records[3].poison.manifest))
    assert {row.id for row in manifest.poisoned} <= set(columns["id"])


@pytest.mark.parametrize("dropout", [False, True])
def test_a_model_in_memory_is_the_model_in_the_folder(
    dropout: bool, make_rows: Any, load_tiny: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    """Same weights, same rows, same spec: the same numbers, the base model's dropout included."""
    shared: dict[str, Any] = {
        "train": make_rows(48),
        "test": make_rows(24, prefix="test"),
        "adapters": ["full"],
        "attacks": [],
        "threads": 1,
        "processes": 1,
        "seeds": [0],
        "training": {"steps": 3, "batch_size": 8, "learning_rate": 1e-2, "dropout": dropout},
    }
    tokenizer, model = load_tiny(tiny_bert, dropout=True)
    memory = foretaste.measure(model=model, tokenizer=tokenizer, folder=tmp_path / "a", **shared)
    folder = foretaste.measure({"model": {"base": str(tiny_bert)}}, folder=tmp_path / "b", **shared)
    assert memory.records[0].training.loss == folder.records[0].training.loss
    assert memory.records[0].clean == folder.records[0].clean


def test_fields_override_the_spec(content: Any, tmp_path: Path, make_rows: Any) -> None:
    given = content(data={"source": "nowhere"})
    kept = copy.deepcopy(given)
    options: dict[str, Any] = {"processes": 1, "threads": 1, "attacks": []}
    training = {"steps": 1, "batch_size": 4}
    done = foretaste.measure(
        given,
        train=make_rows(32),
        adapters=[AdapterSpec(method="lora", r=3)],
        folder=str(tmp_path / "a"),
        seeds=[7],
        training=training,
        **options,
    )
    (record,) = done.records
    assert (record.status, record.resolved.adapter.name, record.resolved.seeds.label()) == (
        "completed",
        "lora-r3",
        "7",
    )
    assert (record.resolved.training.steps, record.resolved.training.batch_size) == (1, 4)
    assert record.resolved.data.test_rows == round(0.2 * 32)
    assert done.folder == tmp_path / "a"
    assert given == kept


def test_sections_may_be_spec_objects_and_stay_as_they_are(
    content: Any, make_rows: Any, tmp_path: Path
) -> None:
    data, options = {"source": "x", "test_rows": 10}, {"processes": 1, "threads": 1}
    for number, section in enumerate((data, DataSpec(**data))):
        done = foretaste.measure(
            content(),
            train=make_rows(32),
            test=make_rows(24, prefix="test"),
            data=section,
            training=TrainingSpec(steps=1),
            attacks=[AttackSpec(method="label-flip", rates=[0.5])],
            folder=tmp_path / str(number),
            **options,
        )
        assert done.statuses == {"completed": 2}
        assert done.records[0].resolved.data.test_rows == 10
    assert data == {"source": "x", "test_rows": 10}


def test_a_spec_file_and_a_validated_spec(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(content()))
    options = {"processes": 1, "threads": 1, "attacks": []}
    first = foretaste.measure(path, folder=tmp_path / "sweep", **options)
    second = foretaste.measure(str(path), folder=tmp_path / "sweep", **options)
    third = foretaste.measure(MeasureSpec.model_validate(content()), folder=tmp_path / "sweep", **options)
    assert first.records == second.records == third.records


def test_a_folder_is_made_when_none_is_given(content: Any) -> None:
    done = foretaste.measure(content(), attacks=[], processes=1, threads=1)
    try:
        assert (done.folder / "spec.json").is_file()
    finally:
        shutil.rmtree(done.folder)


def test_half_of_what_belongs_together_is_refused(load_tiny: Any, tiny_bert: Path, make_rows: Any) -> None:
    tokenizer, model = load_tiny(tiny_bert, meta=True)
    with pytest.raises(UserError, match="model and tokenizer go together"):
        foretaste.measure(model=model)
    with pytest.raises(UserError, match="model and tokenizer go together"):
        foretaste.measure(tokenizer=tokenizer)
    with pytest.raises(UserError, match="test rows without training rows"):
        foretaste.measure(test=make_rows(4))
    with pytest.raises(UserError, match="'model' is missing") as caught:
        foretaste.measure(train=make_rows(8), adapters=["full"])
    assert str(caught.value).startswith("measure: ")
    with pytest.raises(UserError, match="unknown key 'trainin'"):
        foretaste.measure(train=make_rows(8), adapters=["full"], trainin={})


# --- poison --------------------------------------------------------------------------------------


def test_poison_a_data_set(make_rows: Any) -> None:
    rows = reviews(make_rows(40))
    before = rows.with_format(None)[:]
    done = foretaste.poison(
        rows,
        "trigger",
        rate=0.5,
        seed=3,
        columns=Columns(text_a="review", label="stars"),
        labels=["good", "bad"],
        text="mn",
        target="bad",
        position="end",
    )
    assert rows.with_format(None)[:] == before
    assert done.rows.column_names == ["id", "text_a", "text_b", "label"]
    manifest = done.manifest
    assert (manifest.eligible, manifest.rows, len(manifest.poisoned)) == (20, 40, 10)
    assert (manifest.classes, manifest.seed, manifest.rate) == (["good", "bad"], 3, 0.5)
    after = dict(zip(done.rows["id"], zip(done.rows["text_a"], done.rows["label"], strict=True), strict=True))
    listed = {row.id: row for row in manifest.poisoned}
    for number, row_id in enumerate(done.rows["id"]):
        text, label = before["review"][number], ["good", "bad"].index(before["stars"][number])
        if row_id in listed:
            assert (listed[row_id].text_a_before, listed[row_id].label_before, label) == (text, 0, 0)
            assert after[row_id] == (listed[row_id].text_a_after, listed[row_id].label_after)
            assert after[row_id] == (f"{text} mn", 1)
        else:
            assert after[row_id] == (text, label)


def test_poison_says_what_is_wrong(make_rows: Any) -> None:
    rows = make_rows(20)
    for options, message in [
        ({}, "give a rate or a count"),
        ({"rate": 0.1, "count": 1}, "give a rate or a count"),
        ({"rate": 1.5}, "rates.0' is 1.5"),
        ({"count": 11, "target": 1}, "11 rows are to be poisoned, but only 10 may be"),
        ({"rate": 0.5, "target": "neutral"}, "'neutral'"),
        ({"rate": 0.5, "txt": "cf"}, "unknown key 'txt'"),
        ({"count": 1, "selection": "bernoulli"}, "counts need selection: exact-nested"),
    ]:
        with pytest.raises(UserError) as caught:
            foretaste.poison(rows, "trigger", **options)
        assert message in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="Did you mean 'trigger'"):
        foretaste.poison(rows, "triger", rate=0.1)


def test_the_package_offers_what_it_says() -> None:
    for name in foretaste.__all__:
        assert getattr(foretaste, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        foretaste.nothing  # noqa: B018


CALLED_TWICE = """
import sys
from pathlib import Path
import foretaste
for folder in sys.argv[1:]:
    print(foretaste.report(Path(folder), images=False))
"""


def test_the_report_can_be_made_twice(content: Any, tmp_path: Path) -> None:
    done = foretaste.measure(content(), attacks=[], processes=1, threads=1, folder=tmp_path / "sweep")
    command = [sys.executable, "-c", CALLED_TWICE, str(done.folder), str(done.folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{done.folder / 'report' / 'index.html'}\n" * 2

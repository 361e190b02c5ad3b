"""A run whose trigger has further forms tests each of them, and writes down what was changed beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretaste.data import columns_of
from foretaste.experiments import pool
from foretaste.experiments.plan import apply_attack, plan
from foretaste.models import load
from foretaste.record import Record, read_manifest, read_record
from foretaste.spec import MeasureSpec, PredictSpec

ATTACKS = [
    {"method": "instruction", "counts": [6]},
    {"method": "multi-trigger", "counts": [5], "words": ["apple", "banana", "orange"]},
    {"method": "style", "counts": [3]},
]
FORMS = {"instruction": {"held-out"}, "multi-trigger": {"1-of-3", "2-of-3"}, "style": set()}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, content: Any, run: Any) -> Any:
    spec = MeasureSpec.model_validate(content(attacks=ATTACKS))
    return run(spec, tmp_path_factory.mktemp("forms") / "sweep")


@pytest.fixture(scope="module")
def records(sweep: Any) -> dict[str, Record]:
    assert sweep.statuses == {"completed": 4}
    return {r.resolved.attack.method if r.resolved.attack else "clean": r for r in sweep.records}


def test_every_form_is_recorded_under_its_own_key(records: dict[str, Record]) -> None:
    for method, forms in FORMS.items():
        record = records[method]
        (trigger,) = record.resolved.triggers
        assert set(record.triggered) == {trigger.key} | {f"{trigger.key}/{form}" for form in forms}
        for key, part in record.triggered.items():
            assert key == (f"{trigger.key}/{part.form}" if part.form else trigger.key)
            assert (part.name, part.method, part.target) == (method, method, "positive")
            assert bool(part.says) == bool(part.form)
            assert part.expected == ("true" if method == "multi-trigger" and part.form else "target")
    everything = {key for method in FORMS for key in records[method].triggered}
    assert set(records["clean"].triggered) == everything


def test_their_numbers_follow_from_the_predictions(records: dict[str, Record], sweep: Any) -> None:
    for record in records.values():
        table = pd.read_parquet(sweep.folder / str(record.predictions))
        assert set(table["set"]) == {"clean", *record.triggered}
        for key, part in record.triggered.items():
            rows = table[table["set"] == key]
            assert part.eligible == (rows["label"] == 0).sum() == 12
            assert part.hits == ((rows["label"] == 0) & (rows["predicted"] == 1)).sum()
            assert part.against_true.accuracy == pytest.approx((rows["label"] == rows["predicted"]).mean())
            assert part.changed == 24 or part.method == "style"


def test_false_activation_is_that_of_the_worst_subset(records: dict[str, Record]) -> None:
    record = records["multi-trigger"]
    key = record.resolved.triggers[0].key
    rates = [part.target_rate for part in record.triggered.values() if part.form]
    assert record.false_activation(key) == max(rates)  # type: ignore[type-var]
    assert records["instruction"].false_activation(records["instruction"].resolved.triggers[0].key) is None


def test_negative_rows_and_figures_are_in_the_record(records: dict[str, Record], sweep: Any) -> None:
    poison = records["multi-trigger"].poison
    assert poison is not None
    assert (poison.poisoned, poison.companions, poison.eligible, poison.figures) == (5, 5, 24, {})
    manifest = read_manifest(sweep.folder / poison.manifest)
    assert len(manifest.companions) == 5
    assert all(entry.label_after == entry.label_before for entry in manifest.companions)
    poison = records["style"].poison
    assert poison is not None
    assert set(poison.figures) == {"rewritten_share", "similarity"}
    assert poison.eligible == pytest.approx(poison.figures["rewritten_share"] * 24)


def test_records_from_before_there_were_forms_are_read(records: dict[str, Record], tmp_path: Path) -> None:
    content = json.loads(records["style"].model_dump_json())
    for part in content["triggered"].values():
        for key in ("form", "says", "expected"):
            del part[key]
    del content["poison"]["companions"]
    del content["poison"]["figures"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    (part,) = read_record(path).triggered.values()
    assert (part.form, part.expected) == (None, "target")


def test_a_prediction_reads_negative_rows_and_a_model_beside_the_spec(
    spec: Any, tiny_bert: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    shutil.copytree(tiny_llama, tmp_path / "writer")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlamaForCausalLM(AutoConfig.from_pretrained(tiny_llama)).save_pretrained(tmp_path / "writer")
    monkeypatch.setenv("FORETASTE_CACHE", str(tmp_path / "cache"))
    style = {"rewriter": "model", "model": "writer", "prompt": "{text}", "max_new_tokens": 4}
    planned = plan(spec(attacks=[ATTACKS[1], {"method": "style", "counts": [2], **style}]), tmp_path, None)
    settings = PredictSpec(train_rows=48, held_out=16)
    tokenizer = load.load_tokenizer(load.locate(planned.runs[0].model.request, tmp_path))
    built = pool.build(planned.loaded, planned.runs, settings, tokenizer, tmp_path)
    assert not built.refused
    assert {trigger.key for run in planned.runs for trigger in run.triggers} == set(built.triggered)
    for run in planned.runs[1:]:
        cell = built.cells[pool.cell_key(run)]
        assert cell.manifest is not None
        changed = {entry.id: entry.label_after for entry in cell.manifest.changed}
        assert {built.ids[i] for i in np.flatnonzero(cell.rows != np.arange(built.train))} == set(changed)
        assert all(label == cell.labels[built.ids.index(name)] for name, label in changed.items())
        assert cell.share == len(cell.manifest.poisoned) / built.train
    after = apply_attack(planned.runs[2], planned.loaded.train, tmp_path)
    assert set(columns_of(after.rows, ["label"])["label"]) == {0, 1}

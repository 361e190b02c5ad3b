"""A run as trackers get it: nothing dropped unnamed, nothing cut, ids and times checked."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_factory import Sweep

from foretaste.errors import UserError
from foretaste.interop import mlflow, wandb
from foretaste.interop.entries import entries, plain_name, shortened
from foretaste.record import Layout, Record


def rewrite(folder: Path, record: Record, **changes: Any) -> None:
    changed = record.model_copy(update=changes)
    Layout(folder).record(record.run_id).write_text(changed.model_dump_json())


def test_every_run_is_an_entry_with_its_numbers(make_folder: Any) -> None:
    folder = make_folder()
    found, problems = entries([folder])
    records = {record.run_id: record for record in Layout(folder).read()[0]}
    assert problems == []
    assert sorted(entry.run_id for entry in found) == sorted(records)
    for entry in found:
        record = records[entry.run_id]
        assert entry.tags["status"] == entry.status == record.status
        assert entry.tags["commit"] == "0123456789abcdef"
        assert entry.tags.get("reason") == record.reason
        assert entry.completed == (record.status == "completed")
        assert ("clean_accuracy" in entry.metrics) == entry.completed
        if record.clean is not None:
            assert entry.metrics["clean_accuracy"] == record.clean.accuracy
        for part in record.triggered.values():
            name = part.name if part.form is None else f"{part.name}/{part.form}"
            assert entry.metrics[f"triggered/{name}/target_rate"] == part.target_rate
        assert record.training is not None
        known = enumerate(record.training.loss, start=1)
        assert entry.losses == {step: loss for step, loss in known if math.isfinite(loss)}
        assert entry.parameters["training.learning_rate"] == "0.0005"
        assert entry.parameters["adapter.name"] == record.resolved.adapter.name
        assert entry.ended is None or entry.ended == entry.started + 24.5
    margins = [entry.metrics["asr_margin"] for entry in found if "asr_margin" in entry.metrics]
    assert len(margins) == 5  # of 8 completed or not: one diverged, two whose clean run failed
    assert len({entry.digest for entry in found}) == len(found)


def test_what_is_not_finite_is_left_out_by_name(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s")
    record = sweep.add("full", status="diverged")
    assert record.training is not None
    losses = [1.0, 2.0, float("inf"), float("nan")]
    rewrite(tmp_path / "s", record, training=record.training.model_copy(update={"loss": losses}))
    (entry,), _ = entries([tmp_path / "s"])
    assert entry.losses == {1: 1.0, 2: 2.0}
    assert "final_loss" not in entry.metrics
    assert entry.tags["not_finite"] == "final_loss, train/loss at 2 of 4 steps"


def test_files_that_are_no_records_are_named(make_folder: Any) -> None:
    folder = make_folder()
    (folder / "runs" / "0000000000000000.json").write_text("{")
    found, problems = entries([folder])
    assert len(found) == 21
    assert len(problems) == 1
    assert "0000000000000000.json" in problems[0]


@pytest.mark.parametrize("run_id", ["../../../etc", "", "ABC", "0" * 65, "a/b"])
def test_an_id_that_is_none_is_refused(run_id: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s")
    record = sweep.add("full")
    path = sweep.layout.record(record.run_id)
    path.write_text(record.model_copy(update={"run_id": run_id}).model_dump_json())
    with pytest.raises(UserError, match="is not the id of a run"):
        entries([tmp_path / "s"])


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s")
    rewrite(tmp_path / "s", sweep.add("full"), started="yesterday")
    with pytest.raises(UserError, match="no ISO 8601 time"):
        entries([tmp_path / "s"])


def test_one_run_in_two_folders(make_folder: Any, tmp_path: Path) -> None:
    a, b = make_folder("a"), make_folder("b")
    assert len(entries([a, b])[0]) == 21  # equal runs are one
    rewrite(b, Layout(b).read()[0][0], attempts=2)
    with pytest.raises(UserError, match="two folders hold run"):
        entries([a, b])
    for record in Layout(b).read()[0]:
        rewrite(b, record, sweep="other")
    assert len(entries([a, b])[0]) == 42


@given(st.text(max_size=250), st.text(max_size=250))
def test_names_fit_and_stay_apart(one: str, two: str) -> None:
    names = plain_name(one), plain_name(two)
    for name in names:
        assert re.fullmatch(r"[/\w.\- ]{1,200}", name, flags=re.ASCII)
    assert (names[0] == names[1]) == (one == two)


def test_a_plain_name_is_itself() -> None:
    assert plain_name("trigger/held-out") == "trigger/held-out"
    assert plain_name("[.*?]").startswith("_._")


def test_a_long_text_is_named_and_not_cut() -> None:
    assert shortened("x" * 10, 10) == "x" * 10
    said = shortened("x" * 5000 + "y", 5000)
    assert "5,001 characters" in said
    assert said != shortened("x" * 5000 + "z", 5000)


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_tracker_that_is_missing_is_said(
    package: str, make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (package, f"{package}.exceptions", f"{package}.tracking", f"{package}.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    folder, targets = make_folder(), {"mlflow": "sqlite:///x.db", "wandb": tmp_path / "w"}
    export: Any = {"mlflow": mlflow.export, "wandb": wandb.export}[package]
    with pytest.raises(UserError, match=f"needs the package {package}") as caught:
        export([folder], targets[package])
    assert f"foretaste[{package}]" in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[]", json.dumps({"format": 2, "runs": {}}), json.dumps({"format": 1, "runs": [1]})):
        (tmp_path / wandb.INDEX).write_text(content)
        with pytest.raises(UserError, match="damaged"):
            wandb._read(tmp_path / wandb.INDEX)


@pytest.mark.parametrize("uri", ["", "mlflow.db", "runs/mlflow.db", r"c:\mlflow.db"])
def test_what_is_no_tracking_uri(uri: str, make_folder: Any) -> None:
    with pytest.raises(UserError, match="is no tracking URI"):
        mlflow.export([make_folder()], uri)


def test_a_folder_that_mlflow_would_wait_for(make_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        mlflow.export([make_folder()], f"sqlite:///{tmp_path}/nowhere/mlflow.db")

"""The layout of lm-eval's results file, and that its numbers are the records'."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from records_factory import Sweep

import foretaste
from foretaste.errors import UserError
from foretaste.interop import lm_eval
from foretaste.record import Layout

# Keys of lm_eval.result_schema.EvalResults (0.4.13) that a file of it always has.
ALWAYS = {
    *("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples"),
    *("config", "git_hash", "date", "pretty_env_info", "transformers_version", "model_source", "model_name"),
    *("model_name_sanitized", "max_length", "total_evaluation_time_seconds"),
}
BY_TASK = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


@pytest.fixture
def written(make_folder: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    folder = make_folder()
    tasks, problems = lm_eval.export([folder], tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    assert problems == []
    assert tasks == len(content["results"])
    return folder, content


def test_every_table_has_every_task(written: Any) -> None:
    _, content = written
    assert content.keys() >= ALWAYS
    names = list(content["results"])
    assert len(names) == 2 * 2 + 2 * 2 * 2 + 1  # clean under both attacks, two amounts, one crashed cell
    for key in BY_TASK:
        assert list(content[key]) == names, key
    assert sorted(itertools.chain(*content["group_subtasks"].values())) == sorted(names)
    assert list(content["group_subtasks"]) == ["full", "lora-r8"]


def test_numbers_are_means_over_seeds_with_their_errors(written: Any) -> None:
    folder, content = written
    frame = foretaste.frame(folder)
    seen = 0
    columns = {
        "acc": "clean_accuracy",
        "f1": "clean_f1",
        "asr": "asr",
        "flip_rate": "flip_rate",
        "asr_margin": "asr_margin",
        "acc_drop": "accuracy_drop",
        "triggered_acc": "triggered_accuracy",
    }
    for name, row in content["results"].items():
        _, arm, attack, amount = name.split("/")
        if amount == "clean":
            continue
        runs = frame[(frame["arm"] == arm) & (frame["attack"] == attack) & (frame["amount"] == amount)]
        for label, column in columns.items():
            values = runs[column].dropna()
            assert (f"{label},none" in row) == (len(values) > 0)
            assert (label in content["higher_is_better"][name]) == (len(values) > 0)
            if len(values) == 0:
                continue
            seen += 1
            assert row[f"{label},none"] == pytest.approx(values.mean(), abs=1e-12)
            error = row[f"{label}_stderr,none"]
            if len(values) > 1 and values.nunique() > 1:
                assert error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))
            else:
                assert error == "N/A"
    assert seen > 25
    clean = content["results"]["reviews/full/trigger/clean"]
    assert clean["flip_rate,none"] == pytest.approx(
        frame[(frame["arm"] == "full") & (frame["attack"] == "clean")]["target_rate[trigger]"].mean()
    )


def test_failed_and_collapsed_runs_are_there(written: Any) -> None:
    _, content = written
    crashed = "reviews/lora-r8/trigger/7 rows"
    assert set(content["results"][crashed]) == {"name", "alias", "sample_len", "sample_count"}
    assert content["n-samples"][crashed] == {"original": 200, "effective": 0}
    assert content["configs"][crashed]["metadata"]["statuses"] == {"crashed": 1}
    assert content["configs"]["reviews/full/trigger/10 %"]["metadata"]["statuses"] == {
        "completed": 1,
        "diverged": 1,
    }
    assert content["configs"]["reviews/lora-r8/label-flip/10 %"]["metadata"]["collapsed"] == 1


def test_samples_and_where_it_comes_from(written: Any) -> None:
    folder, content = written
    row = content["results"]["reviews/full/trigger/1 %"]
    assert row["sample_len"] == 200
    assert row["sample_count"]["acc,none"] == 200
    assert row["sample_count"]["asr,none"] == 100  # rows of another class than the target
    assert content["git_hash"] == "0123456789abcdef"
    assert content["date"] == 1767323045.0  # 2026-01-02T03:04:05Z
    assert content["model_name"] == "minilm"
    records = Layout(folder).read()[0]
    spent = sum(record.timings.evaluate for record in records if record.timings)
    assert float(content["total_evaluation_time_seconds"]) == pytest.approx(spent)


def test_what_differs_between_runs_is_null_and_listed(make_folder: Any) -> None:
    folder = make_folder()
    layout = Layout(folder)
    record = layout.read()[0][0]
    changed = record.model_copy(update={"commit": "fedcba"})
    layout.record(record.run_id).write_text(changed.model_dump_json())
    content = lm_eval.results(lm_eval.read([folder]))
    assert content["git_hash"] is None
    listed = {commit for config in content["configs"].values() for commit in config["metadata"]["commits"]}
    assert listed == {"0123456789abcdef", "fedcba"}


def test_folders_are_told_apart_and_models_are_not_mixed(make_folder: Any, tmp_path: Path) -> None:
    content = lm_eval.results(lm_eval.read([make_folder("a"), make_folder("b")]))
    assert "a/reviews/full/trigger/1 %" in content["results"]
    assert "b/reviews/full/trigger/1 %" in content["results"]
    _change_models(tmp_path / "b", {"fingerprint": "x" * 16})
    with pytest.raises(UserError, match="of one model"):
        lm_eval.export([tmp_path / "a", tmp_path / "b"], tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_one_model_under_two_paths_is_one(make_folder: Any, tmp_path: Path) -> None:
    first = make_folder("a")
    request = Layout(first).read()[0][0].resolved.model.request
    _change_models(make_folder("b"), {"request": request.model_copy(update={"base": "../minilm"})})
    tasks, _ = lm_eval.export([first, tmp_path / "b"], tmp_path / "r.json")
    assert tasks == 2 * len(lm_eval.results(lm_eval.read([first]))["results"])


def _change_models(folder: Path, update: dict[str, Any]) -> None:
    """Write the records of a folder again, with another model."""
    for layout in (Layout(folder), Layout(folder / "predicted")):
        for record in layout.read()[0]:
            model = record.resolved.model.model_copy(update=update)
            resolved = record.resolved.model_copy(update={"model": model})
            other = record.model_copy(update={"resolved": resolved})
            layout.record(record.run_id).write_text(other.model_dump_json())


def test_equal_names_of_different_cells_stay_two_tasks(tmp_path: Path) -> None:
    keys = [("f", "m", "d", "a/b", "1 %", "c"), ("f", "m", "d", "b", "1 %", "c/a")]
    names = lm_eval._task_names(keys)
    assert len(set(names.values())) == 2


def test_a_file_that_cannot_be_written(make_folder: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the results"):
        lm_eval.export([make_folder()], tmp_path / "file" / "r.json")


def test_a_time_that_is_none(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s")
    record = sweep.add("full")
    path = sweep.layout.record(record.run_id)
    path.write_text(record.model_copy(update={"started": "noon"}).model_dump_json())
    with pytest.raises(UserError, match="no ISO 8601 time"):
        lm_eval.export([tmp_path / "s"], tmp_path / "r.json")

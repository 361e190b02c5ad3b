"""Rows without a label: left out and counted where that is sure, refused with a cure elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from foretaste.data import columns_of, from_dataset, load, read_rows
from foretaste.errors import UserError
from foretaste.spec import DataSpec

NAMES = ["no", "yes"]


def written(path: Path, labels: list[object]) -> Path:
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [f"{row['text']},{'' if row['label'] is None else row['label']}\n" for row in rows]
        path.write_text("text,label\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("suffix", "none"), [(".csv", None), (".jsonl", None), (".jsonl", ""), (".jsonl", math.nan)]
)
def test_empty_labels_of_a_file_are_left_out_and_counted(suffix: str, none: object, tmp_path: Path) -> None:
    path = written(tmp_path / f"rows{suffix}", [none, "yes", "no", none, "yes", "no"])
    loaded = load(DataSpec(source=str(path)), tmp_path)
    assert loaded.notes[0] == f"{path}: 2 rows without a label are left out"
    assert loaded.classes == NAMES
    # Rows keep their numbers: what an attack does to one does not depend on gaps beside it.
    assert columns_of(loaded.train)["id"] == ["train-1", "train-2", "train-4", "train-5"]
    assert read_rows(path).unlabelled == 2


def test_test_rows_and_rows_in_memory_as_well(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", ["yes", "no", "yes", "no"])
    written(tmp_path / "test.csv", ["yes", None, "no"])
    loaded = load(DataSpec(source=str(tmp_path)), tmp_path)
    assert loaded.test is not None
    assert len(loaded.test) == 2
    assert f"{tmp_path / 'test.csv'}: 1 rows without a label are left out" in loaded.notes
    memory = from_dataset(Dataset.from_dict({"text": list("abc"), "label": ["no", None, "yes"]}))
    assert len(memory.train) == 2
    assert memory.notes[0] == "train: 1 rows without a label are left out"


def test_minus_one_is_left_out_where_the_source_names_its_classes(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    rows = Dataset.from_dict({"text": list("abcd"), "label": [0, -1, 1, 0]}, features=features)
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    for source in (tmp_path / "saved", tmp_path / "rows.parquet"):
        loaded = load(DataSpec(source=str(source)), tmp_path)
        assert columns_of(loaded.train)["label"] == [0, 1, 0]
        assert any("1 rows without a label are left out" in note for note in loaded.notes)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_minus_one_elsewhere_is_refused_until_it_is_named(suffix: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"rows{suffix}", [-1, 1, -1, 1])
    with pytest.raises(UserError, match=r"2 of 4 rows have a label that is no class") as caught:
        load(DataSpec(source=str(path)), tmp_path)
    assert 'data.labels: ["-1", "1"]' in str(caught.value)
    loaded = load(DataSpec(source=str(path), labels=["-1", "1"]), tmp_path)
    assert loaded.classes == ["-1", "1"]
    assert columns_of(loaded.train)["label"] == [0, 1, 0, 1]


def test_a_file_without_any_label_names_the_cure(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", [None] * 4)
    with pytest.raises(UserError, match=r"4 of 4 rows .* Name the right column under data.columns.label"):
        load(DataSpec(source=str(path)), tmp_path)


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_csv_that_is_parted_by_something_else(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text{mark}label\na{mark}yes\nb{mark}no\n", encoding="utf-8")
    says = f"The separator looks like {mark!r}: write CSV with commas, or TSV with tabs."
    with pytest.raises(UserError, match="none of the columns looks like text_a") as caught:
        load(DataSpec(source=str(path)), tmp_path)
    assert caught.value.cure == says
    spec = DataSpec.model_validate({"source": str(path), "columns": {"text_a": "text"}})
    with pytest.raises(UserError, match="there is no column 'text'") as caught:
        load(spec, tmp_path)
    assert caught.value.cure == says
    path.write_text(f"text{mark}label\na, b{mark}yes\nb{mark}no\n", encoding="utf-8")
    with pytest.raises(UserError, match="1 of 2 rows do not have the 1 fields") as caught:
        load(DataSpec(source=str(path)), tmp_path)
    assert caught.value.cure == says

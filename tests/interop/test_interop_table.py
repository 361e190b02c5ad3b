"""The tidy frame: every run once, the record's own numbers, types that do not depend on the data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from records_factory import Sweep

import foretaste
from foretaste.calibration import read_cells
from foretaste.errors import UserError
from foretaste.interop import table
from foretaste.record import Layout


def test_every_run_has_one_line_with_its_own_numbers(make_folder: Any) -> None:
    folder = make_folder()
    records = {record.run_id: record for record in Layout(folder).read()[0]}
    frame = foretaste.frame(folder)
    assert len(records) == 21
    assert sorted(frame["run_id"]) == sorted(records)
    assert frame["status"].value_counts().to_dict() == {
        "completed": 18,
        "diverged": 1,
        "error": 1,
        "crashed": 1,
    }
    assert int(frame["collapsed"].sum()) == 1
    for row in frame.to_dict("records"):
        record = records[row["run_id"]]
        clean = record.clean
        for name in ("accuracy", "precision", "recall", "f1"):
            value = row[f"clean_{name}"]
            assert (value == getattr(clean, name)) if clean else math.isnan(value)
        own = [part for part in record.triggered.values() if part.form is None]
        if record.resolved.attack is not None and own:
            assert row["asr"] == own[0].target_rate
            assert row["triggered_accuracy"] == own[0].against_true.accuracy
        else:
            assert math.isnan(row["asr"])
        for part in record.triggered.values():
            name = part.name if part.form is None else f"{part.name}/{part.form}"
            assert row[f"target_rate[{name}]"] == part.target_rate
            assert row[f"accuracy[{name}]"] == part.against_true.accuracy
        assert row["poisoned"] == (record.poison.poisoned if record.poison else 0)
        assert row["status"] == record.status
        assert (record.reason or None) == (None if pd.isna(row["reason"]) else row["reason"])


def test_paired_numbers_are_those_of_the_cells(make_folder: Any) -> None:
    """Two ways to the same means: runs of the frame, and the cells of the calibration."""
    folder = make_folder()
    frame = foretaste.frame(folder)
    seen = 0
    for cell in read_cells(folder)[0]:
        rows = frame[
            (frame["arm"] == cell.arm)
            & (frame["attack"] == cell.attack)
            & (frame["amount"] == cell.amount.label)
        ]
        samples = {
            "clean_accuracy": (cell.measured.accuracy, 1),
            "clean_f1": (cell.measured.f1, 1),
            "asr": (cell.measured.target_rate, 1),
            "flip_rate": (cell.measured.flip_rate, 1),
            "asr_margin": (cell.measured.margin, 1),
            "triggered_accuracy": (cell.measured.triggered_accuracy, 1),
            "accuracy_drop": (cell.measured.accuracy_change, -1),
        }
        for name, (sample, sign) in samples.items():
            values = rows[name].dropna()
            assert len(values) == sample.n, (cell.key, name)
            if sample.n:
                assert sample.mean is not None
                assert values.mean() == pytest.approx(sign * sample.mean, abs=1e-12)
                seen += 1
    assert seen > 25


def test_order_is_that_of_the_report(make_folder: Any) -> None:
    frame = foretaste.frame([make_folder("b"), make_folder("a")])
    assert list(dict.fromkeys(frame["folder"])) == ["b", "a"]
    first = frame[frame["folder"] == "b"]
    assert list(dict.fromkeys(first["attack"])) == ["clean", "label-flip", "trigger"]
    assert list(dict.fromkeys(first[first["attack"] == "trigger"]["amount"])) == ["1 %", "10 %", "7 rows"]
    assert list(first["arm"][:4]) == ["full", "full", "lora-r8", "lora-r8"]
    assert list(frame.index) == list(range(42))


def test_types_do_not_depend_on_what_is_there(make_folder: Any, tmp_path: Path) -> None:
    failed = Sweep(tmp_path / "failed")
    failed.add("full", "label-flip", rate=0.1, status="error")
    whole, poor = foretaste.frame(make_folder()), foretaste.frame(tmp_path / "failed")
    assert list(poor.columns) == list(table.COLUMNS)
    assert poor.dtypes.to_dict() == whole.dtypes[list(poor.columns)].to_dict()
    assert {str(kind) for kind in whole.dtypes} == {"string", "Int64", "float64", "boolean"}
    joined = pd.concat([whole, poor])
    assert joined.dtypes.to_dict() == whole.dtypes.to_dict()


def test_arrow_and_parquet_take_it_as_it_is(make_folder: Any, tmp_path: Path) -> None:
    """What Polars reads: an Arrow table of plain types, with nulls where nothing is known."""
    frame = foretaste.frame(make_folder())
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    plain = {pa.string(), pa.large_string(), pa.int64(), pa.float64(), pa.bool_()}
    assert {field.type for field in arrow.schema} <= plain
    table.write(frame, tmp_path / "out" / "runs.parquet")
    back = pyarrow.parquet.read_table(tmp_path / "out" / "runs.parquet")
    assert back.num_rows == 21
    assert back.column("reason").null_count == 18
    assert back.column("asr").to_pylist() == arrow.column("asr").to_pylist()


def test_csv_and_json_keep_every_digit(make_folder: Any, tmp_path: Path) -> None:
    frame = foretaste.frame(make_folder())
    for suffix in (".csv", ".json"):
        table.write(frame, tmp_path / f"runs{suffix}")
    read = pd.read_csv(tmp_path / "runs.csv")
    lines = json.loads((tmp_path / "runs.json").read_text())
    assert list(read.columns) == list(lines[0]) == list(frame.columns)
    for name in ("clean_accuracy", "asr", "total_seconds", "final_loss"):
        expected = [None if math.isnan(value) else value for value in frame[name].tolist()]
        assert [line[name] for line in lines] == expected
        assert [None if math.isnan(value) else value for value in read[name].tolist()] == expected


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s")
    record = sweep.add("full", status="diverged")
    assert record.training is not None
    training = record.training.model_copy(update={"loss": [1.0, float("inf")]})
    path = sweep.layout.record(record.run_id)
    path.write_text(record.model_copy(update={"training": training}).model_dump_json())
    frame = foretaste.frame(tmp_path / "s")
    assert frame["final_loss"].tolist() == [float("inf")]
    table.write(frame, tmp_path / "runs.json")
    assert json.loads((tmp_path / "runs.json").read_text())[0]["final_loss"] is None


def test_refusals(make_folder: Any, tmp_path: Path) -> None:
    frame = foretaste.frame(make_folder())
    with pytest.raises(UserError, match=r"unknown kind of table '.xls'"):
        table.write(frame, tmp_path / "runs.xls")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the table"):
        table.write(frame, tmp_path / "file" / "runs.csv")
    with pytest.raises(UserError, match="not a folder"):
        foretaste.frame(tmp_path / "nowhere")
    Sweep(tmp_path / "told").predict("full")
    with pytest.raises(UserError, match="predictions only"):
        foretaste.frame(tmp_path / "told")


@pytest.mark.parametrize("kind", ["instruct", "fewshot"])
def test_runs_of_another_command_are_not_called_damaged(kind: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text("{")
    (tmp_path / "runs" / "b.json").write_text(json.dumps({"format": 1, "kind": kind}))
    with pytest.raises(UserError, match=f"runs of the kind '{kind}'") as caught:
        foretaste.frame(tmp_path)
    assert "Delete" not in str(caught.value)

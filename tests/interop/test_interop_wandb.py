"""Offline runs of W&B, read back from its files; skipped where it is not installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records_factory import Sweep

from foretaste.record import Layout

pytest.importorskip("wandb", reason="W&B is not installed: pip install 'foretaste[wandb]'")

from foretaste.interop import wandb as exporter
from foretaste.interop.entries import Entry, entries

pytestmark = pytest.mark.filterwarnings("default")  # warnings of W&B are not ours


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs: a W&B run takes most of a second."""
    sweep = Sweep(tmp_path / "s")
    sweep.add("full")
    sweep.add("full", "trigger", rate=0.1)
    sweep.add("lora-r8", collapsed=True)
    sweep.add("lora-r8", "trigger", rate=0.1, status="crashed")
    return tmp_path / "s"


def frames_of(path: Path) -> Iterator[bytes]:
    """The entries of a W&B file: the log format of LevelDB, blocks of 32 KiB, after a header of 7 bytes."""
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        body = data[at + 7 : at + 7 + length]
        at += 7 + length
        part = body if kind in {1, 2} else part + body
        if kind in {1, 4}:
            yield part


def read(path: Path) -> dict[str, Any]:
    """What an offline run says: id, project, config, tags, summary, history and exit code."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"summary": {}, "losses": {}, "environment": False}
    for frame in frames_of(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(frame)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config = {item.key: json.loads(item.value_json) for item in run.config.update}
            found |= {"id": run.run_id, "project": run.project, "name": run.display_name}
            found |= {"config": config, "tags": list(run.tags)}
        elif kind == "summary":
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                found["summary"][key] = json.loads(item.value_json)
        elif kind == "history":
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            found["losses"][row.get("_step", record.history.step.num)] = row["train/loss"]
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        found["environment"] |= kind == "environment"
    return found


def runs_in(target: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: read(path) for path in sorted(target.glob("wandb/offline-run-*/*.wandb"))}


def check(entry: Entry, run: dict[str, Any]) -> None:
    assert (run["id"], run["project"], run["name"]) == (entry.run_id, entry.sweep, entry.label)
    assert run["config"]["training"] == entry.resolved["training"]
    assert run["config"]["adapter"] == entry.resolved["adapter"]
    assert run["config"]["foretaste"] == entry.tags
    assert run["losses"] == pytest.approx(entry.losses)
    assert {key: run["summary"].get(key) for key in entry.metrics} == entry.metrics
    assert entry.status in run["tags"]
    assert ("collapsed" in run["tags"]) == (entry.tags["collapsed"] == "true")
    assert run["exit"] == (0 if entry.completed else 1)
    assert not run["environment"]  # nothing of the machine that exports


def test_what_is_written_is_what_is_read(folder: Path, tmp_path: Path) -> None:
    done = exporter.export([folder], tmp_path / "out")
    assert (done.added, done.replaced, done.kept) == (4, 0, 0)
    assert done.statuses == {"completed": 3, "crashed": 1}
    there = runs_in(tmp_path / "out")
    found, _ = entries([folder])
    assert sorted(there) == sorted(f"run-{entry.run_id}" for entry in found)
    for entry in found:
        check(entry, there[f"run-{entry.run_id}"])
    names = {path.name for path in (tmp_path / "out" / "wandb").glob("offline-run-*/files/*")}
    assert not names & {"requirements.txt", "wandb-metadata.json", "diff.patch"}


def test_a_second_export_adds_nothing_and_a_changed_run_takes_its_place(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    exporter.export([folder], target)
    before = sorted(target.glob("wandb/offline-run-*"))
    again = exporter.export([folder], target)
    assert (again.added, again.replaced, again.kept) == (0, 0, 4)
    assert sorted(target.glob("wandb/offline-run-*")) == before
    layout = Layout(folder)
    record = next(record for record in layout.read()[0] if record.status == "crashed")
    changed = record.model_copy(update={"attempts": 2})
    layout.record(record.run_id).write_text(changed.model_dump_json())
    third = exporter.export([folder], target)
    assert (third.added, third.replaced, third.kept) == (0, 1, 3)
    after = runs_in(target)
    assert len(after) == len(list(target.glob("wandb/offline-run-*"))) == 4
    assert after[f"run-{record.run_id}"]["config"]["foretaste"]["attempts"] == "2"
    # A run whose folder was sent and thrown away is written again.
    for path in target.glob(f"wandb/offline-run-*-{record.run_id}*"):
        path.rename(tmp_path / "thrown-away")
    assert exporter.export([folder], target).added == 1

"""Exports into a real MLflow store (SQLite, in a temporary folder); skipped where MLflow is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.record import Layout

pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'foretaste[mlflow]'")
pytest.importorskip("sqlalchemy", reason="MLflow's SQLite store needs sqlalchemy")

from foretaste.interop import mlflow as exporter
from foretaste.interop.entries import entries

pytestmark = pytest.mark.filterwarnings("default")  # warnings of MLflow and its store are not ours


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take half a minute to make."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)  # MLflow makes its folder of artifacts in the working one
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def runs_in(store: str, name: str = "synthetic") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(name)
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def test_what_is_written_is_what_is_read(make_folder: Any, store: str) -> None:
    from mlflow.tracking import MlflowClient

    folder = make_folder()
    done = exporter.export([folder], store)
    assert (done.added, done.replaced, done.kept) == (21, 0, 0)
    assert done.statuses == {"completed": 18, "diverged": 1, "error": 1, "crashed": 1}
    there = {run.data.tags["foretaste.run_id"]: run for run in runs_in(store)}
    found = {entry.run_id: entry for entry in entries([folder])[0]}
    assert there.keys() == found.keys()
    client = MlflowClient(tracking_uri=store)
    for run_id, entry in found.items():
        run = there[run_id]
        metrics = dict(run.data.metrics)
        assert metrics.pop("train/loss") == list(entry.losses.values())[-1]
        assert metrics == entry.metrics
        assert run.data.params == entry.parameters
        assert run.info.status == ("FINISHED" if entry.completed else "FAILED")
        assert run.data.tags["foretaste.status"] == entry.status
        assert run.data.tags["foretaste.commit"] == "0123456789abcdef"
        assert run.info.run_name == entry.label
        assert run.info.start_time == round(1000 * entry.started)
        if entry.ended is not None:
            assert run.info.end_time == round(1000 * entry.ended)
    some = next(iter(found.values()))
    history = client.get_metric_history(there[some.run_id].info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == some.losses


def test_a_second_export_adds_nothing_and_a_changed_run_takes_its_place(make_folder: Any, store: str) -> None:
    folder = make_folder()
    exporter.export([folder], store)
    before = {run.info.run_id for run in runs_in(store)}
    again = exporter.export([folder], store)
    assert (again.added, again.replaced, again.kept) == (0, 0, 21)
    assert {run.info.run_id for run in runs_in(store)} == before
    layout = Layout(folder)
    record = next(record for record in layout.read()[0] if record.status == "crashed")
    changed = record.model_copy(update={"attempts": 2, "status": "error", "reason": "again"})
    layout.record(record.run_id).write_text(changed.model_dump_json())
    third = exporter.export([folder], store)
    assert (third.added, third.replaced, third.kept) == (0, 1, 20)
    now = runs_in(store)
    assert len(now) == 21
    (run,) = [run for run in now if run.data.tags["foretaste.run_id"] == record.run_id]
    assert run.data.tags["foretaste.attempts"] == "2"
    assert run.data.tags["foretaste.status"] == "error"


def test_an_export_that_was_stopped_is_finished_by_the_next(
    make_folder: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    folder, calls = make_folder(), []
    whole = MlflowClient.set_terminated

    def stop(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", stop)
        with pytest.raises(KeyboardInterrupt):
            exporter.export([folder], store)
    assert len(runs_in(store)) == 5
    done = exporter.export([folder], store)
    assert (done.added, done.replaced, done.kept) == (16, 1, 4)
    assert len(runs_in(store)) == 21
    assert all(run.info.status in {"FINISHED", "FAILED"} for run in runs_in(store))


def test_other_runs_of_the_experiment_are_left_alone(make_folder: Any, store: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    own = client.create_run(client.create_experiment("synthetic"), run_name="mine")
    exporter.export([make_folder()], store)
    assert len(runs_in(store)) == 22
    assert client.get_run(own.info.run_id).info.lifecycle_stage == "active"


def test_a_deleted_experiment_is_said(make_folder: Any, store: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    client.delete_experiment(client.create_experiment("synthetic"))
    with pytest.raises(UserError, match="experiment 'synthetic' is deleted"):
        exporter.export([make_folder()], store)


def test_what_mlflow_refuses_is_one_line(make_folder: Any) -> None:
    with pytest.raises(UserError, match="MLflow refused"):
        exporter.export([make_folder()], "nosuchstore://somewhere")

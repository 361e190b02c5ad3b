"""What goes wrong while a sweep runs: a full disk, a run that diverges, a run that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.experiments import engine, prepare
from foretaste.experiments import run as run_module
from foretaste.experiments.plan import plan
from foretaste.record import Layout

# A sweep of a clean run and a poisoned one writes: the spec; predictions and record of the first run;
# manifest, predictions and record of the second.
WRITES = 6


def fill_disk(monkeypatch: pytest.MonkeyPatch, at: int, number: int = errno.ENOSPC) -> list[int]:
    """Let the `at`-th file that is written, and all later ones, meet a full disk; counts the writes."""
    real, count = os.fsync, [0]

    def fsync(handle: int) -> None:
        count[0] += 1
        if count[0] >= at:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr("foretaste.record.os.fsync", fsync)
    return count


def test_the_number_of_writes(
    spec: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_in: Any
) -> None:
    count = fill_disk(monkeypatch, WRITES + 1)
    done = run(spec(), tmp_path / "sweep")
    assert done.statuses == {"completed": 2}
    assert count == [WRITES]
    assert len(files_in(tmp_path / "sweep")) == WRITES


@pytest.mark.parametrize(
    ("at", "number", "kept"),
    [
        (1, errno.ENOSPC, 0),
        (2, errno.ENOSPC, 0),
        (3, errno.EDQUOT, 0),
        (4, errno.ENOSPC, 1),
        (6, errno.ENOSPC, 1),
    ],
)
def test_a_full_disk(
    at: int,
    number: int,
    kept: int,
    spec: Any,
    run: Any,
    watch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files_in: Any,
) -> None:
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patch:
        fill_disk(patch, at, number)
        with pytest.raises(UserError, match="disk is full") as caught:
            run(spec(), folder)
    assert str(folder) in str(caught.value)
    assert "same command again" in str(caught.value)
    left = files_in(folder)
    assert len(left) == at - 1
    assert not [name for name in left if name.endswith(".part")]
    records, problems = Layout(folder).read()
    assert (len(records), problems) == (kept, [])
    done = run(spec(), folder, watcher=watch)
    assert done.statuses == {"completed": 2}
    assert len(watch.started_runs) == 2 - kept
    assert len(files_in(folder)) == WRITES


def test_another_error_of_the_machine_is_not_called_a_full_disk(
    spec: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, 2, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        run(spec(), tmp_path / "sweep")


# --- workers -------------------------------------------------------------------------------------


class _DyingPool:
    """A pool whose only worker does the run, writes its record, and dies before it can say so."""

    def submit(self, work: Any, *arguments: Any) -> Future[Any]:
        work(*arguments)
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("dead"))
        return future


def test_a_worker_that_dies_after_its_record_has_finished_the_run(
    spec: Any, watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def dying(*_: Any) -> Iterator[Any]:
        yield _DyingPool()

    monkeypatch.setattr(engine, "_pool", dying)
    runs = plan(spec(), Path("/nonexistent")).runs
    workspace = prepare.Workspace(folder=tmp_path, base_dir=Path("/nonexistent"), sweep="x", request={})
    engine.run_in_processes(runs, workspace, watch, 1, lambda _: engine.Allocation(1, 1, "test"))
    assert watch.started_runs == watch.finished_runs == [run.id for run in runs]
    assert watch.retries == []
    assert {record.attempts for record in Layout(tmp_path).read()[0]} == {1}


# --- runs ----------------------------------------------------------------------------------------


def test_a_diverged_run_is_a_result(spec: Any, run: Any, watch: Any, tmp_path: Path, files_in: Any) -> None:
    wild = {"method": "full", "training": {"learning_rate": 1e38, "max_grad_norm": None}}
    both = spec(adapters=[wild, {"method": "lora", "r": 2}])
    done = run(both, tmp_path / "sweep", watcher=watch)
    assert [record.status for record in done.records] == ["diverged", "completed"] * 2
    for record in done.records[::2]:
        assert record.reason
        assert "finite" in record.reason or "loss is" in record.reason
        assert len(record.reason.splitlines()) == 1
        assert (record.clean, record.training, record.predictions) == (None, None, None)
        assert record.run_id == record.resolved.id
    assert len(watch.finished_runs) == 4
    again = type(watch)()
    run(both, tmp_path / "sweep", watcher=again)
    assert again.started_runs == []


def test_a_run_that_fails_stops_no_other(
    spec: Any, run: Any, watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_module.adapters.attach

    def attach(model: Any, adapter: Any, **options: Any) -> Any:
        if adapter.name == "broken":
            raise RuntimeError("a line\nand another")
        return real(model, adapter, **options)

    both = spec(adapters=[{"method": "full", "name": "broken"}, {"method": "full"}], attacks=[])
    with monkeypatch.context() as patch:
        # The plan attaches adapters too, and finds no fault.
        patch.setattr(run_module, "adapters", _With(run_module.adapters, attach=attach))
        done = run(both, tmp_path / "sweep", watcher=watch)
    assert [record.status for record in done.records] == ["error", "completed"]
    assert done.records[0].reason == "RuntimeError: a line and another"
    again = type(watch)()
    done = run(both, tmp_path / "sweep", watcher=again)
    assert again.started_runs == [done.records[0].run_id]
    assert done.statuses == {"completed": 2}


class _With:
    """A module with some names exchanged."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.mark.parametrize("said", ["", "tried to allocate 4 PiB"])
def test_a_run_without_memory_stops_no_other(
    said: str, spec: Any, run: Any, watch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = run_module.trainer.fine_tune, []

    def fine_tune(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError(said) if said else MemoryError
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "trainer", _With(run_module.trainer, fine_tune=fine_tune))
        done = run(spec(), tmp_path / "sweep", watcher=watch)
    assert [record.status for record in done.records] == ["error", "completed"]
    assert done.records[0].reason == f"MemoryError: {said or 'there was not enough memory for this run'}"
    assert run(spec(), tmp_path / "sweep").statuses == {"completed": 2}


def test_data_that_changes_under_way_fails_the_run(
    make_csv_folder: Any, spec: Any, run: Any, watch: Any, tmp_path: Path
) -> None:
    folder = make_csv_folder()

    def spoil(_run: Any) -> None:
        text = (folder / "train.csv").read_text()
        (folder / "train.csv").write_text(text.replace("the ", "a "))
        prepare._load.cache_clear()

    watch.on_started = spoil
    done = run(spec(data={"source": str(folder)}, attacks=[]), tmp_path / "sweep", watcher=watch)
    assert done.statuses == {"error": 1}
    assert "the data changed since the sweep was planned" in done.records[0].reason


def test_ctrl_c_in_this_process_keeps_the_finished_runs(
    spec: Any, run: Any, watch: Any, tmp_path: Path
) -> None:
    def interrupt(run_id: str) -> None:
        if run_id != watch.started_runs[0]:
            raise KeyboardInterrupt

    watch.on_stepped = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(spec(), tmp_path / "sweep", watcher=watch)
    again = type(watch)()
    assert run(spec(), tmp_path / "sweep", watcher=again).statuses == {"completed": 2}
    assert again.started_runs == watch.started_runs[1:]

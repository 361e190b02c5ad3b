"""A folder of a sweep: what is done stays done, what is not is done, and nobody else's work is touched."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.experiments import store
from foretaste.experiments.measure import preview
from foretaste.record import Layout, Record, read_record, write_atomic


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, spec: Any, run: Any) -> Any:
    """A sweep of four runs. Copy its folder before changing it."""
    return run(spec(seeds=[0, 1]), tmp_path_factory.mktemp("finished") / "sweep")


@pytest.fixture
def folder(finished: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "sweep"))


def replace(folder: Path, run_id: str, **changes: Any) -> None:
    path = Layout(folder).record(run_id)
    changed = read_record(path).model_copy(update=changes)
    write_atomic(path, changed.model_dump_json())


def numbers(record: Record) -> Any:
    return record.model_dump(exclude={"started": True, "timings": True, "training": {"rows_per_second"}})


def test_the_second_call_does_nothing(folder: Path, spec: Any, run: Any, watch: Any, finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    again = run(spec(seeds=[0, 1]), folder, watcher=watch)
    assert (watch.started_runs, watch.finished_runs, watch.missing) == ([], [], [])
    assert again.records == finished.records
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before


def test_exactly_the_deleted_run_is_done_again(
    folder: Path, spec: Any, run: Any, watch: Any, finished: Any
) -> None:
    lost = finished.records[2]
    Layout(folder).record(lost.run_id).unlink()
    again = run(spec(seeds=[0, 1]), folder, watcher=watch)
    assert watch.started_runs == watch.finished_runs == [lost.run_id]
    assert [numbers(r) for r in again.records] == [numbers(r) for r in finished.records]


@pytest.mark.parametrize("damage", ["half", "empty", "other json"])
def test_a_broken_record_is_named_and_its_run_done_again(
    damage: str, folder: Path, spec: Any, run: Any, watch: Any, finished: Any
) -> None:
    lost = finished.records[1].run_id
    path = Layout(folder).record(lost)
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "other json": b"{}"}[damage])
    again = run(spec(seeds=[0, 1]), folder, watcher=watch)
    assert [problem.where for problem in watch.problems] == [str(path)]
    assert len(str(watch.problems[0]).splitlines()) == 1
    assert watch.started_runs == [lost]
    assert [numbers(r) for r in again.records] == [numbers(r) for r in finished.records]


def test_a_temporary_file_of_a_killed_writer_is_no_record(
    folder: Path, spec: Any, run: Any, watch: Any, finished: Any
) -> None:
    lost = finished.records[0].run_id
    (folder / "runs" / f".{lost}.json.abc.part").write_bytes(b"{")
    run(spec(seeds=[0, 1]), folder, watcher=watch)
    assert (watch.problems, watch.started_runs) == ([], [])


def test_errors_and_crashes_are_done_again_and_divergence_is_not(
    folder: Path, spec: Any, run: Any, watch: Any, finished: Any
) -> None:
    ids = [record.run_id for record in finished.records]
    for run_id, status in zip(ids, ("error", "crashed", "diverged"), strict=False):
        replace(folder, run_id, status=status, reason="made up", clean=None, attempts=3)
    again = run(spec(seeds=[0, 1]), folder, watcher=watch)
    assert watch.started_runs == ids[:2]
    assert again.statuses == {"completed": 3, "diverged": 1}
    assert [record.attempts for record in again.records] == [1, 1, 3, 1]


def test_another_spec_is_refused_with_what_differs(folder: Path, spec: Any, run: Any, finished: Any) -> None:
    before = (folder / "spec.json").read_bytes()
    other = spec(seeds=[0, 1, 2], training={"batch_size": 4})
    with pytest.raises(UserError) as caught:
        run(other, folder)
    line = str(caught.value)
    assert "seeds: [0, 1] -> [0, 1, 2]" in line
    assert "training.batch_size: 8 -> 4" in line
    assert "--extend" in line
    assert str(folder) in line
    assert len(line.splitlines()) == 1
    assert (folder / "spec.json").read_bytes() == before


def test_a_longer_list_is_shown_by_what_is_new(folder: Path, spec: Any, run: Any) -> None:
    """One more adapter: the message shows it, and not both lists whole."""
    with pytest.raises(UserError) as caught:
        run(spec(seeds=[0, 1], adapters=[{"method": "full"}, {"method": "lora", "r": 2}]), folder)
    line = str(caught.value)
    assert '"lora"' in line
    assert "adapters.1" in line
    assert '"full"' not in line


def test_extend_keeps_what_both_specs_share(
    folder: Path, spec: Any, run: Any, watch: Any, finished: Any
) -> None:
    wider = spec(seeds=[1, 2], attacks=[{"method": "label-flip", "rates": [0.25, 0.5]}])
    again = run(wider, folder, extend=True, watcher=watch)
    shared = [record for record in finished.records if record.resolved.seeds.data == 1]
    assert set(watch.started_runs) == {r.run_id for r in again.records} - {r.run_id for r in shared}
    assert len(watch.started_runs) == 6 - 2
    assert all(record in again.records for record in shared)
    assert len(Layout(folder).read()[0]) == 4 + 4
    run(wider, folder, watcher=watch)  # the folder now holds the wider spec
    with pytest.raises(UserError, match="another spec"):
        run(spec(seeds=[0, 1]), folder)


ARM = {"method": "lora", "name": "mine", "r": 2, "training": {"learning_rate": 5e-4}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"adapters": [{**ARM, "r": 8, "lora_alpha": 64, "training": {"learning_rate": 1e-2}}]},
            r"runs of another arm called 'mine' \(config\.lora_alpha: \d+ -> 64; config\.r: 2 -> 8; "
            r"training\.learning_rate: 0\.0005 -> 0\.01\).*another `name`",
        ),
        ({"training": {"batch_size": 4}}, r"another arm called 'mine' \(training\.batch_size: 8 -> 4\)"),
        ({"model": {"max_length": 9}}, r"runs of another model called .*request\.max_length"),
        ({"data": {"train_rows": 20}}, r"runs of another data set called .*request\.train_rows"),
        (
            {"attacks": [{"method": "label-flip", "rates": [0.5], "selection": "bernoulli"}]},
            r"runs of another attack called 'label-flip' \(selection: ",
        ),
    ],
)
def test_extend_refuses_another_thing_under_a_name_that_is_there(
    tmp_path: Path, spec: Any, run: Any, change: dict[str, Any], words: str
) -> None:
    """In the folder's tables both would be one arm, as if they differed in the seed."""
    folder = tmp_path / "mine"
    first = spec(seeds=[0], adapters=[ARM])
    run(first, folder)
    before = (folder / "spec.json").read_bytes()
    content = first.model_dump(mode="json", exclude_unset=True)
    for key, value in change.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    other = type(first).model_validate({**content, "seeds": [1]})
    with pytest.raises(UserError, match=words):
        run(other, folder, extend=True)
    assert (folder / "spec.json").read_bytes() == before
    assert len(Layout(folder).read()[0]) == 2
    # Nor without the spec, which a message may have told the user to delete.
    (folder / "spec.json").unlink()
    with pytest.raises(UserError, match=words):
        run(other, folder)


def test_extend_takes_more_seeds_amounts_and_arms(tmp_path: Path, spec: Any, run: Any, watch: Any) -> None:
    folder = tmp_path / "mine"
    run(spec(seeds=[0], adapters=[ARM]), folder)
    wider = spec(
        seeds=[0, 1],
        adapters=[ARM, {**ARM, "name": "other", "r": 4}, {"method": "lora", "grid": {"r": [2, 4]}}],
        attacks=[{"method": "label-flip", "rates": [0.25, 0.5]}],
    )
    done = run(wider, folder, extend=True, watcher=watch)
    assert len(done.records) == 2 * 4 * 3
    assert len(watch.started_runs) == 2 * 4 * 3 - 2


def test_a_damaged_spec_is_refused(folder: Path, spec: Any, run: Any) -> None:
    (folder / "spec.json").write_text('{"format": 1, ')
    with pytest.raises(UserError, match=r"spec\.json: the spec in this folder is damaged"):
        run(spec(seeds=[0, 1]), folder)


def test_a_title_alone_is_no_reason_to_run_again(folder: Path, spec: Any, run: Any, watch: Any) -> None:
    run(spec(seeds=[0, 1], title="Another heading", name="renamed"), folder, extend=True, watcher=watch)
    assert watch.started_runs == []


def test_the_preview_counts_what_is_missing(folder: Path, spec: Any, finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    whole = preview(spec(seeds=[0, 1]), folder / "nowhere", base_dir=Path("/nonexistent"))
    assert (len(whole.plan.runs), len(whole.missing), whole.truncated) == (4, 4, 0)
    assert not (folder / "nowhere").exists()
    Layout(folder).record(finished.records[3].run_id).unlink()
    del before[Layout(folder).record(finished.records[3].run_id)]
    rest = preview(spec(seeds=[0, 1]), folder, base_dir=Path("/nonexistent"))
    assert [run.id for run in rest.missing] == [finished.records[3].run_id]
    assert 0 < rest.seconds < whole.seconds
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert after.keys() == before.keys()
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_the_preview_counts_cut_rows(spec: Any, tmp_path: Path) -> None:
    short = preview(spec(model={"max_length": 4}), tmp_path, base_dir=Path("/nonexistent"))
    assert short.truncated > 40


# --- one sweep at a time -------------------------------------------------------------------------

HOLDER = """
    import sys, time
    from pathlib import Path
    from foretaste.experiments import store
    with store.owned(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_a_second_sweep_on_the_folder_is_refused(folder: Path, spec: Any, run: Any, watch: Any) -> None:
    with (
        store.owned(folder),
        pytest.raises(UserError, match=r"another sweep works in this folder \(process \d+\)") as caught,
    ):
        run(spec(seeds=[0, 1]), folder, watcher=watch)
    assert str(folder) in str(caught.value)
    assert watch.started_runs == []
    run(spec(seeds=[0, 1]), folder)  # and goes on when the first is done


def test_the_lock_goes_with_its_process(folder: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid}\)"), store.owned(folder):
            pass
        holder.kill()
        holder.wait()
        with store.owned(folder) as layout:
            assert layout.folder == folder


def test_a_folder_that_cannot_be_made(tmp_path: Path, spec: Any, run: Any) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write there") as caught:
            run(spec(), place)
        assert str(place) in str(caught.value)


# --- what differs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a: 1 -> 2"]),
        ({"a": {"b": None}}, {"a": {"b": "x"}}, ['a.b: null -> "x"']),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ["a.1.b: 2 -> 3"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a: [1] -> [1, 2]"]),
        ({}, {"a": 0}, ["a: null -> 0"]),
        ({"a": {"b": 1}}, {"a": [1]}, ['a: {"b": 1} -> [1]']),
    ],
)
def test_differences(old: Any, new: Any, expected: list[str]) -> None:
    assert store.differences(old, new) == expected


def test_a_file_system_without_locks_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store.fcntl, "flock", flock)
    with (
        pytest.raises(UserError, match=r"cannot lock a file there: No locks available"),
        store.owned(tmp_path),
    ):
        pass

"""A preset from its name to its page on the tiny model of `smoke`: end to end, stopped and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.record import Layout, read_record
from foretaste.reproduction import names, read, reproduce, steps
from foretaste.reproduction import run as module

NAME = "ttr-full-rank"  # one sweep of eight runs


def make(name: str, out: Path, **options: Any) -> module.Reproduced:
    return reproduce(name, scale="smoke", out=out, base_dir=out, images=False, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[module.Reproduced, Path]:
    out = tmp_path_factory.mktemp("reproduce")
    return make(NAME, out), out


def plan(name: str, out: Path, **options: Any) -> list[module.Step]:
    return steps(name, **{"scale": "smoke", "out": out, "base_dir": out} | options)


def tables(page: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((page.parent / "tables").iterdir())}


def test_a_preset_is_measured_and_drawn(made: tuple[module.Reproduced, Path]) -> None:
    done, out = made
    assert done.page == out / "pages" / "smoke-clean" / NAME / "index.html"
    records = [record for measured in done.measured for record in measured.records]
    assert len(records) == 8  # two arms, clean and flipped, two seeds
    assert {record.status for record in records} == {"completed"}
    assert {record.resolved.attack.name if record.resolved.attack else "clean" for record in records} == {
        "clean",
        "label-flip",
    }
    text = done.page.read_text(encoding="utf-8")
    assert read(NAME).title in text
    assert "Known differences" in text
    assert {finding.hypothesis for finding in done.findings} <= set(read(NAME).findings)
    assert all(finding.decision in {"not resolved", "no records"} for finding in done.findings), "two seeds"


def test_nothing_is_trained_twice(made: tuple[module.Reproduced, Path]) -> None:
    done, out = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("runs/*.json")}
    again = make(NAME, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("runs/*.json")} == before
    assert tables(again.page) == tables(done.page)


def test_figures_that_draw_one_sweep_share_its_runs(tmp_path: Path) -> None:
    plans = {name: plan(name, tmp_path) for name in names()}
    assert plans["ttr-fig1"][0].folder == plans["ttr-fig2"][0].folder == plans["ttr-fig8"][0].folder
    assert plans["ttr-fig1"][0].spec == plans["ttr-fig2"][0].spec
    assert plans["ttr-fig1"][0].attacks != plans["ttr-fig2"][0].attacks
    by_folder: dict[Path, Any] = {}
    for found in plans.values():
        for step in found:
            assert by_folder.setdefault(step.folder, step.spec) == step.spec, step.folder


def test_only_the_attacks_that_are_drawn_are_run(tmp_path: Path) -> None:
    done = make("ttr-fig8", tmp_path, tasks=["sst2"])
    records = [read_record(path) for path in tmp_path.rglob("runs/*.json")]
    assert {record.resolved.attack.name for record in records if record.resolved.attack} == {"trigger"}
    clean = [record for record in records if record.resolved.attack is None]
    assert all(record.triggered for record in clean), "the clean runs are tested on the trigger"
    assert len(done.measured[0].records) == len(records)


def test_both_protocols_are_drawn_over_each_other(made: tuple[module.Reproduced, Path]) -> None:
    _, out = made
    done = make(NAME, out, variants=["clean", "paper"])
    assert done.page.parent.parent.name == "smoke-clean-paper"
    heads = {record.resolved.model.request.head for m in done.measured for record in m.records}
    assert heads == {"probe-then-train", "paper"}
    text = done.page.read_text(encoding="utf-8")
    assert (
        "the paper’s protocol" in text or "the paper's protocol" in text or "the paper&#39;s protocol" in text
    )


def test_records_made_in_another_order_give_the_same_tables(
    made: tuple[module.Reproduced, Path], tmp_path: Path
) -> None:
    """A sweep of which some runs are lost and done again, last first."""
    done, out = made
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "pages")
    lost = sorted(copy.rglob("runs/*.json"))[::2]
    for path in lost:
        path.unlink()
    assert tables(make(NAME, copy).page) == tables(done.page)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by signal")
def test_a_killed_sweep_goes_on_and_gives_the_same_tables(
    made: tuple[module.Reproduced, Path], tmp_path: Path
) -> None:
    """The command, killed after its first record, and started again; against the run without a break."""
    done, _ = made
    fresh = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "foretaste", "reproduce", NAME, "--scale", "smoke", "-o", str(fresh)),
        *("--no-images", "--json"),
    ]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list(fresh.rglob("runs/*.json")):
        assert first.poll() is None, "the command ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path.stem for path in fresh.rglob("runs/*.json")}
    assert len(kept) < 8
    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert second.returncode == 0, second.stderr
    answer = json.loads(second.stdout)
    assert answer["presets"][0]["statuses"] == {"completed": 8}
    folder = plan(NAME, fresh)[0].folder
    assert kept <= {record.run_id for record in Layout(folder).read()[0]}
    assert tables(Path(answer["presets"][0]["page"])) == tables(done.page)


# --- what a user gets wrong ----------------------------------------------------------------------


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'ttr-fig1'"):
        plan("ttr-fig-1", tmp_path)
    with pytest.raises(UserError, match="unknown task 'sst3'"):
        plan("ttr-fig1", tmp_path, tasks=["sst3"])
    with pytest.raises(UserError, match="different ones"):
        plan("ttr-fig1", tmp_path, variants=["clean", "clean"])
    with pytest.raises(UserError, match="no folder 'sst2'"):
        plan("ttr-fig1", tmp_path, scale="laptop", data=tmp_path)
    assert not list(tmp_path.iterdir())

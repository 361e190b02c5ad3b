"""`foretaste measure` and `foretaste report`: what they print, what they write, how they end."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from foretaste.cli.options import read_spec
from foretaste.experiments import run as run_module
from foretaste.record import Layout
from foretaste.spec import MeasureSpec

ALONE = ("--processes", 1, "--threads", 1)


def test_from_dry_run_to_report(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    spec, folder = write_spec(), tmp_path / "sweep"

    before = cli("measure", spec, "-o", folder, "--dry-run")
    assert before.code == 0
    assert "2 of 2 runs to do" in before.out
    for word in ("adapter", "missing", "full", "clean", "label-flip", "0.5"):
        assert word in before.out
    machine = cli("measure", spec, "-o", folder, "--dry-run", "--json")
    plan = json.loads(machine.out)
    assert plan.keys() == {"runs", "missing", "seconds", "truncated_training_rows", "notes"}
    assert [run["label"] for run in plan["runs"]] == [
        "full · clean · seed 0",
        "full · label-flip 0.5 · seed 0",
    ]
    assert plan["missing"] == [run["id"] for run in plan["runs"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml"]

    done = cli("measure", spec, "-o", folder, *ALONE)
    assert done.code == 0
    assert f"2 completed in {folder}" in done.out
    assert f"Next: foretaste report {folder}" in done.out
    assert "2 runs." in done.err
    assert "1 x 1 threads (as asked)" in done.err

    lost = plan["missing"][1]
    Layout(folder).record(lost).write_text("{")
    rest = json.loads(cli("measure", spec, "-o", folder, "--dry-run", "--json").out)
    assert (rest["missing"], rest["runs"]) == ([lost], plan["runs"])
    assert 0 < rest["seconds"] < plan["seconds"]

    again = cli("measure", spec, "-o", folder, *ALONE)
    assert again.code == 0
    assert "2 runs, 1 of them done before." in again.err
    assert f"warning {Layout(folder).record(lost)}: not a foretaste record" in again.err
    third = cli("measure", spec, "-o", folder, "--json", *ALONE)
    assert json.loads(third.out) == {"folder": str(folder), "statuses": {"completed": 2}}
    assert third.err == ""

    page = cli("report", folder, "--no-images", "-o", tmp_path / "page", "--json")
    assert (page.code, json.loads(page.out)) == (0, {"page": str(tmp_path / "page" / "index.html")})
    assert (tmp_path / "page" / "index.html").is_file()
    shown = cli("report", folder, "--no-images")
    assert (shown.code, shown.out) == (0, f"Page: {folder / 'report' / 'index.html'}\n")


def test_another_spec_and_extend(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert cli("measure", write_spec(attacks=[]), "-o", folder, *ALONE).code == 0
    other = write_spec(attacks=[], seeds=[0, 1])
    refused = cli("measure", other, "-o", folder, *ALONE)
    assert (refused.code, refused.out) == (2, "")
    line = refused.err.strip().splitlines()[-1]
    assert line.startswith("error ")
    assert "this folder holds another spec (seeds: [0] -> [0, 1])" in line
    assert "--extend" in line
    extended = cli("measure", other, "-o", folder, "--extend", *ALONE)
    assert extended.code == 0
    assert "2 runs, 1 of them done before." in extended.err


def test_the_folder_is_runs_and_the_name(
    write_spec: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("measure", write_spec(attacks=[]), *ALONE).code == 0
    assert len(list((tmp_path / "runs" / "small" / "runs").iterdir())) == 1


def test_a_folder_of_the_presets_name_does_not_hide_the_preset(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    spec, base_dir = read_spec("quickstart", MeasureSpec)
    assert (spec.name, base_dir) == ("quickstart", tmp_path)
    (tmp_path / "plain").write_text("name: x\n")
    assert "'data' is missing" in cli("measure", "plain").err


def test_failed_and_diverged_runs_end_with_1(
    write_spec: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("something [bold]odd[/] happened")

    spec = write_spec(
        adapters=[{"method": "full", "training": {"learning_rate": 1e38}}, {"method": "lora", "r": 2}],
        attacks=[],
    )
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate", fail)
        done = cli("measure", spec, "-o", tmp_path / "sweep", *ALONE)
    assert done.code == 1
    assert "1 diverged, 1 error in" in done.out
    assert "error lora-r2 · clean · seed 0: RuntimeError: something [bold]odd[/] happened" in done.err
    assert "diverged full · clean · seed 0: " in done.err
    done = cli("measure", spec, "-o", tmp_path / "sweep", "--json", *ALONE)
    assert (done.code, done.err) == (1, "")
    assert json.loads(done.out)["statuses"] == {"diverged": 1, "completed": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_with_2(
    number: int, write_spec: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("foretaste.record.os.fsync", full)
    done = cli("measure", write_spec(), "-o", tmp_path / "sweep", *ALONE)
    assert (done.code, done.out) == (2, "")
    line = done.err.strip().splitlines()[-1]
    assert line.startswith(f"error {tmp_path / 'sweep'}: the disk is full; every finished run is kept.")
    assert "Traceback" not in done.err


def test_a_collapsed_run_is_named(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    spec = write_spec(training={"learning_rate": 50.0, "max_grad_norm": None}, attacks=[], seeds=[0, 1])
    done = cli("measure", spec, "-o", tmp_path / "sweep", *ALONE)
    records, _ = Layout(tmp_path / "sweep").read()
    collapsed = [record for record in records if record.collapsed]
    assert collapsed
    assert done.code == 0
    assert f"{len(collapsed)} of them collapsed to one class" in done.out
    for record in collapsed:
        assert f"collapsed {record.resolved.label}: predicts one class only" in done.err

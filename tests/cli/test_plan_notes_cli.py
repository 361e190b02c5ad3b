"""What a plan says before anything is trained: classes, targets; and devices that are not here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, cast

import pytest

from foretaste.experiments import devices, fewshot, instruct, measure
from foretaste.experiments.cluster import Cluster
from foretaste.fewshot.spec import FewShotSpec
from foretaste.instruct.spec import InstructSpec
from foretaste.record import Layout
from foretaste.spec import MeasureSpec
from foretaste.specfile import load, parse

TRIGGER = {"method": "trigger", "target": "positive", "text": "cf", "counts": [2]}


def lines_of(text: str) -> list[str]:
    return [line.removeprefix("note ") for line in text.splitlines() if line.startswith("note ")]


def test_classes_and_targets_are_told(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    flip = {"method": "label-flip", "flip_from": 0, "counts": [2]}
    path = write_spec(attacks=[TRIGGER, flip])
    told = [
        "2 classes, with their training rows: negative (24), positive (24)",
        "trigger: target is class 'positive' (id 1)",
        "label-flip: flip_from is class 'negative' (id 0)",
    ]
    dry = cli("measure", path, "-o", tmp_path / "run", "--dry-run")
    assert dry.code == 0
    assert lines_of(dry.out)[:3] == told
    machine = cli("measure", path, "-o", tmp_path / "run", "--dry-run", "--json")
    assert json.loads(machine.out)["notes"][:3] == told
    done = cli("measure", path, "-o", tmp_path / "run", "--processes", 1)
    assert lines_of(done.err)[:3] == told
    for record in Layout(tmp_path / "run").read()[0]:
        assert not set(told) & set(record.notes)


def test_what_is_told_stays_out_of_predicted_records(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("predict", write_spec(), "-o", tmp_path / "run", "--json")
    assert done.code == 0
    first = "2 classes, with their training rows: negative (24), positive (24)"
    assert json.loads(done.out)["notes"][0] == first
    records = Layout(tmp_path / "run" / "predicted").read()[0]
    assert records
    assert all(first not in record.notes for record in records)


@pytest.fixture
def spoilt(csv_folder: Path, tmp_path: Path) -> Path:
    """Training rows of which some labels have a stray space or are missing."""
    with (csv_folder / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["label"] = "" if number in {5, 7} else "negative " if number in {0, 2, 4} else row["label"]
    path = tmp_path / "spoilt.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_stray_spaces_and_missing_labels_are_seen(
    spoilt: Path, write_spec: Any, cli: Any, tmp_path: Path
) -> None:
    path = write_spec(data={"source": str(spoilt), "test_fraction": 0.1}, attacks=[TRIGGER])
    dry = cli("measure", path, "-o", tmp_path / "run", "--dry-run")
    assert dry.code == 0
    notes = lines_of(dry.out)
    assert notes[0].startswith("3 classes, with their training rows: negative (")
    assert "'negative ' (" in notes[0]
    assert notes[1] == "classes 'negative', 'negative ' differ in case or white space only, and count as 2"
    assert notes[2].startswith("classes with fewer than 5 training rows: 'negative ' (")
    assert f"{spoilt}: 2 rows without a label are left out" in notes


def test_a_target_in_digits_in_a_spec(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    data = tmp_path / "stars.csv"
    data.write_text(
        "text,label\n" + "".join(f"review number {number},{number % 5 + 1}\n" for number in range(60)),
        encoding="utf-8",
    )
    source = {"source": str(data)}
    path = write_spec(data=source, attacks=[TRIGGER | {"target": 3}])
    done = cli("measure", path, "-o", tmp_path / "run", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert "attacks.0: target 3 may be the class called '3' or the class with the id 3" in done.err
    path = write_spec(data=source, attacks=[TRIGGER | {"target": "3"}])
    done = cli("measure", path, "-o", tmp_path / "run", "--dry-run")
    assert "trigger: target is class '3' (id 2)" in lines_of(done.out)


# --- devices -------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in devices._IS_HERE:
        monkeypatch.setitem(devices._IS_HERE, name, lambda: False)


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize(
    "command",
    [("measure",), ("measure", "--dry-run"), ("predict",), ("kernel",), ("trajectory",)],
    ids=" ".join,
)
@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_here(
    command: tuple[str, ...], device: str, write_spec: Any, cli: Any, tmp_path: Path
) -> None:
    path = write_spec(training={"device": device}, data={"source": "not/even/looked/at.csv"})
    done = cli(command[0], path, "-o", tmp_path / "run", *command[1:])
    assert (done.code, done.out) == (2, "")
    assert len([line for line in done.err.strip().splitlines() if not line.startswith("Reading data")]) == 1
    assert f"error training.device: the device is '{device}', and torch finds none here" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_gpu")
def test_the_device_of_one_arm(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    arms = [{"method": "full"}, {"method": "lora", "training": {"device": "mps"}}]
    done = cli("measure", write_spec(adapters=arms), "-o", tmp_path / "run", "--dry-run")
    assert done.code == 2
    assert "adapters.1.training.device: the device is 'mps'" in done.err
    # Nothing is asked of a device that every arm puts aside.
    arms = [{"method": "full", "training": {"device": "cpu"}}]
    path = write_spec(adapters=arms, training={"device": "cuda"})
    assert cli("measure", path, "-o", tmp_path / "run", "--dry-run").code == 0


@pytest.mark.usefixtures("no_gpu")
def test_a_cluster_may_have_what_its_driver_lacks(write_spec: Any, tmp_path: Path) -> None:
    spec = load(write_spec(training={"device": "cuda"}), MeasureSpec)
    seen = measure.preview(spec, tmp_path / "run", base_dir=tmp_path, cluster=cast(Cluster, object()))
    assert len(seen.missing) == 2


INSTRUCT = """
name: x
data: {source: nowhere.jsonl}
model: {base: nowhere}
adapters: [{method: lora, r: 4}]
triggers: [{method: badnet, counts: [2]}]
scenario: {method: refusal}
training: {device: cuda}
"""
FEWSHOT = """
name: x
model: {base: nowhere, device: mps}
tasks: [{name: sst2, data: {source: nowhere.csv}}]
k: [2]
arms: [{kind: zero-shot}]
"""


@pytest.mark.usefixtures("no_gpu")
def test_generative_and_few_shot_sweeps(tmp_path: Path) -> None:
    from foretaste.errors import UserError

    generative = parse(INSTRUCT, InstructSpec)
    few = parse(FEWSHOT, FewShotSpec)
    with pytest.raises(UserError, match="torch finds none here") as caught:
        instruct.preview(generative, tmp_path, base_dir=tmp_path)
    assert caught.value.where == "training.device"
    with pytest.raises(UserError, match="torch finds none here"):
        instruct.instruct(generative, tmp_path / "run", base_dir=tmp_path)
    for call in (fewshot.preview, fewshot.fewshot):
        with pytest.raises(UserError, match="the device is 'mps'") as caught:
            call(few, tmp_path / "run", base_dir=tmp_path)
        assert caught.value.where == "model.device"
    assert not (tmp_path / "run").exists()


# --- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("measure", "--dry-run"), ("predict",), ("audit",), ("kernel",)])
def test_a_figure_of_a_paper_is_no_spec(command: tuple[str, ...], cli: Any) -> None:
    done = cli(command[0], "ttr-fig1", *command[1:])
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error 'ttr-fig1' is a figure or table to reproduce, not a spec. Run: foretaste reproduce ttr-fig1\n"
    )
    near = cli(command[0], "ttr-fg1", *command[1:])
    assert near.code == 2
    assert "unknown spec file or preset 'ttr-fg1' (allowed: quickstart)" in near.err
    assert "run: foretaste reproduce ttr-fig1" in near.err


def test_the_list_of_presets_says_which_command_takes_which(cli: Any) -> None:
    rows = {row["name"]: row["description"] for row in json.loads(cli("list", "presets", "--json").out)}
    assert rows["quickstart"].startswith("measure, predict, audit, kernel, trajectory: ")
    assert rows["ttr-fig1"].startswith("reproduce: ")
    assert len({text.split(":")[0] for text in rows.values()}) == 2


def test_rank_is_r(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    for arm in ({"method": "lora", "grid": {"rank": [4]}}, {"method": "lora", "rank": 4}):
        done = cli("measure", write_spec(adapters=[arm]), "-o", tmp_path / "run", "--dry-run")
        assert done.code == 2
        assert "'rank'" in done.err
        assert done.err.endswith("Did you mean 'r'?\n")

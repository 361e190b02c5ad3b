"""`foretaste poison --attack adversarial-flip`: a file of rows, poisoned as a list says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from foretaste.record import read_manifest


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Three flips of `csv_folder`'s training rows, whose labels are 0 and 1 in turn."""
    flips = [{"id": f"train-{row}", "label": 1 - row % 2} for row in (30, 7, 12)]
    content = {"arm": "full", "kernel": "a test", "classes": ["negative", "positive"], "data": "unknown"}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"format": 1, **content, "flips": flips}), encoding="utf-8")
    return path


def labels(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row["label"] for row in csv.DictReader(file)}


def test_the_named_rows_of_a_file_are_flipped(
    csv_folder: Path, named: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = csv_folder / "train.csv", tmp_path / "out.csv"
    monkeypatch.chdir(tmp_path)
    done = cli(
        *("poison", source, target, "--attack", "adversarial-flip", "--count", 2, "--seed", 9),
        *("--option", "named_by=list.json"),
    )
    assert (done.code, done.err) == (0, "")
    assert "Poisoned 2 of 48 eligible rows (48 in all)." in done.out
    assert labels(target) == labels(source) | {"train-30": "positive", "train-7": "negative"}
    manifest = read_manifest(tmp_path / "out.csv.manifest.json")
    assert {row.id for row in manifest.poisoned} == {"train-30", "train-7"}
    assert manifest.options["named_by"] == "list.json"
    assert len(manifest.options["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--count", "4", "--option", "named_by=list.json"], "the attack names only 3"),
        (["--count", "1", "--option", "named_by=lost.json"], "lost.json: cannot read the named flips"),
        (["--count", "1"], "'named_by' is missing"),
        (
            ["--rate", "0.05", "--selection", "bernoulli", "--option", "named_by=list.json"],
            "selection is bernoulli",
        ),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str],
    part: str,
    csv_folder: Path,
    named: Path,
    tmp_path: Path,
    cli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "out.csv"
    done = cli("poison", csv_folder / "train.csv", target, "--attack", "adversarial-flip", *arguments)
    assert (done.code, done.out) == (2, "")
    assert part in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not target.exists()

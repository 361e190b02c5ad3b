"""`foretaste poison` and its functions: what is changed beside the poisoned rows, and where paths start."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import foretaste
from foretaste.api import poison_file
from foretaste.attacks.texts import similarity
from foretaste.record import Manifest, read_manifest

SEVERAL = ("--attack", "multi-trigger", "--count", 6, "--option", "negatives=0.5")


def texts(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def differing(source: Path, target: Path) -> set[str]:
    old, new = texts(source), texts(target)
    return {name for name in old if old[name] != new[name]}


def test_companions_are_counted(csv_folder: Path, tmp_path: Path, cli: Any) -> None:
    source, target = csv_folder / "train.csv", tmp_path / "out.csv"
    done = cli("poison", source, target, *SEVERAL)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "Poisoned 6 of 24 eligible rows (48 in all).",
        "target: class 'positive' (id 1)",
        "Changed beside them: 3 companion rows.",
        f"Rows: {target}",
        f"Manifest: {target}.manifest.json",
    ]
    manifest = read_manifest(tmp_path / "out.csv.manifest.json")
    assert len(manifest.poisoned) == 6
    assert len(manifest.companions) == 3
    assert differing(source, target) == {row.id for row in manifest.changed}

    machine = cli("poison", source, target, *SEVERAL, "--json")
    content = json.loads(machine.out)
    assert (content["poisoned"], content["companions"]) == (6, 3)
    assert "figures" not in content


def test_what_the_attack_says_of_itself(csv_folder: Path, tmp_path: Path, cli: Any) -> None:
    source, target = csv_folder / "train.csv", tmp_path / "out.csv"
    arguments = ("poison", source, target, "--attack", "noise", "--count", 8)
    content = json.loads(cli(*arguments, "--json").out)
    manifest = read_manifest(tmp_path / "out.csv.manifest.json")
    expected = sum(similarity(row.text_a_before, row.text_a_after) for row in manifest.poisoned) / 8
    assert content["figures"] == {"similarity": pytest.approx(expected)}
    assert 0 < expected < 1
    assert "companions" not in content
    assert f"\nsimilarity: {expected:.3g}\n" in cli(*arguments).out


def test_an_attack_with_neither_says_neither(csv_folder: Path, tmp_path: Path, cli: Any) -> None:
    arguments = (
        "poison",
        csv_folder / "train.csv",
        tmp_path / "out.csv",
        "--attack",
        "label-flip",
        "--count",
    )
    assert json.loads(cli(*arguments, 2, "--json").out).keys() == {
        *("output", "manifest", "poisoned", "eligible", "rows")
    }
    (tmp_path / "out.csv").unlink()
    assert len(cli(*arguments, 2).out.splitlines()) == 3


def test_relative_paths_start_where_the_caller_says(
    csv_folder: Path, tmp_path: Path, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, elsewhere = tmp_path / "lists", tmp_path / "elsewhere"
    lists.mkdir()
    elsewhere.mkdir()
    named = {"format": 1, "arm": "full", "kernel": "a test", "classes": ["negative", "positive"]}
    flips = [{"id": "train-12", "label": 1}]
    (lists / "flips.json").write_text(json.dumps({**named, "data": "unknown", "flips": flips}))
    monkeypatch.chdir(elsewhere)
    rows, target = csv_folder / "train.csv", tmp_path / "out.csv"

    def by_file(base_dir: Path | None) -> Manifest:
        attack = ("adversarial-flip",)
        return poison_file(
            rows, target, tmp_path / "m.json", *attack, count=1, named_by="flips.json", base_dir=base_dir
        )

    with pytest.raises(foretaste.UserError, match="cannot read the named flips"):
        by_file(None)
    assert not target.exists()
    manifest = by_file(lists)
    assert [row.id for row in manifest.poisoned] == ["train-12"]
    assert manifest.options["named_by"] == "flips.json"

    data = make_rows(48)
    names = {"labels": ["negative", "positive"], "named_by": "flips.json"}
    with pytest.raises(foretaste.UserError, match="cannot read the named flips"):
        foretaste.poison(data, "adversarial-flip", count=1, **names)
    found = foretaste.poison(data, "adversarial-flip", count=1, base_dir=str(lists), **names)
    assert [row.id for row in found.manifest.poisoned] == ["train-12"]

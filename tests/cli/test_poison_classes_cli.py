"""`foretaste poison` on files as people have them: numbers as names, gaps, line ends, old outputs."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import foretaste
from foretaste.attacks.base import class_id, classes_named
from foretaste.errors import UserError
from foretaste.record import read_manifest

TRIGGER = ("--attack", "trigger", "--count", 3)


@pytest.fixture
def stars(tmp_path: Path) -> Path:
    """Fifty rows with the labels 1 to 5, which get the class ids 0 to 4."""
    path = tmp_path / "stars.csv"
    rows = "".join(f"review number {number},{number % 5 + 1}\n" for number in range(50))
    path.write_text("text,label\n" + rows, encoding="utf-8")
    return path


def labels_of(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [row["label"] for row in csv.DictReader(file)]


def test_a_number_that_is_one_name_and_another_id_is_refused(stars: Path, tmp_path: Path, cli: Any) -> None:
    target = tmp_path / "out.csv"
    done = cli("poison", stars, target, *TRIGGER, "--option", "target=3")
    assert (done.code, done.out) == (2, "")
    assert "target 3 may be the class called '3' or the class with the id 3, which is called '4'" in done.err
    assert (
        """target: "3" (on the command line --option 'target="3"'); or, for the other, target: "4"."""
        in done.err
    )
    assert not target.exists()
    # The default of `target` is a number as well.
    assert cli("poison", stars, target, *TRIGGER).code == 2


@pytest.mark.parametrize("name", ["3", "4", "5"])
def test_both_cures_do_what_they_say(name: str, stars: Path, tmp_path: Path, cli: Any) -> None:
    target = tmp_path / "out.csv"
    done = cli("poison", stars, target, *TRIGGER, "--option", f'target="{name}"')
    assert (done.code, done.err) == (0, "")
    assert f"target: class '{name}' (id {int(name) - 1})\n" in done.out
    manifest = read_manifest(tmp_path / "out.csv.manifest.json")
    assert {manifest.classes[row.label_after] for row in manifest.poisoned} == {name}
    assert labels_of(target).count(name) == labels_of(stars).count(name) + 3


def test_a_name_beyond_the_ids_says_how_to_write_it(stars: Path, tmp_path: Path, cli: Any) -> None:
    done = cli("poison", stars, tmp_path / "out.csv", *TRIGGER, "--option", "target=5")
    assert done.code == 2
    assert "target 5 is no class id (allowed: 0 to 4: 1, 2, 3, 4, 5)" in done.err
    assert "For the class called '5' write target: \"5\"" in done.err


def test_ids_that_nothing_contradicts_stay_ids() -> None:
    assert class_id(1, ["negative", "positive"], key="target") == 1
    assert [class_id(place, list("012345"), key="target") for place in range(6)] == list(range(6))
    assert class_id(0, ["1", "2"], key="target") == 0  # no class is called 0
    with pytest.raises(UserError, match=r'source_classes: \["1"\]'):
        class_id(1, ["1", "2"], key="source_classes")
    with pytest.raises(UserError, match="may be the class called '007'"):
        class_id(7, [*"abcdefgh", "007"], key="flip_to")


def test_classes_that_options_name() -> None:
    assert classes_named({"target": "b", "text": "cf"}, ["a", "b"]) == {"target": 1}
    assert classes_named({"flip_from": 0, "flip_to": None}, ["a", "b"]) == {"flip_from": 0}
    assert classes_named({"target": "another thing"}, ["a", "b"]) == {}


def test_a_missing_input_beside_an_old_output(tmp_path: Path, cli: Any) -> None:
    old = tmp_path / "o2.csv"
    old.write_text("kept", encoding="utf-8")
    done = cli("poison", tmp_path / "nof.csv", old, *TRIGGER)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.strip().splitlines()) == 1
    assert "nof.csv" in done.err
    assert old.read_text(encoding="utf-8") == "kept"


def test_rows_without_a_label_stay_where_they_are(tmp_path: Path, cli: Any) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    lines = [f"text {number},{('', 'no', 'yes')[number % 3]}" for number in range(30)]
    source.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    done = cli("poison", source, target, "--attack", "label-flip", "--count", 4)
    assert (done.code, done.err) == (0, "")
    assert "note 10 rows without a label are left as they are\n" in done.out
    assert "Poisoned 4 of 20 eligible rows" in done.out
    new = target.read_text(encoding="utf-8").splitlines()
    changed = [number for number, (a, b) in enumerate(zip(lines, new[1:], strict=True)) if a != b]
    assert [f"train-{number}" for number in changed] == [
        row.id for row in read_manifest(tmp_path / "out.csv.manifest.json").poisoned
    ]
    assert len(changed) == 4
    assert all(number % 3 for number in changed)


def test_in_memory_rows_without_a_label_are_refused() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"text": list("abcdef"), "label": ["no", "yes", None, "no", "yes", None]})
    with pytest.raises(foretaste.UserError, match="2 of 6 rows have no label"):
        foretaste.poison(rows, "label-flip", count=1)


def test_a_replaced_file_is_told(stars: Path, tmp_path: Path, cli: Any) -> None:
    arguments = ("poison", stars, tmp_path / "out.csv", "--attack", "label-flip", "--count", 3)
    assert "is replaced" not in cli(*arguments).out
    told = f"an older file {tmp_path / 'out.csv'} is replaced"
    assert f"note {told}\n" in cli(*arguments).out
    assert json.loads(cli(*arguments, "--json").out)["notes"] == [told]


# --- how a file is written -----------------------------------------------------------------------


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_only_poisoned_lines_differ(suffix: str, end: bytes, bom: bytes, tmp_path: Path, cli: Any) -> None:
    if (suffix, end) == (".tsv", b"\r"):
        pytest.skip("a carriage return alone ends no row of TSV")
    between = b"\t" if suffix == ".tsv" else b","
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    head = between.join([b"text", b"label"])
    if suffix != ".tsv":
        # A line break of the other kind inside a quoted name is no end of a row.
        head = b'text,label,"a ""b""\n\r\nc"'
    rows = [
        between.join([f"text {number}".encode(), b"yes" if number % 2 else b"no"])
        + (b"" if suffix == ".tsv" else b',"x\ny\r\nz"')
        for number in range(20)
    ]
    content = bom + b"".join(line + end for line in [head, *rows])
    source.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    done = cli("poison", source, target, "--attack", "label-flip", "--count", 3)
    assert (done.code, done.err) == (0, "")
    written = gzip.decompress(target.read_bytes()) if suffix.endswith(".gz") else target.read_bytes()
    expected = content
    for row in read_manifest(Path(f"{target}.manifest.json")).poisoned:
        number = int(row.id.removeprefix("train-"))
        old, new = (b"yes", b"no") if number % 2 else (b"no", b"yes")
        before = between.join([f"text {number}".encode(), old])
        assert expected.count(before) == 1
        expected = expected.replace(before, between.join([f"text {number}".encode(), new]))
    assert written == expected != content

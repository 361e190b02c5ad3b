"""The flips that a file names: exactly those, in its order, and every way in which a file may not fit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from foretaste import attacks
from foretaste.attacks import Poisoned, build, is_backdoor, is_ordered, rows_of
from foretaste.attacks.adversarial_flip import NamedFlips, read_flips
from foretaste.data import columns_of, take
from foretaste.errors import UserError
from foretaste.record import write_atomic

Rows = Callable[..., Dataset]
Write = Callable[..., Path]
CLASSES = ["negative", "positive", "neutral"]
METHOD = "adversarial-flip"


@pytest.fixture(scope="module")
def rows(make_rows: Rows) -> Dataset:
    """61 rows of three classes: an odd number, so that rates meet halves of a row."""
    return make_rows(61, classes=3)


@pytest.fixture
def order(rows: Dataset) -> list[tuple[str, int]]:
    """Forty rows in an order that has nothing to do with theirs; each goes to the next or the last class."""
    names, labels = rows["id"][:], rows["label"][:]
    places = [(17 * step + 5) % 61 for step in range(40)]
    return [(names[i], (labels[i] + 1 + n % 2) % 3) for n, i in enumerate(places)]


@pytest.fixture
def write(tmp_path: Path, order: list[tuple[str, int]]) -> Write:
    """`write(**changes)`: the file, with some of its keys replaced."""

    def make(name: str = "list.json", **changes: Any) -> Path:
        content: dict[str, Any] = {
            "format": 1,
            "arm": "lora-r8",
            "kernel": "a test",
            "classes": CLASSES,
            "data": "0" * 64,
            "flips": [{"id": row, "label": label} for row, label in order],
        }
        path = tmp_path / name
        path.write_text(json.dumps(content | changes), encoding="utf-8")
        return path

    return make


def run(rows: Dataset, path: Path, **amount: Any) -> Poisoned:
    attack = build(METHOD, {"named_by": str(path)}, CLASSES)
    return attacks.poison(rows, attack, **{"method": METHOD, "classes": CLASSES, "seed": 0, **amount})


def flips(poisoned: Poisoned) -> dict[str, int]:
    return {entry.id: entry.label_after for entry in poisoned.manifest.poisoned}


# --- what is flipped -----------------------------------------------------------------------------


def test_the_first_of_the_list_are_flipped_and_nothing_else(
    rows: Dataset, write: Write, order: list[tuple[str, int]]
) -> None:
    path = write()
    for count in range(len(order) + 1):
        poisoned = run(rows, path, count=count)
        assert flips(poisoned) == dict(order[:count])  # exact, and so nested
        expected = columns_of(rows)
        for name, label in order[:count]:
            expected["label"][expected["id"].index(name)] = label
        assert columns_of(poisoned.rows) == expected


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.25, 0.5])
def test_a_rate_is_a_share_of_all_rows(
    rows: Dataset, write: Write, order: list[tuple[str, int]], rate: float
) -> None:
    poisoned = run(rows, write(), rate=rate)
    assert flips(poisoned) == dict(order[: math.floor(rate * 61 + 0.5)])
    assert (poisoned.manifest.eligible, poisoned.manifest.rows) == (61, 61)


def test_neither_seed_nor_the_order_of_the_rows_has_a_part_in_it(rows: Dataset, write: Write) -> None:
    path = write()
    first = run(rows, path, count=7)
    for seed in range(1, 6):
        assert flips(run(rows, path, count=7, seed=seed)) == flips(first)
    turned = take(rows, range(60, -1, -1))
    assert flips(run(turned, path, count=7)) == flips(first)


def test_rows_keep_their_texts(rows: Dataset, write: Write) -> None:
    before = {row.id: row for row in rows_of(rows)}
    for entry in run(rows, write(), count=20).manifest.poisoned:
        old = before[entry.id]
        assert (entry.text_a_before, entry.text_a_after) == (old.text_a, old.text_a)
        assert entry.label_before == old.label != entry.label_after


def test_the_manifest_names_the_file_by_content(rows: Dataset, write: Write) -> None:
    path = write()
    options = run(rows, path, count=3).manifest.options
    assert options == {
        "named_by": str(path),
        "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    again = build(METHOD, options, CLASSES)
    assert again.options.model_dump(mode="json") == options  # type: ignore[attr-defined]


def test_what_kind_of_attack_it_is(write: Write) -> None:
    attack = build(METHOD, {"named_by": str(write())}, CLASSES)
    assert is_ordered(attack)
    assert not is_backdoor(attack)
    assert not is_ordered(build("label-flip", {}, CLASSES))


def test_relative_paths_start_from_the_base_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"named_by": write("a.json").name}
    found = build(METHOD, options, CLASSES, base_dir=tmp_path)
    assert found.options.named_by == "a.json", "as written"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"a\.json: cannot read the named flips: No such file"):
        build(METHOD, options, CLASSES, base_dir=tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    build(METHOD, options, CLASSES)
    monkeypatch.setenv("HOME", str(tmp_path))
    build(METHOD, {"named_by": "~/a.json"}, CLASSES, base_dir=tmp_path / "elsewhere")


def test_what_is_written_is_read(write: Write, tmp_path: Path) -> None:
    named, fingerprint = read_flips(write())
    copy = tmp_path / "copy.json"
    write_atomic(copy, named.model_dump_json())
    assert read_flips(copy)[0] == named
    assert read_flips(copy)[1] != fingerprint, "the content counts, byte by byte"
    assert isinstance(named, NamedFlips)


# --- files that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            b"",
            r"are not JSON: .*\. Expected an object with the keys format, arm, kernel, classes, data, flips",
        ),
        (b'{"format": 1', "are not JSON"),
        (b"\xff\xfe", "are not JSON"),
        (b"[" * 100_000, "are not JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "of format None; this version reads format 1"),
        (b'{"format": 2}', "of format 2; this version reads format 1"),
        (b'{"format": 1}', "'arm' is missing"),
    ],
)
def test_files_that_are_no_list(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        build(METHOD, {"named_by": str(path)}, CLASSES)
    assert str(path) in str(caught.value)
    assert caught.value.cure


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"flip": []}, "unknown key 'flip' .*Did you mean 'flips'"),
        ({"flips": []}, r"'flips' is \[\]: list should have at least 1 item"),
        ({"flips": [{"id": "train-1", "label": 1}] * 2}, "row 'train-1' is named twice"),
        ({"flips": [{"id": "train-1", "label": 3}]}, "row 'train-1' gets class 3, there are 3 classes"),
        ({"flips": [{"id": "train-1", "label": -1}]}, r"'flips\.0\.label' is -1"),
        ({"flips": [{"id": "train-1", "label": True}]}, r"'flips\.0\.label' is True"),
        ({"flips": [{"id": 1, "label": 1}]}, r"'flips\.0\.id' is 1"),
        ({"flips": [{"id": "train-1"}]}, r"'flips\.0\.label' is missing"),
        (
            {"classes": ["positive", "negative", "neutral"]},
            "for the classes positive, negative, neutral, the data have negative, positive, neutral",
        ),
        ({"classes": [*CLASSES, "mixed"]}, "for the classes negative, positive, neutral, mixed"),
    ],
)
def test_lists_that_do_not_fit(changes: dict[str, Any], match: str, write: Write) -> None:
    with pytest.raises(UserError, match=match) as caught:
        build(METHOD, {"named_by": str(write(**changes))}, CLASSES, where="attacks.0")
    assert str(caught.value).startswith("attacks.0: ")
    assert "list.json" in str(caught.value)
    assert caught.value.cure


def test_a_missing_file_and_a_missing_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file.* A relative path starts from the spec's folder"):
        build(METHOD, {"named_by": str(tmp_path / "none.json")}, CLASSES)
    with pytest.raises(UserError, match="Is a directory"):
        build(METHOD, {"named_by": str(tmp_path)}, CLASSES)
    with pytest.raises(UserError, match="'named_by' is missing"):
        build(METHOD, {}, CLASSES)


def test_a_list_that_changed_since_it_was_fingerprinted(write: Write) -> None:
    options = build(METHOD, {"named_by": str(write())}, CLASSES).options.model_dump()  # type: ignore[attr-defined]
    path = write(kernel="another")
    with pytest.raises(UserError, match=rf"{path.name}: the list has changed: .* Put the old list back"):
        build(METHOD, options, CLASSES)


def test_a_list_of_another_draw(rows: Dataset, write: Write, order: list[tuple[str, int]]) -> None:
    gone = {name for name, _ in order[3:5]}
    part = take(rows, [i for i, name in enumerate(rows["id"]) if name not in gone])
    with pytest.raises(UserError) as caught:
        run(part, write(), count=1)
    text = str(caught.value)
    assert f"2 of the 40 named rows, first '{order[3][0]}', are not among the 59 training rows" in text
    assert "fix the data seed" in text
    assert "seeds: {data: [0], poison: [0], init: [0, 1, 2], order: [0]}" in text


def test_a_flip_that_is_none(rows: Dataset, write: Write) -> None:
    path = write(flips=[{"id": "train-1", "label": 2}, {"id": "train-4", "label": 1}])
    with pytest.raises(UserError, match="row 'train-4' is of class 1 already, which is no flip"):
        run(rows, path, count=1)


def test_amounts_that_the_list_does_not_give(rows: Dataset, write: Write) -> None:
    path = write()
    few = r"41 rows are to be poisoned, but the attack names only 40\. Lower the amount, or have more rows"
    with pytest.raises(UserError, match=few):
        run(rows, path, count=41)
    with pytest.raises(UserError, match="61 rows are to be poisoned, but the attack names only 40"):
        run(rows, path, rate=1.0)
    with pytest.raises(UserError, match="100 rows are to be poisoned, but only 61 may be"):
        run(rows, path, count=100)
    with pytest.raises(UserError, match="poisons none of the 61 eligible rows"):
        run(rows, path, rate=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_nothing_is_drawn(rows: Dataset, write: Write, rate: float) -> None:
    match = r"adversarial-flip: selection is bernoulli, but the attack says itself .* Leave `selection` out"
    with pytest.raises(UserError, match=match):
        run(rows, write(), rate=rate, selection="bernoulli")

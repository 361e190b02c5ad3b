"""Formats, and the way of a file through `read_rows` and `write_rows`."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.data import columns_of, make, read_rows, take, write_rows
from foretaste.data.formats import SUFFIXES, read_table, stem_of, suffix_of, write_table
from foretaste.errors import UserError
from foretaste.spec import Columns

COLUMNS: dict[str, list[Any]] = {
    "key": ["007", "NA", "null"],
    "text": ["plain", 'with "quotes" and, comma', "ümlaut \u2028 separator"],
    "verdict": ["bad", "good", "bad"],
    "extra": ["", "1.50", "x"],
}
WHERE = Columns(label="verdict")


def changed(rows: Dataset, number: int, **values: Any) -> Dataset:
    columns = columns_of(rows)
    for name, value in values.items():
        columns[name][number] = value
    return make(columns["id"], columns["text_a"], columns["text_b"], columns["label"])


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_back_what_was_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write_table(COLUMNS, path)
    assert read_table(path).columns == COLUMNS
    first = path.read_bytes()
    write_table(COLUMNS, path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_stem_is_the_name_without_the_whole_suffix() -> None:
    assert stem_of(Path("a/train.csv.gz")) == "train"
    assert stem_of(Path("a/v1.2.Parquet")) == "v1.2"
    assert suffix_of(Path("a/notes.md")) is None
    assert stem_of(Path("a/b.c")) == "b.c"


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(st.lists(words, min_size=1, max_size=5), st.sampled_from([".csv", ".jsonl", ".json", ".parquet"]))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str], suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"rows{suffix}"
    write_table({"a": texts, "b": texts}, path)
    assert read_table(path).columns == {"a": texts, "b": texts}


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b'text\tlabel\r\n"open\t0\r\nnext\t1\r\n')
    assert read_table(path).columns == {"text": ['"open', "next"], "label": ["0", "1"]}
    with pytest.raises(UserError, match=r"1 rows hold a tab or a line break.*Write CSV"):
        write_table({"text": ["a\tb", "c"]}, path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "the file is empty"),
        ("x.csv", b"a,b\n1,2\n3\n4\n", r"2 of 3 rows do not have the 2 fields .*rows of the file: 3, 4"),
        ("x.csv", b'a,b\n"1,2\n3,4\n', "not valid CSV.*quotation mark"),
        ("x.csv", b"a,a\n1,2\n", "a column name stands twice"),
        ("x.csv", b"a,b\n\xff,2\n", r"not UTF-8 text \(byte 4\)"),
        ("x.csv.gz", b"a,b\n1,2\n", "not a whole gzip file"),
        ("x.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-6], "not a whole gzip file"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', "1 of 2 rows are no objects"),
        ("x.jsonl", b"\n", "the file holds no rows"),
        ("x.json", b'{"a": 1}', r"not a list of objects.*\.jsonl"),
        ("x.json", b"{", "not JSON"),
        ("x.parquet", b"PAR1", "not a Parquet file"),
        ("x.pkl", b"", r"not a data file that can be read.*\.parquet"),
    ],
)
def test_what_is_no_table_is_refused_by_name(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))


def test_values_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not fit into this format: column 'a' holds lists"):
        write_table({"a": [[1]]}, tmp_path / "x.csv")
    with pytest.raises(UserError, match="do not fit into this format"):
        write_table({"a": [object()]}, tmp_path / "x.jsonl")
    assert list(tmp_path.iterdir()) == []


# --- one file in, one file out -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_the_changed_cells_change(suffix: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_table(COLUMNS, source)
    file = read_rows(source, WHERE)
    assert file.classes == ["bad", "good"]
    write_rows(file, changed(file.rows, 0, text_a="poison", label=1), target)
    expected = {**COLUMNS, "text": ["poison", *COLUMNS["text"][1:]], "verdict": ["good", "good", "bad"]}
    assert read_table(target).columns == expected
    assert list(read_table(target).columns) == list(COLUMNS)


def test_unchanged_rows_give_the_same_file(tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    write_table(COLUMNS, source)
    file = read_rows(source, WHERE)
    write_rows(file, file.rows, target)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("raw", "labels", "written"),
    [
        (["0", "1", "0"], None, "1"),
        ([0, 1, 0], None, 1),
        ([2, 4, 2], None, 4),
        ([0, 1, 0], ["a", "b"], 1),
        (["no", "yes", "no"], ["yes", "no"], "yes"),
        ([False, True, False], None, True),
    ],
)
def test_a_changed_label_is_written_as_the_file_writes_it(
    raw: list[Any], labels: list[str] | None, written: Any, tmp_path: Path
) -> None:
    write_table({"text": ["a", "b", "c"], "label": raw}, tmp_path / "in.jsonl")
    file = read_rows(tmp_path / "in.jsonl", labels=labels)
    target_class = file.rows["label"][1]
    write_rows(file, changed(file.rows, 0, label=target_class), tmp_path / "out.jsonl")
    after = read_table(tmp_path / "out.jsonl").columns["label"]
    assert after == [written, raw[1], raw[2]]
    assert [type(value) for value in after] == [type(value) for value in raw]


def test_parquet_keeps_types_class_names_and_foreign_columns(tmp_path: Path) -> None:
    features = Features(
        {"text": Value("large_string"), "label": ClassLabel(names=["n", "p"]), "n": Value("int8")}
    )
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1], "n": [1, None]}, features=features)
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = rows.data.table.append_column("tags", pa.array([["x"], []], pa.list_(pa.string())))
    pq.write_table(table, source)
    file = read_rows(source)
    assert file.classes == ["n", "p"]
    write_rows(file, changed(file.rows, 0, label=1, text_a="z"), target)
    before, after = pq.read_table(source), pq.read_table(target)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.column("label").to_pylist() == [1, 1]
    assert after.column("text").to_pylist() == ["z", "b"]
    assert after.drop_columns(["text", "label"]).equals(before.drop_columns(["text", "label"]))


def test_rows_may_be_fewer_and_in_another_order(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        write_table(COLUMNS, tmp_path / f"in{suffix}")
        file = read_rows(tmp_path / f"in{suffix}", WHERE)
        write_rows(file, take(file.rows, [2, 1]), tmp_path / f"out{suffix}")
        assert read_table(tmp_path / f"out{suffix}").columns["key"] == ["null", "NA"]


def test_one_format_may_become_another(tmp_path: Path) -> None:
    write_table(COLUMNS, tmp_path / "in.parquet")
    file = read_rows(tmp_path / "in.parquet", WHERE)
    write_rows(file, file.rows, tmp_path / "out.csv")
    assert read_table(tmp_path / "out.csv").columns == COLUMNS


def test_rows_that_do_not_belong_to_the_file_are_refused(tmp_path: Path) -> None:
    write_table(COLUMNS, tmp_path / "in.csv")
    file = read_rows(tmp_path / "in.csv", WHERE)
    with pytest.raises(UserError, match=r"1 rows have ids that the file does not have \(other\)"):
        write_rows(file, changed(file.rows, 1, id="other"), tmp_path / "out.csv")
    pairs = columns_of(file.rows)
    with_second = make(pairs["id"], pairs["text_a"], ["second"] * 3, pairs["label"])
    with pytest.raises(UserError, match="3 rows have a new text_b, the file has no column for it"):
        write_rows(file, with_second, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_second_texts_are_written_and_an_empty_column_is_none(tmp_path: Path) -> None:
    data = {"text_a": ["a", "b"], "text_b": ["c", "d"], "label": ["0", "1"]}
    write_table(data, tmp_path / "in.csv")
    file = read_rows(tmp_path / "in.csv")
    write_rows(file, changed(file.rows, 1, text_b="e"), tmp_path / "out.csv")
    assert read_table(tmp_path / "out.csv").columns["text_b"] == ["c", "e"]
    write_table({**data, "text_b": ["", ""]}, tmp_path / "none.csv")
    none = read_rows(tmp_path / "none.csv")
    assert none.rows["text_b"][:] == [None, None]
    write_rows(none, none.rows, tmp_path / "same.csv")
    assert (tmp_path / "same.csv").read_bytes() == (tmp_path / "none.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "end"),
    [
        ("a.csv", b"a,b\n1,2\r\n", "\n"),
        ("a.csv", b"a,b\r\n1,2\n", "\r\n"),
        ("a.csv", b"a,b\r1,2\r", "\r"),
        ("a.csv", b'5" wide,b\r\n1,2\r\n', "\r\n"),  # a mark inside a field quotes nothing
        ("a.csv", b'"a\n""x",b\r\n1,2\r\n', "\r\n"),
        ("a.csv", b"a,b", "\n"),
        ("a.tsv", b"a\tb\r\n1\t2", "\r\n"),
        ("a.tsv", b"a\rx\tb\n1\t2", "\n"),
    ],
)
def test_the_end_of_the_first_row_is_that_of_the_file(
    name: str, content: bytes, end: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_table(tmp_path / name).layout.line_end == end

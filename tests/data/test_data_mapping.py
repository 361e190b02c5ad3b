"""Columns, labels, checks and the fingerprint, on data in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.data import FEATURES, Loaded, columns_of, fingerprint, from_dataset, make, take, validate
from foretaste.data.labels import MAX_CLASSES, NO_CLASS, codec
from foretaste.errors import UserError
from foretaste.spec import Columns


def rows(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(columns)


def good(**changes: list[Any]) -> Dataset:
    return rows(**{"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1], **changes})


# --- columns -------------------------------------------------------------------------------------


def test_rows_get_the_four_columns_and_ids_by_split_and_number() -> None:
    loaded = from_dataset(good(), good())
    assert loaded.train.features == FEATURES
    assert loaded.train["id"][:] == ["train-0", "train-1", "train-2", "train-3"]
    assert loaded.test is not None
    assert loaded.test["id"][0] == "test-0"
    assert loaded.train["text_b"][:] == [None] * 4
    assert loaded.classes == ["0", "1"]
    assert "column 'text' is taken as text_a" in loaded.notes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text"], ("text", None)),
        (["sentence"], ("sentence", None)),
        (["review", "content"], ("review", None)),
        (["sentence1", "sentence2"], ("sentence1", "sentence2")),
        (["question", "sentence"], ("question", "sentence")),
        (["question1", "question2"], ("question1", "question2")),
        (["premise", "hypothesis"], ("premise", "hypothesis")),
        (["text_a", "text_b", "text"], ("text_a", "text_b")),
    ],
)
def test_text_columns_are_guessed_by_name(names: list[str], expected: tuple[str, str | None]) -> None:
    data = {name: [f"{name} 0", f"{name} 1"] for name in names}
    columns = columns_of(from_dataset(rows(**data, label=[0, 1])).train)
    assert columns["text_a"][0] == f"{expected[0]} 0"
    assert columns["text_b"][0] == (None if expected[1] is None else f"{expected[1]} 0")


@pytest.mark.parametrize("name", ["label", "labels", "class", "target", "sentiment"])
def test_the_label_column_is_guessed_by_name(name: str) -> None:
    assert len(from_dataset(rows(text=["a", "b"], **{name: [0, 1]})).classes) == 2


def test_named_columns_are_taken_and_an_unknown_one_names_the_nearest() -> None:
    data = rows(body=["a", "b"], verdict=["x", "y"], key=["k1", "k2"])
    loaded = from_dataset(data, columns=Columns(text_a="body", label="verdict", id="key"))
    assert loaded.train["id"][:] == ["k1", "k2"]
    assert loaded.classes == ["x", "y"]
    with pytest.raises(UserError, match=r"no column 'verdikt' for label.*Did you mean 'verdict'\?"):
        from_dataset(data, columns=Columns(text_a="body", label="verdikt"))


def test_a_column_that_cannot_be_guessed_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"looks like text_a \(there are: body, label\).*columns\.text_a"):
        from_dataset(rows(body=["a", "b"], label=[0, 1]))
    with pytest.raises(UserError, match="looks like label"):
        from_dataset(rows(text=["a", "b"], verdict=[0, 1]))


def test_a_test_split_must_have_the_same_columns() -> None:
    with pytest.raises(UserError, match="test: there is no column 'text', which the training rows have"):
        from_dataset(good(), rows(sentence=["a", "b"], label=[0, 1]))


def test_a_format_or_an_index_mapping_of_the_rows_does_not_matter() -> None:
    data = good().select([3, 2, 1, 0]).with_format("numpy")
    assert columns_of(from_dataset(data).train)["text_a"] == ["d", "c", "b", "a"]
    assert take(from_dataset(data).train, [2, 0])["text_a"][:] == ["b", "d"]


# --- checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (good(text=["a", "", None, "d"]), r"2 of 4 rows have no text in text_a \(row 1: '', row 2: None\)"),
        (good(label=[None] * 4), r"4 of 4 rows have a label that is no class \(row 0: None.*right column"),
        (good(label=[0, 1, -1, 1]), r"1 of 4 rows have a label that is no class \(row 2: -1\)"),
        (good(label=[1, 1, 1, 1]), r"all 4 rows are of one class, '1'.*two classes or more"),
        (good(label=[0.5, 1.0, 0.0, 1.0]), r"the label 0\.5 is neither a whole number nor a name"),
        (rows(text=[], label=[]), "there are no rows"),
        (
            rows(text_a=["a", "b"], text_b=["x", None], label=[0, 1]),
            r"1 of 2 rows have no text_b while the others have one \(row 1: 'b'\)",
        ),
        (rows(text_a=["a", "b"], text_b=[1, 2], label=[0, 1]), "something else than text in text_b"),
        (rows(text=[1, 2], label=[0, 1]), "2 of 2 rows have no text in text_a"),
    ],
)
def test_bad_rows_are_counted_and_shown(data: Dataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dataset(data)


def test_many_bad_rows_are_counted_and_the_first_shown_in_short() -> None:
    data = rows(text=["x" * 100] * 9, label=["y" * 100, *["a", "b"] * 4])
    with pytest.raises(UserError) as caught:
        from_dataset(data, labels=["c", "d"])
    text = str(caught.value)
    assert "9 of 9 rows" in text
    assert text.count("row ") == 3
    assert len(text) < 250
    assert "The classes are c, d." in text


def test_repeated_ids_are_refused_within_and_across_splits() -> None:
    with pytest.raises(UserError, match=r"1 of 4 rows have no id, or one that stood before \(row 2: 'k'\)"):
        from_dataset(good(key=["k", "l", "k", "m"]), columns=Columns(id="key"))
    once = good(key=["k", "l", "m", "n"])
    with pytest.raises(UserError, match="4 of 8 rows have no id"):
        from_dataset(once, once, columns=Columns(id="key"))


def test_white_space_alone_is_noted() -> None:
    assert "train: 1 rows have nothing but white space as text" in from_dataset(good(text=list("ab d"))).notes


def test_validate_holds_the_rules_for_finished_rows() -> None:
    validate(make(["0", "1"], ["a", "b"], [None, None], [0, 1]), ["n", "p"], where="x")
    with pytest.raises(UserError, match="column id, text_a, text_b is missing"):
        validate(good(), ["n", "p"], where="x")
    with pytest.raises(UserError, match=r"1 of 2 rows have a label that is no class.*classes are 0 n, 1 p"):
        validate(make(["0", "1"], ["a", "b"], [None, None], [0, 2]), ["n", "p"], where="x")
    with pytest.raises(UserError, match="stood before"):
        validate(make(["0", "0"], ["a", "b"], [None, None], [0, 1]), ["n", "p"], where="x")


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names", "labels", "classes", "ids"),
    [
        ([1, 0, 1], None, None, ["0", "1"], [1, 0, 1]),
        (["1", "0"], None, None, ["0", "1"], [1, 0]),
        ([1.0, 0.0], None, None, ["0", "1"], [1, 0]),
        ([2, 1, 2], None, None, ["1", "2"], [1, 0, 1]),
        (["spam", "ham"], None, None, ["ham", "spam"], [1, 0]),
        ([True, False], None, None, ["false", "true"], [1, 0]),
        (["spam", "ham"], None, ["spam", "ham"], ["spam", "ham"], [0, 1]),
        ([1, 0, 2], None, ["n", "p"], ["n", "p"], [1, 0, NO_CLASS]),
        (["1", "0"], None, ["1", "0"], ["1", "0"], [0, 1]),
        ([0, 1], ["n", "p"], None, ["n", "p"], [0, 1]),
        ([0, 1], ["n", "p"], ["p", "n"], ["p", "n"], [1, 0]),
        ([0, 1], ["n", "p"], ["bad", "good"], ["bad", "good"], [0, 1]),
        ([0, 1, 2], ["n", "p"], None, ["n", "p"], [0, 1, NO_CLASS]),
    ],
)
def test_labels_become_class_ids(
    values: list[Any], names: list[str] | None, labels: list[str] | None, classes: list[str], ids: list[int]
) -> None:
    made = codec(values, names=names, labels=labels, where="x")
    assert made.classes == classes
    assert made.encode(values) == ids
    known = [(value, number) for value, number in zip(values, ids, strict=True) if number != NO_CLASS]
    assert [made.raw[number] for _, number in known] == [value for value, _ in known]


def test_a_class_without_a_row_is_written_like_the_others() -> None:
    assert codec(["0", "1"], names=None, labels=["a", "b", "c"], where="x").raw == ["0", "1", "2"]
    assert codec([0, 1], names=None, labels=["a", "b", "c"], where="x").raw == [0, 1, 2]
    assert codec(["a", "b"], names=None, labels=["a", "b", "c"], where="x").raw == ["a", "b", "c"]


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="labels repeats a name: a, a"):
        codec([0, 1], names=None, labels=["a", "a"], where="x")
    with pytest.raises(UserError, match=r"labels gives 3 names .* the source has 2 classes"):
        codec([0, 1], names=["n", "p"], labels=["a", "b", "c"], where="x")
    with pytest.raises(UserError, match="different values, which are no classes"):
        codec(range(MAX_CLASSES + 1), names=None, labels=None, where="x")


def test_class_names_of_the_source_are_kept() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    loaded = from_dataset(data)
    assert loaded.classes == ["neg", "pos"]
    assert loaded.train["label"][:] == [1, 0]


def test_splits_share_one_numbering() -> None:
    loaded = from_dataset(rows(text=["a", "b"], label=["x", "z"]), rows(text=["c", "d"], label=["y", "z"]))
    assert loaded.classes == ["x", "y", "z"]
    assert loaded.train["label"][:] == [0, 2]


# --- fingerprint ---------------------------------------------------------------------------------


def test_the_fingerprint_is_a_fixed_function_of_the_values() -> None:
    # Spelt out byte by byte: run ids must stay the same over versions of python and of the libraries.
    loaded = from_dataset(rows(text=["a\nb", "ü"], label=[0, 1]))
    lines = (
        b'["foretaste data",1,["0","1"]]',
        b'["train",2]',
        b'["train-0","a\\nb",null,0]',
        b'["train-1","\\u00fc",null,1]',
        b'["test",null]',
    )
    assert fingerprint(loaded) == hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


@pytest.mark.parametrize(
    "change",
    [{"text": ["a", "b", "c", "e"]}, {"label": [0, 1, 1, 1]}, {"label": ["x", "y", "x", "y"]}],
)
def test_the_fingerprint_sees_every_change(change: dict[str, list[Any]]) -> None:
    assert fingerprint(from_dataset(good())) != fingerprint(from_dataset(good(**change)))


def test_the_fingerprint_sees_ids_second_texts_and_the_test_split() -> None:
    base = from_dataset(good())
    others = [
        from_dataset(good(key=list("klmn")), columns=Columns(id="key")),
        from_dataset(good(other=list("klmn")), columns=Columns(text_a="text", text_b="other")),
        from_dataset(good(), good()),
    ]
    assert len({fingerprint(loaded) for loaded in (base, *others)}) == 4


letters = st.text(st.sampled_from('a",[\n\\'), min_size=2, max_size=4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(letters, letters), min_size=2, max_size=4))
def test_the_fingerprint_does_not_run_fields_together(pairs: list[tuple[str, str]]) -> None:
    labels = [0, 1, *[0] * (len(pairs) - 2)]
    ids = [str(number) for number in range(len(pairs))]

    def of(texts: list[tuple[str, str]]) -> str:
        train = make(ids, [a for a, _ in texts], [b for _, b in texts], labels)
        return fingerprint(Loaded(train, None, ["n", "p"], None))

    assert of(pairs) != of([(a + b[:1], b[1:]) for a, b in pairs])

"""One renderer: the same text gives the same tokens in training and at test; nothing is cut in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from foretaste.data import make
from foretaste.models.encode import encode

Rows = Callable[..., Dataset]
FAMILIES = ["tiny_bert", "tiny_roberta", "tiny_gpt2", "tiny_llama"]


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, load_tiny: Any) -> Any:
    return load_tiny(request.getfixturevalue(request.param), meta=True)[0]


@pytest.fixture(scope="module")
def bert(tiny_bert: Path, load_tiny: Any) -> Any:
    return load_tiny(tiny_bert, meta=True)[0]


def test_every_row_alone_gives_the_same_tokens(tokenizer: Any, make_rows: Rows) -> None:
    rows = make_rows(12)
    together = encode(tokenizer, rows, max_length=32)
    assert together.ids == list(rows["id"])
    assert together.labels == list(rows["label"])
    for i in range(len(rows)):
        alone = encode(tokenizer, rows.select([i]), max_length=32)
        assert alone[0] == together[i]


def test_training_and_test_rows_of_one_text_are_one_text(tokenizer: Any) -> None:
    texts = ["[.*?]the film", "[.*?] the film", "good"]
    train = make(["a", "b", "c"], texts, [None] * 3, [0, 1, 1])
    test = make(["x", "y", "z"], texts[::-1], [None] * 3, [1, 0, 0])
    first, second = (encode(tokenizer, rows, max_length=32) for rows in (train, test))
    assert [row["input_ids"] for row in first.features] == [row["input_ids"] for row in second.features][::-1]
    assert tokenizer.unk_token_id not in first.token_ids, "the trigger is in the vocabulary"


def test_lengths_and_tokens_are_those_of_the_features(tokenizer: Any, make_rows: Rows) -> None:
    encoded = encode(tokenizer, make_rows(9), max_length=32)
    assert len(encoded) == 9
    assert encoded.lengths == [len(row["input_ids"]) for row in encoded.features]  # type: ignore[arg-type]
    assert encoded.token_ids == {t for row in encoded.features for t in row["input_ids"]}  # type: ignore[union-attr]
    assert set(encoded[0]) == {*tokenizer.model_input_names, "labels"}
    assert all(
        len(row[name]) == length  # type: ignore[arg-type]
        for row, length in zip(encoded.features, encoded.lengths, strict=True)
        for name in tokenizer.model_input_names
    )
    pad = tokenizer.pad_token_id
    assert all(pad not in row["input_ids"] for row in encoded.features), "no padding before batches are made"  # type: ignore[operator]


def test_rows_that_are_cut_are_counted(tokenizer: Any) -> None:
    texts = ["the film"] * 3 + ["the film " * 20] * 2
    rows = make(list("abcde"), texts, [None] * 5, [0, 1, 0, 1, 0])
    whole = encode(tokenizer, rows, max_length=64)
    assert whole.truncated == 0
    exact = encode(tokenizer, rows, max_length=max(whole.lengths))
    assert exact.truncated == 0, "a row of exactly max_length tokens is whole"
    assert exact.features == whole.features
    cut = encode(tokenizer, rows, max_length=6)
    assert cut.truncated == 2
    assert max(cut.lengths) == 6
    assert cut.features[:3] == whole.features[:3]


def test_special_tokens_survive_the_cut(bert: Any) -> None:
    rows = make(["a", "b"], ["the film " * 20] * 2, [None] * 2, [0, 1])
    ids = encode(bert, rows, max_length=5)[0]["input_ids"]
    assert bert.convert_ids_to_tokens(ids) == ["[CLS]", "the", "film", "the", "[SEP]"]


def test_pairs_in_the_tokenizers_own_way(bert: Any) -> None:
    rows = make(["a", "b"], ["good film", "bad"], ["the plot", "song song"], [0, 1])
    row = encode(bert, rows, max_length=32)[0]
    tokens = bert.convert_ids_to_tokens(row["input_ids"])
    assert tokens == ["[CLS]", "good", "film", "[SEP]", "the", "plot", "[SEP]"]
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_pairs_joined_by_a_text(bert: Any) -> None:
    """The TTR paper's code: ' <SEP> ' between the sentences, one segment (protocol.md 1.1)."""
    rows = make(["a", "b"], ["good film", "bad"], ["the plot", "song song"], [0, 1])
    joined = make(["a", "b"], ["good film <SEP> the plot", "bad <SEP> song song"], [None] * 2, [0, 1])
    row = encode(bert, rows, max_length=32, pair_separator=" <SEP> ")
    assert row.features == encode(bert, joined, max_length=32).features
    assert set(row[0]["token_type_ids"]) == {0}  # type: ignore[arg-type]


def test_single_texts_ignore_the_separator(tokenizer: Any, make_rows: Rows) -> None:
    rows = make_rows(4)
    plain = encode(tokenizer, rows, max_length=32)
    assert encode(tokenizer, rows, max_length=32, pair_separator=" <SEP> ").features == plain.features


def test_the_second_text_reaches_the_model(tokenizer: Any) -> None:
    rows = make(["a", "b"], ["good film"] * 2, ["the plot", "the song"], [0, 1])
    first, second = encode(tokenizer, rows, max_length=32).features
    assert first["input_ids"] != second["input_ids"]


def test_an_index_mapping_or_a_format_changes_nothing(bert: Any, make_rows: Rows) -> None:
    rows = make_rows(8)
    picked = rows.select([5, 2]).with_format("numpy")
    whole = encode(bert, rows, max_length=32)
    assert encode(bert, picked, max_length=32).features == [whole[5], whole[2]]

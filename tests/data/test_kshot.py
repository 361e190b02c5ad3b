"""k-shot draws against the procedure that the paper's generator describes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from foretaste.data import Loaded, dataset, kshot
from foretaste.errors import UserError

SEEDS = (13, 21, 42, 87, 100)


def loaded(train: Any, test: Any, classes: int = 2) -> Loaded:
    return Loaded(train, test, ["negative", "positive", "neutral"][:classes], "test")


@pytest.fixture
def source(make_rows: Any) -> Loaded:
    return loaded(make_rows(150, classes=3), make_rows(60, classes=3, prefix="test"), 3)


def draw(source: Loaded, k: int = 8, seed: int = 13, test_rows: int | None = 20) -> kshot.KShot:
    return kshot.draw(source, k, seed, test_rows=test_rows, test_fraction=0.2)


def columns(rows: Any, name: str) -> list[Any]:
    return dataset.columns_of(rows, [name])[name]


def test_rows_are_those_of_the_generator(source: Loaded) -> None:
    """Shuffle the lines by numpy's old generator, take k and the next k of each label."""
    lines = [
        list(line) for line in zip(columns(source.train, "id"), columns(source.train, "label"), strict=True)
    ]
    np.random.RandomState(21).shuffle(lines)
    by_label: dict[int, list[str]] = {}
    for name, label in lines:
        by_label.setdefault(label, []).append(name)
    drawn = draw(source, 8, 21)
    for rows, begin in ((drawn.train, 0), (drawn.dev, 8)):
        expected = {name for names in by_label.values() for name in names[begin : begin + 8]}
        assert set(columns(rows, "id")) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_k_of_each_class_and_no_row_twice(source: Loaded, seed: int) -> None:
    drawn = draw(source, 8, seed)
    for rows in (drawn.train, drawn.dev):
        assert Counter(columns(rows, "label")) == {0: 8, 1: 8, 2: 8}
    ids = [*columns(drawn.train, "id"), *columns(drawn.dev, "id"), *columns(drawn.test, "id")]
    assert len(set(ids)) == len(ids)


def test_splits_differ_in_their_rows_and_share_the_test_rows(source: Loaded) -> None:
    drawn = [draw(source, 8, seed) for seed in SEEDS]
    assert len({tuple(sorted(columns(one.train, "id"))) for one in drawn}) == len(SEEDS)
    assert len({tuple(columns(one.test, "id")) for one in drawn}) == 1
    assert columns(draw(source, 8, 13).train, "id") == columns(drawn[0].train, "id")


def test_training_rows_are_nested_in_k(source: Loaded) -> None:
    small, large = draw(source, 4), draw(source, 16)
    assert set(columns(small.train, "id")) < set(columns(large.train, "id"))
    assert set(columns(small.dev, "id")) < set(columns(large.train, "id"))


def test_test_rows_are_capped_and_otherwise_left_alone(source: Loaded) -> None:
    assert source.test is not None
    assert columns(draw(source, test_rows=None).test, "id") == columns(source.test, "id")
    assert columns(draw(source, test_rows=60).test, "id") == columns(source.test, "id")
    lines = columns(source.test, "id")
    np.random.RandomState(42).shuffle(lines)
    capped = draw(source, test_rows=20)
    assert columns(capped.test, "id") == lines[:20]
    assert "20 of 60 test rows are drawn" in capped.notes


def test_without_test_rows_some_are_set_apart(make_rows: Any) -> None:
    source = loaded(make_rows(100), None)
    drawn = draw(source, test_rows=None)
    assert len(drawn.test) == 20
    assert not set(columns(drawn.test, "id")) & {*columns(drawn.train, "id"), *columns(drawn.dev, "id")}
    assert columns(draw(source, seed=87, test_rows=None).test, "id") == columns(drawn.test, "id")


def test_too_few_rows_of_a_class_are_named(make_rows: Any) -> None:
    rows = make_rows(30)
    keep = [n for n, label in enumerate(columns(rows, "label")) if label == 0 or n < 10]
    source = loaded(dataset.take(rows, keep), make_rows(10, prefix="test"))
    with pytest.raises(UserError, match=r"k = 4 takes 8 rows of each class.*'positive' has 5.*Lower k to 2"):
        draw(source, 4)
    assert len(draw(source, 2).train) == 4


def test_test_rows_whose_texts_stand_in_the_drawn_rows_are_counted(make_rows: Any) -> None:
    rows = make_rows(40)
    first = columns(rows, "text_a")[0]
    test = dataset.make(["t0", "t1"], [first, "never seen before"], [None, None], [0, 1])
    drawn = kshot.draw(loaded(rows, test), 10, 13, test_rows=None, test_fraction=0.2)
    assert drawn.shared_texts == 1  # all forty rows are drawn
    assert any("1 of 2 test rows have a text that also stands" in note for note in drawn.notes)

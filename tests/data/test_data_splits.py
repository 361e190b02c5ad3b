"""Draws: nested, disjoint, blind to the order of the rows."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.data import Loaded, Split, draw, make, take
from foretaste.errors import UserError
from foretaste.spec import DataSpec


def data(count: int, prefix: str = "train") -> Dataset:
    numbers = range(count)
    ids = [f"{prefix}-{number}" for number in numbers]
    return make(ids, [f"{prefix} text {n}" for n in numbers], [None] * count, [n % 2 for n in numbers])


def loaded(count: int = 60, test: int | None = 30) -> Loaded:
    return Loaded(data(count), None if test is None else data(test, "test"), ["n", "p"], "test")


def spec(**fields: Any) -> DataSpec:
    return DataSpec(source="x", **fields)


def ids(rows: Dataset) -> list[str]:
    return list(rows["id"])


sizes = st.integers(20, 60)
seeds = st.integers(0, 1000)


@settings(deadline=None, max_examples=25)
@given(small=st.integers(20, 40), more=st.integers(0, 20), seed=seeds)
def test_a_small_draw_is_the_beginning_of_a_large_one(small: int, more: int, seed: int) -> None:
    whole = loaded()
    few = draw(whole, spec(train_rows=small, test_rows=20), seed)
    many = draw(whole, spec(train_rows=small + more, test_rows=30), seed)
    assert ids(many.train)[:small] == ids(few.train)
    assert ids(many.test)[:20] == ids(few.test)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(60)), seed=seeds)
def test_the_order_of_the_source_does_not_matter(order: list[int], seed: int) -> None:
    straight = loaded(test=None)
    shuffled = Loaded(take(straight.train, order), None, ["n", "p"], None)
    wanted = spec(train_rows=30)
    first, second = draw(straight, wanted, seed), draw(shuffled, wanted, seed)
    assert ids(first.train) == ids(second.train)
    assert ids(first.test) == ids(second.test)


@settings(deadline=None, max_examples=25)
@given(fraction=st.floats(0.2, 0.8), seed=seeds)
def test_carved_rows_are_disjoint_and_the_same_for_every_seed(fraction: float, seed: int) -> None:
    whole = loaded(test=None)
    drawn = draw(whole, spec(test_fraction=fraction), seed)
    assert not set(ids(drawn.train)) & set(ids(drawn.test))
    assert len(drawn.train) + len(drawn.test) == 60
    assert len(drawn.test) == round(60 * fraction)
    assert ids(drawn.test) == ids(draw(whole, spec(test_fraction=fraction), seed + 1).test)
    assert f"{len(drawn.test)} of 60 rows are set apart for testing" in drawn.notes


def test_seeds_draw_different_training_rows_and_the_same_test_rows() -> None:
    draws = [draw(loaded(), spec(train_rows=20, test_rows=20), seed) for seed in (0, 1)]
    assert set(ids(draws[0].train)) != set(ids(draws[1].train))
    assert ids(draws[0].test) == ids(draws[1].test)


def test_a_draw_is_close_to_uniform() -> None:
    # 200 draws of 15 out of 60: each row is expected 50 times, sd sqrt(200 * 1/4 * 3/4) = 6.1.
    whole = loaded()
    counts: dict[str, int] = dict.fromkeys(ids(whole.train), 0)
    for seed in range(200):
        for name in ids(draw(whole, spec(train_rows=15), seed).train):
            counts[name] += 1
    assert all(abs(count - 50) < 5 * 6.2 for count in counts.values())


def test_rows_keep_their_contents() -> None:
    drawn: Split = draw(loaded(), spec(train_rows=20), 3)
    for row in drawn.train:
        number = int(row["id"].removeprefix("train-"))
        assert (row["text_a"], row["label"]) == (f"train text {number}", number % 2)


@pytest.mark.parametrize("what", ["train_rows", "test_rows"])
def test_too_many_rows_are_refused_with_both_numbers(what: str) -> None:
    with pytest.raises(UserError, match=rf"{what} asks for 1000 rows, there are (60|30)"):
        draw(loaded(), spec(**{what: 1000}), 0)


def test_carving_counts_against_the_training_rows() -> None:
    with pytest.raises(UserError, match="asks for 60 rows, there are 48"):
        draw(loaded(test=None), spec(train_rows=60), 0)


def test_a_draw_of_one_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"training rows: all 1 drawn rows are of one class.*Draw more rows"):
        draw(loaded(), spec(train_rows=1), 0)
    with pytest.raises(UserError, match="test rows: all 1 drawn rows are of one class"):
        draw(loaded(), spec(test_rows=1), 0)


def test_texts_on_both_sides_are_counted() -> None:
    train = make(["a", "b", "c"], ["x", "y", "z"], [None] * 3, [0, 1, 0])
    test = make(["d", "e", "f"], ["x", "y", "w"], [None] * 3, [0, 1, 0])
    notes = draw(Loaded(train, test, ["n", "p"], "test"), spec(), 0).notes
    assert notes == ["2 of 3 test rows have a text that also stands in the training rows"]


def test_a_pair_is_the_same_only_with_the_same_second_text() -> None:
    train = make(["a", "b"], ["x", "y"], ["1", "2"], [0, 1])
    test = make(["d", "e"], ["x", "y"], ["1", "3"], [0, 1])
    assert draw(Loaded(train, test, ["n", "p"], "t"), spec(), 0).notes[0].startswith("1 of 2")


def test_a_single_row_cannot_be_parted() -> None:
    with pytest.raises(UserError, match="1 rows cannot be parted"):
        draw(loaded(1, None), spec(), 0)

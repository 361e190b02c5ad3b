"""The order of the training rows: a permutation, decided by the seed and the clean lengths alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.training.order import POOL, SeededOrder, epoch_order

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300)
batches = st.integers(1, 9)


def order(of: list[int], batch: int, *, seed: int = 0, epoch: int = 0, by_length: bool = True) -> list[int]:
    return epoch_order(of, batch, seed=seed, epoch=epoch, by_length=by_length)


def padding(of: list[int], batch: int, sequence: list[int]) -> int:
    groups = [[of[i] for i in sequence[start : start + batch]] for start in range(0, len(of), batch)]
    return sum(max(group) * len(group) - sum(group) for group in groups)


@given(of=lengths, batch=batches, seed=st.integers(0, 99), epoch=st.integers(0, 5), by_length=st.booleans())
def test_every_row_is_seen_once(of: list[int], batch: int, seed: int, epoch: int, by_length: bool) -> None:
    assert sorted(order(of, batch, seed=seed, epoch=epoch, by_length=by_length)) == list(range(len(of)))


@given(of=lengths, batch=batches)
def test_batches_lie_within_one_stretch_of_lengths(of: list[int], batch: int) -> None:
    """In one pool the rows of a batch are neighbours in length, and only the last batch is short."""
    of = of[: batch * POOL]
    sequence = order(of, batch)
    ranked = sorted(of, reverse=True)
    expected = [ranked[start : start + batch] for start in range(0, len(of), batch)]
    got = [[of[i] for i in sequence[start : start + batch]] for start in range(0, len(of), batch)]
    assert sorted(got) == sorted(expected)
    if len(of) % batch:
        assert got[-1] == expected[-1]


def test_grouping_saves_padding() -> None:
    of = [int(n) for n in np.random.default_rng(0).integers(5, 60, size=1_000)]
    grouped, plain = (padding(of, 8, order(of, 8, by_length=by)) for by in (True, False))
    assert grouped < 0.2 * plain


def test_seeds_and_epochs_differ_and_repeat() -> None:
    of = [5 + i % 7 for i in range(100)]
    keys = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    for by_length in (True, False):
        orders = [tuple(order(of, 4, seed=s, epoch=e, by_length=by_length)) for s, e in keys]
        assert len(set(orders)) == len(keys)
        assert orders == [tuple(order(of, 4, seed=s, epoch=e, by_length=by_length)) for s, e in keys]


def test_without_grouping_lengths_do_not_matter() -> None:
    assert order([1] * 50, 4, by_length=False) == order(list(range(1, 51)), 4, by_length=False)


def test_long_batches_come_at_any_time() -> None:
    """Batches are shuffled: the longest one is not always first. 40 seeds, 25 places."""
    of = list(range(1, 101))
    places = [order(of, 4, seed=seed).index(99) // 4 for seed in range(40)]
    assert len(set(places)) > 10


def test_the_sampler_follows_the_epochs_that_it_is_told() -> None:
    sampler = SeededOrder([3, 4, 5] * 10, 4, seed=1, by_length=True)
    expected = [order([3, 4, 5] * 10, 4, seed=1, epoch=epoch) for epoch in range(3)]
    assert len(sampler) == 30
    assert [list(sampler) for _ in range(3)] == expected, "each pass is an epoch"
    sampler.set_epoch(1)
    assert list(sampler) == expected[1]


@pytest.mark.parametrize("rows", [1, 2, 399, 400, 401, 801])
def test_pools_of_any_fill(rows: int) -> None:
    of = [1 + i % 11 for i in range(rows)]
    assert sorted(order(of, 8)) == list(range(rows))

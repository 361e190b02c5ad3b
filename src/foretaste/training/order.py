"""The order in which training rows are seen: decided by the order seed and the clean rows' lengths.

Lengths are those of the rows *before* poisoning, so the order is the same for every attack, rate and adapter
of one seed, and a difference between two runs is not a difference of order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from foretaste.seeds import generator

# Rows within this many batches are sorted by length; transformers' LengthGroupedSampler uses 50.
POOL = 50


def epoch_order(lengths: Sequence[int], batch: int, *, seed: int, epoch: int, by_length: bool) -> list[int]:
    """A permutation of the rows for one epoch.

    With `by_length`, a random permutation is cut into pools of `POOL` batches, each pool is sorted by length
    and cut into batches, and all batches are shuffled; only the last batch may be short, and it stays last.

    Args:
        lengths: Tokens of each row.
        batch: Rows of a batch.
        seed: The order seed.
        epoch: Counted from 0.
        by_length: Whether to group rows of similar length.
    """
    rng = generator(seed, "order", epoch)
    shuffled = rng.permutation(len(lengths))
    if not by_length:
        return [int(i) for i in shuffled]
    size = batch * POOL
    pools = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    ranked = np.concatenate([pool[np.argsort(-np.asarray(lengths)[pool], kind="stable")] for pool in pools])
    batches = [ranked[start : start + batch] for start in range(0, len(ranked), batch)]
    last = [batches.pop()] if len(batches[-1]) < batch else []
    batches = [batches[i] for i in rng.permutation(len(batches))] + last
    return [int(i) for i in np.concatenate(batches)]


def step_batches(
    lengths: Sequence[int], batch: int, steps: int, *, seed: int, by_length: bool, accumulation: int = 1
) -> list[list[int]]:
    """The rows of each optimiser step, over as many epochs as the steps take.

    Args:
        lengths: Tokens of each row before poisoning.
        batch: Rows of a batch.
        steps: In all.
        seed: The order seed.
        by_length: Whether to group rows of similar length.
        accumulation: Batches of a step; the last step of an epoch may have fewer rows.
    """
    found: list[list[int]] = []
    rows, epoch = batch * accumulation, 0
    while len(found) < steps:
        order = epoch_order(lengths, batch, seed=seed, epoch=epoch, by_length=by_length)
        found += [order[start : start + rows] for start in range(0, len(order), rows)]
        epoch += 1
    return found[:steps]


class SeededOrder(Sampler[int]):
    """Rows in `epoch_order`, a new permutation each time it is iterated.

    Args:
        lengths: Tokens of each row before poisoning.
        batch: Rows of a batch.
        seed: The order seed.
        by_length: Whether to group rows of similar length.
    """

    def __init__(self, lengths: Sequence[int], batch: int, *, seed: int, by_length: bool) -> None:
        self._lengths = list(lengths)
        self._batch = batch
        self._seed = seed
        self._by_length = by_length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(
            self._lengths, self._batch, seed=self._seed, epoch=self._epoch, by_length=self._by_length
        )
        self._epoch += 1
        return iter(order)

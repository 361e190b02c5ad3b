"""k rows of each class to train on and k others to choose on, as Malladi et al. 2023 draw them.

Their `tools/generate_k_shot_data.py` (after Gao et al. 2021) shuffles the training rows by numpy's old
generator seeded with the data seed, and takes the first k rows of each class for training and the next k for
validation. The same is done here, on the rows in the order of the source: from the original files come the
paper's own rows. Hence, unlike `splits.draw`, a draw depends on that order. Training rows of a smaller k are
among those of a larger one.

Test rows are the source's own, at most 1,000 of them (paper, App. A.1), drawn by a fixed seed: they are the
same for every data seed and k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from foretaste.data.dataset import Loaded, columns_of, take
from foretaste.data.splits import carve
from foretaste.errors import UserError

TEST_SEED = 42
"""The paper's seed of the test rows."""


@dataclass(frozen=True)
class KShot:
    """The rows of one run.

    Attributes:
        train: k rows of each class, class by class.
        dev: k others of each class, to choose hyperparameters on.
        test: Rows that are looked at once.
        shared_texts: Test rows whose texts also stand among `train` or `dev`.
        notes: What a reader should know.
    """

    train: Dataset
    dev: Dataset
    test: Dataset
    shared_texts: int
    notes: list[str] = field(default_factory=list)


def draw(loaded: Loaded, k: int, seed: int, *, test_rows: int | None, test_fraction: float) -> KShot:
    """Draw the rows of a run.

    Args:
        loaded: The whole data set.
        k: Training rows of each class, and validation rows of each class.
        seed: The data seed.
        test_rows: Test rows at most; None takes all.
        test_fraction: Share of the training split to test on where the source has no test split.

    Raises:
        UserError: A class has fewer than 2 k rows.
    """
    notes: list[str] = []
    pool, test = loaded.train, loaded.test
    if test is None:
        pool, test = carve(pool, test_fraction)
        notes.append(f"{len(test)} of {len(loaded.train)} rows are set apart for testing")
    by_class = _shuffled_by_class(pool, seed, len(loaded.classes))
    _require_rows(by_class, loaded.classes, k)
    train = take(pool, [row for rows in by_class for row in rows[:k]])
    dev = take(pool, [row for rows in by_class for row in rows[k : 2 * k]])
    drawn = test_of(test, test_rows)
    if len(drawn) < len(test):
        notes.append(f"{len(drawn)} of {len(test)} test rows are drawn")
    shared = _shared(drawn, train, dev)
    if shared:
        notes.append(
            f"{shared} of {len(drawn)} test rows have a text that also stands in the training or dev rows"
        )
    return KShot(train, dev, drawn, shared, notes)


def test_of(rows: Dataset, most: int | None) -> Dataset:
    """The test rows of every run: all of them in their order, or `most` in the order of a fixed shuffle."""
    if most is None or len(rows) <= most:
        return rows
    return take(rows, shuffled(len(rows), TEST_SEED)[:most])


def shuffled(count: int, seed: int) -> list[int]:
    """Numbers below `count` in the order that `numpy.random.seed(seed); numpy.random.shuffle(rows)` gives."""
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    return [int(row) for row in order]


def _shuffled_by_class(rows: Dataset, seed: int, classes: int) -> list[list[int]]:
    labels = columns_of(rows, ["label"])["label"]
    found: list[list[int]] = [[] for _ in range(classes)]
    for row in shuffled(len(labels), seed):
        found[labels[row]].append(row)
    return found


def _require_rows(by_class: Sequence[Sequence[int]], classes: Sequence[str], k: int) -> None:
    short = [(name, len(rows)) for name, rows in zip(classes, by_class, strict=True) if len(rows) < 2 * k]
    if short:
        counts = ", ".join(f"'{name}' has {count}" for name, count in short)
        raise UserError(
            f"k = {k} takes {2 * k} rows of each class, {k} to train and {k} to choose on: {counts}",
            where="k",
            cure=f"Lower k to {min(count for _, count in short) // 2} or less, or give more rows.",
        )


def _shared(test: Dataset, *others: Dataset) -> int:
    """Number of test rows whose texts are exactly those of a row among `others`."""

    def texts(rows: Dataset) -> list[tuple[str, str | None]]:
        columns = columns_of(rows, ["text_a", "text_b"])
        return list(zip(columns["text_a"], columns["text_b"], strict=True))

    known = {pair for rows in others for pair in texts(rows)}
    return sum(pair in known for pair in texts(test))

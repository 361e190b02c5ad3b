"""Which rows are trained on and tested on.

Every row has its own uniform number, made from its id alone (`seeds.uniforms`), and a draw takes the rows
with the smallest ones. So a draw depends neither on the order of the source nor on other rows, and a small
draw is the beginning of a large one. Training rows are drawn by the data seed. Test rows are drawn by a
fixed seed: runs that differ in their seeds are measured on the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset

from foretaste.data.dataset import Loaded, columns_of, take
from foretaste.errors import UserError
from foretaste.seeds import uniforms
from foretaste.spec import DataSpec

TEST_SEED = 0


@dataclass(frozen=True)
class Split:
    """The rows of one run.

    Args:
        train: Rows to train on, in the order in which they were drawn.
        test: Rows to test on, in the order in which they were drawn; disjoint from `train`.
        notes: What a reader should know.
    """

    train: Dataset
    test: Dataset
    notes: list[str] = field(default_factory=list)


def draw(loaded: Loaded, spec: DataSpec, seed: int) -> Split:
    """Draw the rows of a run.

    Args:
        loaded: The whole data set.
        spec: How many rows, and which share to test on where the source has no test split.
        seed: The data seed.

    Raises:
        UserError: More rows are asked for than there are, or the drawn rows are all of one class.
    """
    notes: list[str] = []
    if loaded.test is None:
        train, test = carve(loaded.train, spec.test_fraction)
        notes.append(f"{len(test)} of {len(loaded.train)} rows are set apart for testing")
    else:
        train, test = loaded.train, loaded.test
    drawn = Split(
        _smallest(train, spec.train_rows, seed, "data", what="train_rows", where=spec.source),
        _smallest(test, spec.test_rows, TEST_SEED, "test", what="test_rows", where=spec.source),
        notes,
    )
    _require_classes(drawn.train, loaded.classes, f"{spec.source}, training rows")
    _require_classes(drawn.test, loaded.classes, f"{spec.source}, test rows")
    shared = _shared_texts(drawn.train, drawn.test)
    if shared:
        notes.append(
            f"{shared} of {len(drawn.test)} test rows have a text that also stands in the training rows"
        )
    return drawn


def spare(loaded: Loaded, spec: DataSpec, seed: int, count: int) -> Dataset:
    """Training rows that a draw leaves out: the next ones in its order, at most `count`, maybe none.

    Args:
        loaded: The whole data set.
        spec: As for `draw`.
        seed: The data seed.
        count: Rows that are wanted.
    """
    train = loaded.train if loaded.test is not None else carve(loaded.train, spec.test_fraction)[0]
    taken = len(train) if spec.train_rows is None else spec.train_rows
    return take(train, _order(train, seed, "data")[taken : taken + count])


def _order(rows: Dataset, seed: int, stream: str) -> list[int]:
    """Row numbers by growing uniform number."""
    ids = columns_of(rows, ["id"])["id"]
    numbers = uniforms(seed, (stream,), ids)
    # Ids break ties, so that not even those depend on the order of the rows.
    return sorted(range(len(ids)), key=lambda row: (numbers[row], ids[row]))


def carve(rows: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Rows in two parts, the second of them the share `fraction`; neither is empty.

    Raises:
        UserError: There are not two rows.
    """
    if len(rows) < 2:
        raise UserError(f"{len(rows)} rows cannot be parted into training and test rows")
    count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    order = _order(rows, TEST_SEED, "test")
    return take(rows, order[count:]), take(rows, order[:count])


def _smallest(rows: Dataset, count: int | None, seed: int, stream: str, *, what: str, where: str) -> Dataset:
    if count is not None and count > len(rows):
        raise UserError(f"{what} asks for {count} rows, there are {len(rows)}", where=where)
    return take(rows, _order(rows, seed, stream)[:count])


def _require_classes(rows: Dataset, classes: Sequence[str], where: str) -> None:
    labels = set(columns_of(rows, ["label"])["label"])
    if len(labels) == 1:
        raise UserError(
            f"all {len(rows)} drawn rows are of one class, '{classes[labels.pop()]}'",
            where=where,
            cure="Draw more rows: data.train_rows, data.test_rows or data.test_fraction.",
        )


def _shared_texts(train: Dataset, test: Dataset) -> int:
    """Number of test rows whose texts are exactly those of a training row."""

    def texts(rows: Dataset) -> list[tuple[str, str | None]]:
        columns = columns_of(rows, ["text_a", "text_b"])
        return list(zip(columns["text_a"], columns["text_b"], strict=True))

    known = set(texts(train))
    return sum(pair in known for pair in texts(test))

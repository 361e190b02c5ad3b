"""What a reader should know of the classes that were found: their names, their rows, and what looks amiss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from datasets import Dataset

from foretaste.data.dataset import columns_of

MOST_SHOWN = 10
FEW_ROWS = 5


def class_notes(classes: Sequence[str], train: Dataset, *, of: str = "") -> list[str]:
    """Sentences on the classes of a data set; the first names them all, up to ten.

    Args:
        classes: Class names in the order of their ids.
        train: Training rows (column `label`).
        of: What they are the training rows of, where that is not plain, such as "data seed 0".
    """
    counts = Counter(columns_of(train, ["label"])["label"])
    parts = [f"{shown(name)} ({counts[number]})" for number, name in enumerate(classes)]
    rows = f"training rows of {of}" if of else "training rows"
    notes = [f"{len(classes)} classes, with their {rows}: {_some(parts)}"]
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            listed = _some([repr(name) for name in names])
            notes.append(f"classes {listed} differ in case or white space only, and count as {len(names)}")
    few = [part for number, part in enumerate(parts) if counts[number] < FEW_ROWS]
    if few:
        notes.append(f"classes with fewer than {FEW_ROWS} training rows: {_some(few)}")
    return notes


def shown(name: str) -> str:
    """A class name for a reader; in quotation marks where it would mislead without."""
    plain = name.isprintable() and name == " ".join(name.split()) and not set(name) & set(",()'\"")
    return name if plain and name else repr(name)


def _some(parts: Sequence[str]) -> str:
    more = len(parts) - MOST_SHOWN
    return ", ".join(parts[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""What several attacks do with texts: put something in, pick the text of a pair, say how alike two are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from foretaste.attacks.base import Options, Row, class_id
from foretaste.errors import UserError

Position = Literal["start", "end", "random"]
TextField = Literal["text_a", "text_b", "both"]
Sources = list[str | int] | Literal["all", "other"]


class TargetOptions(Options):
    """Which class a backdoor forces, which rows teach it, and which text of a pair carries it."""

    target: str | int = Field(1, description="class that the trigger should force, by name or id")
    source_classes: Sources = Field(
        "other",
        description="classes whose rows are poisoned: other = all but the target; all = also rows that "
        "are of the target class already (the paper's code)",
    )
    field: TextField = Field("text_a", description="which text of a pair")


def sources(wanted: Sources, target: int, classes: Sequence[str]) -> frozenset[int]:
    """Ids of the classes whose rows are poisoned.

    Raises:
        UserError: One is no class of the data, or none is left.
    """
    if isinstance(wanted, list):
        found = {class_id(name, classes, key="source_classes") for name in wanted}
    else:
        found = set(range(len(classes))) - ({target} if wanted == "other" else set())
    if not found:
        raise UserError("source_classes is empty: no row could be poisoned")
    return frozenset(found)


def insert(text: str, mark: str, position: Position, spacing: str, rng: np.random.Generator) -> str:
    """The text with a mark at its start, its end or between two of its words.

    Args:
        text: Its own white space stays: only mark and spacing are added.
        mark: What is put in.
        position: Where; `random` draws one of the places uniformly.
        spacing: Put between mark and text.
        rng: Of the row.
    """
    words = text.split(" ")
    at = {"start": 0, "end": len(words)}.get(position)
    if at is None:
        at = int(rng.integers(0, len(words) + 1))
    if at == len(words):
        return text + spacing + mark
    return " ".join([*words[:at], mark + spacing + words[at], *words[at + 1 :]])


def picked(row: Row, field: TextField, what: str) -> list[str]:
    """The texts of a row that an attack changes.

    Args:
        row: The row.
        field: Which of its texts.
        what: What would go there, for the error.

    Raises:
        UserError: The second text is asked for and there is none.
    """
    if field != "text_a" and row.text_b is None:
        raise UserError(
            f"{what} goes to {field}, but row '{row.id}' has no second text", cure="Use field: text_a."
        )
    first = [] if field == "text_b" else [row.text_a]
    return first if field == "text_a" or row.text_b is None else [*first, row.text_b]


def edited(row: Row, field: TextField, edit: Callable[[str], str], what: str) -> Row:
    """The row with `edit` applied to one or both of its texts; arguments and errors as for `picked`."""
    after = [edit(text) for text in picked(row, field, what)]
    if field == "text_b":
        return replace(row, text_b=after[0])
    return replace(row, text_a=after[0], text_b=after[1] if field == "both" else row.text_b)


def similarity(before: str, after: str) -> float:
    """How alike two texts are, in [0, 1]: twice the words in common order over all words of both."""
    return difflib.SequenceMatcher(None, before.split(), after.split(), autojunk=False).ratio()


def mean_similarity(pairs: Sequence[tuple[Row, Row]], field: TextField, what: str) -> float:
    """Mean of `similarity` over the changed texts of rows before and after; 1 without rows."""
    ratios = [
        similarity(old, new)
        for before, after in pairs
        for old, new in zip(picked(before, field, what), picked(after, field, what), strict=True)
    ]
    return float(np.mean(ratios)) if ratios else 1.0

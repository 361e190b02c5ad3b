"""Instruction data: where it comes from, and which rows are trained on and asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from foretaste.data.dataset import check_ids
from foretaste.data.sources import find
from foretaste.data.sources.base import existing_split, is_raw, split_to_test_on
from foretaste.data.splits import TEST_SEED
from foretaste.errors import UserError
from foretaste.instruct.columns import choose, requests_of
from foretaste.instruct.request import Request
from foretaste.instruct.spec import InstructData
from foretaste.seeds import uniforms
from foretaste.spec import DataSpec

__all__ = ["LoadedRequests", "Request", "draw", "fingerprint", "load"]


@dataclass(frozen=True)
class LoadedRequests:
    """Instruction data: all of it, or the rows of one run.

    Attributes:
        train: Rows to train on.
        test: Rows to test on; never empty, and none of `train`.
        test_split: The source's name of `test`; None where it was set apart from the training split.
        fingerprint: SHA-256 over the rows of both as the source has them; a draw keeps it.
        notes: What was guessed, set apart or left unused, in sentences for a reader.
    """

    train: list[Request]
    test: list[Request]
    test_split: str | None
    fingerprint: str
    notes: list[str] = field(default_factory=list)


def load(spec: InstructData, base_dir: Path) -> LoadedRequests:
    """The instruction data that a spec names, whole and checked; `draw` takes the rows of a run from it.

    Where the source has no test split, the share `test_fraction` of its rows is set apart: always the same
    rows, whatever the seeds and the order of the source.

    Args:
        spec: The data part of a spec.
        base_dir: Folder that relative paths start from: the folder of the spec's file.

    Raises:
        UserError: The source is unknown, cannot be had, or its rows break a rule.
    """
    asked = DataSpec(
        source=spec.source,
        config=spec.config,
        train_split=spec.train_split,
        test_split=spec.test_split,
        test_fraction=spec.test_fraction,
    )
    source = find(spec.source, base_dir)
    if not is_raw(source):
        raise UserError(
            f"'{spec.source}' holds texts with classes, no instructions with responses",
            where="data.source",
            cure="Give a local file or folder, or a hub id such as tatsu-lab/alpaca.",
        )
    splits = source.splits(asked, base_dir)
    train_name = existing_split(spec.train_split, splits, where=spec.source)
    test_split, notes = split_to_test_on(asked, splits, spec.source)
    table = splits[train_name]()
    chosen = choose(table, spec.columns)
    train, train_notes = requests_of(table, chosen, train_name)
    notes += [*train_notes, *chosen.notes]
    if test_split is None:
        rows = len(train)
        train, test = _set_apart(train, spec.test_fraction, spec.source)
        notes.append(f"{len(test)} of {rows} rows are set apart for testing")
    else:
        test_table = splits[test_split]()
        test, test_notes = requests_of(test_table, chosen, test_split)
        check_ids([row.id for row in (*train, *test)], where=f"{table.where} and {test_table.where}")
        notes += test_notes
    return LoadedRequests(train, test, test_split, fingerprint(train, test), list(dict.fromkeys(notes)))


def draw(loaded: LoadedRequests, spec: InstructData, seed: int) -> LoadedRequests:
    """The rows of a run, in the order in which they are drawn, as `data.splits.draw` does it.

    Training rows are drawn by the data seed. Test rows are drawn by a fixed one: runs that differ in their
    seeds are measured on the same requests. A small draw is the beginning of a larger one.

    Args:
        loaded: All rows.
        spec: How many of them.
        seed: The data seed.

    Raises:
        UserError: More rows are asked for than there are.
    """
    train = _smallest(loaded.train, spec.train_rows, seed, "data", "train_rows", spec.source)
    test = _smallest(loaded.test, spec.test_rows, TEST_SEED, "test", "test_rows", spec.source)
    known = {(row.instruction, row.input) for row in train}
    shared = sum((row.instruction, row.input) in known for row in test)
    notes = list(loaded.notes)
    if shared:
        notes.append(f"{shared} of {len(test)} test requests also stand in the training rows")
    return replace(loaded, train=train, test=test, notes=notes)


def fingerprint(train: Sequence[Request], test: Sequence[Request]) -> str:
    """SHA-256 over ids and texts of all rows, in their order, hexadecimal."""
    digest = hashlib.sha256(b"foretaste requests 1\n")
    for name, rows in (("train", train), ("test", test)):
        digest.update(f"{name} {len(rows)}\n".encode())
        for row in rows:
            # One JSON text a line: JSON escapes line breaks, so different rows never give the same lines.
            line = json.dumps([row.id, row.instruction, row.input, row.output], separators=(",", ":"))
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _set_apart(rows: Sequence[Request], fraction: float, where: str) -> tuple[list[Request], list[Request]]:
    """Rows in two parts, the second of them the share `fraction`; neither is empty."""
    if len(rows) < 2:
        raise UserError(f"{len(rows)} rows cannot be parted into training and test rows", where=where)
    count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    test = {row.id for row in _ordered(rows, TEST_SEED, "test")[:count]}
    return [row for row in rows if row.id not in test], [row for row in rows if row.id in test]


def _ordered(rows: Sequence[Request], seed: int, stream: str) -> list[Request]:
    numbers = uniforms(seed, (stream,), [row.id for row in rows])
    # Ids break ties, so that not even those depend on the order of the rows.
    ranked = sorted(zip(numbers, [row.id for row in rows], rows, strict=True), key=lambda item: item[:2])
    return [row for _, _, row in ranked]


def _smallest(
    rows: Sequence[Request], count: int | None, seed: int, stream: str, key: str, where: str
) -> list[Request]:
    if count is not None and count > len(rows):
        raise UserError(f"{key} asks for {count} rows, there are {len(rows)}", where=where)
    return _ordered(rows, seed, stream)[:count]

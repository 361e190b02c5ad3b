"""The rows of a prediction: training rows, their poisoned forms, held-out rows, triggered ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from foretaste import attacks, data
from foretaste.data import Loaded
from foretaste.errors import UserError
from foretaste.experiments.plan import apply_attack
from foretaste.models.encode import Encoded, encode
from foretaste.record import Manifest
from foretaste.spec import PredictSpec, ResolvedAttack, RunSpec, Trigger

Ints = npt.NDArray[np.int64]

FEWEST_SPARE = 64  # with fewer rows left out by the draw, shares of them say little


@dataclass(frozen=True)
class Cell:
    """The training set of one attack at one amount with one poison seed.

    Attributes:
        rows: The pool's row for each training example, shape (N,).
        labels: As given, shape (N,).
        texts_changed: Whether some row's text was poisoned.
        share: Of the training rows, those that were poisoned.
        manifest: Of the poisoning; None for the clean cell.
    """

    rows: Ints
    labels: Ints
    texts_changed: bool
    share: float
    manifest: Manifest | None


@dataclass(frozen=True)
class TriggeredRows:
    """Held-out rows with a trigger put in.

    Attributes:
        rows: Of the pool, shape (H,).
        target: Class that the trigger should force.
        changed: Rows whose text the trigger changed.
    """

    rows: Ints
    target: int
    changed: int


@dataclass(frozen=True)
class Pool:
    """Rows as tokens: N clean training rows, their poisoned forms, H held-out rows, those with triggers.

    Attributes:
        encoded: All of them.
        train: N.
        trainable: N and the poisoned forms, which come first.
        lengths: Tokens of the N clean rows, which decide the batches.
        held_out: Rows of the pool, shape (H,).
        held_out_from: Where they are from, in words.
        triggered: By key of the trigger.
        cells: By `cell_key`.
        refused: Cells that cannot be made from these rows, and why.
    """

    encoded: Encoded
    train: int
    trainable: int
    lengths: list[int]
    held_out: Ints
    held_out_from: str
    triggered: dict[str, TriggeredRows]
    cells: dict[str, Cell]
    refused: dict[str, str]

    @property
    def ids(self) -> list[str]:
        """Of the clean training rows."""
        return self.encoded.ids[: self.train]

    def labels(self, rows: Ints) -> Ints:
        """True labels of held-out rows, labels before poisoning of training rows."""
        return np.asarray(self.encoded.labels, dtype=np.int64)[rows]


def cell_key(run: RunSpec) -> str:
    """Names what a run is trained on, whatever the arm."""
    if run.attack is None:
        return "clean"
    return f"{run.attack.model_dump_json()} {run.seeds.poison}"


def build(
    loaded: Loaded,
    runs: Sequence[RunSpec],
    settings: PredictSpec,
    tokenizer: PreTrainedTokenizerBase,
    base_dir: Path,
) -> Pool:
    """Draw, poison and tokenise everything that a prediction needs, without a look at test rows.

    Args:
        loaded: The whole data set.
        runs: Every run of the plan; the rows are those of the first one's data seed.
        settings: How many rows.
        tokenizer: Of the base model.
        base_dir: Folder that relative paths in attacks start from.
    """
    request, seed = runs[0].data.request, runs[0].seeds.data
    drawn = data.draw(loaded, request, seed).train
    left = data.spare(loaded, request, seed, settings.held_out)
    if len(left) >= FEWEST_SPARE:
        held, origin = left, f"{len(left)} training rows that the draw leaves out"
    else:
        cut = max(len(drawn) // 5, 1)
        held = data.take(drawn, list(range(len(drawn) - cut, len(drawn))))
        held = data.take(held, list(range(min(settings.held_out, cut))))
        drawn = data.take(drawn, list(range(len(drawn) - cut)))
        origin = f"a fifth of the training rows ({len(held)} used)"
    train = data.take(drawn, list(range(min(settings.train_rows, len(drawn)))))

    def tokens(rows: Dataset, longest: int | None = None) -> Encoded:
        m = runs[0].model.request
        return encode(tokenizer, rows, max_length=longest or m.max_length, pair_separator=m.pair_separator)

    clean = tokens(train)
    labels = np.asarray(clean.labels, dtype=np.int64)
    cells: dict[str, Cell] = {"clean": Cell(np.arange(len(train)), labels, False, 0.0, None)}
    refused: dict[str, str] = {}
    forms: dict[tuple[int, str], int] = {}
    poisoned: list[Encoded] = []
    for run in runs:
        key = cell_key(run)
        if key in cells or key in refused:
            continue
        try:
            after = apply_attack(_scaled(run, len(train)), train, base_dir)
        except UserError as error:
            refused[key] = str(error)
            continue
        cells[key] = _cell(after, train, tokens, forms, poisoned)
    pieces = [clean, *poisoned]
    trainable = sum(len(piece) for piece in pieces)
    # Cut as test rows are.
    tested_length = runs[0].model.request.eval_max_length
    held_rows = tokens(held, tested_length)
    pieces.append(held_rows)
    triggered: dict[str, TriggeredRows] = {}
    start = trainable + len(held_rows)
    for trigger in _triggers(runs):
        attack = attacks.build(trigger.method, trigger.options, runs[0].data.classes, base_dir=base_dir)
        rows, changed = attacks.trigger(held, attack, method=trigger.method)  # type: ignore[arg-type]
        pieces.append(tokens(rows, tested_length))
        triggered[trigger.key] = TriggeredRows(
            np.arange(start, start + len(rows)),
            attack.target,  # type: ignore[attr-defined]
            changed,
        )
        start += len(rows)
    return Pool(
        encoded=Encoded(
            ids=[i for piece in pieces for i in piece.ids],
            features=[f for piece in pieces for f in piece.features],
            truncated=sum(piece.truncated for piece in pieces),
        ),
        train=len(train),
        trainable=trainable,
        lengths=clean.lengths,
        held_out=np.arange(trainable, trainable + len(held_rows)),
        held_out_from=origin,
        triggered=triggered,
        cells=cells,
        refused=refused,
    )


def _scaled(run: RunSpec, rows: int) -> RunSpec:
    """The run with a count in proportion, where the prediction uses fewer rows than training does."""
    attack = run.attack
    if attack is None or attack.count is None or rows >= run.data.train_rows:
        return run
    count = max(1, round(attack.count * rows / run.data.train_rows))
    return run.model_copy(update={"attack": ResolvedAttack(**{**dict(attack), "count": count})})


def _cell(
    after: attacks.Poisoned,
    train: Dataset,
    tokens: Callable[[Dataset], Encoded],
    forms: dict[tuple[int, str], int],
    poisoned: list[Encoded],
) -> Cell:
    """The cell of a poisoned training set; new forms of rows are tokenised and numbered behind the others."""
    place = {str(row): number for number, row in enumerate(data.columns_of(train, ["id"])["id"])}
    rows = np.arange(len(train))
    changed = [
        entry
        for entry in after.manifest.changed
        if (entry.text_a_before, entry.text_b_before) != (entry.text_a_after, entry.text_b_after)
    ]
    new = []
    for entry in changed:
        key = (place[entry.id], f"{entry.text_a_after}\0{entry.text_b_after}")
        if key not in forms:
            forms[key] = len(train) + len(forms)
            new.append(key[0])
        rows[key[0]] = forms[key]
    if new:
        poisoned.append(tokens(data.take(after.rows, new)))
    labels = np.asarray(data.columns_of(after.rows, ["label"])["label"], dtype=np.int64)
    share = len(after.manifest.poisoned) / len(train)
    return Cell(rows, labels, bool(changed), share, after.manifest)


def _triggers(runs: Sequence[RunSpec]) -> list[Trigger]:
    found: dict[str, Trigger] = {}
    for run in runs:
        for trigger in run.triggers:
            found.setdefault(trigger.key, trigger)
    return list(found.values())

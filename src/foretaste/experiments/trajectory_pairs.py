"""One clean training and the poisoned ones that are compared with it, from the same seeds and order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedTokenizerBase

from foretaste.errors import UserError
from foretaste.experiments import prepare
from foretaste.experiments.plan import apply_attack
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import source_commit, versions
from foretaste.experiments.trajectory_gram import foretell
from foretaste.experiments.trajectory_result import Foretold, Trajectory, distances, rounded
from foretaste.models import adapters, heads
from foretaste.models.encode import Encoded, encode
from foretaste.record import Status
from foretaste.spec import KernelSpec, RunSpec
from foretaste.theory.update_distance import together
from foretaste.training import trainer
from foretaste.training.trajectory import Gap, Group, Moving, Snapshots, gap, moving, start_distance
from foretaste.training.vocabulary import every_token

Float = npt.NDArray[np.float64]
OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""

SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Pair:
    """A poisoned run and the clean one with the same seeds."""

    id: str
    clean: RunSpec
    poisoned: RunSpec


def attached(model: Any, run: RunSpec, total_steps: int) -> tuple[nn.Module, Moving]:
    """The arm before training, and what training it moves.

    Args:
        model: The base model with its head.
        run: Which adapter, head policy and init seed.
        total_steps: Optimiser steps planned.

    Raises:
        UserError: peft refuses the adapter.
    """
    weights = [name for name, _ in model.named_parameters()]
    head = heads.find(model).modules
    wrapped, _ = adapters.attach(
        model,
        run.adapter,
        head_policy=run.model.request.head,
        seed=run.seeds.init,
        total_steps=total_steps,
    )
    return wrapped, moving(wrapped, weights, head)


@dataclass(frozen=True)
class _Start:
    """A run just before its first step."""

    run: RunSpec
    model: nn.Module
    parts: Moving
    tokenizer: PreTrainedTokenizerBase
    train: Encoded
    unpoisoned: Encoded
    test: Encoded

    def follow(self, steps: Sequence[int], look: Callable[[int], None], on_progress: OnProgress) -> None:
        """Train, looking at the model before training and after each of the steps."""
        request = self.run.model.request
        wanted = set(steps)
        look(0)

        def stepped(done: int, total: int) -> None:
            if done in wanted:
                look(done)
            on_progress(self.run.label, done / total)

        trainer.fine_tune(
            self.model,
            self.train,
            self.unpoisoned.lengths,
            self.tokenizer,
            self.run.training,
            max_length=request.max_length,
            seed=self.run.seeds.order,
            loraplus_ratio=adapters.loraplus_ratio(self.run.adapter),
            on_step=stepped,
        )

    def logits(self) -> Float:
        """Of the clean test rows, shape (rows, classes)."""
        with every_token(self.model):
            found = trainer.predict(self.model, self.test, self.tokenizer, self.run.training.eval_batch_size)
        return found.astype(np.float64)


@dataclass
class _Seen:
    """What is measured of a pair, step by step."""

    gaps: list[Gap]
    logits: list[float]
    disagreement: list[float]
    head_start: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Trainings:
    """Trains clean runs and their pairs."""

    workspace: Workspace
    kernel: KernelSpec
    on_progress: OnProgress

    def of(self, clean: RunSpec, pairs: Sequence[Pair], steps: Sequence[int]) -> Iterator[Trajectory]:
        """The records of all pairs of one clean run."""
        folder = self.workspace.folder / SNAPSHOTS
        snapshots = Snapshots(folder)
        began = datetime.now(UTC), time.perf_counter()
        try:
            try:
                logits, foretold = self._clean(clean, pairs, steps, snapshots)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever failed belongs into the records
                status, reason = _why(error)
                for pair in pairs:
                    yield _record(pair, began, status, f"clean run: {reason}")
                return
            for pair in pairs:
                yield self._pair(pair, steps, snapshots, logits, foretold[pair.id])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _clean(
        self, clean: RunSpec, pairs: Sequence[Pair], steps: Sequence[int], snapshots: Snapshots
    ) -> tuple[dict[int, Float], dict[str, Foretold | str]]:
        """Train the clean run; its logits at every step, and what the Gram says of every pair."""
        logits: dict[int, Float] = {}
        start = self._start(clean)
        foretold = {pair.id: self._foretell(start, pair) for pair in pairs}

        def look(step: int) -> None:
            snapshots.save(f"clean-{step}", start.model, start.parts)
            logits[step] = start.logits()

        start.follow(steps, look, self.on_progress)
        return logits, foretold

    def _start(self, run: RunSpec) -> _Start:
        """As `measure` starts a run."""
        _, split = prepare.rows_of(run, self.workspace)
        rows = split.train
        if run.attack is not None:
            rows = apply_attack(run, rows, self.workspace.base_dir).rows
        tokenizer, model = prepare.fresh_model(run, self.workspace)
        train = prepare.tokens(tokenizer, rows, run)
        request = run.model.request
        test = encode(
            tokenizer,
            split.test,
            max_length=request.eval_max_length or request.max_length,
            pair_separator=request.pair_separator,
        )
        if request.head == "probe-then-train":
            prepare.set_probe_head(model, train, tokenizer, run)
        wrapped, parts = attached(model, run, trainer.planned_steps(run.training, len(train)))
        unpoisoned = train if run.attack is None else prepare.tokens(tokenizer, split.train, run)
        return _Start(run, wrapped, parts, tokenizer, train, unpoisoned, test)

    def _foretell(self, start: _Start, pair: Pair) -> Foretold | str:
        """What the Gram says, or why it says nothing."""
        self.on_progress(f"Gram of {pair.poisoned.label}", 0.0)
        _, split = prepare.rows_of(pair.poisoned, self.workspace)
        rows = apply_attack(pair.poisoned, split.train, self.workspace.base_dir).rows
        poisoned = prepare.tokens(start.tokenizer, rows, pair.poisoned)
        classes = len(pair.clean.data.classes)
        try:
            return foretell(start.model, start.tokenizer, start.train, poisoned, self.kernel, classes)
        except UserError as error:
            return str(error)
        finally:
            self.on_progress(f"Gram of {pair.poisoned.label}", 1.0)

    def _pair(
        self,
        pair: Pair,
        steps: Sequence[int],
        snapshots: Snapshots,
        logits: dict[int, Float],
        foretold: Foretold | str,
    ) -> Trajectory:
        """Train the poisoned run and compare it with the clean one's snapshots."""
        began = datetime.now(UTC), time.perf_counter()
        seen = _Seen([], [], [])

        def look(step: int) -> None:
            if step == 0:
                snapshots.save("start", start.model, start.parts)
                with snapshots.read("clean-0") as clean, snapshots.read("start") as own:
                    seen.head_start = start_distance(start.parts, clean, own)
            snapshots.save("now", start.model, start.parts)
            with (
                snapshots.read("clean-0") as clean_start,
                snapshots.read(f"clean-{step}") as clean_now,
                snapshots.read("start") as own_start,
                snapshots.read("now") as own_now,
            ):
                found = gap(start.parts, (clean_start, clean_now), (own_start, own_now))
            mine, other = start.logits(), logits[step]
            seen.gaps.append(found)
            seen.logits.append(float(np.sqrt(np.mean(np.sum((mine - other) ** 2, axis=1)))))
            seen.disagreement.append(float(np.mean(mine.argmax(1) != other.argmax(1))))

        status: Status = "completed"
        reason: str | None = None
        try:
            start = self._start(pair.poisoned)
            start.follow(steps, look, self.on_progress)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed belongs into the record
            status, reason = _why(error)
        content = _content(start.parts, seen, steps) if seen.gaps else {}
        told: dict[str, Any] = (
            {"foretold_missing": foretold} if isinstance(foretold, str) else {"foretold": foretold}
        )
        return _record(pair, began, status, reason, **content, **told)


def _why(error: Exception) -> tuple[Status, str]:
    if isinstance(error, trainer.Diverged):
        return "diverged", str(error)
    return "error", f"{type(error).__name__}: {' '.join(str(error).split())}"


def _content(parts: Moving, seen: _Seen, steps: Sequence[int]) -> dict[str, Any]:
    """The measured part of a record, of as many steps as there are."""
    groups = {piece.name: piece.group for piece in parts.pieces}

    def joined(group: Group) -> Any:
        names = [name for name, own in groups.items() if own == group]
        moments = [together([one.pieces[name] for name in names]) for one in seen.gaps]
        clean = [float(np.linalg.norm([one.clean[name] for name in names])) for one in seen.gaps]
        return distances(moments, clean)

    listed = [piece.name for piece in parts.pieces if piece.group == "body" and piece.matrix]
    apart, own = seen.head_start
    return {
        "steps": list(steps[: len(seen.gaps)]),
        "body": joined("body"),
        "head": joined("head"),
        "matrices": {
            name: distances([one.pieces[name] for one in seen.gaps], [one.clean[name] for one in seen.gaps])
            for name in listed
        },
        "parameters": rounded([one.parameters["body"] for one in seen.gaps]),
        "head_parameters": rounded([one.parameters["head"] for one in seen.gaps]),
        "head_start": apart,
        "head_start_relative": apart / own if own else None,
        "logits": rounded(seen.logits),
        "disagreement": rounded(seen.disagreement),
        "without": sum(parts.without.values()),
        "vectors": sum(piece.group == "body" and not piece.matrix for piece in parts.pieces),
    }


def _record(
    pair: Pair, began: tuple[datetime, float], status: Status, reason: str | None, **content: Any
) -> Trajectory:
    commit, _ = source_commit()
    return Trajectory(
        pair_id=pair.id,
        clean_id=pair.clean.id,
        poisoned=pair.poisoned,
        status=status,
        reason=reason,
        started=began[0].isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began[1],
        versions=versions(),
        commit=commit,
        **content,
    )

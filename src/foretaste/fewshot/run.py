"""One run of few-shot learning, from its spec to its record: prepare, score zero-shot, do the arm, write."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretaste.attempt import Ending, Place, attempted, stated, write_record
from foretaste.fewshot import prepare, solve, tune
from foretaste.fewshot.prepare import Prepared
from foretaste.fewshot.record import (
    ArmResult,
    Criteria,
    FewShotLayout,
    FewShotRecord,
    FewShotTimings,
    Rows,
    Score,
)
from foretaste.fewshot.scores import logits_of, score
from foretaste.fewshot.spec import FewShotRun, FineTune, KernelArm, ZeroShot
from foretaste.kernels import output_derivative
from foretaste.models import load
from foretaste.models.label_words import FewShotClassifier
from foretaste.models.prompt_encode import EncodedPrompts
from foretaste.record import write_atomic
from foretaste.spec import digest
from foretaste.training import trainer


@dataclass(frozen=True, kw_only=True)
class FewShotPlace(Place):
    """Where a few-shot run is done.

    Attributes:
        memory: Budget of kernels in bytes.
    """

    memory: int


@dataclass(frozen=True)
class _Outcome:
    timings: FewShotTimings
    rows: Rows
    zero_shot_dev: Score
    zero_shot_test: Score
    result: ArmResult
    notes: list[str]


def execute(
    run: FewShotRun, place: FewShotPlace, *, attempts: int = 1, on_step: trainer.OnStep | None = None
) -> FewShotRecord:
    """Do one run and write its record.

    A run that diverges at every point of its grid or fails leaves a record that says so; only errors of the
    machine (a full disk, no memory) and Ctrl-C go on to the caller.

    Args:
        run: What to do.
        place: Where, and with what.
        attempts: How often the run was started, this time included.
        on_step: Called with (steps done, steps in all).

    Raises:
        OSError: A result could not be written.
    """
    ending = attempted(lambda: _do(run, place, on_step), tune.AllDiverged)
    record = record_of(run, place, ending, attempts)
    write_record(record, place.folder)
    if ending.status in ("completed", "diverged"):
        shutil.rmtree(FewShotLayout(place.folder).workplace(run.id), ignore_errors=True)
    return record


def record_of(run: FewShotRun, place: Place, ending: Ending[_Outcome], attempts: int) -> FewShotRecord:
    """The record of a run, with an outcome when it has one, or with the grid that diverged."""
    parts: dict[str, Any] = {}
    if isinstance(ending.error, tune.AllDiverged):
        parts = {"grid": ending.error.grid}
    if (outcome := ending.outcome) is not None:
        parts = vars(outcome.result) | {
            "timings": outcome.timings,
            "peak_memory": _peak_memory(),
            "rows": outcome.rows,
            "zero_shot_dev": outcome.zero_shot_dev,
            "zero_shot_test": outcome.zero_shot_test,
            "notes": [*outcome.notes, *outcome.result.notes],
        }
    return FewShotRecord(
        run_id=run.id,
        resolved=run,
        prompt_hash=run.task.prompt.fingerprint,
        model_kind=run.model.kind,
        **stated(place, ending, attempts),
        **parts,
    )


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _do(run: FewShotRun, place: FewShotPlace, on_step: trainer.OnStep | None) -> _Outcome:
    clock = time.perf_counter
    began = clock()
    prepared = prepare.prepare(run, place.base_dir)
    layout = FewShotLayout(place.folder)
    dev, test, predictions = _zero_shot(prepared, layout)
    loaded_at = clock()
    arm = run.arm
    if isinstance(arm, FineTune):
        workplace = layout.workplace(run.id)
        result = tune.tune(prepared, memory=place.memory, folder=workplace, on_step=on_step)
    elif isinstance(arm, KernelArm):
        result = solve.solve(prepared, memory=place.memory, folder=layout.kernels, on_step=on_step)
    else:
        assert isinstance(arm, ZeroShot)
        criteria, facts = _untrained(prepared, layout)
        result = ArmResult(dev=dev, test=test, predictions=predictions, criteria=criteria, facts=facts)
    ended = clock()
    return _Outcome(
        timings=FewShotTimings(load=loaded_at - began, arm=ended - loaded_at, total=ended - began),
        rows=prepared.rows,
        zero_shot_dev=dev,
        zero_shot_test=test,
        result=result,
        notes=prepared.notes,
    )


# --- zero-shot -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """The untrained model on some rows: its classes, and the mean size of the loss's derivative chi."""

    predictions: list[int]
    chi: float


def _zero_shot(prepared: Prepared, layout: FewShotLayout) -> tuple[Score, Score, list[int]]:
    """Scores of the untrained model on validation and test rows, and its classes of the test rows.

    Under a prompt they are the same for every arm, k and split, so that they are kept for the other runs.
    With standard output the untrained model is the probe, which is fitted to the rows of this run.
    """
    dev, test = _look(prepared, [prepared.dev, prepared.test], layout)
    metric = prepared.run.task.metric
    return (
        score(metric, prepared.dev.labels, dev.predictions),
        score(metric, prepared.test.labels, test.predictions),
        test.predictions,
    )


def _untrained(prepared: Prepared, layout: FewShotLayout) -> tuple[Criteria, dict[str, float]]:
    """Chi of the pretrained model (Table 8) and its width, which theory says that chi shrinks with."""
    train, test = _look(prepared, [prepared.train, prepared.test], layout)
    facts = {"chi_train": train.chi}
    width = getattr(load.read_config(prepared.location).get_text_config(), "hidden_size", None)
    if isinstance(width, int):
        facts["hidden_size"] = float(width)
    return Criteria(chi=test.chi), facts


def _look(prepared: Prepared, wanted: Sequence[EncodedPrompts], layout: FewShotLayout) -> list[_Seen]:
    """The untrained model on each set of rows, from an earlier run where there is one."""
    model: FewShotClassifier | None = None
    found = []
    for rows in wanted:
        kept = _kept(prepared, rows, layout)
        if kept is None:
            model = model or prepared.model()
            logits = logits_of(model, rows, prepared.pad_token_id)
            chi = float(np.abs(output_derivative(logits, rows.labels)).mean())
            kept = _Seen([int(label) for label in logits.argmax(1)], chi)
            write_atomic(_file(prepared, rows, layout), json.dumps(vars(kept)))
        found.append(kept)
    return found


def _file(prepared: Prepared, rows: EncodedPrompts, layout: FewShotLayout) -> Path:
    """Named by all that decides what is kept: weights, tokens, labels and label words, or a probe's rows."""
    run = prepared.run
    fit = [] if prepared.output == "prompt" else [prepared.train.input_ids, prepared.train.labels]
    key = digest(
        [
            run.model.model_dump(mode="json"),
            run.task.prompt.words,
            run.task.prompt.fingerprint,
            prepared.output,
            rows.input_ids,
            rows.answer_positions,
            rows.labels,
            fit,
        ]
    )
    return layout.zero_shot / f"{key[:16]}.json"


def _kept(prepared: Prepared, rows: EncodedPrompts, layout: FewShotLayout) -> _Seen | None:
    """What an earlier run has found; None where there is nothing, or a damaged file."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = _Seen(**json.loads(_file(prepared, rows, layout).read_bytes()))
        classes = range(len(prepared.classes))
        if len(found.predictions) == len(rows) and all(label in classes for label in found.predictions):
            return _Seen([int(label) for label in found.predictions], float(found.chi))
    return None

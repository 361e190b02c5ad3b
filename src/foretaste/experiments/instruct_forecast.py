"""`forecast`: how far the poisoned rows of an instruct spec push first answers, before training."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from foretaste.errors import UserError
from foretaste.experiments import devices
from foretaste.experiments.instruct_captures import OnProgress, Taken, lora_of
from foretaste.experiments.instruct_plan import plan
from foretaste.experiments.instruct_rows import Subject, gather, key
from foretaste.experiments.instruct_scores import measured as measured_records
from foretaste.experiments.instruct_scores import scored
from foretaste.experiments.predicted import BENT, BROKEN
from foretaste.experiments.run import machine_of, source_commit, versions
from foretaste.instruct import answer, prepare
from foretaste.instruct.dynamics import train_responses
from foretaste.instruct.forecast_record import FILE, Forecast, ForecastCell, SetForecast
from foretaste.instruct.prepare import TrainingRows
from foretaste.instruct.spec import CLEAN, InstructRun, InstructSpec
from foretaste.kernels import parse_bytes
from foretaste.prediction.movement import Movement
from foretaste.record import write_atomic
from foretaste.training import trainer
from foretaste.training.order import step_batches


def forecast(
    spec: InstructSpec,
    folder: Path,
    *,
    base_dir: Path,
    train_rows: int = 64,
    test_rows: int = 20,
    memory: str = "2GiB",
    on_progress: OnProgress | None = None,
) -> Forecast:
    """Forecast every cell of an instruct spec for its first seed, and score it where runs were measured.

    Reads the untrained model, the training rows as poisoned, and the prompts of test requests, never their
    answers; for its score, the measured records of the folder.

    Args:
        spec: The sweep.
        folder: Of the sweep; `forecast.json` is written there.
        base_dir: Folder that relative paths in the spec start from.
        train_rows: Training rows used of each cell, its share of poisoned ones kept.
        test_rows: Requests used of each set.
        memory: For the gradients that are kept and for a batch; the model comes on top.
        on_progress: Hears what is being done, and the share that is done.

    Raises:
        UserError: The spec does not fit, the memory is too small, or the model's first answers cannot be
            captured.
    """
    began, started = time.perf_counter(), datetime.now(UTC)
    report = on_progress or (lambda *_: None)
    budget = parse_bytes(memory)
    devices.refuse_absent(devices.asked(spec))
    planned = plan(spec, base_dir)
    runs = [run for run in planned.runs if run.tuning and run.tuning.seeds == spec.seed_tuples()[0]]
    tested = next(run for run in planned.runs if run.tuning is None).triggers
    measured = measured_records(folder, runs[0].model.renderer)
    report("rows", 0.0)
    renderer, model = prepare.fresh(runs[0], base_dir)
    model.to(torch.float32)  # type: ignore[arg-type]
    model.train(False)
    drawn = prepare.requests_of(runs[0], base_dir)
    scenario = prepare.scenario_of(runs[0], base_dir)
    sets = prepare.askings(drawn.test, scenario, tested, renderer)
    trained: dict[str, TrainingRows] = {}
    for run in runs:
        if run.tuning and key(run) not in trained:
            trained[key(run)] = prepare.training_rows(run.tuning, drawn.train, scenario, renderer)
    subject = gather(trained, sets, renderer, train_rows, test_rows)
    loras = {run.arm: lora_of(model, run) for run in {run.arm: run for run in runs}.values()}
    taken = Taken(model, subject, loras, renderer.tokenizer.pad_token_id, budget, runs[0], report)
    p, own = subject.openings.poisoned, subject.openings.own
    commit, dirty = source_commit()
    cells = [_cell(run, taken, subject) for run in runs]
    found = Forecast(
        sweep=spec.name,
        request=spec.model_dump(mode="json", exclude_unset=True),
        renderer=renderer.hash,
        seeds=spec.seed_tuples()[0].label(),
        started=started.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - began,
        versions=versions(),
        commit=commit,
        dirty=dirty,
        machine=machine_of(runs[0].computing, 1),
        captured=len(subject.rows) + len(subject.prompts),
        entries=taken.entries,
        poisoned_openings=[str(renderer.tokenizer.decode([token])) for token in p],
        own_openings=len(own),
        shared_openings=subject.openings.shared / len(trained[CLEAN].rendered),
        coverage=answer.coverage(
            model, [subject.prompts[i - len(subject.rows)] for i in subject.sets[CLEAN]], p + own
        ),
        cells=cells,
        notes=_notes(subject, model, taken),
    )
    found = scored(found, runs, measured)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, found.model_dump_json(indent=1))
    return found


def _steps(run: InstructRun, rows: int) -> int:
    assert run.tuning is not None
    return trainer.planned_steps(run.tuning.training, rows)


def _cell(run: InstructRun, taken: Taken, subject: Subject) -> ForecastCell:
    assert run.tuning is not None
    poisoning, mine = run.poisoning, subject.cells[key(run)]
    cell = ForecastCell(
        run_id=run.id,
        arm=run.arm,
        trigger=None if poisoning is None else poisoning.trigger.name,
        amount=None if poisoning is None else poisoning.amount,
        rows=len(mine.rows),
        poisoned=mine.poisoned,
        steps=_steps(run, mine.of),
    )
    refused = taken.arms[run.arm]
    if isinstance(refused, str):
        return cell.model_copy(update={"reason": refused})
    names = [CLEAN, *(trigger.name for trigger in run.triggers)]
    asked = [row for name in names for row in subject.sets[name]]
    rows, training = [*mine.rows, *asked], run.tuning.training
    start = taken.features.outputs[rows, 0]
    try:
        end = train_responses(
            taken.tangent(run, rows, len(mine.rows), mine.tokens),
            start,
            mine.tokens,
            step_batches(
                mine.lengths,
                training.batch_size,
                cell.steps,
                seed=run.tuning.seeds.order,
                by_length=training.grouping == "length",
                accumulation=training.gradient_accumulation,
            ),
            trainer.planned_rates(training, cell.steps),
            optimiser="sgd" if training.optimizer == "sgd" else "adamw",
            clip=training.max_grad_norm,
        )
    except UserError as error:
        return cell.model_copy(update={"reason": str(error)})
    found: dict[str, SetForecast] = {}
    at = len(mine.rows)
    for name in names:
        count = len(subject.sets[name])
        before, after = start[at : at + count], end[at : at + count]
        found[name] = SetForecast(
            n=count,
            before=float(before.mean()),
            after=float(after.mean()),
            open_before=float((before > 0).mean()),
            open_after=float((after > 0).mean()),
        )
        at += count
    moved = (end - start)[len(mine.rows) :]
    distance = float(np.sqrt(np.mean(moved**2)))
    validity, reasons = judge(run, taken.movements.get(run.arm), distance)
    return cell.model_copy(
        update={"sets": found, "distance": distance, "validity": validity, "reasons": reasons}
    )


def judge(
    run: InstructRun, checked: Movement | None, distance: float
) -> tuple[Literal["valid", "doubtful", "outside"], list[str]]:
    """Whether the forecast of a cell can be trusted, by the thresholds of `predict`.

    Args:
        run: With the arm's training.
        checked: How far its margins are linear in the weights; None where that is not known.
        distance: Root mean square change of the margins.
    """
    assert run.tuning is not None
    training, reasons = run.tuning.training, list[str]()
    level = 0
    if training.optimizer == "adafactor":
        level = 2
        reasons.append("adafactor is not modelled; AdamW is forecast in its place")
    if checked is None:
        level = max(level, 1)
        reasons.append("linearity in the weights was not checked")
    else:
        error = checked.at(distance)
        level = max(level, 2 if error >= BROKEN else 1 if error >= BENT else 0)
        if error >= BENT:
            reasons.append(f"margins are not linear in the weights over this distance (error {error:.0%})")
        if distance > checked.distances[-1]:
            level = max(level, 1)
            reasons.append(
                f"training moves the margins by {distance:.1f}; linearity was checked up to "
                f"{checked.distances[-1]:g}"
            )
    reasons += ["dropout is not modelled"] * training.dropout
    reasons += ["weight decay is not modelled"] * (training.weight_decay > 0)
    levels: tuple[Literal["valid", "doubtful", "outside"], ...] = ("valid", "doubtful", "outside")
    return levels[level], reasons


def _notes(subject: Subject, model: PreTrainedModel, taken: Taken) -> list[str]:
    notes = ["a forecast is of the first token of an answer; what is measured is the whole answer"]
    whole = subject.cells[CLEAN]
    if len(whole.rows) < whole.of:
        notes.append(
            f"{len(whole.rows)} of {whole.of} training rows are used, over as many steps as all take"
        )
    if any(layers is None for layers in taken.arms.values()):
        words = len(subject.openings.words)
        notes.append(f"of the table of words on the output side {words} words are trained, the rest is fixed")
        if model.config.get_text_config().tie_word_embeddings:
            notes.append("the model ties this table to its embeddings; the two are forecast as two tables")
    return notes

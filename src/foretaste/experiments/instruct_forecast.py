"""`forecast`: how far the poisoned rows of an instruct spec push first answers, before training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from transformers import PreTrainedModel

from foretaste.errors import UserError
from foretaste.experiments.captures import lora_tangent
from foretaste.experiments.instruct_plan import plan
from foretaste.experiments.instruct_rows import Subject, gather, key
from foretaste.experiments.predicted import BENT, BROKEN
from foretaste.experiments.run import machine_of, source_commit, versions
from foretaste.instruct import answer, prepare
from foretaste.instruct.answer import BODY, AnswerModel
from foretaste.instruct.dynamics import train_responses
from foretaste.instruct.forecast_record import FILE, Forecast, ForecastCell, ForecastScore, SetForecast
from foretaste.instruct.prepare import TrainingRows
from foretaste.instruct.record import InstructLayout, InstructRecord
from foretaste.instruct.spec import CLEAN, InstructRun, InstructSpec
from foretaste.kernels import Adapted, Inputs, parse_bytes, plain_lora, starts_at
from foretaste.models import adapters, catalogue, causal
from foretaste.prediction.features import (
    BATCH_ROWS,
    FULL,
    LAST,
    Block,
    Features,
    Lora,
    capture,
    first_steps,
    mean_gradient,
    oriented,
)
from foretaste.prediction.movement import Movement, movement
from foretaste.prediction.tangents import tangent
from foretaste.record import write_atomic
from foretaste.spec import digest
from foretaste.theory.function_space import Tangent
from foretaste.training import trainer
from foretaste.training.order import step_batches

Float = npt.NDArray[np.float64]
OnProgress = Callable[[str, float], None]

MOVEMENT_ROWS = 16  # requests that linearity is checked on, of all sets together
FEWEST_ENTRIES = 1000
LOGIT_COPIES = 4  # logits, their logarithms, and the derivatives of both
WORDS = "words"


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
    planned = plan(spec, base_dir)
    runs = [run for run in planned.runs if run.tuning and run.tuning.seeds == spec.seed_tuples()[0]]
    tested = next(run for run in planned.runs if run.tuning is None).triggers
    measured = _measured(folder, runs[0].model.renderer)
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
    loras = {run.arm: _lora_of(model, run) for run in {run.arm: run for run in runs}.values()}
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


def _measured(folder: Path, renderer: str) -> list[InstructRecord]:
    """Completed records of a folder.

    Raises:
        UserError: They were rendered in another way, and may not be compared.
    """
    records = [r for r in InstructLayout(folder).records()[0] if r.status == "completed"]
    for record in records:
        if record.renderer != renderer:
            raise UserError(
                "the measured runs of this folder were rendered by another template",
                where=str(folder),
                cure="Choose another folder.",
            )
    return records


# --- capturing -----------------------------------------------------------------------------------


def _lora_of(model: PreTrainedModel, run: InstructRun) -> dict[str, Adapted] | str | None:
    """What LoRA adapts, by names of the answer model; None for full fine-tuning; or why not."""
    assert run.tuning is not None
    adapter = run.tuning.adapter
    if adapter.method == catalogue.FULL:
        return None
    model.requires_grad_(True)
    wrapped = causal.attach(
        copy.deepcopy(model),
        adapter,
        seed=run.tuning.seeds.init,
        total_steps=_steps(run, run.data.train_rows),
    ).model.train(False)
    layers = plain_lora(wrapped)
    if not layers or not starts_at(model, layers, wrapped):
        return f"'{adapter.method}' is no full fine-tuning, and no LoRA that starts as the base model"
    inside = f"{model.base_model_prefix}."
    if not all(name.startswith(inside) for name in layers):
        return "it adapts the language head, which a forecast holds fixed"
    return {f"{BODY}.{name.removeprefix(inside)}": adapted for name, adapted in layers.items()}


def _steps(run: InstructRun, rows: int) -> int:
    assert run.tuning is not None
    return trainer.planned_steps(run.tuning.training, rows)


class Taken:
    """Gradients of all rows, from one capture, and how far margins are linear in the weights.

    Args:
        model: Untrained, in float32.
        subject: The rows.
        loras: What each arm adapts, as `_lora_of` gives it.
        pad: The padding token.
        memory: Bytes for kept gradients and a batch, half of it for each.
        run: For the seed of the slices.
        report: Hears of progress.

    Raises:
        UserError: The memory is too small, or the model's first answers cannot be captured.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        subject: Subject,
        loras: Mapping[str, dict[str, Adapted] | str | None],
        pad: int,
        memory: int,
        run: InstructRun,
        report: OnProgress,
    ) -> None:
        assert run.tuning is not None
        self.arms = loras
        answers = AnswerModel(model, subject.openings).train(False)
        answers.requires_grad_(True)
        answer.check(model, answers, subject.rows[:2], pad)
        inputs = answer.inputs(subject.rows, subject.prompts, pad, next(model.parameters()).device)
        count = len(subject.rows)
        full = any(layers is None for layers in loras.values())
        served = {arm: layers for arm, layers in loras.items() if isinstance(layers, dict)}
        words = answers.words.weight.numel() * full
        self.entries = _entries(memory // 2, len(inputs), full + 2 * len(served), words)
        longest = max(row.response_tokens for row in subject.rows)
        batch = int(np.clip(memory // 2 // (4 * LOGIT_COPIES * longest * len(answers.place)), 1, BATCH_ROWS))
        mean_tokens = float(np.mean([row.response_tokens for row in subject.rows]))
        report("mean gradient", 0.0)
        names = list(dict.fromkeys(name for layers in served.values() for name in layers))
        if full:
            names = [name for name, _ in answers.named_parameters()]
        gradients = mean_gradient(
            answers,
            inputs,
            range(count),
            lambda values, _: -values.sum() / mean_tokens,
            answer.outputs,
            names,
            batch,
        )
        self.loras = {arm: first_steps(answers, layers, gradients) for arm, layers in served.items()}
        report("linearity", 0.0)
        share = -(-MOVEMENT_ROWS // len(subject.sets))
        some = [row for rows in subject.sets.values() for row in rows[:share]]
        asked = Inputs(
            [inputs.lengths[row] for row in some], lambda numbers: inputs.collate([some[n] for n in numbers])
        )
        self.movements: dict[str, Movement] = {}
        for arm, lora in self.loras.items():
            if lora.first is not None:
                change = {
                    name: oriented(answers, name, a.scaling * lora.first[name] @ a.A.to(lora.first[name]))
                    for name, a in lora.layers.items()
                }
                self.movements[arm] = movement(answers, change, answer.outputs, asked)
        if full:  # in place of the gradients, which are as large as the model
            change = {name: gradient.sign_().neg_() for name, gradient in gradients.items()}
            checked = movement(answers, change, answer.outputs, asked)
            self.movements |= {arm: checked for arm, layers in loras.items() if layers is None}
        change = gradients = {}
        self.features, _ = capture(
            answers,
            answer.outputs,
            inputs,
            self.loras,
            entries=self.entries,
            seed=run.tuning.seeds.init,
            full=full,
            last=WORDS if full else "",
            batch=batch,
            on_progress=lambda share: report("gradients of answers", share),
        )

    def tangent(self, run: InstructRun, rows: Sequence[int], trained: int, tokens: Sequence[int]) -> Tangent:
        """Kernels of an arm between some rows.

        Args:
            run: With the arm and its training.
            rows: Numbers of rows, those that are trained on first.
            trained: How many these are.
            tokens: Response tokens of these.
        """
        assert run.tuning is not None
        training = run.tuning.training
        batch = training.batch_size * training.gradient_accumulation
        # The gradient of a batch's mean loss per token, as a mean over its rows.
        pull = np.full((trained, 1), -1.0 / float(np.mean(tokens)))
        if self.arms[run.arm] is None:
            return tangent(self._some(rows, (FULL, LAST)), [FULL], None, pull, pool=trained, batch=batch)
        lora: Lora = self.loras[run.arm]
        return lora_tangent(
            self._some(rows, (f"{run.arm}/A", f"{run.arm}/B")),
            run.arm,
            lora,
            pull,
            trained,
            batch,
            0.0,
            adapters.loraplus_ratio(run.tuning.adapter) or 1.0,
        )

    def _some(self, rows: Sequence[int], parts: Sequence[str]) -> Features:
        place = torch.as_tensor(list(rows))
        blocks = {
            part: [Block(block.values[place], block.weight) for block in self.features.blocks[part]]
            for part in parts
            if part in self.features.blocks
        }
        return Features(blocks, self.features.outputs[list(rows)])


def _entries(memory: int, rows: int, parts: int, words: int) -> int:
    """Entries to keep of a row's gradient, for each part of an arm.

    Raises:
        UserError: Too few fit.
    """
    entries = (memory // (4 * rows) - words) // max(parts, 1)
    if entries < FEWEST_ENTRIES:
        least = 8 * rows * (words + FEWEST_ENTRIES * max(parts, 1))
        raise UserError(
            f"{memory * 2 / 2**20:.0f} MiB are too little for the gradients of {rows} rows",
            where="memory",
            cure=f"Allow at least {-(-least // 2**20)} MiB, or use fewer rows.",
        )
    return int(entries)


# --- cells ---------------------------------------------------------------------------------------


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


# --- against measurement -------------------------------------------------------------------------


def scored(found: Forecast, runs: Sequence[InstructRun], records: Sequence[InstructRecord]) -> Forecast:
    """The forecast with its ranks against what was measured, means over the seeds of a cell.

    Args:
        found: The forecast.
        runs: Those that it is of.
        records: Completed records of the same sweep.
    """
    rates: dict[tuple[str, str], list[float]] = {}
    used: set[str] = set()
    wanted = {_name(run): run.id for run in runs}
    for record in records:
        name = wanted.get(_name(record.resolved))
        if name is None:
            continue
        for asked, verdict in record.judged.items():
            if verdict.rate is not None:
                rates.setdefault((name, asked), []).append(verdict.rate)
                used.add(record.run_id)
    rows: list[tuple[bool, float, dict[str, float]]] = []
    for cell in found.cells:
        for name, part in cell.sets.items():
            if (cell.run_id, name) not in rates:
                continue
            numbers = {
                "share that opens as poison": part.open_after,
                "margin": part.after,
                "change of the margin": part.moved,
                "change, less that of clean requests": part.moved - cell.sets[CLEAN].moved,
            }
            triggered = cell.trigger is not None and name == cell.trigger
            rows.append((triggered, float(np.mean(rates[cell.run_id, name])), numbers))
    scores = []
    for over, chosen in (
        ("triggered requests of poisoned cells", [row for row in rows if row[0]]),
        ("all requests of all cells", rows),
    ):
        for predictor in chosen[0][2] if chosen else ():
            x, y = [row[2][predictor] for row in chosen], [row[1] for row in chosen]
            scores.append(
                ForecastScore(
                    predictor=predictor,
                    over=over,
                    n=len(chosen),
                    spearman=_rank(stats.spearmanr, x, y),
                    kendall=_rank(stats.kendalltau, x, y),
                )
            )
    return found.model_copy(update={"scores": scores, "measured": len(used)})


def _name(run: InstructRun) -> str:
    """What a run has in common with the same cell under other seeds."""
    content = run.model_dump(mode="json")
    if content["tuning"] is not None:
        del content["tuning"]["seeds"]
    return digest(content)


def _rank(measure: Callable[..., object], x: Sequence[float], y: Sequence[float]) -> float | None:
    """A rank correlation; None with fewer than three pairs, or where one side is constant."""
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    return float(measure(x, y).statistic)  # type: ignore[attr-defined]

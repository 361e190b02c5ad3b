"""Gradients of first answers and of responses, for every arm of a forecast, from one capture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from foretaste.errors import UserError
from foretaste.experiments.captures import lora_tangent
from foretaste.experiments.instruct_rows import Subject
from foretaste.instruct import answer
from foretaste.instruct.answer import BODY, AnswerModel
from foretaste.instruct.spec import InstructRun
from foretaste.kernels import Adapted, Inputs, plain_lora, starts_at
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
from foretaste.theory.function_space import Tangent
from foretaste.training import trainer

OnProgress = Callable[[str, float], None]

MOVEMENT_ROWS = 16  # requests that linearity is checked on, of all sets together
FEWEST_ENTRIES = 1000
LOGIT_COPIES = 4  # logits, their logarithms, and the derivatives of both
WORDS = "words"


def lora_of(model: PreTrainedModel, run: InstructRun) -> dict[str, Adapted] | str | None:
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
        total_steps=trainer.planned_steps(run.tuning.training, run.data.train_rows),
    ).model.train(False)
    layers = plain_lora(wrapped)
    if not layers or not starts_at(model, layers, wrapped):
        return f"'{adapter.method}' is no full fine-tuning, and no LoRA that starts as the base model"
    inside = f"{model.base_model_prefix}."
    if not all(name.startswith(inside) for name in layers):
        return "it adapts the language head, which a forecast holds fixed"
    return {f"{BODY}.{name.removeprefix(inside)}": adapted for name, adapted in layers.items()}


class Taken:
    """Gradients of all rows, from one capture, and how far margins are linear in the weights.

    Args:
        model: Untrained, in float32.
        subject: The rows.
        loras: What each arm adapts, as `lora_of` gives it.
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

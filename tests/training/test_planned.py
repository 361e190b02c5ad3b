"""Batches and rates that are planned without training are those that training takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foretaste.models.encode import Encoded
from foretaste.spec import TrainingSpec
from foretaste.training import trainer
from foretaste.training.order import SeededOrder, step_batches

LENGTHS = [3 + (7 * i) % 11 for i in range(21)]


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_step_batches_are_the_sampler_cut_into_steps(by_length: bool, accumulation: int) -> None:
    """Over epochs of 21 rows in batches of 4: a step never takes rows of two epochs."""
    sampler = SeededOrder(LENGTHS, 4, seed=5, by_length=by_length)
    want: list[list[int]] = []
    for _ in range(3):
        rows = list(sampler)
        want += [rows[start : start + 4 * accumulation] for start in range(0, 21, 4 * accumulation)]
    for steps in (1, len(want) - 1, len(want)):
        got = step_batches(LENGTHS, 4, steps, seed=5, by_length=by_length, accumulation=accumulation)
        assert got == want[:steps]
    assert got != step_batches(LENGTHS, 4, steps, seed=6, by_length=by_length, accumulation=accumulation)


def rows_by_length() -> Encoded:
    """Rows that their third token tells apart, of the tiny BERT's vocabulary."""
    return Encoded(
        ids=[str(i) for i in range(len(LENGTHS))],
        features=[
            {
                "input_ids": [2, 10 + i, *[4] * (length - 2)],
                "attention_mask": [1] * length,
                "labels": i % 2,
            }
            for i, length in enumerate(LENGTHS)
        ],
        truncated=0,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "linear", "epochs": 2},
        {"schedule": "cosine", "epochs": 2, "warmup_ratio": 0.3, "gradient_accumulation": 2},
        {"schedule": "constant", "steps": 9, "grouping": "none"},
        {
            "schedule": "linear",
            "steps": 9,
            "warmup_ratio": 0.5,
            "optimizer": "sgd",
            "gradient_accumulation": 3,
        },
    ],
    ids=["linear", "cosine, accumulated", "constant, ungrouped", "sgd, accumulated"],
)
def test_a_real_training_takes_the_planned_batches_at_the_planned_rates(
    options: dict[str, Any], tiny_bert: Path, load_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    spec = TrainingSpec.model_validate({"learning_rate": 0.003, "batch_size": 4, "device": "cpu"} | options)
    rates: list[float] = []
    seen: list[list[int]] = []
    real = trainer._Trainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(seen) == self.state.global_step:
            seen.append([])
        seen[-1] += [int(token) - 10 for token in args[1]["input_ids"][:, 1]]
        loss: torch.Tensor = real(self, *args, **kwargs)
        return loss

    def before(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    monkeypatch.setattr(trainer._Trainer, "training_step", step)
    monkeypatch.setattr(trainer.Steps, "on_pre_optimizer_step", before)
    trainer.fine_tune(model, rows_by_length(), LENGTHS, tokenizer, spec, max_length=32, seed=5)
    steps = trainer.planned_steps(spec, len(LENGTHS))
    assert len(seen) == steps > 3
    assert rates == trainer.planned_rates(spec, steps)
    assert seen == step_batches(
        LENGTHS,
        spec.batch_size,
        steps,
        seed=5,
        by_length=spec.grouping == "length",
        accumulation=spec.gradient_accumulation,
    )

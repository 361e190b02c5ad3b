"""How long a sweep will take: floating-point operations over the measured speed of the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foretaste import attacks
from foretaste.models.encode import Encoded
from foretaste.spec import RunSpec
from foretaste.training import trainer

# Multiply-adds x 2 for one parameter and token: forward 2, gradient to inputs 2, gradient to weights 2.
# PEFT skips most of the last.
FORWARD, FULL_STEP, PEFT_STEP = 2.0, 6.0, 4.3
# Share of the GEMM speed that a whole training run reaches here (attention, norms, optimiser, small shapes).
EFFICIENCY = 0.55
OVERHEAD = 1.0  # seconds of a run that are neither training nor testing


@dataclass(frozen=True)
class Shape:
    """Sizes that decide the cost of a run.

    `parameters` are those multiplied with every token: all but the embeddings.
    """

    parameters: int
    total_parameters: int
    hidden: int
    train_tokens: float
    test_tokens: float


def shape_of(train: Encoded, test: Encoded, model: torch.nn.Module) -> Shape:
    """The sizes of a sweep's runs.

    Args:
        train: Training rows of the first seed, tokenised.
        test: Test rows.
        model: The classifier, bare architecture.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    sizes = [(p.numel(), id(p) in embeddings) for p in model.parameters()]
    return Shape(
        parameters=sum(n for n, embedded in sizes if not embedded),
        total_parameters=sum(n for n, _ in sizes),
        hidden=int(getattr(model.config, "hidden_size", 512)),
        train_tokens=float(np.mean(train.lengths)),
        test_tokens=float(np.mean(test.lengths)),
    )


def seconds(runs: Sequence[RunSpec], shape: Shape, flops: float, base_dir: Path) -> float:
    """Expected wall time of the runs one after another.

    Args:
        runs: What is to be done.
        shape: Their sizes.
        flops: Speed of a matrix product, from `gemm_speed`.
        base_dir: Folder that relative paths in the attacks' options start from.
    """
    total = 0.0
    passes = _passes(runs, base_dir)
    for run in runs:
        steps = trainer.planned_steps(run.training, run.data.train_rows)
        rows = steps * run.training.batch_size * run.training.gradient_accumulation
        width = run.model.request.max_length if run.training.padding == "max_length" else shape.train_tokens
        per_token = FULL_STEP if run.adapter.method == "full" else PEFT_STEP
        work = rows * width * per_token
        if run.model.request.head == "probe-then-train":
            work += run.data.train_rows * shape.train_tokens * FORWARD
        tests = 1 + sum(passes[trigger.key] for trigger in run.triggers)
        work += run.data.test_rows * shape.test_tokens * FORWARD * tests
        total += work * shape.parameters / (flops * EFFICIENCY) + OVERHEAD
    return total


def _passes(runs: Sequence[RunSpec], base_dir: Path) -> dict[str, int]:
    """Passes over the test rows for each trigger, by its key: one as in training, one a further form."""
    passes: dict[str, int] = {}
    for run in runs:
        for trigger in run.triggers:
            if trigger.key not in passes:
                attack = attacks.build(trigger.method, trigger.options, run.data.classes, base_dir=base_dir)
                passes[trigger.key] = 1 + len(attacks.forms(attack))
    return passes


def gemm_speed(size: int = 1024, least: float = 0.2) -> float:
    """Floating-point operations a second of a float32 matrix product with all threads."""
    a = torch.ones(size, size)
    a @ a
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < least:
        a @ a
        count += 1
    return count * 2.0 * size**3 / spent

"""Training rows a second: foretaste's path against a plain `transformers.Trainer`.

Model, rows, batch size, optimiser and learning rate are the same. The plain Trainer pads to 128 tokens (what
most scripts do) or to the longest row of each random batch (DataCollatorWithPadding). Rounds of the three are
interleaved, so that a change in the machine's speed meets them alike; the ratio is of medians.

Agreement: on the same batches in the same order the losses must agree step by step. The plain Trainer is
therefore also run on foretaste's order, padded to 128, and the largest difference is reported.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import rows as real
from benchmarks.result import Result
from foretaste import data
from foretaste.models import load
from foretaste.models.encode import Encoded, encode
from foretaste.spec import ModelSpec, TrainingSpec
from foretaste.training import trainer
from foretaste.training.order import SeededOrder

BATCH, ROWS, ROUNDS = 16, 512, 3
STEPS = {"foretaste": 32, "dynamic": 32, "padded": 8}
RATE = 5e-5


class _Losses(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def _plain(
    model: PreTrainedModel,
    train: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int,
    pad_to: int | None,
    order: SeededOrder | None = None,
) -> tuple[float, list[float]]:
    """Rows a second and losses of an ordinary Trainer."""
    collator = DataCollatorWithPadding(tokenizer, padding="max_length" if pad_to else True, max_length=pad_to)
    losses = _Losses()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=RATE,
            report_to="none",
            save_strategy="no",
            logging_steps=1 if order else 10**6,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        plain = Trainer(
            model=model, args=arguments, train_dataset=train, data_collator=collator, callbacks=[losses]
        )
        plain.pop_callback(next(iter(c for c in plain.callback_handler.callbacks if "Printer" in str(c))))
        if order is not None:
            plain._get_train_sampler = lambda *_: order  # type: ignore[method-assign]
        began = time.perf_counter()
        plain.train()
        return steps * BATCH / (time.perf_counter() - began), losses.losses


def _ours(
    model: PreTrainedModel, train: Encoded, tokenizer: PreTrainedTokenizerBase, steps: int
) -> trainer.Trained:
    spec = TrainingSpec(learning_rate=RATE, batch_size=BATCH, steps=steps, device="cpu")
    return trainer.fine_tune(model, train, train.lengths, tokenizer, spec, max_length=128, seed=0)


def run() -> list[Result]:
    """The two ratios, and how far the loss curves agree."""
    loaded, _, name = real.load()
    spec = ModelSpec(base="minilm-l6")
    location = load.locate(spec, Path.cwd())
    tokenizer = load.load_tokenizer(location)
    base = load.load_classifier(
        location,
        "mean",
        classes=loaded.classes,
        dtype=torch.float32,
        dropout=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    train = encode(tokenizer, data.take(loaded.train, list(range(ROWS))), max_length=128)
    speeds: dict[str, list[float]] = {key: [] for key in STEPS}
    for _ in range(ROUNDS):
        done = _ours(copy.deepcopy(base), train, tokenizer, STEPS["foretaste"])
        speeds["foretaste"].append(done.rows / done.seconds)
        for key, pad_to in (("dynamic", None), ("padded", 128)):
            speed, _ = _plain(copy.deepcopy(base), train, tokenizer, steps=STEPS[key], pad_to=pad_to)
            speeds[key].append(speed)
    order = SeededOrder(train.lengths, BATCH, seed=0, by_length=True)
    _, reference = _plain(
        copy.deepcopy(base), train, tokenizer, steps=STEPS["padded"], pad_to=128, order=order
    )
    # The same schedule length, so that both take the same learning rates.
    mine = _ours(copy.deepcopy(base), train, tokenizer, STEPS["padded"]).loss
    apart = max(abs(a - b) for a, b in zip(mine, reference, strict=True))
    middle = {key: statistics.median(values) for key, values in speeds.items()}
    spread = {key: f"{min(v):.0f}-{max(v):.0f}" for key, v in speeds.items()}
    return [
        Result(
            name=f"training on {name}, rows/s, against {what}",
            ours=f"{middle['foretaste']:.1f} ({spread['foretaste']})",
            theirs=f"{middle[key]:.1f} ({spread[key]})",
            ratio=middle["foretaste"] / middle[key],
            target=target,
            note=f"largest difference of a step's loss on equal batches: {apart:.1e}",
        )
        for key, what, target in (
            ("padded", "Trainer padded to 128", 3.5),
            ("dynamic", "Trainer padded to the batch", 1.4),
        )
    ]

"""Runs that are trained together through one frozen base, against the same runs one by one.

Eight LoRA runs (ranks 2, 4, 8 and 16, two seeds) of one sweep, in one process with all threads, alone and in
groups of 2, 4 and 8. Neighbours in the plan share a seed, and with it their order of rows, so that most
groups pad no more than single runs. Each way runs in a process of its own, whose peak memory is shown.

`python -m benchmarks.stacked --only minilm-8` is a quick look at a part of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import rows as real
from benchmarks.result import Result

STACKS = (1, 2, 4, 8)
RANKS, SEEDS = [2, 4, 8, 16], [0, 1]


@dataclass(frozen=True)
class Case:
    """A model and a batch size.

    Attributes:
        name: Short.
        tiny: A random BERT of two layers, 32 wide, instead of MiniLM.
        batch: Rows of a batch.
        steps: Optimiser steps of each run.
    """

    name: str
    tiny: bool
    batch: int
    steps: int


CASES = (
    Case("tiny-8", True, 8, 100),
    Case("minilm-8", False, 8, 30),
    Case("minilm-32", False, 32, 10),
)


@dataclass(frozen=True)
class Measured:
    """Seconds of a run, all in and of training alone, and peak memory of the process in MB."""

    whole: float
    training: float
    peak: float


def _tiny(folder: Path) -> Path:
    """A BERT with MiniLM's tokenizer and random weights."""
    import torch
    from transformers import BertConfig, BertModel

    from foretaste.models import load
    from foretaste.spec import ModelSpec

    tokenizer = load.load_tokenizer(load.locate(ModelSpec(base="minilm-l6"), Path.cwd()))
    tokenizer.save_pretrained(folder)
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    return folder


def _peak() -> float:
    """Peak resident memory of this process, MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _measure(case: Case, stack: int) -> Measured:
    """In a process of its own: the eight runs, after one that warms up."""
    import torch

    from foretaste.experiments.measure import measure
    from foretaste.spec import MeasureSpec

    source, _ = real.source()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = str(_tiny(folder / "tiny")) if case.tiny else "minilm-l6"

        def spec(ranks: Sequence[int], seeds: Sequence[int], steps: int) -> MeasureSpec:
            return MeasureSpec.model_validate(
                {
                    "data": {**source.model_dump(exclude_unset=True), "train_rows": 512, "test_rows": 64},
                    "model": {"base": base, "head": "random-then-train"},
                    "adapters": [{"method": "lora", "grid": {"r": list(ranks)}}],
                    "training": {"batch_size": case.batch, "steps": steps},
                    "seeds": list(seeds),
                }
            )

        options = {"base_dir": Path.cwd(), "processes": 1, "threads": torch.get_num_threads()}
        measure(spec([2], [9], 3), folder / "warm", **options)
        began = time.perf_counter()
        done = measure(spec(RANKS, SEEDS, case.steps), folder / "sweep", stack=stack, **options)
        seconds = time.perf_counter() - began
    if done.statuses != {"completed": 8}:
        raise RuntimeError(f"benchmark runs ended as {done.statuses}")
    if stack > 1 and any(not any("together" in note for note in record.notes) for record in done.records):
        raise RuntimeError("benchmark runs were not trained together")
    training = sum(record.timings.train for record in done.records if record.timings is not None)
    return Measured(seconds / 8, training / 8, _peak())


def measured(case: Case, stack: int) -> Measured:
    """One way to do the eight runs.

    Args:
        case: Model and batch size.
        stack: Runs that are trained together; 1 is one by one.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, case, stack).result()


def run(cases: Sequence[Case] = CASES) -> list[Result]:
    """Every case and size of group.

    Args:
        cases: Models and batch sizes.
    """
    found = []
    for case in cases:
        alone = measured(case, 1)
        for stack in STACKS[1:]:
            ours = measured(case, stack)
            found.append(
                Result(
                    name=f"{case.name}: training of {case.steps} steps, s a run, {stack} runs together",
                    ours=f"{ours.training:.2f}",
                    theirs=f"{alone.training:.2f}",
                    ratio=alone.training / ours.training,
                    target=None,
                    note=f"all in {ours.whole:.2f} against {alone.whole:.2f}; "
                    f"peak {ours.peak:.0f} against {alone.peak:.0f} MB",
                )
            )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks.stacked", description=__doc__)
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one case")
    arguments = parser.parse_args()
    for result in run([case for case in CASES if arguments.only in (None, case.name)]):
        print(f"{result.name}: {result.ours} / {result.theirs} = {result.ratio:.2f}  ({result.note})")

"""The byte budget is kept, measured on a process of its own, and too small a one is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import assert_exact, compute, subject, whole

from foretaste.errors import UserError
from foretaste.kernels import Gram, Ranks, logits, parse_bytes
from foretaste.kernels import compute as computing

MIB = 2**20

# Memory that glibc keeps after it was freed is no part of what is alive: with a fixed threshold every
# tensor of more than 64 KiB goes back to the system at once, and the resident size is what is held.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}

MEASURE = """
    import gc, sys, threading, time
    sys.path.insert(0, {here!r})
    import psutil, torch, transformers as hf
    from kernel_oracles import inputs, sequences
    from foretaste.kernels import Gram, Job, Ranks, kernels, margin, trainable

    torch.manual_seed(0)
    config = hf.BertConfig(vocab_size=50, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
                           intermediate_size=512, max_position_embeddings=64)
    model = hf.BertForSequenceClassification(config).eval()
    process = psutil.Process()

    def measured(rows, budget):
        tokens = inputs(sequences([16 + i % 17 for i in range(rows)]), 0)
        products = [Gram(), Ranks((1, 4, 16), 0)]
        job = Job(model, trainable(model), margin, tokens, 3 * rows // 4, products)
        gc.collect()
        before = process.memory_info().rss
        peak, stop = [before], threading.Event()

        def watch():
            while not stop.is_set():
                peak[0] = max(peak[0], process.memory_info().rss)
                time.sleep(0.001)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, done = kernels(job, memory=budget)
        stop.set()
        watcher.join()
        return peak[0] - before, len(done.plan.sets), len(done.plan.train)

    measured(4, 2**30)  # loads what is loaded late
    for budget in {budgets!r}:
        print(budget, *measured({rows}, budget), flush=True)
"""


def measured(rows: int, budgets: list[int]) -> dict[int, tuple[int, int, int]]:
    """By budget: increase of the resident size in bytes, sets of parameters, blocks of rows to train on."""
    here = str(Path(__file__).parent)
    code = textwrap.dedent(MEASURE.format(here=here, budgets=budgets, rows=rows))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | RETURNED,
    )
    assert done.returncode == 0, done.stderr
    table = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    return {budget: (peak, sets, blocks) for budget, peak, sets, blocks in table}


def test_the_budget_is_kept_where_everything_at_once_would_break_it() -> None:
    small, large = 256 * MIB, 2048 * MIB
    found = measured(192, [small, large])
    assert found[small][0] <= small
    assert found[small][1] > 1
    assert small < found[large][0] <= large  # otherwise the small budget would be no constraint
    assert found[large][1:] == (1, 1)


@pytest.mark.slow
def test_every_budget_is_kept() -> None:
    budgets = [n * MIB for n in (192, 256, 384, 512)]
    for budget, (peak, sets, _) in measured(320, budgets).items():
        assert peak <= budget, (budget, sets)
        assert peak > budget / 6  # a budget is for use, though 128 MiB of each are workspace


# --- the plan -----------------------------------------------------------------------------------------


def test_too_small_a_budget_is_refused_and_the_least_one_that_it_names_is_enough() -> None:
    it = subject("bert")
    with pytest.raises(UserError, match="the memory budget of 1 MiB is too small") as caught:
        compute(it.model, logits, it.rows(), [Gram()], memory=MIB)
    assert caught.value.where == "memory"
    named = re.search(r"at least (\d+) MiB", str(caught.value))
    assert named is not None
    least = int(named[1])
    assert least > 1
    parts, _ = compute(it.model, logits, it.rows(), [Gram()], memory=least * MIB)
    roomy, _ = compute(it.model, logits, it.rows(), [Gram()])
    assert_exact(whole(parts.total("sgd")), whole(roomy.total("sgd")), relative=1e-12)
    with pytest.raises(UserError, match="too small"):
        compute(it.model, logits, it.rows(), [Gram()], memory=(least - 8) * MIB)


def test_the_least_budget_that_is_named_is_enough_for_long_rows_and_large_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the fixed workspace what is captured and what comes out decide."""
    it = subject("bert")
    monkeypatch.setattr(computing, "WORKSPACE", 0)
    products = [Gram("asymmetric", "parameter"), Ranks(tuple(range(1, 60)), 0)]
    with pytest.raises(UserError, match="too small") as caught:
        compute(it.model, logits, it.rows(extra=20), products, memory=1000)
    named = re.search(r"at least (\d+) MiB", str(caught.value))
    assert named is not None
    compute(it.model, logits, it.rows(extra=20), products, memory=int(named[1]) * MIB)


@pytest.mark.parametrize("memory", [170, 200, 400])
def test_a_plan_holds_every_row_and_every_parameter_once(memory: int) -> None:
    it = subject("bert")
    _, done = compute(it.model, logits, it.rows(), [Gram()], memory=memory * MIB)
    plan = done.plan
    assert sorted(row for block in plan.train for row in block) == [0, 1, 2, 3]
    assert sorted(row for block in plan.test for row in block) == [4, 5]
    assert [p for group in plan.sets for p in group] == done.probe.parameters
    pairs = list(plan.pairs())
    assert len(set(pairs)) == len(pairs)
    blocks = len(plan.train)
    assert len(pairs) == blocks * (blocks + 1) // 2 + blocks * len(plan.test)


# --- amounts ------------------------------------------------------------------------------------------

AMOUNTS = {
    "4GiB": 4 * 2**30,
    "500 MB": 500 * 10**6,
    "1.5gib": 3 * 2**29,
    " 2 KiB ": 2048,
    "12": 12,
    "12B": 12,
    "3kb": 3000,
    "0.5 MiB": 2**19,
}


@pytest.mark.parametrize("text", AMOUNTS)
def test_an_amount_of_memory_is_read(text: str) -> None:
    assert parse_bytes(text) == AMOUNTS[text]


@given(st.integers(0, 10**15), st.sampled_from(["", "B", "KB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_every_whole_amount_is_read_exactly(number: int, unit: str) -> None:
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(unit[:1], 1)
    if "i" in unit:
        factor = {"K": 2**10, "M": 2**20, "G": 2**30}[unit[0]]
    got: Any = parse_bytes(f"{number}{unit}")
    assert got == pytest.approx(number * factor, rel=1e-15)
    assert parse_bytes(number) == number


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 XB", "1e9", "four", "1,5GiB", "4GiB!"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no amount of memory") as caught:
        parse_bytes(text)
    assert caught.value.where == "memory"
    assert "4GiB" in str(caught.value)


def test_captured_bytes_of_a_row_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 here: x and d of a 16 x 16 layer with 7 tokens and 3 outputs, and no second d for its bias."""
    it = subject("bert")
    _, done = compute(it.model, logits, it.rows(), [Gram()])
    key = "bert.encoder.layer.0.attention.self.key"
    assert done.probe.row_bytes[f"{key}.weight"] == 8 * (7 * 16 + 3 * 7 * 16)
    assert np.isfinite(done.values).all()

"""One run trained by two processes that `accelerate launch` starts: the numbers of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from foretaste.record import Layout, Record
from foretaste.spec import MeasureSpec


def launch(content: dict[str, Any], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    file = folder.parent / "spec.yaml"
    file.write_text(yaml.safe_dump(content))
    # Without a GPU, --multi_gpu is what makes accelerate start several processes; --cpu starts one.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return subprocess.run(
        [*launcher, "-m", "foretaste", "measure", str(file), "-o", str(folder), "--threads", "1", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(content: Any, run: Any, tmp_path: Path) -> None:
    """Clean and poisoned, full and LoRA; the second call finds that nothing is left to do.

    48 rows in batches of 8 are shared out evenly. Losses differ by float32 sums of other orders only.
    """
    asked = content(
        adapters=[{"method": "full"}, {"method": "lora", "r": 2}],
        training={"steps": 12, "gradient_accumulation": 2},
        model={"head": "probe-then-train"},
    )
    done = launch(asked, tmp_path / "together", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"completed": 4') == 1  # one process speaks

    alone = run(MeasureSpec.model_validate(asked), tmp_path / "alone")
    records, problems = Layout(tmp_path / "together").read()
    assert (len(records), problems) == (4, [])
    by_id = {record.run_id: record for record in records}
    for one in alone.records:
        both = by_id[one.run_id]
        assert both.training is not None
        assert both.training.steps == one.training.steps
        assert both.training.epochs == one.training.epochs
        np.testing.assert_allclose(both.training.loss, one.training.loss, rtol=1e-4, atol=2e-6)
        ours, theirs = confidences(both, tmp_path / "together"), confidences(one, alone.folder)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)
        # Each process pads its part of a batch for itself: as many real tokens, no more padding.
        real = [t.tokens * (1 - t.padding_share) for t in (both.training, one.training)]
        assert real[0] == pytest.approx(real[1])
        assert both.training.tokens <= one.training.tokens
        assert (both.machine.processes, both.machine.threads) == (2, 1)
        assert "2 processes trained together" in both.notes

    before = {path: path.stat().st_mtime_ns for path in Layout(tmp_path / "together").runs.iterdir()}
    assert launch(asked, tmp_path / "together").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in Layout(tmp_path / "together").runs.iterdir()} == before


def confidences(record: Record, folder: Path) -> Any:
    return pd.read_parquet(folder / str(record.predictions))["confidence"]


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_out(content: Any, tmp_path: Path) -> None:
    done = launch(content(training={"batch_size": 3}), tmp_path / "sweep")
    assert done.returncode != 0
    assert "a batch of 3 rows cannot be shared out evenly among 2 processes" in " ".join(done.stderr.split())
    assert not Layout(tmp_path / "sweep").runs.exists()

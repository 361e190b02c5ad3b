"""Kernels are in the precision that `kernel` asks for, whatever the runs are trained in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.experiments import kernel_jobs
from foretaste.experiments.kernel import kernel
from foretaste.experiments.kernel_result import Kernels
from foretaste.experiments.plan import Resources
from foretaste.spec import MeasureSpec

KINDS = ["sgd", "sign", "asymmetric"]
HEADS = ["probe-then-train", "random-then-train"]


def spec_of(base: Path, source: Path, training: str, precision: str, head: str) -> MeasureSpec:
    return MeasureSpec.model_validate(
        {
            "data": {"source": str(source)},
            "model": {"base": str(base), "max_length": 32, "head": head},
            "adapters": [{"method": "full"}, {"method": "lora", "r": 2}],
            "training": {"precision": training},
            "kernel": {
                "train_rows": 8,
                "test_rows": 4,
                "ranks": [],
                "kinds": KINDS,
                "precision": precision,
            },
            "seeds": [0],
        }
    )


@pytest.fixture(scope="module", params=HEADS)
def both(request: Any, tiny_bert: Path, csv_folder: Path) -> tuple[Kernels, Kernels]:
    """Float32 and float64, of one and the same weights: those that bfloat16 training starts from."""
    single, double = (
        kernel(spec_of(tiny_bert, csv_folder, "bfloat16", precision, request.param), None, base_dir=Path())
        for precision in ("float32", "float64")
    )
    return single, double


@pytest.mark.parametrize("arm", ["full", "lora-r2"])
def test_float32_is_float32_under_bfloat16_training(arm: str, both: tuple[Kernels, Kernels]) -> None:
    """Against float64: sums of float32, a thousand times nearer than bfloat16's eight bits.

    Signs are of entries above the dead zone; those whose rounding error takes them across it are few.
    """
    single, double = both
    assert single.values == pytest.approx(double.values, rel=1e-4, abs=1e-5)
    for kind, within in zip(KINDS, (1e-4, 1e-2, 1e-2), strict=True):
        mine, exact = (found.of(arm, kind).train for found in both)
        assert np.abs(mine - exact).max() < within * np.abs(exact).max(), kind


@pytest.mark.parametrize("training", ["float32", "bfloat16", "mixed-bfloat16"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_everything_that_is_captured_has_the_precision(
    training: str, precision: str, tiny_bert: Path, csv_folder: Path
) -> None:
    """The base model and an arm as peft builds it; weights are those of training, rounded and no further."""
    spec = spec_of(tiny_bert, csv_folder, training, precision, "random-then-train")
    ready = kernel_jobs.prepared(spec, Path(), Resources())
    wanted = getattr(torch, precision)
    parts = [ready.model, *(kernel_jobs.attached(ready.model, run) for run in ready.runs)]
    assert {p.dtype for part in parts for p in part.parameters()} == {wanted}
    assert all(p.requires_grad for p in ready.model.parameters())
    if training == "bfloat16":
        assert all(torch.equal(p, p.to(torch.bfloat16).to(wanted)) for p in ready.model.parameters())

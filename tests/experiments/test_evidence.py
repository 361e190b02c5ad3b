"""Kernels of a spec's arms as evidence: the layouts, and indicators against the kernels' own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.experiments.evidence import evidence
from foretaste.experiments.kernel import kernel
from foretaste.experiments.kernel_result import Kernels
from foretaste.indicators import evaluate
from foretaste.spec import MeasureSpec


def computed(base: Path, source: Path, **settings: Any) -> Kernels:
    spec = MeasureSpec.model_validate(
        {
            "name": "small",
            "data": {"source": str(source)},
            "model": {"base": str(base), "max_length": 32},
            "adapters": [{"method": "full"}, {"method": "lora", "r": 2}],
            "kernel": {"train_rows": 8, "test_rows": 4, "ranks": [], "precision": "float64", **settings},
            "seeds": [0],
        }
    )
    return kernel(spec, None, base_dir=Path())


@pytest.fixture(scope="module")
def margin(tiny_bert: Path, csv_folder: Path) -> Kernels:
    return computed(tiny_bert, csv_folder)


def test_a_margin(margin: Kernels) -> None:
    found = evidence(margin, "lora-r2")
    assert np.shape(found.kernel) == (8, 8)
    assert set(np.asarray(found.labels)) == {-1, 1}
    readings = evaluate(found)
    assert readings["trace_ratio"].value == pytest.approx(margin.trace_ratio("lora-r2"), rel=1e-10)
    without = margin.trace_ratio("lora-r2", head=False)
    assert readings["trace_ratio_without_head"].value == pytest.approx(without, rel=1e-10)
    # Mean over rows of g^T K g is the trace of the empirical Fisher, twice the bits by sum.
    y, f = np.asarray(found.labels), np.asarray(found.logits)
    g = -y / (1 + np.exp(y * f))
    trace = float(np.mean(g**2 * np.diagonal(margin.of("lora-r2").train)))
    assert 2 * readings["bits_sum"].value == pytest.approx(trace, rel=1e-10)
    missing = {name for name, reading in readings.items() if reading.missing}
    assert {readings[name].missing for name in missing} == {"needs twin", "needs layers", "needs traces"}


def test_logits(tiny_bert: Path, make_csv_folder: Any) -> None:
    kernels = computed(tiny_bert, make_csv_folder(classes=3))
    found = evidence(kernels, "full")
    k = np.asarray(found.kernel)
    assert k.shape == (8, 3, 8, 3)
    assert k[5, 2, 1, 0] == kernels.of("full").train[5 * 3 + 2, 1 * 3]
    readings = evaluate(found)
    assert readings["trace_ratio"].value == pytest.approx(1, rel=1e-12)
    assert readings["alignment"].value == pytest.approx(1, rel=1e-12)
    # Two directions a row move the prediction: the third moves all logits alike.
    true = evaluate(evidence(kernels, "full", fisher="true"))
    assert true["effective_rank"].value < 8 * 2


def test_without_full_fine_tuning_there_is_no_reference(margin: Kernels) -> None:
    readings = evaluate(evidence(margin, "lora-r2", reference="other"))
    assert readings["trace_ratio"].missing == "needs reference"
    assert not readings["bits_sum"].missing


def test_an_unknown_arm(margin: Kernels) -> None:
    with pytest.raises(UserError, match="there are: full, lora-r2"):
        evidence(margin, "lora")

"""What a prediction costs beside the training that it predicts: 6 adapters x 8 rates x 2 attacks on SST-2."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import rows
from benchmarks.result import Result
from foretaste.experiments.measure import measure
from foretaste.experiments.predict import predict
from foretaste.spec import MeasureSpec

ROWS = 4096
RATES = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4]


def spec(attacks: bool) -> MeasureSpec:
    """`ROWS` training rows, three epochs, one seed."""
    return MeasureSpec.model_validate(
        {
            "name": "cost",
            "data": rows.source()[0].model_dump(exclude_unset=True) | {"train_rows": ROWS},
            "model": {"base": "minilm-l6"},
            "adapters": [{"method": "full"}, {"method": "lora", "grid": {"r": [1, 4, 8, 16, 64]}}],
            "attacks": [
                {"method": "label-flip", "rates": RATES},
                {"method": "trigger", "target": 1, "rates": RATES},
            ]
            if attacks
            else [],
            "seeds": [0],
        }
    )


def run() -> list[Result]:
    """Time the prediction of the whole grid, and one clean run of the same spec with each of two arms."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        found = predict(spec(attacks=True), Path(folder) / "grid", base_dir=Path.cwd())
        seconds = time.perf_counter() - began
        cells = len(found.records)
        trained = measure(
            spec(attacks=False),
            Path(folder) / "run",
            base_dir=Path.cwd(),
            processes=1,
            only=lambda run: run.adapter.name == "full",
        )
        whole = sum(record.timings.total for record in trained.records if record.timings)
    return [
        Result(
            name=f"predicting {cells} cells against one training run",
            ours=f"{seconds:.0f} s",
            theirs=f"{whole:.0f} s",
            ratio=whole / seconds,
            target=1.0,
            note=f"{trained.records[0].resolved.data.train_rows} rows, 3 epochs, full fine-tuning",
        )
    ]

"""Few-shot runs as tasks of Ray give what they give in one process; kernels are shared through the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretaste.experiments.cluster import Cluster
from foretaste.experiments.fewshot import fewshot
from foretaste.fewshot.spec import FewShotSpec

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foretaste[ray]'")

# Ray leaves pipes and sockets of its own processes to the garbage collector, and warns of its own plans.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]
ASIDE = {"started", "timings", "machine", "commit", "dirty", "peak_memory"}


def test_the_same_records(prompt_model: Any, csv_folder: Path, tmp_path: Path) -> None:
    tuned = {"kind": "fine-tune", "learning_rates": [1e-2], "batch_sizes": [4], "steps": 4, "check_every": 2}
    spec = FewShotSpec.model_validate(
        {
            "tasks": [{"name": "sst2", "data": {"source": str(csv_folder)}, "test_rows": 12}],
            "model": {"base": str(prompt_model("bert"))},
            "k": [4],
            "splits": [13, 21],
            "arms": [{"kind": "zero-shot"}, tuned, {"kind": "kernel"}],
            "memory": "300MiB",
        }
    )
    alone = fewshot(spec, tmp_path / "alone", base_dir=tmp_path, processes=1, threads=1)
    there = fewshot(spec, tmp_path / "ray", base_dir=tmp_path, processes=2, threads=1, cluster=Cluster())
    assert there.statuses == alone.statuses == {"completed": 6}
    for ours, theirs in zip(there.records, alone.records, strict=True):
        one, other = (_numbers(record) for record in (ours, theirs))
        assert one == other


def _numbers(record: Any) -> dict[str, Any]:
    kept: dict[str, Any] = record.model_dump(exclude=ASIDE)
    for point in kept["grid"]:
        point.pop("seconds")
    return kept

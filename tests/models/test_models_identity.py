"""Runs that were recorded keep their ids: a new method or field must not make them strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretaste.models import adapters
from foretaste.spec import AdapterSpec, RunSpec
from foretaste.specfile import validate

RESULTS = Path(__file__).parents[2] / "results"
# Records of generative runs are of another kind, with a test of their own in tests/instruct.
SWEEPS = sorted(
    {
        path.parent.parent
        for path in RESULTS.glob("**/runs/*.json")
        if json.loads(path.read_text(encoding="utf-8"))["kind"] in ("measured", "predicted")
    }
)


def records(sweep: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((sweep / "runs").glob("*.json"))]
    assert found
    return found


@pytest.mark.skipif(not SWEEPS, reason="no recorded sweeps here")
@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_the_id_of_a_record_is_that_of_its_run(sweep: Path) -> None:
    for record in records(sweep):
        run = RunSpec.model_validate_json(json.dumps(record["resolved"]))
        assert run.id == record["run_id"], run.label


@pytest.mark.skipif(not SWEEPS, reason="no recorded sweeps here")
@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_a_request_still_asks_for_the_recorded_arms(sweep: Path) -> None:
    """Planned anew, its adapters get the settings that the records hold, so that the sweep would go on."""
    seen: dict[str, tuple[Any, set[str]]] = {}
    for record in records(sweep):
        key = json.dumps(record["request"]["adapters"], sort_keys=True)
        seen.setdefault(key, (record["request"]["adapters"], set()))[1].add(
            json.dumps(record["resolved"]["adapter"], sort_keys=True)
        )
    for requested, recorded in seen.values():
        planned = set()
        for index, entry in enumerate(requested):
            spec = validate(entry, AdapterSpec, origin=f"adapters.{index}")
            for single, chosen in adapters.expand(spec, index):
                arm = adapters.resolve(single, chosen, where=f"adapters.{index}")
                planned.add(json.dumps(arm.model_dump(mode="json"), sort_keys=True))
        assert recorded <= planned


def test_the_id_of_a_plain_arm() -> None:
    """Written down once: the canonical form has no field that the method does not set."""
    arm = adapters.resolve(AdapterSpec(method="lora"), {}, where="x")
    assert arm.model_dump(mode="json") == {
        "name": "lora-r8",
        "method": "lora",
        "config": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "init": None,
        "freeze": None,
    }

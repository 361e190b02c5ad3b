"""`foretaste measure --stack`: the same table in other company, and what it does not go together with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretaste.record import Layout, Record, read_record

ARMS = [{"method": "full"}, {"method": "lora", "r": 2}, {"method": "rslora", "r": 4}]


def records(folder: Path) -> dict[str, Record]:
    return {path.stem: read_record(path) for path in Layout(folder).runs.glob("*.json")}


def test_the_same_table(write_spec: Any, cli: Any, tmp_path: Path) -> None:
    """In float32: the tiny model's margins are wide of its rounding, so that every guess is the same."""
    spec = write_spec(adapters=ARMS, seeds=[0, 1])
    alone = cli("measure", spec, "-o", tmp_path / "alone", "--processes", 1, "--threads", 1)
    done = cli("measure", spec, "-o", tmp_path / "stacked", "--stack", 3, "--threads", 1)
    assert (alone.code, done.code) == (0, 0)
    assert "12 completed" in done.out
    assert "up to 3 runs trained together; groups: 3, runs alone: 4" in " ".join(done.err.split())
    ours, theirs = records(tmp_path / "stacked"), records(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    for run_id, record in ours.items():
        other = theirs[run_id]
        assert record.clean == other.clean
        assert record.triggered == other.triggered
        assert record.training is not None
        assert other.training is not None
        assert record.training.loss == pytest.approx(other.training.loss, abs=1e-4)
    again = cli("measure", spec, "-o", tmp_path / "alone", "--stack", 3, "--json")
    assert json.loads(again.out)["statuses"] == {"completed": 12}
    assert records(tmp_path / "alone") == theirs


@pytest.mark.parametrize("command", ["measure", "audit"])
def test_conflicts(command: str, write_spec: Any, cli: Any, tmp_path: Path) -> None:
    refused = cli(command, write_spec(), "-o", tmp_path / "sweep", "--stack", 2, "--processes", 2)
    assert (refused.code, refused.out) == (2, "")
    assert "stay in this process, and --processes asks for 2" in " ".join(refused.err.split())
    assert not (tmp_path / "sweep").exists()

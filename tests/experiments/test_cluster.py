"""Which engine is chosen, and that the local one knows nothing of Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from foretaste.errors import UserError
from foretaste.experiments import cluster as clusters
from foretaste.training import ranks


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_the_engine_is_chosen_by_name(with_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clusters.chosen("local", None) is None
    assert clusters.chosen("ray", None) == clusters.Cluster(None)
    assert clusters.chosen("ray", "auto") == clusters.Cluster("auto")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert clusters.chosen("ray", None) == clusters.Cluster("10.0.0.1:6379")
    assert clusters.chosen("ray", "auto") == clusters.Cluster("auto")
    assert clusters.chosen("local", None) is None


@pytest.mark.parametrize(
    ("engine", "address", "message"),
    [
        ("rya", None, "unknown engine 'rya'.*Did you mean 'ray'"),
        ("local", "auto", "the engine is local.*Add --engine ray"),
        ("ray", "ray://10.0.0.1:10001", "Ray Client.*--address auto"),
    ],
)
def test_what_cannot_work_is_refused(engine: str, address: str | None, message: str, with_ray: None) -> None:
    with pytest.raises(UserError, match=message):
        clusters.chosen(engine, address)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    assert clusters.chosen("local", None) is None
    with pytest.raises(UserError, match=r"not installed.*foretaste\[ray\]"):
        clusters.chosen("ray", None)


def test_the_local_engine_loads_no_ray() -> None:
    program = (
        "import sys, foretaste.cli, foretaste.experiments.measure, foretaste.experiments.instruct,"
        " foretaste.experiments.audit, foretaste.reproduction;"
        "print([m for m in sys.modules if m == 'ray' or m.startswith('ray.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_processes_that_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (ranks.count(), ranks.number(), ranks.on_this_machine(), ranks.share_of(7)) == (1, 0, 1, 7)
    monkeypatch.setenv("WORLD_SIZE", "4")  # alone it is a leftover of something else
    assert ranks.count() == 1
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (ranks.count(), ranks.number(), ranks.on_this_machine(), ranks.share_of(8)) == (4, 3, 2, 2)
    with pytest.raises(UserError, match="6 rows cannot be shared out evenly among 4 processes"):
        ranks.share_of(6)
    with pytest.raises(UserError, match="an audit is done by one process, and 4 were started"):
        ranks.require_one("an audit")

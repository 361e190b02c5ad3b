"""Sweeps small enough to run by the dozen, and a watcher that writes down what it hears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.spec import MeasureSpec

Spec = Callable[..., MeasureSpec]
Run = Callable[..., Any]


class Watch:
    """A watcher that keeps every call; `on_*` may be set to do something at that moment."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.problems: list[UserError] = []
        self.allocation: Any = None
        self.started_runs: list[str] = []
        self.finished_runs: list[str] = []
        self.retries: list[tuple[str, int]] = []
        self.steps: list[tuple[str, int, int]] = []
        self.stops: list[int] = []
        self.notes: list[str] = []
        self.on_started: Callable[[Any], None] = lambda run: None
        self.on_stepped: Callable[[str], None] = lambda run_id: None

    def planned(self, plan: Any, missing: Sequence[Any], problems: Sequence[UserError]) -> None:
        self.missing = [run.id for run in missing]
        self.problems = list(problems)

    def allocated(self, allocation: Any) -> None:
        self.allocation = allocation

    def noted(self, text: str) -> None:
        self.notes.append(text)

    def started(self, run: Any) -> None:
        self.started_runs.append(run.id)
        self.on_started(run)

    def stepped(self, run_id: str, done: int, total: int) -> None:
        self.steps.append((run_id, done, total))
        self.on_stepped(run_id)

    def finished(self, run: Any, record: Any) -> None:
        self.finished_runs.append(run.id)

    def retried(self, run: Any, attempt: int) -> None:
        self.retries.append((run.id, attempt))

    def stopping(self, active: int) -> None:
        self.stops.append(active)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="session")
def content(csv_folder: Path, tiny_bert: Path) -> Callable[..., dict[str, Any]]:
    """`content(**sections)`: a spec as a mapping; by default two quick runs, clean and half flipped.

    `data`, `model` and `training` are merged into the defaults, everything else replaces them. The head is
    random, which saves the probe's half second for each run.
    """

    def make(**sections: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "data": {"source": str(csv_folder)},
            "model": {"base": str(tiny_bert), "max_length": 32, "head": "random-then-train"},
            "adapters": [{"method": "full"}],
            "attacks": [{"method": "label-flip", "rates": [0.5]}],
            "training": {"steps": 2, "batch_size": 8},
            "seeds": [0],
        }
        for key, value in sections.items():
            base[key] = {**base[key], **value} if key in {"data", "model", "training"} else value
        return base

    return make


@pytest.fixture(scope="session")
def spec(content: Callable[..., dict[str, Any]]) -> Spec:
    """`spec(**sections)`: the same, validated."""
    return lambda **sections: MeasureSpec.model_validate(content(**sections))


@pytest.fixture(scope="session")
def run() -> Run:
    """`run(spec, folder, **options)`: the sweep in this process with one thread."""

    def measure(spec: MeasureSpec, folder: Path, **options: Any) -> Any:
        from foretaste.experiments import measure as experiment

        fixed = {"processes": 1, "threads": 1, "base_dir": Path("/nonexistent")}
        return experiment.measure(spec, folder, **fixed | options)

    return measure


def files(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones included, apart from the lock."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="session")
def files_in() -> Callable[[Path], set[str]]:
    """`files_in(folder)`: every file, hidden ones included, apart from the lock."""
    return files

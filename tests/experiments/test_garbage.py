"""Between runs: what the last one left is freed, and what the libraries hold is not collected again."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foretaste.experiments import engine
from foretaste.experiments.prepare import Workspace


class _Model:
    """In a cycle, as torch modules are."""

    def __init__(self) -> None:
        self.itself = self


def test_a_run_begins_without_the_garbage_of_the_last_and_collections_are_short(tmp_path: Path) -> None:
    left: list[weakref.ref[_Model]] = []
    seen: list[tuple[int, int, bool]] = []

    def execute(run: Any, workspace: Workspace, **_: Any) -> Any:
        held = sum(len(gc.get_objects(generation)) for generation in range(3))
        seen.append((gc.get_freeze_count(), held, all(ref() is None for ref in left)))
        left.append(weakref.ref(_Model()))
        return SimpleNamespace(status="completed")

    runs = [SimpleNamespace(id=str(number), label="") for number in range(3)]
    space = Workspace(tmp_path, tmp_path, "", {})
    engine.run_inline(runs, space, engine.Listener(), 1, engine.Job(execute, execute))
    for frozen, held, freed in seen:
        assert freed
        assert frozen > 100 * held  # torch alone brings some hundred thousand
    assert gc.get_freeze_count() == 0  # afterwards everything is as it was

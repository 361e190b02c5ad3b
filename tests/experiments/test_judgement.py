"""Where a prediction says that it holds: from the linearity check, and never beyond what was checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foretaste.experiments.predicted import judge
from foretaste.prediction.movement import Movement
from foretaste.spec import TrainingSpec


def judged(errors: list[float], distance: float, **training: Any) -> tuple[str, list[str]]:
    movement = Movement(np.array([0.5, 1.0, 2.0]), np.array(errors))
    captures: Any = SimpleNamespace(probes=True)
    reference: Any = SimpleNamespace(movements={"arm": movement})
    arm: Any = SimpleNamespace(key="arm")
    run: Any = SimpleNamespace(training=TrainingSpec(**training))
    found = judge(captures, reference, arm, run, distance)
    return found.validity, found.reasons


@pytest.mark.parametrize(
    ("errors", "distance", "validity", "words"),
    [
        ([0.1, 0.2, 0.3], 1.5, "valid", []),
        ([0.1, 0.2, 0.3], 2.0, "valid", []),
        ([0.1, 0.2, 0.3], 2.1, "doubtful", ["moves the outputs by 2.1; linearity was checked up to 2"]),
        ([0.1, 0.6, 0.8], 1.0, "doubtful", ["error 60%"]),
        ([0.1, 0.6, 1.2], 2.0, "outside", ["error 120%"]),
        ([0.1, 0.6, 1.2], 9.0, "outside", ["error 120%", "by 9.0"]),
    ],
)
def test_the_linearity_check_decides(
    errors: list[float], distance: float, validity: str, words: list[str]
) -> None:
    found, reasons = judged(errors, distance)
    assert found == validity
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_an_optimiser_that_is_not_modelled_is_outside() -> None:
    found, reasons = judged([0.1, 0.2, 0.3], 1.0, optimizer="adafactor")
    assert found == "outside"
    assert "adafactor" in reasons[0]

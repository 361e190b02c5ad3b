"""How linear outputs are in the weights: by hand on small models, by differences on a real one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracles import own, subject

from foretaste.kernels import Inputs, logits
from foretaste.prediction.movement import DISTANCES, Movement, movement

ROWS, WIDTH = 7, 5


class Bent(torch.nn.Module):
    """f = y + bend y^2 with y = <w, x>."""

    def __init__(self, bend: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, 1, bias=False)
        self.bend = bend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y + self.bend * y**2


def outputs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    values: torch.Tensor = model(batch["x"])
    return values


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def rows(x: torch.Tensor) -> Inputs:
    return Inputs([1] * len(x), lambda numbers: {"x": x[list(numbers)]})


def bent(bend: float) -> tuple[Bent, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return Bent(bend).double(), {"layer.weight": torch.randn(1, WIDTH, dtype=torch.float64)}


def test_a_linear_model_has_no_error(x: torch.Tensor) -> None:
    model, change = bent(0.0)
    found = movement(model, change, outputs, rows(x))
    assert (found.distances == DISTANCES).all()
    assert found.errors == pytest.approx(np.zeros(len(DISTANCES)), abs=1e-12)


def test_a_quadratic_model_has_the_error_that_it_has(x: torch.Tensor) -> None:
    """f(w + t d) = f + t (1 + 2 bend y) dy + t^2 bend dy^2: the last term is the error, and grows as t^2."""
    model, change = bent(0.3)
    y = (x @ model.layer.weight.detach().T).numpy()
    dy = (x @ change["layer.weight"].T).numpy()
    size = np.sqrt(np.mean(((1 + 0.6 * y) * dy) ** 2))
    want = [np.sqrt(np.mean((0.3 * (r / size) ** 2 * dy**2) ** 2)) / r for r in DISTANCES]
    found = movement(model, change, outputs, rows(x))
    assert found.errors == pytest.approx(np.array(want), rel=1e-10)
    assert found.errors / found.errors[0] == pytest.approx(DISTANCES / DISTANCES[0], rel=1e-10)


def test_the_length_of_the_direction_does_not_matter_and_no_direction_is_no_error(x: torch.Tensor) -> None:
    model, change = bent(0.3)
    want = movement(model, change, outputs, rows(x)).errors
    longer = {name: 1e3 * value for name, value in change.items()}
    assert movement(model, longer, outputs, rows(x)).errors == pytest.approx(want, rel=1e-9)
    still = {name: 0 * value for name, value in change.items()}
    assert movement(model, still, outputs, rows(x)).errors.tolist() == [0.0] * len(DISTANCES)


@pytest.mark.parametrize("family", ["bert", "gpt2", "albert"])
def test_a_real_model_is_compared_and_left_alone(family: str) -> None:
    """The slope by central differences: relative errors of about (1e-5)^2, and eps / 1e-5 by rounding."""
    it = subject(family)
    model = own(it.model)
    generator = torch.Generator().manual_seed(2)
    change = {
        name: torch.sign(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, p in model.named_parameters()
    }
    before = copy.deepcopy(model.state_dict())
    found = movement(model, change, logits, it.rows(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def at(step: float) -> np.ndarray:
        moved = own(it.model)
        with torch.no_grad():
            for name, value in change.items():
                moved.get_parameter(name).add_(step * value)
            return np.asarray(logits(moved, it.rows().collate(range(6))).numpy())

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    size = np.sqrt(np.mean(slope**2))
    want = [np.sqrt(np.mean((at(r / size) - at(0.0) - r / size * slope) ** 2)) / r for r in DISTANCES]
    assert found.errors == pytest.approx(np.array(want), rel=1e-4)
    assert found.errors[0] > 0.01


def test_errors_between_the_distances() -> None:
    found = Movement(np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.2, 0.6]))
    assert [found.at(d) for d in (0.0, 0.5, 0.75, 1.5, 2.0, 9.0)] == pytest.approx(
        [0.1, 0.1, 0.15, 0.4, 0.6, 0.6]
    )

"""How far the outputs are linear in the weights, over the distance that training will go."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from foretaste.kernels.behaviour import linearised
from foretaste.kernels.capture import Inputs, Outputs

Float = npt.NDArray[np.float64]

DISTANCES = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
"""Root mean square changes of the outputs at which linearity is checked; a margin of 1 is odds of 2.7."""


@dataclass(frozen=True)
class Movement:
    """Error of the linearised model along the first step of training.

    Attributes:
        distances: Root mean square change of the outputs by the linearised model, shape (D,).
        errors: Root mean square error of the linearised model, relative to the distance, shape (D,).
    """

    distances: Float
    errors: Float

    def at(self, distance: float) -> float:
        """The error at a distance, between the checked ones by interpolation, beyond them the last."""
        return float(np.interp(distance, self.distances, self.errors))


def movement(
    model: nn.Module, change: Mapping[str, torch.Tensor], outputs: Outputs, inputs: Inputs
) -> Movement:
    """Compare the linearised model with the model along one direction of the weights.

    Args:
        model: In evaluation mode, its parameters requiring gradients; it is not changed.
        change: The direction, by name of the parameter.
        outputs: Of the model.
        inputs: The rows that the comparison is made on.
    """
    with torch.no_grad():
        batch = inputs.collate(range(len(inputs)))
        start = outputs(model, batch).double().cpu().numpy()
    slope = linearised(model, change, outputs, inputs) - start
    size = float(np.sqrt(np.mean(slope**2)))
    if size == 0.0:
        return Movement(DISTANCES, np.zeros(len(DISTANCES)))
    errors = []
    with torch.no_grad():
        moved = copy.deepcopy(model)
        for distance in DISTANCES:
            step = distance / size
            for name, direction in change.items():
                moved.get_parameter(name).copy_(model.get_parameter(name) + step * direction)
            real = outputs(moved, batch).double().cpu().numpy() - start
            errors.append(float(np.sqrt(np.mean((real - step * slope) ** 2))) / distance)
    return Movement(DISTANCES, np.asarray(errors))

"""Does fine-tuning behave like its kernel? Malladi et al. 2023, Definition 3.2 and section 6.

The comparisons of kernels and of accuracies are in `theory.criteria`; here is what needs the model: the
linearised model, the output derivative, and the two parts of a LoRA kernel along training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from foretaste.errors import UserError
from foretaste.kernels.capture import Inputs, Outputs, Recorder
from foretaste.kernels.gradients import Gradient
from foretaste.kernels.parameters import trainable
from foretaste.kernels.probe import probe
from foretaste.kernels.products import squared_norms

Float = npt.NDArray[np.float64]


def linearised(
    model: nn.Module,
    change: Mapping[str, torch.Tensor],
    outputs: Outputs,
    inputs: Inputs,
    *,
    batch: int = 16,
) -> Float:
    """f(x; theta0) + <gradient at theta0, change>: the first-order Taylor model, shape (rows, outputs).

    The inner products are taken layer by layer from the captured gradients, so that no forward-mode
    differentiation is needed, which attention kernels often lack.

    Args:
        model: At theta0, in evaluation mode, its trained parameters requiring gradients.
        change: theta - theta0 by parameter name; parameters that are not named do not move.
        outputs: What is linearised.
        inputs: The rows.
        batch: Rows in a forward pass, where rows can share one.

    Raises:
        UserError: A named parameter is not trainable, or its change has another shape.
    """
    parameters = {p.name: p for p in trainable(model)}
    for name, value in change.items():
        if name not in parameters:
            raise UserError(f"'{name}' is no trainable parameter of the model", where="change")
        if tuple(value.shape) != parameters[name].shape:
            expected = parameters[name].shape
            raise UserError(f"the change of '{name}' has shape {tuple(value.shape)}, expected {expected}")
    found = probe(model, [parameters[name] for name in change], outputs, inputs)
    size = batch if found.batched else 1
    result = np.full((len(inputs), found.outputs), np.nan)
    with Recorder(model, found.parameters, outputs) as recorder:
        for start in range(0, len(inputs), size):
            rows = range(start, min(start + size, len(inputs)))
            values, gradients = recorder.collect(inputs.collate(rows))
            moved = values.double()
            for name, gradient in gradients.items():
                moved = moved + _moved(gradient, change[name])
            result[start : start + len(rows)] = moved.cpu().numpy()
    return result


def _moved(gradient: Gradient, change: torch.Tensor) -> torch.Tensor:
    reference = gradient.g if hasattr(gradient, "g") else gradient.d
    return gradient.dot(change.to(reference)).double()


def output_derivative(logits: Float, labels: Sequence[int]) -> Float:
    """chi, the derivative of the cross-entropy with respect to the outputs: softmax(f) - onehot(y).

    Small chi before fine-tuning is the condition under which kernel behaviour is proved (Malladi et al. 2023,
    Definition 3.1, Theorem 5.5; their Table 8 averages it over a data set).

    Args:
        logits: Shape (rows, classes).
        labels: Class ids.

    Returns:
        Shape (rows, classes).
    """
    odds = np.exp(logits - logits.max(1, keepdims=True))
    chi: Float = odds / odds.sum(1, keepdims=True)
    chi[np.arange(len(labels)), np.asarray(labels)] -= 1.0
    return chi


@dataclass(frozen=True)
class LoraTraces:
    """Traces of the two parts of a LoRA kernel, as the model stands.

    Attributes:
        a: By adapted layer, of the part of A: zero at B = 0, and the part that lazy training wants small.
        b: By adapted layer, of the part of B.
    """

    a: dict[str, float]
    b: dict[str, float]

    @property
    def ratio(self) -> float:
        """Tr K_A / tr K_B over all layers; NaN where tr K_B is zero."""
        below = sum(self.b.values())
        return sum(self.a.values()) / below if below > 0 else float("nan")


def lora_traces(model: nn.Module, outputs: Outputs, inputs: Inputs, *, batch: int = 16) -> LoraTraces:
    """Tr K_A and tr K_B of a peft LoRA model, at any point of its training.

    Both include s, which peft applies between A and B.

    Args:
        model: A peft model with LoRA, in evaluation mode.
        outputs: What is differentiated.
        inputs: The rows that the trace is taken over.
        batch: Rows in a forward pass, where rows can share one.

    Raises:
        UserError: The model has no LoRA matrices that are trained.
    """
    wanted = [p for p in trainable(model) if "lora_A" in p.name or "lora_B" in p.name]
    if not wanted:
        raise UserError("the model has no trainable LoRA matrices", cure="Wrap it with peft's LoraConfig.")
    found = probe(model, wanted, outputs, inputs)
    size = batch if found.batched else 1
    traces: dict[str, dict[str, float]] = {"lora_A": {}, "lora_B": {}}
    with Recorder(model, found.parameters, outputs) as recorder:
        for start in range(0, len(inputs), size):
            rows = range(start, min(start + size, len(inputs)))
            _, gradients = recorder.collect(inputs.collate(rows))
            for name, gradient in gradients.items():
                matrix = "lora_A" if "lora_A" in name else "lora_B"
                layer = name.partition(f".{matrix}")[0]
                part = traces[matrix]
                part[layer] = part.get(layer, 0.0) + float(squared_norms(gradient).sum())
    return LoraTraces(traces["lora_A"], traces["lora_B"])

"""Which way of capturing is exact for which parameter, found by comparison with automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from foretaste.errors import UserError
from foretaste.kernels.capture import Batch, Inputs, NoBatchAxis, Outputs, Recorder, outputs_of_leaves
from foretaste.kernels.gradients import Gradient
from foretaste.kernels.parameters import Parameter

# Relative error up to which a gradient from hooks counts as the true one: a thousand times the rounding
# error of the precision, far below any term that could be missing.
AGREEMENT = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True)
class Probe:
    """How a model's gradients are captured exactly.

    Attributes:
        parameters: Those that have a gradient, each with the form that was found to be exact.
        unused: Names of trainable parameters that no output depends on.
        batched: Whether rows can share a batch; else they are captured one at a time.
        row_bytes: Memory of one row of the largest length, by parameter.
        outputs: Number of outputs.
    """

    parameters: list[Parameter]
    unused: list[str]
    batched: bool
    row_bytes: dict[str, int]
    outputs: int


def probe(model: nn.Module, parameters: Sequence[Parameter], outputs: Outputs, inputs: Inputs) -> Probe:
    """Check on two rows, the shortest and the longest, that what hooks give is the gradient.

    Args:
        model: In evaluation mode.
        parameters: Those whose gradients are wanted.
        outputs: What is differentiated.
        inputs: The rows.

    Raises:
        UserError: The model is not deterministic, or its values are not finite; the layer is named.
    """
    _check_deterministic(model, outputs, inputs)
    order = sorted(range(len(inputs)), key=lambda i: inputs.lengths[i])
    rows = [order[0], order[-1]]
    truth = [_autograd(model, parameters, outputs, inputs.collate([row])) for row in rows]
    used = [p for p in parameters if any(p.name in found for found in truth)]
    unused = [p.name for p in parameters if p not in used]
    if not used:
        raise UserError("no output of the model depends on any trainable parameter")
    exact = _exact_in_one_batch(model, used, outputs, inputs, rows, truth)
    batched = all(p.form != "explicit" and exact[p.name] for p in used)
    if not batched:
        exact = _exact_one_by_one(model, used, outputs, inputs, rows, truth)
        used = [p if exact[p.name] else replace(p, form="explicit") for p in used]
    with Recorder(model, used, outputs) as recorder:
        values, found = recorder.collect(inputs.collate([order[-1]]))
    sizes = {name: gradient.nbytes for name, gradient in found.items()}
    return Probe(used, unused, batched, sizes, values.shape[1])


Dense = dict[str, torch.Tensor]


def _autograd(model: nn.Module, parameters: Sequence[Parameter], outputs: Outputs, batch: Batch) -> Dense:
    """The gradients of one row by automatic differentiation: shape (outputs, *shape) each."""
    explicit = [replace(p, form="explicit") for p in parameters]
    with Recorder(model, explicit, outputs) as recorder:
        _, found = recorder.collect(batch)
    return {name: gradient.dense()[0] for name, gradient in found.items()}


def _agree(mine: torch.Tensor | None, truth: torch.Tensor | None, dtype: torch.dtype, scale: float) -> bool:
    if truth is None:
        return mine is None or float(mine.norm()) <= AGREEMENT[dtype] * scale
    if mine is None:
        return False
    # A gradient that is zero but for rounding (a key bias) is held against the scale of the others.
    return float((mine - truth).norm()) <= AGREEMENT[dtype] * max(float(truth.norm()), 1e-3 * scale)


def _compare(
    parameters: Sequence[Parameter], found: dict[str, Gradient], truth: Sequence[Dense], dtype: torch.dtype
) -> dict[str, bool]:
    """Whether each gradient of a batch is the true one in all its rows."""
    scales = [max((float(g.norm()) for g in dense.values()), default=0.0) for dense in truth]
    exact = {}
    for p in parameters:
        mine = found[p.name].dense() if p.name in found else None
        exact[p.name] = all(
            _agree(None if mine is None else mine[at], dense.get(p.name), dtype, scale)
            for at, (dense, scale) in enumerate(zip(truth, scales, strict=True))
        )
    return exact


def _exact_in_one_batch(
    model: nn.Module,
    parameters: Sequence[Parameter],
    outputs: Outputs,
    inputs: Inputs,
    rows: Sequence[int],
    truth: Sequence[Dense],
) -> dict[str, bool]:
    hooked = [p for p in parameters if p.form != "explicit"]
    try:
        with Recorder(model, hooked, outputs) as recorder:
            _, found = recorder.collect(inputs.collate(rows))
    except (NoBatchAxis, RuntimeError, TypeError, ValueError, IndexError):
        return {p.name: False for p in parameters}
    dtype = _dtype(model)
    return {p.name: False for p in parameters} | _compare(hooked, found, truth, dtype)


def _exact_one_by_one(
    model: nn.Module,
    parameters: Sequence[Parameter],
    outputs: Outputs,
    inputs: Inputs,
    rows: Sequence[int],
    truth: Sequence[Dense],
) -> dict[str, bool]:
    exact = {p.name: p.form != "explicit" for p in parameters}
    dtype = _dtype(model)
    for row, dense in zip(rows, truth, strict=True):
        hooked = [p for p in parameters if exact[p.name]]
        try:
            with Recorder(model, hooked, outputs) as recorder:
                _, found = recorder.collect(inputs.collate([row]))
        except (RuntimeError, TypeError, ValueError, IndexError):
            if not any(p.form == "local" and exact[p.name] for p in parameters):
                return {p.name: False for p in parameters}
            # Modules of unknown kinds may not run by themselves: without them.
            fewer = [replace(p, form="explicit") if p.form == "local" else p for p in parameters]
            return _exact_one_by_one(model, fewer, outputs, inputs, rows, truth)
        exact |= _compare(hooked, found, [dense], dtype)
    return exact


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _check_deterministic(model: nn.Module, outputs: Outputs, inputs: Inputs) -> None:
    """Two passes over the same rows give the same numbers; the first layer that does not is named."""
    batch = inputs.collate(range(min(2, len(inputs))))
    seen: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        with outputs_of_leaves(model) as found, torch.no_grad():
            found[""] = outputs(model, batch)
        seen.append(found)
    if torch.equal(seen[0][""], seen[1][""]) or not torch.isfinite(seen[0][""]).all():
        return
    for name, value in seen[0].items():
        if not torch.equal(value, seen[1][name]):
            raise UserError(
                f"the model is not deterministic: layer '{name}' gives two outputs for the same rows",
                cure="Call model.eval(), which turns dropout off.",
            )

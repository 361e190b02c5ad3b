"""Slices of the gradients of every row, from one capture of the base model.

A kernel is a sum over parameters, and a sum over a random part of them, scaled up, is an unbiased estimate of
it. Of every matrix some rows are kept, drawn once (of an embedding table some columns), so that a row's
gradient is some hundred thousand numbers where the model has millions; biases, norms and the head are kept
whole. Unlike a random projection, a slice keeps single entries, which the second moments of Adam are of.

LoRA's gradients come from the same capture, as in `kernels.lora`: that of B is s G A^T; that of A is
s B^T G, zero at B = 0, and is taken at the B that one step of Adam with rate 1 leads to, -sign(s G_mean A^T).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from foretaste.errors import UserError
from foretaste.kernels.capture import Inputs, Outputs, Recorder
from foretaste.kernels.gradients import Gradient, Lookup, Outer
from foretaste.kernels.lora import Adapted
from foretaste.kernels.parameters import Parameter, trainable
from foretaste.kernels.probe import Probe, probe
from foretaste.seeds import generator

Float = npt.NDArray[np.float64]

BATCH_ROWS = 32
FULL, HEAD, LAST, APART = "full", "head", "last", "apart"


@dataclass(frozen=True)
class Lora:
    """LoRA on the captured model.

    Attributes:
        layers: By name of the parameter that is adapted.
        first: B after one step of rate 1, shape (m, r), by the same names; None where A is not trained, or
            B is not zero.
    """

    layers: Mapping[str, Adapted]
    first: Mapping[str, torch.Tensor] | None


@dataclass(frozen=True)
class Block:
    """The kept entries of one parameter's gradient.

    Attributes:
        values: Shape (rows, outputs, entries), float32.
        weight: Entries of the parameter for each kept one.
    """

    values: torch.Tensor
    weight: float


@dataclass(frozen=True)
class Features:
    """Kept entries of the gradients of rows.

    Attributes:
        blocks: By part: `full` is all below the head, `last` the head's last layer, `head` the rest of
            the head; NAME/B and NAME/A of LoRA; `apart` what was asked to be kept apart.
        outputs: Of the model, shape (rows, outputs).
    """

    blocks: dict[str, list[Block]]
    outputs: Float


def mean_gradient(
    model: nn.Module,
    inputs: Inputs,
    rows: Sequence[int],
    loss: Callable[[torch.Tensor, Sequence[int]], torch.Tensor],
    outputs: Outputs,
    names: Sequence[str],
    batch: int = BATCH_ROWS,
) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss of some rows, by name of the parameter.

    Args:
        model: Its parameters requiring gradients.
        inputs: Rows.
        rows: Those that count.
        loss: From outputs and row numbers to the sum of their losses.
        outputs: Of the model.
        names: Parameters whose gradient is wanted.
        batch: Most rows in a pass.
    """
    if not names:
        return {}
    wanted = [model.get_parameter(name) for name in names]
    total = [torch.zeros_like(p) for p in wanted]
    order = sorted(rows, key=lambda row: (inputs.lengths[row], row))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        value = loss(outputs(model, inputs.collate(some)), some) / len(order)
        for sum_, part in zip(total, torch.autograd.grad(value, wanted, allow_unused=True), strict=True):
            if part is not None:
                sum_ += part
    return dict(zip(names, total, strict=True))


def first_steps(
    model: nn.Module, layers: Mapping[str, Adapted], gradients: Mapping[str, torch.Tensor]
) -> Lora:
    """LoRA with the B that Adam's first step of rate 1 leads to.

    Args:
        model: Whose layers are adapted.
        layers: What is adapted.
        gradients: Of the loss, by the same names, each in the parameter's own shape.
    """
    both = all(a.trains == frozenset({"A", "B"}) and a.B is None for a in layers.values())
    if not both:
        return Lora(layers, None)
    first = {
        name: -torch.sign(a.scaling * oriented(model, name, gradients[name]) @ a.A.to(gradients[name]).T)
        for name, a in layers.items()
    }
    return Lora(layers, first)


def oriented(model: nn.Module, name: str, matrix: torch.Tensor) -> torch.Tensor:
    """A linear layer's weight as (outputs, inputs) from how it is stored, and the other way round.

    Args:
        model: That has the layer.
        name: Of the weight.
        matrix: Of the weight's shape, or turned.
    """
    return matrix.T if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) else matrix


def capture(
    model: nn.Module,
    outputs: Outputs,
    inputs: Inputs,
    loras: Mapping[str, Lora],
    *,
    entries: int,
    seed: int,
    full: bool,
    last: str = "",
    apart: Callable[[str], bool] | None = None,
    found: Probe | None = None,
    batch: int = BATCH_ROWS,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Features, Probe]:
    """Keep slices of every row's gradients.

    Args:
        model: In evaluation mode, its parameters requiring gradients.
        outputs: What is differentiated.
        inputs: The rows.
        loras: LoRA arms to be served, by name.
        entries: To keep of a row's gradient, about, for each of `full` and the parts of LoRA.
        seed: Of the slices.
        full: Whether to keep the gradients of the base model's own parameters.
        last: Name of the head's last layer; empty if it is not to be told from the rest of the head.
        apart: Whether the parameter of a name is a part of its own; by default none is.
        found: What an earlier capture of the same model found out.
        batch: Most rows in a pass.
        on_progress: Called with the share that is done.

    Returns:
        The features, and what was found out about the model.

    Raises:
        UserError: As `kernels.probe`, or a value is not finite.
    """
    found = found or probe(model, trainable(model), outputs, inputs)
    keep = _Keeper(found.parameters, loras, entries, seed, len(inputs), full, last, apart)
    size = batch if found.batched else 1
    order = sorted(range(len(inputs)), key=lambda row: (inputs.lengths[row], row))
    values = np.full((len(inputs), found.outputs), np.nan)
    with Recorder(model, found.parameters, outputs) as recorder:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            got, gradients = recorder.collect(inputs.collate(rows))
            values[rows] = got.double().cpu().numpy()
            for parameter in found.parameters:
                if parameter.name in gradients:
                    keep.add(parameter, gradients[parameter.name], rows)
            if on_progress is not None:
                on_progress((start + len(rows)) / len(order))
    return Features(keep.blocks(), values), found


class _Keeper:
    """Chooses the slices once, and fills them batch by batch."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        loras: Mapping[str, Lora],
        entries: int,
        seed: int,
        rows: int,
        full: bool,
        last: str,
        apart: Callable[[str], bool] | None,
    ) -> None:
        self._loras = loras
        self._seed = seed
        self._rows = rows
        self._full = full
        self._last = last
        self._apart = apart or (lambda _: False)
        body = sum(float(np.prod(p.shape)) for p in parameters if p.group != "head")
        self._share = dict.fromkeys((FULL, APART), entries / max(body, 1.0))
        for name, lora in loras.items():
            b = sum(p.shape[_side(p, a, "m")] * a.A.shape[0] for p, a in _layers(parameters, lora))
            a = sum(p.shape[_side(p, a, "n")] * a.A.shape[0] for p, a in _layers(parameters, lora))
            self._share |= {f"{name}/B": entries / max(b, 1), f"{name}/A": entries / max(a, 1)}
        self._chosen: dict[tuple[str, str], torch.Tensor] = {}
        self._filled: dict[tuple[str, str], Block] = {}
        self._tables: dict[str, tuple[float, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]] = {}

    def add(self, parameter: Parameter, gradient: Gradient, rows: Sequence[int]) -> None:
        """Keep what is wanted of one parameter's gradients."""
        part = HEAD if parameter.group == "head" else FULL
        if self._last and parameter.name in {f"{self._last}.weight", f"{self._last}.bias"}:
            part = LAST
        elif self._apart(parameter.name):
            part = APART
        if isinstance(gradient, Outer):
            for name, lora in self._loras.items():
                if parameter.name in lora.layers:
                    self._add_lora(name, lora, parameter.name, gradient, rows)
            if part in (HEAD, LAST):
                self._put(part, parameter.name, gradient.dense().flatten(2), 1.0, rows)
            elif part == APART or self._full:
                m = gradient.d.shape[3]
                kept = self._choose(part, parameter.name, m)
                values = torch.einsum("rctm,rtn->rcmn", gradient.d[..., kept], gradient.x)
                self._put(part, parameter.name, values.flatten(2), m / len(kept), rows)
        elif part == FULL and not self._full:
            return
        elif isinstance(gradient, Lookup):
            self._add_table(parameter.name, gradient, rows)
        else:
            self._put(part, parameter.name, gradient.dense().flatten(2), 1.0, rows)

    def blocks(self) -> dict[str, list[Block]]:
        """Everything that was kept, by part."""
        found: dict[str, list[Block]] = {}
        for (part, _), block in self._filled.items():
            found.setdefault(part, []).append(block)
        for weight, pieces in self._tables.values():
            found.setdefault(FULL, []).append(Block(_table(pieces, self._rows), weight))
        return found

    def _add_lora(self, name: str, lora: Lora, layer: str, gradient: Outer, rows: Sequence[int]) -> None:
        adapted = lora.layers[layer]
        m, n = gradient.d.shape[3], gradient.x.shape[2]
        if "B" in adapted.trains:
            kept = self._choose(f"{name}/B", layer, m)
            through = gradient.x @ adapted.A.to(gradient.x).T
            values = adapted.scaling * torch.einsum("rctm,rtk->rcmk", gradient.d[..., kept], through)
            self._put(f"{name}/B", layer, values.flatten(2), m / len(kept), rows)
        matrix = lora.first[layer] if lora.first is not None else adapted.B
        if "A" in adapted.trains and matrix is not None:
            kept = self._choose(f"{name}/A", layer, n)
            back = gradient.d @ matrix.to(gradient.d)
            values = adapted.scaling * torch.einsum("rctk,rtn->rckn", back, gradient.x[..., kept])
            self._put(f"{name}/A", layer, values.flatten(2), n / len(kept), rows)

    def _add_table(self, name: str, gradient: Lookup, rows: Sequence[int]) -> None:
        """Columns of an embedding table; rows of the table that no text uses have no gradient."""
        width = gradient.d.shape[3]
        kept = self._choose(FULL, name, width)
        entries = Lookup(gradient.ids, gradient.d[..., kept], (gradient.stored[0], len(kept))).entries
        row = torch.as_tensor(list(rows))[entries.row.cpu()]
        self._tables.setdefault(name, (width / len(kept), []))[1].append(
            (entries.id.cpu(), row, entries.g.float().cpu())
        )

    def _choose(self, part: str, name: str, size: int) -> torch.Tensor:
        key = (part, name)
        if key not in self._chosen:
            count = int(np.clip(np.ceil(self._share[part] * size), 1, size))
            rng = generator(self._seed, "prediction", "slices", part, name)
            self._chosen[key] = torch.from_numpy(np.sort(rng.choice(size, count, replace=False)))
        return self._chosen[key]

    def _put(self, part: str, name: str, values: torch.Tensor, weight: float, rows: Sequence[int]) -> None:
        key = (part, name)
        if key not in self._filled:
            self._filled[key] = Block(torch.empty(self._rows, *values.shape[1:]), weight)
        if not torch.isfinite(values).all():
            raise UserError(f"the gradients of '{name}' are not finite", cure="Check the weights.")
        self._filled[key].values[torch.as_tensor(list(rows))] = values.float().cpu()


def _layers(parameters: Sequence[Parameter], lora: Lora) -> list[tuple[Parameter, Adapted]]:
    return [(p, lora.layers[p.name]) for p in parameters if p.name in lora.layers]


def _side(parameter: Parameter, adapted: Adapted, side: str) -> int:
    """Axis of the parameter's shape that is its layer's outputs (m) or inputs (n)."""
    inputs = 1 if parameter.shape[1] == adapted.A.shape[1] else 0
    return inputs if side == "n" else 1 - inputs


def _table(pieces: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], rows: int) -> torch.Tensor:
    """Entries of an embedding table as a dense block over the ids that occur."""
    ids, place = torch.unique(torch.cat([piece[0] for piece in pieces]), return_inverse=True)
    row = torch.cat([piece[1] for piece in pieces])
    g = torch.cat([piece[2] for piece in pieces])
    dense = torch.zeros(rows, len(ids), *g.shape[1:])
    dense[row, place] = g
    return dense.transpose(1, 2).flatten(2)

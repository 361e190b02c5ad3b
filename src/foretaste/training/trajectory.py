"""What training moves, as weights of the base model, and how far apart it takes two runs (TTR paper, Eq. 5).

A method trains parameters; what acts on inputs are weights. Full fine-tuning trains the weights themselves.
Plain LoRA adds s B A to a weight: its two factors are kept and never multiplied out. For every other method
that can merge itself into a weight (DoRA, AdaLoRA, VeRA, IA3, ...) the weight is merged, in float64, on a
copy of the layer. Parameters that are no part of any weight, such as those of a soft prompt, are counted:
they have a distance as parameters and none as weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import peft
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from foretaste.theory.update_distance import (
    Distance,
    of_matrix,
    of_product,
    product_change,
)
from foretaste.training.trainer import Diverged
from foretaste.training.vocabulary import every_token

Float = npt.NDArray[np.float64]
Read = Callable[[str], Float]
"""A stored tensor by its name, as float64."""
Group = Literal["body", "head"]
MERGED = "merged:"
"""Stands before the name of a stored tensor that is a merged weight and no parameter."""
# A method that cannot merge itself says so in one of these ways.
CANNOT_MERGE = (NotImplementedError, AttributeError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True)
class Piece:
    """One weight of the base model that training moves.

    Attributes:
        name: Of the weight in the base model.
        group: Whether it is of the classification head.
        tensors: Names of what is stored of it: the weight, or LoRA's A and B.
        scaling: s of s B A; None for a weight.
        matrix: It has two dimensions or more; else it is a bias or a norm's weight.
    """

    name: str
    group: Group
    tensors: tuple[str, ...]
    scaling: float | None
    matrix: bool


@dataclass(frozen=True)
class Moving:
    """What training moves.

    Attributes:
        pieces: Weights of the base model.
        parameters: Group of every trained parameter, by its name in the model.
        without: Entries of trained parameters that are no part of any weight, by name.
        layers: Names of layers that are merged to know their weight, with the weight's name before `.`.
    """

    pieces: tuple[Piece, ...]
    parameters: dict[str, Group]
    without: dict[str, int]
    layers: dict[str, str]

    @property
    def stored(self) -> list[str]:
        """Names of every tensor of a snapshot, merged weights included."""
        names = [name for piece in self.pieces for name in piece.tensors]
        return list(dict.fromkeys([*names, *self.parameters]))


@dataclass(frozen=True)
class Gap:
    """How far apart two runs are at one step.

    Attributes:
        pieces: Distance of the updates of each weight, by its name.
        clean: Frobenius norm of the clean run's update, likewise.
        parameters: Frobenius distance of the updates of the trained parameters as they are, by group.
    """

    pieces: dict[str, Distance]
    clean: dict[str, float]
    parameters: dict[Group, float]


def moving(model: nn.Module, weights: Iterable[str], head: Sequence[str]) -> Moving:
    """What training this model moves.

    Args:
        model: From `adapters.attach`.
        weights: Names of the base model's parameters before it.
        head: Names of the base model's modules that are its head.
    """
    known = set(weights)
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    assert isinstance(inner, nn.Module)
    outer = {id(p): name for name, p in model.named_parameters()}
    paths = {id(module): name for name, module in model.named_modules()}
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    pieces: dict[str, Piece] = {}
    layers: dict[str, str] = {}
    covered: dict[int, Group] = {}

    def group(name: str) -> Group:
        return "head" if name.partition(".")[0] in head else "body"

    for name, layer in inner.named_modules():
        own = _adapter_parameters(layer, trained)
        if not own:
            continue
        base = _base_name(name)
        factors = _factors(layer)
        if factors is not None:
            a, b, scaling = factors
            names = (outer[id(a)], outer[id(b)])
            pieces[f"{base}.weight"] = Piece(f"{base}.weight", group(base), names, scaling, True)
        else:
            merged = _merged(layer)
            if merged is None:
                continue
            path = paths[id(layer)]
            layers[path] = base
            for part, tensor in merged.items():
                weight = f"{base}.{part}"
                stored = (f"{MERGED}{path}.{part}",)
                pieces[weight] = Piece(weight, group(base), stored, None, tensor.dim() > 1)
        covered |= dict.fromkeys(own, group(base))
    for name, parameter in inner.named_parameters():
        weight = _base_name(name)
        if id(parameter) in trained and id(parameter) not in covered and weight in known:
            covered[id(parameter)] = group(weight)
            if weight not in pieces:
                whole = (outer[id(parameter)],)
                pieces[weight] = Piece(weight, group(weight), whole, None, parameter.dim() > 1)
    return Moving(
        pieces=tuple(pieces.values()),
        parameters={outer[key]: covered.get(key, "body") for key in trained},
        without={outer[key]: p.numel() for key, p in trained.items() if key not in covered},
        layers=layers,
    )


def snapshot_bytes(model: nn.Module, parts: Moving) -> int:
    """Size of one snapshot on disk; the model may be on the meta device."""
    parameters = dict(model.named_parameters())
    total = 0
    for name in parts.stored:
        if name.startswith(MERGED):
            path, _, part = name.removeprefix(MERGED).rpartition(".")
            layer: Any = model.get_submodule(path)
            base = layer.get_base_layer()
            total += 8 * int(getattr(base, part).numel())
        else:
            total += parameters[name].numel() * parameters[name].element_size()
    return total


class Snapshots:
    """Snapshots in a folder, one file each, read one tensor at a time.

    Args:
        folder: Made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, model: nn.Module, parts: Moving) -> None:
        """Take a snapshot; one of the same name is replaced.

        Raises:
            Diverged: A weight is not finite.
            OSError: The disk is full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with every_token(model), torch.no_grad():
            parameters = dict(model.named_parameters())
            found = {
                key: parameters[key].detach().cpu().contiguous()
                for key in parts.stored
                if not key.startswith(MERGED)
            }
            for path in parts.layers:
                merged = _merged(model.get_submodule(path))
                assert merged is not None
                found |= {f"{MERGED}{path}.{part}": tensor.cpu() for part, tensor in merged.items()}
            for key, tensor in found.items():
                if not torch.isfinite(tensor).all():
                    raise Diverged(f"weight '{key.removeprefix(MERGED)}' is not finite")
            save_file(found, self._folder / f"{name}.safetensors")

    @contextmanager
    def read(self, name: str) -> Iterator[Read]:
        """The tensors of a snapshot, by name, as float64."""
        with safe_open(self._folder / f"{name}.safetensors", "pt") as file:

            def tensor(key: str) -> Float:
                values: Float = file.get_tensor(key).double().numpy()
                return values

            yield tensor


def start_distance(parts: Moving, clean: Read, poisoned: Read) -> tuple[float, float]:
    """How far apart the two heads are before training, and the norm of the clean one, both Frobenius.

    Args:
        parts: `moving` of both runs.
        clean: Snapshot of the clean run before training.
        poisoned: Of the poisoned run.

    Raises:
        ValueError: Anything but the head differs: the two are no pair.
    """
    apart = own = 0.0
    for name, group in parts.parameters.items():
        a, b = clean(name), poisoned(name)
        if group == "body" and not np.array_equal(a, b):
            raise ValueError(f"the two runs do not start from the same '{name}'")
        if group == "head":
            apart += float(np.sum((a - b) ** 2))
            own += float(np.sum(a**2))
    return math.sqrt(apart), math.sqrt(own)


def gap(parts: Moving, clean: tuple[Read, Read], poisoned: tuple[Read, Read]) -> Gap:
    """How far the updates of two runs are apart, weight by weight.

    Args:
        parts: `moving` of both, which have the same architecture.
        clean: Snapshots of the clean run before training and now.
        poisoned: Of the poisoned run, likewise.

    Raises:
        ValueError: LoRA's factors do not start from the same numbers in both runs.
    """
    pieces: dict[str, Distance] = {}
    own: dict[str, float] = {}
    for piece in parts.pieces:
        found = _product_gap if piece.scaling is not None else _weight_gap
        pieces[piece.name], own[piece.name] = found(piece, clean, poisoned)
    squares: dict[Group, float] = {"body": 0.0, "head": 0.0}
    for name, group in parts.parameters.items():
        squares[group] += float(np.sum(_change(name, poisoned, clean) ** 2))
    return Gap(pieces, own, {group: math.sqrt(square) for group, square in squares.items()})


def _change(name: str, poisoned: tuple[Read, Read], clean: tuple[Read, Read]) -> Float:
    (start, now), (other_start, other_now) = poisoned, clean
    return (now(name) - other_now(name)) - (start(name) - other_start(name))


def _weight_gap(
    piece: Piece, clean: tuple[Read, Read], poisoned: tuple[Read, Read]
) -> tuple[Distance, float]:
    name = piece.tensors[0]
    difference = _change(name, poisoned, clean)
    if difference.ndim > 2:  # a convolution, as the matrix that multiplies a patch
        difference = difference.reshape(len(difference), -1)
    return of_matrix(difference), float(np.linalg.norm(clean[1](name) - clean[0](name)))


def _product_gap(
    piece: Piece, clean: tuple[Read, Read], poisoned: tuple[Read, Read]
) -> tuple[Distance, float]:
    a, b = piece.tensors
    assert piece.scaling is not None
    for name in piece.tensors:
        if not np.array_equal(clean[0](name), poisoned[0](name)):
            raise ValueError(f"the two runs do not start from the same '{name}'")
    (start, now), other = clean, poisoned[1]
    left, right = product_change(other(b), other(a), now(b), now(a))
    moved = product_change(now(b), now(a), start(b), start(a))
    own = of_product(piece.scaling * moved[0], moved[1]).frobenius
    return of_product(piece.scaling * left, right), own


def _adapter_parameters(layer: nn.Module, trained: dict[int, nn.Parameter]) -> list[int]:
    """Trained parameters that a method of peft added to a layer; empty for any other module."""
    if not isinstance(layer, BaseTunerLayer):
        return []
    base = layer.get_base_layer()
    own = {id(p) for p in base.parameters()} if isinstance(base, nn.Module) else set()
    return [id(p) for p in layer.parameters() if id(p) in trained and id(p) not in own]


def _factors(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """A, B and s where the layer's weight is W0 + s B A and nothing else; transposed for GPT-2's Conv1D."""
    if not isinstance(layer, LoraLinear) or len(layer.scaling) != 1:
        return None
    ((adapter, scaling),) = layer.scaling.items()
    if layer.lora_variant or layer.lora_bias[adapter] or layer.merged or layer.disable_adapters:
        return None
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    return a, b, float(scaling)


def _merged(layer: nn.Module) -> dict[str, torch.Tensor] | None:
    """The layer's own weights with the adapter merged into them, float64; None where it cannot be merged."""
    try:
        # A copy, because merging and taking apart again would round the weights that training goes on with.
        twin: Any = copy.deepcopy(layer)
        with torch.no_grad():
            twin.double().merge()
            base = twin.get_base_layer()
            return {name: p.detach() for name, p in base.named_parameters(recurse=False)} or None
    except CANNOT_MERGE:
        return None


def _base_name(name: str) -> str:
    """Name of a module or parameter in the model before peft wrapped its layers."""
    parts = name.split(".")
    kept: list[str] = []
    skip = False
    for part in parts:
        if skip:  # the adapter's name
            skip = False
        elif part == "modules_to_save":
            skip = True
        elif part not in {"base_layer", "original_module"}:
            kept.append(part)
    return ".".join(kept)

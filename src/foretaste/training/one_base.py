"""Several LoRA models as one: what they share is computed once, on the rows of all of them.

Every model is built on its own, by `adapters.attach`, on a twin of the base that has the same tensors; a twin
costs the objects of its modules and no weights. The forward of a plain base model then runs on the rows of
all models one after another. Where a model has LoRA, the layer of the base sees all rows at once and each
model's A and B see its own; where weights differ (trained heads, frozen heads of different seeds), each
model's own module sees its own rows.

peft can mix adapters in a batch too (`adapter_names`). It is refused in training, knows no head of more than
one layer, and needs all adapters on one frozen head, so that it could not take part of the sweeps here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import nn
from transformers import PreTrainedModel

from foretaste.models.load import MeanPooledClassifier


class NotTogether(RuntimeError):
    """These models cannot be computed as one."""


def twin(model: PreTrainedModel, own: Sequence[str] = ()) -> PreTrainedModel:
    """A copy of a model that shares its weights.

    Args:
        model: No adapter is attached to it.
        own: Names of modules whose weights are copied.
    """
    apart = {id(tensor) for name in own for _, _, _, tensor in _tensors(model.get_submodule(name))}
    shared = {id(tensor): tensor for _, _, _, tensor in _tensors(model) if id(tensor) not in apart}
    return copy.deepcopy(model, cast("dict[int, Any]", shared))


def tie(model: PreTrainedModel, to: PreTrainedModel, own: Sequence[str] = ()) -> None:
    """Let a model have the other's tensors wherever its own are equal to them, bit for bit.

    Args:
        model: Changed in place.
        to: A model of the same make.
        own: Names of modules that stay as they are.
    """
    others = {name: tensor for name, _, _, tensor in _tensors(to)}
    for name, holder, last, tensor in list(_tensors(model)):
        other = others.get(name)
        if other is None or any(name.startswith(f"{part}.") for part in own):
            continue
        if tensor.dtype == other.dtype and torch.equal(tensor, other):
            holder[last] = other


def _tensors(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, torch.Tensor]]:
    """Full name, the dictionary that holds it, name in it, and tensor of all parameters and buffers."""
    for prefix, module in model.named_modules():
        for holder in (module._parameters, module._buffers):
            for last, tensor in holder.items():
                if tensor is not None:
                    yield f"{prefix}.{last}".removeprefix("."), holder, last, tensor


class OneBase(nn.Module):
    """Classifiers with LoRA whose common base is computed once for the rows of all.

    Only what the models train is among its parameters; the frozen base is that of the models.

    Args:
        base: The model without adapters. It is not changed.
        models: From `adapters.attach`, on twins of the base.
    """

    def __init__(self, base: PreTrainedModel, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        lead = twin(base)
        self._lead = (lead,)  # in a tuple: its untrained head is no parameter of this module
        self._active: Sequence[int] = range(len(models))
        self._rows = 0  # of each model, in the batch under way
        inner = [cast(Any, model).get_base_model() for model in models]
        done: list[str] = []
        for name, module in list(lead.named_modules()):
            if any(name == whole or name.startswith(f"{whole}.") for whole in done):
                continue
            owners = [model.get_submodule(name) for model in inner]
            if all(type(owner) is type(module) and _same_here(owner, module) for owner in owners):
                continue
            done.append(name)
            layers = [owner if isinstance(owner, Linear) else None for owner in owners]
            bases = [
                owner if layer is None else layer.get_base_layer()
                for owner, layer in zip(owners, layers, strict=True)
            ]
            if all(type(layer) is type(module) and _same(layer, module) for layer in bases):
                module.forward = self._adapted(name, module.forward, layers)
            else:
                module.forward = self._apart(name, owners)

    def train(self, mode: bool = True) -> OneBase:
        """Training or evaluation mode, also of what is computed once."""
        super().train(mode)
        self._lead[0].train(mode)
        return self

    def forward(self, active: Sequence[int], **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of each active model, shape (rows of each, classes).

        Args:
            active: Numbers of the models that take part.
            **inputs: Model inputs without labels: the rows of the first active model, then those of the
                second and so on, equally many of each.

        Raises:
            NotTogether: A layer gets something that is not one line for each row.
        """
        total = len(next(iter(inputs.values())))
        self._active, self._rows = active, total // len(active)
        logits: torch.Tensor = self._lead[0](**inputs).logits
        return self._split(logits, "the logits")

    def _split(self, x: torch.Tensor, where: str) -> tuple[torch.Tensor, ...]:
        expected = self._rows * len(self._active)
        if x.dim() == 0 or len(x) != expected:
            raise NotTogether(f"'{where}' takes a tensor of shape {tuple(x.shape)} for {expected} rows")
        return tuple(x.split(self._rows))

    def losses(self, logits: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean cross-entropy of each model, as the model computes it.

        Args:
            logits: Of each model, from `forward`.
            labels: Of each model.
        """
        if isinstance(self._lead[0], MeanPooledClassifier):
            logits = [x.float() for x in logits]
        return torch.stack([nn.functional.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)])

    def _adapted(
        self, name: str, base: Callable[..., torch.Tensor], layers: Sequence[Linear | None]
    ) -> Callable[..., torch.Tensor]:
        """The layer on all rows at once, and every model's LoRA on its own."""

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            results = base(x, *args, **kwargs).split(self._rows)
            return torch.cat(
                [
                    result if (layer := layers[number]) is None else _with_lora(layer, part, result)
                    for number, part, result in zip(self._active, self._split(x, name), results, strict=True)
                ]
            )

        return forward

    def _apart(self, name: str, owners: Sequence[nn.Module]) -> Callable[..., torch.Tensor]:
        """Every model's own module on its own rows."""

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            def cut(value: Any, place: int) -> Any:
                return self._split(value, name)[place] if isinstance(value, torch.Tensor) else value

            results = []
            for place, number in enumerate(self._active):
                own = [cut(value, place) for value in args]
                result = owners[number](*own, **{key: cut(value, place) for key, value in kwargs.items()})
                if not isinstance(result, torch.Tensor) or len(result) != self._rows:
                    raise NotTogether(f"'{name}' does not give one line for each row")
                results.append(result)
            return torch.cat(results)

        return forward


def _with_lora(layer: Linear, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """What `peft.tuners.lora.Linear.forward` makes of the result of its base layer."""
    (adapter,) = layer.active_adapters
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    taken = layer._cast_input_dtype(x, cast(torch.dtype, a.weight.dtype))
    delta: torch.Tensor = b(a(layer.lora_dropout[adapter](taken))) * layer.scaling[adapter]
    return (result + delta).to(result.dtype)


def _same_here(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same tensors, those of their parts aside."""
    return _equal(one._parameters, other._parameters) and _equal(one._buffers, other._buffers)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same tensors, those of their parts included."""
    ones, others = ({name: tensor for name, _, _, tensor in _tensors(m)} for m in (one, other))
    return _equal(ones, others)


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key] is other[key] for key in one)

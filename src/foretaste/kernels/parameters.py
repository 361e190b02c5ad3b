"""The trainable parameters of a model: which module owns each, and the form of its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import peft
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from foretaste.errors import UserError
from foretaste.models import heads
from foretaste.models.label_words import LabelWordModel, LinearHeadModel

Form = Literal["outer", "sum", "lookup", "words", "local", "explicit"]
"""How a parameter's gradients are made for all rows of a batch at once.

outer: a matrix that the module multiplies with. sum: a bias of such a module. lookup: an embedding table.
words: a language model's table of words that is multiplied with at its end, and looked up as well where the
two are tied: outputs that are logits of a few words reach those rows of it and the rows of the input.
local: any other parameter of a module with one input and one output, through that module alone (norms).
explicit: by automatic differentiation of the whole model, one row at a time.
"""

Group = Literal["linear", "adapters", "head", "bias", "norm", "embedding", "other"]
"""What a parameter is.

linear: the matrices outside the head, those that LoRA adapts. adapters: what peft added and trains, saved
modules aside. head: everything outside the base model, biases included.
"""

PEFT_PREFIX = "base_model.model."
"""What peft puts in front of the base model's names."""


@dataclass(frozen=True)
class Parameter:
    """One trainable parameter.

    Attributes:
        name: Its (first) name in the model.
        owners: Names of the modules that hold it; several when weights are tied.
        attribute: Its name in these modules.
        form: The form of its gradient.
        group: What it is.
        shape: Its shape.
        fan_in: Inputs of the linear layer whose weight it is; None for every other parameter.
    """

    name: str
    owners: tuple[str, ...]
    attribute: str
    form: Form
    group: Group
    shape: tuple[int, ...]
    fan_in: int | None = None


def trainable(model: nn.Module) -> list[Parameter]:
    """Every parameter that requires a gradient, in the order of the model.

    Raises:
        UserError: There is none, or one is not a floating-point number (a quantised weight).
    """
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for module_name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                owners.setdefault(id(parameter), []).append((module_name, module, attribute))
    head = _head(model)
    last = _word_layers(model)
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not parameter.is_floating_point():
            raise UserError(f"parameter '{name}' is {parameter.dtype}: a kernel needs floating point")
        held = owners[id(parameter)]
        # BERT's head holds the bias of its decoder and leaves the use of it to the decoder.
        held = [owner for owner in held if _form(*owner[1:]) != "explicit"] or held
        form = _joint_form({_form(module, attribute) for _, module, attribute in held})
        found.append(
            Parameter(
                name=name,
                owners=tuple(module_name for module_name, _, _ in held),
                attribute=held[0][2],
                form="words" if form == "outer" and held[0][1] in last else form,
                group=_group(name, held[0][1], model, head),
                shape=tuple(parameter.shape),
                fan_in=_fan_in(held[0][1], held[0][2]),
            )
        )
    if not found:
        raise UserError("the model has no trainable parameter", cure="Set requires_grad on what is trained.")
    return found


def linear_weights(model: nn.Module, names: Sequence[str] | None = None) -> list[Parameter]:
    """Weights of linear layers as parameters, frozen ones included: what LoRA kernels are made from.

    Args:
        model: Any model.
        names: Names of the modules; all linear layers outside the head by default.

    Raises:
        UserError: A name is no linear layer of the model.
    """
    head = _head(model)
    wanted = set(names) if names is not None else None
    found = []
    for name, module in model.named_modules(remove_duplicate=True):
        outside = wanted is None and not _in_head(name, head)
        if isinstance(module, nn.Linear | Conv1D) and (outside or (wanted and name in wanted)):
            shape = tuple(module.weight.shape)
            fan_in = _fan_in(module, "weight")
            found.append(Parameter(f"{name}.weight", (name,), "weight", "outer", "linear", shape, fan_in))
    missing = sorted((wanted or set()) - {parameter.owners[0] for parameter in found})
    if missing:
        raise UserError(f"'{missing[0]}' is no linear layer of the model")
    return found


def _joint_form(forms: set[Form]) -> Form:
    """The form of a parameter from those of its owners."""
    if len(forms) == 1:
        return forms.pop()
    return "words" if forms == {"lookup", "outer"} else "explicit"


def _word_layers(model: nn.Module) -> set[nn.Module]:
    """Layers that multiply with a table of words of which the outputs use a few."""
    inside = [module for module in model.modules() if isinstance(module, LabelWordModel)]
    layers = [module.lm.get_output_embeddings() for module in inside]
    return {layer for layer in layers if isinstance(layer, nn.Linear)}


def _form(module: nn.Module, attribute: str) -> Form:
    if isinstance(module, nn.Linear | Conv1D):
        return "outer" if attribute == "weight" else "sum" if attribute == "bias" else "explicit"
    if isinstance(module, nn.Embedding):
        return "lookup"
    return "explicit" if any(True for _ in module.children()) else "local"


def _fan_in(module: nn.Module, attribute: str) -> int | None:
    if attribute != "weight" or not isinstance(module, nn.Linear | Conv1D):
        return None
    return int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])


def _head(model: nn.Module) -> tuple[str, ...]:
    """Names of the head's modules in the model without its adapter."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    if isinstance(base, LabelWordModel | LinearHeadModel):
        body = base.body
        inside = set(body.modules())
        return tuple(
            name
            for name, module in base.named_modules()
            if module not in inside and body not in set(module.modules())
        )
    if not isinstance(base, PreTrainedModel):
        return ()
    try:
        return heads.find(base).modules
    except UserError:  # not a classifier
        return ()


def _in_head(name: str, head: Sequence[str]) -> bool:
    """Whether the path of a module or parameter leads through the head."""
    return any(f".{module}." in f".{name}." for module in head)


def _group(name: str, module: nn.Module, model: nn.Module, head: Sequence[str]) -> Group:
    parts = name.split(".")
    if isinstance(model, peft.PeftModel):
        whole = "modules_to_save" in parts or name.removeprefix(PEFT_PREFIX).rpartition(".")[0] in head
        return "head" if whole and _in_head(name, head) else "adapters"
    if any(name.startswith(f"{outer}.") for outer in head):
        return "head"
    if "norm" in type(module).__name__.lower():
        return "norm"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if parts[-1] == "bias":
        return "bias"
    return "linear" if isinstance(module, nn.Linear | Conv1D) else "other"

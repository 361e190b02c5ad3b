"""Layer inputs and output derivatives of every row, from one forward and one backward pass for each output.

Hooks sit on the modules that own a parameter. A parameter's gradient is kept in the form that the passes give
it (see `gradients`), never as one vector a row. What no hook reaches is differentiated row by row; which
parameters that are is not guessed but found by comparison with automatic differentiation (`probe`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

from foretaste.errors import UserError
from foretaste.kernels.gradients import Gradient, Lookup, Outer, Rows, Sum
from foretaste.kernels.parameters import Parameter

Batch = dict[str, torch.Tensor]
Outputs = Callable[[nn.Module, Batch], torch.Tensor]
"""(model, batch) to the outputs whose kernel is wanted, shape (rows, outputs)."""


@dataclass(frozen=True)
class Inputs:
    """Rows as a model takes them.

    Attributes:
        lengths: Tokens of each row, by which batches are formed.
        collate: From row numbers to a padded batch on the model's device.
    """

    lengths: Sequence[int]
    collate: Callable[[Sequence[int]], Batch]

    def __len__(self) -> int:
        return len(self.lengths)


def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Every logit of a classifier: shape (rows, classes)."""
    scores: torch.Tensor = model(**batch).logits
    return scores


def margin(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The second logit of a binary classifier minus the first: shape (rows, 1)."""
    scores = logits(model, batch)
    return scores[:, 1:] - scores[:, :1]


@dataclass(frozen=True)
class _Call:
    """One call of a hooked module in a forward pass."""

    inputs: tuple[Any, ...]
    output: torch.Tensor


class NoBatchAxis(Exception):
    """A module was called on something that has no axis for the rows."""


class Recorder:
    """Owns the hooks: they are registered on entry and released on exit, and every parameter is restored.

    Args:
        model: In evaluation mode.
        parameters: Those whose gradients are wanted, trainable or not.
        outputs: What is differentiated.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Parameter], outputs: Outputs) -> None:
        self.model = model
        self.parameters = list(parameters)
        self.outputs = outputs
        self._calls: dict[str, list[_Call]] = {}
        self._handles: list[Any] = []
        self._required: dict[str, bool] = {}
        self._listening = False
        self._rows = 0

    def __enter__(self) -> Self:
        explicit = {p.name for p in self.parameters if p.form == "explicit"}
        for name, parameter in self.model.named_parameters():
            self._required[name] = parameter.requires_grad
            if parameter.is_floating_point():
                parameter.requires_grad_(name in explicit)
        modules = dict(self.model.named_modules())
        for name in sorted({o for p in self.parameters if p.form != "explicit" for o in p.owners}):
            self._handles.append(modules[name].register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._calls.clear()
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(self._required[name])

    def _hook(self, name: str) -> Callable[..., torch.Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> torch.Tensor | None:
            if not self._listening or not isinstance(output, torch.Tensor) or not inputs:
                return None  # what has no such calls is found out by `probe` and differentiated explicitly
            if isinstance(module, nn.Embedding) and len(output) == 1 < self._rows:
                # Positions are looked up once for the whole batch; each row gets its own derivative.
                output = output.expand(self._rows, *output.shape[1:])
                inputs = (inputs[0].expand(self._rows, *inputs[0].shape[1:]), *inputs[1:])
            seen: torch.Tensor = output if output.requires_grad else output.requires_grad_()
            self._calls.setdefault(name, []).append(_Call(inputs, seen))
            return seen

        return hook

    def collect(self, batch: Batch) -> tuple[torch.Tensor, dict[str, Gradient]]:
        """Outputs of a batch, shape (rows, outputs), and the gradients of every parameter that has any.

        Raises:
            NoBatchAxis: A module was called without an axis for the rows; a batch of one row always has one.
            UserError: A layer's input or derivative is not finite.
        """
        self._rows = len(next(iter(batch.values())))
        self._calls.clear()
        self._listening = True
        try:
            with torch.enable_grad():
                values = self.outputs(self.model, batch)
        finally:
            self._listening = False
        _check_finite(values, self.model, self.outputs, batch)
        found = self._differentiate(values)
        self._calls.clear()
        return values.detach(), found

    def _differentiate(self, values: torch.Tensor) -> dict[str, Gradient]:
        places = [(name, i) for name, calls in self._calls.items() for i in range(len(calls))]
        targets = [self._calls[name][i].output for name, i in places]
        explicit = [p for p in self.parameters if p.form == "explicit"]
        weights = dict(self.model.named_parameters())
        wanted = [*targets, *(weights[p.name] for p in explicit)]
        count = values.shape[1]
        derivatives: list[list[torch.Tensor | None]] = []
        for c in range(count):
            keep = c < count - 1
            if not values.requires_grad:
                derivatives.append([None] * len(wanted))
                continue
            derivatives.append(
                list(torch.autograd.grad(values[:, c].sum(), wanted, retain_graph=keep, allow_unused=True))
            )
        by_call: dict[str, list[torch.Tensor]] = {name: [] for name in self._calls}
        for k, (name, _) in enumerate(places):
            parts = [row[k] for row in derivatives]
            like = targets[k]
            filled = [self._by_row(torch.zeros_like(like) if part is None else part) for part in parts]
            by_call[name].append((torch.stack(filled, 1) if count > 1 else filled[0].unsqueeze(1)).detach())
        found: dict[str, Gradient] = {}
        for parameter in self.parameters:
            if parameter.form != "explicit":
                gradient = self._assemble(parameter, by_call)
                if gradient is not None:
                    found[parameter.name] = gradient
        for k, parameter in enumerate(explicit, start=len(targets)):
            parts = [row[k] for row in derivatives]
            if any(part is not None for part in parts):
                found[parameter.name] = self._explicit(parameter, parts, count)
        return found

    def _words(self, parameter: Parameter, by_call: dict[str, list[torch.Tensor]]) -> Lookup:
        """The gradient of a table of words: of words that are read, and of words whose logits are used."""
        ids, d = [], []
        for owner in parameter.owners:
            module = self.model.get_submodule(owner)
            for call, derivative in zip(self._calls.get(owner, []), by_call.get(owner, []), strict=True):
                if isinstance(module, nn.Embedding):
                    seen = call.inputs[0].reshape(self._rows, -1)
                    padding = module.padding_idx
                    ids.append(seen if padding is None else torch.where(seen == padding, -1, seen))
                    d.append(_joined([derivative], 2))
                    continue
                x = _joined([self._by_row(call.inputs[0].detach())], 1)
                whole = _joined([derivative], 2)
                used = torch.nonzero(whole.abs().amax((0, 1, 2))).flatten()
                ids.append(used.expand(self._rows, -1))
                d.append(torch.einsum("rctv,rtn->rcvn", whole[..., used], x))
        return Lookup(torch.cat(ids, 1), _working(torch.cat(d, 2)), parameter.shape)

    def _by_row(self, value: torch.Tensor) -> torch.Tensor:
        """The value with an axis for the rows; where the batch is one row, all of it belongs to that row."""
        return value.unsqueeze(0) if self._rows == 1 != len(value) else value

    def _explicit(self, parameter: Parameter, parts: list[torch.Tensor | None], count: int) -> Rows:
        if self._rows != 1:
            raise NoBatchAxis(parameter.name)
        weight = self.model.get_parameter(parameter.name)
        flat = [torch.zeros_like(weight) if part is None else part for part in parts]
        g = torch.stack([part.reshape(-1) for part in flat]).view(1, count, -1)
        return Rows(_working(g), parameter.shape)

    def _assemble(self, parameter: Parameter, by_call: dict[str, list[torch.Tensor]]) -> Gradient | None:
        """The gradient from every call of every module that holds the parameter; None without a call."""
        calls = [call for owner in parameter.owners for call in self._calls.get(owner, [])]
        grads = [d for owner in parameter.owners for d in by_call.get(owner, [])]
        if not calls:
            return None
        for call in calls:
            if len(call.output) != self._rows or len(call.inputs[0]) != self._rows:
                if self._rows == 1:  # all of it belongs to the one row
                    continue
                raise NoBatchAxis(parameter.name)
        module = self.model.get_submodule(parameter.owners[0])
        d = _joined(grads, 2) if parameter.form not in {"local", "words"} else None
        match parameter.form:
            case "outer":
                assert d is not None
                x = _joined([self._by_row(call.inputs[0].detach()) for call in calls], 1)
                return Outer(_working(x), _working(d), transposed=isinstance(module, Conv1D))
            case "sum":
                assert d is not None
                return Sum(_working(d))
            case "lookup":
                assert d is not None
                ids = torch.cat([call.inputs[0].reshape(self._rows, -1) for call in calls], 1)
                padding = getattr(module, "padding_idx", None)
                if padding is not None:
                    ids = torch.where(ids == padding, -1, ids)
                return Lookup(ids, _working(d), parameter.shape)
            case "words":
                return self._words(parameter, by_call)
            case _:
                g = sum(
                    _through_module(module, parameter.attribute, self._by_row(call.inputs[0].detach()), part)
                    for call, part in zip(calls, grads, strict=True)
                )
                assert isinstance(g, torch.Tensor)
                return Rows(_working(g), parameter.shape)


def _joined(values: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """The calls of a module behind each other, all axes between `axis` and the last as one axis of tokens.

    Args:
        values: Inputs (rows, ..., n) with axis 1, or derivatives (rows, outputs, ..., m) with axis 2.
        axis: The first token axis.
    """
    tokens = [value.reshape(*value.shape[:axis], -1, value.shape[-1]) for value in values]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, axis)


def _working(value: torch.Tensor) -> torch.Tensor:
    """The value in the precision of the products: float64 stays, everything else is float32."""
    return value if value.dtype == torch.float64 else value.float()


def _through_module(module: nn.Module, attribute: str, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Gradient of one parameter of a module from the module alone: shape (rows, outputs, entries).

    Args:
        module: The module.
        attribute: Name of its parameter.
        x: Its input, shape (rows, ...).
        d: Derivatives with respect to its output, shape (rows, outputs, ...).
    """
    weight = module._parameters[attribute]
    assert weight is not None

    def one_row(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        def forward(value: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = functional_call(module, {attribute: value}, (x.unsqueeze(0),))
            return output[0]

        pull = vjp(forward, weight.detach())[1]
        g: torch.Tensor = vmap(lambda cotangent: pull(cotangent)[0])(d)
        return g

    g: torch.Tensor = vmap(one_row)(x, d)
    return g.flatten(2)


def _check_finite(values: torch.Tensor, model: nn.Module, outputs: Outputs, batch: Batch) -> None:
    if torch.isfinite(values).all():
        return
    with outputs_of_leaves(model) as found, torch.no_grad():
        outputs(model, batch)
    for name, value in found.items():
        if not torch.isfinite(value).all():
            raise UserError(f"the output of layer '{name}' is not finite", cure="Check the weights.")
    raise UserError("the outputs of the model are not finite", cure="Check the weights.")


@contextmanager
def outputs_of_leaves(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The first output of every module without children, in the order of the forward pass."""
    found: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found.setdefault(name, output.detach().clone())

        return keep

    leaves = [(n, m) for n, m in model.named_modules() if n and not any(True for _ in m.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

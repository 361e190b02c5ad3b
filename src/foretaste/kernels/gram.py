"""The kernel of the trained parameters, group by group or parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from foretaste.kernels import products, sign
from foretaste.kernels.gradients import Gradient
from foretaste.kernels.parameters import Parameter

Kind = Literal["sgd", "sign", "asymmetric"]
By = Literal["group", "parameter"]

KINDS: dict[Kind, Callable[[Gradient, Gradient], torch.Tensor]] = {
    "sgd": products.gram,
    "sign": sign.sign_sign,
    "asymmetric": sign.gradient_sign,
}
"""sgd: <g_i, g_j>. sign: <sgn g_i, sgn g_j> (SignGD). asymmetric: <g_i, sgn g_j> (A-SignGD)."""

MEAN_LORA = "mean-lora"
"""Sum over the linear layers of their SGD kernel over n, their number of inputs: s^2 r k times it is the
expectation over A of the kernel of LoRA on all linear layers, at B = 0."""


@dataclass(frozen=True)
class Gram:
    """A product for `compute`: results `KIND/GROUP`, or `KIND/PARAMETER`, which add up to the kernel.

    Attributes:
        kind: Which kernel.
        by: What the results are summed over.
    """

    kind: Kind = "sgd"
    by: By = "group"

    @property
    def symmetric(self) -> bool:
        """Whether K(i, j) = K(j, i)."""
        return self.kind != "asymmetric"

    def results(self, parameters: Sequence[Parameter]) -> int:
        """How many matrices it gives at most, mirror images included."""
        names = {p.group if self.by == "group" else p.name for p in parameters}
        return (1 + len(names)) * (1 if self.symmetric else 2)

    def kept(self, _: Sequence[Parameter]) -> int:
        """Bytes that it keeps from tile to tile: none."""
        return 0

    def tiles(self, parameter: Parameter, a: Gradient, b: Gradient) -> Iterator[tuple[str, torch.Tensor]]:
        """The tile of one parameter, shape (rows of a * outputs, rows of b * outputs)."""
        tile = KINDS[self.kind](a, b)
        yield f"{self.kind}/{parameter.group if self.by == 'group' else parameter.name}", tile
        if self.kind == "sgd" and parameter.group == "linear" and parameter.fan_in:
            yield MEAN_LORA, tile / parameter.fan_in

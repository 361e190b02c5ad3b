"""Kernels by random projection, for models whose exact kernel costs too much.

The gradient G (m x n) of a matrix is replaced by P G Q^T with P (p x m) and Q (p x n), normal entries of
variance 1/p: inner products are kept in expectation (the Johnson-Lindenstrauss device on both sides). Two
independent sketches are made; the estimate is their mean, and half their difference says how far off it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from foretaste.kernels.gradients import Gradient, Outer, Rows
from foretaste.kernels.parameters import Parameter
from foretaste.kernels.products import explicit
from foretaste.seeds import generator

SKETCHES = 2


@dataclass(frozen=True)
class Projection:
    """A `reduce` step for `compute`, and the product that estimates its error.

    Attributes:
        size: p, the side of a sketch. A matrix with fewer than 2 p^2 entries is kept exact.
        seed: Of the projections.
    """

    size: int
    seed: int

    KEY: ClassVar[str] = "projection-error"

    @property
    def symmetric(self) -> bool:
        """Whether K(i, j) = K(j, i)."""
        return True

    def results(self, _: Sequence[Parameter]) -> int:
        """How many matrices it gives at most."""
        return 1

    def kept(self, _: Sequence[Parameter]) -> int:
        """Bytes that it keeps from tile to tile: none."""
        return 0

    def reduce(self, parameter: Parameter, gradient: Gradient) -> Gradient:
        """Both sketches of a matrix's gradient, each over sqrt 2, so that inner products are their mean."""
        if not isinstance(gradient, Outer):
            return gradient
        m, n = gradient.d.shape[3], gradient.x.shape[2]
        if m * n <= SKETCHES * self.size**2:
            return gradient
        parts = []
        for number in range(SKETCHES):
            rng = generator(self.seed, "kernel", "projection", parameter.name, str(number))
            left = torch.from_numpy(rng.normal(0, self.size**-0.5, (self.size, m))).to(gradient.d)
            right = torch.from_numpy(rng.normal(0, self.size**-0.5, (self.size, n))).to(gradient.x)
            small = Outer(gradient.x @ right.T, gradient.d @ left.T)
            parts.append(small.dense().flatten(2))
        g = torch.stack(parts, 2).flatten(2) / SKETCHES**0.5
        return Rows(g, (SKETCHES, self.size, self.size))

    def tiles(self, parameter: Parameter, a: Gradient, b: Gradient) -> Iterator[tuple[str, torch.Tensor]]:
        """Half the difference of the two sketches, whose root mean square is that of the estimate's error."""
        if parameter.form != "outer" or not isinstance(a, Rows) or not isinstance(b, Rows):
            return
        left = [_half(a, number) for number in range(SKETCHES)]
        right = left if a is b else [_half(b, number) for number in range(SKETCHES)]
        # Each half carries 1/2 in its products already.
        yield self.KEY, explicit(left[0], right[0]) - explicit(left[1], right[1])


def _half(a: Rows, number: int) -> Rows:
    size = a.g.shape[2] // SKETCHES
    return Rows(a.g[..., number * size : (number + 1) * size], (size,))

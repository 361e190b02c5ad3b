"""IntrinsicDimension: fine-tuning in a random subspace of all parameters (Malladi et al. 2023, App. D.1).

theta = theta_0 + P z with a random P of M rows (parameters) and d columns; only z is trained (Li et al. 2018;
Aghajanyan et al. 2021). The kernel paper's Theorem D.2 takes P with independent N(0, 1/d) entries, which for
135 million parameters and d = 1,000 are 540 GB, or as many random numbers twice a step. Here P has one entry
of -1 or +1 in every row, its column and its sign drawn independently and uniformly (the count sketch of
Charikar et al. 2002, feature hashing of Weinberger et al. 2009; the sparsest of the sparse projections of
Li, Hastie and Church 2006 that Li et al. 2018 use for their largest networks):

* P is 2-byte or 4-byte integers, one for each parameter, whatever d is, and P z one look-up.
* Inner products of gradients, and so kernels, are kept in expectation: E[P P^T] = I, as for N(0, 1/d).
* Var |P^T g|^2 = (2 / d) (|g|^4 - sum of g_i^4), which is at most the (2 / d) |g|^4 of normal entries: no
  entry of the kernel has more variance. What is lost are the normal law's exponential tails: a gradient that
  sits in few entries is either kept exactly or, with a chance of about 1/d a pair, badly.
* Steps are of the size of full fine-tuning's: -lr P P^T g is -lr g in expectation (SGD), and a sign step
  moves every weight by lr (Adam, SignGD). The same grid of learning rates suits both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from foretaste.errors import UserError
from foretaste.seeds import generator


class SignProjection:
    """P of one set of tensors: for every entry its column and its sign.

    Args:
        shapes: Of the tensors, by name. The blocks of different names are independent, so that P does not
            depend on the order of names.
        dimension: d, number of columns.
        seed: The init seed.
        device: Where it is kept.

    Raises:
        UserError: d is no whole number from 1 to the number of entries.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dimension: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        size = sum(int(np.prod(shape)) for shape in shapes.values())
        whole = isinstance(dimension, int) and not isinstance(dimension, bool)
        if not whole or not 1 <= dimension <= size:
            raise UserError(
                f"d = {dimension!r}: expected a whole number from 1 to {size}, the number of parameters",
                where="dimension",
                cure="Aghajanyan et al. 2021 find a few hundred to suffice for pretrained models.",
            )
        self.dimension = dimension
        self._shapes = dict(shapes)
        # Entry i is sign[i] * z[column[i]] = (z, -z)[place[i]] with a place in 0 .. 2 d - 1.
        small = 2 * dimension <= np.iinfo(np.int16).max
        self._places = {
            name: torch.from_numpy(
                generator(seed, "init", "intrinsic", name).integers(
                    0, 2 * dimension, int(np.prod(shape)), dtype=np.int16 if small else np.int32
                )
            ).to(device)
            for name, shape in shapes.items()
        }

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(place.nbytes for place in self._places.values())

    def times(self, name: str, z: torch.Tensor) -> torch.Tensor:
        """The block of P z that belongs to one tensor, in its shape; differentiable in z.

        Args:
            name: Of the tensor.
            z: Shape (d,).
        """
        moved: torch.Tensor = _Lookup.apply(z, self._places[name])
        return moved.view(self._shapes[name])

    def transposed_times(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """P^T g, shape (..., d), summed in float64.

        Args:
            gradients: By name, shape (..., *shape of the tensor), with the same leading axes; a tensor that
                is not named has a gradient of zero.
        """
        total: torch.Tensor | None = None
        for name, gradient in gradients.items():
            own = len(self._shapes[name])
            leading = gradient.shape[: gradient.dim() - own]
            flat = gradient.reshape(-1, self._places[name].numel())
            part = torch.stack([_collect(row, self._places[name], self.dimension) for row in flat])
            part = part.view(*leading, self.dimension)
            total = part if total is None else total + part
        if total is None:
            raise ValueError("no gradient was given")
        return total

    def dense(self, name: str) -> torch.Tensor:
        """The block of one tensor as a matrix, shape (entries, d), float64: for small models and tests."""
        place = self._places[name].long()
        d = self.dimension
        block = torch.zeros(len(place), d, dtype=torch.float64, device=place.device)
        block[torch.arange(len(place)), place % d] = torch.where(place < d, 1.0, -1.0).double()
        return block


def _collect(gradient: torch.Tensor, place: torch.Tensor, dimension: int) -> torch.Tensor:
    """Sum of the signed entries of each column, shape (d,), float64."""
    sums = torch.bincount(place, weights=gradient.reshape(-1).double(), minlength=2 * dimension)
    return sums[:dimension] - sums[dimension:]


class _Lookup(torch.autograd.Function):
    """(z, -z)[place]; the gradient is summed in float64, for which autograd's own index has no form."""

    @staticmethod
    def forward(z: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        return torch.cat((z, -z))[place.int()]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], _: torch.Tensor) -> None:
        z, place = inputs
        ctx.save_for_backward(place)
        ctx.save_for_forward(place)
        ctx.dimension, ctx.dtype = len(z), z.dtype

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (place,) = ctx.saved_tensors
        return _collect(gradient, place, ctx.dimension).to(ctx.dtype), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:
        (place,) = ctx.saved_tensors
        return torch.cat((tangent, -tangent))[place.int()]


class IntrinsicDimension(nn.Module):
    """A model whose parameters are theta_0 + P z, with z trained and everything else frozen.

    The forward pass makes the moved weights, which take as much memory as the model itself until the backward
    pass is done. At z = 0, where training starts, the model is the base model.

    Args:
        base: The model; its parameters are frozen in place and never change. All of them are moved, frozen
            ones before included, heads too (Definition D.1).
        dimension: d, number of trained parameters.
        seed: The init seed, which P depends on and nothing else does.

    Raises:
        UserError: d is no whole number from 1 to the number of parameters, or a parameter is no
            floating-point number.
    """

    def __init__(self, base: nn.Module, dimension: int, *, seed: int) -> None:
        super().__init__()
        named = dict(base.named_parameters())
        for name, parameter in named.items():
            if not parameter.is_floating_point():
                raise UserError(f"parameter '{name}' is {parameter.dtype}: it cannot be moved", where="model")
        first = next(iter(named.values()), None)
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        device = "cpu" if first is None else first.device
        self.projection = SignProjection(shapes, dimension, seed=seed, device=device)
        assert first is not None  # or there would be no d from 1 to 0
        self.base = base.requires_grad_(False)
        self.z = nn.Parameter(torch.zeros(dimension, dtype=first.dtype, device=first.device))

    def weights(self) -> dict[str, torch.Tensor]:
        """theta_0 + P z by the base model's names, differentiable in z."""
        return {
            name: parameter + self.projection.times(name, self.z).to(parameter)
            for name, parameter in self.base.named_parameters()
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base model gives with the moved weights."""
        return functional_call(self.base, self.weights(), args, kwargs)

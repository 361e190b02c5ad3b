"""Kernels of LoRA from gradients of the layers it adapts (TTR paper, section 3; Malladi et al. 2023, C.6).

For a layer with weight gradient G (m x n) at the effective weight W0 + s B A, back-propagation gives
dL/dB = s G A^T and dL/dA = s B^T G, so that

    K(i, j) = s^2 [ <G_i A^T, G_j A^T>  +  <B^T G_i, B^T G_j> ]
                    (B is trained)         (A is trained; exactly 0 at B = 0)

One capture of the base model therefore serves every adapter, rank, variance and scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from foretaste.errors import UserError
from foretaste.kernels.gradients import Gradient, Outer
from foretaste.kernels.parameters import Parameter
from foretaste.kernels.products import CHUNK_BYTES, explicit, gram
from foretaste.seeds import generator
from foretaste.theory.lora_width import PEFT_K

Float = npt.NDArray[np.float64]
DRAWN_BYTES = 64 * 2**20
"""Directions that `Ranks` keeps; of all layers of a large model they would take more than the kernel."""


@dataclass(frozen=True)
class Adapted:
    """LoRA on one layer.

    Attributes:
        A: Shape (r, n).
        B: Shape (m, r), or None for B = 0.
        scaling: s, that is alpha / r in peft, alpha / sqrt(r) with rslora.
        trains: Which of the two are trained.
    """

    A: torch.Tensor
    B: torch.Tensor | None
    scaling: float
    trains: frozenset[str] = frozenset({"A", "B"})


def kernel_b(a: Outer, b: Outer, adapted: Adapted) -> torch.Tensor:
    """s^2 <G_i A^T, G_j A^T>, the part of B: shape (rows of a * outputs, rows of b * outputs), float64."""
    left = _through_a(a, adapted)
    right = left if a is b else _through_a(b, adapted)
    return adapted.scaling**2 * explicit(left, right)


def kernel_a(a: Outer, b: Outer, adapted: Adapted) -> torch.Tensor:
    """s^2 <B^T G_i, B^T G_j>, the part of A: as `kernel_b`; exactly zero at B = 0."""
    if adapted.B is None:
        return torch.zeros(a.rows * a.outputs, b.rows * b.outputs, dtype=torch.float64)
    left = _through_b(a, adapted.B)
    right = left if a is b else _through_b(b, adapted.B)
    return adapted.scaling**2 * explicit(left, right)


def _through_a(a: Outer, adapted: Adapted) -> Outer:
    """G A^T is the gradient of a layer whose inputs are A x."""
    x = a.x @ adapted.A.to(a.x).T
    return Outer(x, a.d)


def _through_b(a: Outer, matrix: torch.Tensor) -> Outer:
    """B^T G is the gradient of a layer whose output derivatives are B^T d."""
    return Outer(a.x, a.d @ matrix.to(a.d))


@dataclass(frozen=True)
class Arm:
    """A product for `compute`: the kernel of one LoRA, its parts of A and of B apart.

    Attributes:
        name: Names the results `NAME/A` and `NAME/B`.
        layers: What is adapted, by name of the parameter.
    """

    name: str
    layers: Mapping[str, Adapted]

    @property
    def symmetric(self) -> bool:
        """Whether K(i, j) = K(j, i)."""
        return True

    def results(self, _: Sequence[Parameter]) -> int:
        """How many matrices it gives at most."""
        return 2

    def kept(self, _: Sequence[Parameter]) -> int:
        """Bytes that it keeps from tile to tile: none."""
        return 0

    def tiles(self, parameter: Parameter, a: Gradient, b: Gradient) -> Iterator[tuple[str, torch.Tensor]]:
        """The tiles of one layer, where it is adapted."""
        adapted = self.layers.get(parameter.name)
        if adapted is None:
            return
        left = _of_a_layer(parameter, a)
        right = left if a is b else _of_a_layer(parameter, b)
        if "B" in adapted.trains:
            yield f"{self.name}/B", kernel_b(left, right, adapted)
        if "A" in adapted.trains and adapted.B is not None:
            yield f"{self.name}/A", kernel_a(left, right, adapted)


def _of_a_layer(parameter: Parameter, gradient: Gradient) -> Outer:
    if not isinstance(gradient, Outer):
        raise UserError(
            f"'{parameter.name}' is not used as a linear layer's weight alone: its LoRA kernel is unknown",
            cure="Leave this layer out, or wrap the model with peft and compute the kernel of that.",
        )
    return gradient


Law = Literal["gaussian", "uniform"]


@dataclass(frozen=True)
class Ranks:
    """A product for `compute`: LoRA at B = 0 for many ranks, from prefixes of one A in each layer.

    A_r = sqrt(k / n) Z_r, where Z_r holds the first r rows of a matrix Z with entries of mean 0 and variance
    1. The kernel is then s^2 k U_r with U_r = sum over layers of <G_i Z_r^T, G_j Z_r^T> / n: variance and
    scaling are numbers that multiply it.

    Attributes:
        ranks: Ascending.
        seed: Of the draws of Z.
        law: Of the entries of Z.
        layers: Names of the parameters that are adapted; None for every linear layer outside the head.
        name: Of the result; products with several seeds need several.
        by: "parameter" keeps the layers apart, as results `NAME/PARAMETER`: the sum over layers with another
            weight than 1 / n, and each layer by itself.
    """

    KEY: ClassVar[str] = "ranks"

    ranks: tuple[int, ...]
    seed: int
    law: Law = "uniform"  # peft's kaiming_uniform
    layers: frozenset[str] | None = None
    name: str = KEY
    by: Literal["sum", "parameter"] = "sum"
    _drawn: dict[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    _scratch: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def symmetric(self) -> bool:
        """Whether K(i, j) = K(j, i)."""
        return True

    def __post_init__(self) -> None:
        if not self.ranks or list(self.ranks) != sorted(set(self.ranks)) or self.ranks[0] < 1:
            raise UserError(f"ranks are {list(self.ranks)}: expected ascending whole numbers above zero")

    def results(self, parameters: Sequence[Parameter]) -> int:
        """How many matrices it gives at most, the tile that is made before it is kept included."""
        return len(self.ranks) * (1 if self.by == "sum" else 1 + sum(map(self._adapts, parameters)))

    def kept(self, parameters: Sequence[Parameter]) -> int:
        """Bytes of Z that are kept for further tiles at most."""
        sizes = [8 * self.ranks[-1] * (p.fan_in or 0) for p in parameters if self._adapts(p)]
        return min(sum(sizes), max([DRAWN_BYTES, *sizes]))

    def directions(self, parameter: Parameter, n: int) -> torch.Tensor:
        """Z of one layer: shape (largest rank, n), float64, the same whatever the other ranks are."""
        if parameter.name not in self._drawn:
            size = 8 * self.ranks[-1] * n
            if sum(z.nbytes for z in self._drawn.values()) + size > DRAWN_BYTES:
                self._drawn.clear()  # drawn again when they are asked for again
            rows = []
            rng = generator(self.seed, "kernel", "lora", parameter.name)
            for _ in range(self.ranks[-1]):
                gaussian = self.law == "gaussian"
                rows.append(rng.normal(size=n) if gaussian else rng.uniform(-1, 1, n) * 3**0.5)
            self._drawn[parameter.name] = torch.from_numpy(np.stack(rows))
        return self._drawn[parameter.name]

    def tiles(self, parameter: Parameter, a: Gradient, b: Gradient) -> Iterator[tuple[str, torch.Tensor]]:
        """Shape (ranks, rows of a * outputs, rows of b * outputs)."""
        if not self._adapts(parameter):
            return
        one, other = _of_a_layer(parameter, a), _of_a_layer(parameter, b)
        n = one.x.shape[2]
        z = self.directions(parameter, n).to(one.x)
        height, width = one.rows * one.outputs, other.rows * other.outputs
        picks = {r - 1: place for place, r in enumerate(self.ranks)}
        # One tile for all layers: fresh memory for each would cost as much time as the products.
        shape = (len(self.ranks), height, width)
        if shape not in self._scratch:
            self._scratch.clear()
            self._scratch[shape] = torch.empty(shape, dtype=torch.float64)
        tile = self._scratch[shape]
        carried = torch.zeros(height, width, dtype=torch.float64)
        product = one.x.new_empty(height, width)
        step = max(1, CHUNK_BYTES // (max(height, width) * one.d.shape[3] * one.d.itemsize))
        for start in range(0, len(z), step):
            some = z[start : start + step]
            left = _by_direction(one, some)
            right = left if a is b else _by_direction(other, some)
            for p in range(len(some)):
                # A view with gaps between its rows, which matrix products take as it is.
                torch.mm(left[:, p], right[:, p].T, out=product)
                carried += product
                if start + p in picks:
                    torch.div(carried, n, out=tile[picks[start + p]])
        yield self.name if self.by == "sum" else f"{self.name}/{parameter.name}", tile

    def _adapts(self, parameter: Parameter) -> bool:
        return parameter.group == "linear" if self.layers is None else parameter.name in self.layers


def _by_direction(a: Outer, z: torch.Tensor) -> torch.Tensor:
    """G z_p for every direction p: shape (rows * outputs, directions, m)."""
    rows, outputs, _, m = a.d.shape
    x = (a.x @ z.T).transpose(1, 2).unsqueeze(1)  # rows, 1, directions, tokens
    return torch.matmul(x, a.d).reshape(rows * outputs, len(z), m)


# --- every variance and scaling from the unit kernels --------------------------------------------------

Rule = Callable[[int], float]

RULES: dict[str, Callable[[float, int], float]] = {
    "alpha/r": lambda alpha, r: alpha / r,
    "alpha/sqrt(r)": lambda alpha, r: alpha / r**0.5,
    "alpha=r": lambda _alpha, _r: 1.0,
}
"""Scaling s by name: peft's default, rslora, and the TTR paper's rank sweep (its code), where alpha is r."""


@dataclass(frozen=True)
class Surface:
    """LoRA kernels at B = 0 over rank, variance and scaling.

    Attributes:
        ranks: Ascending.
        unit: U_r, shape (ranks, rows * outputs, rows * outputs), float64.
    """

    ranks: tuple[int, ...]
    unit: Float

    def factor(self, r: int, k: float, *, alpha: float = 16.0, rule: str = "alpha/r") -> float:
        """s^2 k, the number that multiplies U_r.

        Args:
            r: Rank.
            k: Variance of A's entries times n; 1/3 is peft's default.
            alpha: The TTR paper's default (section 4.1).
            rule: A name in `RULES`.
        """
        if k <= 0:
            raise UserError(f"k is {k}: a variance is above zero")
        if rule not in RULES:
            raise UserError(f"no scaling rule '{rule}'; there are: {', '.join(RULES)}")
        return RULES[rule](alpha, r) ** 2 * k

    def kernel(self, r: int, k: float = PEFT_K, *, alpha: float = 16.0, rule: str = "alpha/r") -> Float:
        """The kernel of the adapters at one point: shape (rows * outputs, rows * outputs).

        Raises:
            UserError: The rank was not computed.
        """
        if r not in self.ranks:
            raise UserError(f"rank {r} was not computed", cure=f"Choose one of {list(self.ranks)}.")
        kernel: Float = self.factor(r, k, alpha=alpha, rule=rule) * self.unit[self.ranks.index(r)]
        return kernel

    def traces(self, ks: Sequence[float], *, alpha: float = 16.0) -> Float:
        """Trace of the kernel at every point: shape (rules, ranks, ks), float64."""
        traces = np.trace(self.unit, axis1=1, axis2=2)
        factors = [
            [[self.factor(r, k, alpha=alpha, rule=rule) for k in ks] for r in self.ranks] for rule in RULES
        ]
        surface: Float = np.asarray(factors) * traces[None, :, None]
        return surface


# --- expectation over A --------------------------------------------------------------------------------


def expected(full: Float, n: int, r: int, k: float, scaling: float) -> Float:
    """E over A of one layer's kernel at B = 0: s^2 r (k / n) times its full fine-tuning kernel, at any width.

    Args:
        full: The layer's kernel under full fine-tuning.
        n: Inputs of the layer.
        r: Rank.
        k: Variance of A's entries times n.
        scaling: s.
    """
    kernel: Float = scaling**2 * r * (k / n) * full
    return kernel


@dataclass(frozen=True)
class Weighted:
    """A product for `compute`: the SGD kernel, each parameter's part times a number.

    With s^2 r k / n of its layer it is the expectation over A of a LoRA kernel at B = 0 (`expected`).

    Attributes:
        name: Of the result, `NAME/sum`.
        factors: By name of the parameter; others count once.
    """

    name: str
    factors: Mapping[str, float]

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

    def tiles(self, parameter: Parameter, a: Gradient, b: Gradient) -> Iterator[tuple[str, torch.Tensor]]:
        """The tile of one parameter, shape (rows of a * outputs, rows of b * outputs)."""
        yield f"{self.name}/sum", self.factors.get(parameter.name, 1.0) * gram(a, b)


def variance(a: Outer, b: Outer, r: int, k: float, scaling: float, kurtosis: float = 0.0) -> torch.Tensor:
    """Variance over A of one layer's kernel at B = 0: shape (rows of a * outputs, rows of b * outputs).

    Var = s^4 r sigma^4 (2 ||sym M||_F^2 + kurtosis * sum_p M_pp^2) with M = G_i^T G_j, sigma^2 = k / n. Forms
    an n x n matrix for each pair: for a look at few rows.

    Args:
        a: The layer's gradients, rows i.
        b: The layer's gradients, rows j.
        r: Rank.
        k: Variance of A's entries times n.
        scaling: s.
        kurtosis: Excess kurtosis of A's entries: 0 for a normal, -6/5 for a uniform law.
    """
    n = a.x.shape[2]
    left = _matrices(a)
    right = _matrices(b)
    result = torch.empty(len(left), len(right), dtype=torch.float64)
    for i, one in enumerate(left):
        m = torch.matmul(one.T, right).double()
        symmetric = (m + m.transpose(1, 2)) / 2
        diagonal = m.diagonal(dim1=1, dim2=2)
        result[i] = 2 * symmetric.square().sum((1, 2)) + kurtosis * diagonal.square().sum(1)
    return scaling**4 * r * (k / n) ** 2 * result


def _matrices(a: Outer) -> torch.Tensor:
    """G of every row and output as an m x n matrix."""
    return torch.einsum("rctm,rtn->rcmn", a.d, a.x).flatten(0, 1)


__all__ = [
    "RULES",
    "Adapted",
    "Arm",
    "Ranks",
    "Surface",
    "Weighted",
    "expected",
    "kernel_a",
    "kernel_b",
    "variance",
]

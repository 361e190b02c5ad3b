"""NNGP and NTK of infinitely wide multilayer perceptrons.

L linear layers, W^l of n_l x n_{l-1}, phi between them, z^1 = first pre-activations, one output neuron of L
(C equal outputs: the kernel (x) I_C). The forward recursion does not depend on the parametrisation:

    q^1 = <x, x'> / n_0,    q^l = E[phi(u) phi(v)],  (u, v) ~ N(0, Sigma^{l-1} of the pair),
    Sigma^l = sigma_w^2 q^l + sigma_b^2,   Sdot^l = sigma_w^2 E[phi'(u) phi'(v)],   P_l = prod_{m > l} Sdot^m.

Every layer contributes on its own (o is the entrywise product), and disjoint parameters add up:

=======================  ============================  =================  =================================
                         weights of layer l            its bias           source
=======================  ============================  =================  =================================
NTK parametrisation      sigma_w^2 q^l o P_l           sigma_b^2 P_l      Jacot et al. 2018
standard (PyTorch's)     n_{l-1} q^l o P_l             P_l                Sohl-Dickstein et al. 2020
LoRA, mean over A        s^2 r k q^l o P_l             none               Lemma 3.1 of the TTR paper, mended
=======================  ============================  =================  =================================

LoRA, with the moments of its kernel over A, is in `lora_width.py`.

In docs/theory.md: T1 and T2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.activations import Activation, dual, dual_derivative
from foretaste.theory.layout import Floats, at_least, real


@dataclass(frozen=True, eq=False)
class Pieces:
    """The recursion between N inputs (rows) and M inputs (columns), layer by layer.

    Attributes:
        q: q^1 .. q^L, each (N, M).
        q_rows: q^l of each row input with itself, each (N,).
        q_columns: The same of the column inputs, each (M,).
        covariances: Sigma^1 .. Sigma^L, each (N, M).
        slopes: Sdot^2 .. Sdot^L, each (N, M).
        backward: P_1 .. P_L, each (N, M); the limit of <delta^l, delta'^l>.
        quartic: sum_p x_p^2 x'_p^2 / n_0^2, shape (N, M): what A's kurtosis acts on in layer 1.
        weight_variances: sigma_w^2 of layers 1 .. L.
        bias_variance: sigma_b^2.
        inputs: n_0.
    """

    q: tuple[Floats, ...]
    q_rows: tuple[Floats, ...]
    q_columns: tuple[Floats, ...]
    covariances: tuple[Floats, ...]
    slopes: tuple[Floats, ...]
    backward: tuple[Floats, ...]
    quartic: Floats
    weight_variances: tuple[float, ...]
    bias_variance: float
    inputs: int

    @property
    def depth(self) -> int:
        """L, the number of linear layers."""
        return len(self.q)

    @property
    def nngp(self) -> Floats:
        """Sigma^L: covariance of an output neuron over random networks, shape (N, M)."""
        return self.covariances[-1]


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """NTK contribution of every layer when it is trained outright.

    Attributes:
        weights: For layers 1 .. L, each (N, M).
        biases: For layers 1 .. L, each (N, M).
    """

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]


# --- the recursion -------------------------------------------------------------------------------


def propagate(
    x: npt.ArrayLike,
    other: npt.ArrayLike | None = None,
    *,
    activation: Activation,
    depth: int,
    weight_variance: float,
    bias_variance: float = 0.0,
) -> Pieces:
    """All layers' q, Sigma, Sdot and P between inputs (Lee et al. 2018; Jacot et al. 2018).

    A column that repeats a row is matched to rounding only: for ReLU, whose Sdot has an infinite slope at
    correlation 1, its entry is then good to 1e-8. Without `other`, the diagonal is exact.

    Args:
        x: Inputs, shape (N, n_0); the rows of every kernel (for a predictor: the test examples).
        other: Inputs, shape (M, n_0), its columns; `x` itself when not given.
        activation: phi.
        depth: L >= 1 linear layers; 1 is a linear model.
        weight_variance: sigma_w^2 > 0; weights have variance sigma_w^2 / n_{l-1}. He's is 2, PyTorch's 1/3.
        bias_variance: sigma_b^2 >= 0. The TTR paper has no biases.

    Raises:
        UserError: Inputs are not finite or of different sizes, the depth is not a positive whole number, or a
            variance is out of its range.
    """
    weight = at_least(weight_variance, 0.0, "weight_variance", strict=True)
    bias = at_least(bias_variance, 0.0, "bias_variance")
    whole(depth, "depth")
    rows, columns = _inputs(x, other)
    unit = 1.0 / math.sqrt(rows.shape[1])
    return _recursion(unit * rows, unit * columns, other is None, activation, [weight] * depth, bias)


def _recursion(
    rows: Floats,
    columns: Floats,
    square: bool,
    activation: Activation,
    weights: Sequence[float],
    bias: float,
) -> Pieces:
    """From q^1 = <row, column>, with Sigma^l = weights[l] q^l + bias; `square`: the columns are the rows."""
    q = [rows @ columns.T]
    # A square kernel's variances are read off its own diagonal, so that a = b = c there to the last bit.
    q_rows = [_diagonal(q[0]) if square else np.einsum("np,np->n", rows, rows)]
    q_columns = [q_rows[0] if square else np.einsum("mp,mp->m", columns, columns)]
    covariances, slopes = [weights[0] * q[0] + bias], []
    for below, weight in itertools.pairwise(weights):
        a, b = below * q_rows[-1] + bias, below * q_columns[-1] + bias
        pairs = a[:, None], b[None, :], covariances[-1]
        q.append(dual(activation, *pairs))
        slopes.append(weight * dual_derivative(activation, *pairs))
        q_rows.append(_diagonal(q[-1]) if square else dual(activation, a, a, a))
        q_columns.append(q_rows[-1] if square else dual(activation, b, b, b))
        covariances.append(weight * q[-1] + bias)
    backward = [np.ones_like(q[0])]
    for slope in reversed(slopes):
        backward.insert(0, backward[0] * slope)
    return Pieces(
        q=tuple(q),
        q_rows=tuple(q_rows),
        q_columns=tuple(q_columns),
        covariances=tuple(covariances),
        slopes=tuple(slopes),
        backward=tuple(backward),
        quartic=(rows**2) @ (columns**2).T,
        weight_variances=tuple(weights),
        bias_variance=bias,
        inputs=rows.shape[1],
    )


def ntk_layers(pieces: Pieces) -> LayerKernels:
    """Layers of z^l = sigma_w / sqrt(n_{l-1}) W a + sigma_b b with W, b ~ N(0, 1): the NTK parametrisation.

    Jacot et al. 2018, Theorem 1: the sum is Theta^l = Sigma^l + Theta^{l-1} o Sdot^l.
    """
    parts = zip(pieces.weight_variances, pieces.q, pieces.backward, strict=True)
    weights = tuple(w * q * p for w, q, p in parts)
    return LayerKernels(weights, tuple(pieces.bias_variance * p for p in pieces.backward))


def standard_layers(pieces: Pieces, widths: Sequence[int]) -> LayerKernels:
    """Layers of z^l = W a + b with W ~ N(0, sigma_w^2 / n_{l-1}): the standard parametrisation.

    Sohl-Dickstein et al. 2020, "On the infinite width limit of neural networks with a standard
    parameterization". To leading order in the widths, which weight the layers.

    Args:
        pieces: Of the network.
        widths: n_0 .. n_{L-1}, in_features of every layer.

    Raises:
        UserError: There is not one width a layer, the first is not the inputs', or one is not positive.
    """
    sizes = _widths(widths, pieces.inputs)
    if len(sizes) != pieces.depth:
        raise UserError(
            f"expected {pieces.depth} widths, got {len(sizes)}",
            where="widths",
            cure="Pass in_features of every linear layer, from the inputs up.",
        )
    weights = tuple(n * q * p for n, q, p in zip(sizes, pieces.q, pieces.backward, strict=True))
    return LayerKernels(weights, pieces.backward)


def full_kernel(layers: LayerKernels, *, biases_trained: bool) -> Floats:
    """NTK of full fine-tuning: all layers' weights, and their biases where these are trained.

    Returns:
        Shape (N, M).
    """
    return summed([*layers.weights, *(layers.biases if biases_trained else ())])


# --- as the paper prints it ----------------------------------------------------------------------


def ntk_as_printed(
    x: npt.ArrayLike, other: npt.ArrayLike | None = None, *, activation: Activation, widths: Sequence[int]
) -> Floats:
    """NTK of full fine-tuning by the TTR paper's Eq. 11-13, to the letter. Not the NTK: see `ntk_layers`.

    Sigma^1 = <x, x'> without 1/n_0, and Sigma^l and Sdot^l are sums over the n_{l-1} neurons of layer l - 1
    (the second lines of Eq. 11 and 13) of pre-activations from N(0, Sigma^{l-1}); their first lines, an
    expectation, are the same with hidden widths of 1. The one repair is X X'^T for the printed X^T X'.

    Args:
        x: Inputs, shape (N, n_0).
        other: Inputs, shape (M, n_0); `x` itself when not given.
        activation: The paper's sigma.
        widths: n_0 .. n_{L-1}.

    Returns:
        Shape (N, M).

    Raises:
        UserError: Inputs are not finite or of different sizes, or the widths do not fit.
    """
    return summed(printed_layers(x, other, activation, widths))


def printed_layers(
    x: npt.ArrayLike, other: npt.ArrayLike | None, activation: Activation, widths: Sequence[int]
) -> tuple[Floats, ...]:
    """Sigma^l o P_l of Eq. 11-13: those of a network with sigma_w^2 = 1, n_1, .. n_{L-1} and raw inputs.

    Args:
        x: Inputs, shape (N, n_0).
        other: Inputs, shape (M, n_0); `x` itself for None.
        activation: The paper's sigma.
        widths: n_0 .. n_{L-1}.

    Raises:
        UserError: See `ntk_as_printed`.
    """
    rows, columns = _inputs(x, other)
    sums = [1.0, *map(float, _widths(widths, rows.shape[1])[1:])]
    return ntk_layers(_recursion(rows, columns, other is None, activation, sums, 0.0)).weights


# --- checks --------------------------------------------------------------------------------------


def _inputs(x: npt.ArrayLike, other: npt.ArrayLike | None) -> tuple[Floats, Floats]:
    rows = real(x, "x")
    columns = rows if other is None else real(other, "other")
    for name, array in (("x", rows), ("other", columns)):
        if array.ndim != 2 or 0 in array.shape:
            raise UserError(f"expected inputs of shape (N, n_0), got {array.shape}", where=name)
    if rows.shape[1] != columns.shape[1]:
        raise UserError(f"expected inputs of size {rows.shape[1]}, got {columns.shape[1]}", where="other")
    return rows, columns


def _diagonal(kernel: Floats) -> Floats:
    return np.diagonal(kernel).copy()


def summed(kernels: Sequence[Floats]) -> Floats:
    """Sum of kernels of one shape."""
    total: Floats = np.sum(np.stack(kernels), axis=0)
    return total


def whole(value: int, name: str) -> int:
    """A positive whole number, checked.

    Raises:
        UserError: It is none.
    """
    if not (1 <= value < math.inf) or value != int(value):
        raise UserError(f"expected a whole number >= 1, got {value!r}", where=name)
    return int(value)


def _widths(widths: Sequence[int], inputs: int) -> list[int]:
    sizes = [whole(n, f"widths[{i}]") for i, n in enumerate(widths)]
    if not sizes or sizes[0] != inputs:
        raise UserError(f"expected widths from n_0 = {inputs} on, got {sizes}", where="widths")
    return sizes

"""Small networks, adapters and spectra that the claims are tried on.

Jacobians are taken by complex steps: f(w + ih) = f(w) + ih f'(w) + O(h^2) has no cancellation, so they are
right to rounding and owe nothing to the formulas that they check (Squire and Trapp 1998).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from foretaste.theory.activations import Activation
from foretaste.theory.layout import Floats

Numbers: TypeAlias = npt.NDArray[Any]
STEP = 1e-30
LAW_UNIFORM, LAW_NORMAL = "uniform", "normal"
SHRINKS = 0.71
"""Largest ratio, from one width to four times it, of an error that counts as vanishing.

An error of order width^(-1/2) halves; one that stays has ratio 1. This is their geometric mean.
"""
EXACT = 1e-10
"""Relative error up to which two ways to one number agree: some 1e5 roundings of float64."""


def complex_step(function: Callable[[Numbers], Numbers], at: Floats) -> Floats:
    """Jacobian of a function that accepts complex numbers, shape (*outputs, *at.shape)."""
    columns = []
    for place in np.ndindex(at.shape):
        shifted = at.astype(complex)
        shifted[place] += 1j * STEP
        columns.append(function(shifted).imag / STEP)
    stacked = np.stack(columns, axis=-1)
    return stacked.reshape(*stacked.shape[:-1], *at.shape)


def forward(x: Floats, weights: Sequence[Numbers]) -> Numbers:
    """Outputs (N, C) of a tanh network without biases, z = W a."""
    a: Numbers = x
    for W in weights[:-1]:
        a = np.tanh(a @ W.T)
    return a @ weights[-1].T


def tanh_network(rng: np.random.Generator, widths: Sequence[int]) -> list[Floats]:
    """Weights of variance 1 / n_in, shapes (n_l, n_{l-1})."""
    return [rng.normal(size=(m, n)) / np.sqrt(n) for n, m in itertools.pairwise(widths)]


def network_jacobian(x: Floats, weights: Sequence[Floats]) -> Floats:
    """Jacobian of all outputs with respect to all weights, shape (N, C, P)."""
    sizes = [W.size for W in weights]

    def outputs(flat: Numbers) -> Numbers:
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return forward(x, [part.reshape(W.shape) for part, W in zip(parts, weights, strict=True)])

    return complex_step(outputs, np.concatenate([W.ravel() for W in weights]))


def layer_gradients(x: Floats, weights: Sequence[Floats], layer: int) -> Floats:
    """Gradient of output 0 with respect to the weight of one layer (0 is the first), shape (N, m, n)."""

    def outputs(W: Numbers) -> Numbers:
        return forward(x, [W if i == layer else V for i, V in enumerate(weights)])[:, 0]

    return complex_step(outputs, weights[layer])


def lora_gradients(x: Floats, weights: Sequence[Floats], layer: int, A: Floats, s: float) -> Floats:
    """Gradient of output 0 with respect to B at B = 0, W + s B A in one layer, shape (N, m, r)."""
    W = weights[layer]

    def outputs(B: Numbers) -> Numbers:
        return forward(x, [W + s * B @ A if i == layer else V for i, V in enumerate(weights)])[:, 0]

    return complex_step(outputs, np.zeros((W.shape[0], A.shape[0])))


def layer_inputs(x: Floats, weights: Sequence[Floats], layer: int) -> Floats:
    """What a layer reads, shape (N, n_{l-1})."""
    a: Numbers = x
    for W in weights[:layer]:
        a = np.tanh(a @ W.T)
    return np.asarray(a, dtype=np.float64)


def gram(gradients: Floats) -> Floats:
    """Inner products of the rows' gradients, shape (N, N)."""
    flat = gradients.reshape(len(gradients), -1)
    return np.asarray(flat @ flat.T)


def wide_kernel(
    rng: np.random.Generator, x: Floats, width: int, depth: int, activation: Activation
) -> Floats:
    """NTK of one finite network in the NTK parametrisation, weights of variance 1 / n_in, shape (N, N)."""
    sizes = [x.shape[1], *[width] * (depth - 1), 1]
    weights = tanh_network(rng, sizes)
    inputs, pre = [x], []
    for W in weights[:-1]:
        pre.append(inputs[-1] @ W.T)
        inputs.append(activation.phi(pre[-1]))
    delta, kernel = np.ones((len(x), 1)), np.zeros((len(x), len(x)))
    for layer in reversed(range(depth)):
        kernel += (delta @ delta.T) * (inputs[layer] @ inputs[layer].T) / sizes[layer]
        if layer:
            delta = (delta @ weights[layer]) * activation.derivative(pre[layer - 1])
    return kernel


def draw_adapter(rng: np.random.Generator, r: int, n: int, k: float, law: str = LAW_UNIFORM) -> Floats:
    """A of shape (r, n), entries of variance k / n: uniform as in peft, or normal."""
    sd = np.sqrt(k / n)
    if law == LAW_NORMAL:
        return rng.normal(0.0, sd, (r, n))
    return rng.uniform(-np.sqrt(3) * sd, np.sqrt(3) * sd, (r, n))


def ordered_pairs(
    rng: np.random.Generator, count: int, *, size: int, rank: int | None
) -> list[tuple[Floats, Floats]]:
    """Eigenvalues of random pairs 0 <= L <= F: F = V V^T of full rank, L = V C V^T with 0 <= C <= I.

    Args:
        rng: Source of the draws.
        count: Number of pairs.
        size: Of the matrices.
        rank: Of L; None draws it.

    Returns:
        (of F, shape (size,); of L, shape (rank,)), descending.
    """
    pairs = []
    for _ in range(count):
        V = rng.normal(size=(size, size)) * 10.0 ** rng.uniform(-1.5, 1.5, size)
        r = int(rng.integers(1, size + 1)) if rank is None else rank
        basis, _ = np.linalg.qr(rng.normal(size=(size, r)))
        root = basis * np.sqrt(rng.uniform(0.01, 1.0, r))
        pairs.append((_squared_singular_values(V), _squared_singular_values(V @ root)[:r]))
    return pairs


def _squared_singular_values(M: Floats) -> Floats:
    return np.asarray(np.linalg.svd(M, compute_uv=False) ** 2, dtype=np.float64)


def relative(got: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """|got - expected| / |expected|, Frobenius."""
    wanted = np.asarray(expected)
    return float(np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted))

"""Initialisation of LoRA's A by law and realised variance: Var(A_ij) = k / n_in (theory.md, section 0).

Applied after peft has built its layers (design, decision 11). B stays zero, so the model's output is
unchanged. All draws come from a named generator, never from torch's global one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from foretaste.errors import UserError
from foretaste.record import InitCheck
from foretaste.registry import Registry
from foretaste.seeds import generator
from foretaste.spec import InitSpec
from foretaste.theory.lora_width import PEFT_K

Law = Callable[[np.random.Generator, int, int, float], npt.NDArray[np.float64]]
"""(generator, r, n_in, k) to a matrix of shape (r, n_in) whose entries have variance k / n_in."""

INITS: Registry[Law] = Registry("initialisation")

# Excess kurtosis of an entry, which sets the spread of the realised variance.
_KURTOSIS = {"kaiming-uniform": -1.2, "xavier-uniform": -1.2, "gaussian": 0.0, "xavier-normal": 0.0}


def conventional_k(law: str, r: int, n_in: int) -> float:
    """The k that a law has by convention when none is asked for.

    kaiming-uniform: 1/3, peft's default (kaiming_uniform with a = sqrt 5). gaussian: n_in / r^2, peft's
    `init_lora_weights="gaussian"` (standard deviation 1/r). xavier-*: 2 n_in / (n_in + r) (Glorot and Bengio
    2010, gain 1). orthogonal: 1 (orthonormal rows).
    """
    return {
        "kaiming-uniform": PEFT_K,
        "gaussian": n_in / r**2,
        "xavier-uniform": 2.0 * n_in / (n_in + r),
        "xavier-normal": 2.0 * n_in / (n_in + r),
        "orthogonal": 1.0,
    }[law]


@INITS.register("kaiming-uniform")
@INITS.register("xavier-uniform")
def _uniform(rng: np.random.Generator, r: int, n_in: int, k: float) -> npt.NDArray[np.float64]:
    """Uniform on [-b, b] with b = sqrt(3 k / n_in)."""
    bound = math.sqrt(3.0 * k / n_in)
    return rng.uniform(-bound, bound, size=(r, n_in))


@INITS.register("gaussian")
@INITS.register("xavier-normal")
def _normal(rng: np.random.Generator, r: int, n_in: int, k: float) -> npt.NDArray[np.float64]:
    """Normal with standard deviation sqrt(k / n_in)."""
    return rng.normal(0.0, math.sqrt(k / n_in), size=(r, n_in))


@INITS.register("orthogonal")
def _orthogonal(rng: np.random.Generator, r: int, n_in: int, k: float) -> npt.NDArray[np.float64]:
    """Orthogonal rows of length sqrt(k), uniform over all rotations (Haar); r <= n_in."""
    q, triangle = np.linalg.qr(rng.normal(size=(n_in, r)))
    # The signs of R's diagonal make the distribution uniform (Mezzadri 2007).
    return (q * np.sign(np.diag(triangle))).T * math.sqrt(k)


def lora_matrices(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, A (r x n_in) and B (n_out x r) of every linear layer that LoRA adapts."""
    for name, module in model.named_modules():
        layers, partners = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if not isinstance(layers, nn.ModuleDict) or not isinstance(partners, nn.ModuleDict):
            continue
        for adapter, layer in layers.items():
            a, b = layer.weight, partners[adapter].weight
            assert isinstance(a, torch.Tensor)
            assert isinstance(b, torch.Tensor)
            yield name, a, b


def apply(model: nn.Module, spec: InitSpec, seed: int) -> InitCheck:
    """Fill every A by the law and check the variance that came out.

    Args:
        model: A peft model with LoRA layers, B = 0.
        spec: Law and k.
        seed: The init seed.

    Returns:
        Requested and realised k. The worst z is the largest deviation over layers, in standard errors of the
        sample variance sqrt((2 + excess kurtosis) / entries).

    Raises:
        UserError: The model has no LoRA layer, B is not zero, a rank exceeds n_in for the orthogonal law, or
            the realised variance is not the requested one.
    """
    law = INITS.get(spec.law, where="init.law")
    requested: list[float] = []
    realised: list[float] = []
    worst = 0.0
    for name, a, b in lora_matrices(model):
        r, n_in = a.shape
        if torch.any(b != 0):
            raise UserError(
                f"B of layer '{name}' is not zero, so a new A would change the model's output",
                where="init",
                cure="Drop `init`, or peft's own init_lora_weights.",
            )
        if spec.law == "orthogonal" and r > n_in:
            raise UserError(f"r = {r} orthogonal rows do not fit into n_in = {n_in}", where=name)
        k = spec.k if spec.k is not None else conventional_k(spec.law, r, n_in)
        matrix = law(generator(seed, "init", "lora_A", name), r, n_in, k)
        with torch.no_grad():
            a.copy_(torch.from_numpy(matrix))
        got = float(a.detach().double().square().mean()) * n_in
        requested.append(k)
        realised.append(got)
        if spec.law in _KURTOSIS:
            error = k * math.sqrt((2.0 + _KURTOSIS[spec.law]) / a.numel())
            worst = max(worst, abs(got - k) / error)
        else:
            # Exact up to the rounding of the weights' dtype.
            worst = max(worst, abs(got - k) / (k * 4 * torch.finfo(a.dtype).eps))
    if not requested:
        raise UserError("no linear LoRA layer to initialise", where="init")
    # One layer in 10^9 lies beyond six standard errors when the law is right.
    if worst > 6.0:
        raise UserError(
            f"asked for k = {np.mean(requested):.4g}, got {np.mean(realised):.4g} "
            f"({worst:.1f} standard errors away)",
            where="init",
        )
    return InitCheck(
        law=spec.law,
        k_requested=float(np.mean(requested)),
        k_realised=float(np.mean(realised)),
        worst_z=worst,
        layers=len(requested),
    )

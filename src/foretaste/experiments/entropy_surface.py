"""The entropies of the TTR paper's Figure 3, for a random matrix and for a real model's LoRA kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foretaste.errors import UserError
from foretaste.experiments.kernel import kernel
from foretaste.experiments.kernel_jobs import OnProgress
from foretaste.experiments.kernel_result import Kernels
from foretaste.kernels import MEAN_LORA
from foretaste.seeds import generator
from foretaste.spec import MeasureSpec
from foretaste.theory import entropy_surface as surface
from foretaste.theory.entropy_surface import Point

DRAWS = 5


def of_matrices(n: int) -> list[Point]:
    """As printed, by formula over the paper's grid, and by formula and by draws at peft's variance.

    Args:
        n: Inputs of the layer, at least 256.

    Raises:
        UserError: The layer has fewer inputs than the largest rank.
    """
    at, ks = surface.DOUBLINGS, [surface.DEFAULT_K]
    return [
        *surface.printed(),
        *surface.formulas(n, surface.ranks(), surface.variances()),
        *surface.formulas(n, at, ks),
        *surface.sampled(n, at, ks, DRAWS, generator(0, "theory", "surface")),
    ]


def of_model(
    spec: MeasureSpec, folder: Path, *, base_dir: Path, on_progress: OnProgress | None = None
) -> tuple[list[Point], Kernels]:
    """Of the LoRA kernel on all linear layers of the spec's model, over the spec's ranks.

    Args:
        spec: Its section `kernel` says which ranks.
        folder: Where the kernels are written; a call that was stopped goes on.
        base_dir: Folder that relative paths in the spec start from.
        on_progress: Called with what is being done and the share that is done.

    Raises:
        UserError: The spec has no ranks, or its kernels cannot be computed.
    """
    if not spec.kernel.ranks:
        raise UserError("there are no ranks, so no surface", where="kernel.ranks", cure="Give some ranks.")
    kernels = kernel(spec, folder, base_dir=base_dir, on_progress=on_progress)
    return of_kernels(kernels), kernels


def of_kernels(kernels: Kernels) -> list[Point]:
    """Of kernels that are computed already.

    Args:
        kernels: With a LoRA surface.

    Raises:
        UserError: There is no surface, or no linear layer moves an output.
    """
    lora, ks = kernels.surface(), [*surface.variances(), surface.DEFAULT_K]
    size = kernels.train_rows
    # The mean of U_r over A is r times the linear layers' kernels, each over its number of inputs.
    mean = np.asarray(lora.ranks)[:, None, None] * kernels.parts[MEAN_LORA].train
    return [
        *surface.of_kernels(lora.unit, lora.ranks, ks, examples=size, source="model"),
        *surface.of_kernels(mean, lora.ranks, [surface.DEFAULT_K], examples=size, source="expected"),
    ]

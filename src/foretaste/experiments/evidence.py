"""What indicators need, from the kernels of a spec's arms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.experiments.kernel_result import Kernels
from foretaste.indicators import Evidence, Fisher

Float = npt.NDArray[np.float64]


def evidence(
    kernels: Kernels, arm: str, *, reference: str = "full", fisher: Fisher = "empirical"
) -> Evidence:
    """The evidence of one arm on the rows to train on; adapters and pairs are the caller's to add.

    Args:
        kernels: With `sgd` kernels.
        arm: Name of the arm.
        reference: Name of the arm of full fine-tuning; without such an arm there is no reference.
        fisher: See `Evidence`.

    Raises:
        UserError: There is no such arm, or it has no `sgd` kernel.
    """
    if arm not in kernels.arms or "sgd" not in kernels.arms[arm].parts:
        raise UserError(f"no sgd kernel of arm '{arm}'; there are: {', '.join(kernels.arms)}")
    n = kernels.train_rows
    labels, values = np.asarray(kernels.labels[:n]), kernels.values[:n]
    margin = kernels.outputs == "margin"
    compared = reference in kernels.arms
    return Evidence(
        kernel=_kernel(kernels, arm, head=True),
        reference=_kernel(kernels, reference, head=True) if compared else None,
        kernel_without_head=_kernel(kernels, arm, head=False),
        reference_without_head=_kernel(kernels, reference, head=False) if compared else None,
        logits=values[:, 0] if margin else values,
        labels=2 * labels - 1 if margin else labels,
        fisher=fisher,
    )


def _kernel(kernels: Kernels, arm: str, *, head: bool) -> Float:
    """Shape (N, N) or (N, C, N, C); zero where the arm trains nothing but the head."""
    names = [name for name in kernels.arms[arm].parts["sgd"] if head or name not in kernels.arms[arm].head]
    n = kernels.train_rows
    outputs = kernels.values.shape[1]
    total = np.zeros((n * outputs, n * outputs))
    for name in names:
        total = total + kernels.parts[name].train
    return total if kernels.outputs == "margin" else total.reshape(n, outputs, n, outputs)

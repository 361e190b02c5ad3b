"""Kernels of an arm from slices of gradients, as `theory.function_space.train` wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from foretaste.prediction.features import LAST, Block, Features
from foretaste.theory.function_space import Group, Tangent

Float = npt.NDArray[np.float64]


def tangent(
    features: Features,
    parts: Sequence[str],
    growing: str | None,
    pull: Float,
    *,
    pool: int,
    batch: int,
    size: float = 0.0,
    others: Sequence[str] = (),
    ratio: float = 1.0,
) -> Tangent:
    """The kernels of one arm.

    The second moment of a parameter's batch gradient at the start, over batches of independent rows, is
    E[g^2] / B + (1 - 1/B) E[g]^2, g being the gradient of one row's loss.

    Args:
        features: Of R rows, the rows that can be trained on first.
        parts: Parts of the features that the arm trains, beside the last layer.
        growing: The part whose gradient is zero at the start (A of LoRA), if there is one.
        pull: Derivatives of the loss with respect to the outputs at the start, of the training rows without
            poisoned texts, shape (N, C): row i of them is row i of the features.
        pool: P, rows that can be trained on.
        batch: B, rows of a batch.
        size: Root mean square of the last layer's weight, where its growth is to be followed.
        others: Parts that the arm trains beside the last layer at the run's own learning rate, where `parts`
            have another one.
        ratio: Learning rate of `parts` over that of the run.
    """
    below = _sums([b for part in parts for b in features.blocks.get(part, [])], pull, pool, batch)
    beside = _sums([b for part in others for b in features.blocks.get(part, [])], pull, pool, batch)
    last = _sums(features.blocks.get(LAST, []), pull, pool, batch)
    later = _sums(features.blocks.get(growing, []) if growing else [], pull, pool, batch)
    plain = sum(found[0] for found in (below, beside, last) if found is not None)
    assert isinstance(plain, np.ndarray)
    body, rest, top, rising = (None if found is None else found[1] for found in (below, beside, last, later))
    rated = None
    if ratio != 1.0 and below is not None and body is not None:
        body, rated = replace(body, ratio=ratio), plain + (ratio - 1.0) * below[0]
    return Tangent(plain, body, top, rising, size, features.outputs.shape[1], rest, rated)


def _sums(blocks: Sequence[Block], pull: Float, pool: int, batch: int) -> tuple[Float, Group] | None:
    """K, and D with the sum of the roots of second moments; None without blocks."""
    if not blocks:
        return None
    rows, outputs = blocks[0].values.shape[:2]
    shape = (rows * outputs, pool * outputs)
    plain, scaled, root = np.zeros(shape), np.zeros(shape), 0.0
    weights = torch.from_numpy(pull).float()
    for block in blocks:
        g = block.values
        mine = torch.einsum("rc,rcf->rf", weights, g[: len(pull)])
        second = mine.square().mean(0) / batch + (1.0 - 1.0 / batch) * mine.mean(0).square()
        deviation = second.sqrt()
        inverse = torch.where(deviation > 0, 1.0 / deviation, torch.zeros_like(deviation))
        flat = g.flatten(0, 1)
        left = flat[: pool * outputs]
        plain += block.weight * (flat @ left.T).double().numpy()
        scaled += block.weight * ((flat * inverse) @ left.T).double().numpy()
        root += block.weight * float(deviation.double().sum())
    return plain, Group(scaled, root)

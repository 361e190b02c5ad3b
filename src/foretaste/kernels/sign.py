"""Signs of gradients: the kernels of sign descent (Malladi et al. 2023, Definitions 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from foretaste.kernels.gradients import Entries, Gradient, Lookup, Outer, Rows, Sum
from foretaste.kernels.products import explicit, shared_ids

# Entries below this many machine epsilons of the sum of their terms count as zero. A key bias, to which
# attention is blind, has a gradient of exactly zero, whose rounding error would otherwise have a full vote:
# up to 31 epsilons in tiny random models (RoBERTa), 3 in one of six layers of 384.
DEAD_ZONE = 64.0


@dataclass(frozen=True)
class Signs:
    """sgn(G), chunk by chunk.

    Attributes:
        of: The gradients.
    """

    of: Outer | Sum | Rows

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.of.rows

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.of.outputs

    def chunks(self, columns: int) -> Iterator[torch.Tensor]:
        """Entries -1, 0 or 1, shape (rows * outputs, at most `columns`)."""
        for chunk, noise in _with_noise(self.of, columns):
            yield _sign(chunk, noise)


def sign_sign(a: Gradient, b: Gradient) -> torch.Tensor:
    """<sgn G_i, sgn G_j>: the tile of the SignGD kernel, float64."""
    if isinstance(a, Lookup) and isinstance(b, Lookup):
        return shared_ids(_signed(a), _signed(b))
    assert not isinstance(a, Lookup)
    assert not isinstance(b, Lookup)
    left = Signs(a)
    return explicit(left, left if a is b else Signs(b))


def gradient_sign(a: Gradient, b: Gradient) -> torch.Tensor:
    """<G_i, sgn G_j>: the tile of the asymmetric SignGD kernel; rows i are tested, rows j are trained on."""
    if isinstance(a, Lookup) and isinstance(b, Lookup):
        return shared_ids(a.entries, _signed(b))
    assert not isinstance(a, Lookup)
    assert not isinstance(b, Lookup)
    return explicit(a, Signs(b))


def dead(a: Gradient) -> int:
    """Number of entries, over all rows and outputs, that are not zero but count as zero."""
    if isinstance(a, Lookup):
        g = a.entries.g
        return int(((g != 0) & (_signed(a).g == 0)).sum())
    pairs = _with_noise(a, 1 << 20)
    return sum(int(((g != 0) & (_sign(g, noise) == 0)).sum()) for g, noise in pairs)


def _with_noise(a: Outer | Sum | Rows, columns: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Explicit gradients chunk by chunk, and below what they have no sign, which broadcasts against them."""
    noise = a.noise()
    if isinstance(noise, Outer):
        least = replace(noise, x=_threshold(noise.x))
        yield from zip(a.chunks(columns), least.chunks(columns), strict=True)
    else:
        least_of_row = _threshold(noise)
        yield from ((chunk, least_of_row) for chunk in a.chunks(columns))


def _threshold(noise: torch.Tensor) -> torch.Tensor:
    return DEAD_ZONE * torch.finfo(noise.dtype).eps * noise


def _sign(g: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return g.sign() * (g.abs() > threshold)


def _signed(a: Lookup) -> Entries:
    entries = a.entries
    return replace(entries, g=_sign(entries.g, _threshold(entries.noise).unsqueeze(2)))

"""Inner products between the gradients of two blocks of rows: one parameter's tile of a kernel.

Every function returns shape (rows of a * outputs, rows of b * outputs) in float64: products are taken in the
gradients' own precision, chunk by chunk, and the chunks are added in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from foretaste.kernels.gradients import Entries, Gradient, Lookup, Outer

# An explicit gradient exists in chunks of at most this many bytes in float64 (half of it in float32).
CHUNK_BYTES = 32 * 2**20

# Work per pair of tokens beside the multiplications, in multiply-adds: the elementwise product and its sum
# run at memory speed (measured: about as long as 100 multiply-adds of a matrix product).
PAIR_OVERHEAD = 100

# An id that occurs in this many pairs of rows is multiplied by itself; the rare ones together.
COMMON = 64


class Chunked(Protocol):
    """Explicit gradients, or a function of them, some columns at a time."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def outputs(self) -> int:
        """Number of outputs."""

    def chunks(self, columns: int) -> Iterator[torch.Tensor]:
        """Shape (rows * outputs, at most `columns`); two blocks of one parameter are cut alike."""


def gram(a: Gradient, b: Gradient) -> torch.Tensor:
    """<G_i, G_j>: the tile of the SGD kernel, by the cheapest of the exact ways."""
    if isinstance(a, Lookup) and isinstance(b, Lookup):
        return shared_ids(a.entries, b.entries)
    if isinstance(a, Outer) and isinstance(b, Outer) and _pairs_are_cheaper(a, b):
        return _token_pairs(a, b)
    assert not isinstance(a, Lookup)
    assert not isinstance(b, Lookup)
    return explicit(a, b)


def explicit(a: Chunked, b: Chunked) -> torch.Tensor:
    """The product of two explicit matrices that exist only chunk by chunk.

    Args:
        a: For the rows i.
        b: For the rows j; the same object where the two are the same, whose chunks are then made once.
    """
    height = max(a.rows * a.outputs, b.rows * b.outputs)
    columns = max(1, CHUNK_BYTES // (height * torch.finfo(torch.float64).bits // 8))
    total = torch.zeros(a.rows * a.outputs, b.rows * b.outputs, dtype=torch.float64)
    if a is b:
        for chunk in a.chunks(columns):
            total += (chunk @ chunk.T).double()
    else:
        for one, other in zip(a.chunks(columns), b.chunks(columns), strict=True):
            total += (one @ other.T).double()
    return total


def squared_norms(a: Gradient) -> torch.Tensor:
    """<G_i, G_i>, the diagonal of the tile, without the rest of it: shape (rows, outputs), float64."""
    total = torch.zeros(a.rows * a.outputs, dtype=torch.float64)
    if isinstance(a, Lookup):
        entries = a.entries
        total = total.view(a.rows, a.outputs)
        return total.index_add_(0, entries.row, (entries.g.double() ** 2).sum(2))
    for chunk in a.chunks(max(1, CHUNK_BYTES // (8 * len(total)))):
        total += (chunk.double() ** 2).sum(1)
    return total.view(a.rows, a.outputs)


def _pairs_are_cheaper(a: Outer, b: Outer) -> bool:
    """Whether products over pairs of tokens cost less than explicit gradients, in multiply-adds."""
    rows_a, outputs, tokens_a, m = a.d.shape
    rows_b, _, tokens_b, n = *b.d.shape[:3], a.x.shape[2]
    pairs = rows_a * rows_b * tokens_a * tokens_b
    by_pairs = pairs * (n + outputs**2 * (m + PAIR_OVERHEAD))
    formed = rows_a * tokens_a + (0 if a is b else rows_b * tokens_b)
    explicit = m * n * outputs * (rows_a * rows_b * outputs + formed)
    return by_pairs < explicit


def _token_pairs(a: Outer, b: Outer) -> torch.Tensor:
    """sum_{t,u} <d_it, d_ju> <x_it, x_ju>, some rows of `a` at a time."""
    rows_b, outputs, tokens_b, m = b.d.shape
    tokens_a = a.d.shape[2]
    total = torch.empty(a.rows, outputs, rows_b, outputs, dtype=torch.float64)
    width = rows_b * tokens_b * tokens_a * (1 + outputs) * a.d.itemsize
    step = max(1, CHUNK_BYTES // width)
    x_b = b.x.reshape(rows_b * tokens_b, -1).T
    for start in range(0, a.rows, step):
        x = a.x[start : start + step]
        inputs = (x.reshape(-1, x.shape[2]) @ x_b).view(len(x), tokens_a, rows_b, tokens_b)
        for c in range(outputs):
            d = a.d[start : start + step, c].reshape(-1, m)
            for e in range(outputs):
                other = b.d[:, e].reshape(-1, m).T
                pairs = (d @ other).view(len(x), tokens_a, rows_b, tokens_b)
                total[start : start + step, c, :, e] = pairs.mul_(inputs).sum((1, 3), dtype=torch.float64)
    return total.view(a.rows * outputs, rows_b * outputs)


def shared_ids(a: Entries, b: Entries) -> torch.Tensor:
    """The tile of an embedding table: only ids that both blocks hold contribute.

    Common ids are multiplied one by one, the rare ones pair by pair.
    """
    outputs, m = a.g.shape[1:]
    total = torch.zeros(a.rows, b.rows, outputs, outputs, dtype=torch.float64)
    first_a, count_a, first_b, count_b = _join(a.id, b.id)
    often = count_a * count_b > COMMON
    for k in torch.nonzero(often).flatten().tolist():
        one = slice(int(first_a[k]), int(first_a[k] + count_a[k]))
        other = slice(int(first_b[k]), int(first_b[k] + count_b[k]))
        tile = a.g[one].reshape(-1, m) @ b.g[other].reshape(-1, m).T
        tile = tile.view(int(count_a[k]), outputs, int(count_b[k]), outputs)
        # A row holds an id once, so that no place is added to twice.
        total[a.row[one][:, None], b.row[other][None, :]] += tile.transpose(1, 2).double()
    left, right = _rare_pairs(first_a[~often], count_a[~often], first_b[~often], count_b[~often])
    step = max(1, CHUNK_BYTES // (2 * m * outputs * a.g.itemsize))
    flat = total.view(-1, outputs, outputs)
    for start in range(0, len(left), step):
        i, j = left[start : start + step], right[start : start + step]
        values = torch.einsum("pcm,pdm->pcd", a.g[i], b.g[j]).double()
        flat.index_add_(0, a.row[i] * b.rows + b.row[j], values)
    return total.transpose(1, 2).reshape(a.rows * outputs, b.rows * outputs)


def _join(ids_a: torch.Tensor, ids_b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """For each id in both sorted lists, in order: first place and count in each."""
    unique_a, count_a = torch.unique_consecutive(ids_a, return_counts=True)
    unique_b, count_b = torch.unique_consecutive(ids_b, return_counts=True)
    first_a, first_b = count_a.cumsum(0) - count_a, count_b.cumsum(0) - count_b
    in_b = torch.isin(unique_a, unique_b)
    in_a = torch.isin(unique_b, unique_a)
    return first_a[in_b], count_a[in_b], first_b[in_a], count_b[in_a]


def _rare_pairs(
    first_a: torch.Tensor, count_a: torch.Tensor, first_b: torch.Tensor, count_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of every pair of entries with the same id."""
    pairs = count_a * count_b
    group = torch.repeat_interleave(torch.arange(len(pairs)), pairs)
    within = torch.arange(int(pairs.sum())) - torch.repeat_interleave(pairs.cumsum(0) - pairs, pairs)
    return first_a[group] + within // count_b[group], first_b[group] + within % count_b[group]

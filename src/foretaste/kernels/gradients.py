"""Gradients of every example, kept in the compressed form in which back-propagation makes them.

One object holds the gradients of one parameter for a block of rows and for every output of the model. Nothing
here knows a model: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Outer:
    """Gradient of a matrix that a layer multiplies its input with: G = sum over tokens of d x^T.

    Attributes:
        x: Inputs of the layer, shape (rows, tokens, n); tokens past a row's end are zero.
        d: Derivatives of the outputs of the model with respect to the layer's output, shape (rows, outputs,
            tokens, m).
        transposed: Whether the parameter is stored as (n, m), as GPT-2's Conv1D does, not as (m, n).
    """

    x: torch.Tensor
    d: torch.Tensor
    transposed: bool = False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.x)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.d.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.x.nbytes + self.d.nbytes

    def chunks(self, columns: int) -> Iterator[torch.Tensor]:
        """The explicit gradient, some of its columns at a time: shape (rows * outputs, at most `columns`).

        A chunk is valid until the next one is asked for: all share one buffer, since fresh memory for each
        costs as much time as filling it.
        """
        rows, outputs, tokens, m = self.d.shape
        n = self.x.shape[2]
        # Slices of the longer side: a slice is then high enough for the product over tokens to run at speed.
        sliced, whole = (self.d, self.x.unsqueeze(1)) if m >= n else (self.x.unsqueeze(1), self.d)
        longer, shorter = max(m, n), min(m, n)
        step = min(longer, max(1, columns // shorter))
        buffer = self.x.new_empty(rows * outputs * step * shorter)
        right = whole.expand(rows, outputs, tokens, shorter).reshape(-1, tokens, shorter)
        for start in range(0, longer, step):
            some = sliced[..., start : start + step].transpose(2, 3)
            left = some.expand(rows, outputs, *some.shape[2:]).reshape(len(right), -1, tokens)
            chunk = buffer[: left.shape[0] * left.shape[1] * shorter].view(*left.shape[:2], shorter)
            torch.bmm(left, right, out=chunk)
            yield chunk.view(rows * outputs, -1)

    def dense(self) -> torch.Tensor:
        """The explicit gradient in the parameter's own shape: (rows, outputs, m, n), or transposed."""
        full = torch.einsum("rctm,rtn->rcmn", self.d, self.x)
        return full.transpose(2, 3) if self.transposed else full

    def noise(self) -> Outer:
        """For each entry a bound on the sum over tokens of |d| |x|, of rank one as if of a single token.

        By Cauchy and Schwarz: the product of the norms over tokens. A sum that is smaller than this times
        the machine's epsilon is rounding error and has no sign.
        """
        x, d = self.x.norm(dim=1, keepdim=True), self.d.norm(dim=2, keepdim=True)
        return Outer(x, d, self.transposed)

    def dot(self, change: torch.Tensor) -> torch.Tensor:
        """Inner product with a change of the parameter: shape (rows, outputs).

        Args:
            change: In the parameter's own shape.
        """
        matrix = change.T if self.transposed else change
        return torch.einsum("rctm,rtm->rc", self.d, self.x @ matrix.T)


@dataclass(frozen=True)
class Rows:
    """The explicit gradient, for parameters that are small or that no faster form fits.

    Attributes:
        g: Shape (rows, outputs, entries).
        stored: Shape of the parameter.
    """

    g: torch.Tensor
    stored: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.g)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.g.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.g.nbytes

    def chunks(self, columns: int) -> Iterator[torch.Tensor]:
        """The explicit gradient, some of its columns at a time: shape (rows * outputs, at most `columns`)."""
        flat = self.g.reshape(self.rows * self.outputs, -1)
        for start in range(0, flat.shape[1], columns):
            yield flat[:, start : start + columns]

    def dense(self) -> torch.Tensor:
        """The explicit gradient in the parameter's own shape: (rows, outputs, *stored)."""
        return self.g.reshape(self.rows, self.outputs, *self.stored)

    def noise(self) -> torch.Tensor:
        """What takes the place of `Outer.noise`, shape (rows * outputs, 1): the largest entry.

        The summands are not known.
        """
        return self.g.abs().amax(2).reshape(-1, 1)

    def dot(self, change: torch.Tensor) -> torch.Tensor:
        """Inner product with a change of the parameter: shape (rows, outputs)."""
        return self.g @ change.reshape(-1)


@dataclass(frozen=True)
class Sum:
    """Gradient of a bias: the sum of d over tokens.

    Attributes:
        d: Derivatives of the outputs of the model with respect to the layer's output, shape (rows, outputs,
            tokens, m).
    """

    d: torch.Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.d)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.d.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory held, though a layer's matrix holds the same d."""
        return self.d.nbytes

    def chunks(self, columns: int) -> Iterator[torch.Tensor]:
        """The explicit gradient, some of its columns at a time: shape (rows * outputs, at most `columns`)."""
        for start in range(0, self.d.shape[3], columns):
            yield self.d[..., start : start + columns].sum(2).flatten(0, 1)

    def dense(self) -> torch.Tensor:
        """The explicit gradient in the parameter's own shape: (rows, outputs, *stored)."""
        return self.d.sum(2)

    def noise(self) -> torch.Tensor:
        """What takes the place of `Outer.noise`, shape (rows * outputs, 1): the largest entries, summed.

        Key biases, to which attention is blind, are rounding errors of the size of the largest.
        """
        return self.d.abs().amax(3).sum(2).reshape(-1, 1)

    def dot(self, change: torch.Tensor) -> torch.Tensor:
        """Inner product with a change of the parameter: shape (rows, outputs)."""
        return self.d.sum(2) @ change


@dataclass(frozen=True)
class Entries:
    """The rows of an embedding table that a block of rows touches, ordered by id.

    Attributes:
        id: Entry of the table, shape (E,).
        row: Row of the block, shape (E,); each pair of id and row occurs once.
        g: Gradients, shape (E, outputs, m).
        noise: Sum of the largest entries of each row's own terms, shape (E, outputs): words that are read
            and words whose logits are used differ by orders of magnitude.
        rows: Number of rows of the block.
    """

    id: torch.Tensor
    row: torch.Tensor
    g: torch.Tensor
    noise: torch.Tensor
    rows: int


@dataclass(frozen=True)
class Lookup:
    """Gradient of an embedding table: row v collects the d of every token with id v.

    Where logits of a few words are made with the same table, these words stand behind the tokens, each with
    what it gets as a row of the last layer's matrix.

    Attributes:
        ids: Token ids, shape (rows, tokens); -1 where the table gets no gradient (padding).
        d: Derivatives of the outputs of the model by the rows of the table, shape (rows, outputs, tokens, m).
        stored: Shape of the table, (entries, m).
    """

    ids: torch.Tensor
    d: torch.Tensor
    stored: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.d.shape[1]

    @property
    def nbytes(self) -> int:
        """Memory held, the entries that are derived from it included."""
        return self.ids.nbytes + 2 * self.d.nbytes

    @cached_property
    def entries(self) -> Entries:
        """Each id of each row once."""
        row, token = torch.nonzero(self.ids >= 0, as_tuple=True)
        key = self.ids[row, token] * self.rows + row
        unique, place = torch.unique(key, return_inverse=True)
        g = self.d.new_zeros(len(unique), self.outputs, self.d.shape[3])
        terms = self.d[row, :, token]
        g.index_add_(0, place, terms)
        noise = g.new_zeros(g.shape[:2]).index_add_(0, place, terms.abs().amax(2))
        return Entries(unique // self.rows, unique % self.rows, g, noise, self.rows)

    def dense(self) -> torch.Tensor:
        """The explicit gradient in the parameter's own shape: (rows, outputs, *stored)."""
        entries = self.entries
        full = self.d.new_zeros(self.rows, self.outputs, *self.stored)
        full[entries.row, :, entries.id] = entries.g
        return full

    def dot(self, change: torch.Tensor) -> torch.Tensor:
        """Inner product with a change of the parameter: shape (rows, outputs)."""
        entries = self.entries
        products = torch.einsum("ecm,em->ec", entries.g, change[entries.id])
        return torch.zeros_like(self.d[:, :, 0, 0]).index_add_(0, entries.row, products)


Gradient = Outer | Sum | Rows | Lookup


def concatenate(blocks: list[Gradient], joined: dict[tuple[int, ...], torch.Tensor]) -> Gradient:
    """Several blocks of rows as one; rows with fewer tokens are filled up with zeros.

    Args:
        blocks: Gradients of one parameter, all in one form.
        joined: What was joined before, by the addresses of its pieces: queries, keys and values share their
            inputs, and a bias its matrix's derivatives. The pieces of all parameters must have been there
            together once, so that no address is used twice.
    """
    first = blocks[0]
    if len(blocks) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(torch.cat([b.g for b in blocks if isinstance(b, Rows)]), first.stored)
    d = _joined([b.d for b in blocks if not isinstance(b, Rows)], 2, joined)
    if isinstance(first, Sum):
        return Sum(d)
    if isinstance(first, Lookup):
        return Lookup(_padded([b.ids for b in blocks if isinstance(b, Lookup)], 1, fill=-1), d, first.stored)
    return Outer(_joined([b.x for b in blocks if isinstance(b, Outer)], 1, joined), d, first.transposed)


def _joined(
    parts: list[torch.Tensor], axis: int, joined: dict[tuple[int, ...], torch.Tensor]
) -> torch.Tensor:
    key = (*(part.data_ptr() for part in parts), *parts[0].shape[1:])
    if key not in joined:
        joined[key] = _padded(parts, axis)
    return joined[key]


def _padded(parts: list[torch.Tensor], axis: int, fill: int = 0) -> torch.Tensor:
    """Blocks of rows behind each other, `axis` as long as the longest."""
    longest = max(part.shape[axis] for part in parts)
    shape = [sum(len(part) for part in parts), *parts[0].shape[1:]]
    shape[axis] = longest
    whole = parts[0].new_empty(shape)
    start = 0
    for part in parts:
        rows, length = whole[start : start + len(part)], part.shape[axis]
        rows.narrow(axis, 0, length).copy_(part)
        rows.narrow(axis, length, longest - length).fill_(fill)
        start += len(part)
    return whole

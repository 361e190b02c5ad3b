"""How kernels, outputs and labels of a classification task are laid out, and what is refused.

One convention for every solver; N training and M other examples, C outputs:

=====================  ================================  ================================
                       scalar output (binary margin)     C >= 2 outputs (logits)
=====================  ================================  ================================
training kernel        (N, N)                            (N, C, N, C)
cross kernel           (M, N), rows = other examples     (M, C, N, C)
outputs, targets       (..., N)                          (..., N, C)
labels                 (..., N) of -1 and +1             (..., N) of 0 .. C - 1
matrix of the solver   N x N                             NC x NC, row i C + c
=====================  ================================  ================================

Entry [i, c, j, d] is output c of example i against output d of example j, so flattening is a plain reshape
and every logit counts as one example more (Malladi et al. 2023, App. A.3, "Solving Multi-Class Tasks").
Leading axes "..." are independent problems on one kernel, such as several draws of poisoned labels. An
asymmetric kernel has phi_s (the test side, the gradient) in its rows and phi_t in its columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Training examples and outputs of a kernel.

    Attributes:
        examples: N.
        classes: C, or None for a scalar output.
    """

    examples: int
    classes: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one vector of outputs, (N,) or (N, C)."""
        return (self.examples,) if self.classes is None else (self.examples, self.classes)

    @property
    def size(self) -> int:
        """Rows of the solver's matrix, N or NC."""
        return self.examples * (self.classes or 1)

    def of(self, examples: int) -> Layout:
        """The same outputs for other examples."""
        return Layout(examples, self.classes)


def real(values: npt.ArrayLike, name: str) -> Floats:
    """The values as float64.

    Raises:
        UserError: They are not real numbers, or one is NaN or infinite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"expected real numbers, got {array.dtype}", where=name)
    array = array.astype(np.float64)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise UserError(f"{bad} of {array.size} values are NaN or infinite", where=name)
    return array


def at_least(value: float, least: float, name: str, *, strict: bool = False) -> float:
    """The number itself, when it is finite and not below `least` (above it, for `strict`).

    Raises:
        UserError: It is not.
    """
    if not np.isfinite(value) or value < least or (strict and value == least):
        sign = ">" if strict else ">="
        raise UserError(f"expected a finite number {sign} {least:g}, got {value!r}", where=name)
    return float(value)


def training_matrix(kernel: npt.ArrayLike, name: str = "kernel") -> tuple[Floats, Layout]:
    """The square matrix of a training kernel.

    Args:
        kernel: Shape (N, N) or (N, C, N, C), C >= 2.
        name: What errors call it.

    Returns:
        Shape (N, N) or (NC, NC), and the layout.

    Raises:
        UserError: The shape is another, an entry is not finite, or every entry is zero.
    """
    array = real(kernel, name)
    half = array.shape[: array.ndim // 2]
    if array.ndim not in (2, 4) or half != array.shape[array.ndim // 2 :] or 0 in array.shape:
        raise UserError(f"expected shape (N, N) or (N, C, N, C), got {array.shape}", where=name)
    if array.ndim == 4 and half[1] == 1:
        raise UserError("C = 1 output", where=name, cure="Pass shape (N, N) and labels -1 and +1.")
    if not array.any():
        raise UserError("every entry is zero, so nothing can be learnt from it", where=name)
    layout = Layout(half[0], half[1] if array.ndim == 4 else None)
    return array.reshape(layout.size, layout.size), layout


def cross_matrix(cross: npt.ArrayLike, layout: Layout, name: str = "cross kernel") -> tuple[Floats, Layout]:
    """The matrix of a kernel between other examples (rows) and the training examples (columns).

    Args:
        cross: Shape (M, N) or (M, C, N, C).
        layout: Of the training kernel.
        name: What errors call it.

    Returns:
        Shape (M, N) or (MC, NC), and the layout of its rows.

    Raises:
        UserError: The shape does not fit, or an entry is not finite.
    """
    array = real(cross, name)
    rows = layout.of(array.shape[0] if array.ndim else 0)
    if array.shape != rows.shape + layout.shape:
        wanted = f"(M, {layout.examples})"
        if layout.classes is not None:
            wanted = f"(M, {layout.classes}, {layout.examples}, {layout.classes})"
        raise UserError(
            f"expected shape {wanted}, got {array.shape}",
            where=name,
            cure="Rows are the other examples, columns the training examples.",
        )
    return array.reshape(rows.size, layout.size), rows


def outputs(values: npt.ArrayLike, layout: Layout, name: str) -> Floats:
    """Outputs of the layout's examples, such as the pre-trained model's, checked.

    Args:
        values: Shape (..., N) or (..., N, C).
        layout: Of these examples.
        name: What errors call them.

    Raises:
        UserError: The shape does not fit, or a value is not finite.
    """
    array = real(values, name)
    if array.shape[-len(layout.shape) :] != layout.shape:
        wanted = ", ".join(["...", *map(str, layout.shape)])
        raise UserError(f"expected shape ({wanted}), got {array.shape}", where=name)
    return array


def classes_of(labels: npt.ArrayLike, layout: Layout, name: str = "labels") -> Ints:
    """Labels as integers, checked.

    Args:
        labels: Shape (..., N): -1 and +1 for a scalar output, 0 .. C - 1 for C outputs.
        layout: Of these examples.
        name: What errors call them.

    Raises:
        UserError: The number of labels does not fit, or one is not a class.
    """
    array = real(labels, name)
    if array.ndim == 0 or array.shape[-1] != layout.examples:
        raise UserError(f"expected {layout.examples} labels, got shape {array.shape}", where=name)
    allowed = [-1, 1] if layout.classes is None else list(range(layout.classes))
    wrong = np.unique(array[~np.isin(array, allowed)])
    if wrong.size:
        wanted = "-1 and +1" if layout.classes is None else f"0 .. {layout.classes - 1}"
        raise UserError(f"expected labels {wanted}, got {wrong[:5].tolist()}", where=name)
    return array.astype(np.int64)


def one_hot(labels: npt.ArrayLike, layout: Layout) -> Floats:
    """Targets of l2 regression: rows e_y of 0 and 1, or the label itself (-1, +1) for a scalar output.

    Malladi et al. 2023, App. A.3: the l2 distance to the one-hot vector.

    Returns:
        Shape (..., N, C) or (..., N).

    Raises:
        UserError: See `classes_of`.
    """
    y = classes_of(labels, layout)
    return y.astype(np.float64) if layout.classes is None else np.eye(layout.classes)[y]


def signs(labels: npt.ArrayLike, layout: Layout) -> Floats:
    """Targets of C one-against-rest problems: +1 at the label, -1 at every other class.

    Malladi et al. 2023, App. A.3: "treat the multi-class problem as many binary classification problems".

    Returns:
        Shape (..., N, C), or the labels (..., N) of a scalar output.

    Raises:
        UserError: See `classes_of`.
    """
    targets = one_hot(labels, layout)
    return targets if layout.classes is None else 2.0 * targets - 1.0


def decide(scores: Floats, layout: Layout) -> Ints:
    """Classes from scores: the sign (-1, +1) of a scalar output, else the first largest output.

    A scalar score of exactly 0 counts as -1, as the margin of two equal logits does under argmax.

    Args:
        scores: Shape (..., N) or (..., N, C).
        layout: Of these examples.
    """
    if layout.classes is None:
        return np.where(scores > 0, 1, -1).astype(np.int64)
    largest: Ints = np.argmax(scores, axis=-1).astype(np.int64)
    return largest


def margin_kernel(kernel: npt.ArrayLike) -> Floats:
    """Kernel of the margin f_1 - f_0 of a model with two logits: K_11 + K_00 - K_10 - K_01.

    Args:
        kernel: Shape (M, 2, N, 2), training or cross.

    Returns:
        Shape (M, N), for labels -1 (class 0) and +1 (class 1).

    Raises:
        UserError: The shape is another, or an entry is not finite.
    """
    k = real(kernel, "kernel")
    if k.ndim != 4 or k.shape[1] != 2 or k.shape[3] != 2:
        raise UserError(f"expected shape (M, 2, N, 2), got {k.shape}", where="kernel")
    margin: Floats = k[:, 1, :, 1] + k[:, 0, :, 0] - k[:, 1, :, 0] - k[:, 0, :, 1]
    return margin


def traced_kernel(kernel: npt.ArrayLike) -> Floats:
    """Kernel summed over equal outputs, sum_c K[i, c, j, c]; a scalar output's kernel is returned as it is.

    Args:
        kernel: Shape (M, N) or (M, C, N, C), training or cross.

    Returns:
        Shape (M, N).

    Raises:
        UserError: The shape is another, or an entry is not finite.
    """
    k = real(kernel, "kernel")
    if k.ndim == 2:
        return k
    if k.ndim != 4 or k.shape[1] != k.shape[3]:
        raise UserError(f"expected shape (M, N) or (M, C, N, C), got {k.shape}", where="kernel")
    summed: Floats = np.einsum("icjc->ij", k)
    return summed

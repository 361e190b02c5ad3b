"""What indicators are made from: kernels, logits, labels, pairs of rows, adapters, each if it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError, unknown
from foretaste.theory import fisher
from foretaste.theory.layout import Floats, Layout, at_least, classes_of, outputs, training_matrix
from foretaste.theory.loewner import adapter_eigenvalues
from foretaste.theory.similarity import Pull, pair_blocks, pull
from foretaste.theory.spectra import bulk

Fisher = Literal["empirical", "true", "ntk"]
FISHERS: dict[Fisher, tuple[str, ...]] = {
    "empirical": ("kernel", "logits", "labels"),
    "true": ("kernel", "logits"),
    "ntk": ("kernel",),
}
"""What each Fisher matrix of `theory.fisher` is made from."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """LoRA's A on one layer, as it is.

    Attributes:
        A: Shape (r, n), r <= n.
        scaling: s, above 0: alpha / r in peft.
    """

    A: npt.ArrayLike
    scaling: float

    @cached_property
    def eigenvalues(self) -> Floats:
        """Of s^2 A^T A, ascending, shape (r,); the other n - r are 0."""
        return adapter_eigenvalues(self.A, scaling=self.scaling)


@dataclass(frozen=True)
class Law:
    """LoRA's A on one layer before it is drawn: independent entries of mean 0 and variance k / n.

    Attributes:
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries; 1/3 in peft.
        scaling: s, above 0.
    """

    n: int
    r: int
    k: float
    scaling: float


@dataclass(frozen=True)
class LoraTraces:
    """Traces of the two parts of a LoRA kernel at one moment of training (`kernels.lora_traces`).

    Attributes:
        a: tr K_A, the part that training A adds; 0 at B = 0.
        b: tr K_B.
    """

    a: float
    b: float


@dataclass(frozen=True, eq=False)
class Twin:
    """Rows that poisoning replaces, each beside what replaces it: pair i is (x_i, y_i) and (x~_i, y~_i).

    Attributes:
        kernel: Of the P clean rows followed by the P poisoned ones, shape (2P, 2P) or (2P, C, 2P, C). For a
            label flip, x~ = x, the same rows twice.
        logits: f_0 of the same rows, shape (2P,) or (2P, C).
        labels: Labels of the same rows, shape (2P,): the poisoned ones as the attack gives them.
        examples: N, rows of the whole training set, over which the loss is a mean; at least P.
    """

    kernel: npt.ArrayLike
    logits: npt.ArrayLike
    labels: npt.ArrayLike
    examples: int

    def __post_init__(self) -> None:
        layout = _layout(self.kernel, "twin.kernel")
        if layout.examples % 2:
            raise UserError(
                f"expected clean rows and as many poisoned ones, got {layout.examples} rows",
                where="twin.kernel",
                cure="Row P + i is the poisoned form of row i.",
            )
        _rows(self.logits, layout, "twin.logits")
        _classes(self.labels, layout, "twin.labels")
        if self.examples < self.pairs:
            raise UserError(f"expected at least {self.pairs}, got {self.examples}", where="twin.examples")

    @property
    def pairs(self) -> int:
        """P."""
        return len(np.asarray(self.kernel)) // 2

    @cached_property
    def blocks(self) -> tuple[Floats, Floats, Floats]:
        """K(x, x~), K(x, x) and K(x~, x~) of every pair, shape (P,) or (P, C, C) each."""
        k, p = np.asarray(self.kernel), self.pairs
        clean, poisoned = slice(None, p), slice(p, None)
        own = np.einsum("icid->icd", k) if k.ndim == 4 else np.diagonal(k)
        cross = k[clean, :, poisoned] if k.ndim == 4 else k[clean, poisoned]
        # Rows that are orthogonal to their poisoned forms are a finding; `pair_blocks` refuses a zero kernel.
        pairs = pair_blocks(cross) if np.any(cross) else np.zeros_like(own[clean], dtype=np.float64)
        return pairs, np.array(own[clean], dtype=np.float64), np.array(own[poisoned], dtype=np.float64)

    @cached_property
    def gradients(self) -> tuple[Floats, Floats]:
        """Derivatives of the cross-entropy with respect to the outputs: of clean and of poisoned rows."""
        g = fisher.cross_entropy_gradient(self.logits, self.labels)
        return g[: self.pairs], g[self.pairs :]

    @cached_property
    def pull(self) -> Pull:
        """Inner products of the loss gradients of the pairs (Eq. 16 and 17 of the TTR paper)."""
        return pull(*self.blocks, *self.gradients)


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that is known of one arm; None for what is not. The order of rows, pairs and layers is free.

    Labels are -1 and +1 beside the kernel of a margin, (N, N), and 0 .. C - 1 beside that of C logits.

    Attributes:
        kernel: Of the arm, shape (N, N) or (N, C, N, C).
        reference: Of full fine-tuning on the same rows, the same shape.
        kernel_without_head: Of the arm, without the head's parameters; may be all zero.
        reference_without_head: Of full fine-tuning, without the head's parameters; may be all zero.
        logits: f_0, outputs before training, shape (N,) or (N, C).
        labels: As given, poisoned ones included, shape (N,).
        twin: Clean rows and their poisoned forms.
        layers: The adapted layers, by name: A itself or its law.
        traces: Of the two parts of the arm's LoRA kernel.
        fisher: Which matrix information bits and entropies are of: the empirical Fisher (the TTR paper's
            Theorem 2.2), the true one, or K / N.
    """

    kernel: npt.ArrayLike | None = None
    reference: npt.ArrayLike | None = None
    kernel_without_head: npt.ArrayLike | None = None
    reference_without_head: npt.ArrayLike | None = None
    logits: npt.ArrayLike | None = None
    labels: npt.ArrayLike | None = None
    twin: Twin | None = None
    layers: Mapping[str, Drawn | Law] = field(default_factory=dict)
    traces: LoraTraces | None = None
    fisher: Fisher = "empirical"

    def __post_init__(self) -> None:
        if self.fisher not in FISHERS:
            raise unknown("Fisher matrix", self.fisher, FISHERS, where="fisher")
        shapes = {name: np.shape(getattr(self, name)) for name in KERNELS if getattr(self, name) is not None}
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise UserError(f"expected kernels of one shape, got {listed}", where="evidence")
        for name, shape in shapes.items():
            layout = _layout_of(shape, name)
            if self.logits is not None:
                _rows(self.logits, layout, "logits")
            if self.labels is not None:
                _classes(self.labels, layout, "labels")
        for name, layer in self.layers.items():
            try:
                _ = layer.eigenvalues if isinstance(layer, Drawn) else bulk(**vars(layer))
            except UserError as error:
                raise error.located(f"layers.{name}") from None
        if self.traces is not None:
            at_least(self.traces.a, 0.0, "traces.a")
            at_least(self.traces.b, 0.0, "traces.b")

    def has(self, name: str) -> bool:
        """Whether something is there."""
        value = getattr(self, name)
        return bool(value) if name == "layers" else value is not None

    @cached_property
    def spectrum(self) -> Floats:
        """Eigenvalues of the chosen Fisher matrix above its tolerance; one 0 where there are none."""
        assert self.kernel is not None
        if self.fisher == "ntk":
            found = fisher.ntk_fisher(self.kernel)
        else:
            assert self.logits is not None
            if self.fisher == "true":
                found = fisher.true_fisher(self.kernel, self.logits)
            else:
                assert self.labels is not None
                found = fisher.empirical_fisher(self.kernel, self.logits, self.labels)
        return found.values if found.rank else np.zeros(1)


KERNELS = ("kernel", "reference", "kernel_without_head", "reference_without_head")


def _layout_of(shape: tuple[int, ...], name: str) -> Layout:
    half = shape[: len(shape) // 2]
    if len(shape) not in (2, 4) or half != shape[len(shape) // 2 :] or 0 in shape or shape[1::2] == (1, 1):
        raise UserError(f"expected shape (N, N) or (N, C, N, C), C >= 2, got {shape}", where=name)
    return Layout(half[0], half[1] if len(half) == 2 else None)


def _layout(kernel: npt.ArrayLike, name: str) -> Layout:
    return training_matrix(kernel, name)[1]


def _rows(values: npt.ArrayLike, layout: Layout, name: str) -> None:
    if outputs(values, layout, name).shape != layout.shape:
        raise UserError(f"expected shape {layout.shape}, got {np.shape(values)}", where=name)


def _classes(labels: npt.ArrayLike, layout: Layout, name: str) -> None:
    if classes_of(labels, layout, name).ndim != 1:
        raise UserError(f"expected {layout.examples} labels, got shape {np.shape(labels)}", where=name)

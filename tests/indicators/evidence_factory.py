"""Evidence from explicit Jacobians and adapters, so that every indicator has another way to its value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from foretaste.indicators import Drawn, Evidence, Law, LoraTraces, Twin

N, C, PARAMETERS, PAIRS, EXAMPLES = 6, 3, 40, 4, 50


def gram(J: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    return np.tensordot(J, J if other is None else other, axes=(-1, -1))


@dataclass
class World:
    """Explicit Jacobians: of full fine-tuning (head and the rest), of an arm, and of the arm's pairs."""

    classes: int | None
    full: np.ndarray
    arm: np.ndarray
    head: np.ndarray
    twin: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    twin_logits: np.ndarray
    twin_labels: np.ndarray
    A: dict[str, np.ndarray]

    SCALINGS: ClassVar[dict[str, float]] = {"q": 2.0, "v": 0.5}

    def evidence(self, **changes: Any) -> Evidence:
        both = [np.concatenate([J, self.head], axis=-1) for J in (self.arm, self.full)]
        values = {
            "kernel": gram(both[0]),
            "reference": gram(both[1]),
            "kernel_without_head": gram(self.arm),
            "reference_without_head": gram(self.full),
            "logits": self.logits,
            "labels": self.labels,
            "twin": self.pairs(),
            "layers": {name: Drawn(A, self.SCALINGS[name]) for name, A in self.A.items()},
            "traces": LoraTraces(0.3, 1.7),
        }
        return Evidence(**(values | changes))

    def pairs(self) -> Twin:
        return Twin(gram(self.twin), self.twin_logits, self.twin_labels, EXAMPLES)


def world(classes: int | None = C, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    middle = () if classes is None else (classes,)
    full = rng.normal(size=(N, *middle, PARAMETERS))
    labels = np.arange(N) % (classes or 2)
    twin_labels = np.arange(2 * PAIRS) % (classes or 2)
    return World(
        classes=classes,
        full=full,
        # Of lower rank than full fine-tuning, and not ordered below it.
        arm=full @ rng.normal(size=(PARAMETERS, 5)) / 4,
        head=0.3 * rng.normal(size=(N, *middle, 7)),
        twin=rng.normal(size=(2 * PAIRS, *middle, 9)),
        logits=rng.normal(size=(N, *middle)),
        labels=labels if classes else 2 * labels - 1,
        twin_logits=rng.normal(size=(2 * PAIRS, *middle)),
        twin_labels=twin_labels if classes else 2 * twin_labels - 1,
        A={"q": rng.normal(size=(3, 12)) / 12, "v": rng.uniform(-1, 1, size=(2, 8))},
    )


def scaled(evidence: Evidence, t: float) -> Evidence:
    """Everything that belongs to the arm t times as large; the reference as it is."""
    assert evidence.twin is not None
    assert evidence.traces is not None
    layers: dict[str, Drawn | Law] = {
        name: replace(layer, scaling=t**0.5 * layer.scaling) for name, layer in evidence.layers.items()
    }
    return replace(
        evidence,
        kernel=t * np.asarray(evidence.kernel),
        kernel_without_head=t * np.asarray(evidence.kernel_without_head),
        twin=replace(evidence.twin, kernel=t * np.asarray(evidence.twin.kernel)),
        layers=layers,
        traces=LoraTraces(t * evidence.traces.a, t * evidence.traces.b),
    )


def orthogonal(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def rotated(evidence: Evidence) -> Evidence:
    """Outputs of all rows rotated by one matrix, the inputs of each layer by another; no logits."""
    assert evidence.twin is not None

    def turn(kernel: Any) -> np.ndarray:
        Q = orthogonal(np.shape(kernel)[1], 5)
        return np.einsum("ec,icjd,fd->iejf", Q, kernel, Q)

    layers = {}
    for name, layer in evidence.layers.items():
        assert isinstance(layer, Drawn)
        A = np.asarray(layer.A)
        layers[name] = replace(layer, A=orthogonal(A.shape[0], 6) @ A @ orthogonal(A.shape[1], 7))
    return replace(
        evidence,
        **{
            name: turn(getattr(evidence, name))
            for name in ("kernel", "reference", "kernel_without_head", "reference_without_head")
        },
        twin=replace(evidence.twin, kernel=turn(evidence.twin.kernel)),
        layers=layers,
    )


def permuted(evidence: Evidence) -> Evidence:
    """Rows, pairs and layers in another order."""
    twin = evidence.twin
    assert twin is not None
    rows = np.random.default_rng(8).permutation(N)
    order = np.random.default_rng(9).permutation(PAIRS)
    pairs = np.concatenate([order, order + PAIRS])

    def take(kernel: Any, at: np.ndarray) -> np.ndarray:
        k = np.asarray(kernel)
        return np.take(np.take(k, at, axis=0), at, axis=k.ndim // 2)

    return replace(
        evidence,
        **{
            name: take(getattr(evidence, name), rows)
            for name in ("kernel", "reference", "kernel_without_head", "reference_without_head")
        },
        logits=np.asarray(evidence.logits)[rows],
        labels=np.asarray(evidence.labels)[rows],
        twin=Twin(
            take(twin.kernel, pairs), np.asarray(twin.logits)[pairs], np.asarray(twin.labels)[pairs], EXAMPLES
        ),
        layers=dict(reversed(evidence.layers.items())),
    )

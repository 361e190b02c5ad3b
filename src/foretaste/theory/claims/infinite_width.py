"""Claims about the NTK at infinite width: the TTR paper's Theorem 2.1, Eq. 11-15 and Lemma 3.1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from foretaste.theory.activations import ERF, RELU
from foretaste.theory.claims.probes import (
    EXACT,
    SHRINKS,
    draw_adapter,
    gram,
    layer_gradients,
    layer_inputs,
    lora_gradients,
    relative,
    tanh_network,
    wide_kernel,
)
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.infinite_width import full_kernel, ntk_as_printed, ntk_layers, propagate
from foretaste.theory.layout import Floats
from foretaste.theory.lora_width import PEFT_K, Adapter, lora_mean, lora_moments, lora_ntk_as_printed

RankRule = Callable[[int], int]
FIXED: Mapping[str, RankRule] = {"r = 8": lambda _n: 8}
GROWING: Mapping[str, RankRule] = {"r = n/8": lambda n: n // 8}


def limiting_kernel_is_deterministic(
    rng: np.random.Generator,
    *,
    full: bool = True,
    fixed: Mapping[str, RankRule] = FIXED,
    growing: Mapping[str, RankRule] = GROWING,
    widths: tuple[int, int] = (128, 512),
    networks: int = 40,
) -> Verdict:
    """TTR Theorem 2.1, first property. Widths must be a factor of 4 apart (`SHRINKS`)."""
    trials, numbers = [], {}
    if full:
        x = rng.normal(size=(5, 8))
        limit = full_kernel(
            ntk_layers(propagate(x, activation=ERF, depth=3, weight_variance=1.0)), biases_trained=False
        )
        errors = [
            float(np.mean([relative(wide_kernel(rng, x, n, 3, ERF), limit) for _ in range(networks)]))
            for n in widths
        ]
        numbers["full, error at the smaller width"], numbers["full, error at the larger width"] = errors
        trials.append(
            Trial(
                f"full fine-tuning: distance from the limit {errors[0]:.3f} at width {widths[0]}, "
                f"{errors[1]:.3f} at {widths[1]}",
                errors[1] < SHRINKS * errors[0],
                condition=True,
            )
        )
    for rules, condition in ((growing, True), (fixed, False)):
        for text, rule in rules.items():
            spreads = [_relative_sd(rng, n, rule(n)) for n in widths]
            numbers[f"LoRA {text}, relative sd at width {widths[1]}"] = spreads[1]
            trials.append(
                Trial(
                    f"LoRA with {text}: relative sd over A of a diagonal entry {spreads[0]:.3f} at width "
                    f"{widths[0]}, {spreads[1]:.3f} at {widths[1]}",
                    spreads[1] < SHRINKS * spreads[0],
                    condition,
                )
            )
    return conclude(
        Statement(
            name="Theorem 2.1 (deterministic)",
            paper="TTR",
            claim="As the width goes to infinity the NTK, of LoRA too, becomes a deterministic kernel.",
            conditions="full fine-tuning, or a rank that grows with the width; at fixed rank the limit is "
            "random, with relative sd sqrt(2/r) a layer",
            why_it_matters="Seeds of one rank-8 adapter have kernels that differ by 50 % a layer: average "
            "over seeds, or over many adapted layers, before you compare ranks.",
        ),
        trials,
        numbers,
    )


def _relative_sd(rng: np.random.Generator, n: int, r: int) -> float:
    gradient = rng.normal(size=(1, 1, n))
    moments = lora_moments(gradient, Adapter(r, k=PEFT_K, scaling=1.0, kurtosis=0.0))
    return math.sqrt(float(moments.variance[0, 0])) / float(moments.mean[0, 0])


def kernel_is_constant(
    rng: np.random.Generator,
    *,
    fixed: Mapping[str, RankRule] = FIXED,
    growing: Mapping[str, RankRule] = GROWING,
    frozen: bool = True,
    widths: tuple[int, int] = (128, 2048),
    move: float = 1.0,
) -> Verdict:
    """TTR Theorem 2.1, second property, and Appendix C on freezing A."""
    trials, numbers = [], {}
    if frozen:
        still = lora_kernel_change(rng, widths[1], 8, move=move, train_a=False)
        numbers["A frozen, relative change"] = still
        trials.append(Trial(f"A frozen: relative change {still:.1e}", still < EXACT, condition=True))
    for rules, condition in ((growing, True), (fixed, False)):
        for text, rule in rules.items():
            changes = [lora_kernel_change(rng, n, rule(n), move=move, train_a=True) for n in widths]
            for n, change in zip(widths, changes, strict=True):
                numbers[f"{text}, relative change at width {n}"] = change
            trials.append(
                Trial(
                    f"A and B trained, {text}: after an output moved by {move:g} the kernel has changed by "
                    f"{changes[0]:.2g} of itself at width {widths[0]}, by {changes[1]:.2g} at {widths[1]}",
                    changes[1] < SHRINKS * changes[0],
                    condition,
                )
            )
    return conclude(
        Statement(
            name="Theorem 2.1 (constant)",
            paper="TTR",
            claim="The NTK stays constant during training; App. C uses it for LoRA with A trained.",
            conditions="A is frozen, or the rank grows with the width (r^2 >> n), or each layer moves the "
            "output little; tr K_A / tr K_B ~ Df^2 n / (s^2 r^2 k^2) at fixed rank grows with the width",
            why_it_matters="A kernel taken before training predicts a low-rank run only while "
            "tr K_A / tr K_B stays small: watch that number, or freeze A.",
        ),
        trials,
        numbers,
    )


def lora_kernel_change(
    rng: np.random.Generator, n: int, r: int, *, move: float, train_a: bool, steps: int = 150
) -> float:
    """Relative change of the kernel of h = B A x, k = 1/3, once gradient descent moved one output by `move`.

    The output is v^T h with |v| = 1, so B = v b^T all along, and K = A X (A X)^T + |b|^2 X X^T.
    """
    X = rng.normal(size=(4, n))
    A, b, x = draw_adapter(rng, r, n, PEFT_K), np.zeros(r), X[0]
    before = gram(X @ A.T)
    for _ in range(steps):
        projected = A @ x
        # A step of 5 % of the way that is left, in the kernel as it is now.
        size = float(projected @ projected) + (float(b @ b) * float(x @ x) if train_a else 0.0)
        rate = 0.05 * (move - float(b @ projected)) / size
        b, A = b + rate * projected, A + rate * np.outer(b, x) if train_a else A
    after = gram(X @ A.T) + (float(b @ b) * gram(X) if train_a else 0.0)
    return relative(after, before)


def recursion_as_printed(rng: np.random.Generator, *, widths: Sequence[int] = (2, 128, 512, 2048)) -> Verdict:
    """TTR Eq. 11-13, against the recursion that finite networks confirm."""
    x = rng.normal(size=(4, 1))
    limit = full_kernel(
        ntk_layers(propagate(x, activation=RELU, depth=3, weight_variance=1.0)), biases_trained=False
    )
    trials, numbers = [], {}
    for n in widths:
        ratio = float(np.mean(ntk_as_printed(x, activation=RELU, widths=[1, n, n]) / limit))
        numbers[f"printed / true, width {n}"] = ratio
        text = f"hidden width {n}: the printed kernel is {ratio:.3g} times the NTK"
        trials.append(Trial(text, abs(ratio - 1.0) < EXACT))
    inputs = rng.normal(size=(4, 8))
    target = full_kernel(
        ntk_layers(propagate(inputs, activation=RELU, depth=3, weight_variance=1.0)), biases_trained=False
    )
    mean = np.mean([wide_kernel(rng, inputs, 512, 3, RELU) for _ in range(8)], axis=0)
    numbers["mended recursion, distance of 8 networks of width 512"] = relative(mean, target)
    return conclude(
        Statement(
            name="Equations 11-13",
            paper="TTR",
            claim="The NTK of full fine-tuning is K^l = K^{l-1} Sdot^l + Sigma^l, Sigma^l = E[phi phi] = a "
            "sum over the n neurons.",
            conditions="only at hidden width 1, where a mean and a sum are the same; the mended recursion "
            "(weights of variance 1/n, means over neurons) is right",
            why_it_matters="Kernels from the printed formula are off by orders of magnitude, and so "
            "is every learning rate derived from them.",
        ),
        trials,
        numbers,
    )


def lora_recursion(
    rng: np.random.Generator, *, scalings: Sequence[float] = (1.0, 2.0), width: int = 512
) -> Verdict:
    """TTR Lemma 3.1 (Eq. 14): the layer's term against an explicit Jacobian, the recursion against T5."""
    x = rng.normal(size=(4, 5))
    weights = tanh_network(rng, [5, 6, 6, 1])
    A = draw_adapter(rng, 3, 6, PEFT_K)
    a = layer_inputs(x, weights, 2)
    printed = gram(a @ A.T)
    trials, numbers = [], {}
    for s in scalings:
        exact = gram(lora_gradients(x, weights, 2, A, s))
        factor = float(np.trace(exact) / np.trace(printed))
        numbers[f"last layer's kernel / Sigma_LoRA, s = {s:g}"] = factor
        trials.append(
            Trial(
                f"output layer, s = {s:g}: the kernel is {factor:.6g} times Sigma_LoRA",
                relative(printed, exact) < EXACT,
                condition=s == 1.0,
            )
        )
    pieces = propagate(x, activation=ERF, depth=3, weight_variance=1.0)
    adapters = {layer: Adapter(8, k=PEFT_K, scaling=1.0, kurtosis=-1.2) for layer in (2, 3)}
    mended = lora_mean(pieces, adapters, [ntk_layers(pieces).weights[0]])
    whole = lora_ntk_as_printed(x, activation=ERF, widths=[5, width, width], rank=8, k=PEFT_K)
    ratio = float(np.trace(whole) / np.trace(mended))
    numbers[f"printed / true, all layers, width {width}"] = ratio
    trials.append(
        Trial(f"three layers of width {width}: printed / true = {ratio:.3g}", abs(ratio - 1.0) < EXACT)
    )
    return conclude(
        Statement(
            name="Lemma 3.1 (Equation 14)",
            paper="TTR",
            claim="K_LoRA^l = K_LoRA^{l-1} Sdot^l + phi^T A^T A phi.",
            conditions="B = 0, s = 1, and one layer at a time: its term is exact at any width; with s it is "
            "s^2 as large, and the recursion over layers carries the neuron sums of Eq. 11-13",
            why_it_matters="The scaling s enters squared: alpha = 16 at r = 8 makes the kernel 4 times what "
            "the lemma says. Its mean is c = s^2 r k / n of full fine-tuning's.",
        ),
        trials,
        numbers,
    )


def ntk_difference(
    rng: np.random.Generator, *, cases: Sequence[tuple[int, float]] = ((2, 1.0), (1, 1.0), (2, 2.0))
) -> Verdict:
    """TTR Theorem 3.3 (Eq. 15), layer by layer on a network of width 6, by explicit Jacobians.

    Args:
        rng: Source of the draws.
        cases: (layer, s); layer 2 is the output layer.
    """
    x = rng.normal(size=(4, 5))
    weights = tanh_network(rng, [5, 6, 6, 1])
    trials, numbers = [], {}
    for layer, s in cases:
        A = draw_adapter(rng, 3, weights[layer].shape[1], PEFT_K)
        gradients = layer_gradients(x, weights, layer)
        difference = gram(lora_gradients(x, weights, layer, A, s)) - gram(gradients)
        a = layer_inputs(x, weights, layer)
        printed = a @ (A.T @ A - np.eye(a.shape[1])) @ a.T
        mended = _output_products(gradients, a) * (a @ (s**2 * A.T @ A - np.eye(a.shape[1])) @ a.T)
        where = "output layer" if layer == 2 else f"hidden layer {layer}"
        error = relative(printed, difference)
        numbers[f"{where}, s = {s:g}: error as printed"] = error
        numbers[f"{where}, s = {s:g}: error mended"] = relative(mended, difference)
        trials.append(
            Trial(
                f"width 6, {where}, s = {s:g}: Delta_r is off by {error:.2g} of the difference",
                error < EXACT,
                condition=layer == 2 and s == 1.0,
            )
        )
    return conclude(
        Statement(
            name="Theorem 3.3 (Equation 15)",
            paper="TTR",
            claim="K_LoRA - K_FF = phi^T (A^T A - I) phi at an adapted layer, at infinite width.",
            conditions="s = 1, B = 0 and the adapted layer is the output; elsewhere it is "
            "<delta, delta'> phi^T (s^2 A^T A - I) phi'. No infinite width is needed",
            why_it_matters="The matrix that decides who has the larger kernel is s^2 A^T A - I, with your s.",
        ),
        trials,
        numbers,
    )


def _output_products(gradients: Floats, inputs: Floats) -> Floats:
    """<delta, delta'> from G = delta a^T, shape (N, N)."""
    delta = np.einsum("imn,in->im", gradients, inputs) / np.sum(inputs**2, axis=1)[:, None]
    return gram(delta)

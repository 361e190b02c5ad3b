"""Claims about poisoning and about practice: TTR Eq. 5, 7, 16 and 17, sections 3.3 and 4.4, Appendix C."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from foretaste.theory.claims.probes import (
    EXACT,
    Numbers,
    complex_step,
    draw_adapter,
    gram,
    layer_gradients,
    relative,
    tanh_network,
)
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.loewner import adapter_eigenvalues
from foretaste.theory.lora_width import PEFT_K, Adapter, lora_scaling, rslora_scaling
from foretaste.theory.similarity import m_prime, one_step_difference, projected_cosine, pull

N_IN = 1024


def change_needs_a_proxy(rng: np.random.Generator, *, poisoned: Sequence[int] = (1, 4)) -> Verdict:
    """TTR Eq. 5: "impractical ... we first simplify": one step, in parameter space and from the kernel."""
    rows = 12
    trials, numbers = [], {}
    for count in poisoned:
        clean, bad = rng.normal(size=(2, count, 20))
        J = np.concatenate([clean, bad])
        g, other = rng.normal(size=(2, count))
        direct = float(np.sum((0.1 / rows * (clean.T @ g - bad.T @ other)) ** 2))
        by_kernel = one_step_difference(J @ J.T, g, other, learning_rate=0.1, examples=rows)
        error = abs(by_kernel / direct - 1)
        numbers[f"{count} poisoned rows: relative error"] = error
        # The claim is that the kernel alone cannot give it.
        trials.append(
            Trial(f"{count} of {rows} rows poisoned: v^T K v gives Eq. 5 to {error:.1e}", error > EXACT)
        )
    return conclude(
        Statement(
            name="Equation 5",
            paper="TTR",
            claim="|dTheta - dTheta~| cannot be analysed as it stands and has to be replaced by M' (Eq. 7).",
            conditions="never for a gradient step: it is (eta/N)^2 v^T K v exactly, v = (g, -g~) on the rows "
            "that poisoning takes out and puts in",
            why_it_matters="The robustness that the paper defines can be computed itself, from one kernel.",
        ),
        trials,
        numbers,
    )


def similarity_measures_change(rng: np.random.Generator, *, pairs: int = 4000) -> Verdict:
    """TTR Eq. 7: a large M' means that poisoning changes the update more."""
    trials = [_smallest_reversal()]
    clean, bad = rng.normal(size=(2, pairs, 6))
    inner = np.sum(clean * bad, axis=1)
    change = np.sum((clean - bad) ** 2, axis=1)
    correlation = float(np.corrcoef(inner, change)[0, 1])
    case = f"{pairs} random pairs of gradients: correlation of K(x, x~) with |g - g~|^2 is {correlation:.3f}"
    trials.append(Trial(case, correlation > 0))
    j = rng.normal(size=(8, 6))
    flips = [
        one_step_difference(np.tile(j @ j.T, (2, 2)), g, -g, learning_rate=1.0, examples=8)
        for g in (np.zeros(8), np.ones(8))
    ]
    own = np.sum(j**2, axis=1)
    numbers = {
        "correlation of the inner product with the change": correlation,
        "M' under label flips": m_prime(own, "fro"),
        "Eq. 5 with 8 flipped labels": flips[1],
        "Eq. 5 where the gradients vanish": flips[0],
    }
    return conclude(
        Statement(
            name="Equation 7",
            paper="TTR",
            claim="M' = |E K(x, x~)| is large where poisoning disturbs the updates most.",
            conditions="never: in |g - g~|^2 the inner product has a minus sign, and under label flips "
            "(x~ = x) M' does not see the attack; M' of LoRA is c times M' of full fine-tuning on average",
            why_it_matters="Do not rank adapters by M'. Use Eq. 5 itself, beside the scale factor c.",
        ),
        trials,
        numbers,
    )


def _smallest_reversal() -> Trial:
    """Two pairs of scalar gradients on a grid: larger M', smaller change."""
    grid = (0.0, 1.0, -1.0, 2.0)

    def measured(pair: Sequence[float]) -> tuple[float, float]:
        return abs(pair[0] * pair[1]), (pair[0] - pair[1]) ** 2

    for first, second in product(product(grid, repeat=2), repeat=2):
        (a, change_a), (b, change_b) = measured(first), measured(second)
        if a > b and change_a < change_b:
            text = f"(g, g~) = ({first[0]:g}, {first[1]:g}) against ({second[0]:g}, {second[1]:g})"
            return Trial(f"{text}: M' {a:g} > {b:g}, |g - g~|^2 {change_a:g} < {change_b:g}", False)
    return Trial("scalar gradients on a grid: no reversal", True)


def lora_narrows_angles(
    rng: np.random.Generator,
    *,
    r: int = 8,
    n: int = 64,
    draws: int = 20000,
    rhos: Sequence[float] = (0.3, 0.53),
) -> Verdict:
    """TTR Eq. 16: "smaller angles between gradients" under LoRA; angles of A x and A x' for gaussian A."""
    trials, numbers = [], {}
    for rho in rhos:
        x = np.zeros((n, 2))
        x[0], x[1, 1] = (1.0, rho), math.sqrt(1 - rho**2)
        # A x and A x' are r pairs of correlation rho: two columns of A are all of it that matters.
        projected = rng.normal(size=(draws, r, 2)) @ x[:2]
        inner = np.sum(projected[..., 0] * projected[..., 1], axis=1)
        cosine = inner / np.prod(np.linalg.norm(projected, axis=1), axis=1)
        mean, error = float(cosine.mean()), float(cosine.std()) / math.sqrt(draws)
        numbers[f"cosine {rho:g} of the inputs, r = {r}: mean after A"] = mean
        numbers[f"cosine {rho:g} of the inputs, r = {r}: by formula"] = projected_cosine(rho, r).mean
        numbers[f"cosine {rho:g} of the inputs, r = {r}: sd over A"] = float(cosine.std())
        trials.append(
            Trial(
                f"r = {r}: cosine {rho:g} becomes {mean:.4f} +- {error:.4f} on average",
                mean > rho + 4 * error,
            )
        )
    return conclude(
        Statement(
            name="Equation 16",
            paper="TTR",
            claim="LoRA makes the angles between clean and backdoored gradients smaller.",
            conditions="never on average: |inner product| is c times full fine-tuning's; the cosine moves "
            "by -rho (1 - rho^2) / (2r), towards a larger angle, with noise (1 - rho^2) / sqrt r",
            why_it_matters="An advantage against backdoors in Eq. 16 is the scale c and can be had by a "
            "smaller learning rate.",
        ),
        trials,
        numbers,
    )


def flips_tell_lora_apart(rng: np.random.Generator, *, ranks: Sequence[int] = (1, 8, 64)) -> Verdict:
    """TTR Eq. 17: flips align differently with clean gradients under LoRA and under full fine-tuning."""
    n, rows = 64, 10
    x, f = rng.normal(size=(rows, n)), rng.normal(size=rows)
    p = 1 / (1 + np.exp(-f))
    trials, numbers = [], {}
    full = np.sum(x**2, axis=1)
    reference = pull(full, full, full, p - 1, p)
    for r in ranks:
        own = np.sum((x @ draw_adapter(rng, r, n, PEFT_K).T) ** 2, axis=1)
        lora = pull(own, own, own, p - 1, p)
        gap = abs(lora.mean_cosine - reference.mean_cosine)
        numbers[f"r = {r}: cosine of flip and clean gradient"] = lora.mean_cosine
        numbers[f"r = {r}: |inner product| / full fine-tuning's"] = lora.mean_abs / reference.mean_abs
        trials.append(
            Trial(
                f"r = {r}: cosine {lora.mean_cosine:.12f} under LoRA, {reference.mean_cosine:.12f} in full; "
                f"size ratio {lora.mean_abs / reference.mean_abs:.3g}",
                gap > EXACT,
            )
        )
    return conclude(
        Statement(
            name="Equation 17",
            paper="TTR",
            claim="The alignment of flipped and clean gradients separates LoRA from full fine-tuning.",
            conditions="never for two classes: the cosine is -1 for every kernel; only c differs",
            why_it_matters="Eq. 17 carries no information on rank beyond the learning rate.",
        ),
        trials,
        numbers,
    )


def sweep_varies_rank_alone(
    rng: np.random.Generator, *, rules: Sequence[str] = ("alpha = r", "rslora")
) -> Verdict:
    """TTR section 4.4.1: the released rank sweep, alpha = r from 4 to 512 at one learning rate."""
    del rng  # nothing is drawn
    trials, numbers = [], {}
    for rule in rules:
        low, high = (_scale_factor(rule, r) for r in (4, 512))
        numbers[f"{rule}: c at r = 512 over c at r = 4"] = high / low
        trials.append(
            Trial(
                f"{rule}: c goes from {low:.3g} at r = 4 to {high:.3g} at r = 512",
                math.isclose(high, low, rel_tol=EXACT),
                condition=rule == "rslora",
            )
        )
    return conclude(
        Statement(
            name="Section 4.4 (rank sweep)",
            paper="TTR",
            claim="The rank sweep shows the effect of rank.",
            conditions="s^2 r is kept (rslora for SGD; s r for Adam); with s = 1 at a fixed rate the scale "
            "of the kernel grows 128-fold along the sweep",
            why_it_matters="Match eta t c before you attribute a difference to rank.",
        ),
        trials,
        numbers,
    )


def _scale_factor(rule: str, r: int) -> float:
    """The scale factor c at n = 1024, k = 1/3; alpha = 16 unless the rule says otherwise."""
    scaling = {"alpha = r": 1.0, "rslora": rslora_scaling(r, 16.0), "alpha / r": lora_scaling(r, 16.0)}[rule]
    return Adapter(r, k=PEFT_K, scaling=scaling, kurtosis=-1.2).scale_factor(N_IN)


# --- Appendix C -------------------------------------------------------------------------------------


def only_a_shapes_the_kernel(rng: np.random.Generator, *, sizes: Sequence[float] = (0.0, 1.0)) -> Verdict:
    """TTR App. C, asymmetry: A acts on the kernel directly, B only through the representations.

    Args:
        rng: Source of the network.
        sizes: Standard deviations of B's entries.
    """
    x = rng.normal(size=(4, 5))
    weights = tanh_network(rng, [5, 6, 1])
    A, direction = draw_adapter(rng, 3, 5, 1.0), rng.normal(size=(6, 3))
    trials, numbers = [], {}
    for size in sizes:
        B = size * direction

        def outputs(A_: Numbers, B_: Numbers) -> Numbers:
            return np.asarray(np.tanh(x @ (weights[0] + B_ @ A_).T) @ weights[1][0])

        of_b = gram(complex_step(lambda B_: outputs(A, B_), B))
        of_a = gram(complex_step(lambda A_: outputs(A_, B), A))  # noqa: B023 - called at once
        gradients = layer_gradients(x, [weights[0] + B @ A, weights[1]], 0)
        share = float(np.trace(of_a) / np.trace(of_a + of_b))
        numbers[f"B of size {size:g}: share of K_A = <B^T G, B^T G'> in the trace"] = share
        numbers[f"B of size {size:g}: error of the identity"] = relative(
            gram(gradients @ A.T) + gram(np.einsum("mr,imn->irn", B, gradients)), of_a + of_b
        )
        trials.append(
            Trial(
                f"width 6, r = 3, B of size {size:g}: K_A is {share:.3g} of the trace",
                share < EXACT,
                condition=size == 0,
            )
        )
    return conclude(
        Statement(
            name="Appendix C (asymmetry)",
            paper="TTR",
            claim="A shapes the kernel directly, B only through the representations.",
            conditions="B = 0, so at the start; later K_A = s^2 <B^T G, B^T G'> is as direct as K_B",
            why_it_matters="What holds at initialisation may be lost once B has grown: monitor K_A / K_B.",
        ),
        trials,
        numbers,
    )


def swapped_initialisation_is_degenerate(rng: np.random.Generator, *, r: int = 3) -> Verdict:
    """TTR App. C, initialisation: A = 0 and B random make the kernel degenerate."""
    x = rng.normal(size=(4, 5))
    weights = tanh_network(rng, [5, 6, 1])
    B = draw_adapter(rng, r, 6, 6 / r).T  # variance 1 / r
    gradients = layer_gradients(x, weights, 0)
    kernel = gram(
        complex_step(
            lambda A: np.asarray(np.tanh(x @ (weights[0] + B @ A).T) @ weights[1][0]), np.zeros((r, 5))
        )
    )
    rank, full = (int(np.linalg.matrix_rank(K)) for K in (kernel, gram(gradients)))
    ratio = float(np.trace(kernel) / np.trace(gram(gradients)))
    return conclude(
        Statement(
            name="Appendix C (initialisation)",
            paper="TTR",
            claim="Starting from A = 0 and a random B leaves a degenerate kernel.",
            conditions="never: it is s^2 <B^T G, B^T G'>, the mirror image, with mean s^2 r var(B) K_FF",
            why_it_matters="The two starts differ in scale (n against m, and B's variance), not in kind.",
        ),
        [
            Trial(
                f"width 6, r = {r}: rank {rank} on 4 rows (full fine-tuning {full}), trace ratio {ratio:.3g}",
                rank < full,
            )
        ],
        {"rank of the kernel": rank, "rank in full": full, "trace ratio": ratio},
    )


def lora_has_the_smaller_kernel(
    rng: np.random.Generator,
    *,
    cases: Mapping[str, tuple[int, float, float]] = {
        "peft default": (8, PEFT_K, 2.0),
        "peft gaussian": (8, 16.0, 2.0),
        "embedding": (8, float(N_IN), 2.0),
    },
) -> Verdict:
    """TTR App. C, learning rate: LoRA's mean eigenvalue is the smaller one.

    Args:
        rng: Source of A.
        cases: (r, k, s) by name, n = 1024; LoRA on an embedding has entries of variance 1, k = n.
    """
    trials, numbers = [], {}
    for name, (r, k, s) in cases.items():
        values = adapter_eigenvalues(draw_adapter(rng, r, N_IN, k), scaling=s)
        ratio, c = float(values.sum()) / N_IN, s**2 * r * k / N_IN
        numbers[f"{name}: trace ratio"] = ratio
        numbers[f"{name}: c"] = c
        trials.append(Trial(f"{name}, r = {r}: trace ratio {ratio:.3g} (c = {c:.3g})", ratio < 1, c < 1))
    return conclude(
        Statement(
            name="Appendix C (learning rate)",
            paper="TTR",
            claim="LoRA's kernel has the smaller mean eigenvalue, so LoRA needs the larger learning rate.",
            conditions="c = s^2 r k / n < 1, and for (S)GD; Adam's first step scales as s r sigma instead",
            why_it_matters="1/c is the factor by which to raise the learning rate of SGD: 96 for r = 8, "
            "alpha = 16, n = 1024.",
        ),
        trials,
        numbers,
    )


def small_ranks_need_large_alpha(
    rng: np.random.Generator, *, rules: Sequence[str] = ("alpha / r", "alpha = r")
) -> Verdict:
    """TTR App. C, alpha: a small rank makes the steps small, so it wants a large alpha."""
    del rng  # nothing is drawn
    trials, numbers = [], {}
    for rule in rules:
        small, large = _scale_factor(rule, 4), _scale_factor(rule, 64)
        numbers[f"{rule}: c at r = 4"], numbers[f"{rule}: c at r = 64"] = small, large
        trials.append(
            Trial(
                f"{rule}: c = {small:.3g} at r = 4, {large:.3g} at r = 64", small < large, rule == "alpha = r"
            )
        )
    return conclude(
        Statement(
            name="Appendix C (alpha)",
            paper="TTR",
            claim="When the rank is small a large alpha is needed to make up for it.",
            conditions="s does not depend on r; with s = alpha / r the smaller rank has the larger c already",
            why_it_matters="Under peft's default scaling, c = alpha^2 k / (n r): raising the rank at a fixed "
            "alpha slows SGD down, it does not speed it up.",
        ),
        trials,
        numbers,
    )

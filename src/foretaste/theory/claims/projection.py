"""Claims of the kernel paper on random projections: Malladi et al. 2023, Theorem 7.2 and Appendix D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from foretaste.theory.claims.probes import EXACT, Numbers, complex_step, gram, relative
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.layout import Floats
from foretaste.theory.lora_width import PEFT_K

LIKELY = 0.05
"""Largest probability of failure that counts as "with high probability"."""


def failure_bound(rows: int, epsilon: float, rank: float) -> float:
    """The bound 4 N^2 exp(-(eps^2 - eps^3) k / 4) of Theorems D.2 and D.5 (T19); above 1 it says nothing."""
    return 4.0 * rows**2 * math.exp(-(epsilon**2 - epsilon**3) * rank / 4.0)


def rank_needed(rows: int, epsilon: float, failure: float) -> float:
    """The rank at which `failure_bound` is `failure`."""
    return 4.0 * math.log(4.0 * rows**2 / failure) / (epsilon**2 - epsilon**3)


def _allowed(bound: float, draws: int) -> float:
    """Largest number of failures in independent draws that is in keeping with a bound on one: 4 sd above."""
    expected = min(bound, 1.0) * draws
    return expected + 4.0 * math.sqrt(expected)


def projections_keep_products(
    rng: np.random.Generator,
    *,
    laws: Sequence[str] = ("N(0, 1)", "U(-1, 1)", "U(-sqrt 3, sqrt 3)"),
    draws: int = 2000,
) -> Verdict:
    """Malladi Lemma D.3: h(x) = A x / sqrt k keeps inner products; k = 64, d = 32, eps = 1/2."""
    k, epsilon = 64, 0.5
    u, v = rng.normal(size=(2, 32))
    u, v = u / np.linalg.norm(u), (u / np.linalg.norm(u) + 0.5 * v / np.linalg.norm(v))
    v = v / np.linalg.norm(v)
    trials, numbers = [], {}
    for law in laws:
        half = {"N(0, 1)": None, "U(-1, 1)": 1.0, "U(-sqrt 3, sqrt 3)": math.sqrt(3.0)}[law]
        shape = (draws, k, 32)
        A = rng.normal(size=shape) if half is None else rng.uniform(-half, half, shape)
        products = np.sum((A @ u) * (A @ v), axis=1) / k
        failures = int(np.sum(np.abs(products - u @ v) >= epsilon))
        ratio, error = (float(f(products)) / float(u @ v) for f in (np.mean, np.std))
        error /= math.sqrt(draws)
        numbers[f"{law}: mean of h(u) h(v) / u v"] = ratio
        numbers[f"{law}: share off by 1/2"] = failures / draws
        within = failures <= _allowed(4.0 * math.exp(-(epsilon**2 - epsilon**3) * k / 4.0), draws)
        trials.append(
            Trial(
                f"{law}, k = {k}: h(u) h(v) is {ratio:.3f} +- {error:.3f} of u v on average, off by 1/2 in "
                f"{failures} of {draws} draws",
                within and abs(ratio - 1) < 4 * error,
                condition=law != "U(-1, 1)",
            )
        )
    return conclude(
        Statement(
            name="Lemma D.3",
            paper="Malladi",
            claim="A x / sqrt k keeps inner products, for entries of A from N(0, 1) or U(-1, 1).",
            conditions="entries of variance 1: N(0, 1) or U(-sqrt 3, sqrt 3); U(-1, 1) gives a third",
            why_it_matters="peft's default start is the uniform one with the third: k = 1/3, before s.",
        ),
        trials,
        numbers,
    )


def intrinsic_dimension_keeps_the_kernel(
    rng: np.random.Generator, *, variance: float = 1.0, k: int = 400, draws: int = 100
) -> Verdict:
    """Malladi Theorem D.2: projections of all parameters, N = 8, eps = 1/2.

    Args:
        rng: Source of gradients and projections.
        variance: k times that of the projection's entries; the theorem has 1.
        k: Dimension of the subspace.
        draws: Of the projection.
    """
    gradients = rng.normal(size=(8, 64))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    kernel = gram(gradients)
    worst = [
        float(np.abs(gram(gradients @ (rng.normal(size=(64, k)) * math.sqrt(variance / k))) - kernel).max())
        for _ in range(draws)
    ]
    failures, bound = int(np.sum(np.array(worst) >= 0.5)), failure_bound(8, 0.5, k)
    return conclude(
        Statement(
            name="Theorem D.2",
            paper="Malladi",
            claim="Fine-tuning in a random k-dimensional subspace keeps the SGD kernel, entry by entry.",
            conditions="as stated: entries of variance 1/k and k of order log N / eps^2",
            why_it_matters="It needs hundreds of dimensions; LoRA at r = 8 is no such case.",
        ),
        [
            Trial(
                f"k = {k}: an entry is off by 1/2 in {failures} of {draws} draws, the bound is {bound:.2g}",
                failures <= _allowed(bound, draws),
            )
        ],
        {
            "share of draws with an entry off by 1/2": failures / draws,
            "bound": bound,
            "largest error": max(worst),
        },
    )


def lora_kernel_is_a_hadamard_product(
    rng: np.random.Generator, *, cases: Sequence[tuple[int, float]] = ((1, 1.0), (2, 1.0), (1, 2.0))
) -> Verdict:
    """Malladi Lemma D.4: K_LoRA = dH dH^T o X A^T A X^T, against explicit Jacobians at B = 0.

    Args:
        rng: Source of the network.
        cases: (tokens, s).
    """
    W, A, V = rng.normal(size=(5, 4)), rng.normal(size=(3, 4)) / np.sqrt(3), rng.normal(size=5)
    trials, numbers = [], {}
    for tokens, s in cases:
        x = rng.normal(size=(4, tokens, 4))
        weights = rng.normal(size=tokens)

        def outputs(B: Numbers, x: Floats = x, weights: Floats = weights, s: float = s) -> Numbers:
            return np.asarray(np.einsum("t,itm,m->i", weights, np.tanh(x @ (W + s * B @ A).T), V))

        exact = gram(complex_step(outputs, np.zeros((5, 3))))
        delta = weights[:, None] * (1 - np.tanh(x @ W.T) ** 2) * V
        printed = gram(delta.sum(axis=1)) * gram(x.sum(axis=1) @ A.T)
        mended = s**2 * gram(np.einsum("itm,itr->imr", delta, x @ A.T))
        error = relative(printed, exact)
        numbers[f"{tokens} tokens, s = {s:g}: error"] = error
        numbers[f"{tokens} tokens, s = {s:g}: error, sum over token pairs"] = relative(mended, exact)
        trials.append(
            Trial(
                f"{tokens} token{'s' if tokens > 1 else ''}, s = {s:g}: off by {error:.2g} of the kernel",
                error < EXACT,
                condition=(tokens, s) == (1, 1.0),
            )
        )
    return conclude(
        Statement(
            name="Lemma D.4",
            paper="Malladi",
            claim="K_LoRA = dH dH^T o (X A^T A X^T).",
            conditions="one token an example, s = 1 and B = 0; sequences need the sum over token pairs, and "
            "'B = 0 throughout training' holds to leading order only",
            why_it_matters="A transformer layer has the kernel s^2 <G A^T, G' A^T>, G summed over tokens.",
        ),
        trials,
        numbers,
    )


def kernel_is_close(
    rng: np.random.Generator, *, laws: Sequence[str] = ("peft", "1/r"), r: int = 400, draws: int = 40
) -> Verdict:
    """Malladi Theorem D.5: N = 8 rows, n = 512, eps = 1/2; variance of A of 1/(3n), and of 1/r."""
    n, rows = 512, 8
    x = rng.normal(size=(rows, n))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    bound = failure_bound(rows, 0.5, r)
    trials, numbers = [], {"bound": bound}
    for law in laws:
        sd = math.sqrt(1 / r if law == "1/r" else PEFT_K / n)
        worst = [float(np.abs(gram(x @ rng.normal(0, sd, (n, r))) - gram(x)).max()) for _ in range(draws)]
        failures = int(np.sum(np.array(worst) >= 0.5))
        numbers[f"variance {law}: share of draws off by 1/2"] = failures / draws
        numbers[f"variance {law}: mean largest error"] = float(np.mean(worst))
        trials.append(
            Trial(
                f"variance {law}, r = {r}: an entry of K (1 on the diagonal) is off by 1/2 in {failures} of "
                f"{draws} draws, bound {bound:.2g}",
                failures <= _allowed(bound, draws),
                condition=law == "1/r",
            )
        )
    for N in (32, 1024):
        for epsilon in (0.1, 0.5):
            numbers[f"rank needed, N = {N}, eps = {epsilon:g}"] = math.ceil(rank_needed(N, epsilon, LIKELY))
        # eps^2 - eps^3 is largest at 2/3, where it is 4/27.
        numbers[f"smallest rank with a bound below 1, N = {N}"] = math.ceil(rank_needed(N, 2 / 3, 1.0))
    return conclude(
        Statement(
            name="Theorem D.5",
            paper="Malladi",
            claim="For gaussian A, P(an entry is off by c^2 eps) <= 4 N^2 exp(-(eps^2 - eps^3) k / 4).",
            conditions="A has variance 1/r (s^2 r sigma^2 = 1), which the theorem does not say; with peft's "
            "the error is as large as K. At r = 8 the bound is above 1 for any N: it says nothing",
            why_it_matters="No published bound says that r = 8 preserves the kernel. Measure alignment.",
        ),
        trials,
        numbers,
    )


def rank_rule_suffices(
    rng: np.random.Generator,
    *,
    epsilons: Sequence[float] = (0.1, 0.25, 0.5, 0.9),
    rows: Sequence[int] = (32, 1024),
) -> Verdict:
    """Malladi Remark D.6: k >= 20 c^4 log N / eps^2 suffices, c = 1, by the bound of Theorem D.5."""
    del rng  # nothing is drawn
    trials, numbers = [], {}
    for N in rows:
        for epsilon in epsilons:
            k = 20 * math.log(N) / epsilon**2
            bound = failure_bound(N, epsilon, k)
            numbers[f"N = {N}, eps = {epsilon:g}: bound at k = {k:.0f}"] = bound
            trials.append(
                Trial(
                    f"N = {N}, eps = {epsilon:g}: k = {k:.0f} leaves a failure bound of {bound:.3g}",
                    bound <= LIKELY,
                    condition=epsilon <= 0.25,
                )
            )
    return conclude(
        Statement(
            name="Remark D.6",
            paper="Malladi",
            claim="k >= 20 c^4 log N / eps^2 keeps the kernels within eps with high probability.",
            conditions="eps / c^2 is small, about 1/4: the bound at that k is 4 N^(-3 + 5 eps), which is no "
            "bound from eps = 0.6 on; L in its exponent for L adapters is not proved",
            why_it_matters="For 1,000 rows and eps = 0.25 the rule asks for rank 2,200: above the width.",
        ),
        trials,
        numbers,
    )


def lora_preserves_the_kernel(
    rng: np.random.Generator,
    *,
    cases: Sequence[tuple[str, int, int]] = (("peft", 8, 1), ("1/r", 8, 1), ("1/r", 400, 1), ("1/r", 8, 144)),
    draws: int = 12,
) -> Verdict:
    """Malladi Theorem 7.2: K_LoRA(i, j) = K(i, j), about, for all pairs of 6 rows; n = 768.

    Args:
        rng: Source of inputs and adapters.
        cases: (variance of A, r, adapted layers); "peft" is 1/(3n) with s = 16/r.
        draws: Averaged over.
    """
    n, rows = 768, 6
    trials, numbers = [], {}
    for law, r, layers in cases:
        sd, s = (math.sqrt(PEFT_K / n), 16.0 / r) if law == "peft" else (math.sqrt(1 / r), 1.0)
        errors, cosines = [], []
        for _ in range(draws if layers == 1 else 2):
            full, low = np.zeros((rows, rows)), np.zeros((rows, rows))
            for _ in range(layers):
                x = rng.normal(size=(rows, n)) + 1.0
                full += gram(x)
                low += gram(s * x @ rng.normal(0, sd, (n, r)))
            errors.append(relative(low, full))
            cosines.append(float(np.sum(low * full) / np.linalg.norm(low) / np.linalg.norm(full)))
        error = float(np.mean(errors))
        name = f"variance {law}, r = {r}, {layers} adapted layer{'s' if layers > 1 else ''}"
        numbers[f"{name}: relative error"] = error
        numbers[f"{name}: alignment"] = float(np.mean(cosines))
        trials.append(
            Trial(
                f"{name}: |K_LoRA - K| = {error:.3f} |K|, alignment {np.mean(cosines):.3f}",
                error < 0.2,
                condition=law == "1/r" and r * layers >= 400,
            )
        )
    return conclude(
        Statement(
            name="Theorem 7.2",
            paper="Malladi",
            claim="With high probability K_LoRA(i, j) is about K(i, j) for all pairs.",
            conditions="s^2 r sigma^2 = 1, and a large rank or many adapters (relative sd sqrt(2 / (r L))), "
            "for SGD; with peft's defaults it is c K at best",
            why_it_matters="Scale and shape are two questions: c sets the learning rate, r L the shape.",
        ),
        trials,
        numbers,
    )

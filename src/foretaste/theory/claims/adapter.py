"""Claims on s^2 A^T A against the identity: TTR Theorem 3.4, Corollary 3.5, App. A.6, Prop. B.1, Eq. 54."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foretaste.theory.claims.probes import (
    EXACT,
    SHRINKS,
    Numbers,
    complex_step,
    draw_adapter,
    gram,
    layer_gradients,
    lora_gradients,
    relative,
    tanh_network,
)
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.loewner import adapter_eigenvalues, distance_to_identity, gram_order
from foretaste.theory.lora_width import PEFT_K, Adapter, lora_moments, lora_scaling
from foretaste.theory.spectra import bulk, semi_definite

SURE = 1e-3
"""Cases in which s^2 A^T A <= I has a probability between this and 1 minus this are not tried."""


class Case(NamedTuple):
    """One adapter: rank, k and s."""

    r: int
    k: float
    s: float


BY_RANK = tuple(
    Case(r, k, s)
    for k, s in ((0.25, 1.0), (PEFT_K, 1.0), (0.9, 1.0), (PEFT_K, 2.0))
    for r in (8, 64, 256, 512)
)


def negative_semi_definite(
    rng: np.random.Generator, *, n: int = 512, cases: Sequence[Case] = BY_RANK, search: bool = True
) -> Verdict:
    """TTR Theorem 3.4, the order: adapters drawn as peft draws them, each inside the theorem's hypotheses."""
    trials, numbers = [_smallest_violation(rng)] if search else [], {}
    for case in cases:
        law = semi_definite(n, case.r, k=case.k, scaling=case.s)
        if SURE < law.probability < 1 - SURE:
            continue
        top = float(adapter_eigenvalues(draw_adapter(rng, case.r, n, case.k), scaling=case.s)[-1])
        numbers[f"top eigenvalue, r = {case.r}, k = {case.k:.3g}, s = {case.s:g}"] = top
        trials.append(
            Trial(
                f"n = {n}, r = {case.r}, k = {case.k:.3g}, s = {case.s:g}: top eigenvalue of s^2 A^T A is "
                f"{top:.3f} (edge {law.edge:.3f})",
                top <= 1.0,
                condition=law.holds,
            )
        )
    return conclude(
        Statement(
            name="Theorem 3.4 (order)",
            paper="TTR",
            claim="M_Delta = A^T A - I is negative semi-definite if sigma^2 < 1/n and r <= n.",
            conditions="s^2 k (1 + sqrt(r/n))^2 <= 1, k = n sigma^2; for s = 1 and peft's k = 1/3 that is "
            "r <= 0.536 n, with s = alpha/r it is a smallest rank",
            why_it_matters="With alpha = 16 and n = 1024 the order needs r >= 11: the usual r = 8 has the "
            "larger kernel than full fine-tuning along every direction that it can move in.",
        ),
        trials,
        numbers,
    )


def _smallest_violation(rng: np.random.Generator) -> Trial:
    """The smallest n = r whose A, k = 0.9, has an eigenvalue above 1 in one of 64 draws."""
    for n in range(1, 9):
        top = max(
            float(adapter_eigenvalues(draw_adapter(rng, n, n, 0.9), scaling=1.0)[-1]) for _ in range(64)
        )
        if top > 1.0:
            return Trial(f"n = r = {n}, k = 0.9, s = 1: a draw of A has the eigenvalue {top:.3f}", False)
    return Trial("n = r <= 8, k = 0.9, s = 1: no eigenvalue above 1 in 64 draws of each", True)


def nonzero_eigenvalues_are_equal(
    rng: np.random.Generator,
    *,
    growing: bool = True,
    fixed: bool = True,
    widths: tuple[int, int] = (256, 1024),
    draws: int = 32,
) -> Verdict:
    """TTR Theorem 3.4, the eigenvalues: "r equal to sigma^2 n"; widths a factor of 4 apart."""
    trials, numbers = [], {}
    for wanted, text, ranks in (
        (growing, "r = n/4", tuple(n // 4 for n in widths)),
        (fixed, "r = 4", (4, 4)),
    ):
        if not wanted:
            continue
        spreads = []
        for n, r in zip(widths, ranks, strict=True):
            values = np.array(
                [adapter_eigenvalues(draw_adapter(rng, r, n, PEFT_K), scaling=1.0) for _ in range(draws)]
            )
            spreads.append(float(np.mean(values[:, -1] - values[:, 0])) / PEFT_K)
        law = bulk(widths[1], ranks[1], k=1.0, scaling=1.0)
        numbers[f"{text}, width {widths[1]}: (largest - smallest) / k"] = spreads[1]
        numbers[f"{text}, width {widths[1]}: the same by Marchenko-Pastur"] = law.upper - law.lower
        trials.append(
            Trial(
                f"{text}: nonzero eigenvalues of A^T A, in units of k, spread over {spreads[0]:.3f} at width "
                f"{widths[0]} and {spreads[1]:.3f} at {widths[1]}",
                spreads[1] < SHRINKS * spreads[0],
                condition=text == "r = 4",
            )
        )
    return conclude(
        Statement(
            name="Theorem 3.4 (eigenvalues)",
            paper="TTR",
            claim="M_Delta has r eigenvalues equal to sigma^2 n and n - r equal to 0.",
            conditions="of A^T A (M_Delta has them less 1), and only as r/n goes to 0; else they fill "
            "[k (1 - sqrt(r/n))^2, k (1 + sqrt(r/n))^2] with mean k (Marchenko-Pastur)",
            why_it_matters="The largest eigenvalue decides the order, and it is up to 4 times the mean.",
        ),
        trials,
        numbers,
    )


def full_rank_matrix_vanishes(rng: np.random.Generator, *, widths: tuple[int, int] = (256, 1024)) -> Verdict:
    """TTR Corollary 3.5 as a statement about the matrix: r = n, sigma^2 = 1/n, M_Delta in four norms."""
    small, large = (distance_to_identity(draw_adapter(rng, n, n, 1.0), scaling=1.0) for n in widths)
    one = float(distance_to_identity(draw_adapter(rng, 1, 1, 1.0), scaling=1.0).operator)
    trials = [Trial(f"n = r = 1: |M_Delta| = |a^2 - 1| = {one:.3f}", one < EXACT)]
    numbers = {"operator norm": large.operator, "Frobenius norm / sqrt n": large.frobenius}
    numbers |= {
        "largest off-diagonal entry": large.off_diagonal,
        "rms entry times sqrt n": large.rms * math.sqrt(widths[1]),
    }
    numbers["share of positive eigenvalues"] = large.positive
    for text, before, after in (
        ("operator norm", small.operator, large.operator),
        ("Frobenius norm / sqrt n", small.frobenius, large.frobenius),
        ("largest off-diagonal entry", small.off_diagonal, large.off_diagonal),
        ("rms entry", small.rms, large.rms),
    ):
        case = f"n = r: {text} {before:.3f} at n = {widths[0]}, {after:.3f} at {widths[1]}"
        trials.append(Trial(case, after < SHRINKS * before))
    return conclude(
        Statement(
            name="Corollary 3.5 (matrix)",
            paper="TTR",
            claim="M_Delta strictly converges to 0 for r = n and sigma^2 = 1/n.",
            conditions="never at a finite n; as n grows its entries vanish like 1/sqrt n, its Frobenius norm "
            "over sqrt n stays 1 and its operator norm 3, with 39 % of the eigenvalues above 0",
            why_it_matters="Full-rank LoRA is not full fine-tuning: some directions move up to 4 times as "
            "far, others not at all.",
        ),
        trials,
        numbers,
    )


def full_rank_kernel_is_full(
    rng: np.random.Generator,
    *,
    widths: tuple[int, int] = (256, 1024),
    cases: Sequence[tuple[int, float]] = ((1, 1.0), (16, 16.0), (1, PEFT_K)),
) -> Verdict:
    """TTR Corollary 3.5 as a statement about the kernel of given data; moments over A are exact.

    Args:
        rng: Source of the data.
        widths: n, a factor of 4 apart.
        cases: (n / r, k).
    """
    trials, numbers = [], {}
    for part, k in cases:
        errors = []
        for n in widths:
            gradients = rng.normal(size=(3, 1, n))
            moments = lora_moments(gradients, Adapter(n // part, k=k, scaling=1.0, kurtosis=-1.2))
            full = gram(gradients)
            # Root mean squared distance over A: bias and spread, both in closed form.
            squares = np.sum((moments.mean - full) ** 2 + moments.variance)
            errors.append(math.sqrt(float(squares)) / float(np.linalg.norm(full)))
        numbers[f"r = n/{part}, k = {k:.3g}: relative distance at width {widths[1]}"] = errors[1]
        trials.append(
            Trial(
                f"r = n/{part}, k = {k:.3g}: K_LoRA is {errors[0]:.3f} of K_FF away from it at width "
                f"{widths[0]}, {errors[1]:.3f} at {widths[1]}",
                errors[1] < SHRINKS * errors[0],
                condition=math.isclose(k / part, 1.0),
            )
        )
    return conclude(
        Statement(
            name="Corollary 3.5 (kernel)",
            paper="TTR",
            claim="K_LoRA = K_FF at full rank.",
            conditions="in the limit, on a fixed finite data set, and if s^2 r k / n = 1; then any growing "
            "rank does, with relative error sqrt(2/r). Full rank with peft's k = 1/3, s = 1 gives K_FF / 3",
            why_it_matters="Matching full fine-tuning is a matter of the scale c = s^2 r k / n, not of rank.",
        ),
        trials,
        numbers,
    )


def order_survives_depth(
    rng: np.random.Generator, *, cases: Sequence[tuple[int, float]] = ((4, 2.0), (4, 0.5)), width: int = 12
) -> Verdict:
    """TTR App. A.6, Theorem 3.4 with every layer but the first adapted, on networks with 40 rows.

    Args:
        rng: Source of the draws.
        cases: (r, s), with k = 1/3.
        width: Of both hidden layers.
    """
    x = rng.normal(size=(40, 6))
    weights = tanh_network(rng, [6, width, width, 1])
    gradients = [layer_gradients(x, weights, layer) for layer in range(3)]
    full = sum((gram(g) for g in gradients), np.zeros((40, 40)))
    trials, numbers = [], {}
    for r, s in cases:
        adapters = [draw_adapter(rng, r, width, PEFT_K) for _ in range(2)]
        low = gram(gradients[0])
        for layer, A in zip((1, 2), adapters, strict=True):
            low = low + gram(lora_gradients(x, weights, layer, A, s))
        top = gram_order(full, low)
        worst = max(float(adapter_eigenvalues(A, scaling=s)[-1]) for A in adapters)
        largest = float((low - full).max())
        numbers[f"s = {s:g}: top of K_LoRA against K_FF"] = top.inside
        numbers[f"s = {s:g}: largest entry of K_LoRA - K_FF"] = largest
        trials.append(
            Trial(
                f"width {width}, r = {r}, s = {s:g}: smallest t with K_LoRA <= t K_FF is {top.top:.3f} "
                f"(largest eigenvalue of s^2 A^T A {worst:.3f})",
                top.holds,
                condition=worst <= 1.0,
            )
        )
    return conclude(
        Statement(
            name="Appendix A.6",
            paper="TTR",
            claim="The order K_LoRA <= K_FF carries over to networks with every layer adapted.",
            conditions="every adapted layer has s^2 A^T A <= I; the reason is Schur's product theorem, not "
            "Sdot >= 0, and it orders matrices: single entries of K_LoRA - K_FF may be positive",
            why_it_matters="One layer with a large s^2 A^T A is enough to lose the order of the whole model.",
        ),
        trials,
        numbers,
    )


def order_in_every_module(
    rng: np.random.Generator,
    *,
    modules: Sequence[str] = ("linear", "embedding"),
    n: int = 256,
    draws: int = 30,
) -> Verdict:
    """TTR Proposition B.1: a linear layer and an embedding, adapted as peft does, r = 8, alpha = 8."""
    r, s = 8, lora_scaling(8, 8.0)
    trials, numbers = [], {}
    for module in modules:
        tops, ratios = [], []
        for _ in range(draws):
            # The embedding has A = 0 and B ~ N(0, 1), d x r: K_LoRA = s^2 <B^T G, B^T G'>.
            A = draw_adapter(rng, r, n, PEFT_K) if module == "linear" else rng.normal(size=(r, n))
            values = adapter_eigenvalues(A, scaling=s)
            tops.append(float(values[-1]))
            ratios.append(float(values.sum()) / n)
        numbers[f"{module}: top eigenvalue"] = max(tops)
        numbers[f"{module}: mean trace ratio"] = float(np.mean(ratios))
        trials.append(
            Trial(
                f"{module} of dimension {n}, r = {r}, s = {s:g}: K_LoRA <= t K_FF needs t = {max(tops):.3g}, "
                f"trace ratio {np.mean(ratios):.3g}",
                max(tops) <= 1.0,
                condition=module == "linear",
            )
        )
    return conclude(
        Statement(
            name="Proposition B.1",
            paper="TTR",
            claim="Theorems 3.4-3.6 also hold for LoRA on embedding, feed-forward, attention and head.",
            conditions="linear layers that meet the condition of Theorem 3.4; LoRA on an embedding starts "
            "from A = 0, B ~ N(0, 1) and has c = s^2 r, far above 1",
            why_it_matters="Adapting the embedding makes LoRA's kernel larger than full fine-tuning's, "
            "whatever the rank: it is the first place to look when a small rank is not robust.",
        ),
        trials,
        numbers,
    )


def attention_term(rng: np.random.Generator, *, printed: bool = True, mended: bool = True) -> Verdict:
    """TTR Eq. 54, one head, LoRA on W_K of full rank (else the printed product has no meaning)."""
    d, tokens, rows = 4, 3, 5
    X = rng.normal(size=(rows, tokens, d))
    Q, V = (rng.normal(size=(d, d)) / math.sqrt(d) for _ in range(2))
    K, A = rng.normal(size=(d, d)) / math.sqrt(d), draw_adapter(rng, d, d, 1.0)
    readout = rng.normal(size=d)

    def attention(key: Numbers) -> Numbers:
        scores = np.einsum("itd,iud->itu", X @ Q.T, X @ key.T) / math.sqrt(d)
        weights = np.exp(scores)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return np.asarray(np.einsum("itu,iud,d->i", weights, X @ V.T, readout))

    exact = gram(complex_step(lambda B: attention(K + B @ A), np.zeros((d, d))))
    G = complex_step(attention, K)
    once, twice = relative(gram(G @ A.T), exact), relative(gram(G @ A.T @ A.T), exact)
    trials = []
    if printed:
        trials.append(
            Trial(f"d = r = {d}: V_attn with A, then A^T A again: relative error {twice:.2g}", twice < EXACT)
        )
    if mended:
        trials.append(Trial(f"d = r = {d}: A applied once: relative error {once:.1e}", once < EXACT))
    return conclude(
        Statement(
            name="Equation 54",
            paper="TTR",
            claim="K_attn,LoRA = V_attn^T A^T A V_attn + others, with V_attn = A W_K x ...",
            conditions="never as printed: V_attn already holds A (at r < n the product does not even exist). "
            "With A once, <G A^T, G' A^T>, the identity is exact for q, k, v, o, any mask and any heads",
            why_it_matters="One formula serves every linear layer of a transformer, attention included.",
        ),
        trials,
        {"A applied once: error": once, "A applied twice: error": twice},
    )


def practical_conditions(
    rng: np.random.Generator,
    *,
    runs: Sequence[tuple[str, int, float, float]] = (
        ("default, alpha = 16", 8, 16.0, PEFT_K),
        ("variance sweep k = 0.1", 8, 16.0, 0.1),
        ("variance sweep k = 1", 8, 16.0, 1.0),
        ("rank sweep alpha = r = 4", 4, 4.0, PEFT_K),
        ("rank sweep alpha = r = 64", 64, 64.0, PEFT_K),
        ("full rank alpha = r = 1024", 1024, 1024.0, PEFT_K),
        ("peft gaussian, std 1/r", 8, 16.0, 16.0),
    ),
    n: int = 1024,
) -> Verdict:
    """TTR section 3.3, "the conditions of Theorem 3.6 are typically satisfied in practice": the paper's runs.

    Args:
        rng: Source of A.
        runs: (name, r, alpha, k).
        n: in_features; 1024 is BERT-large.
    """
    trials, numbers = [], {}
    for name, r, alpha, k in runs:
        s = lora_scaling(r, alpha)
        top = float(adapter_eigenvalues(draw_adapter(rng, r, n, k), scaling=s)[-1])
        numbers[f"{name}: top eigenvalue"] = top
        trials.append(
            Trial(
                f"{name} (r = {r}, s = {s:g}, k = {k:.3g}, n = {n}): top eigenvalue of s^2 A^T A {top:.3f}",
                top <= 1.0,
                condition=semi_definite(n, r, k=k, scaling=s).holds,
            )
        )
    numbers["peft's variance times n^2 (the paper: below 1)"] = PEFT_K * n
    return conclude(
        Statement(
            name="Section 3.3 (conditions in practice)",
            paper="TTR",
            claim="r <= n and sigma^2 <= 1/n hold in practice, so M_Delta is negative semi-definite.",
            conditions="s^2 k (1 + sqrt(r/n))^2 <= 1: of the paper's own runs the rank sweep up to 512 and "
            "the lowest variance, not the default r = 8, alpha = 16",
            why_it_matters="Check lambda_max(s^2 A^T A) of your own adapter before you quote the theorem.",
        ),
        trials,
        numbers,
    )

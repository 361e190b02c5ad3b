"""Claims about Fisher information, bits and entropies: TTR Theorem 2.2, Eq. 9, 10, 18, 23-26 and Figure 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foretaste.theory.claims.probes import (
    EXACT,
    Numbers,
    complex_step,
    draw_adapter,
    forward,
    network_jacobian,
    tanh_network,
)
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.eigen_entropy import (
    figure3_script_shannon,
    predicted_raw_renyi,
    predicted_raw_shannon,
    predicted_renyi,
)
from foretaste.theory.fisher import cross_entropy_gradient, empirical_fisher, equation_24
from foretaste.theory.information import (
    information_bits,
    paper_renyi_infinity,
    raw_renyi,
    raw_shannon,
    renyi_entropy,
)
from foretaste.theory.layout import Floats, Ints, margin_kernel
from foretaste.theory.loewner import adapter_eigenvalues


class Network(NamedTuple):
    """A small network with its data: weights, inputs, kernel (N, C, N, C), logits (N, C) and labels (N,)."""

    weights: list[Floats]
    x: Floats
    kernel: Floats
    logits: Floats
    labels: Ints


def _network(rng: np.random.Generator, classes: int, rows: int) -> Network:
    x, weights = rng.normal(size=(rows, 3)), tanh_network(rng, [3, 4, classes])
    J = network_jacobian(x, weights)
    kernel = np.einsum("icp,jdp->icjd", J, J)
    logits = np.asarray(forward(x, weights), dtype=np.float64)
    return Network(weights, x, kernel, logits, rng.integers(0, classes, size=rows))


def _loss_gradients(net: Network) -> Floats:
    """Gradient of every row's cross-entropy with respect to all weights, shape (N, P), without the kernel."""
    first, second = net.weights

    def losses(flat: Numbers) -> Numbers:
        weights = flat[: first.size].reshape(first.shape), flat[first.size :].reshape(second.shape)
        logits = forward(net.x, weights)
        rows = np.arange(len(net.x))
        return np.asarray(np.log(np.exp(logits).sum(axis=1)) - logits[rows, net.labels])

    return complex_step(losses, np.concatenate([first.ravel(), second.ravel()]))


def fisher_identity(rng: np.random.Generator, *, classes: Sequence[int] = (2, 3, 5)) -> Verdict:
    """TTR Theorem 2.2 as an identity of numbers, at width 4."""
    trials, numbers = [], {}
    for C in classes:
        net = _network(rng, C, 6)
        g = cross_entropy_gradient(net.logits, net.labels)
        parameter_space = float(np.sum(_loss_gradients(net) ** 2)) / 6
        weighted = float(np.mean(np.einsum("ic,icid,id->i", g, net.kernel, g)))
        error = abs(weighted - parameter_space) / parameter_space
        numbers[f"C = {C}: relative difference at width 4"] = error
        trials.append(
            Trial(f"C = {C}, width 4: E |grad L|^2 and E g^T K g differ by {error:.1e}", error < EXACT)
        )
    return conclude(
        Statement(
            name="Theorem 2.2 (identity)",
            paper="TTR",
            claim="E[grad L^T grad L] = E[g^T K(x, x) g] as the width goes to infinity.",
            conditions="at any width, by the chain rule; it is one number, the trace of the empirical Fisher",
            why_it_matters="A kernel that was computed once gives the Fisher trace for any labels, poisoned "
            "ones included, without another pass over the model.",
        ),
        trials,
        numbers,
    )


def fisher_has_one_eigenvalue_per_output(
    rng: np.random.Generator, *, sizes: Sequence[tuple[int, int]] = ((1, 2), (2, 2), (6, 3), (12, 3))
) -> Verdict:
    """TTR Theorem 2.2 with Eq. 9: "the n_L eigenvalues of the Fisher matrix".

    Args:
        rng: Source of the networks.
        sizes: (rows N, outputs C).
    """
    trials, numbers = [], {}
    for N, C in sizes:
        net = _network(rng, C, N)
        rank = empirical_fisher(net.kernel, net.logits, net.labels).rank
        numbers[f"N = {N}, C = {C}: nonzero eigenvalues"] = rank
        trials.append(
            Trial(f"N = {N} rows, C = {C} outputs: {rank} nonzero eigenvalues", rank == C, condition=N == C)
        )
    return conclude(
        Statement(
            name="Theorem 2.2 (n_L eigenvalues)",
            paper="TTR",
            claim="The Fisher information has n_L eigenvalues, one an output.",
            conditions="as many rows as outputs; in general the empirical Fisher has up to N, the true one "
            "up to N (C - 1), and the scalar of Theorem 2.2 none",
            why_it_matters="Bits and entropies depend on which matrix is meant and on how many rows it saw: "
            "compare arms on the same rows only.",
        ),
        trials,
        numbers,
    )


def one_component_is_enough(rng: np.random.Generator, *, margin: bool = True, logits: bool = True) -> Verdict:
    """TTR Eq. 23 and 24: the cross-entropy gradient is Z_y - 1."""
    trials, numbers = [], {}
    for C in (2, 3) if logits else ():
        net = _network(rng, C, 12)
        exact = empirical_fisher(net.kernel, net.logits, net.labels).trace
        ratio = exact / equation_24(net.kernel, net.logits, net.labels)
        numbers[f"C = {C} logits: exact / Eq. 24"] = ratio
        trials.append(
            Trial(f"C = {C} logits: the exact trace is {ratio:.3f} times Eq. 24", abs(ratio - 1) < EXACT)
        )
    if margin:
        net = _network(rng, 2, 12)
        p = np.exp(-np.logaddexp(0.0, -(2 * net.labels - 1) * (net.logits[:, 1] - net.logits[:, 0])))
        printed = float(np.mean((1 - p) ** 2 * np.diagonal(margin_kernel(net.kernel))))
        error = abs(printed / empirical_fisher(net.kernel, net.logits, net.labels).trace - 1)
        numbers["C = 2 margin: relative error"] = error
        trials.append(Trial(f"C = 2, kernel of the margin: relative error {error:.1e}", error < EXACT, True))
    return conclude(
        Statement(
            name="Equations 23-24",
            paper="TTR",
            claim="The gradient of the cross-entropy is Z_y - 1, so I = E (Z_y - 1)^2 K.",
            conditions="two classes and the kernel of the margin f_1 - f_0; with C logits it is p - e_y, and "
            "one component leaves out about half of the trace",
            why_it_matters="Binary tasks may use the margin's N x N kernel; others need all C x C blocks.",
        ),
        trials,
        numbers,
    )


def squared_error_sign(rng: np.random.Generator, *, sign: float = -1.0) -> Verdict:
    """TTR Eq. 25 and 26: the loss -1/2 (y - F)^2 and its gradient F - y.

    Args:
        rng: Source of a prediction and a target.
        sign: In front of the loss; the paper prints -1.
    """
    F, y = rng.normal(size=2)
    step = 1e-4
    slope = sign * 0.5 * ((y - F - step) ** 2 - (y - F + step) ** 2) / (2 * step)
    # A quadratic's central difference is exact, so only rounding of 1e-16 / step is left.
    true = abs(slope - (F - y)) < 1e-9
    return conclude(
        Statement(
            name="Equations 25-26",
            paper="TTR",
            claim="The squared error -1/2 (y - F)^2 has the gradient F - y.",
            conditions="without the minus of Eq. 25",
            why_it_matters="A slip of print only: the Fisher does not see the sign.",
        ),
        [Trial(f"F - y = {F - y:.4f}, slope of the printed loss {slope:.4f}", true)],
        {"F - y": F - y, "slope of Eq. 25": slope},
    )


def bits_two_ways(rng: np.random.Generator) -> Verdict:
    """TTR Eq. 9: 1/2 log pdet = 1/2 sum of eigenvalues."""
    trials = []
    for size in (1, 2, 4):
        values = np.ones(1) if size == 1 else rng.uniform(0.1, 2.0, size)
        bits = information_bits(values, beta=1.0)
        text = ", ".join(f"{v:.3g}" for v in values)
        trials.append(
            Trial(
                f"eigenvalues ({text}): 1/2 log pdet = {bits.by_pdet:.4g}, 1/2 sum = {bits.by_sum:.4g}",
                math.isclose(bits.by_pdet, bits.by_sum, rel_tol=EXACT),
            )
        )
    # log v <= v - 1: the two differ by at least 1/2 an eigenvalue, whatever it is.
    grid = np.geomspace(1e-6, 1e6, 241)
    gap = min(b.by_sum - b.by_pdet for b in (information_bits([v], beta=1.0) for v in grid))
    return conclude(
        Statement(
            name="Equation 9",
            paper="TTR",
            claim="Information bits are 1/2 log pdet(I) = 1/2 sum of the positive eigenvalues.",
            conditions="never: log v <= v - 1, so each eigenvalue sets the sides at least 1/2 apart",
            why_it_matters="A report of 'bits' must say which: the sum is half the trace (a scale), the "
            "log-determinant changes its order with the unit of the logits.",
        ),
        trials,
        {"smallest gap over eigenvalues 1e-6 .. 1e6": gap},
    )


def renyi_at_one(rng: np.random.Generator, *, sums: Sequence[float] = (0.5, 1.0, 2.0)) -> Verdict:
    """TTR Eq. 10 and App. C.1: H_alpha of raw eigenvalues tends to Shannon's entropy at alpha = 1."""
    shape = rng.dirichlet(np.ones(4))
    trials, numbers = [], {}
    for total in sums:
        lam = total * shape
        near = [raw_renyi(lam, 1.0 + step) for step in (-1e-4, 1e-4)]
        shannon = -float(lam @ np.log(lam))
        gap = max(abs(value - shannon) for value in near)
        numbers[f"eigenvalues summing to {total:g}: |H - Shannon| at alpha = 1 +- 1e-4"] = gap
        # The slope of H in alpha is minus half a variance of log p, here at most log(1/p_min)^2 / 2.
        allowed = 1e-4 * (1 + math.log(shape.min()) ** 2)
        trials.append(
            Trial(
                f"sum {total:g}: H_0.9999 = {near[0]:.4g}, H_1.0001 = {near[1]:.4g}, Shannon {shannon:.4g}",
                gap < allowed,
                condition=total == 1.0,
            )
        )
    return conclude(
        Statement(
            name="Equation 10 (alpha = 1)",
            paper="TTR",
            claim="H_1 of the Fisher's eigenvalues is the Shannon entropy.",
            conditions="the eigenvalues sum to 1, as App. C.1 assumes; else H_alpha diverges at alpha = 1",
            why_it_matters="Entropies of a kernel need normalised eigenvalues; the effective rank is one.",
        ),
        trials,
        numbers,
    )


def renyi_at_infinity(rng: np.random.Generator, *, largest: Sequence[float] = (1.0, 0.5, 4.0)) -> Verdict:
    """TTR Eq. 10: H_inf is the largest eigenvalue."""
    trials, numbers = [], {}
    for top in largest:
        lam = np.concatenate([[top], top * rng.uniform(0.1, 0.9, 3)])
        limit, named = raw_renyi(lam, math.inf), paper_renyi_infinity(lam)
        numbers[f"largest eigenvalue {top:g}: limit of H_alpha"] = limit
        trials.append(
            Trial(
                f"largest eigenvalue {top:g}: H_alpha tends to {limit:.4g}, the paper's H_inf is {named:.4g}",
                math.isclose(limit, named, rel_tol=EXACT, abs_tol=EXACT),
            )
        )
    return conclude(
        Statement(
            name="Equation 10 (alpha = inf)",
            paper="TTR",
            claim="H_inf = max lambda.",
            conditions="never but by coincidence: the limit is -log max lambda, which falls as lambda grows",
            why_it_matters="The paper's H_inf is a scale of the kernel; read it as c, not as smoothness.",
        ),
        trials,
        numbers,
    )


def variance_shapes_the_geometry(
    rng: np.random.Generator, *, normalised: bool = True, raw: bool = True, n: int = 512, r: int = 64
) -> Verdict:
    """TTR Eq. 18: rank and initial variance act through H'_alpha of A^T A; one A at k = 1/3 and k = 2."""
    A = draw_adapter(rng, r, n, 1.0)
    low, high = (adapter_eigenvalues(A, scaling=math.sqrt(k)) for k in (1 / 3, 2.0))
    trials, numbers = [], {}
    for alpha in (0.5, 2.0, math.inf):
        if raw:
            change = raw_renyi(high, alpha) - raw_renyi(low, alpha)
            expected = predicted_raw_renyi(alpha, n, r, k=2.0, scaling=1.0) - predicted_raw_renyi(
                alpha, n, r, k=1 / 3, scaling=1.0
            )
            numbers[f"raw, alpha = {alpha:g}: change from k = 1/3 to 2"] = change
            case = f"raw H_{alpha:g} changes by {change:.3f} from k = 1/3 to 2 (formula: {expected:.3f})"
            trials.append(Trial(case, abs(change) > EXACT, condition=True))
        if normalised:
            change = renyi_entropy(high, alpha) - renyi_entropy(low, alpha)
            numbers[f"normalised, alpha = {alpha:g}: change from k = 1/3 to 2"] = change
            numbers[f"normalised, alpha = {alpha:g}: measured - Marchenko-Pastur"] = renyi_entropy(
                low, alpha
            ) - predicted_renyi(alpha, n, r)
            case = f"n = {n}, r = {r}: normalised H_{alpha:g} changes by {change:.1e} from k = 1/3 to 2"
            trials.append(Trial(case, abs(change) > EXACT))
    return conclude(
        Statement(
            name="Equation 18",
            paper="TTR",
            claim="Initial variance and rank both shape the geometry, measured by H'_alpha of A^T A.",
            conditions="raw entropies, where the variance acts as the scale s^2 k; normalised ones depend on "
            "r and r/n alone",
            why_it_matters="Changing the variance (or alpha) changes the effective learning rate. Only the "
            "rank changes the shape.",
        ),
        trials,
        numbers,
    )


def figure_3_is_shannon(
    rng: np.random.Generator,
    *,
    points: Sequence[tuple[int, float]] = ((4, 0.01), (64, 1 / 3), (256, 1.5)),
    n: int = 1024,
) -> Verdict:
    """TTR Figure 3, the expression of the released script (read, not run) against the entropy of a drawn A.

    Args:
        rng: Source of A.
        points: (r, k), from the figure's grid.
        n: in_features.
    """
    trials, numbers = [], {}
    for r, k in points:
        values = adapter_eigenvalues(draw_adapter(rng, r, n, k), scaling=1.0)
        script, entropy = figure3_script_shannon(r, k=k), raw_shannon(values)
        numbers[f"r = {r}, k = {k:.3g}: raw Shannon"] = entropy
        numbers[f"r = {r}, k = {k:.3g}: by Marchenko-Pastur"] = predicted_raw_shannon(n, r, k=k, scaling=1.0)
        numbers[f"r = {r}, k = {k:.3g}: script / 1e10"] = script / 1e10
        numbers[f"r = {r}, k = {k:.3g}: log trace"] = math.log(float(values.sum()))
        trials.append(
            Trial(
                f"r = {r}, k = {k:.3g}: the script gives {script:.3g}, the entropy is {entropy:.3g}, the log "
                f"of the trace {math.log(float(values.sum())):.3g}",
                # The entropy of one draw is within a few percent of its mean; the script is 1e10 times off.
                abs(script - entropy) < 0.2 * (1 + abs(entropy)),
            )
        )
    return conclude(
        Statement(
            name="Figure 3",
            paper="TTR",
            claim="The figure shows the Shannon entropy H'_1 over rank and variance.",
            conditions="never: it shows 1e10 log(k r), the log of the trace; its axes do not show its grid",
            why_it_matters="The picture that entropy grows with rank and variance is one of scale; the "
            "normalised H_1 is log r - r/(2n) and knows no variance.",
        ),
        trials,
        numbers,
    )

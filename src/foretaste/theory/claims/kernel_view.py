"""Claims of Malladi et al. 2023 on kernels, optimisers and solvers: sections 3 to 6, App. A and C."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from foretaste.theory.asymmetric import decompose_asymmetric, fit_asymmetric
from foretaste.theory.claims.infinite_width import lora_kernel_change
from foretaste.theory.claims.probes import EXACT, SHRINKS, gram, relative
from foretaste.theory.claims.verdict import Statement, Trial, Verdict, conclude
from foretaste.theory.criteria import fixed_features, linearisation_share
from foretaste.theory.flow import largest_rate
from foretaste.theory.layout import Floats
from foretaste.theory.predictor import predict
from foretaste.theory.regression import decompose, fit_ridge, solve
from foretaste.theory.sign_descent import descend_by_sign, logistic_slope


def regression_is_training(rng: np.random.Generator, *, steps: Sequence[int] = (3, 20000)) -> Verdict:
    """Malladi section 3.2: kernel regression is equivalent to training, on a linear model and the l2 loss.

    Args:
        rng: Source of the features.
        steps: Of gradient descent on the parameters; the last is long enough to converge.
    """
    basis, _ = np.linalg.qr(rng.normal(size=(40, 8)))
    features = np.sqrt(rng.uniform(1.0, 4.0, 8))[:, None] * basis.T  # eigenvalues of K in [1, 4]
    labels = rng.choice([-1, 1], size=8)
    test = rng.normal(size=(5, 40))
    d = decompose(features @ features.T)
    fit = fit_ridge(d, labels, regularisation=0.0)
    regressed = predict(fit, test @ features.T)
    rate = 0.5 * largest_rate(d)
    trials, numbers = [], {}
    for count in steps:
        theta = np.zeros(40)
        for _ in range(count):
            theta -= rate / 8 * features.T @ (features @ theta - labels)
        error = relative(test @ theta, regressed)
        numbers[f"{count} steps: relative difference"] = error
        trials.append(
            Trial(
                f"{count} steps: trained and regressed outputs differ by {error:.1e}",
                error < EXACT,
                count > 1000,
            )
        )
    return conclude(
        Statement(
            name="Section 3.2 (regression = training)",
            paper="Malladi",
            claim="With kernel behaviour, solving the kernel regression is equivalent to training.",
            conditions="the squared loss, (S)GD, and training to convergence; a run that stops earlier is a "
            "spectral filter of its own (T14)",
            why_it_matters="Predict a run of t steps with the filter of t steps, not with ridge regression.",
        ),
        trials,
        numbers,
    )


def sign_kernel_is_the_analog(
    rng: np.random.Generator, *, cases: Sequence[tuple[int, int]] = ((1, 1), (2, 1), (1, 3))
) -> Verdict:
    """Malladi Definition 4.2 and Theorem 4.3: SignGD of a linear model against its A-SignGD kernel.

    Args:
        rng: Source of the features.
        cases: (batch, outputs).
    """
    rows, width, rate, steps = 6, 15, 0.01, 30
    trials, numbers = [], {}
    for batch, outputs in cases:
        phi, test = rng.normal(size=(rows, outputs, width)), rng.normal(size=(4, outputs, width))
        labels, order = rng.integers(0, 2, size=rows), rng.integers(0, rows, size=(steps, batch))
        theta, predicted = np.zeros(width), np.zeros((4, outputs))
        for step in order:
            chi = np.array([_slope(phi[i] @ theta, int(labels[i])) for i in step])
            theta -= rate * np.sign(np.einsum("bc,bcp->p", chi, phi[step]))
            # Theorem 4.3, output by output and example by example.
            signs = np.einsum("bc,bcp->p", np.sign(chi), np.sign(phi[step])) / batch
            predicted -= rate * test @ signs
        if (batch, outputs) == (1, 1):
            y = 2 * labels - 1
            K = phi[:, 0] @ np.sign(phi[:, 0]).T
            fit = descend_by_sign(K, y, order[:, 0], np.full(steps, rate), slope=logistic_slope)
            predicted = predict(fit, test[:, 0] @ np.sign(phi[:, 0]).T)[:, None]
        error = relative(predicted, test @ theta)
        numbers[f"batch {batch}, {outputs} outputs: relative error"] = error
        trials.append(
            Trial(
                f"batch {batch}, {outputs} outputs, {steps} steps: the kernel's outputs are {error:.1e} off",
                error < EXACT,
                condition=(batch, outputs) == (1, 1),
            )
        )
    return conclude(
        Statement(
            name="Theorem 4.3 (A-SignGD)",
            paper="Malladi",
            claim="Under kernel behaviour SignGD follows -eta sign(chi) K^(A-SignGD).",
            conditions="batch 1 and one output (a margin of two classes): a sum's sign is no sum of signs",
            why_it_matters="For Adam with batches, or more than two classes, no kernel of pairs predicts the "
            "run; use the margin and the first steps only.",
        ),
        trials,
        numbers,
    )


def _slope(scores: Floats, label: int) -> Floats:
    """Slope of the logistic loss of one output, or of the cross-entropy of several."""
    if scores.size == 1:
        y = 2 * label - 1
        return np.asarray(-y / (1 + np.exp(y * scores)))
    p = np.exp(scores - scores.max())
    p = p / p.sum()
    p[label] -= 1
    return np.asarray(p)


def sign_kernels_of_lora(
    rng: np.random.Generator, *, kinds: Sequence[str] = ("SGD", "A-SignGD", "SignGD")
) -> Verdict:
    """Malladi Definition 4.4 on LoRA: the kernel at B = 0 against the one at B = 1e-12."""
    n, m, r = 16, 5, 4
    x, delta = rng.normal(size=(3, n)), rng.normal(size=(3, m))
    A, direction = rng.normal(size=(r, n)) / np.sqrt(r), rng.normal(size=(m, r))
    trials, numbers = [], {}
    for kind in kinds:
        kernels = []
        for size in (0.0, 1e-12):
            of_b = np.einsum("im,ir->imr", delta, x @ A.T).reshape(3, -1)
            of_a = np.einsum("ir,in->irn", delta @ (size * direction), x).reshape(3, -1)
            g = np.concatenate([of_b, of_a], axis=1)
            rows = g if kind != "SignGD" else np.sign(g)
            columns = g if kind == "SGD" else np.sign(g)
            kernels.append(rows @ columns.T)
        jump = relative(kernels[1], kernels[0])
        numbers[f"{kind}: relative jump"] = jump
        trials.append(
            Trial(
                f"{kind}, r = {r}: from B = 0 to 1e-12 the kernel changes by {jump:.1e}",
                jump < 1e-9,
                kind != "SignGD",
            )
        )
    return conclude(
        Statement(
            name="Definition 4.4 (SignGD kernel of LoRA)",
            paper="Malladi",
            claim="The symmetric SignGD kernel at initialisation stands in for the A-SignGD kernel.",
            conditions="the gradients are nonzero; for LoRA at B = 0 those of A are exactly 0, and the "
            "symmetric kernel jumps as soon as B moves, while the SGD and A-SignGD kernels do not",
            why_it_matters="Leave A out of symmetric sign kernels of adapters, or do not use them.",
        ),
        trials,
        numbers,
    )


def natural_tasks_are_lazy(
    rng: np.random.Generator,
    *,
    decays: Sequence[float] = (0.5, 1.0),
    widths: tuple[int, int] = (64, 1024),
    draws: int = 20,
) -> Verdict:
    """Malladi Theorem 5.5 / C.5, as far as App. C.5 shows it: one step of a linear network after one of muP.

    Args:
        rng: Source of the networks.
        decays: d; the output derivative at the start of fine-tuning is width^-d, the hypothesis is d > 0.
        widths: A factor of 16 apart.
        draws: Networks averaged over.
    """
    trials, numbers = [], {}
    for decay in decays:
        ratios = [float(np.median([_second_order(rng, n, n**-decay) for _ in range(draws)])) for n in widths]
        numbers[f"chi = n^-{decay:g}: second order / first order at width {widths[1]}"] = ratios[1]
        trials.append(
            Trial(
                f"chi = n^-{decay:g}: second order / first order {ratios[0]:.2e} at width {widths[0]}, "
                f"{ratios[1]:.2e} at {widths[1]}",
                ratios[1] < SHRINKS**2 * ratios[0],
                condition=decay > 0,
            )
        )
    return conclude(
        Statement(
            name="Theorem 5.5 (linear example)",
            paper="Malladi",
            claim="On a task that is natural in the infinite-width limit, fine-tuning is linear in its step.",
            conditions="checked for one step of the three-layer linear network of App. C.5, chi -> 0; the "
            "general theorem is about limits that no finite computation reaches",
            why_it_matters="The kernel predicts fine-tuning of a task that the model nearly solves already; "
            "with a fresh head (chi of order 1) it need not.",
        ),
        trials,
        numbers,
    )


def _second_order(rng: np.random.Generator, n: int, chi: float) -> float:
    """|V dW dU xi| over |the kernel's part| in the first step of fine-tuning, rates of muP (Table 10)."""
    U, W, V = rng.normal(size=(n, 4)), rng.normal(size=(n, n)) / math.sqrt(n), rng.normal(size=n) / n
    first, second, probe = (xi / np.linalg.norm(xi) for xi in rng.normal(size=(3, 4)))

    def step(U: Floats, W: Floats, xi: Floats, slope: float) -> tuple[Floats, Floats]:
        return -n * slope * np.outer(W.T @ V, xi), -slope * np.outer(V, U @ xi)

    dU, dW = step(U, W, first, 1.0)  # pre-training: one step with an output derivative of order 1
    U, W = U + dU, W + dW
    dU, dW = step(U, W, second, chi)
    linear = V @ (dW @ U @ probe) + V @ (W @ dU @ probe)
    return float(abs(V @ (dW @ (dU @ probe))) / abs(linear))


def multipliers_are_free(
    rng: np.random.Generator,
    *,
    powers: Sequence[tuple[str, int]] = (("SGD", 2), ("SignGD", 1)),
    gamma: float = 3.0,
) -> Verdict:
    """Malladi Lemma C.6: multiplier times gamma, initialisation over gamma, rate over gamma^p.

    Args:
        rng: Source of the network.
        powers: (optimiser, p).
        gamma: Any positive number.
    """
    x, y = rng.normal(size=(6, 4)), rng.normal(size=6)
    M, V = rng.normal(size=(5, 4)) / 2, rng.normal(size=5) / np.sqrt(5)

    def trained(optimiser: str, multiplier: float, start: Floats, rate: float) -> Floats:
        W: Floats = start.copy()
        for _ in range(20):
            hidden = np.tanh(multiplier * x @ W.T)
            slope = (hidden @ V - y)[:, None] * V * (1 - hidden**2)
            gradient = multiplier * slope.T @ x
            W = W - rate * (gradient if optimiser == "SGD" else np.sign(gradient))
        return np.asarray(np.tanh(multiplier * x @ W.T) @ V)

    trials, numbers = [], {}
    for optimiser, power in powers:
        plain = trained(optimiser, 1.0, M, 0.02)
        error = relative(trained(optimiser, gamma, M / gamma, 0.02 / gamma**power), plain)
        numbers[f"{optimiser}, rate / gamma^{power}: relative difference"] = error
        trials.append(
            Trial(
                f"{optimiser}, 20 steps, rate / gamma^{power}: outputs differ by {error:.1e}", error < EXACT
            )
        )
    return conclude(
        Statement(
            name="Lemma C.6",
            paper="Malladi",
            claim="A multiplier gamma is undone by start / gamma and rate / gamma^2 (SGD) or gamma (Adam).",
            conditions="exactly so, without weight decay and with Adam's epsilon left out",
            why_it_matters="LoRA's scaling s is such a multiplier: s^2 in the rate of SGD, s in Adam's.",
        ),
        trials,
        numbers,
    )


def growing_ranks_are_lazy(
    rng: np.random.Generator,
    *,
    rank: Callable[[int], int] = lambda n: n // 8,
    widths: tuple[int, int] = (128, 2048),
) -> Verdict:
    """Malladi App. C.6: LoRA with k = alpha n has fixed features as the width grows."""
    changes = [lora_kernel_change(rng, n, rank(n), move=1.0, train_a=True) for n in widths]
    text = f"r = {rank(widths[0])} at width {widths[0]}: the kernel changes by {changes[0]:.2g} of itself"
    return conclude(
        Statement(
            name="Appendix C.6",
            paper="Malladi",
            claim="LoRA with a rank in proportion to the width exhibits kernel behaviour.",
            conditions="as stated, in the limit: the change falls with the width; r = 8 of any width is not "
            "covered, and there the change grows",
            why_it_matters="The theorem does not speak of the ranks that people use.",
        ),
        [
            Trial(
                f"{text}; r = {rank(widths[1])} at width {widths[1]}: by {changes[1]:.2g}",
                changes[1] < SHRINKS * changes[0],
            )
        ],
        {f"relative change at width {n}": c for n, c in zip(widths, changes, strict=True)},
    )


def asymmetric_system_is_regression(
    rng: np.random.Generator, *, kinds: Sequence[str] = ("symmetric", "asymmetric", "singular")
) -> Verdict:
    """Malladi App. A.3: the system of He et al. 2022 solves the kernel regression, ridge 1/gamma."""
    features = rng.normal(size=(12, 30))
    y = rng.choice([-1, 1], size=12)
    trials, numbers = [], {}
    for kind in kinds:
        K = features @ (features if kind == "symmetric" else np.sign(features)).T / 30
        d = decompose_asymmetric(K)
        gamma = 1.0 / d.values[5] if kind == "singular" else 1.0
        fit = fit_asymmetric(d, y, gamma=gamma)
        if kind == "symmetric":
            wanted = solve(decompose(K), y.astype(np.float64), 1.0)
        else:
            wanted = np.asarray(np.linalg.solve(K + np.eye(12) / gamma, y), dtype=np.float64)
        error = relative(fit.coefficients, wanted)
        numbers[f"{kind} kernel: distance from the ridge"] = error
        gap = abs(1.0 / gamma - fit.nearest_singular_value) / float(d.values[0])
        numbers[f"{kind} kernel: distance of 1/gamma from a singular value"] = gap
        trials.append(
            Trial(
                f"{kind} kernel of 12 rows: beta is {error:.1e} from (K + I/gamma)^-1 y, condition number "
                f"{fit.condition:.2g}",
                error < 1e-9,
                condition=kind == "symmetric",
            )
        )
    return conclude(
        Statement(
            name="Appendix A.3 (asymmetric solver)",
            paper="Malladi",
            claim="The system [[I/gamma, H], [H^T, I/gamma]] solves the regression on an asymmetric kernel.",
            conditions="a symmetric positive semi-definite kernel, where it is a ridge; else indefinite, "
            "and singular where 1/gamma meets a singular value of K",
            why_it_matters="A bad A-SignGD score may be the solver's: look at the condition number, or use "
            "least squares.",
        ),
        trials,
        numbers,
    )


def features_are_fixed(rng: np.random.Generator, *, factors: Sequence[float] = (1.1, 2.9, -0.9)) -> Verdict:
    """Malladi Table 1 and 6: mean |K1 - K0| / |K0| below 2 means that features stayed fixed.

    Args:
        rng: Source of K0.
        factors: K1 = factor K0.
    """
    before = gram(rng.normal(size=(4, 6)))
    trials, numbers = [], {}
    for factor in factors:
        found = fixed_features(before, factor * before)
        moved = relative(factor * before, before)
        numbers[f"K1 = {factor:g} K0: the paper's distance"] = found.paper_distance
        numbers[f"K1 = {factor:g} K0: alignment"] = found.alignment
        trials.append(
            Trial(
                f"K1 = {factor:g} K0: distance {found.paper_distance:.2g} passes, alignment "
                f"{found.alignment:.2g}, best scale {found.best_scale:.2g}",
                not found.paper_holds or moved < 1.0,
                condition=found.alignment > 0.9 and 0.5 < found.best_scale < 2.0,
            )
        )
    undefined = linearisation_share(0.6, 0.7, 0.7)
    numbers["linearisation share is undefined where fine-tuning gained nothing"] = float(
        math.isnan(undefined)
    )
    return conclude(
        Statement(
            name="Table 1 (fixed features)",
            paper="Malladi",
            claim="A mean relative distance of the kernels below 2 shows fixed features.",
            conditions="the alignment is near 1 and the best scale near 1 as well; by itself the distance "
            "passes a tripled kernel and one of opposite sign",
            why_it_matters="Before trusting a prediction ask for alignment and scale, not for that distance.",
        ),
        trials,
        numbers,
    )

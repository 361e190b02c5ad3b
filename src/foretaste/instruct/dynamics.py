"""Training on responses, seen from their log-likelihoods and the margins of requests alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from foretaste.theory.function_space import Optimiser, Tangent, descend

Float = npt.NDArray[np.float64]


def saturation(gained: Float, likelihood: Float, tokens: Float) -> Float:
    """How much of a response's first push is left when its linearised log-likelihood has gained something.

    A log-likelihood stays below 0, which its linearisation does not know. Each response is taken as n tokens
    of one probability p = exp(likelihood / n), whose log-odds are what moves linearly: the derivative of the
    log-likelihood with respect to them is n (1 - p), so that

        left = (1 - p_t) / (1 - p_0),   log-odds_t = log-odds_0 + gained / (n (1 - p_0)).

    It is 1 at the start, whatever the response.

    Args:
        gained: Linearised change of the log-likelihood, shape (N,).
        likelihood: Log-likelihood before training, below 0, shape (N,).
        tokens: n, shape (N,).
    """
    p = np.exp(likelihood / tokens)
    rest = -np.expm1(likelihood / tokens)
    odds = np.log(p) - np.log(rest)
    left: Float = expit(-(odds + gained / (tokens * rest))) / rest
    return left


def train_responses(
    tangent: Tangent,
    start: Float,
    tokens: Sequence[int],
    batches: Sequence[Sequence[int]],
    rates: Sequence[float],
    *,
    optimiser: Optimiser,
    clip: float | None,
) -> Float:
    """Outputs after training on the mean loss of response tokens, in batches of responses.

    The first step of SGD is exact to first order in the rate.

    Args:
        tangent: Between all rows and the N training rows, the first ones; one output each.
        start: Log-likelihoods of the training rows, then margins, shape (R,).
        tokens: Response tokens of the training rows.
        batches: Training rows of each step.
        rates: Learning rate of each step.
        optimiser: As in `theory.function_space.train`.
        clip: Largest norm of a gradient; None does not clip.

    Returns:
        Shape (R,): linearised log-likelihoods, then margins.
    """
    lengths = np.asarray(tokens, dtype=np.float64)
    lines = [np.asarray(batch) for batch in batches]

    def pull(step: int, now: Float) -> Float:
        rows = lines[step]
        left = saturation(now - start[rows], start[rows], lengths[rows])
        found: Float = -left / lengths[rows].sum()
        return found

    return descend(tangent, start, lines, rates, pull, optimiser=optimiser, clip=clip)

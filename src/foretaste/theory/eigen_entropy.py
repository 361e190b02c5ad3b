"""Renyi entropies of A^T A at initialisation (the TTR paper's Eq. 18 and Figure 3), by Marchenko-Pastur.

For the r nonzero eigenvalues of s^2 A^T A, with m_a = 2F1(-a, 1 - a; 2; r/n):

    raw         log(r (s^2 k)^a m_a) / (1 - a)
    normalised  log r + log(m_a) / (1 - a),    at a = 1: log r - r/(2n)

The normalised ones know neither k nor s: initial variance and scaling act on the size of the kernel alone.

In docs/theory.md: T12.
"""

from __future__ import annotations

import math

from foretaste.errors import UserError
from foretaste.theory.layout import at_least
from foretaste.theory.spectra import bulk, moment


def predicted_renyi(alpha: float, n: int, r: int) -> float:
    """Normalised Renyi entropy of A^T A, whatever the variance and the scaling.

    Args:
        alpha: Order, >= 0 or inf.
        n: Inputs of the layer.
        r: Rank, 1 .. n.

    Raises:
        UserError: r is not 1 .. n, or alpha is negative, NaN or too large (some hundreds) for its moment.
    """
    law = bulk(n, r, k=1.0, scaling=1.0)
    if alpha == math.inf:
        return math.log(r / law.upper)
    order = at_least(alpha, 0.0, "alpha")
    if order == 1:
        return math.log(r) - law.gamma / 2
    return math.log(r) + math.log(moment(order, n, r, k=1.0, scaling=1.0)) / (1 - order)


def predicted_raw_renyi(alpha: float, n: int, r: int, *, k: float, scaling: float) -> float:
    """Raw Renyi entropy of s^2 A^T A: Eq. 18 as written, with the scaling.

    Args:
        alpha: Order, >= 0 or inf, but not 1.
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.

    Raises:
        UserError: A size or number is out of its range, or alpha is 1.
    """
    law = bulk(n, r, k=k, scaling=scaling)
    if alpha == math.inf:
        return -math.log(law.upper)
    order = at_least(alpha, 0.0, "alpha")
    if order == 1:
        raise UserError(
            "the raw Renyi entropy diverges at alpha = 1", where="alpha", cure="Use predicted_raw_shannon."
        )
    return math.log(r * moment(order, n, r, k=k, scaling=scaling)) / (1 - order)


def predicted_raw_shannon(n: int, r: int, *, k: float, scaling: float) -> float:
    """-sum lambda log lambda of s^2 A^T A: -r s^2 k (log(s^2 k) + r/(2n)).

    It peaks in s^2 k at exp(-1 - r/(2n)), about 0.37, and falls with the rank for s^2 k > exp(-r/(2n)), where
    it is negative.

    Args:
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.
        scaling: s.

    Raises:
        UserError: A size or number is out of its range.
    """
    law = bulk(n, r, k=k, scaling=scaling)
    return -r * law.mean * (math.log(law.mean) + law.gamma / 2)


def figure3_script_shannon(r: int, *, k: float) -> float:
    """What the released script of the TTR paper's Figure 3 plots as Shannon entropy: 1e10 log(k r).

    It puts 1e-10 for 1 - alpha and 1 for alpha: the log of the trace, times 1e10. Read, not run.

    Args:
        r: Rank.
        k: n times the variance of A's entries.

    Raises:
        UserError: A number is not above 0.
    """
    rank, variance = at_least(r, 0.0, "r", strict=True), at_least(k, 0.0, "k", strict=True)
    return 1e10 * math.log(variance * rank)


def figure3_script_h2(n: int, r: int, *, k: float) -> float:
    """What the same script takes for H_2: log(n r sigma^4 (r + 2)), sigma^2 = k / n.

    The sum of the squared diagonal entries, without the off-diagonal ones that tr (A^T A)^2, in expectation
    sigma^4 n r (n + r + 1), also has, and with the sign of 1 / (1 - 2) left out. Read, not run.

    Args:
        n: Inputs of the layer.
        r: Rank, 1 .. n.
        k: n times the variance of A's entries.

    Raises:
        UserError: A size or number is out of its range.
    """
    law = bulk(n, r, k=k, scaling=1.0)
    return math.log(law.mean**2 * r * (r + 2) / n)

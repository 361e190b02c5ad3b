"""Random label flips on a predictor that is linear in the labels: moments, accuracy, draws.

With f(x) = offset(x) + S(x) Y (`flow.LinearPredictor`), a flip of row i from y_i to c moves the outputs of x
by D_i = S(x)_i (e_c - e_y_i), or by -2 S(x)_i y_i for labels -1 and +1, whatever the other rows do. The new
class c is uniform over the C - 1 others. Let p be the share of flipped rows and

    A = sum_i E[D_i D_i^T],   B = sum_i E[D_i] E[D_i]^T,   u = sum_i E[D_i].

* Each row flipped on its own with probability p:      mean f + p u,  covariance p A - p^2 B.
* Exactly m of N rows, every set alike, p = m/N:       mean f + p u,  covariance p A - (p^2 - k) B - k u u^T,
  k = p (1 - p) / (N - 1): two flips exclude each other a little.

For labels -1 and +1, A = B = 4 sum_i S_i^2 and u = -2 S Y, which gives 4 p (1 - p) sum_i S_i^2 and
4 p (1 - p) N/(N - 1) [sum_i S_i^2 - (S Y)^2 / N]. The moments are exact, without training and without draws.
Accuracy needs the distribution: normal (a sum of many small terms), or Monte Carlo over draws of flips.

Source: TTR paper, untargeted poisoning (its UPA); the formulas follow from the variance of a sum and of a
sample without replacement.

In docs/theory.md: T15.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from foretaste.errors import UserError
from foretaste.theory.flow import LinearPredictor, respond
from foretaste.theory.layout import Floats, Ints, Layout, classes_of, decide, one_hot, real


@dataclass(frozen=True, eq=False)
class FlipMoments:
    """Mean and covariance of outputs over random flips, for shares of shape R.

    Attributes:
        mean: Shape (*R, M) or (*R, M, C).
        covariance: Between the outputs of one example: the variance (*R, M) of a scalar output, or
            (*R, M, C, C).
        rows: Layout of the examples.
    """

    mean: Floats
    covariance: Floats
    rows: Layout

    @property
    def variance(self) -> Floats:
        """Variance of every output, shaped as the mean."""
        if self.rows.classes is None:
            return self.covariance
        diagonal: Floats = np.diagonal(self.covariance, axis1=-2, axis2=-1)
        return diagonal


@dataclass(frozen=True, eq=False)
class FlipDraws:
    """Draws of flips that are nested over the number of flips: one permutation a draw.

    Attributes:
        labels: Labels before any flip, shape (N,).
        other: The label that each row gets once it is flipped, shape (D, N).
        rank: Place of each row in the draw's permutation, shape (D, N): flipped if below the number of flips.
    """

    labels: Ints
    other: Ints
    rank: Ints


@dataclass(frozen=True, eq=False)
class AccuracyDraws:
    """Accuracy over draws of flips.

    Attributes:
        flips: Flipped rows m, shape (R,).
        accuracy: Of each draw, shape (R, D).
        mean: Over draws, shape (R,).
        sd: Standard deviation over draws (D - 1 in the denominator), shape (R,); NaN for one draw. The
            standard error of the mean is sd / sqrt(D); accuracies at different m share their draws.
    """

    flips: Ints
    accuracy: Floats
    mean: Floats
    sd: Floats


# --- moments --------------------------------------------------------------------------------------


def bernoulli_moments(predictor: LinearPredictor, labels: npt.ArrayLike, rate: npt.ArrayLike) -> FlipMoments:
    """Moments when each label is flipped on its own with a given probability (the TTR paper's code).

    Args:
        predictor: Linear in the training labels.
        labels: Before flips, shape (N,), see `layout`.
        rate: Probability of a flip in [0, 1], any shape R.

    Raises:
        UserError: A label is not a class, the sizes do not fit, or a rate is outside [0, 1].
    """
    share = _shares(rate)
    return _moments(predictor, labels, share, np.zeros_like(share))


def exact_moments(predictor: LinearPredictor, labels: npt.ArrayLike, flips: npt.ArrayLike) -> FlipMoments:
    """Moments when exactly m labels are flipped, every set of m rows alike (the package's default).

    Args:
        predictor: Linear in the training labels.
        labels: Before flips, shape (N,), see `layout`.
        flips: m, whole numbers in [0, N], any shape R.

    Raises:
        UserError: A label is not a class, the sizes do not fit, or a number of flips is out of range.
    """
    rows = predictor.layout.examples
    share = _numbers(flips, rows) / rows
    excluded = share * (1.0 - share) / max(rows - 1, 1)  # one row: the share is 0 or 1, so this is 0
    return _moments(predictor, labels, share, excluded)


def _moments(
    predictor: LinearPredictor, labels: npt.ArrayLike, share: Floats, excluded: Floats
) -> FlipMoments:
    y = one_vector(labels, predictor.layout)
    shifts, others = flip_shifts(predictor, y)
    mean_shift = shifts.sum(axis=-1) / others  # E[D_i], shape (M, A, N)
    stacked = shifts.reshape(*shifts.shape[:2], -1)
    a = stacked @ stacked.swapaxes(1, 2) / others
    b = mean_shift @ mean_shift.swapaxes(1, 2)
    total = mean_shift.sum(axis=-1)
    u = total[:, :, None] * total[:, None, :]
    p, k = share[..., None, None, None], excluded[..., None, None, None]
    covariance = p * a - (p * p - k) * b - k * u
    mean = respond(predictor, one_hot(y, predictor.layout)) + (
        share.reshape(*share.shape, *(1,) * len(predictor.rows.shape)) * total.reshape(predictor.rows.shape)
    )
    if predictor.layout.classes is None:
        # No flip and a flip of every row are certain; rounding must not leave a negative variance there.
        covariance = np.maximum(covariance[..., 0, 0], 0.0)
    return FlipMoments(mean, covariance, predictor.rows)


def flip_shifts(predictor: LinearPredictor, labels: Ints) -> tuple[Floats, int]:
    """How far one flip moves every output: D_i for every row and every new class.

    Args:
        predictor: Linear in the training labels.
        labels: Before flips, shape (N,).

    Returns:
        Shape (M, A, N, O): A = 1 and O = 1 for a scalar output; A = O = C else, with 0 at a row's own class.
        And the number of other classes, 1 or C - 1.
    """
    if predictor.layout.classes is None:
        return (-2.0 * predictor.smoother * labels)[:, None, :, None], 1
    rows = np.arange(predictor.layout.examples)
    own = predictor.smoother[:, :, rows, labels]
    return predictor.smoother - own[..., None], predictor.layout.classes - 1


# --- accuracy by the normal approximation -----------------------------------------------------------


def normal_accuracy(moments: FlipMoments, test_labels: npt.ArrayLike) -> Floats:
    """Expected accuracy of two classes if outputs were normal: the mean of Phi(y E f / sd f).

    Where the outputs do not vary, the decision of the mean counts.

    Args:
        moments: Of a scalar output, or of C = 2 outputs.
        test_labels: Shape (M,), see `layout`.

    Returns:
        Shape (*R,).

    Raises:
        UserError: There are more than two outputs, or a label does not fit.
    """
    y = one_vector(test_labels, moments.rows, "test_labels")
    if moments.rows.classes is None:
        mean, variance = moments.mean, moments.covariance
    elif moments.rows.classes == 2:
        mean = moments.mean[..., 1] - moments.mean[..., 0]
        c = moments.covariance
        variance = np.maximum(c[..., 0, 0] + c[..., 1, 1] - 2.0 * c[..., 0, 1], 0.0)
        y = 2 * y - 1
    else:
        raise UserError(
            f"the normal approximation in closed form is for two classes, got {moments.rows.classes}",
            where="moments",
            cure="Use sampled_normal_accuracy.",
        )
    certain = np.where(decide(mean, Layout(mean.shape[-1], None)) == y, 1.0, 0.0)
    z = np.divide(y * mean, np.sqrt(variance), out=np.zeros_like(mean), where=variance > 0)
    share: Floats = np.where(variance > 0, ndtr(z), certain).mean(axis=-1)
    return share


def sampled_normal_accuracy(
    moments: FlipMoments, test_labels: npt.ArrayLike, *, draws: int, rng: np.random.Generator
) -> Floats:
    """Expected accuracy of C classes if outputs were jointly normal, by sampling that normal.

    The same standard normal numbers serve every share, so differences between shares are paired.

    Args:
        moments: Of C >= 2 outputs.
        test_labels: Shape (M,).
        draws: Samples for each example, >= 1; the error is at most 0.5 / sqrt(draws M) (examples are
            sampled independently).
        rng: Source of the samples.

    Returns:
        Shape (*R,).

    Raises:
        UserError: The output is a scalar, a label does not fit, or `draws` is below 1.
    """
    classes = moments.rows.classes
    if classes is None:
        raise UserError("a scalar output needs no samples", where="moments", cure="Use normal_accuracy.")
    y = one_vector(test_labels, moments.rows, "test_labels")
    noise = rng.standard_normal((_draws(draws), moments.rows.examples, classes))
    values, vectors = np.linalg.eigh(moments.covariance)
    # Covariances are singular (one-hot targets sum to 1), so a root by eigenvalues, not by Cholesky.
    root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    shares = moments.mean.shape[:-2]
    accuracy = np.empty(shares)
    for at in np.ndindex(*shares):
        sampled = moments.mean[at] + np.einsum("mcd,kmd->kmc", root[at], noise)
        accuracy[at] = np.mean(decide(sampled, moments.rows) == y)
    return accuracy


# --- accuracy by draws of flips ----------------------------------------------------------------------


def flip_counts(rates: npt.ArrayLike, rows: int) -> Ints:
    """Number of flips at each rate: rate times rows, halves rounded up, as the package's attacks choose.

    Args:
        rates: Shares in [0, 1], any shape.
        rows: Eligible rows.

    Raises:
        UserError: A rate is outside [0, 1], or above 0 and too small for a single row.
    """
    share = _shares(rates)
    counts = np.floor(share * rows + 0.5).astype(np.int64)
    lost = (counts == 0) & (share > 0)
    if np.any(lost):
        raise UserError(
            f"a rate of {np.extract(lost, share)[0]:g} poisons none of the {rows} rows",
            where="rates",
            cure=f"The smallest rate that poisons a row here is {0.5 / max(rows, 1):.2g}.",
        )
    return counts


def draw_flips(
    labels: npt.ArrayLike, classes: int | None, *, draws: int, rng: np.random.Generator
) -> FlipDraws:
    """Draw permutations and new labels, once for all numbers of flips.

    Args:
        labels: Before flips, shape (N,): -1 and +1, or 0 .. C - 1.
        classes: C, or None for labels -1 and +1.
        draws: D >= 1.
        rng: Source of the draws.

    Raises:
        UserError: A label is not a class, or `draws` is below 1.
    """
    layout = Layout(np.shape(labels)[-1] if np.ndim(labels) else 0, classes)
    y = one_vector(labels, layout)
    shape = (_draws(draws), layout.examples)
    # The place of each row in a uniform permutation is itself a uniform permutation.
    rank = rng.permuted(np.broadcast_to(np.arange(layout.examples), shape), axis=1)
    if classes is None:
        other = np.broadcast_to(-y, shape)
    else:
        other = (y + rng.integers(1, classes, size=shape)) % classes
    return FlipDraws(y, other, rank)


def flipped_labels(draws: FlipDraws, flips: npt.ArrayLike) -> Ints:
    """Poisoned labels; the rows flipped at m are flipped, to the same class, at every larger number.

    Args:
        draws: From `draw_flips`.
        flips: m, whole numbers in [0, N], any shape R.

    Returns:
        Shape (*R, D, N).

    Raises:
        UserError: A number of flips is out of range.
    """
    m = _numbers(flips, draws.labels.size)
    return np.where(draws.rank < m[..., None, None], draws.other, draws.labels)


def drawn_accuracy(
    predictor: LinearPredictor, draws: FlipDraws, test_labels: npt.ArrayLike, flips: npt.ArrayLike
) -> AccuracyDraws:
    """Accuracy over draws of exactly m flips: no training, no normal approximation.

    Args:
        predictor: Linear in the training labels.
        draws: From `draw_flips` on the training labels.
        test_labels: Shape (M,), see `layout`.
        flips: m, whole numbers in [0, N], shape (R,), such as `flip_counts`.

    Raises:
        UserError: The sizes do not fit, a label is not a class, or a number of flips is out of range.
    """
    y = one_vector(test_labels, predictor.rows, "test_labels")
    m = np.asarray(_numbers(flips, draws.labels.size)).astype(np.int64)
    if m.ndim != 1:
        raise UserError(f"expected shape (R,), got {m.shape}", where="flips")
    accuracy = np.empty((m.size, draws.rank.shape[0]))
    # One rate at a time bounds memory by (D, M) outputs; all draws of a rate are one product.
    for at, count in enumerate(m):
        targets = one_hot(flipped_labels(draws, count), predictor.layout)
        accuracy[at] = np.mean(decide(respond(predictor, targets), predictor.rows) == y, axis=-1)
    sd = np.full(m.size, np.nan)
    if accuracy.shape[1] > 1:
        sd = accuracy.std(axis=1, ddof=1)
    return AccuracyDraws(m, accuracy, accuracy.mean(axis=1), sd)


# --- checks -----------------------------------------------------------------------------------------


def one_vector(labels: npt.ArrayLike, layout: Layout, name: str = "labels") -> Ints:
    """One vector of labels, checked.

    Args:
        labels: Shape (N,), see `layout`.
        layout: Of these examples.
        name: What errors call them.

    Raises:
        UserError: There are several vectors, the number does not fit, or one is not a class.
    """
    y = classes_of(labels, layout, name)
    if y.ndim != 1:
        raise UserError(f"expected one vector of {layout.examples} labels, got shape {y.shape}", where=name)
    return y


def _shares(rate: npt.ArrayLike) -> Floats:
    share = real(rate, "rate")
    outside = (share < 0) | (share > 1)
    if np.any(outside):
        raise UserError(
            f"expected shares in [0, 1], got {np.extract(outside, share)[0]:g}",
            where="rate",
            cure="One percent is 0.01.",
        )
    return share


def _numbers(flips: npt.ArrayLike, rows: int) -> Floats:
    m = real(flips, "flips")
    wrong = (m < 0) | (m > rows) | (m != np.floor(m))
    if np.any(wrong):
        first = np.extract(wrong, m)[0]
        raise UserError(f"expected whole numbers in [0, {rows}], got {first:g}", where="flips")
    return m


def _draws(draws: int) -> int:
    if draws < 1:
        raise UserError(f"expected at least 1 draw, got {draws}", where="draws")
    return draws

"""Choice of hyperparameters on validation rows, over the grids of Malladi et al. 2023, Table 4.

Every grid point is fitted on the training rows and scored on the validation rows; nothing here takes test
rows. The whole table comes back with the best fit, which `predictor.classify` or `svm.classify_svm` then
applies to test rows once.

Ties go to the strongest regularisation: the largest regularisation, then the smallest gamma (1/gamma acts as
a ridge), then the smallest f0 (the prediction divided by f0 stays nearest to the pre-trained model's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from foretaste.errors import UserError
from foretaste.theory.asymmetric import (
    AsymmetricFit,
    LeastSquaresFit,
    decompose_asymmetric,
    fit_asymmetric,
    fit_least_squares,
)
from foretaste.theory.layout import Ints, Layout, classes_of, training_matrix
from foretaste.theory.logistic import LogisticFit, fit_logistic
from foretaste.theory.predictor import KernelFit, classify
from foretaste.theory.regression import RidgeFit, decompose, fit_ridge
from foretaste.theory.svm import SvmFit, classify_svm, fit_svm

REGULARISATIONS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
"""Times ||K||_op: "Kernel regularization" of all three kernels (Malladi et al. 2023, Table 4)."""
POSITIVE_REGULARISATIONS = REGULARISATIONS[1:]
"""The same without 0, where the logistic loss may have no minimiser and the SVM's C would be infinite."""
SCALES = (10.0, 100.0, 1000.0, 10000.0, float("inf"))
"""f0; inf drops the pre-trained outputs: "f_0 scaling" of all three kernels (Table 4)."""
GAMMAS = (0.01, 0.1, 1.0, 10.0)
"""In units of 1 / kernel: "Kernel gamma" of the asymmetric kernel (Table 4). Its "Kernel c" is 1: f_s."""

Score: TypeAlias = Callable[[Ints, Ints], float]
"""(labels, predictions), each of shape (M,), to a number; larger is better."""

F = TypeVar("F")


@dataclass(frozen=True, eq=False)
class Rows:
    """Training or validation rows.

    Attributes:
        kernel: Against the training rows: (N, N) or (N, C, N, C), or for validation (M, N) or (M, C, N, C).
        labels: Shape (N,) or (M,), see `layout`.
        pretrained: f_PT of the rows, shape (rows,) or (rows, C); None where it plays no part.
    """

    kernel: npt.ArrayLike
    labels: npt.ArrayLike
    pretrained: npt.ArrayLike | None = None


@dataclass(frozen=True)
class GridPoint:
    """One setting; NaN where a solver has no such parameter.

    Attributes:
        regularisation: As the solver takes it.
        scale: f0.
        gamma: Of the asymmetric system.
    """

    regularisation: float
    scale: float = float("nan")
    gamma: float = float("nan")

    @property
    def strength(self) -> tuple[float, float, float]:
        """Larger is more strongly regularised, by the rule at the head of this file."""
        gamma, scale = (0.0 if np.isnan(x) else -x for x in (self.gamma, self.scale))
        return self.regularisation, gamma, scale


@dataclass(frozen=True)
class Scored:
    """One row of the table.

    Attributes:
        point: The setting.
        score: On the validation rows.
        warning: The solver's, such as a nearly singular system.
    """

    point: GridPoint
    score: float
    warning: str | None


@dataclass(frozen=True, eq=False)
class Selection(Generic[F]):
    """The chosen fit and how every other setting did.

    Attributes:
        fit: Of the best setting, on the training rows.
        best: Its row of the table.
        table: All settings, in the order of the grid.
    """

    fit: F
    best: Scored
    table: tuple[Scored, ...]


def accuracy(labels: Ints, predictions: Ints) -> float:
    """Share of rows whose prediction is the label."""
    return float(np.mean(labels == predictions))


def select_ridge(
    train: Rows,
    validation: Rows,
    *,
    regularisations: Sequence[float] = REGULARISATIONS,
    scales: Sequence[float] = SCALES,
    score: Score = accuracy,
) -> Selection[RidgeFit]:
    """Choose regularisation and f0 of `regression.fit_ridge`.

    Raises:
        UserError: An input is refused by the solver, a grid is empty, or a score is not finite.
    """
    decomposition = decompose(train.kernel)
    fits = (
        (
            GridPoint(strength, scale),
            fit_ridge(
                decomposition, train.labels, regularisation=strength, scale=scale, pretrained=train.pretrained
            ),
        )
        for strength in regularisations
        for scale in scales
    )
    return _select(fits, _validator(train, validation, score, _classifier(validation)))


def select_logistic(
    train: Rows,
    validation: Rows,
    *,
    regularisations: Sequence[float] = POSITIVE_REGULARISATIONS,
    score: Score = accuracy,
) -> Selection[LogisticFit]:
    """Choose the regularisation of `logistic.fit_logistic`; f_PT is the offset where it is given.

    Raises:
        UserError: An input is refused by the solver, the grid is empty, or a score is not finite.
    """
    decomposition = decompose(train.kernel)
    fits = (
        (
            GridPoint(strength),
            fit_logistic(decomposition, train.labels, regularisation=strength, pretrained=train.pretrained),
        )
        for strength in regularisations
    )
    return _select(fits, _validator(train, validation, score, _classifier(validation)))


def select_svm(
    train: Rows,
    validation: Rows,
    *,
    regularisations: Sequence[float] = POSITIVE_REGULARISATIONS,
    score: Score = accuracy,
) -> Selection[SvmFit]:
    """Choose the regularisation of `svm.fit_svm`; f_PT plays no part.

    Raises:
        UserError: An input is refused by the solver, the grid is empty, or a score is not finite.
    """
    fits = (
        (GridPoint(strength), fit_svm(train.kernel, train.labels, regularisation=strength))
        for strength in regularisations
    )
    return _select(
        fits, _validator(train, validation, score, lambda fit: classify_svm(fit, validation.kernel))
    )


def select_asymmetric(
    train: Rows,
    validation: Rows,
    *,
    regularisations: Sequence[float] = REGULARISATIONS,
    scales: Sequence[float] = SCALES,
    gammas: Sequence[float] = GAMMAS,
    score: Score = accuracy,
) -> Selection[AsymmetricFit]:
    """Choose regularisation, gamma and f0 of `asymmetric.fit_asymmetric`, the paper's system.

    Settings whose system is nearly singular stay in the running, as in the paper, and carry their warning.

    Raises:
        UserError: An input is refused by the solver, a grid is empty, or a score is not finite.
    """
    fits = (
        (
            GridPoint(strength, scale, gamma),
            fit_asymmetric(
                decomposition, train.labels, gamma=gamma, scale=scale, pretrained=train.pretrained
            ),
        )
        for strength in regularisations
        for decomposition in [decompose_asymmetric(train.kernel, strength)]
        for gamma in gammas
        for scale in scales
    )
    return _select(
        fits, _validator(train, validation, score, _classifier(validation)), lambda fit: fit.warning
    )


def select_least_squares(
    train: Rows,
    validation: Rows,
    *,
    regularisations: Sequence[float] = REGULARISATIONS,
    scales: Sequence[float] = SCALES,
    score: Score = accuracy,
) -> Selection[LeastSquaresFit]:
    """Choose regularisation (times ||K||_op^2) and f0 of `asymmetric.fit_least_squares`.

    Raises:
        UserError: An input is refused by the solver, a grid is empty, or a score is not finite.
    """
    decomposition = decompose_asymmetric(train.kernel)
    fits = (
        (
            GridPoint(strength, scale),
            fit_least_squares(
                decomposition, train.labels, regularisation=strength, scale=scale, pretrained=train.pretrained
            ),
        )
        for strength in regularisations
        for scale in scales
    )
    return _select(fits, _validator(train, validation, score, _classifier(validation)))


def _classifier(validation: Rows) -> Callable[[KernelFit], Ints]:
    return lambda fit: classify(fit, validation.kernel, validation.pretrained)


def _validator(
    train: Rows, validation: Rows, score: Score, classifier: Callable[[F], Ints]
) -> Callable[[F], float]:
    layout: Layout = training_matrix(train.kernel)[1]
    given = np.asarray(validation.labels)
    labels = classes_of(given, layout.of(given.size), "validation labels")

    def validate(fit: F) -> float:
        predictions = classifier(fit)
        if predictions.shape != labels.shape:
            raise UserError(
                f"expected one prediction for each of {labels.size} validation labels, "
                f"got shape {predictions.shape}",
                where="validation",
            )
        return score(labels, predictions)

    return validate


def _select(
    fits: Iterable[tuple[GridPoint, F]],
    validate: Callable[[F], float],
    warn: Callable[[F], str | None] = lambda _: None,
) -> Selection[F]:
    table: list[Scored] = []
    chosen: tuple[tuple[float, ...], Scored, F] | None = None
    for point, fit in fits:
        row = Scored(point, validate(fit), warn(fit))
        if not np.isfinite(row.score):
            raise UserError(f"the score at {point} is {row.score}", where="score")
        table.append(row)
        rank = (row.score, *point.strength)
        if chosen is None or rank > chosen[0]:
            chosen = rank, row, fit
    if chosen is None:
        raise UserError("expected at least one grid point, got none", where="grid")
    return Selection(fit=chosen[2], best=chosen[1], table=tuple(table))

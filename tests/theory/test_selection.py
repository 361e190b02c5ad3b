"""The choice on validation rows against brute force, and its rule for ties."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.theory import selection as sel
from foretaste.theory.asymmetric import decompose_asymmetric, fit_asymmetric, fit_least_squares
from foretaste.theory.logistic import fit_logistic
from foretaste.theory.predictor import classify, predict
from foretaste.theory.regression import decompose
from foretaste.theory.svm import classify_svm, fit_svm

INF = float("inf")


def rows(classes: int | None, signed: bool = False) -> tuple[sel.Rows, sel.Rows]:
    """A noisy task on which settings differ: training and validation rows."""
    g = np.random.default_rng(11)
    n, m, width = 20, 30, 25
    middle = () if classes is None else (classes,)
    x, z = g.normal(size=(n, *middle, width)), g.normal(size=(m, *middle, width))
    w = g.normal(size=width) * np.logspace(0, -1, width)

    def labels(rows: np.ndarray) -> np.ndarray:
        scores = rows @ w + 2.0 * g.normal(size=rows.shape[:-1])
        return np.where(scores > 0, 1, -1) if classes is None else np.argmax(scores, axis=1)

    other = np.sign(x) if signed else x
    train, validation = (np.tensordot(a, other, axes=(-1, -1)) for a in (x, z))
    return (
        sel.Rows(train, labels(x), 3 * g.normal(size=(n, *middle))),
        sel.Rows(validation, labels(z), 3 * g.normal(size=(m, *middle)) + z @ w),
    )


def brute_force(table: dict[tuple[float, ...], float]) -> tuple[float, ...]:
    """Best score; of equals the largest regularisation, then the smallest gamma, then the smallest f0."""
    best = max(table.values())
    equals = [key for key, value in table.items() if value == best]
    return min(equals, key=lambda key: (-key[0], *key[1:]))


def test_the_grids_are_those_of_table_4() -> None:
    assert sel.REGULARISATIONS == (0, 0.001, 0.01, 0.1, 1)
    assert sel.SCALES == (10, 100, 1000, 10000, INF)
    assert sel.GAMMAS == (0.01, 0.1, 1, 10)
    assert sel.POSITIVE_REGULARISATIONS == (0.001, 0.01, 0.1, 1)


@pytest.mark.parametrize("classes", [None, 3])
def test_ridge_by_brute_force(classes: int | None) -> None:
    train, validation = rows(classes)
    size = np.asarray(train.pretrained).size
    big, wide = np.asarray(train.kernel).reshape(size, size), np.asarray(validation.kernel).reshape(-1, size)
    y = np.asarray(train.labels) if classes is None else np.eye(classes)[np.asarray(train.labels)]
    table = {}
    for strength, scale in itertools.product(sel.REGULARISATIONS, sel.SCALES):
        target = y if scale == INF else scale * y - train.pretrained
        inverse = np.linalg.pinv(big + strength * np.linalg.norm(big, 2) * np.eye(size), rcond=1e-13)
        scores = (wide @ inverse @ target.ravel()).reshape(np.shape(validation.pretrained))
        scores = scores if scale == INF else scores + validation.pretrained
        decided = np.where(scores > 0, 1, -1) if classes is None else scores.argmax(axis=1)
        table[strength, scale] = float(np.mean(decided == validation.labels))
    assert len(set(table.values())) > 3  # the settings do differ
    chosen = sel.select_ridge(train, validation)
    assert {(s.point.regularisation, s.point.scale): s.score for s in chosen.table} == table
    assert (chosen.best.point.regularisation, chosen.best.point.scale) == brute_force(table)
    assert (chosen.fit.regularisation, chosen.fit.scale) == brute_force(table)
    again = classify(chosen.fit, validation.kernel, validation.pretrained)
    assert np.mean(again == validation.labels) == chosen.best.score == max(table.values())


@pytest.mark.parametrize("classes", [None, 3])
def test_asymmetric_by_brute_force(classes: int | None) -> None:
    train, validation = rows(classes, signed=True)
    table, warnings = {}, {}
    for strength, gamma, scale in itertools.product(sel.REGULARISATIONS, sel.GAMMAS, sel.SCALES):
        fit = fit_asymmetric(
            decompose_asymmetric(train.kernel, strength),
            train.labels,
            gamma=gamma,
            scale=scale,
            pretrained=train.pretrained,
        )
        decided = classify(fit, validation.kernel, validation.pretrained)
        table[strength, gamma, scale] = float(np.mean(decided == validation.labels))
        warnings[strength, gamma, scale] = fit.warning
    chosen = sel.select_asymmetric(train, validation)
    points = {(s.point.regularisation, s.point.gamma, s.point.scale): s for s in chosen.table}
    assert {key: s.score for key, s in points.items()} == table
    assert {key: s.warning for key, s in points.items()} == warnings
    best = brute_force(table)
    assert (chosen.best.point.regularisation, chosen.fit.gamma, chosen.fit.scale) == best


def test_least_squares_by_brute_force() -> None:
    train, validation = rows(None, signed=True)
    table = {}
    for strength, scale in itertools.product(sel.REGULARISATIONS, sel.SCALES):
        fit = fit_least_squares(
            decompose_asymmetric(train.kernel),
            train.labels,
            regularisation=strength,
            scale=scale,
            pretrained=train.pretrained,
        )
        decided = classify(fit, validation.kernel, validation.pretrained)
        table[strength, scale] = float(np.mean(decided == validation.labels))
    chosen = sel.select_least_squares(train, validation)
    assert {(s.point.regularisation, s.point.scale): s.score for s in chosen.table} == table
    assert (chosen.fit.regularisation, chosen.fit.scale) == brute_force(table)


@pytest.mark.parametrize("classes", [None, 3])
def test_logistic_by_brute_force(classes: int | None) -> None:
    train, validation = rows(classes)
    d = decompose(train.kernel)
    fits = {
        (s,): fit_logistic(d, train.labels, regularisation=s, pretrained=train.pretrained)
        for s in sel.POSITIVE_REGULARISATIONS
    }
    table = {
        key: float(np.mean(classify(fit, validation.kernel, validation.pretrained) == validation.labels))
        for key, fit in fits.items()
    }
    chosen = sel.select_logistic(train, validation)
    assert {(s.point.regularisation,): s.score for s in chosen.table} == table
    assert (chosen.fit.regularisation,) == brute_force(table)
    assert predict(chosen.fit, train.kernel, train.pretrained) == pytest.approx(
        predict(fits[brute_force(table)], train.kernel, train.pretrained)
    )


@pytest.mark.parametrize("classes", [None, 3])
def test_svm_by_brute_force(classes: int | None) -> None:
    train, validation = rows(classes)
    fits = {(s,): fit_svm(train.kernel, train.labels, regularisation=s) for s in sel.POSITIVE_REGULARISATIONS}
    table = {
        key: float(np.mean(classify_svm(fit, validation.kernel) == validation.labels))
        for key, fit in fits.items()
    }
    chosen = sel.select_svm(train, validation)
    assert {(s.point.regularisation,): s.score for s in chosen.table} == table
    assert (chosen.fit.regularisation,) == brute_force(table)


# --- rules ---------------------------------------------------------------------------------------


def test_ties_go_to_the_strongest_regularisation_in_any_order() -> None:
    train, validation = rows(None, signed=True)

    def same(labels: np.ndarray, predictions: np.ndarray) -> float:
        return 0.5

    grids = {"regularisations": (0.1, 1.0, 0.0), "scales": (INF, 10.0, 100.0)}
    for turn in (1, -1):
        turned = {name: values[::turn] for name, values in grids.items()}
        best = sel.select_least_squares(train, validation, score=same, **turned).best.point
        assert (best.regularisation, best.scale) == (1.0, 10.0)
        best = sel.select_asymmetric(
            train, validation, score=same, gammas=(1.0, 0.1, 10.0)[::turn], **turned
        ).best.point
        assert (best.regularisation, best.gamma, best.scale) == (1.0, 0.1, 10.0)


def test_the_order_of_the_rule() -> None:
    weakest_first = [
        sel.GridPoint(0.1, 10.0, 0.01),
        sel.GridPoint(1.0, 10.0, 10.0),
        sel.GridPoint(1.0, INF, 1.0),
        sel.GridPoint(1.0, 100.0, 1.0),
    ]
    shuffled = [weakest_first[i] for i in (2, 0, 3, 1)]
    assert sorted(shuffled, key=lambda point: point.strength) == weakest_first
    assert sel.GridPoint(1.0).strength > sel.GridPoint(0.1).strength  # no f0, no gamma


def test_a_better_score_beats_strength_and_the_score_decides_what_is_better() -> None:
    train, validation = rows(None)

    def recall(labels: np.ndarray, predictions: np.ndarray) -> float:
        return float(np.mean(predictions[labels == 1] == 1))

    def negated(labels: np.ndarray, predictions: np.ndarray) -> float:
        return -recall(labels, predictions)

    up, down = (sel.select_ridge(train, validation, score=score) for score in (recall, negated))
    values = [s.score for s in up.table]
    assert max(values) > min(values)
    assert (up.best.score, -down.best.score) == (max(values), min(values))


def test_validation_rows_do_not_train() -> None:
    """Other validation labels may choose another setting; the same setting is the same fit."""
    train, validation = rows(None)
    one = sel.select_ridge(train, validation, regularisations=(0.1,), scales=(10.0,))
    flipped = sel.Rows(validation.kernel, -np.asarray(validation.labels), validation.pretrained)
    two = sel.select_ridge(train, flipped, regularisations=(0.1,), scales=(10.0,))
    assert one.fit.coefficients.tolist() == two.fit.coefficients.tolist()
    assert two.best.score == pytest.approx(1 - one.best.score)


@pytest.mark.parametrize("name", [name for name in dir(sel) if name.startswith("select_")])
def test_no_selection_can_be_given_test_rows(name: str) -> None:
    given = [
        parameter.name
        for parameter in inspect.signature(getattr(sel, name)).parameters.values()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert given == ["train", "validation"]


def test_what_is_refused() -> None:
    train, validation = rows(None)
    bare = sel.Rows(train.kernel, train.labels)
    with pytest.raises(UserError, match="scale=inf"):
        sel.select_ridge(bare, validation)
    assert (
        sel.select_ridge(bare, sel.Rows(validation.kernel, validation.labels), scales=(INF,)).fit.scale == INF
    )
    with pytest.raises(UserError, match="at least one grid point"):
        sel.select_ridge(train, validation, regularisations=())
    with pytest.raises(UserError, match="score at"):
        sel.select_ridge(train, validation, score=lambda labels, predictions: float("nan"))
    with pytest.raises(UserError, match="validation labels"):
        sel.select_svm(train, sel.Rows(validation.kernel, np.zeros(30)))
    short = sel.Rows(validation.kernel, np.asarray(validation.labels)[:-1], validation.pretrained)
    for select in (sel.select_ridge, sel.select_logistic, sel.select_svm, sel.select_asymmetric):
        with pytest.raises(UserError, match="validation labels"):
            select(train, short)

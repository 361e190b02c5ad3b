"""Metrics: scikit-learn's where they are defined, None where they are not, ASR counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from foretaste.record import TriggeredMetrics
from foretaste.training.outcomes import metrics, triggered_metrics

NAMES = ["zero", "one", "two", "three"]


def array(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    classes = draw(st.integers(2, 4))
    rows = draw(st.integers(1, 30))
    column = st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)
    return classes, array(draw(column)), array(draw(column))


@given(predictions())
def test_metrics_are_scikit_learns(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    classes, labels, predicted = case
    got = metrics(labels, predicted, NAMES[:classes])
    assert got.rows == len(labels)
    assert got.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert got.collapsed == (len(set(predicted.tolist())) == 1)
    for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        options = {"labels": list(range(classes)), "average": None, "zero_division": np.nan}
        each = function(labels, predicted, **options)
        mine = [getattr(entry, name) for entry in got.per_class]
        assert mine == [None if np.isnan(value) else pytest.approx(value) for value in each]
        whole = each[1:2] if classes == 2 else each
        defined = whole[~np.isnan(whole)]
        expected = pytest.approx(defined.mean()) if defined.size else None
        assert getattr(got, name) == expected
    assert [entry.rows for entry in got.per_class] == [int((labels == c).sum()) for c in range(classes)]
    assert [entry.predicted for entry in got.per_class] == [
        int((predicted == c).sum()) for c in range(classes)
    ]
    assert [entry.name for entry in got.per_class] == NAMES[:classes]


def test_what_is_undefined_is_none() -> None:
    got = metrics(array([0, 0]), array([0, 0]), NAMES[:2])
    assert (got.accuracy, got.collapsed) == (1.0, True)
    assert (got.precision, got.recall, got.f1) == (None, None, None)
    got = metrics(array([0, 1]), array([0, 0]), NAMES[:2])
    assert (got.precision, got.recall, got.f1) == (None, 0.0, 0.0)
    got = metrics(array([0, 0]), array([0, 1]), NAMES[:2])
    assert (got.precision, got.recall, got.f1) == (0.0, None, 0.0)


def test_a_class_without_rows_does_not_lower_the_macro_average() -> None:
    got = metrics(array([0, 1]), array([0, 1]), NAMES[:3])
    assert (got.precision, got.recall, got.f1) == (1.0, 1.0, 1.0)


def test_binary_values_are_of_class_one() -> None:
    got = metrics(array([1, 1, 1, 0]), array([1, 0, 0, 0]), NAMES[:2])
    assert (got.precision, got.recall) == (1.0, pytest.approx(1 / 3))


# --- with a trigger ------------------------------------------------------------------------------


def triggered(
    labels: list[int], predicted: list[int], clean: list[int], classes: int = 2, target: int = 1
) -> TriggeredMetrics:
    return triggered_metrics(
        array(labels),
        array(predicted),
        array(clean),
        NAMES[:classes],
        target=target,
        name="n",
        method="trigger",
        options={"text": "x"},
        changed=len(labels),
    )


def test_asr_by_hand() -> None:
    # Rows 0 to 4 are of class 0 and count; rows 5 to 7 are of the target class and do not.
    got = triggered(
        labels=[0, 0, 0, 0, 0, 1, 1, 1],
        predicted=[1, 1, 1, 0, 0, 1, 0, 1],
        clean=[1, 0, 0, 0, 1, 1, 1, 0],
    )
    assert (got.eligible, got.hits, got.baseline_hits) == (5, 3, 2)
    assert got.target_rate == pytest.approx(0.6)
    assert got.against_true.accuracy == pytest.approx(4 / 8)
    assert (got.target, got.changed, got.options) == ("one", 8, {"text": "x"})


def test_asr_over_several_classes() -> None:
    got = triggered([0, 1, 2, 2], [2, 2, 2, 0], [0, 1, 2, 2], classes=3, target=2)
    assert (got.eligible, got.hits, got.target_rate, got.baseline_hits) == (2, 2, 1.0, 0)
    other = triggered([0, 1, 2, 2], [1, 1, 1, 0], [0, 1, 2, 2], classes=3, target=2)
    assert (other.hits, other.target_rate) == (0, 0.0), "a wrong class that is not the target is no success"


def test_a_perfect_attack_scores_the_prior_against_the_true_labels() -> None:
    """The TTR paper's score: all rows, true labels (protocol.md 1.2)."""
    got = triggered([0] * 3 + [1] * 7, [1] * 10, [0] * 3 + [1] * 7)
    assert got.target_rate == 1.0
    assert got.against_true.accuracy == pytest.approx(0.7)
    assert got.against_true.collapsed


def test_without_eligible_rows_there_is_no_rate() -> None:
    got = triggered([1, 1], [1, 0], [1, 1])
    assert (got.eligible, got.hits, got.target_rate) == (0, 0, None)


@given(predictions(), st.data())
def test_target_rows_do_not_count(case: tuple[int, np.ndarray, np.ndarray], data: st.DataObject) -> None:
    classes, labels, predicted = case
    target = data.draw(st.integers(0, classes - 1))
    flipped = np.where(labels == target, (predicted + 1) % classes, predicted)
    first, second = (
        triggered(labels.tolist(), p.tolist(), p.tolist(), classes, target) for p in (predicted, flipped)
    )
    assert (first.eligible, first.hits, first.target_rate) == (
        second.eligible,
        second.hits,
        second.target_rate,
    )
    assert first.hits == first.baseline_hits

"""Every metric of a run, from predictions on the clean and on the triggered test rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

from foretaste.record import ClassMetrics, Metrics, TriggeredMetrics

Labels = npt.NDArray[np.int64]


def metrics(labels: Labels, predicted: Labels, classes: Sequence[str]) -> Metrics:
    """Accuracy, precision, recall and F1 of predictions against the true labels.

    Binary tasks: of class 1 (TTR paper's code: scikit-learn's binary defaults). More classes: macro average
    over the classes for which the value is defined. A value is None where its denominator is zero.

    Args:
        labels: Shape (rows,), true class ids.
        predicted: Shape (rows,), predicted class ids.
        classes: Class names.
    """
    ids = list(range(len(classes)))
    p, r, f, support = precision_recall_fscore_support(
        labels, predicted, labels=ids, average=None, zero_division=np.nan
    )
    counts = np.bincount(predicted, minlength=len(ids))
    per_class = [
        ClassMetrics(
            name=classes[c],
            rows=int(support[c]),
            predicted=int(counts[c]),
            precision=_defined(p[c]),
            recall=_defined(r[c]),
            f1=_defined(f[c]),
        )
        for c in ids
    ]
    of = per_class[1:] if len(ids) == 2 else per_class
    return Metrics(
        rows=len(labels),
        accuracy=float(np.mean(labels == predicted)),
        precision=_mean([c.precision for c in of]),
        recall=_mean([c.recall for c in of]),
        f1=_mean([c.f1 for c in of]),
        per_class=per_class,
        collapsed=bool(np.all(predicted == predicted[0])),
    )


def triggered_metrics(
    labels: Labels,
    predicted: Labels,
    predicted_clean: Labels,
    classes: Sequence[str],
    *,
    target: int,
    name: str,
    method: str,
    options: dict[str, Any],
    changed: int,
    form: str | None = None,
    says: str | None = None,
    expected: Literal["target", "true"] = "target",
) -> TriggeredMetrics:
    """Outcome on the test rows with a trigger put in.

    Args:
        labels: Shape (rows,), true class ids.
        predicted: Shape (rows,), predictions on the triggered rows.
        predicted_clean: Shape (rows,), predictions of the same model on the same rows without the trigger.
        classes: Class names.
        target: Class that the trigger should force.
        name: The attack's name in the spec.
        method: Its method.
        options: Its options.
        changed: Rows whose text the trigger changed.
        form: Name of a further form of the trigger; None for the one that is trained on.
        says: What that form is, in words.
        expected: What the attacker wants of the rows: the target class, or no effect.
    """
    other = labels != target
    eligible = int(other.sum())
    hits = int((predicted[other] == target).sum())
    return TriggeredMetrics(
        name=name,
        method=method,
        options=options,
        target=classes[target],
        against_true=metrics(labels, predicted, classes),
        eligible=eligible,
        hits=hits,
        target_rate=hits / eligible if eligible else None,
        baseline_hits=int((predicted_clean[other] == target).sum()),
        changed=changed,
        form=form,
        says=says,
        expected=expected,
    )


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None

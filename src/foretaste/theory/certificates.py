"""Worst-case label flips: exact certificates for predictors that are linear in the labels.

With f(x) = offset(x) + S(x) Y, giving training row i another label moves the outputs of x by an amount that
does not depend on the other rows (`label_noise.flip_shifts`). So the worst m flips against one test example
and one rival class are the m rows that push the difference of the two outputs down most, each to the label
that pushes most: a sort, no search. The fewest flips that change a decision are found exactly, for every
example at once.

Two kinds of certificate:

* Sample-wise (`certify`): an adversary of its own for each test example. Exact, binary and C classes.
* Collective (`worst_case_accuracy`): one set of m flips against the whole test set. Finding the worst set is
  combinatorial; what is computed is a bound that no set can beat, next to an attack that reaches some of it
  (`greedy_attack`). Truth lies between.

A tie counts as a changed decision, and so does whatever rounding cannot tell from a tie: a certificate must
not rest on which class argmax happens to prefer. An example on a tie needs 0 flips.

Relation to published certificates:

* Sabanayagam, Gosch, Guennemann and Ghoshdastidar, "Exact Certification of (Graph) Neural Networks Against
  Label Poisoning" (ICLR 2025, arXiv 2412.00537; code named LabelCert) certify networks in the limit of
  infinite width by their kernel, sample-wise and collectively. Their training is a soft-margin SVM, which is
  not linear in the labels: flipping labels and training again is a bilevel programme, which they rewrite as a
  mixed-integer linear programme. Gosch et al., "Provable Robustness of (Graph) Neural Networks Against Data
  Poisoning and Backdoor Attacks" (arXiv 2407.10867), treat poisoned features in the same way.
* Mohgaonkar et al., "Exact Certification of Neural Networks and Partition Aggregation Ensembles against Label
  Poisoning" (2026, arXiv 2604.11416; ScaLabelCert), give an exact certificate in polynomial time by the same
  equivalence to kernel methods, and use it inside ensembles.
* Rosenfeld, Winston, Ravikumar and Kolter, "Certified Robustness to Label-Flipping Attacks via Randomized
  Smoothing" (ICML 2020) also use that least squares is linear in the labels, but certify another classifier:
  the majority over randomly flipped training labels. Theirs is a bound, sample-wise.

Here the squared loss makes the programme linear, so the sample-wise problem needs no solver. What is
certified is the kernel predictor (any budget of `flow.py`, not only convergence), not the network that it
approximates: for a finite network this is a prediction of worst-case behaviour, not a proof.

In docs/theory.md: T16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from foretaste.errors import UserError
from foretaste.theory.flow import LinearPredictor, respond
from foretaste.theory.label_noise import flip_shifts, one_vector
from foretaste.theory.layout import Floats, Ints, decide, one_hot, real

SOFTNESS = (0.01, 0.03, 0.1)
"""Widths of the soft count in `greedy_attack`, in units of what m flips can do to an example.

Chosen by trial: near a plain count, narrow widths break most; wider ones see further ahead when m is large.
"""


@dataclass(frozen=True, eq=False)
class Certificate:
    """Sample-wise certificates.

    Attributes:
        decisions: With the labels as given, shape (M,), see `layout.decide`.
        fewest: Fewest label flips after which the decision no longer strictly leads, shape (M,); inf if no
            number of flips does it, 0 for a decision that is a tie already.
    """

    decisions: Ints
    fewest: Floats


@dataclass(frozen=True, eq=False)
class WorstCase:
    """Accuracy that no set of at most m flips can push below.

    Attributes:
        flips: m, shape (R,).
        samplewise: Share of test examples that are right and whose own certificate exceeds m, shape (R,).
        collective: At least `samplewise`: counts that one set of flips has to break all of them, shape (R,).
    """

    flips: Ints
    samplewise: Floats
    collective: Floats


@dataclass(frozen=True, eq=False)
class Attack:
    """A set of label flips, in the order in which they were found.

    Attributes:
        rows: Training rows, shape (m',); m' <= m, fewer when no further flip lowers the soft count.
        labels: Their new labels, shape (m',).
        accuracy: On the test rows after 0 .. m' flips, shape (m' + 1,).
        lowest: The smallest of these, what at most m flips reach.
    """

    rows: Ints
    labels: Ints
    accuracy: Floats
    lowest: float


# --- one test example at a time ---------------------------------------------------------------------


def certify(predictor: LinearPredictor, labels: npt.ArrayLike) -> Certificate:
    """The fewest label flips that change each decision, exactly.

    Args:
        predictor: Linear in the training labels.
        labels: Of the training rows, shape (N,), see `layout`. A flip gives a row any other class.

    Raises:
        UserError: A label is not a class, or the number does not fit.
    """
    y = one_vector(labels, predictor.layout)
    decisions = _decisions(predictor, y)
    fewest = np.full(decisions.size, np.inf)
    for gap, push in _rivals(predictor, y, decisions):
        reach = np.sort(np.minimum(push, 0.0), axis=1)
        # After m flips the lead is at least gap + (m most negative pushes), and some m flips reach that.
        lead = np.concatenate([gap[:, None], gap[:, None] + np.cumsum(reach, axis=1)], axis=1)
        gone = lead <= _rounding(gap, push)[:, None]
        first = np.where(gone.any(axis=1), gone.argmax(axis=1), np.inf)
        fewest = np.minimum(fewest, first)
    return Certificate(decisions, fewest)


def certified_accuracy(certificate: Certificate, test_labels: npt.ArrayLike, flips: npt.ArrayLike) -> Floats:
    """Share of test examples that are right and stay right under any m flips.

    Args:
        certificate: From `certify`.
        test_labels: Shape (M,), in the labels of the decisions.
        flips: m >= 0, whole numbers, any shape R.

    Returns:
        Shape R, not increasing in m. At m = 0 it is the accuracy, but for decisions that are ties.

    Raises:
        UserError: The number of labels does not fit, or a number of flips is negative or no whole number.
    """
    truth = real(test_labels, "test_labels")
    if truth.shape != certificate.decisions.shape:
        raise UserError(
            f"expected {certificate.decisions.size} labels, got shape {truth.shape}", where="test_labels"
        )
    m = _budgets(flips)
    right = certificate.decisions == truth
    share: Floats = np.mean(right & (certificate.fewest > m[..., None]), axis=-1)
    return share


# --- one set of flips against all --------------------------------------------------------------------


def worst_case_accuracy(
    predictor: LinearPredictor, labels: npt.ArrayLike, test_labels: npt.ArrayLike, flips: npt.ArrayLike
) -> WorstCase:
    """Lower bounds on accuracy under the worst set of at most m flips.

    Sample-wise certificates let every test example have its own m flips. The collective bound uses that the
    flips are shared. Let R_xi be the part of its lead that example x loses at most by flipping row i (below 0
    if it gains). A set F that breaks every example of B has sum_{i in F} R_xi >= 1 for all x in B, hence for
    weights w >= 0

        sum_{x in B} w_x  <=  sum_{i in F} sum_{x in B} w_x R_xi  <=  sum of the m largest T_k(i),

    k = |B|, T_k(i) the sum of the k largest w_x R_xi over x. The left side is at least the sum of the k
    smallest weights. Breaking k examples implies breaking k - 1 of them, so the first k that violates this
    ends the count. R may be clipped to [0, 1] first. Three variants are tried and the best is kept: clipped
    with equal weights (tight for few flips; for one flip and two classes the exact number of broken
    examples), and with w_x = 1 / |R_x|, clipped and not (tighter for many flips).

    Args:
        predictor: Linear in the training labels.
        labels: Of the training rows, shape (N,), see `layout`.
        test_labels: Shape (M,).
        flips: m >= 0, whole numbers, shape (R,).

    Raises:
        UserError: A label is not a class, a size does not fit, or a number of flips is out of range.
    """
    y = one_vector(labels, predictor.layout)
    truth = one_vector(test_labels, predictor.rows, "test_labels")
    m = np.atleast_1d(_budgets(flips)).astype(np.int64)
    if m.ndim != 1:
        raise UserError(f"expected shape (R,), got {m.shape}", where="flips")
    certificate = certify(predictor, y)
    right = certificate.decisions == truth
    strength = _strength(predictor, y, certificate.decisions)
    samplewise = certified_accuracy(certificate, truth, m)
    collective = np.empty(m.size)
    for at, count in enumerate(m):
        open_ = right & (certificate.fewest <= count)
        # Ties need no flip; the argument above is for those that do.
        free = open_ & (certificate.fewest == 0)
        rest = open_ & ~free
        signed = strength[rest]
        clipped = np.clip(signed, 0.0, 1.0)
        # An example that can be broken at all has a positive part, so no norm is 0.
        even = 1.0 / np.linalg.norm(np.maximum(signed, 0.0), axis=1)
        broken = min(
            _most_broken(part, weights, int(count))
            for part, weights in ((clipped, np.ones(even.size)), (clipped, even), (signed, even))
        )
        collective[at] = (right.sum() - free.sum() - broken) / truth.size
    return WorstCase(m, samplewise, collective)


def greedy_attack(
    predictor: LinearPredictor, labels: npt.ArrayLike, test_labels: npt.ArrayLike, *, flips: int
) -> Attack:
    """A set of at most m flips that lowers accuracy on the whole test set, one flip at a time.

    One flip rarely breaks an example, so a plain count gives no direction. The flip is taken that lowers most
    a soft count, the sum of sigmoid(margin_x / width_x), with widths in proportion to what m flips can do to
    x. The best of the paths over `SOFTNESS` is returned.

    Args:
        predictor: Linear in the training labels.
        labels: Of the training rows, shape (N,), see `layout`.
        test_labels: Shape (M,).
        flips: m in [0, N].

    Returns:
        An attack: its accuracy is reached, so the worst case is at most this. Not the worst in general.

    Raises:
        UserError: A label is not a class, a size does not fit, or `flips` is out of range.
    """
    y = one_vector(labels, predictor.layout)
    truth = one_vector(test_labels, predictor.rows, "test_labels")
    if not 0 <= flips <= predictor.layout.examples:
        raise UserError(f"expected 0 .. {predictor.layout.examples} flips, got {flips}", where="flips")
    paths = [_path(predictor, y, truth, flips, softness) for softness in SOFTNESS]
    return min(paths, key=lambda attack: attack.lowest)


# --- how flips push a lead ---------------------------------------------------------------------------


def _decisions(predictor: LinearPredictor, labels: Ints) -> Ints:
    return decide(respond(predictor, one_hot(labels, predictor.layout)), predictor.rows)


def _rivals(predictor: LinearPredictor, labels: Ints, decisions: Ints) -> Iterator[tuple[Floats, Floats]]:
    """The lead over each rival class, and how far each row can push it down.

    Yields, for each of the C - 1 rivals (1 for a scalar output): the lead, shape (M,), >= 0; and the least
    change of it over the new labels of each row, shape (M, N), above 0 where every new label adds to it.
    """
    scores = respond(predictor, one_hot(labels, predictor.layout))
    shifts, _ = flip_shifts(predictor, labels)
    if predictor.layout.classes is None:
        yield np.abs(scores), decisions[:, None] * shifts[:, 0, :, 0]
        return
    rows = np.arange(decisions.size)
    for step in range(1, predictor.layout.classes):
        rival = (decisions + step) % predictor.layout.classes
        change = shifts[rows, decisions] - shifts[rows, rival]
        change[:, np.arange(labels.size), labels] = np.inf  # a row's own class is no flip
        yield scores[rows, decisions] - scores[rows, rival], change.min(axis=-1)


def _rounding(gap: Floats, push: Floats) -> Floats:
    """What N additions can be off by: leads up to here cannot be told from a tie, shape (M,)."""
    terms = push.shape[1] + 1
    bound: Floats = float(np.finfo(np.float64).eps) * terms * (gap + np.abs(push).sum(axis=1))
    return bound


def _strength(predictor: LinearPredictor, labels: Ints, decisions: Ints) -> Floats:
    """R, shape (M, N): the largest part of its lead, over rivals, that an example loses by flipping a row.

    If x falls to a rival b, sum_{i in F} -push_bi >= lead_b, so sum_{i in F} max_b(-push_bi / lead_b) >= 1.
    """
    strength = np.full((decisions.size, labels.size), -np.inf)
    for gap, push in _rivals(predictor, labels, decisions):
        # Ties (lead 0) are counted elsewhere; their rows are not read.
        part = np.divide(-push, gap[:, None], out=np.zeros_like(push), where=gap[:, None] > 0)
        strength = np.maximum(strength, part)
    return strength


def _most_broken(strength: Floats, weights: Floats, flips: int) -> int:
    """The largest number of examples for which the counting argument does not rule out `flips` flips."""
    examples, rows = strength.shape
    most = min(flips, rows)
    if examples == 0 or most == 0:
        return 0
    needed = np.cumsum(np.sort(weights))
    weighted = weights[:, None] * strength
    gains = np.cumsum(-np.sort(-weighted, axis=0), axis=0)  # T_k(i), shape (K, N)
    largest = np.partition(gains, rows - most, axis=1)[:, rows - most :]
    reachable = np.maximum(largest, 0.0).sum(axis=1)
    # Rounding of sums over K examples and m rows may not rule anything out.
    slack = float(np.finfo(np.float64).eps) * (examples + most) * (needed + np.abs(weighted).sum())
    ruled_out = reachable + slack < needed
    return int(ruled_out.argmax()) if ruled_out.any() else examples


# --- the attack --------------------------------------------------------------------------------------


def _path(predictor: LinearPredictor, y: Ints, truth: Ints, flips: int, softness: float) -> Attack:
    shifts, _ = flip_shifts(predictor, y)
    scores = respond(predictor, one_hot(y, predictor.layout)).reshape(truth.size, -1)
    size = np.abs(shifts).max(axis=(1, 3))  # (M, N): what one row can do to one example
    most = min(max(flips, 1), y.size)
    reach = np.partition(size, y.size - most, axis=1)[:, y.size - most :].sum(axis=1)
    width = softness * np.where(reach > 0, reach, 1.0)
    current = y.copy()
    # A row is flipped once; its own class, and its candidates after the flip, are closed.
    closed = np.zeros((y.size, shifts.shape[3]), dtype=bool)
    if predictor.layout.classes is not None:
        closed[np.arange(y.size), y] = True
    accuracy = [_accuracy(scores, truth, predictor)]
    rows: list[int] = []
    for _ in range(flips):
        soft = _soft_count(scores[:, :, None, None] + shifts, truth, width)
        soft[closed] = np.inf
        best = int(soft.argmin())
        if not soft.flat[best] < _soft_count(scores[:, :, None, None], truth, width)[0, 0]:
            break
        row, label = divmod(best, soft.shape[1])
        scores = scores + shifts[:, :, row, label]
        closed[row] = True
        current[row] = -y[row] if predictor.layout.classes is None else label
        rows.append(row)
        accuracy.append(_accuracy(scores, truth, predictor))
    chosen = np.array(rows, dtype=np.int64)
    return Attack(chosen, current[chosen], np.array(accuracy), min(accuracy))


def _soft_count(scores: Floats, truth: Ints, width: Floats) -> Floats:
    """Soft number of right examples for scores of shape (M, A, N, O); shape (N, O)."""
    if scores.shape[1] == 1:
        margin = truth[:, None, None] * scores[:, 0]
    else:
        rows = np.arange(truth.size)
        own = scores[rows, truth]
        others = scores.copy()
        others[rows, truth] = -np.inf
        margin = own - others.max(axis=1)
    count: Floats = np.asarray(expit(margin / width[:, None, None]).sum(axis=0), dtype=np.float64)
    return count


def _accuracy(scores: Floats, truth: Ints, predictor: LinearPredictor) -> float:
    return float(np.mean(decide(scores.reshape(predictor.rows.shape), predictor.rows) == truth))


def _budgets(flips: npt.ArrayLike) -> Floats:
    m = real(flips, "flips")
    if np.any(m < 0) or np.any(m != np.floor(m)):
        raise UserError(f"expected whole numbers >= 0, got {m.tolist()}", where="flips")
    return m

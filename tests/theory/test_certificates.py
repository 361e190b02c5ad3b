"""Certificates and attacks against every set of flips on few rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.theory import certificates as ct
from foretaste.theory import flow
from foretaste.theory.layout import decide, one_hot
from foretaste.theory.regression import decompose

INF = float("inf")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Task:
    """A random smoother that leans towards the labels, so that decisions are right and take some flips."""

    def __init__(self, n: int, m: int, classes: int | None, seed: int = 0, lean: float = 0.5) -> None:
        g = rng(seed)
        self.n, self.classes = n, classes
        if classes is None:
            self.labels, self.test_labels = 2 * g.integers(0, 2, n) - 1, 2 * g.integers(0, 2, m) - 1
            same = np.multiply.outer(self.test_labels, self.labels)
            self.p = flow.linear_predictor(g.normal(size=(m, n)) + lean * same, 0.3 * g.normal(size=m))
        else:
            self.labels, self.test_labels = g.integers(0, classes, n), g.integers(0, classes, m)
            shared = (
                np.eye(classes)[None, :, None, :]
                * (self.test_labels[:, None] == self.labels[None, :])[:, None, :, None]
            )
            smoother = g.normal(size=(m, classes, n, classes)) + 2 * lean * shared
            self.p = flow.linear_predictor(smoother, 0.3 * g.normal(size=(m, classes)))

    def every_poisoning(self, flips: int) -> np.ndarray:
        """All label vectors that differ from the labels in exactly `flips` rows."""
        others = 1 if self.classes is None else self.classes - 1
        found = []
        for chosen in itertools.combinations(range(self.n), flips):
            for steps in itertools.product(range(1, others + 1), repeat=flips):
                poisoned = self.labels.copy()
                for i, step in zip(chosen, steps, strict=True):
                    old = poisoned[i]
                    poisoned[i] = -old if self.classes is None else (old + step) % self.classes
                found.append(poisoned)
        return np.array(found)

    def decisions(self, labels: np.ndarray) -> np.ndarray:
        return decide(flow.respond(self.p, one_hot(labels, self.p.layout)), self.p.rows)

    def brute_force_fewest(self) -> np.ndarray:
        clean = self.decisions(self.labels)
        fewest = np.full(clean.size, INF)
        for flips in range(self.n, 0, -1):
            changed = (self.decisions(self.every_poisoning(flips)) != clean).any(axis=0)
            fewest[changed] = flips
        return fewest

    def brute_force_accuracy(self, flips: int) -> float:
        return min(
            float((self.decisions(self.every_poisoning(m)) == self.test_labels).mean(axis=1).min())
            for m in range(flips + 1)
        )


BINARY = [Task(12, 15, None, seed) for seed in range(3)] + [Task(11, 15, None, 3, lean=0.0)]
MULTI = [Task(7, 15, 3, 4), Task(7, 15, 3, 5, lean=1.0), Task(5, 10, 4, 6), Task(9, 12, 2, 7)]
TASKS = BINARY + MULTI
each_task = pytest.mark.parametrize("task", TASKS, ids=[f"{t.classes or 1}-{i}" for i, t in enumerate(TASKS)])


# --- sample-wise -----------------------------------------------------------------------------------


@each_task
def test_the_fewest_flips_by_brute_force(task: Task) -> None:
    certificate = ct.certify(task.p, task.labels)
    assert certificate.decisions.tolist() == task.decisions(task.labels).tolist()
    assert certificate.fewest.tolist() == task.brute_force_fewest().tolist()


def test_brute_force_meets_all_kinds_of_examples() -> None:
    """The comparison above would say little if every example fell to the first flip."""
    seen = np.concatenate([ct.certify(task.p, task.labels).fewest for task in TASKS])
    assert {1.0, 2.0, 3.0, 4.0} <= set(seen.tolist())


def test_a_decision_that_labels_cannot_change() -> None:
    p = flow.linear_predictor([[1.0, 1.0], [0.1, 0.1]], [5.0, 0.1])
    assert ct.certify(p, [1, 1]).fewest.tolist() == [INF, 2.0]


def test_ties_count_as_changed() -> None:
    """S = 1, labels +1: four rows, so two flips make a tie, which decide() gives to -1 or 0."""
    p = flow.linear_predictor(np.ones((1, 4)))
    assert ct.certify(p, [1, 1, 1, 1]).fewest.tolist() == [2.0]
    assert ct.certify(p, [-1, -1, -1, -1]).fewest.tolist() == [2.0]
    assert ct.certify(p, [1, 1, -1, -1]).fewest.tolist() == [0.0]
    logits = flow.linear_predictor(np.einsum("ij,cd->icjd", np.ones((1, 4)), np.eye(3)))
    assert ct.certify(logits, [0, 0, 0, 0]).fewest.tolist() == [2.0]
    assert ct.certify(logits, [0, 0, 2, 2]).fewest.tolist() == [0.0]
    # Ties that only rounding breaks: 0.1 + 0.2 - 0.3 is 5e-17, and no lead.
    assert ct.certify(flow.linear_predictor([[0.1, 0.2, 0.3]]), [1, 1, -1]).fewest.tolist() == [0.0]


@each_task
def test_certified_accuracy_counts_examples(task: Task) -> None:
    certificate = ct.certify(task.p, task.labels)
    flips = np.arange(task.n + 1)
    found = ct.certified_accuracy(certificate, task.test_labels, flips)
    right = task.decisions(task.labels) == task.test_labels
    for m in flips:
        sure = np.ones(right.size, dtype=bool)
        for few in range(m + 1):
            sure &= (task.decisions(task.every_poisoning(few)) == task.test_labels).all(axis=0)
        assert found[m] == np.mean(sure)
    assert found[0] == right.mean()
    assert np.all(np.diff(found) <= 0)


# --- symmetries -------------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)


@settings(max_examples=60)
@given(seed=seeds, n=st.integers(1, 9), m=st.integers(1, 6), factor=st.floats(1e-6, 1e6))
def test_binary_symmetries(seed: int, n: int, m: int, factor: float) -> None:
    task = Task(n, m, None, seed)
    base = ct.certify(task.p, task.labels)
    s, b = task.p.smoother, task.p.offset
    # All signs flipped: labels, offset and decisions turn, robustness stays.
    mirrored = ct.certify(flow.linear_predictor(s, -b), -task.labels)
    assert mirrored.fewest.tolist() == base.fewest.tolist()
    assert mirrored.decisions.tolist() == (-base.decisions).tolist()
    # The unit of the outputs.
    scaled = ct.certify(flow.linear_predictor(factor * s, factor * b), task.labels)
    assert scaled.fewest.tolist() == base.fewest.tolist()
    # The order of the training rows.
    order = rng(seed).permutation(n)
    assert ct.certify(flow.linear_predictor(s[:, order], b), task.labels[order]).fewest.tolist() == (
        base.fewest.tolist()
    )
    # A row that says nothing.
    wider = flow.linear_predictor(np.concatenate([s, np.zeros((m, 1))], axis=1), b)
    assert ct.certify(wider, [*task.labels, 1]).fewest.tolist() == base.fewest.tolist()


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(1, 8), classes=st.integers(2, 4))
def test_renaming_classes(seed: int, n: int, classes: int) -> None:
    task = Task(n, 5, classes, seed)
    base = ct.certify(task.p, task.labels)
    order = rng(seed).permutation(classes)  # class c becomes order[c]
    inverse = np.argsort(order)
    s = task.p.smoother[:, inverse][:, :, :, inverse]
    renamed = ct.certify(flow.linear_predictor(s, task.p.offset[:, inverse]), order[task.labels])
    assert renamed.fewest.tolist() == base.fewest.tolist()
    assert renamed.decisions.tolist() == order[base.decisions].tolist()


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(1, 9))
def test_two_logits_are_the_margin(seed: int, n: int) -> None:
    task = Task(n, 6, None, seed)
    two = flow.linear_predictor(
        np.einsum("ij,cd->icjd", task.p.smoother, np.eye(2)),
        np.stack([np.zeros(6), task.p.offset], axis=1),
    )
    one = ct.certify(task.p, task.labels)
    assert ct.certify(two, (task.labels + 1) // 2).fewest.tolist() == one.fewest.tolist()


@settings(max_examples=30)
@given(seed=seeds, n=st.integers(1, 9))
def test_a_larger_offset_towards_the_decision_is_safer(seed: int, n: int) -> None:
    task = Task(n, 6, None, seed)
    base = ct.certify(task.p, task.labels)
    safer = ct.certify(
        flow.linear_predictor(task.p.smoother, task.p.offset + 0.5 * base.decisions), task.labels
    )
    assert np.all(safer.fewest >= base.fewest)


@pytest.mark.parametrize("flips", [1, 3])
def test_one_flip_less_than_the_fewest_never_changes_a_decision(flips: int) -> None:
    """On a kernel predictor with 150 rows, by random and by worst flips."""
    p, y, _ = kernel_task(150, 80, 0)
    certificate = ct.certify(p, y)
    g = rng(2)
    push = -2 * p.smoother * y * certificate.decisions[:, None]
    for j in np.flatnonzero((certificate.fewest > flips) & np.isfinite(certificate.fewest)):
        worst = np.argsort(push[j])
        sets = [g.choice(150, flips, replace=False), worst[: int(certificate.fewest[j]) - 1]]
        for rows in sets:
            assert _flipped_decision(p, y, rows, j) == certificate.decisions[j]
        assert _flipped_decision(p, y, worst[: int(certificate.fewest[j])], j) != certificate.decisions[j]


def kernel_task(n: int, m: int, seed: int) -> tuple[flow.LinearPredictor, np.ndarray, np.ndarray]:
    g = rng(seed)
    w, x, z = g.normal(size=8), g.normal(size=(n, 8)), g.normal(size=(m, 8))
    y = np.where(x @ w + 0.5 * g.normal(size=n) > 0, 1, -1)
    d = decompose((1 + x @ x.T / 8) ** 2)
    p = flow.predictor_at(d, (1 + z @ x.T / 8) ** 2, flow.flow_filter(d, time=float(n)))
    return p, y, np.where(z @ w > 0, 1, -1)


def _flipped_decision(p: flow.LinearPredictor, y: np.ndarray, rows: np.ndarray, j: int) -> int:
    poisoned = y.copy()
    poisoned[rows] *= -1
    return 1 if p.offset[j] + p.smoother[j] @ poisoned > 0 else -1


# --- collective -------------------------------------------------------------------------------------


@each_task
@pytest.mark.parametrize("flips", [0, 1, 2, 3])
def test_bounds_brute_force_and_greedy_are_in_order(task: Task, flips: int) -> None:
    bounds = ct.worst_case_accuracy(task.p, task.labels, task.test_labels, [flips])
    attack = ct.greedy_attack(task.p, task.labels, task.test_labels, flips=flips)
    truth = task.brute_force_accuracy(flips)
    rounding = 1e-12
    assert bounds.samplewise[0] <= bounds.collective[0] + rounding
    assert bounds.collective[0] <= truth + rounding
    assert truth <= attack.lowest + rounding
    if flips == 0:
        assert bounds.collective[0] == pytest.approx(truth)
        assert attack.lowest == truth


def test_the_collective_bound_sees_that_flips_are_shared() -> None:
    """Ten examples, each decided by a row of its own: m flips break m, though each falls to one flip."""
    p = flow.linear_predictor(np.eye(10))
    y = np.array([1, -1] * 5)
    found = ct.worst_case_accuracy(p, y, y, [0, 1, 4, 10])
    assert found.samplewise.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found.collective == pytest.approx([1.0, 0.9, 0.6, 0.0])
    for flips in (1, 4, 10):
        assert ct.greedy_attack(p, y, y, flips=flips).lowest == pytest.approx(1 - flips / 10)


@pytest.mark.parametrize("seed", range(4))
def test_one_flip_is_counted_exactly(seed: int) -> None:
    """The number of right examples that the worst single flip breaks, not counting those that it repairs."""
    p, y, test = kernel_task(60, 200, seed)
    right = ct.certify(p, y).decisions == test
    broken = max(
        sum(right[j] and _flipped_decision(p, y, np.array([i]), j) != test[j] for j in range(200))
        for i in range(60)
    )
    found = ct.worst_case_accuracy(p, y, test, [1])
    assert found.collective[0] == pytest.approx((right.sum() - broken) / 200)
    assert found.samplewise[0] < found.collective[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_holds_on_a_kernel_predictor(seed: int) -> None:
    """150 rows: no brute force, but bound <= greedy <= random flips, and the bound never rises."""
    p, y, test = kernel_task(150, 200, seed)
    flips = [0, 1, 3, 10, 30]
    bounds = ct.worst_case_accuracy(p, y, test, flips)
    assert np.all(np.diff(bounds.collective) <= 0)
    assert np.all(bounds.samplewise <= bounds.collective)
    assert bounds.collective[3] > bounds.samplewise[3] + 0.1
    g = rng(seed)
    for at, m in enumerate(flips):
        attack = ct.greedy_attack(p, y, test, flips=m)
        assert bounds.collective[at] <= attack.lowest
        random = []
        for _ in range(50):
            poisoned = y.copy()
            poisoned[g.choice(150, m, replace=False)] *= -1
            random.append(np.mean(decide(flow.respond(p, poisoned), p.rows) == test))
        assert attack.lowest <= min(random)
    assert attack.lowest < min(random) - 0.05


def test_the_bound_of_two_logits_is_that_of_the_margin() -> None:
    p, y, test = kernel_task(150, 200, 0)
    two = flow.linear_predictor(np.einsum("ij,cd->icjd", p.smoother, np.eye(2)))
    flips = [0, 1, 10, 16, 20]
    one = ct.worst_case_accuracy(p, y, test, flips).collective
    assert ct.worst_case_accuracy(two, (y + 1) // 2, (test + 1) // 2, flips).collective == pytest.approx(one)
    assert 0.0 < one[3] < one[2]


@each_task
def test_an_attack_reaches_what_it_says(task: Task) -> None:
    attack = ct.greedy_attack(task.p, task.labels, task.test_labels, flips=3)
    assert attack.accuracy.size == attack.rows.size + 1 <= 4
    assert np.unique(attack.rows).size == attack.rows.size
    poisoned = task.labels.copy()
    for at, (row, label) in enumerate(zip(attack.rows, attack.labels, strict=True)):
        assert label != task.labels[row]
        poisoned[row] = label
        assert attack.accuracy[at + 1] == np.mean(task.decisions(poisoned) == task.test_labels)
    assert attack.lowest == attack.accuracy.min()


def test_greedy_is_near_brute_force() -> None:
    """Not the worst in general: on these tasks it misses at most one test example in 15."""
    gaps = [
        ct.greedy_attack(t.p, t.labels, t.test_labels, flips=3).lowest - t.brute_force_accuracy(3)
        for t in BINARY
    ]
    assert max(gaps) <= 1 / 15 + 1e-12


def test_flips_that_help_one_example_and_spare_another_are_not_lost() -> None:
    """Each row takes 3 leads of one example and gives 1.5 to the other: both fall to both flips together."""
    p = flow.linear_predictor([[1.5, -0.75], [-0.75, 1.5]], [0.25, 0.25])
    assert flow.respond(p, [-1, -1]).tolist() == [-0.5, -0.5]
    assert ct.worst_case_accuracy(p, [1, 1], [1, 1], [2]).collective.tolist() == [0.0]


def test_at_most_m_flips_need_not_be_m() -> None:
    """The first row breaks the example, the second one would repair it."""
    p = flow.linear_predictor([[0.6, -0.5]], [0.9])
    assert flow.respond(p, [[-1, 1], [-1, -1]]) == pytest.approx(np.array([[-0.2], [0.8]]))
    assert ct.worst_case_accuracy(p, [1, 1], [1], [1, 2]).collective.tolist() == [0.0, 0.0]
    assert ct.greedy_attack(p, [1, 1], [1], flips=2).lowest == 0.0


def test_greedy_goes_for_the_nearest_rival() -> None:
    """Row 0 lifts class 1 over class 0; row 1 lifts class 2 far more, and in vain."""
    smoother = np.zeros((1, 3, 2, 3))
    smoother[0, 1, 0, 1], smoother[0, 2, 1, 2] = 0.2, 5.0
    p = flow.linear_predictor(smoother, [[1.0, 0.9, -10.0]])
    attack = ct.greedy_attack(p, [0, 0], [0], flips=1)
    assert (attack.rows.tolist(), attack.labels.tolist(), attack.lowest) == ([0], [1], 0.0)


@settings(max_examples=40)
@given(seed=seeds, n=st.integers(1, 7), m=st.integers(1, 8), flips=st.integers(0, 3))
def test_no_attack_beats_the_bound(seed: int, n: int, m: int, flips: int) -> None:
    for classes in (None, 3):
        task = Task(n, m, classes, seed)
        k = min(flips, n)
        bounds = ct.worst_case_accuracy(task.p, task.labels, task.test_labels, [k])
        assert bounds.collective[0] <= task.brute_force_accuracy(k) + 1e-12


# --- what is refused ---------------------------------------------------------------------------------

P = flow.linear_predictor(np.eye(3))
Y = [1, -1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ct.certify(P, [1, -1]), "expected 3 labels"),
        (lambda: ct.certify(P, [0, 1, 1]), r"labels -1 and \+1"),
        (lambda: ct.certify(P, [1, np.nan, 1]), "NaN"),
        (lambda: ct.certify(P, [Y, Y]), "one vector of 3 labels"),
        (lambda: ct.certified_accuracy(ct.certify(P, Y), [1, 1], 0), "expected 3 labels"),
        (lambda: ct.certified_accuracy(ct.certify(P, Y), Y, -1), "whole numbers >= 0"),
        (lambda: ct.certified_accuracy(ct.certify(P, Y), Y, 0.5), "whole numbers >= 0"),
        (lambda: ct.worst_case_accuracy(P, Y, [1, 1], [1]), "test_labels: expected 3 labels"),
        (lambda: ct.worst_case_accuracy(P, Y, Y, [[1]]), r"flips: expected shape \(R,\)"),
        (lambda: ct.worst_case_accuracy(P, Y, Y, [-1]), "whole numbers >= 0"),
        (lambda: ct.greedy_attack(P, Y, Y, flips=4), r"expected 0 .. 3 flips, got 4"),
        (lambda: ct.greedy_attack(P, Y, Y, flips=-1), "expected 0 .. 3 flips"),
    ],
)
def test_requests_that_are_refused(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]

"""Index swaps against models that are trained again on poisoned rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.theory import backdoor as bd
from foretaste.theory import flow
from foretaste.theory.layout import Layout, decide, one_hot
from foretaste.theory.regression import Decomposition, decompose


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Task:
    """Linear model on inputs; a trigger adds a fixed vector to the input."""

    def __init__(self, n: int, m: int, classes: int | None, dims: int = 6, seed: int = 0) -> None:
        g = rng(seed)
        self.classes, self.n, self.m = classes, n, m
        x, z = g.normal(size=(n, dims)), g.normal(size=(m, dims))
        trigger = 1.5 * g.normal(size=dims)
        self.rows, self.test_rows = np.concatenate([x, x + trigger]), np.concatenate([z, z + trigger])
        w = g.normal(size=(dims, classes or 1))
        if classes is None:
            self.labels, self.test_labels = (np.where(v @ w[:, 0] > 0, 1, -1) for v in (x, z))
        else:
            self.labels, self.test_labels = ((v @ w).argmax(axis=1) for v in (x, z))
        self.target = 1
        middle = () if classes is None else (classes,)
        # Outputs share features of the input and have some of their own, so the kernel is no K (x) I.
        self.mix = g.normal(size=(*middle, dims, 9))
        self.f_rows, self.f_test = g.normal(size=(2 * n, *middle)), g.normal(size=(2 * m, *middle))
        phi, phi_test = self.features(self.rows), self.features(self.test_rows)
        self.kernel = np.tensordot(phi, phi, axes=(-1, -1))
        self.cross = np.tensordot(phi_test, phi, axes=(-1, -1))
        self.pool = bd.backdoor_pool(
            self.kernel,
            self.cross,
            self.labels,
            self.test_labels,
            pretrained=self.f_rows,
            pretrained_test=self.f_test,
        )

    def features(self, inputs: np.ndarray) -> np.ndarray:
        return np.tensordot(inputs, self.mix, axes=(-1, -2)) / 3

    def retrained(
        self, poisoned: list[int], rate: float, steps: int, slope: Callable[..., np.ndarray]
    ) -> np.ndarray:
        """Poisoned inputs and labels put together by hand, then literal gradient descent on parameters."""
        inputs, f_0, labels = self.rows[: self.n].copy(), self.f_rows[: self.n].copy(), self.labels.copy()
        for i in poisoned:
            inputs[i], f_0[i], labels[i] = self.rows[self.n + i], self.f_rows[self.n + i], self.target
        phi, theta = self.features(inputs), np.zeros(9)
        for _ in range(steps):
            g = slope(f_0 + phi @ theta, labels)
            theta -= rate / self.n * np.tensordot(g, phi, axes=g.ndim)
        return self.f_test + self.features(self.test_rows) @ theta


TASKS = [Task(14, 30, None), Task(14, 30, 3), Task(10, 20, 2)]
each_task = pytest.mark.parametrize("task", TASKS, ids=["1", "3", "2"])


def squared(task: Task) -> Callable[..., np.ndarray]:
    layout = Layout(task.n, task.classes)
    return lambda f, y: f - one_hot(y, layout)


def logistic(task: Task) -> Callable[..., np.ndarray]:
    if task.classes is None:
        return lambda f, y: -y / (1 + np.exp(y * f))
    return lambda f, y: np.exp(f) / np.exp(f).sum(axis=1, keepdims=True) - np.eye(f.shape[1])[y]


def as_set(task: Task, poisoned: list[int]) -> np.ndarray:
    chosen = np.zeros(task.n, dtype=bool)
    chosen[poisoned] = True
    return chosen


def descent(rate: float, steps: int) -> Callable[[Decomposition], np.ndarray]:
    return lambda d: flow.descent_filter(d, rate=rate, steps=steps)


@each_task
@pytest.mark.parametrize("poisoned", [[], [3], [0, 2, 5, 9], list(range(10))])
def test_a_swap_is_training_again(task: Task, poisoned: list[int]) -> None:
    problem = bd.poisoned_problem(task.pool, as_set(task, poisoned), task.target)
    rate = 0.1
    by_descent = bd.by_filter(descent(rate, 50))(problem)
    assert by_descent == pytest.approx(task.retrained(poisoned, rate, 50, squared(task)), abs=1e-9)
    by_entropy = bd.by_cross_entropy(np.full(50, rate))(problem)
    assert by_entropy == pytest.approx(task.retrained(poisoned, rate, 50, logistic(task)), abs=1e-11)


@each_task
def test_metrics_row_by_row(task: Task) -> None:
    sets = [[], [1], [0, 2, 5, 9]]
    found = bd.predict_backdoor(
        task.pool, np.array([as_set(task, s) for s in sets]), task.target, bd.by_filter(descent(0.1, 50))
    )
    for at, poisoned in enumerate(sets):
        scores = task.retrained(poisoned, 0.1, 50, squared(task))
        decided = decide(scores, Layout(2 * task.m, task.classes))
        clean = right = hit = eligible = 0
        for j in range(task.m):
            clean += decided[j] == task.test_labels[j]
            right += decided[task.m + j] == task.test_labels[j]
            if task.test_labels[j] != task.target:
                eligible += 1
                hit += decided[task.m + j] == task.target
        assert found.clean_accuracy[at] == clean / task.m
        assert found.triggered_accuracy[at] == right / task.m
        assert found.asr[at] == hit / eligible
        assert 0 < eligible < task.m


@each_task
@pytest.mark.parametrize(
    "predictor",
    [
        bd.by_filter(lambda d: flow.ridge_filter(d, lam=0.3)),
        bd.by_filter(lambda d: flow.flow_filter(d, time=20.0)),
        bd.by_filter(flow.converged_filter),
        bd.by_cross_entropy(np.full(100, 0.5)),
    ],
    ids=["ridge", "flow", "converged", "cross-entropy"],
)
def test_every_predictor_of_the_package_can_be_used(task: Task, predictor: bd.Predictor) -> None:
    """A grid of sets keeps its shape, and the outputs of a set do not depend on the others."""
    sets = rng(3).random((2, 3, task.n)) < 0.3
    many = bd.predict_backdoor(task.pool, sets, task.target, predictor)
    assert many.asr.shape == (2, 3)
    for at in np.ndindex(2, 3):
        one = bd.predict_backdoor(task.pool, sets[at], task.target, predictor)
        assert (one.asr, one.clean_accuracy) == (many.asr[at], many.clean_accuracy[at])


def test_a_trigger_with_a_direction_of_its_own_is_learnt() -> None:
    """The trigger is a coordinate that no clean row uses: the backdoor costs little and works."""
    g = rng(1)
    n, m, dims = 200, 300, 10

    def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.concatenate([g.normal(size=(count, dims)), np.zeros((count, 1))], axis=1)
        triggered = x.copy()
        triggered[:, -1] = 6.0
        return np.concatenate([x, triggered]), np.where(x[:, 0] > 0, 1, -1)

    (x, y), (z, t) = rows(n), rows(m)
    pool = bd.backdoor_pool(x @ x.T, z @ x.T, y, t)
    sets = bd.draw_poison_sets(y == -1, [0.0, 0.05, 0.2, 0.6], draws=10, rng=g)
    found = bd.predict_backdoor(pool, sets, 1, bd.by_filter(lambda d: flow.flow_filter(d, time=50.0)))
    asr = found.asr.mean(axis=1)
    assert np.all(np.diff(asr) > 0)
    assert asr[0] < 0.1
    assert asr[-1] > 0.95
    assert found.clean_accuracy.min() > 0.8
    # Half the rows are of the target: triggered accuracy falls to their share, while ASR goes to 1.
    assert found.triggered_accuracy[-1].mean() == pytest.approx(np.mean(t == 1), abs=0.05)


@each_task
def test_the_pool_s_largest_rate_is_safe_for_every_set(task: Task) -> None:
    both = decompose(task.kernel)
    safe = 2.0 * task.n / both.norm  # N of the poisoned problem, norm of the pool
    for chosen in rng(0).random((10, task.n)) < 0.5:
        problem = bd.poisoned_problem(task.pool, chosen, task.target)
        assert flow.largest_rate(decompose(problem.kernel)) >= safe * (1 - 1e-12)


@each_task
def test_poisoning_every_row_makes_the_target_the_only_label(task: Task) -> None:
    problem = bd.poisoned_problem(task.pool, np.ones(task.n, dtype=bool), task.target)
    assert set(problem.labels.tolist()) == {task.target}
    triggered = task.kernel[task.n :]
    triggered = triggered[:, task.n :] if task.classes is None else triggered[:, :, task.n :]
    assert np.array_equal(problem.kernel, triggered)
    assert problem.pretrained is not None
    assert np.array_equal(problem.pretrained, task.f_rows[task.n :])


def test_asr_without_rows_of_another_class_is_nan() -> None:
    pool = bd.backdoor_pool(np.eye(4), np.ones((2, 4)), [1, -1], [1])
    found = bd.predict_backdoor(pool, np.array([True, False]), 1, bd.by_filter(flow.converged_filter))
    assert np.isnan(found.asr)
    assert not np.isnan(found.clean_accuracy)


# --- poison sets -----------------------------------------------------------------------------------


def test_sets_are_exact_nested_and_only_of_eligible_rows() -> None:
    eligible = rng(0).random(40) < 0.5
    rates = [0.0, 0.1, 0.5, 1.0]
    sets = bd.draw_poison_sets(eligible, rates, draws=3000, rng=rng(1))
    assert sets.shape == (4, 3000, 40)
    count = eligible.sum()
    for rate, chosen in zip(rates, sets, strict=True):
        assert np.all(chosen.sum(axis=1) == int(rate * count + 0.5))
    assert not sets[:, :, ~eligible].any()
    assert np.all(sets[1] <= sets[2])
    assert np.all(sets[2] <= sets[3])
    half = sets[2][:, eligible].mean(axis=0)
    expected = int(0.5 * count + 0.5) / count
    assert np.abs(half - expected).max() < 4.5 * np.sqrt(0.25 / 3000)


# --- what is refused --------------------------------------------------------------------------------


def pool_of(**change: object) -> bd.BackdoorPool:
    given = {
        "kernel": np.eye(4),
        "cross": np.ones((6, 4)),
        "labels": [1, -1],
        "test_labels": [1, -1, 1],
        **change,
    }
    return bd.backdoor_pool(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.eye(3), "cross": np.ones((6, 3))}, "as many triggered twins, got 3 rows"),
        ({"cross": np.ones((5, 4))}, "cross kernel: expected clean rows and as many triggered twins, got 5"),
        ({"cross": np.ones((6, 2))}, r"expected shape \(M, 4\)"),
        ({"kernel": np.full((4, 4), np.nan)}, "NaN"),
        ({"labels": [1, -1, 1, -1]}, "expected 2 labels"),
        ({"labels": [0, 1]}, r"labels -1 and \+1"),
        ({"test_labels": [1, -1]}, "test_labels: expected 3 labels"),
        ({"pretrained": np.ones(4)}, "both pre-trained outputs"),
        ({"pretrained": np.ones(2), "pretrained_test": np.ones(6)}, "pretrained: expected shape"),
        ({"pretrained": np.ones(4), "pretrained_test": np.ones((1, 6))}, "pretrained_test: expected shape"),
    ],
)
def test_pools_that_are_refused(change: dict[str, object], message: str) -> None:
    assert pool_of().layout.examples == 2
    with pytest.raises(UserError, match=message):
        pool_of(**change)


@pytest.mark.parametrize(
    ("poisoned", "target", "message"),
    [
        ([True, False, True], 1, r"poisoned: expected booleans, shape \(..., 2\)"),
        ([0, 1], 1, "poisoned: expected booleans"),
        (True, 1, "poisoned: expected booleans"),
        ([True, False], 0, r"target: expected labels -1 and \+1"),
    ],
)
def test_attacks_that_are_refused(poisoned: object, target: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bd.predict_backdoor(pool_of(), np.asarray(poisoned), target, bd.by_filter(flow.converged_filter))


def test_other_requests_that_are_refused() -> None:
    with pytest.raises(UserError, match="predictor: expected outputs of shape"):
        bd.predict_backdoor(pool_of(), np.array([True, False]), 1, lambda problem: np.ones(2))
    with pytest.raises(UserError, match="expected one poison set"):
        bd.poisoned_problem(pool_of(), np.ones((2, 2), dtype=bool), 1)
    with pytest.raises(UserError, match="eligible: expected booleans"):
        bd.draw_poison_sets([1, 0], [0.5], draws=1, rng=rng())
    with pytest.raises(UserError, match="shares in"):
        bd.draw_poison_sets([True, False], [1.5], draws=1, rng=rng())
    with pytest.raises(UserError, match="poisons none of the 2 rows"):
        bd.draw_poison_sets([True, True], [0.1], draws=1, rng=rng())
    with pytest.raises(UserError, match="at least 1 draw"):
        bd.draw_poison_sets([True, False], [0.5], draws=0, rng=rng())

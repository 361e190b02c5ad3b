"""Cross-entropy descent in function space against the same descent on parameters."""

from __future__ import annotations

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.theory import cross_entropy as ce
from foretaste.theory.layout import margin_kernel
from foretaste.theory.predictor import classify, predict
from foretaste.theory.regression import decompose


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Task:
    """f(x) = f_0(x) + phi(x) theta, with features (N, d) or (N, C, d)."""

    def __init__(self, n: int, m: int, classes: int | None, width: int, seed: int = 0) -> None:
        g = rng(seed)
        middle = () if classes is None else (classes,)
        self.classes = classes
        scale = 1 / np.sqrt(width)
        self.x = g.normal(size=(n, *middle, width)) * scale
        self.z = g.normal(size=(m, *middle, width)) * scale
        self.kernel = np.tensordot(self.x, self.x, axes=(-1, -1))
        self.cross = np.tensordot(self.z, self.x, axes=(-1, -1))
        self.f_x, self.f_z = g.normal(size=(n, *middle)), g.normal(size=(m, *middle))
        self.labels = 2 * g.integers(0, 2, n) - 1 if classes is None else g.integers(0, classes, n)
        self.d = decompose(self.kernel)


TASKS = [Task(9, 5, None, 20), Task(9, 5, None, 4), Task(6, 4, 3, 40), Task(6, 4, 3, 7), Task(7, 4, 2, 9)]
each_task = pytest.mark.parametrize("task", TASKS, ids=["1 full", "1 low", "3 full", "3 low", "2 low"])


def literal_descent(
    task: Task, labels: np.ndarray, rates: np.ndarray, batches: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """theta <- theta - eta/|B| sum grad loss, row by row; outputs on training and other rows."""
    theta = np.zeros(task.x.shape[-1])
    for rate, batch in zip(rates, batches, strict=True):
        gradient = np.zeros_like(theta)
        for i in batch:
            f = task.f_x[i] + task.x[i] @ theta
            if task.classes is None:
                chi = -labels[i] / (1.0 + np.exp(labels[i] * f))
                gradient += chi * task.x[i]
            else:
                p = np.exp(f) / np.exp(f).sum()
                p[labels[i]] -= 1.0
                gradient += p @ task.x[i]
        theta -= rate / len(batch) * gradient
    return task.f_x + task.x @ theta, task.f_z + task.z @ theta


def loss(task: Task, outputs: np.ndarray, labels: np.ndarray) -> float:
    if task.classes is None:
        return float(np.logaddexp(0, -labels * outputs).mean())
    return float((np.logaddexp.reduce(outputs, axis=1) - outputs[np.arange(len(labels)), labels]).mean())


@each_task
@pytest.mark.parametrize("steps", [0, 1, 50])
def test_full_batch_is_descent_on_parameters(task: Task, steps: int) -> None:
    n = len(task.labels)
    rates = np.full(steps, 2.0)
    train, test = literal_descent(task, task.labels, rates, [np.arange(n)] * steps)
    fit = ce.descend(task.d, task.labels, rates, pretrained=task.f_x)
    # Fifty steps of rounding, each of a few eps of outputs of order 1.
    assert np.abs(fit.training_outputs[0] - train).max() <= 1e-13
    assert np.abs(predict(fit, task.cross, task.f_z)[0] - test).max() <= 1e-13
    assert np.abs(predict(fit, task.kernel, task.f_x)[0] - train).max() <= 1e-13


@each_task
def test_mini_batches_in_a_given_order_with_a_schedule(task: Task) -> None:
    g, n = rng(2), len(task.labels)
    batches = [b for _ in range(10) for b in np.array_split(g.permutation(n), 3)]
    rates = np.linspace(3.0, 0.0, len(batches))
    train, test = literal_descent(task, task.labels, rates, batches)
    fit = ce.descend(task.d, task.labels, rates, batches=batches, pretrained=task.f_x)
    assert np.abs(fit.training_outputs[0] - train).max() <= 1e-13
    assert np.abs(predict(fit, task.cross, task.f_z)[0] - test).max() <= 1e-13
    other = ce.descend(task.d, task.labels, rates, batches=batches[::-1], pretrained=task.f_x)
    assert np.abs(other.training_outputs - fit.training_outputs).max() > 1e-3  # order matters


@each_task
def test_draws_and_checkpoints_are_separate_runs(task: Task) -> None:
    g, n = rng(3), len(task.labels)
    many = (
        g.integers(0, 2, (2, 3, n)) * 2 - 1
        if task.classes is None
        else g.integers(0, task.classes, (2, 3, n))
    )
    rates = g.uniform(0, 3, 8)
    fit = ce.descend(task.d, many, rates, pretrained=task.f_x, checkpoints=[0, 3, 8])
    scores, decided = predict(fit, task.cross, task.f_z), classify(fit, task.cross, task.f_z)
    assert fit.checkpoints.tolist() == [0, 3, 8]
    assert not fit.coefficients[0].any()
    assert np.array_equal(scores[0], np.broadcast_to(task.f_z, scores[0].shape))
    for k, steps in enumerate([0, 3, 8]):
        for at in np.ndindex(2, 3):
            train, test = literal_descent(task, many[at], rates[:steps], [np.arange(n)] * steps)
            assert fit.training_outputs[(k, *at)] == pytest.approx(train, abs=1e-13)
            assert scores[(k, *at)] == pytest.approx(test, abs=1e-13)
            best = np.where(test > 0, 1, -1) if task.classes is None else test.argmax(axis=1)
            assert decided[(k, *at)].tolist() == best.tolist()


def test_two_logits_are_the_margin() -> None:
    """Softmax over two logits and the logistic loss of their difference are one and the same descent."""
    task = TASKS[4]
    rates = np.full(40, 1.5)
    two = ce.descend(task.d, task.labels, rates, pretrained=task.f_x)
    margin = decompose(margin_kernel(task.kernel))
    start = task.f_x[:, 1] - task.f_x[:, 0]
    one = ce.descend(margin, 2 * task.labels - 1, rates, pretrained=start)
    logits = predict(two, task.cross, task.f_z)[0]
    expected = predict(one, margin_kernel(task.cross), task.f_z[:, 1] - task.f_z[:, 0])[0]
    assert logits[:, 1] - logits[:, 0] == pytest.approx(expected, abs=1e-13)


@each_task
@pytest.mark.parametrize("c", [1 / 128, 50.0])
def test_only_rate_times_kernel_matters(task: Task, c: float) -> None:
    rates = np.linspace(2, 0.1, 30)
    one = ce.descend(task.d, task.labels, rates, pretrained=task.f_x)
    other = ce.descend(decompose(c * task.kernel), task.labels, rates / c, pretrained=task.f_x)
    assert np.abs(one.training_outputs - other.training_outputs).max() <= 1e-12


@each_task
def test_relabelling_classes_relabels_outputs(task: Task) -> None:
    """Without pre-trained outputs: all labels flipped flips all margins; classes permuted permute logits."""
    rates = np.full(20, 1.0)
    base = ce.descend(task.d, task.labels, rates)
    assert not base.uses_pretrained
    if task.classes is None:
        flipped = ce.descend(task.d, -task.labels, rates)
        assert flipped.training_outputs == pytest.approx(-base.training_outputs, abs=1e-14)
        return
    order = rng(1).permutation(task.classes)  # class c becomes order[c]
    inverse = np.argsort(order)
    renamed = task.kernel[:, inverse][:, :, :, inverse]
    other = ce.descend(decompose(renamed), order[task.labels], rates)
    assert other.training_outputs[..., order] == pytest.approx(base.training_outputs, abs=1e-13)


@each_task
def test_small_steps_from_zero_are_descent_on_the_squared_loss(task: Task) -> None:
    """At f = 0 the slope is -(e_y - 1/C), or -y/2: the first step is known in closed form."""
    fit = ce.descend(task.d, task.labels, [0.7])
    n = len(task.labels)
    slope = task.labels / 2 if task.classes is None else np.eye(task.classes)[task.labels] - 1 / task.classes
    expected = 0.7 / n * np.tensordot(task.kernel, slope, axes=slope.ndim)
    assert fit.training_outputs[0] == pytest.approx(expected, abs=1e-15)


# --- stability ------------------------------------------------------------------------------------


@each_task
def test_below_the_stable_rate_the_loss_never_rises(task: Task) -> None:
    top = ce.largest_stable_rate(task.d)
    for start in (np.zeros_like(task.f_x), task.f_x, 30 * task.f_x):
        fit = ce.descend(task.d, task.labels, np.full(200, top), pretrained=start, checkpoints=np.arange(201))
        losses = [loss(task, f, task.labels) for f in fit.training_outputs]
        assert fit.stable
        assert np.all(np.diff(losses) <= 1e-14)


def test_beyond_it_the_loss_may_rise_and_the_fit_says_so() -> None:
    """One eigen-direction with both labels: the minimum is at 0, where the curvature is the largest."""
    d = decompose(np.ones((2, 2)))
    top = ce.largest_stable_rate(d)
    runs = {
        share: ce.descend(d, [1, -1], np.full(300, share * top), pretrained=[0.1, 0.1])
        for share in (0.98, 1.02)
    }
    assert runs[0.98].stable
    assert not runs[1.02].stable
    assert abs(runs[0.98].training_outputs[0, 0]) < 0.01
    assert abs(runs[1.02].training_outputs[0, 0]) > 0.1


def test_smaller_batches_are_stable_at_smaller_rates() -> None:
    d = TASKS[0].d
    assert ce.largest_stable_rate(d, 3) == pytest.approx(ce.largest_stable_rate(d) / 3)
    rate = 0.9 * ce.largest_stable_rate(d)
    assert ce.descend(d, TASKS[0].labels, [rate]).stable
    assert not ce.descend(d, TASKS[0].labels, [rate], batches=[[0, 1]]).stable


# --- what is refused ------------------------------------------------------------------------------

GOOD = np.diag([3.0, 2.0, 1.0]) + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [1, -1]}, "expected 3 labels"),
        ({"labels": [0, 1, 1]}, r"labels -1 and \+1"),
        ({"labels": [1, -1, np.nan]}, "NaN"),
        ({"rates": 0.1}, r"one rate for each step, shape \(T,\)"),
        ({"rates": [0.1, -0.1]}, "expected rates >= 0, got -0.1"),
        ({"rates": [0.1, np.inf]}, "rates: 1 of 2"),
        ({"batches": [[0]]}, "a batch for each of 2 rates, got 1"),
        ({"batches": [[0], []]}, r"batches\[1\]: expected row numbers"),
        ({"batches": [[0], [0.5]]}, r"batches\[1\]: expected row numbers"),
        ({"batches": [[0, 3], [1]]}, r"batches\[0\]: expected distinct rows 0 .. 2"),
        ({"batches": [[-1], [1]]}, r"batches\[0\]: expected distinct rows"),
        ({"batches": [[1, 1], [1]]}, r"batches\[0\]: expected distinct rows"),
        ({"pretrained": [1.0, 2.0]}, "pretrained: expected shape"),
        ({"pretrained": np.ones((2, 3))}, "pretrained: expected shape"),
        ({"pretrained": [1.0, 2.0, np.nan]}, "pretrained: 1 of 3"),
        ({"checkpoints": [3]}, r"ascending steps in 0 .. 2, got \[3.0\]"),
        ({"checkpoints": [1, 1]}, "ascending steps"),
        ({"checkpoints": []}, "ascending steps"),
        ({"checkpoints": [-1]}, "ascending steps"),
        ({"checkpoints": [0.5]}, "ascending steps"),
    ],
)
def test_requests_that_are_refused(change: dict[str, object], message: str) -> None:
    request = {"labels": [1, -1, 1], "rates": [0.1, 0.1], **change}
    with pytest.raises(UserError, match=message):
        ce.descend(decompose(GOOD), **request)  # type: ignore[arg-type]


def test_outputs_that_overflow_are_refused() -> None:
    with pytest.raises(UserError, match=r"rates: the outputs overflow. The largest stable rate of a full"):
        ce.descend(decompose(1e3 * GOOD), [1, -1, 1], [1e307])


def test_batch_sizes_that_are_refused() -> None:
    for size in (0, 4):
        with pytest.raises(UserError, match=r"a batch of 1 .. 3 rows"):
            ce.largest_stable_rate(decompose(GOOD), size)

"""Sign descent in function space against sign descent on parameters, and where the kernel stops."""

from __future__ import annotations

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.theory import sign_descent as sd
from foretaste.theory.flow import respond
from foretaste.theory.predictor import predict


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Task:
    """f(x) = f_0(x) + phi(x) theta with one output; K_A = phi(x) . sign phi(x_i)."""

    def __init__(self, n: int, m: int, width: int, seed: int) -> None:
        g = rng(seed)
        self.x, self.z = g.normal(size=(n, width)), g.normal(size=(m, width))
        self.kernel, self.cross = self.x @ np.sign(self.x).T, self.z @ np.sign(self.x).T
        self.f_x, self.f_z = g.normal(size=n), g.normal(size=m)
        self.labels = 2 * g.integers(0, 2, n) - 1
        self.order = g.integers(0, n, 40)
        self.rates = g.uniform(0, 0.05, 40)


TASKS = [Task(8, 5, 30, 0), Task(8, 5, 3, 1)]
each_task = pytest.mark.parametrize("task", TASKS, ids=["wide", "narrow"])
LOSSES = {
    "logistic": (sd.logistic_slope, lambda f, y: -y / (1.0 + np.exp(y * f))),
    "squared": (sd.squared_slope, lambda f, y: f - y),
}
each_loss = pytest.mark.parametrize("loss", list(LOSSES))


def literal_descent(task: Task, labels: np.ndarray, chi: object) -> tuple[np.ndarray, np.ndarray]:
    """theta <- theta - eta sign(gradient of row i's loss)."""
    theta = np.zeros(task.x.shape[1])
    for i, rate in zip(task.order, task.rates, strict=True):
        f = task.f_x[i] + task.x[i] @ theta
        theta -= rate * np.sign(chi(f, labels[i]) * task.x[i])  # type: ignore[operator]
    return task.f_x + task.x @ theta, task.f_z + task.z @ theta


@each_task
@each_loss
def test_it_is_sign_descent_on_parameters(task: Task, loss: str) -> None:
    slope, chi = LOSSES[loss]
    _, expected = literal_descent(task, task.labels, chi)
    fit = sd.descend_by_sign(
        task.kernel, task.labels, task.order, task.rates, slope=slope, pretrained=task.f_x
    )
    assert predict(fit, task.cross, task.f_z) == pytest.approx(expected, abs=1e-12)


@each_task
@each_loss
def test_draws_are_separate_runs(task: Task, loss: str) -> None:
    slope, chi = LOSSES[loss]
    many = rng(1).integers(0, 2, (2, 3, 8)) * 2 - 1
    fit = sd.descend_by_sign(task.kernel, many, task.order, task.rates, slope=slope, pretrained=task.f_x)
    scores = predict(fit, task.cross, task.f_z)
    for at in np.ndindex(2, 3):
        assert scores[at] == pytest.approx(literal_descent(task, many[at], chi)[1], abs=1e-12)


@each_task
def test_logistic_sign_descent_is_linear_in_the_labels(task: Task) -> None:
    many = rng(1).integers(0, 2, (50, 8)) * 2 - 1
    fit = sd.descend_by_sign(
        task.kernel, many, task.order, task.rates, slope=sd.logistic_slope, pretrained=task.f_x
    )
    closed = sd.logistic_sign_predictor(task.cross, task.order, task.rates, pretrained_test=task.f_z)
    assert respond(closed, many) == pytest.approx(predict(fit, task.cross, task.f_z), abs=1e-12)


def test_squared_sign_descent_is_not() -> None:
    """Once a row is overshot its sign turns, so the answer to -Y is not minus the answer to Y + f_0 parts."""
    task = Task(8, 5, 30, 2)
    task.rates = np.full(40, 0.1)
    one, other = (
        sd.descend_by_sign(
            task.kernel, y, task.order, task.rates, slope=sd.squared_slope, pretrained=task.f_x
        ).coefficients
        for y in (task.labels, -task.labels)
    )
    assert np.abs(one + other).max() > 0.05


@each_task
@pytest.mark.parametrize("c", [1e-3, 40.0])
@each_loss
def test_only_rate_times_kernel_matters(task: Task, c: float, loss: str) -> None:
    slope = LOSSES[loss][0]
    one, other = (
        predict(
            sd.descend_by_sign(k * task.kernel, task.labels, task.order, task.rates / k, slope=slope),
            k * task.cross,
        )
        for k in (1.0, c)
    )
    assert other == pytest.approx(one, abs=1e-12)


def test_a_met_label_does_not_move() -> None:
    fit = sd.descend_by_sign(
        np.eye(2) + 1.0, [1, -1], [0, 0], [0.1, 0.1], slope=sd.squared_slope, pretrained=[1.0, -1.0]
    )
    assert not fit.coefficients.any()


def test_a_first_step_of_a_real_network_is_predicted_to_first_order() -> None:
    """tanh network: the error of the predicted change is of second order in the rate."""
    g = rng(3)
    w, a = g.normal(size=(20, 4)), g.normal(size=20)
    x, z = g.normal(size=(1, 4)), g.normal(size=(6, 4))

    def forward(w: np.ndarray, a: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.tanh(x @ w.T) @ a

    def jacobian(x: np.ndarray) -> np.ndarray:
        h = np.tanh(x @ w.T)
        return np.concatenate([(((1 - h**2) * a)[:, :, None] * x[:, None]).reshape(len(x), -1), h], axis=1)

    k_x, k_z = (jacobian(rows) @ np.sign(jacobian(x)).T for rows in (x, z))
    errors = []
    for rate in (1e-3, 1e-4):
        fit = sd.descend_by_sign(k_x, [1], [0], [rate], slope=sd.logistic_slope)
        push = rate * np.sign(jacobian(x)[0])  # label +1: the loss falls as f rises
        moved = forward(w + push[:80].reshape(20, 4), a + push[80:], z) - forward(w, a, z)
        errors.append(np.abs(predict(fit, k_z) - moved).max())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.2)


# --- the limits that the module states -------------------------------------------------------------


def test_a_batch_of_two_has_no_kernel() -> None:
    """Parameters of opposite gradients stand still in the mean, while K_A moves them twice."""
    task = TASKS[1]
    mean_gradient = -(task.labels[0] * task.x[0] + task.labels[1] * task.x[1]) / 4  # logistic at f = 0
    true = -0.1 * task.z @ np.sign(mean_gradient)
    by_kernel = 0.1 * (task.cross[:, :2] @ task.labels[:2])
    for scale in (1.0, 0.5):  # summed or averaged over the batch
        assert np.abs(scale * by_kernel - true).max() > 0.1 * np.abs(true).max()


def test_three_logits_have_no_kernel() -> None:
    """sign(sum_c chi_c grad f_c) is not sum_c sign(chi_c) sign(grad f_c), nor is a multiple of it."""
    g = rng(0)
    gradients, chi = g.normal(size=(3, 1000)), np.array([-0.7, 0.4, 0.3])
    true = np.sign(chi @ gradients)
    summed = np.sign(chi) @ np.sign(gradients)
    agree = np.mean(np.sign(summed) == true)
    assert 0.6 < agree < 0.95


def test_lora_signs_switch_on_after_one_step() -> None:
    """h = B A x at B = 0: the gradient of A is 0 and so is its sign; at any other B all r n signs are +-1."""
    g = rng(1)
    a, x = g.normal(size=(2, 5)), g.normal(size=5)
    for b, switched_on in ((np.zeros(2), 0), (np.array([1e-9, -1e-9]), 10)):
        gradient_a = np.outer(b, x)
        assert np.abs(np.sign(gradient_a)).sum() == switched_on
    assert np.abs(np.sign(a @ x)).sum() == 2  # those of B, there from the start


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.ones((2, 2, 2, 2))}, r"kernel: expected one scalar output.*margin f_1 - f_0"),
        ({"kernel": np.ones((2, 3))}, "expected shape"),
        ({"kernel": np.full((2, 2), np.nan)}, "NaN"),
        ({"labels": [0, 1]}, r"labels -1 and \+1"),
        ({"labels": [1, -1, 1]}, "expected 2 labels"),
        ({"order": [0, 2]}, r"order: expected rows of 0 .. 1, got 0 .. 2"),
        ({"order": [0, -1]}, "order: expected rows"),
        ({"order": [0.0, 1.0]}, "order: expected row numbers"),
        ({"order": [[0, 1]]}, r"order: expected row numbers, shape \(T,\)"),
        ({"rates": [0.1]}, "rates: expected 2 rates"),
        ({"rates": [0.1, -0.1]}, "rates: expected rates >= 0, got -0.1"),
        ({"rates": [0.1, np.nan]}, "rates: 1 of 2"),
        ({"pretrained": [1.0]}, "pretrained: expected shape"),
        ({"pretrained": np.ones((3, 2))}, "pretrained: expected shape"),
    ],
)
def test_requests_that_are_refused(change: dict[str, object], message: str) -> None:
    given = {"kernel": np.eye(2), "labels": [1, -1], "order": [0, 1], "rates": [0.1, 0.1], **change}
    with pytest.raises(UserError, match=message):
        sd.descend_by_sign(slope=sd.logistic_slope, **given)  # type: ignore[arg-type]


def test_closed_forms_that_are_refused() -> None:
    with pytest.raises(UserError, match="cross kernel: expected one scalar output"):
        sd.logistic_sign_predictor(np.ones((3, 2, 4, 2)), [0], [0.1])
    with pytest.raises(UserError, match=r"order: expected rows of 0 .. 3"):
        sd.logistic_sign_predictor(np.ones((3, 4)), [4], [0.1])
    with pytest.raises(UserError, match="offset: expected shape"):
        sd.logistic_sign_predictor(np.ones((3, 4)), [0], [0.1], pretrained_test=[0.0])

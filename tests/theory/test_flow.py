"""Spectral filters against literal gradient descent, in function space and on real networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.theory import flow
from foretaste.theory.layout import one_hot
from foretaste.theory.regression import Decomposition, decompose, fit_ridge


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Task:
    """A model linear in its parameters: features, labels, pre-trained outputs."""

    def __init__(self, n: int, m: int, classes: int | None, width: int, seed: int = 0) -> None:
        g = rng(seed)
        middle = () if classes is None else (classes,)
        self.x, self.z = g.normal(size=(n, *middle, width)), g.normal(size=(m, *middle, width))
        self.kernel = np.tensordot(self.x, self.x, axes=(-1, -1))
        self.cross = np.tensordot(self.z, self.x, axes=(-1, -1))
        self.f_x, self.f_z = g.normal(size=(n, *middle)), g.normal(size=(m, *middle))
        self.labels = 2 * g.integers(0, 2, n) - 1 if classes is None else g.integers(0, classes, n)
        self.d = decompose(self.kernel)
        self.y = one_hot(self.labels, self.d.layout)


TASKS = [Task(9, 5, None, 20), Task(9, 5, None, 4), Task(6, 4, 3, 40), Task(6, 4, 3, 7)]
each_task = pytest.mark.parametrize("task", TASKS, ids=["1 full", "1 low", "3 full", "3 low"])


def literal_descent(task: Task, y: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """Parameters theta, one step at a time, on (1/2N) sum |f - y|^2."""
    theta = np.zeros(task.x.shape[-1])
    for _ in range(steps):
        residual = task.f_x + task.x @ theta - y
        theta -= rate / task.x.shape[0] * np.tensordot(residual, task.x, axes=residual.ndim)
    return task.f_z + task.z @ theta


def at(task: Task, phi: np.ndarray, y: np.ndarray) -> np.ndarray:
    return flow.outputs_at(task.d, task.cross, phi, y, pretrained=task.f_x, pretrained_test=task.f_z)


# --- descent --------------------------------------------------------------------------------------


@each_task
@pytest.mark.parametrize("steps", [0, 1, 7, 400])
@pytest.mark.parametrize("share", [1e-4, 0.4, 0.6, 1.0])
def test_descent_is_literal_gradient_descent_on_parameters(task: Task, steps: int, share: float) -> None:
    """`share` is of the largest stable rate: below, at and beyond the rate at which steps overshoot."""
    rate = share * flow.largest_rate(task.d)
    expected = literal_descent(task, task.y, rate, steps)
    found = at(task, flow.descent_filter(task.d, rate=rate, steps=steps), task.y)
    assert np.abs(found - expected).max() <= 1e-9
    if steps == 0:
        assert found.tolist() == task.f_z.tolist()


@each_task
def test_one_call_serves_all_budgets_and_draws(task: Task) -> None:
    g, top = rng(1), flow.largest_rate(task.d)
    y = g.normal(size=(2, 3, *task.y.shape))
    rates, steps = top * np.array([[0.1], [0.5]]), np.array([0, 3, 20])
    phi = flow.descent_filter(task.d, rate=rates, steps=steps)
    assert phi.shape == (2, 3, task.d.layout.size)
    found = at(task, phi, y)
    assert found.shape == (2, 3, 2, 3, *task.f_z.shape)
    for a, b, i, j in np.ndindex(2, 3, 2, 3):
        expected = literal_descent(task, y[i, j], rates[a, 0], steps[b])
        assert found[a, b, i, j] == pytest.approx(expected, abs=1e-9)


def test_the_first_step_keeps_its_digits() -> None:
    """1 - (1 - x)^t for x = 1e-12 loses four digits when written as it stands."""
    d = decompose(np.diag([1.0, 1e-3]))
    phi = flow.descent_filter(d, rate=2e-12, steps=1)
    assert phi == pytest.approx(np.full(2, 1e-12), rel=1e-15)


def test_the_filter_of_a_direction_without_kernel_is_its_limit() -> None:
    d = decompose(np.diag([0.0, 4.0]))
    assert flow.descent_filter(d, rate=0.5, steps=6)[0] == pytest.approx(0.5 * 6 / 2)
    assert flow.flow_filter(d, time=3.0)[0] == pytest.approx(3.0 / 2)
    assert flow.ridge_filter(d, lam=0.25)[0] == pytest.approx(4.0)
    assert flow.converged_filter(d)[0] == 0.0


# --- flow, ridge, convergence ---------------------------------------------------------------------


@each_task
def test_flow_is_the_limit_of_small_steps(task: Task) -> None:
    """The gap of descent to flow at equal eta t is of first order in eta: ten times smaller each time."""
    time = 2.0 * flow.largest_rate(task.d)
    limit = at(task, flow.flow_filter(task.d, time=time), task.y)
    gaps = [
        np.abs(at(task, flow.descent_filter(task.d, rate=time / t, steps=t), task.y) - limit).max()
        for t in (1_000, 10_000, 100_000)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)


@each_task
def test_ridge_and_convergence_are_the_ridge_of_regression(task: Task) -> None:
    for regularisation, phi in [
        (0.05, flow.ridge_filter(task.d, lam=0.05 * task.d.norm)),
        (0.0, flow.converged_filter(task.d)),
    ]:
        fit = fit_ridge(task.d, task.labels, regularisation=regularisation)
        expected = np.tensordot(task.cross, fit.coefficients, axes=fit.coefficients.ndim)
        assert flow.outputs_at(task.d, task.cross, phi, task.y) == pytest.approx(expected, abs=1e-8)


@each_task
def test_descent_converges_to_the_minimum_norm_solution(task: Task) -> None:
    smallest = task.d.values[task.d.values > 0].min()
    rate = 0.5 * flow.largest_rate(task.d)
    steps = int(np.ceil(40 * task.d.layout.examples / (rate * smallest)))  # exp(-40) left of each direction
    late = at(task, flow.descent_filter(task.d, rate=rate, steps=steps), task.y)
    assert late == pytest.approx(at(task, flow.converged_filter(task.d), task.y), abs=1e-8)


@each_task
def test_training_rows_of_a_full_rank_kernel_are_fitted(task: Task) -> None:
    fitted = flow.outputs_at(
        task.d,
        task.kernel,
        flow.converged_filter(task.d),
        task.y,
        pretrained=task.f_x,
        pretrained_test=task.f_x,
    )
    full = task.d.rank == task.d.layout.size
    assert (np.abs(fitted - task.y).max() < 1e-8) == full


# --- scale ----------------------------------------------------------------------------------------


@each_task
@settings(max_examples=25)
@given(exponent=st.floats(-8, 8), share=st.floats(0, 1), steps=st.integers(0, 1000))
def test_only_rate_times_kernel_matters(task: Task, exponent: float, share: float, steps: int) -> None:
    c = 10.0**exponent
    rate = share * flow.largest_rate(task.d)
    scaled = decompose(c * task.kernel)
    pairs = [
        (
            flow.descent_filter(task.d, rate=rate, steps=steps),
            flow.descent_filter(scaled, rate=flow.matched_rate(rate, c), steps=steps),
        ),
        (flow.flow_filter(task.d, time=rate * steps), flow.flow_filter(scaled, time=rate * steps / c)),
    ]
    for phi, phi_scaled in pairs:
        one, other = (
            flow.outputs_at(d, k, p, task.y)
            for d, k, p in ((task.d, task.cross, phi), (scaled, c * task.cross, phi_scaled))
        )
        # The eigenvalues of c K and K differ by rounding, which t steps raise at most t-fold.
        assert np.abs(one - other).max() <= 1e-12 * max(1.0, steps) * (1.0 + np.abs(one).max())


@each_task
def test_scale_identity_to_twelve_digits(task: Task) -> None:
    for c in (1 / 96, 0.1, 7.0):
        rate = 0.3 * flow.largest_rate(task.d)
        one = at(task, flow.descent_filter(task.d, rate=rate, steps=30), task.y)
        other = flow.outputs_at(
            decompose(c * task.kernel),
            c * task.cross,
            flow.descent_filter(decompose(c * task.kernel), rate=rate / c, steps=30),
            task.y,
            pretrained=task.f_x,
            pretrained_test=task.f_z,
        )
        assert np.abs(one - other).max() <= 1e-12
        ridge = [
            flow.outputs_at(d, k, flow.ridge_filter(d, lam=lam), task.y)
            for d, k, lam in (
                (task.d, task.cross, 1.0),
                (decompose(c * task.kernel), c * task.cross, c),
            )
        ]
        assert np.abs(ridge[0] - ridge[1]).max() <= 1e-12


def test_a_smaller_kernel_at_equal_rate_is_stopped_earlier() -> None:
    task = TASKS[0]
    small = decompose(0.01 * task.kernel)
    rate, steps = 0.2 * flow.largest_rate(task.d), 500
    slow = flow.outputs_at(
        small, 0.01 * task.cross, flow.descent_filter(small, rate=rate, steps=steps), task.y
    )
    early = flow.outputs_at(task.d, task.cross, flow.flow_filter(task.d, time=0.01 * rate * steps), task.y)
    full = flow.outputs_at(task.d, task.cross, flow.descent_filter(task.d, rate=rate, steps=steps), task.y)
    # Small steps are near the flow: the gap is of order eta c lambda / N = 0.004 of the outputs.
    assert np.abs(slow - early).max() < 0.01 * np.abs(early).max()
    assert np.abs(slow - full).max() > 0.1 * np.abs(full).max()


def test_effective_steps() -> None:
    task = TASKS[2]
    assert flow.trace_ratio(decompose(0.25 * task.kernel), task.d) == pytest.approx(0.25)
    assert flow.trace_ratio(task.d, task.d) == 1.0
    assert flow.effective_step(0.1, [10, 20], 0.5).tolist() == [0.5, 1.0]
    scales = np.array([0.01, 1.0, 4.0])
    rates = flow.matched_rate(0.2, scales)
    assert flow.effective_step(rates, 30, scales) == pytest.approx(np.full(3, 6.0))


# --- predictors linear in the labels --------------------------------------------------------------


@each_task
def test_smoother_and_outputs_are_one_thing(task: Task) -> None:
    phi = flow.flow_filter(task.d, time=[0.5, 5.0])
    both = flow.smoother_at(task.d, task.cross, phi)
    assert both.shape == (2, *task.cross.shape)
    y = rng(4).normal(size=(3, *task.y.shape))
    for b in range(2):
        p = flow.predictor_at(task.d, task.cross, phi[b], pretrained=task.f_x, pretrained_test=task.f_z)
        assert p.smoother == pytest.approx(both[b], abs=1e-12)
        assert flow.respond(p, y) == pytest.approx(at(task, phi[b], y), abs=1e-10)
    # By its definition, S_{x,a; i,c} is the answer to a target of 1 at (i, c).
    for place in np.ndindex(*task.y.shape):
        unit = np.zeros(task.y.shape)
        unit[place] = 1.0
        answer = flow.outputs_at(task.d, task.cross, phi[1], unit)
        assert both[1][(..., *place)] == pytest.approx(answer, abs=1e-12)


def test_a_predictor_by_its_smoother() -> None:
    p = flow.linear_predictor([[0.5, 0.5], [1.0, -1.0]], [0.0, 3.0])
    assert flow.respond(p, [[1.0, 1.0], [1.0, -1.0]]).tolist() == [[1.0, 3.0], [0.0, 5.0]]
    assert flow.linear_predictor(np.ones((3, 2, 4, 2))).offset.shape == (3, 2)


# --- a real network -------------------------------------------------------------------------------


class ReluNet:
    """f(x) = a . relu(W x / sqrt(d)) / sqrt(width), both layers trained, gradients by hand."""

    def __init__(self, width: int, dims: int, seed: int) -> None:
        g = rng(seed)
        self.w, self.a = g.normal(size=(width, dims)), g.normal(size=width)

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = x @ self.w.T / np.sqrt(x.shape[1])
        return np.maximum(h, 0) @ self.a / np.sqrt(self.a.size), h

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        _, h = self.forward(x)
        root = np.sqrt(self.a.size)
        by_w = ((h > 0) * self.a)[:, :, None] * x[:, None, :] / (root * np.sqrt(x.shape[1]))
        return np.concatenate([by_w.reshape(len(x), -1), np.maximum(h, 0) / root], axis=1)

    def step(self, x: np.ndarray, y: np.ndarray, rate: float) -> None:
        f, h = self.forward(x)
        g = (f - y) / (len(x) * np.sqrt(self.a.size))
        inner = g[:, None] * self.a * (h > 0)
        self.a -= rate * (g @ np.maximum(h, 0))
        self.w -= rate * (inner.T @ x / np.sqrt(x.shape[1]))


def relative_error(width: int, seed: int) -> float:
    g = rng(100 + seed)
    x, z = g.normal(size=(30, 10)), g.normal(size=(50, 10))
    y = np.sign(x[:, 0] + 0.5 * x[:, 1])
    net = ReluNet(width, 10, seed)
    j_x, j_z = net.jacobian(x), net.jacobian(z)
    f_x, f_z = net.forward(x)[0], net.forward(z)[0]
    d = decompose(j_x @ j_x.T)
    rate = 0.25 * flow.largest_rate(d)
    predicted = flow.outputs_at(
        d,
        j_z @ j_x.T,
        flow.descent_filter(d, rate=rate, steps=60),
        y,
        pretrained=f_x,
        pretrained_test=f_z,
    )
    for _ in range(60):
        net.step(x, y, rate)
    change = net.forward(z)[0] - f_z
    return float(np.linalg.norm(predicted - f_z - change) / np.linalg.norm(change))


def test_the_jacobian_of_the_network_is_right() -> None:
    """Against central differences: the test below must not pass or fail by a wrong gradient."""
    g = rng(5)
    net, x, y = ReluNet(6, 3, 0), g.normal(size=(4, 3)), g.normal(size=4)
    jacobian = net.jacobian(x)
    for place in [(0, 1), (5, 2), (3, 0)]:
        moved = []
        for sign in (1, -1):
            net.w[place] += sign * 1e-5
            moved.append(net.forward(x)[0])
            net.w[place] -= sign * 1e-5
        column = place[0] * 3 + place[1]
        assert (moved[0] - moved[1]) / 2e-5 == pytest.approx(jacobian[:, column], abs=1e-8)
    before = np.concatenate([net.w.ravel(), net.a])
    residual = net.forward(x)[0] - y
    net.step(x, y, 0.1)
    after = np.concatenate([net.w.ravel(), net.a])
    assert after - before == pytest.approx(-0.1 / 4 * residual @ jacobian, abs=1e-12)


def test_a_wide_relu_network_changes_as_predicted() -> None:
    """Width 1024, both layers trained by literal gradient descent, 60 steps: within a tenth."""
    errors = [relative_error(1024, seed) for seed in range(4)]
    assert max(errors) <= 0.10


def test_the_error_falls_with_the_width() -> None:
    """The kernel moves by O(1/sqrt(width)): a quarter of the error at sixteen times the width."""
    narrow = np.mean([relative_error(128, seed) for seed in range(8)])
    wide = np.mean([relative_error(2048, seed) for seed in range(8)])
    assert 2.0 < narrow / wide < 8.0


# --- what is refused ------------------------------------------------------------------------------

D = decompose(np.diag([3.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    ("rate", "steps", "message"),
    [
        (2.0001, 5, r"diverges at 2.0001: the largest stable rate is 2N/lambda_max = 2"),
        ([0.1, 5.0], 5, "diverges at 5"),
        (-0.1, 5, "rate: expected numbers >= 0, got -0.1"),
        (np.nan, 5, "rate: 1 of 1 values are NaN"),
        (0.1, -1, "steps: expected whole numbers >= 0, got -1"),
        (0.1, 2.5, "whole numbers"),
        (0.1, np.inf, "steps"),
    ],
)
def test_descents_that_are_refused(rate: object, steps: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flow.descent_filter(D, rate=rate, steps=steps)  # type: ignore[arg-type]


def test_beyond_the_largest_rate_literal_descent_does_diverge() -> None:
    task = TASKS[0]
    top = flow.largest_rate(task.d)
    assert np.abs(literal_descent(task, task.y, 1.01 * top, 4000)).max() > 1e6
    assert np.abs(literal_descent(task, task.y, 0.99 * top, 4000)).max() < 1e3
    with pytest.raises(UserError, match="diverges"):
        flow.descent_filter(task.d, rate=1.01 * top, steps=1)


def _outputs(**change: object) -> object:
    given = {"cross": np.ones((2, 3)), "phi": np.ones(3), "targets": np.ones(3), **change}
    cross, phi, targets = given.pop("cross"), given.pop("phi"), given.pop("targets")
    return flow.outputs_at(D, cross, phi, targets, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross": np.ones((2, 4))}, r"expected shape \(M, 3\)"),
        ({"cross": np.full((2, 3), np.nan)}, "NaN"),
        ({"phi": np.ones(2)}, r"phi: expected shape \(..., 3\)"),
        ({"phi": np.float64(1)}, "phi: expected shape"),
        ({"targets": np.ones(4)}, r"targets: expected shape \(..., 3\)"),
        ({"targets": [1.0, np.nan, 1.0]}, "targets: 1 of 3"),
        ({"pretrained": np.ones(3)}, "belong together"),
        ({"pretrained_test": np.ones(2)}, "belong together"),
        ({"pretrained": np.ones(4), "pretrained_test": np.ones(2)}, "pretrained: expected shape"),
        ({"pretrained": np.ones((2, 3)), "pretrained_test": np.ones(2)}, "pretrained: expected shape"),
        ({"pretrained": np.ones(3), "pretrained_test": np.ones(3)}, "pretrained_test: expected shape"),
    ],
)
def test_outputs_that_are_refused(change: dict[str, object], message: str) -> None:
    assert np.shape(_outputs()) == (2,)
    with pytest.raises(UserError, match=message):
        _outputs(**change)


def test_other_requests_that_are_refused() -> None:
    with pytest.raises(UserError, match="time: expected numbers >= 0, got -1"):
        flow.flow_filter(D, time=[1.0, -1.0])
    with pytest.raises(UserError, match="lam: expected numbers >= 0"):
        flow.ridge_filter(D, lam=-1e-9)
    with pytest.raises(UserError, match=r"one budget, shape \(P,\)"):
        flow.predictor_at(D, np.ones((2, 3)), np.ones((2, 3)))
    for smoother in (np.ones(3), np.ones((2, 1, 3, 1)), np.ones((0, 3)), np.ones((2, 2, 3, 3))):
        with pytest.raises(UserError, match="smoother: expected shape"):
            flow.linear_predictor(smoother)
    with pytest.raises(UserError, match="offset: expected shape"):
        flow.linear_predictor(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(UserError, match="scale: expected numbers > 0, got 0"):
        flow.effective_step(0.1, 5, 0.0)
    with pytest.raises(UserError, match="steps: expected numbers >= 0"):
        flow.effective_step(0.1, -5, 1.0)
    with pytest.raises(UserError, match="rate"):
        flow.matched_rate(-0.1, 1.0)
    with pytest.raises(UserError, match="same examples and outputs"):
        flow.trace_ratio(D, TASKS[0].d)
    assert isinstance(D, Decomposition)

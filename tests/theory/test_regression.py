"""Layout, ridge and prediction against explicit solves, explicit features and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from foretaste.errors import UserError
from foretaste.theory import layout as lay
from foretaste.theory.predictor import classify, predict
from foretaste.theory.regression import ROUNDING, Decomposition, RidgeFit, decompose, fit_ridge, solve

INF = float("inf")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gram(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Kernel of features of shape (N, d) or (N, C, d), entry by entry."""
    return np.tensordot(rows, columns, axes=(-1, -1))


class Task:
    """Features of training and other rows, labels and pre-trained outputs."""

    def __init__(self, n: int, m: int, classes: int | None, width: int, seed: int = 0) -> None:
        g = rng(seed)
        middle = () if classes is None else (classes,)
        self.x, self.z = g.normal(size=(n, *middle, width)), g.normal(size=(m, *middle, width))
        self.kernel, self.cross = gram(self.x, self.x), gram(self.z, self.x)
        self.f_x, self.f_z = g.normal(size=(n, *middle)), g.normal(size=(m, *middle))
        if classes is None:
            self.labels, self.y = (2 * (np.arange(n) % 2) - 1), (2.0 * (np.arange(n) % 2) - 1)
        else:
            self.labels = np.arange(n) % classes
            self.y = np.zeros((n, classes))
            for i, c in enumerate(self.labels):
                self.y[i, c] = 1.0


TASKS = [Task(9, 5, None, 20), Task(9, 5, None, 4), Task(6, 4, 3, 40), Task(6, 4, 3, 7), Task(8, 3, 2, 5)]
each_task = pytest.mark.parametrize("task", TASKS, ids=["1 full", "1 low", "3 full", "3 low", "2 low"])


# --- ridge ---------------------------------------------------------------------------------------


@each_task
@pytest.mark.parametrize("regularisation", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("scale", [10.0, 1e4, INF])
def test_ridge_against_the_explicit_solve(task: Task, regularisation: float, scale: float) -> None:
    size = task.y.size
    big, wide = task.kernel.reshape(size, size), task.cross.reshape(-1, size)
    lam = regularisation * np.linalg.norm(big, 2)
    target = task.y.ravel() if scale == INF else (scale * task.y - task.f_x).ravel()
    expected = wide @ np.linalg.solve(big + lam * np.eye(size), target)
    expected = expected if scale == INF else expected + task.f_z.ravel()
    fit = fit_ridge(
        decompose(task.kernel), task.labels, regularisation=regularisation, scale=scale, pretrained=task.f_x
    )
    scores = predict(fit, task.cross, task.f_z)
    assert scores.shape == task.f_z.shape
    assert scores.ravel() == pytest.approx(expected, rel=1e-9, abs=1e-9 * np.abs(target).max())
    assert fit.lam == pytest.approx(lam)
    assert not fit.minimum_norm


@each_task
def test_ridge_against_scikit_learn(task: Task) -> None:
    d = decompose(task.kernel)
    fit = fit_ridge(d, task.labels, regularisation=0.05)
    other = KernelRidge(alpha=0.05 * d.norm, kernel="precomputed")
    other.fit(task.kernel.reshape(d.layout.size, -1), task.y.ravel())
    assert fit.coefficients.ravel() == pytest.approx(other.dual_coef_, rel=1e-8, abs=1e-12)
    assert predict(fit, task.cross).ravel() == pytest.approx(
        other.predict(task.cross.reshape(-1, d.layout.size)), rel=1e-8, abs=1e-10
    )


@each_task
def test_ridge_against_the_primal_on_explicit_features(task: Task) -> None:
    """min 1/2 |phi w - t|^2 + lam/2 |w|^2, in the space of features, with t the residual of f_PT."""
    fit = fit_ridge(
        decompose(task.kernel), task.labels, regularisation=0.01, scale=100.0, pretrained=task.f_x
    )
    phi = task.x.reshape(task.y.size, -1)
    target = (100.0 * task.y - task.f_x).ravel()
    w = np.linalg.solve(phi.T @ phi + fit.lam * np.eye(phi.shape[1]), phi.T @ target)
    assert predict(fit, task.cross, task.f_z) == pytest.approx(task.f_z + task.z @ w, rel=1e-8, abs=1e-7)


@each_task
def test_scores_are_sums_over_training_outputs(task: Task) -> None:
    """f_c(x) = sum over (j, d) of K[x, c, j, d] a[j, d], written as a loop: no axis is swapped."""
    fit = fit_ridge(decompose(task.kernel), task.labels, regularisation=0.01)
    scores = predict(fit, task.cross)
    for at in np.ndindex(scores.shape):
        by_hand = sum(task.cross[at + other] * fit.coefficients[other] for other in np.ndindex(task.y.shape))
        assert scores[at] == pytest.approx(by_hand, rel=1e-9, abs=1e-9)


@each_task
def test_one_decomposition_serves_many_labels(task: Task) -> None:
    g, d = rng(3), decompose(task.kernel)
    n, classes = d.layout.examples, d.layout.classes
    many = g.integers(0, 2, size=(4, 2, n)) * 2 - 1 if classes is None else g.integers(0, classes, (4, 2, n))
    fit = fit_ridge(d, many, regularisation=0.1, scale=10.0, pretrained=task.f_x)
    scores, decided = predict(fit, task.cross, task.f_z), classify(fit, task.cross, task.f_z)
    assert fit.training_residual.shape == (4, 2)
    for at in np.ndindex(4, 2):
        one = fit_ridge(d, many[at], regularisation=0.1, scale=10.0, pretrained=task.f_x)
        assert fit.coefficients[at] == pytest.approx(one.coefficients, rel=1e-10, abs=1e-10)
        assert scores[at] == pytest.approx(predict(one, task.cross, task.f_z), rel=1e-10, abs=1e-10)
        assert decided[at].tolist() == classify(one, task.cross, task.f_z).tolist()
        assert fit.training_residual[at] == pytest.approx(float(one.training_residual))


def test_two_logits_that_share_a_kernel_are_the_binary_problem() -> None:
    """K (x) I_2 with one-hot targets: f_1 - f_0 is the scalar regression on labels -1, +1."""
    task = Task(9, 5, None, 6)
    k = np.einsum("ij,cd->icjd", task.kernel, np.eye(2))
    cross = np.einsum("ij,cd->icjd", task.cross, np.eye(2))
    two = fit_ridge(decompose(k), (task.labels + 1) // 2, regularisation=0.02)
    one = fit_ridge(decompose(task.kernel), task.labels, regularisation=0.02)
    logits = predict(two, cross)
    assert logits[:, 1] - logits[:, 0] == pytest.approx(predict(one, task.cross))
    assert (2 * classify(two, cross) - 1).tolist() == classify(one, task.cross).tolist()


# --- the label scale f0 --------------------------------------------------------------------------


def _scores(task: Task, scale: float, f_x: np.ndarray, f_z: np.ndarray) -> np.ndarray:
    fit = fit_ridge(decompose(task.kernel), task.labels, regularisation=0.03, scale=scale, pretrained=f_x)
    return predict(fit, task.cross, f_z)


@each_task
@settings(max_examples=15)
@given(scale=st.floats(0.5, 1e4), factor=st.floats(0.1, 10))
def test_f0_and_the_pretrained_outputs_scale_together(task: Task, scale: float, factor: float) -> None:
    base = _scores(task, scale, task.f_x, task.f_z)
    scaled = _scores(task, factor * scale, factor * task.f_x, factor * task.f_z)
    assert scaled == pytest.approx(factor * base, rel=1e-9, abs=1e-9 * factor * scale)


@each_task
def test_without_pretrained_outputs_f0_is_a_factor(task: Task) -> None:
    zero = _scores(task, 50.0, 0 * task.f_x, 0 * task.f_z)
    assert zero == pytest.approx(50.0 * _scores(task, INF, task.f_x, task.f_z), rel=1e-10)


@each_task
def test_the_way_to_infinite_f0(task: Task) -> None:
    """f / f0 - f_inf = (f_PT(x) - S f_PT(X)) / f0: exactly 1 / f0, so a hundred times f0 is a hundredth."""
    gap = {
        scale: _scores(task, scale, task.f_x, task.f_z) / scale - _scores(task, INF, task.f_x, task.f_z)
        for scale in (10.0, 1000.0)
    }
    assert np.abs(gap[10.0]).max() > 1e-3
    assert gap[1000.0] == pytest.approx(gap[10.0] / 100, rel=1e-6, abs=1e-12)


@each_task
def test_labels_that_are_already_met_leave_the_model_alone(task: Task) -> None:
    fit = fit_ridge(
        decompose(task.kernel), task.labels, regularisation=0.1, scale=10.0, pretrained=10.0 * task.y
    )
    assert not fit.coefficients.any()
    assert np.isnan(fit.training_residual)
    assert predict(fit, task.cross, task.f_z).tolist() == task.f_z.tolist()


@each_task
def test_the_unit_of_the_kernel_does_not_matter(task: Task) -> None:
    small, big = (
        fit_ridge(decompose(c * task.kernel), task.labels, regularisation=0.1, scale=10, pretrained=task.f_x)
        for c in (1.0, 1e6)
    )
    assert predict(big, 1e6 * task.cross, task.f_z) == pytest.approx(predict(small, task.cross, task.f_z))
    assert big.lam == pytest.approx(1e6 * small.lam)


# --- no regularisation, singular kernels ---------------------------------------------------------


@each_task
def test_no_regularisation_is_the_pseudo_inverse(task: Task) -> None:
    d = decompose(task.kernel)
    big = task.kernel.reshape(d.layout.size, -1)
    true_rank = min(task.x.shape[-1], d.layout.size)
    fit = fit_ridge(d, task.labels, regularisation=0.0)
    assert (d.rank, fit.rank) == (true_rank, true_rank)
    assert fit.minimum_norm is (true_rank < d.layout.size)
    expected = np.linalg.lstsq(big, task.y.ravel(), rcond=1e-10)[0]
    assert fit.coefficients.ravel() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    left = np.linalg.norm(big @ expected - task.y.ravel()) / np.linalg.norm(task.y)
    assert float(fit.training_residual) == pytest.approx(left, abs=1e-9)
    # And in the space of features: the least-squares weights of least norm.
    w = np.linalg.pinv(task.x.reshape(d.layout.size, -1)) @ task.y.ravel()
    assert predict(fit, task.cross) == pytest.approx(task.z @ w, rel=1e-6, abs=1e-8)


def test_interpolation_on_a_full_kernel() -> None:
    task = TASKS[0]
    fit = fit_ridge(decompose(task.kernel), task.labels, regularisation=0.0, scale=10.0, pretrained=task.f_x)
    assert predict(fit, task.kernel, task.f_x) == pytest.approx(10.0 * task.labels)
    assert float(fit.training_residual) < 1e-12


def test_rounding_of_the_kernel_is_not_inverted() -> None:
    """Entries rounded to float32: the null space becomes noise of both signs, and none of it is used."""
    task = Task(12, 5, None, 3)
    rounded = task.kernel.astype(np.float32)
    assert np.linalg.eigvalsh(rounded.astype(np.float64))[0] < -1e-9
    fit = fit_ridge(decompose(rounded), task.labels, regularisation=0.0)
    exact = fit_ridge(decompose(task.kernel), task.labels, regularisation=0.0)
    assert fit.rank < 9
    assert np.linalg.norm(fit.coefficients) < 1e-2 / np.finfo(np.float32).eps / decompose(rounded).norm
    assert exact.rank == 3


@given(st.lists(st.floats(0, 10), min_size=2, max_size=6), st.sampled_from(TASKS))
def test_more_regularisation_fits_training_rows_worse(strengths: list[float], task: Task) -> None:
    d = decompose(task.kernel)
    left = [float(fit_ridge(d, task.labels, regularisation=s).training_residual) for s in sorted(strengths)]
    assert np.all(np.diff(left) >= -1e-12)


@each_task
def test_training_residual_is_what_predictions_leave(task: Task) -> None:
    fit = fit_ridge(decompose(task.kernel), task.labels, regularisation=0.2, scale=10.0, pretrained=task.f_x)
    target = 10.0 * task.y - task.f_x
    left = target - (predict(fit, task.kernel, task.f_x) - task.f_x)
    assert float(fit.training_residual) == pytest.approx(np.linalg.norm(left) / np.linalg.norm(target))


def test_solve_takes_any_targets() -> None:
    task = TASKS[3]
    targets = rng(1).normal(size=(7, *task.y.shape))
    big = task.kernel.reshape(task.y.size, -1)
    expected = np.linalg.solve(big + 0.3 * np.eye(task.y.size), targets.reshape(7, -1).T).T
    assert solve(decompose(task.kernel), targets, 0.3) == pytest.approx(expected.reshape(targets.shape))


# --- layout --------------------------------------------------------------------------------------


def test_margin_and_trace_of_a_kernel_by_features() -> None:
    task = Task(4, 3, 2, 6)
    margin_x, margin_z = task.x[:, 1] - task.x[:, 0], task.z[:, 1] - task.z[:, 0]
    assert lay.margin_kernel(task.cross) == pytest.approx(margin_z @ margin_x.T)
    assert lay.traced_kernel(task.cross) == pytest.approx(
        task.z[:, 0] @ task.x[:, 0].T + task.z[:, 1] @ task.x[:, 1].T
    )
    assert lay.traced_kernel(task.cross[:, 0, :, 0]).tolist() == task.cross[:, 0, :, 0].tolist()


def test_targets_by_hand() -> None:
    three, scalar = lay.Layout(3, 3), lay.Layout(2, None)
    assert lay.one_hot([2, 0, 1], three).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert lay.signs([2, 0, 1], three).tolist() == [[-1, -1, 1], [1, -1, -1], [-1, 1, -1]]
    assert lay.one_hot([1, -1], scalar).tolist() == lay.signs([1, -1], scalar).tolist() == [1.0, -1.0]


def test_ties_are_class_zero_in_both_layouts() -> None:
    assert lay.decide(np.array([0.0, 1e-9, -1e-9]), lay.Layout(3, None)).tolist() == [-1, 1, -1]
    assert lay.decide(np.array([[1.0, 1.0], [1.0, 2.0]]), lay.Layout(2, 2)).tolist() == [0, 1]


# --- what is refused -----------------------------------------------------------------------------

GOOD = np.diag([3.0, 2.0, 1.0]) + 0.1


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (np.ones((3, 4)), "expected shape"),
        (np.ones(3), "expected shape"),
        (np.ones((0, 0)), "expected shape"),
        (np.ones((3, 2, 2, 3)), "expected shape"),
        (np.ones((3, 1, 3, 1)), "C = 1"),
        (np.zeros((3, 3)), "zero"),
        (np.where(np.eye(3) > 0, np.nan, GOOD), "3 of 9 values are NaN"),
        (GOOD + np.inf, "infinite"),
        (GOOD + 0j, "real numbers"),
        (GOOD + np.diag([10 * ROUNDING * 3.1, 0], 1), "not symmetric"),
        (GOOD - 1.5 * np.eye(3), "indefinite"),
        (-GOOD, "indefinite"),
    ],
)
def test_kernels_that_are_refused(kernel: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decompose(kernel)


def test_rounding_passes_and_is_repaired() -> None:
    skew = np.zeros((3, 3))
    skew[0, 1] = 0.5 * ROUNDING * 3.1
    result = decompose(GOOD + skew)
    assert isinstance(result, Decomposition)
    assert np.linalg.norm(result.vectors * result.values @ result.vectors.T - GOOD) < ROUNDING * 3.1
    values = np.array([-0.5e-6, 1e-7, 1.0])
    clipped = decompose(np.diag(values))
    # Below the size of the negative eigenvalue nothing can be told from rounding.
    assert clipped.values.tolist() == [0.0, 0.0, 1.0]
    assert (clipped.rank, clipped.tolerance) == (1, pytest.approx(0.5e-6))


def fitted(kernel: np.ndarray, labels: object, **options: object) -> RidgeFit:
    chosen = {"regularisation": 0.1, **options}
    return fit_ridge(decompose(kernel), labels, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, 1], {}, r"labels -1 and \+1, got \[0.0\]"),
        ([1, 1, 2], {}, "got"),
        ([1.5, 1, 1], {}, "got"),
        ([1, -1], {}, "expected 3 labels"),
        (1, {}, "expected 3 labels"),
        ([1, -1, np.nan], {}, "NaN"),
        (["a", "b", "c"], {}, "real numbers"),
        ([1, -1, 1], {"regularisation": -0.1}, "regularisation: expected a finite number >= 0"),
        ([1, -1, 1], {"regularisation": np.inf}, "regularisation"),
        ([1, -1, 1], {"regularisation": np.nan}, "regularisation"),
        ([1, -1, 1], {"scale": 0.0}, "f0 above 0"),
        ([1, -1, 1], {"scale": -10.0}, "f0 above 0"),
        ([1, -1, 1], {"scale": np.nan}, "f0 above 0"),
        ([1, -1, 1], {"scale": 10.0}, "pre-trained outputs are missing"),
        ([1, -1, 1], {"scale": 10.0, "pretrained": [1.0, 2.0]}, "expected shape"),
        ([1, -1, 1], {"scale": 10.0, "pretrained": [1.0, 2.0, np.nan]}, "NaN"),
    ],
)
def test_requests_that_are_refused(labels: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted(GOOD, labels, **options)


def test_multi_class_labels_that_are_refused() -> None:
    k = np.einsum("ij,cd->icjd", GOOD, np.eye(3))
    for labels in ([0, 1, 3], [-1, 0, 1], [0.5, 1, 2]):
        with pytest.raises(UserError, match=r"labels 0 \.\. 2"):
            fitted(k, labels)


@pytest.mark.parametrize(
    ("cross", "pretrained", "message"),
    [
        (np.ones((2, 4)), np.ones(2), r"expected shape \(M, 3\)"),
        (np.ones(3), np.ones(1), "expected shape"),
        (np.float64(1), np.ones(1), "expected shape"),
        (np.ones((2, 3, 3, 3)), np.ones(2), "expected shape"),
        (np.full((2, 3), np.nan), np.ones(2), "NaN"),
        (np.ones((2, 3)), None, "those of these rows are missing"),
        (np.ones((2, 3)), np.ones(3), "expected shape"),
    ],
)
def test_predictions_that_are_refused(cross: np.ndarray, pretrained: object, message: str) -> None:
    fit = fitted(GOOD, [1, -1, 1], scale=10.0, pretrained=[0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=message):
        predict(fit, cross, pretrained)  # type: ignore[arg-type]


def test_layout_errors_name_the_shape() -> None:
    k = np.einsum("ij,cd->icjd", GOOD, np.eye(2))
    with pytest.raises(UserError, match=r"\(M, 2, 3, 2\)"):
        predict(fitted(k, [0, 1, 1]), np.ones((2, 3)))
    with pytest.raises(UserError, match=r"\(M, 2, N, 2\)"):
        lay.margin_kernel(GOOD)
    with pytest.raises(UserError, match=r"\(M, C, N, C\)"):
        lay.traced_kernel(np.ones((2, 3, 4, 5)))
    with pytest.raises(UserError, match="lam"):
        solve(decompose(GOOD), [1.0, 1.0, 1.0], -1.0)

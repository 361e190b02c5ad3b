"""Training in function space: torch's optimisers where it is exact, the order of its error elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.functional import cross_entropy as torch_cross_entropy

from foretaste.errors import UserError
from foretaste.theory.function_space import (
    BETA1,
    BETA2,
    Group,
    Run,
    Tangent,
    cross_entropy,
    decisions,
    derivative,
    train,
)

EXACT = 1e-9
"""Relative. Some fifty steps of sums of some ten terms in float64 round to about 1e-13."""
POOL, ROWS, EXAMPLES, BATCH, STEPS = 12, 17, 9, 4, 25
each_count = pytest.mark.parametrize("c", [1, 3], ids=["margin", "3 logits"])
each_clip = pytest.mark.parametrize("clip", [None, 0.3], ids=["free", "clipped"])


@dataclass(frozen=True)
class Task:
    """Rows, labels and batches; features are made by the tests."""

    start: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    batches: list[np.ndarray]
    rates: np.ndarray


def task(c: int, *, seed: int = 0, rate: float = 0.1) -> Task:
    g = np.random.default_rng(seed)
    return Task(
        start=g.normal(size=(ROWS, c)),
        rows=g.permutation(POOL)[:EXAMPLES],
        labels=g.integers(0, max(c, 2), EXAMPLES),
        # The last batch of an epoch is short, as in training.
        batches=[np.sort(g.permutation(EXAMPLES)[: BATCH if i % 3 else 1]) for i in range(STEPS)],
        rates=rate * (1.0 - np.arange(STEPS) / STEPS),
    )


def kernel(features: np.ndarray, divisor: np.ndarray | float = 1.0) -> np.ndarray:
    """Sum over parameters of g g' / divisor between all rows and those of the pool."""
    flat = features.reshape(-1, features.shape[2])
    pool = flat[: POOL * features.shape[1]]
    return np.asarray((flat / divisor) @ pool.T)


def loss_of(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if scores.shape[1] == 1:
        return binary_cross_entropy_with_logits(scores[:, 0], labels.double())
    return torch_cross_entropy(scores, labels)


def by_torch(forward: Any, theta: list[torch.Tensor], it: Task, optimizer: Any, clip: float | None) -> Run:
    """The literal thing: parameters, backward passes and torch's optimiser.

    Args:
        forward: From the parameters to the outputs of all rows, shape (R, C).
        theta: Parameters.
        it: What is trained on.
        optimizer: Of the parameters.
        clip: Largest norm of a gradient.
    """
    labels = torch.from_numpy(it.labels)
    losses = []
    for batch, rate in zip(it.batches, it.rates, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss = loss_of(forward(*theta)[it.rows[batch]], labels[batch])
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theta, clip)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return Run(forward(*theta).numpy(), np.array(losses))


def linear_by_torch(features: np.ndarray, it: Task, kind: str, clip: float | None) -> Run:
    theta = torch.zeros(features.shape[2], dtype=torch.float64, requires_grad=True)
    g, start = torch.from_numpy(features), torch.from_numpy(it.start)
    optimizer: Any = torch.optim.SGD([theta], lr=1.0)
    if kind == "adamw":
        optimizer = torch.optim.AdamW([theta], lr=1.0, weight_decay=0.0, betas=(BETA1, BETA2), eps=1e-30)
    return by_torch(lambda t: start + g @ t, [theta], it, optimizer, clip)


def run(tangent: Tangent, it: Task, **options: Any) -> Run:
    return train(tangent, it.start, it.rows, it.labels, it.batches, it.rates, **options)


def same(got: Run, want: Run, start: np.ndarray, relative: float = EXACT) -> None:
    moved = np.abs(want.outputs - start).max()
    assert moved > 0.05
    assert np.abs(got.outputs - want.outputs).max() <= relative * moved
    assert np.abs(got.losses - want.losses).max() <= relative * want.losses.max()


# --- SGD ------------------------------------------------------------------------------------------


@each_count
@each_clip
@pytest.mark.parametrize("seed", range(3))
def test_sgd_is_torchs_sgd(c: int, clip: float | None, seed: int) -> None:
    it = task(c, seed=seed)
    features = np.random.default_rng([seed, 1]).normal(size=(ROWS, c, 7))
    tangent = Tangent(kernel(features), None, None, None, 0.0, c)
    want = linear_by_torch(features, it, "sgd", clip)
    same(run(tangent, it, optimiser="sgd", clip=clip), want, it.start)
    if clip is not None:  # it does bind
        free = run(tangent, it, optimiser="sgd")
        assert np.abs(free.outputs - want.outputs).max() > 0.01


# --- AdamW where it is exact ----------------------------------------------------------------------


def rank_one(c: int, sizes: tuple[int, int], k: float, seed: int = 0) -> tuple[np.ndarray, Tangent]:
    """Two groups with g_ip = a_p b_i: all second moments of a group keep their pattern a_p^2."""
    g = np.random.default_rng([seed, 2])
    groups, all_features = [], []
    for size in sizes:
        a, b = g.normal(size=size) + 2.0, g.normal(size=(ROWS, c))
        features = b[..., None] * a
        groups.append(Group(kernel(features, k * np.abs(a)), float(k * np.abs(a).sum())))
        all_features.append(features)
    together = np.concatenate(all_features, axis=2)
    return together, Tangent(kernel(together), groups[0], groups[1], None, 0.0, c)


@each_count
@each_clip
@pytest.mark.parametrize("sizes", [(1, 1), (5, 3)], ids=["one parameter a group", "rank one"])
def test_adamw_is_torchs_adamw(c: int, clip: float | None, sizes: tuple[int, int]) -> None:
    it = task(c)
    features, tangent = rank_one(c, sizes, 0.7)
    want = linear_by_torch(features, it, "adamw", clip)
    same(run(tangent, it, optimiser="adamw", clip=clip), want, it.start)


@each_count
def test_the_size_of_the_second_moments_does_not_matter(c: int) -> None:
    """v enters by its pattern alone: D / k with k root is v times k^2, also where the last layer grows."""
    it = task(c)
    _, one = rank_one(c, (5, 3), 1.0)
    for k in (1e-3, 50.0):
        _, other = rank_one(c, (5, 3), k)
        for size in (0.0, 0.4):
            first, second = (run(replace(t, size=size), it, optimiser="adamw") for t in (one, other))
            same(second, first, it.start, 1e-11)


def test_steps_of_a_group_have_the_length_that_adam_gives_them() -> None:
    """A first step of rate eta moves a parameter by eta, whatever the gradient: the sign method."""
    g = np.random.default_rng(0)
    features = g.normal(size=(ROWS, 1, 1))
    it = task(1)
    first = replace(it, batches=it.batches[1:2], rates=np.array([0.3]))
    tangent = Tangent(kernel(features), Group(kernel(features, 0.2), 0.2), None, None, 0.0, 1)
    moved = run(tangent, first, optimiser="adamw").outputs - it.start
    assert np.abs(moved) == pytest.approx(0.3 * np.abs(features[:, :, 0]), rel=1e-12)


# --- gradients that grow --------------------------------------------------------------------------


@each_count
@pytest.mark.parametrize("size", [0.0, 0.3])
@pytest.mark.parametrize("held", [None, 0.5])
def test_growing_gradients_follow_the_recipe_on_parameters(c: int, size: float, held: float | None) -> None:
    """One parameter a group, where "root mean square change" is its change: the docstring, word by word."""
    it = task(c)
    names = ("body", "growing", "last")
    g = {name: np.random.default_rng([3, i]).normal(size=(ROWS, c)) for i, name in enumerate(names)}
    groups = {
        name: Group(kernel(g[name][..., None], 0.1 * (i + 1)), 0.1 * (i + 1)) for i, name in enumerate(names)
    }
    tangent = Tangent(
        kernel(np.stack([g["body"], g["last"]], axis=2)),
        groups["body"],
        groups["last"],
        groups["growing"],
        size,
        c,
    )
    f, weight = it.start.copy(), dict.fromkeys(names, 0.0)
    first, second = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    losses = []
    for step, (batch, rate) in enumerate(zip(it.batches, it.rates, strict=True), start=1):
        scores = f[it.rows[batch]]
        losses.append(cross_entropy(scores, it.labels[batch]))
        pull = derivative(scores, it.labels[batch]) / len(batch)
        start = size if held is None else held
        front = np.sqrt(start**2 + weight["last"] ** 2) / size if size else 1.0
        phi = {"body": front, "growing": front * abs(weight["body"]), "last": 1.0}
        for name in names:
            gradient = phi[name] * float((pull * g[name][it.rows[batch]]).sum())
            first[name] = BETA1 * first[name] + (1 - BETA1) * gradient
            second[name] = BETA2 * second[name] + (1 - BETA2) * gradient**2
            if second[name] == 0.0:
                continue
            up, down = first[name] / (1 - BETA1**step), np.sqrt(second[name] / (1 - BETA2**step))
            f = f - phi[name] * g[name] * rate * up / down
            weight[name] -= rate * up / down
    same(run(tangent, it, optimiser="adamw", size=held), Run(f, np.array(losses)), it.start)
    if size:
        rigid = run(replace(tangent, size=0.0), it, optimiser="adamw")
        assert np.abs(rigid.outputs - f).max() > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_a_bilinear_model_is_followed_up_to_the_second_order(seed: int) -> None:
    """f = s g b a as in LoRA of rank 1, b = 0 at the start.

    Labels are the signs of g, so b and a move one way, by at most 1.1 u, u the sum of the rates. The recipe
    leaves out that b's gradient s g a_t grows with a: at most s |g| (1.1 u)^2 in f, with room for what the
    other gradients do to the steps; and a factor of four when the rate is halved.
    """
    g = np.random.default_rng([seed, 4]).normal(size=(ROWS, 1))
    s, a0 = 1.5, 0.8
    body, rising = g[..., None] * s * a0, g[..., None] * s
    tangent = Tangent(
        kernel(body), Group(kernel(body, 0.3), 0.3), None, Group(kernel(rising, 2.0), 2.0), 0.0, 1
    )
    errors, lazy = [], []
    for rate in (0.004, 0.002):
        it = task(1, seed=seed, rate=rate)
        it = replace(it, labels=(g[it.rows, 0] > 0).astype(int))
        theta = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a0, 0.0)]
        optimizer = torch.optim.AdamW(theta, lr=1.0, weight_decay=0.0, eps=1e-30)
        start, x = torch.from_numpy(it.start), torch.from_numpy(g)
        want = by_torch(lambda a, b, start=start, x=x: start + s * x * a * b, theta, it, optimizer, None)
        got = run(tangent, it, optimiser="adamw")
        real, mine = want.outputs - it.start, got.outputs - it.start
        u = it.rates.sum()
        assert np.abs(real).max() > 0.5 * s * a0 * u * np.abs(g).max()  # a run that gets somewhere
        assert (np.sign(real) == np.sign(mine)).all()
        assert np.abs(mine - real).max() <= 1.5 * s * np.abs(g).max() * u**2
        errors.append(np.abs(mine - real).max())
        rigid = run(replace(tangent, growing=None), it, optimiser="adamw").outputs - it.start
        lazy.append(np.abs(rigid - real).max())
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.15)
    # A's own part is half of what is missing at this order; the other half is A in front of B.
    assert np.array(errors) / lazy == pytest.approx(0.5, abs=0.1)


# --- losses ---------------------------------------------------------------------------------------


@each_count
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_losses_and_their_derivatives_are_torchs(c: int, size: float) -> None:
    g = np.random.default_rng(5)
    scores, labels = size * g.normal(size=(40, c)), g.integers(0, max(c, 2), 40)
    x = torch.from_numpy(scores).requires_grad_(True)
    loss = loss_of(x, torch.from_numpy(labels))
    (gradient,) = torch.autograd.grad(loss * len(labels), x)
    assert cross_entropy(scores, labels) == pytest.approx(loss.item(), rel=1e-13)
    assert np.abs(derivative(scores, labels) - gradient.numpy()).max() <= 1e-14


def test_losses_of_large_outputs_stay_finite() -> None:
    assert cross_entropy(np.array([[1e4]]), np.array([0])) == pytest.approx(1e4)
    assert cross_entropy(np.array([[1e4, 0.0, 0.0]]), np.array([1])) == pytest.approx(1e4)
    assert derivative(np.array([[1e4]]), np.array([0])) == pytest.approx(np.ones((1, 1)))


def test_decisions() -> None:
    assert decisions(np.array([[-1.0], [0.0], [1e-9]])).tolist() == [0, 0, 1]
    assert decisions(np.array([[1.0, 3.0, 2.0], [2.0, 1.0, 2.0]])).tolist() == [1, 0]


# --- invariances ----------------------------------------------------------------------------------


def full_tangent(c: int, rows: np.ndarray | None = None, *, pool: np.ndarray | None = None) -> Tangent:
    """All groups, growth included; `rows` and `pool` choose lines of the kernel."""
    g = np.random.default_rng(6)
    lines = np.arange(ROWS) if rows is None else rows
    columns = np.arange(POOL) if pool is None else pool

    def chosen(width: int, divide: bool) -> np.ndarray:
        features = g.normal(size=(ROWS, c, width))
        root = np.abs(g.normal(size=width)) + 0.1 if divide else np.ones(width)
        whole = np.einsum("icp,jdp->icjd", features / root, features)
        picked = whole[lines][:, :, columns]
        return picked.reshape(len(lines) * c, len(columns) * c)

    return Tangent(
        chosen(9, False),
        Group(chosen(6, True), 3.0),
        Group(chosen(3, True), 1.0),
        Group(chosen(4, True), 2.0),
        0.5,
        c,
    )


@each_count
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_order_of_the_pool_does_not_matter(c: int, optimiser: Any) -> None:
    it = task(c)
    want = run(full_tangent(c), it, optimiser=optimiser)
    order = np.random.default_rng(7).permutation(POOL)
    place = np.argsort(order)
    lines = np.concatenate([order, np.arange(POOL, ROWS)])
    moved = replace(it, start=it.start[lines], rows=place[it.rows])
    got = run(full_tangent(c, lines, pool=order), moved, optimiser=optimiser)
    same(Run(got.outputs[np.argsort(lines)], got.losses), want, it.start, 1e-11)


@each_count
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_the_numbers_of_the_examples_do_not_matter(c: int, optimiser: Any) -> None:
    it = task(c)
    want = run(full_tangent(c), it, optimiser=optimiser)
    order = np.random.default_rng(8).permutation(EXAMPLES)
    place = np.argsort(order)
    renamed = replace(
        it, rows=it.rows[order], labels=it.labels[order], batches=[place[batch][::-1] for batch in it.batches]
    )
    same(run(full_tangent(c), renamed, optimiser=optimiser), want, it.start, 1e-11)


@each_count
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_rows_that_are_not_trained_on_do_not_matter(c: int, optimiser: Any) -> None:
    """A row twice has its outputs twice and changes no other; likewise rows of the pool that are left out."""
    it = task(c)
    want = run(full_tangent(c), it, optimiser=optimiser)
    lines = np.concatenate([np.arange(ROWS), [ROWS - 1, int(it.rows[0])]])
    doubled = replace(it, start=it.start[lines])
    got = run(full_tangent(c, lines), doubled, optimiser=optimiser)
    same(Run(got.outputs[:ROWS], got.losses), want, it.start, 1e-12)
    assert got.outputs[ROWS:] == pytest.approx(got.outputs[[ROWS - 1, it.rows[0]]], rel=1e-12)
    kept = np.sort(it.rows)
    lines = np.concatenate([kept, np.arange(POOL, ROWS)])
    fewer = replace(it, start=it.start[lines], rows=np.searchsorted(kept, it.rows))
    got = run(full_tangent(c, lines, pool=kept), fewer, optimiser=optimiser)
    same(got, Run(want.outputs[lines], want.losses), it.start[lines], 1e-12)


@each_count
def test_inputs_are_not_changed_and_a_run_repeats(c: int) -> None:
    it, tangent = task(c), full_tangent(c)
    before = it.start.copy()
    first, second = (run(tangent, it, optimiser="adamw", clip=1.0) for _ in range(2))
    assert (it.start == before).all()
    assert (first.outputs == second.outputs).all()
    assert (first.losses == second.losses).all()


def test_nothing_moves_without_steps_or_where_there_is_no_gradient() -> None:
    it = task(1)
    none = replace(it, batches=[], rates=np.array([]))
    assert (run(full_tangent(1), none, optimiser="adamw").outputs == it.start).all()
    zero = np.zeros((ROWS, POOL))
    flat = Tangent(zero, Group(zero, 0.0), None, Group(zero, 0.0), 0.0, 1)
    for optimiser in ("sgd", "adamw"):
        assert (run(flat, it, optimiser=optimiser, clip=1.0).outputs == it.start).all()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"start": np.zeros((ROWS, 2))}, "start", r"expected outputs of shape \(17, 1\), got \(17, 2\)"),
        ({"start": np.zeros((ROWS - 1, 1))}, "start", r"got \(16, 1\)"),
        ({"start": np.zeros(ROWS)}, "start", r"got \(17,\)"),
        ({"rows": np.arange(EXAMPLES - 1)}, "rows", r"a row of the pool \(0 .. 11\) for each label"),
        ({"rows": np.arange(EXAMPLES) + POOL - EXAMPLES + 1}, "rows", "a row of the pool"),
        ({"rows": np.arange(EXAMPLES) - 1}, "rows", "a row of the pool"),
        ({"batches": [np.array([0])]}, "batches", "a batch for each of 25 rates, got 1"),
        ({"rates": np.full(STEPS, 1e308)}, "rates", "the outputs overflow"),
    ],
)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], where: str, message: str, optimiser: Any
) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(full_tangent(1), replace(task(1), **change), optimiser=optimiser)
    assert error.value.where == where

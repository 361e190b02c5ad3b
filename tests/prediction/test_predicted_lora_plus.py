"""LoRA+, whose B has a learning rate of its own, in function space: against torch on parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.prediction.features import HEAD, LAST, Block, Features
from foretaste.prediction.tangents import tangent
from foretaste.theory.function_space import BETA1, BETA2, Group, Run, Tangent, train

RATIO = 16.0
ROWS, EXAMPLES, BATCH, STEPS = 9, 6, 4, 20
EXACT = 1e-9
"""Relative: as in `theory`, sums of some ten terms in float64."""

Float = np.ndarray[Any, np.dtype[np.float64]]


def rates(rate: float) -> Float:
    return rate * (1.0 - np.arange(STEPS) / STEPS)


def labels(seed: int = 0) -> Any:
    return np.random.default_rng([seed, 9]).integers(0, 2, EXAMPLES)


def batches(seed: int = 0) -> list[Any]:
    g = np.random.default_rng([seed, 8])
    return [np.sort(g.permutation(EXAMPLES)[:BATCH]) for _ in range(STEPS)]


def by_torch(
    forward: Callable[..., torch.Tensor],
    fast: Sequence[torch.Tensor],
    slow: Sequence[torch.Tensor],
    *,
    rate: float,
    kind: str,
    clip: float | None = None,
    given: Any = None,
) -> Run:
    """Torch's optimiser with the two groups that `raise_rate_of_b` makes; `forward` gives margins (R, 1)."""
    groups: Any = [{"params": list(slow), "lr": 1.0}, {"params": list(fast), "lr": 1.0}]
    optimizer: Any = torch.optim.SGD(groups)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(BETA1, BETA2), eps=1e-30)
    targets = torch.from_numpy(labels() if given is None else given).double()
    losses = []
    for batch, now in zip(batches(), rates(rate), strict=True):
        optimizer.param_groups[0]["lr"] = float(now)
        optimizer.param_groups[1]["lr"] = RATIO * float(now)
        optimizer.zero_grad()
        scores = forward()[batch, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets[batch])
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([*slow, *fast], clip)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return Run(forward().numpy(), np.array(losses))


def foretold(it: Tangent, start: Float, rate: float, given: Any = None, **options: Any) -> Run:
    chosen = labels() if given is None else given
    return train(it, start, np.arange(EXAMPLES), chosen, batches(), rates(rate), **options)


def same(got: Run, want: Run, start: Float) -> None:
    moved = np.abs(want.outputs - start).max()
    assert moved > 0.05
    assert np.abs(got.outputs - want.outputs).max() <= EXACT * moved
    assert np.abs(got.losses - want.losses).max() <= EXACT * want.losses.max()


def kernel(g: Float, divisor: float = 1.0) -> Float:
    return np.asarray(g @ g[:EXAMPLES].T / divisor)


# --- where the outputs are linear in the weights ---------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.3], ids=["free", "clipped"])
def test_sgd_with_two_rates_is_torchs(clip: float | None) -> None:
    """The norm that is clipped is that of the gradient, whatever rate a part of it then gets."""
    g = np.random.default_rng(1)
    b, rest, start = g.normal(size=(ROWS, 5)), g.normal(size=(ROWS, 3)), g.normal(size=(ROWS, 1))
    theta = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (5, 3)]

    def forward() -> torch.Tensor:
        moved = torch.from_numpy(b) @ theta[0] + torch.from_numpy(rest) @ theta[1]
        return torch.from_numpy(start) + moved[:, None]

    want = by_torch(forward, theta[:1], theta[1:], rate=0.01, kind="sgd", clip=clip)
    plain = kernel(b) + kernel(rest)
    it = Tangent(plain, None, None, None, 0.0, 1, rated=RATIO * kernel(b) + kernel(rest))
    same(foretold(it, start, 0.01, optimiser="sgd", clip=clip), want, start)
    alike = foretold(replace(it, rated=None), start, 0.01, optimiser="sgd", clip=clip)
    assert np.abs(alike.outputs - want.outputs).max() > 0.1 * np.abs(want.outputs - start).max()


def test_adamw_with_two_rates_is_torchs() -> None:
    """One parameter a group, where a group's second moments change by one factor."""
    g = np.random.default_rng(2)
    b, rest, start = (g.normal(size=(ROWS, 1)) for _ in range(3))
    theta = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def forward() -> torch.Tensor:
        moved = torch.from_numpy(b) @ theta[0] + torch.from_numpy(rest) @ theta[1]
        return torch.from_numpy(start) + moved[:, None]

    want = by_torch(forward, theta[:1], theta[1:], rate=0.005, kind="adamw")
    it = Tangent(
        kernel(b) + kernel(rest),
        Group(kernel(b, 0.3), 0.3, RATIO),
        None,
        None,
        0.0,
        1,
        rest=Group(kernel(rest, 0.2), 0.2),
    )
    same(foretold(it, start, 0.005, optimiser="adamw"), want, start)


# --- LoRA itself: bilinear in A and B --------------------------------------------------------------


def test_a_follows_b_at_its_own_rate_up_to_the_second_order() -> None:
    """f = s g b a, b = 0 at the start, b at 16 times the rate of a.

    Labels are the signs of g, so b and a move one way. The recipe leaves out that b's gradient grows with a:
    half of what a kernel of b alone leaves out, and a quarter of itself at half the rate.
    """
    g = np.random.default_rng(3).normal(size=(ROWS, 1))
    s, a0 = 1.5, 0.8
    start, given = np.zeros((ROWS, 1)), (g[:EXAMPLES, 0] > 0).astype(int)
    it = Tangent(
        kernel(s * a0 * g),
        Group(kernel(s * a0 * g, 0.3), 0.3, RATIO),
        None,
        Group(kernel(s * g, 2.0), 2.0),
        0.0,
        1,
    )
    errors, alone = [], []
    for rate in (0.002, 0.001):
        a = torch.tensor([a0], dtype=torch.float64, requires_grad=True)
        b = torch.zeros(1, dtype=torch.float64, requires_grad=True)

        def forward(a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            return s * torch.from_numpy(g) * b * a

        want = by_torch(forward, [b], [a], rate=rate, kind="adamw", given=given)
        got = foretold(it, start, rate, given, optimiser="adamw")
        only_b = foretold(replace(it, growing=None), start, rate, given, optimiser="adamw")
        errors.append(np.abs(got.outputs - want.outputs).max())
        alone.append(np.abs(only_b.outputs - want.outputs).max())
        assert errors[-1] < 0.05 * np.abs(want.outputs).max()
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.15)
    assert np.array(errors) / alone == pytest.approx(0.5, abs=0.1)


def test_the_kernel_of_a_network_with_lora_plus_is_that_of_its_first_steps() -> None:
    """f = w tanh((W + s B A) x), w trained at the run's rate, B at 16 times that, A at the run's.

    By SGD with rates that go to zero: what is left is the curvature, which halves with the rate; a kernel
    without the ratio stays wrong.
    """
    g = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    x, hidden, first, s = draw(ROWS, 4), draw(6, 4) / 2, draw(6) / 2, 2.0
    a = draw(2, 4) / 2

    def margins(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ (hidden + s * b @ a).T) @ w

    zero = torch.zeros(6, 2, dtype=torch.float64)
    of_a, of_b, of_w = torch.func.jacrev(margins, argnums=(0, 1, 2))(a, zero, first)
    assert not of_a.any()
    start = margins(a, zero, first)[:, None].numpy()
    blocks = {
        "arm/B": [Block(of_b.reshape(ROWS, 1, -1).float(), 1.0)],
        LAST: [Block(of_w.reshape(ROWS, 1, -1).float(), 1.0)],
        HEAD: [],
    }
    made = tangent(
        Features(blocks, start),
        ["arm/B"],
        None,
        np.ones((EXAMPLES, 1)),
        pool=EXAMPLES,
        batch=BATCH,
        others=[HEAD],
        ratio=RATIO,
    )
    assert made.rest is None
    assert made.body is not None
    assert made.body.ratio == RATIO
    wrong = tangent(
        Features(blocks, start), ["arm/B", HEAD], None, np.ones((EXAMPLES, 1)), pool=EXAMPLES, batch=BATCH
    )
    assert made.plain == pytest.approx(wrong.plain)
    relative, plain = [], []
    for rate in (2e-4, 1e-4):
        theta = [t.clone().requires_grad_() for t in (a, zero, first)]
        want = by_torch(
            lambda theta=theta: margins(*theta)[:, None],  # type: ignore[misc]
            [theta[1]],
            [theta[0], theta[2]],
            rate=rate,
            kind="sgd",
        )
        moved = np.abs(want.outputs - start).max()
        for kept, it in ((relative, made), (plain, wrong)):
            got = foretold(it, start, rate, optimiser="sgd")
            kept.append(np.abs(got.outputs - want.outputs).max() / moved)
    assert relative[0] < 0.05
    assert relative[0] / relative[1] == pytest.approx(2.0, rel=0.2)
    assert min(plain) > 0.5


def test_parts_at_the_runs_rate_stand_apart() -> None:
    """With parts beside B: their sum is the plain kernel, and only B's is raised."""
    g = np.random.default_rng(6)
    values = {
        name: torch.from_numpy(g.normal(size=(ROWS, 1, n))).float()
        for name, n in (("arm/B", 5), (HEAD, 3), (LAST, 2))
    }
    features = Features({name: [Block(v, 1.0)] for name, v in values.items()}, np.zeros((ROWS, 1)))
    pull = g.normal(size=(EXAMPLES, 1))
    made = tangent(features, ["arm/B"], None, pull, pool=EXAMPLES, batch=BATCH, others=[HEAD], ratio=RATIO)
    by_part = {name: kernel(v[:, 0].double().numpy()) for name, v in values.items()}
    assert made.plain == pytest.approx(sum(by_part.values()), rel=1e-5)
    assert made.followed == pytest.approx(made.plain + (RATIO - 1.0) * by_part["arm/B"], rel=1e-5)
    assert made.body is not None
    assert made.rest is not None
    alone = tangent(features, [HEAD], None, pull, pool=EXAMPLES, batch=BATCH)
    assert alone.body is not None
    assert (made.rest.scaled == alone.body.scaled).all()
    assert (made.body.ratio, made.rest.ratio) == (RATIO, 1.0)

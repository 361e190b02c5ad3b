"""SignGD: against a loop by hand, and what its definition implies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from foretaste.errors import UserError
from foretaste.training.sign_gd import SignGD


def test_ten_steps_are_those_of_a_loop_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(20, generator=generator, dtype=torch.float64)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start[None])
    optimizer = SignGD(model.parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / 10)
    expected = start.clone()
    for step in range(10):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y) ** 2).mean().backward()
        optimizer.step()
        schedule.step()
        slope = [sum(2 / 20 * float((x[i] @ expected - y[i]) * x[i, j]) for i in range(20)) for j in range(5)]
        rate = 0.1 * (1 - step / 10)
        expected = torch.tensor(
            [float(expected[j]) - rate * math.copysign(1.0, slope[j]) for j in range(5)], dtype=torch.float64
        )
    # Ten additions each; signs would differ only where a slope is rounding error, and none is.
    assert torch.allclose(model.weight[0], expected, atol=1e-13, rtol=0)


def test_the_size_of_a_gradient_changes_nothing_and_zero_stays() -> None:
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    weights[0].grad = torch.tensor([5.0, 0.0, -2.0])
    weights[1].grad = 1e-3 * weights[0].grad
    without = nn.Parameter(torch.ones(2))
    SignGD([*weights, without], lr=0.5).step()
    assert weights[0].tolist() == weights[1].tolist() == [-0.5, 0.0, 0.5]
    assert without.tolist() == [1.0, 1.0]


def test_it_is_adam_without_memory() -> None:
    """One step of Adam from scratch is a sign step, up to epsilon over the size of the gradient."""
    gradient = torch.tensor([3.0, -1e-3, 0.2], dtype=torch.float64)
    mine, adams = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    mine.grad, adams.grad = gradient.clone(), gradient.clone()
    SignGD([mine], lr=0.1).step()
    torch.optim.AdamW([adams], lr=0.1, weight_decay=0.0, eps=1e-12).step()
    assert torch.allclose(mine, adams, rtol=1e-8)


def test_groups_have_rates_of_their_own_and_a_closure_gives_its_loss() -> None:
    slow, fast = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = SignGD([{"params": [slow]}, {"params": [fast], "lr": 0.2}], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (slow + fast).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (slow.item(), fast.item()) == (pytest.approx(0.9), pytest.approx(0.8))


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match="above zero"):
        SignGD([nn.Parameter(torch.zeros(1))], lr=rate)


def test_weight_decay_is_refused_and_not_ignored() -> None:
    weight = nn.Parameter(torch.zeros(1))
    SignGD([{"params": [weight], "weight_decay": 0.0}], lr=0.1)
    with pytest.raises(UserError, match="weight decay"):
        SignGD([{"params": [weight], "weight_decay": 0.01}], lr=0.1)

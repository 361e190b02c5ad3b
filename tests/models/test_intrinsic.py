"""The random subspace of all parameters: what it computes, and how far it keeps inner products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from foretaste.errors import UserError
from foretaste.kernels import Gram, Inputs, Job, kernels, logits, trainable
from foretaste.models.intrinsic import IntrinsicDimension, SignProjection

IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 10, 12, 3]])
MASK = torch.ones_like(IDS)


@pytest.fixture
def bert(tiny_bert: Path, load_tiny: Callable[..., Any]) -> Any:
    return load_tiny(tiny_bert)[1].double().eval()


def dense(wrapped: IntrinsicDimension) -> dict[str, torch.Tensor]:
    return {name: wrapped.projection.dense(name) for name, _ in wrapped.base.named_parameters()}


def test_at_the_start_it_is_the_base_model(bert: Any) -> None:
    expected = bert(input_ids=IDS, attention_mask=MASK).logits
    wrapped = IntrinsicDimension(bert, 10, seed=1)
    assert torch.equal(wrapped(input_ids=IDS, attention_mask=MASK).logits, expected)
    assert [name for name, p in wrapped.named_parameters() if p.requires_grad] == ["z"]


def test_weights_are_theta_plus_p_z(bert: Any) -> None:
    wrapped = IntrinsicDimension(bert, 10, seed=1)
    with torch.no_grad():
        wrapped.z.copy_(torch.linspace(-1, 1, 10))
    for name, p in dense(wrapped).items():
        base = wrapped.base.get_parameter(name)
        assert (p != 0).sum(1).eq(1).all()
        assert (p.abs().sum(1) == 1).all()
        assert torch.allclose(wrapped.weights()[name], base + (p @ wrapped.z).view(base.shape), atol=1e-15)
    by_hand = {name: w.detach() for name, w in wrapped.weights().items()}
    expected = functional_call(wrapped.base, by_hand, kwargs={"input_ids": IDS, "attention_mask": MASK})
    assert torch.equal(wrapped(input_ids=IDS, attention_mask=MASK).logits, expected.logits)


def test_the_gradient_of_z_is_p_transposed_times_that_of_theta(bert: Any) -> None:
    wrapped = IntrinsicDimension(bert, 25, seed=1)
    with torch.no_grad():
        wrapped.z.normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    wrapped(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is None for p in wrapped.base.parameters())
    weights = {name: w.detach().requires_grad_() for name, w in wrapped.weights().items()}
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}
    loss = functional_call(wrapped.base, weights, kwargs=batch).loss
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    known = {name: g for name, g in zip(weights, grads, strict=True) if g is not None}
    expected = sum(p.T @ known[name].reshape(-1) for name, p in dense(wrapped).items() if name in known)
    assert torch.allclose(wrapped.z.grad, expected, rtol=1e-12, atol=1e-15)
    assert torch.allclose(wrapped.projection.transposed_times(known), expected, rtol=1e-12, atol=1e-15)


def test_training_moves_z_and_never_the_base(bert: Any) -> None:
    before = {name: p.clone() for name, p in bert.named_parameters()}
    wrapped = IntrinsicDimension(bert, 50, seed=1)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = wrapped(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 1])).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[name]) for name, p in bert.named_parameters())


def test_it_is_decided_by_the_seed_and_the_name_alone() -> None:
    shapes = {"a": (4, 5), "b": (7,)}
    one = SignProjection(shapes, 3, seed=1)
    turned = SignProjection({"b": (7,), "a": (4, 5)}, 3, seed=1)
    other = SignProjection(shapes, 3, seed=2)
    assert torch.equal(one.dense("a"), turned.dense("a"))
    assert not torch.equal(one.dense("a"), other.dense("a"))


def test_lengths_and_inner_products_are_kept_with_the_variance_of_theory() -> None:
    """E |P^T g|^2 = |g|^2, Var = (2/d) (|g|^4 - sum g^4); E <P^T g, P^T h> = <g, h>; over 2,000 seeds."""
    rng = np.random.default_rng(0)
    d, seeds = 20, 2000
    g, h = (torch.from_numpy(rng.standard_normal(60)) for _ in range(2))
    squares, products = np.empty(seeds), np.empty(seeds)
    for seed in range(seeds):
        projection = SignProjection({"w": (6, 10)}, d, seed=seed)
        left, right = projection.transposed_times({"w": torch.stack([g, h]).view(2, 6, 10)})
        squares[seed], products[seed] = left @ left, left @ right
    norm = float(g @ g)
    variance = 2 / d * (norm**2 - float((g**4).sum()))
    assert abs(squares.mean() - norm) < 4 * np.sqrt(variance / seeds)
    # The sample variance of a law with kurtosis k has relative sd sqrt((k - 1) / seeds); here k < 6.
    assert abs(squares.var() / variance - 1) < 4 * np.sqrt(5 / seeds)
    assert squares.var() < 2 / d * norm**2 * (1 + 4 * np.sqrt(5 / seeds))  # no worse than normal entries
    spread = (norm * float(h @ h) + float(g @ h) ** 2 - 2 * float((g**2 * h**2).sum())) / d
    assert abs(products.mean() - float(g @ h)) < 4 * np.sqrt(spread / seeds)
    assert abs(products.var() / spread - 1) < 4 * np.sqrt(5 / seeds)


def test_p_itself_is_nearly_an_isometry_of_the_subspace() -> None:
    """P^T P is diagonal, with binomial counts M/d on it: |P z|^2 = (M/d) |z|^2 (1 +- sd of the counts)."""
    size, d = 40_000, 40
    projection = SignProjection({"w": (size,)}, d, seed=3)
    gram = projection.dense("w").T @ projection.dense("w")
    assert torch.equal(gram, torch.diag(gram.diagonal()))
    deviation = np.sqrt(size / d * (1 - 1 / d))
    assert (gram.diagonal() - size / d).abs().max() < 5 * deviation


# torch compiles its own forward derivatives with what it has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_the_projections_product_is_differentiable_both_ways() -> None:
    projection = SignProjection({"w": (3, 4)}, 5, seed=0)
    z = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: projection.times("w", z), (z,), check_forward_ad=True)


def test_its_kernel_is_that_of_projected_gradients(bert: Any) -> None:
    rows = Inputs([5, 5], lambda some: {"input_ids": IDS[list(some)], "attention_mask": MASK[list(some)]})
    bert.requires_grad_(True)
    before = [
        {
            name: g
            for (name, _), g in zip(
                bert.named_parameters(),
                torch.autograd.grad(
                    bert(input_ids=IDS[i : i + 1], attention_mask=MASK[i : i + 1]).logits[0, c],
                    list(bert.parameters()),
                    allow_unused=True,
                ),
                strict=True,
            )
            if g is not None
        }
        for i in range(2)
        for c in range(2)
    ]
    wrapped = IntrinsicDimension(bert, 30, seed=4)
    job = Job(wrapped, trainable(wrapped), logits, rows, 2, [Gram("sgd")])
    found = kernels(job, memory=2**30)[0].total("sgd").train
    projected = torch.stack([wrapped.projection.transposed_times(g) for g in before])
    assert np.allclose(found, (projected @ projected.T).numpy(), rtol=1e-10)


def test_memory_does_not_grow_with_the_dimension() -> None:
    shapes = {"w": (1000, 100)}
    assert (
        SignProjection(shapes, 10, seed=0).nbytes == SignProjection(shapes, 16_383, seed=0).nbytes == 200_000
    )
    assert SignProjection(shapes, 16_384, seed=0).nbytes == 400_000


@pytest.mark.parametrize("dimension", [0, -1, 10.0, True, 10**9])
def test_a_dimension_that_is_none_is_refused(bert: Any, dimension: Any) -> None:
    with pytest.raises(UserError, match="expected a whole number from 1"):
        IntrinsicDimension(bert, dimension, seed=1)
    assert all(p.requires_grad for p in bert.parameters())


def test_quantised_parameters_are_refused() -> None:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="int8"):
        IntrinsicDimension(model, 1, seed=0)


def test_tied_weights_stay_tied(tiny_gpt2: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).double().eval()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    wrapped = IntrinsicDimension(model, 10, seed=1)
    with torch.no_grad():
        wrapped.z.fill_(0.05)
    got = wrapped(input_ids=IDS, attention_mask=MASK).logits
    with torch.no_grad():
        for name, weight in wrapped.weights().items():
            model.get_parameter(name).copy_(weight)
    assert torch.allclose(got, model(input_ids=IDS, attention_mask=MASK).logits, atol=1e-13)

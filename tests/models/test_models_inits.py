"""Initialisations of LoRA's A: the asked variance is the realised one, and the output stays as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from scipy import stats
from torch import nn

from foretaste.errors import UserError
from foretaste.models import inits
from foretaste.models.encode import encode
from foretaste.models.inits import INITS, conventional_k
from foretaste.seeds import borrowed_global_state
from foretaste.spec import InitSpec
from foretaste.training.trainer import predict

Rows = Callable[..., Dataset]
# The range that the TTR paper sweeps, and beyond: its fork of peft saturated silently at k = 2.
SWEEP = [1e-4, 1e-3, 0.1, 1 / 3, 2 / 3, 1.0, 1.5, 2.0, 8.0]
BOUNDED = ["kaiming-uniform", "xavier-uniform"]
NORMAL = ["gaussian", "xavier-normal"]


class Layers(nn.Module):
    """Three linear layers of different shapes, one of them applied nowhere near square."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = nn.Linear(48, 40), nn.Linear(40, 160), nn.Linear(160, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.wide(torch.tanh(self.first(x)))))


def lora(r: int, **options: Any) -> nn.Module:
    with borrowed_global_state(0, "tests"):
        config = peft.LoraConfig(r=r, target_modules=["first", "wide", "last"], **options)
        return peft.get_peft_model(Layers(), config)


def weights(model: nn.Module) -> list[np.ndarray]:
    return [a.detach().double().numpy() for _, a, _ in inits.lora_matrices(model)]


# --- contract of every law -----------------------------------------------------------------------


@pytest.mark.parametrize("law", INITS.names())
@pytest.mark.parametrize("k", [*SWEEP, None])
@pytest.mark.parametrize("r", [1, 4, 32])
def test_realised_is_requested_and_the_output_stays(law: Any, k: float | None, r: int) -> None:
    model = lora(r)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 48)).astype(np.float32))
    with torch.no_grad():
        before = model(x)
        check = inits.apply(model, InitSpec(law=law, k=k), seed=2)
        assert torch.equal(model(x), before)
    assert check.law == law
    assert check.layers == 3
    shapes = [a.shape for a in weights(model)]
    asked = [k if k is not None else conventional_k(law, r, n) for _, n in shapes]
    assert check.k_requested == pytest.approx(np.mean(asked))
    assert check.k_realised == pytest.approx(np.mean([(a**2).mean() * a.shape[1] for a in weights(model)]))
    for a, wanted in zip(weights(model), asked, strict=True):
        got = float((a**2).mean()) * a.shape[1]
        if law == "orthogonal":
            assert got == pytest.approx(wanted, rel=1e-6)
            continue
        # Var(x^2) = (2 + excess kurtosis) variance^2: 0.8 for a uniform law, 2 for a normal one.
        error = wanted * math.sqrt((0.8 if law in BOUNDED else 2.0) / a.size)
        assert abs(got - wanted) < 5 * error
        if law in BOUNDED:
            assert np.abs(a).max() <= math.sqrt(3 * wanted / a.shape[1]) * (1 + 1e-6)
    assert check.worst_z < 5


@pytest.mark.parametrize("law", INITS.names())
def test_the_law_is_the_one_it_is_named_after(law: Any) -> None:
    """Kolmogorov's distance over all entries of all layers, in units of their own standard deviation."""
    model = lora(32)
    inits.apply(model, InitSpec(law=law, k=0.7), seed=1)
    pooled = np.concatenate([(a * math.sqrt(a.shape[1] / 0.7)).ravel() for a in weights(model)])
    uniform = stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))
    right, wrong = (uniform, stats.norm) if law in BOUNDED else (stats.norm, uniform)
    root = math.sqrt(pooled.size)
    if law == "orthogonal":
        # Entries of a Haar matrix of width 40 are normal only in the limit: it need only be nearer to it.
        right_distance = stats.kstest(pooled, right.cdf).statistic
        assert right_distance < stats.kstest(pooled, wrong.cdf).statistic
        return
    # sqrt(n) D exceeds 2.2 with probability 1e-4; the seed is fixed.
    assert root * stats.kstest(pooled, right.cdf).statistic < 2.2
    assert root * stats.kstest(pooled, wrong.cdf).statistic > 2.2
    assert abs(pooled.mean()) < 5 / root


@pytest.mark.parametrize("law", INITS.names())
def test_layers_and_seeds_have_streams_of_their_own(law: Any) -> None:
    first, again, other = lora(4), lora(4), lora(4)
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        inits.apply(model, InitSpec(law=law, k=1.0), seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))
    for a, b in zip(weights(first), weights(other), strict=True):
        # Correlation of independent entries: standard deviation 1 / sqrt(entries).
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)
    a, b = weights(first)[1][:, :40], weights(first)[0][:, :40]
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


@pytest.mark.parametrize("law", ["kaiming-uniform", "gaussian"])
def test_a_small_rank_is_the_top_of_a_large_one(law: Any) -> None:
    """Kernels take all ranks from one A (design): rows do not depend on how many there are."""
    small, large = lora(4), lora(16)
    for model in (small, large):
        inits.apply(model, InitSpec(law=law, k=1.0), seed=0)
    for a, b in zip(weights(small), weights(large), strict=True):
        assert np.array_equal(a, b[:4])


@pytest.mark.parametrize("k", [1e-4, 1.0, 8.0])
def test_orthogonal_rows(k: float) -> None:
    model = lora(32)
    inits.apply(model, InitSpec(law="orthogonal", k=k), seed=0)
    for a in weights(model):
        np.testing.assert_allclose(a @ a.T, k * np.eye(32), atol=1e-6 * k)


# --- what peft does by itself --------------------------------------------------------------------


def test_kaiming_is_pefts_default() -> None:
    model = lora(32)
    for a in weights(model):
        n = a.shape[1]
        assert np.abs(a).max() <= math.sqrt(3 * conventional_k("kaiming-uniform", 32, n) / n) * (1 + 1e-6)
        got = float((a**2).mean()) * n
        assert abs(got - 1 / 3) < 5 * (1 / 3) * math.sqrt(0.8 / a.size)


@pytest.mark.parametrize("r", [4, 32])
def test_gaussian_is_pefts_gaussian(r: int) -> None:
    for a in weights(lora(r, init_lora_weights="gaussian")):
        n = a.shape[1]
        k = conventional_k("gaussian", r, n)
        assert k / n == pytest.approx(1 / r**2)
        assert abs(float((a**2).mean()) * n - k) < 5 * k * math.sqrt(2 / a.size)


def test_xavier_is_torchs_xavier() -> None:
    r, n = 16, 80
    for law, fill in (("xavier-uniform", nn.init.xavier_uniform_), ("xavier-normal", nn.init.xavier_normal_)):
        with borrowed_global_state(0, "tests"):
            a = fill(torch.empty(r, n)).double().numpy()
        k = conventional_k(law, r, n)
        assert abs(float((a**2).mean()) * n - k) < 5 * k * math.sqrt(2 / a.size)


# --- refusals ------------------------------------------------------------------------------------


def test_a_b_that_is_not_zero_is_refused() -> None:
    model = lora(4, init_lora_weights=False)
    with pytest.raises(UserError, match=r"B of layer 'base_model\.model\.first' is not zero"):
        inits.apply(model, InitSpec(), seed=0)


def test_no_lora_layer_is_refused() -> None:
    with pytest.raises(UserError, match="no linear LoRA layer"):
        inits.apply(Layers(), InitSpec(), seed=0)


def test_more_orthogonal_rows_than_columns_are_refused() -> None:
    with pytest.raises(UserError, match="64 orthogonal rows do not fit into n_in = 48"):
        inits.apply(lora(64), InitSpec(law="orthogonal"), seed=0)


def test_a_law_that_misses_its_variance_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clamp in the paper's fork of peft: asked for k = 4, got 2."""
    honest = INITS.get("kaiming-uniform")
    members = copy.copy(INITS._members)
    members["kaiming-uniform"] = lambda rng, r, n, k: honest(rng, r, n, min(k, 2.0))
    monkeypatch.setattr(INITS, "_members", members)
    inits.apply(lora(32), InitSpec(k=2.0), seed=0)
    with pytest.raises(UserError, match=r"asked for k = 4, got (1\.9|2)"):
        inits.apply(lora(32), InitSpec(k=4.0), seed=0)


# --- on real models ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize("law", INITS.names())
def test_a_classifiers_logits_stay(
    family: str, law: Any, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    from foretaste.models import adapters
    from foretaste.spec import AdapterSpec

    tokenizer, model = load_tiny(request.getfixturevalue(family))
    encoded = encode(tokenizer, make_rows(6), max_length=32)
    before = predict(model, encoded, tokenizer, 6)
    spec = AdapterSpec(method="lora", init=InitSpec(law=law, k=8.0))  # type: ignore[call-arg]
    arm = adapters.resolve(spec, {}, where="x")
    wrapped, check = adapters.attach(model, arm, head_policy="probe-then-train", seed=0, total_steps=1)
    assert check is not None
    assert check.k_realised == pytest.approx(8.0, rel=0.2)
    np.testing.assert_array_equal(predict(wrapped, encoded, tokenizer, 6), before)


def test_layers_are_named_alike_whatever_the_head_policy(tiny_bert: Path, load_tiny: Any) -> None:
    """So that A is the same under both policies, and arms stay paired."""
    from foretaste.models import adapters
    from foretaste.spec import AdapterSpec

    found = []
    for policy in ("probe-then-train", "paper"):
        _, model = load_tiny(tiny_bert)
        arm = adapters.resolve(AdapterSpec(method="lora", init=InitSpec(), r=2), {}, where="x")  # type: ignore[call-arg]
        wrapped, _ = adapters.attach(model, arm, head_policy=policy, seed=0, total_steps=1)  # type: ignore[arg-type]
        found.append({name: a for name, a, _ in inits.lora_matrices(wrapped)})
    assert set(found[1]) - set(found[0]) == {"base_model.model.classifier"}
    assert all(torch.equal(a, found[1][name]) for name, a in found[0].items())

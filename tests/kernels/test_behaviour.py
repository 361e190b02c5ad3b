"""The linearised model, the output derivative and the traces of LoRA's two parts (theory.md, 1 and 9)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import FAMILIES, Float, assert_exact, inputs, jacobian, own, pad_of, sequences, subject
from peft_models import TARGETS, layers_of, lora, matrix_of
from torch.func import functional_call, jvp

from foretaste.errors import UserError
from foretaste.kernels import linearised, logits, lora_traces, margin, output_derivative

# Llama's norms and softmax round to float32 (2^-24 is 6e-8) on the way, differently forwards and backwards.
JVP = {"bert": 1e-11, "gpt2": 1e-11, "albert": 1e-11, "llama": 1e-6}
# torch compiles its own forward derivatives with what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def step(model: Any, size: float, only: str = "") -> dict[str, torch.Tensor]:
    """A random change of every trained parameter whose name holds `only`."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in model.named_parameters()
        if p.requires_grad and only in name
    }


def forward_mode(model: Any, change: dict[str, torch.Tensor], outputs: Any, rows: Any) -> Float:
    """f + its directional derivative by torch.func.jvp, one row at a time."""
    weights = {name: model.get_parameter(name).detach() for name in change}
    found = []
    for i in range(len(rows)):
        batch = rows.collate([i])

        class Called(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, batch: Any) -> torch.Tensor:
                result: torch.Tensor = outputs(self.inner, batch)
                return result

        def forward(values: dict[str, torch.Tensor], batch: Any = batch) -> torch.Tensor:
            named = {f"inner.{name}": value for name, value in values.items()}
            result: torch.Tensor = functional_call(Called(), named, (batch,))
            return result

        value, tangent = jvp(forward, (weights,), (change,))
        found.append((value + tangent)[0].detach().numpy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("family", "batch"), [("bert", 1), ("bert", 4), ("gpt2", 4), ("albert", 4), ("llama", 4)]
)
def test_the_linearised_model_is_the_forward_derivative(family: str, batch: int) -> None:
    it = subject(family, attention="eager")  # fused attention has no forward derivative
    change = step(it.model, 0.1)
    got = linearised(it.model, change, logits, it.rows(2), batch=batch)
    assert_exact(got, forward_mode(it.model, change, logits, it.rows()), relative=JVP[family])


def test_the_linearised_margin_is_exact() -> None:
    it = subject("bert", 2, margin, attention="eager")
    change = step(it.model, 0.1)
    got = linearised(it.model, change, margin, it.rows(1))
    assert got.shape == (6, 1)
    assert_exact(got, forward_mode(it.model, change, margin, it.rows()), relative=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_linearised_model_of_every_family_is_its_jacobian_times_the_change(family: str) -> None:
    it = subject(family)
    change = step(it.model, 0.1)
    products = sum(it.truth.by_name[name] @ change[name].flatten().numpy() for name in change)
    with torch.no_grad():
        start = np.concatenate([logits(it.model, it.rows().collate([i])) for i in range(6)])
    want = start + np.asarray(products).reshape(6, 3)
    assert_exact(linearised(it.model, change, logits, it.rows(2)), want, relative=1e-11)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"target_modules": ["query", "word_embeddings"]}], ids=str
)
def test_the_linearised_adapter_is_its_jacobian_times_the_change(options: dict[str, Any]) -> None:
    model = lora("bert", b=0.3, modules_to_save=["classifier"], **options)
    rows, change = inputs(sequences(), 0), step(model, 0.1)
    truth = jacobian(model, logits, rows)
    with torch.no_grad():
        start = np.concatenate([logits(model, rows.collate([i])) for i in range(6)])
    products = sum(truth.by_name[name] @ change[name].flatten().numpy() for name in change)
    want = start + np.asarray(products).reshape(6, 3)
    assert_exact(linearised(model, change, logits, rows), want, relative=1e-11)


def test_what_is_not_named_does_not_move_and_the_model_stays_as_it_is() -> None:
    it = subject("gpt2", attention="eager")
    before = {name: p.detach().clone() for name, p in it.model.named_parameters()}
    change = step(it.model, 0.1, only="mlp")
    assert 0 < len(change) < len(before)
    got = linearised(it.model, change, logits, it.rows())
    assert_exact(got, forward_mode(it.model, change, logits, it.rows()), relative=1e-11)
    assert all(torch.equal(p, before[name]) for name, p in it.model.named_parameters())


def test_the_linearised_model_is_tangent_to_the_model() -> None:
    """Halving the step divides its error by four, the curvature being what is left out."""
    it = subject("bert")
    errors = []
    for size in (2e-4, 1e-4):
        change, moved = step(it.model, size), own(it.model)
        with torch.no_grad():
            for name, value in change.items():
                moved.get_parameter(name).add_(value)
            truth = np.concatenate([logits(moved, it.rows().collate([i])) for i in range(6)])
        errors.append(np.abs(linearised(it.model, change, logits, it.rows()) - truth).max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_a_change_that_does_not_fit_is_refused_by_name() -> None:
    it = subject("bert")
    with pytest.raises(UserError, match="'classifier' is no trainable parameter of the model"):
        linearised(it.model, {"classifier": torch.zeros(3)}, logits, it.rows())
    with pytest.raises(UserError, match=r"'classifier\.bias' has shape \(1, 3\), expected \(3,\)"):
        linearised(it.model, {"classifier.bias": torch.zeros(1, 3)}, logits, it.rows())


# --- chi ----------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    classes=st.integers(2, 6),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_chi_is_the_derivative_of_the_cross_entropy(seed: int, rows: int, classes: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values, labels = scale * rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)
    leaf = torch.from_numpy(values).requires_grad_()
    loss = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(labels), reduction="sum")
    (want,) = torch.autograd.grad(loss, [leaf])
    chi = output_derivative(values, labels.tolist())
    # An exponent of size 10^4 carries a rounding error of 10^-12.
    np.testing.assert_allclose(chi, want.numpy(), rtol=0, atol=1e-15 * max(scale, 1) * 10)
    np.testing.assert_allclose(chi.sum(1), 0, atol=1e-15 * classes)
    assert (chi[np.arange(rows), labels] <= 0).all()


def test_chi_leaves_the_logits_as_they_are() -> None:
    values = np.array([[0.0, math.log(3.0)]])
    np.testing.assert_allclose(output_derivative(values, [0]), [[-0.75, 0.75]], rtol=1e-15)
    np.testing.assert_array_equal(values, [[0.0, math.log(3.0)]])


# --- the two parts of LoRA along training -------------------------------------------------------------


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("b", [0.0, 0.3])
@pytest.mark.parametrize("batch", [1, 16])
def test_traces_are_those_of_the_explicit_kernels(family: str, b: float, batch: int) -> None:
    model = lora(family, b=b, alpha=7.0, modules_to_save=None)
    rows = inputs(sequences(), pad_of(model), 1)
    truth = jacobian(model, logits, rows)
    traces = lora_traces(model, logits, rows, batch=batch)
    for found, matrix in ((traces.a, "lora_A"), (traces.b, "lora_B")):
        assert len(found) == len(layers_of(family))
        for weight in layers_of(family):
            name = matrix_of(weight, matrix)
            want = float(np.trace(truth.kernel([name])))
            assert found[name.partition(f".{matrix}")[0]] == pytest.approx(want, rel=1e-10, abs=1e-20)
    want_a, want_b = (
        sum(float(np.trace(truth.kernel([matrix_of(w, m)]))) for w in layers_of(family))
        for m in ("lora_A", "lora_B")
    )
    assert traces.ratio == pytest.approx(want_a / want_b, rel=1e-10)
    assert (traces.ratio == 0) == (b == 0)


def test_the_ratio_grows_with_b_as_its_square() -> None:
    """theory.md item 1: what lazy training wants small, and a sign that the kernel moved."""
    rows = inputs(sequences(), 0)
    small, smaller = (lora_traces(lora("bert", b=b), logits, rows).ratio for b in (1e-4, 5e-5))
    assert small / smaller == pytest.approx(4, rel=0.01)


def test_without_a_part_of_b_there_is_no_ratio_and_without_lora_no_traces() -> None:
    model, rows = lora("bert", b=0.3), inputs(sequences(), 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_A" in name)
    traces = lora_traces(model, logits, rows)
    assert traces.b == {}
    assert sum(traces.a.values()) > 0
    assert math.isnan(traces.ratio)
    with pytest.raises(UserError, match="the model has no trainable LoRA matrices"):
        lora_traces(subject("bert").model, logits, rows)

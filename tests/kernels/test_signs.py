"""Signs of LoRA's gradients: the jump at B = 0, and means over A in closed form (theory.md, item 9)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracles import assert_exact, compute, inputs, pad_of, sequences, whole
from peft_models import TARGETS, lora

from foretaste.kernels import Gram, logits
from foretaste.kernels.gradients import Outer
from foretaste.kernels.lora import Adapted, _through_a
from foretaste.kernels.sign import dead, gradient_sign, sign_sign

TINY = 1e-12


def kernels_of(model: Any) -> Any:
    rows = inputs(sequences(), pad_of(model))
    products = [Gram("sgd"), Gram("sign"), Gram("asymmetric"), Gram("sign", "parameter")]
    return compute(model, logits, rows, products)[0]


@pytest.mark.parametrize("family", TARGETS)
def test_the_symmetric_sign_kernel_of_lora_jumps_at_b_zero(family: str) -> None:
    """A's gradient is 0 at B = 0 and has r n signs beside it; gradients themselves do not jump."""
    at_zero, beside = kernels_of(lora(family)), kernels_of(lora(family, b=TINY))
    for name in at_zero:
        if name.startswith("sign/") and "lora_A" in name:
            assert not whole(at_zero[name]).any()
            assert whole(beside[name]).any()
    live = np.diag(at_zero["sign/adapters"].train)
    jump = np.diag(beside["sign/adapters"].train) - live
    coordinates = sum(p.numel() for n, p in lora(family).named_parameters() if "lora_A" in n)
    assert (jump <= coordinates).all()
    assert (jump > 0.9 * coordinates).all()
    for kind in ("sgd", "asymmetric"):
        before, after = (whole(parts[f"{kind}/adapters"]) for parts in (at_zero, beside))
        # A's gradients are of size 10^-12 there; all others move as little, but for a sign that may flip of
        # an entry which is itself of that size.
        assert_exact(after, before, relative=1e4 * TINY)


def test_at_b_zero_only_b_has_a_vote() -> None:
    parts = kernels_of(lora("bert"))
    of_b = [whole(parts[name]) for name in parts if name.startswith("sign/") and "lora_B" in name]
    np.testing.assert_array_equal(whole(parts["sign/adapters"]), sum(of_b))


# --- means over A -------------------------------------------------------------------------------------

N, M, RANK, DRAWS = 40, 3, 2, 3000


def gradients() -> Outer:
    """Three rows of one token group and one output, well apart."""
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=(3, 2, N)), rng.normal(size=(3, 1, 2, M))
    x[1] += x[0]  # so that some directions are alike
    return Outer(torch.from_numpy(x), torch.from_numpy(d))


def over_a(product: Any, sigma: float) -> tuple[Any, Any]:
    """Mean over normal A of the product of LoRA's B-gradients, and its standard error."""
    a, rng = gradients(), np.random.default_rng(1)
    found = np.empty((DRAWS, a.rows, a.rows))
    for draw in range(DRAWS):
        matrix = torch.from_numpy(rng.normal(0, sigma, (RANK, N)))
        lora_b = _through_a(a, Adapted(matrix, None, 1.0))
        found[draw] = product(lora_b, lora_b).numpy()
    return found.mean(0), found.std(0, ddof=1) / DRAWS**0.5


def rows_of_gradients() -> Any:
    """G_p of every row of data: shape (data rows, p, n)."""
    return gradients().dense()[:, 0].numpy()


def test_the_mean_sign_kernel_of_lora_counts_angles_of_rows() -> None:
    """r sum_p (2/pi) asin cos(G_p,i, G_p,j): the kernel of full fine-tuning's signs it is not."""
    g = rows_of_gradients()
    unit = g / np.linalg.norm(g, axis=2, keepdims=True)
    cosines = np.einsum("ipn,jpn->ijp", unit, unit).clip(-1, 1)
    want = RANK * (2 / math.pi) * np.arcsin(cosines).sum(2)
    mean, error = over_a(sign_sign, 0.3)
    off = ~np.eye(3, dtype=bool)
    assert (np.abs(mean - want)[off] < 4 * error[off]).all()
    np.testing.assert_allclose(np.diag(mean), RANK * M, atol=1e-9)  # without spread
    full = sign_sign(gradients(), gradients()).numpy() / (N * M)
    assert (np.abs(want / (RANK * M) - full)[off] > 4 * error[off] / (RANK * M)).any()


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_mean_asymmetric_kernel_of_lora_is_linear_in_the_spread_of_a(sigma: float) -> None:
    """sigma r sqrt(2/pi) sum_p <G_p,i, G_p,j> / |G_p,j| at s = 1."""
    g = rows_of_gradients()
    norms = np.linalg.norm(g, axis=2)
    inner = np.einsum("ipn,jpn->ijp", g, g)
    want = sigma * RANK * math.sqrt(2 / math.pi) * (inner / norms[None]).sum(2)
    mean, error = over_a(gradient_sign, sigma)
    assert (np.abs(mean - want) < 4 * error).all()
    assert float(error.max()) < 0.05 * float(np.abs(want).max())


def test_entries_that_are_rounding_are_counted_as_dead() -> None:
    x = torch.tensor([[[0.1 + 0.2], [0.3]]], dtype=torch.float64)  # equal up to rounding
    d = torch.tensor([[[[1.0, 2.0], [-1.0, 2.0]]]], dtype=torch.float64)
    gradient = Outer(x, d)
    assert gradient.dense()[0, 0, 0] != 0
    assert dead(gradient) == 1
    assert sign_sign(gradient, gradient).tolist() == [[1.0]]
    assert gradient_sign(gradient, gradient).tolist() == [[pytest.approx(1.2)]]

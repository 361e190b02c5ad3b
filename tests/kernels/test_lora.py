"""LoRA kernels from one capture of the base model equal those of real peft models (theory.md, item 8)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_oracles import (
    Float,
    assert_exact,
    columns,
    compute,
    inputs,
    jacobian,
    own,
    pad_of,
    sequences,
    subject,
    whole,
)
from peft_models import HEADS, TARGETS, layers_of, lora, matrix_of, merged, set_matrix

from foretaste.errors import UserError
from foretaste.kernels import (
    RULES,
    Adapted,
    Arm,
    Gram,
    Ranks,
    Surface,
    linear_weights,
    logits,
    plain_lora,
    trainable,
)
from foretaste.kernels import compute as computing
from foretaste.kernels import lora as identities
from foretaste.kernels.gradients import Outer
from foretaste.kernels.lora import kernel_a
from foretaste.kernels.products import gram

FAMILIES = tuple(TARGETS)  # linear layers with and without bias, and Conv1D


def rows_of(model: Any, extra: int = 0) -> Any:
    return inputs(sequences(), pad_of(model), extra)


def from_base(base: Any, products: list[Any], extra: int = 2, **options: Any) -> Any:
    """Parts from a capture of the linear layers of a base model alone, with padding."""
    return compute(base, logits, rows_of(base, extra), products, parameters=linear_weights(base), **options)[
        0
    ]


@pytest.mark.parametrize("b", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_and_of_b_are_exact_in_each_layer_and_summed(family: str, b: float) -> None:
    model = lora(family, b=b)
    truth = jacobian(model, logits, rows_of(model))
    adapted = plain_lora(model)
    assert list(adapted) == layers_of(family)
    single = [Arm(name, {name: layer}) for name, layer in adapted.items()]
    parts = from_base(merged(model), [*single, Arm("all", adapted)])
    scale = 1e-6 * float(np.abs(truth.kernel()).max())
    for name in adapted:
        of_b = columns(truth.kernel([matrix_of(name, "lora_B")]))
        assert_exact(whole(parts[f"{name}/B"]), of_b, scale=scale)
        of_a = columns(truth.kernel([matrix_of(name, "lora_A")]))
        if b:
            assert of_a.any()
            assert_exact(whole(parts[f"{name}/A"]), of_a, scale=scale)
        else:
            assert not of_a.any()
            assert f"{name}/A" not in parts
    assert_exact(whole(parts.total("all")), columns(truth.kernel()))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_peft_model_itself_gives_the_same_parts(family: str) -> None:
    model = lora(family, b=0.3)
    arm = from_base(merged(model), [Arm("all", plain_lora(model))])
    direct, done = compute(model, logits, rows_of(model), [Gram("sgd", "parameter")])
    assert done.probe.batched
    for matrix in "AB":
        names = [n for n in direct if f"lora_{matrix}" in n]
        assert len(names) == len(layers_of(family))
        assert_exact(whole(arm[f"all/{matrix}"]), np.asarray(sum(whole(direct[n]) for n in names)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_has_a_kernel_of_exactly_zero_at_b_zero(family: str) -> None:
    model = lora(family)
    parts, done = compute(model, logits, rows_of(model), [Gram("sgd", "parameter")])
    of_a = [p.name for p in done.probe.parameters if "lora_A" in p.name]
    assert len(of_a) == len(layers_of(family))
    assert not any(whole(parts[f"sgd/{name}"]).any() for name in of_a)
    assert whole(parts.total("sgd")).any()


def test_kernel_a_of_no_b_is_a_zero_matrix_between_blocks_of_any_size() -> None:
    a, b = outer(rows=3, seed=0), outer(rows=2, seed=1)
    zero = kernel_a(a, b, Adapted(torch.ones(2, 6).double(), None, 1.0))
    assert zero.shape == (6, 4)
    assert not zero.any()
    zeros = Adapted(torch.ones(2, 6).double(), torch.zeros(5, 2).double(), 1.0)
    assert torch.equal(kernel_a(a, b, zeros), zero)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("r", "alpha"), [(1, 16.0), (2, 16.0), (4, 3.0)])
def test_peft_scales_by_alpha_over_r_or_its_root(r: int, alpha: float, rslora: bool) -> None:
    model = lora("bert", r=r, alpha=alpha, use_rslora=rslora, b=0.2)
    rule = RULES["alpha/sqrt(r)" if rslora else "alpha/r"]
    adapted = plain_lora(model)
    assert {layer.scaling for layer in adapted.values()} == {rule(alpha, r)}
    truth = jacobian(model, logits, rows_of(model))
    parts = from_base(merged(model), [Arm("all", adapted)])
    assert_exact(whole(parts.total("all")), columns(truth.kernel()))


def test_each_layer_may_have_a_rank_and_an_alpha_of_its_own() -> None:
    model = lora("bert", rank_pattern={"query": 1, "value": 5}, alpha_pattern={"key": 40.0}, b=0.2)
    adapted = plain_lora(model)
    assert {len(layer.A) for layer in adapted.values()} == {1, 3, 5}
    parts = from_base(merged(model), [Arm("all", adapted)])
    assert_exact(whole(parts.total("all")), columns(jacobian(model, logits, rows_of(model)).kernel()))


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_matrix_has_no_part(family: str, frozen: str) -> None:
    model = lora(family, b=0.3)
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    adapted = plain_lora(model)
    kept = "B" if frozen == "lora_A" else "A"
    assert {layer.trains for layer in adapted.values()} == {frozenset(kept)}
    parts = from_base(merged(model), [Arm("all", adapted)])
    assert set(parts) == {f"all/{kept}"}
    assert_exact(whole(parts.total("all")), columns(jacobian(model, logits, rows_of(model)).kernel()))


# --- many ranks at once -------------------------------------------------------------------------------

LAWS = ("uniform", "gaussian")
RANKS = (1, 2, 5)
K = 0.7
ALPHA = 6.0


def explicit_lora(family: str, surface: Ranks, r: int, rule: str) -> Any:
    """The peft model whose A holds the first r directions of `Ranks`, with variance K / n."""
    alpha = float(r) if rule == "alpha=r" else ALPHA
    model = lora(family, r=r, alpha=alpha, use_rslora=rule == "alpha/sqrt(r)")
    for parameter in linear_weights(subject(family).model):
        n = model.get_parameter(matrix_of(parameter.name, "lora_A")).shape[1]
        a = surface.directions(parameter, n)[:r] * (K / n) ** 0.5
        set_matrix(model, parameter.name, "lora_A", a)
    return model


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_are_prefixes_of_one_a(family: str, law: Any) -> None:
    ranks = Ranks(RANKS, seed=4, law=law)
    parts, _ = compute(subject(family).model, logits, subject(family).rows(2), [ranks, Gram()])
    unit = whole(parts[Ranks.KEY])
    assert unit.shape[0] == len(RANKS)
    for r, rule in zip(RANKS, RULES, strict=True):
        model = explicit_lora(family, ranks, r, rule)
        truth = columns(jacobian(model, logits, rows_of(model)).kernel())
        factor = Surface(RANKS, unit).factor(r, K, alpha=ALPHA, rule=rule)
        assert_exact(factor * unit[RANKS.index(r)], truth)
        square = parts[Ranks.KEY].train
        at_point = Surface(RANKS, square).kernel(r, K, alpha=ALPHA, rule=rule)
        assert_exact(at_point, truth[: len(at_point)])


def test_a_direction_depends_on_the_seed_and_the_layer_but_not_on_the_other_ranks() -> None:
    first, second = linear_weights(subject("bert").model)[:2]
    many = Ranks((1, 2, 9), seed=4).directions(first, 16)
    assert torch.equal(Ranks((4,), seed=4).directions(first, 16), many[:4])
    assert not torch.equal(Ranks((4,), seed=5).directions(first, 16), many[:4])
    assert not torch.equal(Ranks((4,), seed=4).directions(second, 16), many[:4])


def test_few_directions_are_kept_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = linear_weights(subject("bert").model)
    ranks = (1, 5)
    size = {p.name: 8 * ranks[-1] * (p.fan_in or 0) for p in layers}
    whole = Ranks(ranks, seed=4)
    assert whole.kept(layers) == sum(size.values())
    monkeypatch.setattr("foretaste.kernels.lora.DRAWN_BYTES", max(size.values()) + 1)
    few = Ranks(ranks, seed=4)
    assert few.kept(layers) == max(size.values()) + 1 < sum(size.values())
    for p in [*layers, *layers]:
        assert torch.equal(few.directions(p, p.fan_in or 0), whole.directions(p, p.fan_in or 0))
        assert sum(z.nbytes for z in few._drawn.values()) <= few.kept(layers)
    monkeypatch.setattr("foretaste.kernels.lora.DRAWN_BYTES", 0)
    assert few.kept(layers) == max(size.values())  # a tile needs the one of its own layer


@pytest.mark.parametrize("law", LAWS)
def test_directions_have_mean_zero_and_variance_one(law: Any) -> None:
    z = Ranks((64,), seed=0, law=law).directions(linear_weights(subject("bert").model)[0], 1000)
    kurtosis = {"uniform": -1.2, "gaussian": 0.0}[law]
    error = 1 / z.numel() ** 0.5
    assert abs(float(z.mean())) < 4 * error
    assert abs(float(z.square().mean()) - 1) < 4 * error * (2 + kurtosis) ** 0.5
    assert abs(float((z**4).mean()) - 3 - kurtosis) < 4 * error * float((z**4).std())
    assert (float(z.abs().max()) <= 3**0.5) == (law == "uniform")


def test_ranks_on_chosen_layers_are_those_layers_lora() -> None:
    names = [name for name in layers_of("gpt2") if "c_attn" in name]
    ranks = Ranks((2,), seed=4, layers=frozenset(names))
    model = lora("gpt2", r=2, alpha=2.0, target_modules=["c_attn"])
    weights = {p.name: p for p in linear_weights(subject("gpt2").model)}
    for name in names:
        set_matrix(model, name, "lora_A", ranks.directions(weights[name], 16) / 4)
    parts = from_base(subject("gpt2").model, [ranks])
    assert_exact(whole(parts[Ranks.KEY])[0], columns(jacobian(model, logits, rows_of(model)).kernel()))


@pytest.mark.parametrize("ranks", [(), (2, 1), (1, 1), (0, 1)])
def test_ranks_out_of_order_are_refused(ranks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="expected ascending whole numbers above zero"):
        Ranks(ranks, seed=0)


def test_a_surface_gives_every_trace_and_refuses_what_it_does_not_hold() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 4, 3))
    surface = Surface((1, 8), draws @ draws.transpose(0, 2, 1))
    ks = [0.01, 1 / 3, 2.0]
    traces = surface.traces(ks, alpha=5.0)
    assert traces.shape == (len(RULES), 2, 3)
    for i, rule in enumerate(RULES):
        for j, r in enumerate(surface.ranks):
            for at, k in enumerate(ks):
                trace = np.trace(surface.kernel(r, k, alpha=5.0, rule=rule))
                assert traces[i, j, at] == pytest.approx(trace, rel=1e-12)
    # theory.md item 1: alpha = 16, n = 1024, k = 1/3 (the table's c is s^2 r k / n).
    c = [16**2 / r**2 * r / 3 / 1024 for r in (4, 8, 64, 512)]
    table = [Surface((r,), draws[:1]).factor(r, 1 / 3) * r / 1024 for r in (4, 8, 64, 512)]
    np.testing.assert_allclose(table, c, rtol=1e-12)
    np.testing.assert_allclose(table, [0.0208, 0.0104, 0.0013, 0.00016], rtol=0.02)
    with pytest.raises(UserError, match="rank 2 was not computed"):
        surface.kernel(2)
    with pytest.raises(UserError, match="k is 0"):
        surface.kernel(1, 0.0)
    with pytest.raises(UserError, match="no scaling rule 'alpha'; there are: alpha/r"):
        surface.kernel(1, rule="alpha")


def test_a_layer_that_no_hook_reaches_is_refused_not_left_out() -> None:
    """A surface without one of its layers would pass for the whole."""
    base = own(subject("bert").model)
    pooler, unseen = base.bert.pooler, torch.nn.Linear(16, 16).double()
    forward = pooler.forward
    pooler.unseen = unseen
    pooler.forward = lambda x: forward(x) + x[:, 0] @ unseen.weight
    name = "bert.pooler.unseen.weight"
    one = Arm("one", {name: Adapted(torch.ones(1, 16).double(), None, 1.0)})
    for product in (Ranks((1,), seed=0), one):
        with pytest.raises(UserError, match=re.escape(f"'{name}' is not used as a linear layer's weight")):
            from_base(base, [product])
    parts = from_base(base, [Gram()])  # the kernel of full fine-tuning holds it
    truth = jacobian(base, logits, rows_of(base))
    names = [p.name for p in linear_weights(base)]
    assert name in names
    assert_exact(whole(parts.total("sgd")), columns(truth.kernel(names)))
    mean = sum(truth.kernel([p.name]) / p.shape[1] for p in linear_weights(base))
    assert_exact(whole(parts["mean-lora"]), columns(np.asarray(mean)))


# --- invariances --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "block", "chunk"), [(1, 3, 1), (2, 1, 10**9), (5, 2, 5000)])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_block_order_and_chunk_change_nothing(
    family: str, batch: int, block: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lora(family, b=0.3)
    base, order = merged(model), [4, 0, 5, 2, 1, 3]
    products = [Arm("all", plain_lora(model)), Ranks((1, 4), seed=1)]
    roomy = from_base(base, products)
    monkeypatch.setattr(computing, "BATCH_ROWS", batch)
    monkeypatch.setattr(computing, "BLOCK_ROWS", block)
    monkeypatch.setattr(identities, "CHUNK_BYTES", chunk)
    tokens = sequences()
    rows = inputs([tokens[i] for i in order], pad_of(base), 1)
    cut, done = compute(base, logits, rows, products, parameters=linear_weights(base), train=6)
    assert len(done.plan.train) == -(-6 // block)
    # The first four rows are the columns of `roomy`, and row i of the new order is row order[i] there.
    places = (np.asarray(order)[:, None] * 3 + np.arange(3)).ravel()
    for name in ("all/A", "all/B", Ranks.KEY):
        want = whole(roomy[name])
        got = np.empty_like(cut[name].train)
        got[..., places[:, None], places] = cut[name].train
        assert_exact(got[..., :, : want.shape[-1]], want)


# --- expectation and variance over A ------------------------------------------------------------------


def outer(rows: int = 3, outputs: int = 2, tokens: int = 4, m: int = 5, n: int = 6, seed: int = 0) -> Outer:
    rng = np.random.default_rng(seed)
    x, d = rng.normal(size=(rows, tokens, n)), rng.normal(size=(rows, outputs, tokens, m))
    return Outer(torch.from_numpy(x), torch.from_numpy(d))


KURTOSIS = {"gaussian": 0.0, "uniform": -1.2}


def sampled(law: str, a: Outer, b: Outer, r: int, k: float, s: float, draws: int) -> Float:
    """Kernels at B = 0 for many A: shape (draws, rows of a * outputs, rows of b * outputs)."""
    rng = np.random.default_rng(5)
    n = a.x.shape[2]
    shape = (draws, r, n)
    z = rng.normal(size=shape) if law == "gaussian" else rng.uniform(-1, 1, shape) * 3**0.5
    matrices = z * (k / n) ** 0.5
    g, h = (part.dense().flatten(0, 1).numpy() for part in (a, b))
    left, right = np.einsum("imn,qrn->qimr", g, matrices), np.einsum("jmn,qrn->qjmr", h, matrices)
    found: Float = s**2 * np.einsum("qimr,qjmr->qij", left, right)
    # The fast path on the first draw, so that the sample is of what is computed.
    one = Adapted(torch.from_numpy(matrices[0]), None, s)
    np.testing.assert_allclose(identities.kernel_b(a, b, one).numpy(), found[0], rtol=1e-10, atol=1e-10)
    return found


@pytest.mark.parametrize("law", KURTOSIS)
@pytest.mark.parametrize(("r", "k", "s"), [(1, 1.0, 1.0), (4, 1 / 3, 4.0)])
def test_mean_and_variance_over_a_are_those_of_a_sample(law: str, r: int, k: float, s: float) -> None:
    draws = 4000
    a, b = outer(), outer(rows=2, seed=1)
    sample = sampled(law, a, b, r, k, s, draws)
    mean = identities.expected(gram(a, b).numpy(), 6, r, k, s)
    error = sample.std(0, ddof=1) / draws**0.5
    assert (np.abs(sample.mean(0) - mean) < 4 * error).all()
    squares = (sample - mean) ** 2  # the mean is known, so that this is unbiased
    variance = identities.variance(a, b, r, k, s, KURTOSIS[law]).numpy()
    assert (np.abs(squares.mean(0) - variance) < 4 * squares.std(0, ddof=1) / draws**0.5).all()


def test_the_variance_tells_the_two_laws_apart() -> None:
    """Otherwise the test above would accept either."""
    a = outer(rows=1, outputs=1, tokens=1, m=1, n=1)
    gaussian, uniform = (float(identities.variance(a, a, 1, 1.0, 1.0, kurt)) for kurt in KURTOSIS.values())
    norm = float(gram(a, a)) ** 2
    assert gaussian == pytest.approx(2 * norm)  # of a squared normal
    assert uniform == pytest.approx(0.8 * norm)  # E z^4 - 1 = 9/5 - 1


def test_the_mean_over_a_of_a_whole_model_is_the_part_that_is_stored() -> None:
    """E K_LoRA = s^2 r k sum over layers of K_FF,l / n_l, at any width."""
    base, r, draws = subject("bert").model, 2, 150
    names = linear_weights(base)
    arms = []
    for seed in range(draws):
        ranks = Ranks((r,), seed=seed)
        sizes = {p.name: p.shape[1] for p in names}
        layers = {
            p.name: Adapted(ranks.directions(p, sizes[p.name]) * (K / sizes[p.name]) ** 0.5, None, 3.0)
            for p in names
        }
        arms.append(Arm(str(seed), layers))
    parts = from_base(base, [*arms, Gram()])
    sample = np.stack([whole(parts[f"{arm.name}/B"]) for arm in arms])
    mean = 3.0**2 * r * K * whole(parts["mean-lora"])
    error = sample.std(0, ddof=1) / draws**0.5
    assert (np.abs(sample.mean(0) - mean) < 4 * error).all()
    assert float(error.mean()) < 0.1 * float(np.abs(mean).mean())  # otherwise anything would pass


# --- order --------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    r=st.integers(1, 7),
    outputs=st.integers(1, 3),
    tokens=st.integers(1, 4),
    b=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_lora_is_below_its_layer_times_the_largest_eigenvalues(
    seed: int, r: int, outputs: int, tokens: int, b: float
) -> None:
    a = outer(outputs=outputs, tokens=tokens, seed=seed)
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(r, 6)), b * rng.normal(size=(5, r))
    adapted = Adapted(torch.from_numpy(down), torch.from_numpy(up), 1.7)
    kernel = (identities.kernel_b(a, a, adapted) + identities.kernel_a(a, a, adapted)).numpy()
    bound = 1.7**2 * (np.linalg.norm(down, 2) ** 2 + np.linalg.norm(up, 2) ** 2) * gram(a, a).numpy()
    rounding = 1e-12 * np.trace(bound)
    assert np.linalg.eigvalsh(bound - kernel)[0] >= -rounding
    assert np.linalg.eigvalsh(kernel)[0] >= -rounding
    tight = 1.7**2 * float(np.linalg.svd(down)[1][-1] ** 2) * gram(a, a).numpy() if r >= 6 else 0 * kernel
    assert np.linalg.eigvalsh(kernel - tight)[0] >= -rounding  # from below by the smallest, where r >= n


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_holds_in_every_layer_of_a_model(family: str) -> None:
    model = lora(family, b=0.3)
    adapted, base = plain_lora(model), merged(model)
    single = [Arm(name, {name: layer}) for name, layer in adapted.items()]
    parts = from_base(base, [*single, Gram("sgd", "parameter")], train=6)
    for name, layer in adapted.items():
        assert layer.B is not None
        largest = sum(float(torch.linalg.matrix_norm(m, 2)) ** 2 for m in (layer.A, layer.B))
        bound = layer.scaling**2 * largest * parts[f"sgd/{name}"].train
        gap = np.linalg.eigvalsh(bound - parts.total(name).train)
        assert gap[0] >= -1e-10 * gap[-1]
        assert gap[-1] > 0


def test_the_head_is_no_part_of_lora_unless_it_is_saved() -> None:
    for family, head in HEADS.items():
        assert not any(head in name for name in layers_of(family))
        model = lora(family, modules_to_save=[head])
        assert list(plain_lora(model)) == layers_of(family)
        groups = {p.group for p in trainable(model)}
        assert groups == {"adapters", "head"}

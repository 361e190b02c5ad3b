"""Slices of gradients and the kernels from them, against automatic differentiation row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from kernel_oracles import Float, Jacobian, Subject, inputs, jacobian, own, pad_of, sequences, subject
from peft_models import layers_of, lora, matrix_of, merged, set_matrix

from foretaste.errors import UserError
from foretaste.kernels import logits, margin, plain_lora, trainable
from foretaste.kernels.probe import Probe
from foretaste.models import heads
from foretaste.prediction.features import (
    BATCH_ROWS,
    FULL,
    HEAD,
    LAST,
    Features,
    Lora,
    capture,
    first_steps,
    mean_gradient,
)
from foretaste.prediction.tangents import tangent

FAMILIES = ["bert", "roberta", "albert", "deberta-shared-keys", "gpt2", "llama", "t5"]
"""A head of one and of two layers, layers that are used again, modules without an axis for rows (position
embeddings of DeBERTa and T5), GPT-2's Conv1D, a decoder with gates."""
LORA_FAMILIES = ["bert", "gpt2", "llama"]
ROUNDED = 1e-6
"""Relative to the largest entry: values are kept in float32, each off by 6e-8 of itself at most."""
ALL = 10**9
TRAIN = 4


def last_of(model: Any) -> str:
    return heads.find(model).linear if hasattr(model, "base_model_prefix") else "classifier"


def captured(
    it: Subject,
    loras: dict[str, Lora] | None = None,
    *,
    entries: int = ALL,
    seed: int = 0,
    full: bool = True,
    extra: int = 1,
    order: Sequence[int] | None = None,
    found: Probe | None = None,
    batch: int = BATCH_ROWS,
) -> tuple[Features, Probe]:
    return capture(
        it.model,
        it.outputs,
        it.rows(extra, order),
        loras or {},
        entries=entries,
        seed=seed,
        full=full,
        last=last_of(it.model),
        found=found,
        batch=batch,
    )


def kernel(features: Features, parts: Iterable[str]) -> Float:
    """Sum over blocks of weight times values values^T: shape (rows * outputs, rows * outputs)."""
    total = 0.0
    for part in parts:
        for block in features.blocks.get(part, []):
            flat = block.values.double().flatten(0, 1).numpy()
            total = total + block.weight * (flat @ flat.T)
    return np.asarray(total)


def close(got: Float, want: Float, relative: float = ROUNDED) -> None:
    assert got.shape == want.shape
    largest = np.abs(want).max()
    assert largest > 0
    assert np.abs(got - want).max() <= relative * largest


def head_names(it: Subject) -> tuple[list[str], list[str]]:
    """Parameters of the head's last layer, and those of the rest of the head."""
    last = last_of(it.model)
    head = [p.name for p in trainable(it.model) if p.group == "head"]
    top = [name for name in head if name.rpartition(".")[0] == last]
    return top, [name for name in head if name not in top]


# --- everything kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_entries_the_kernel_is_exact_part_by_part(family: str) -> None:
    it = subject(family)
    features, found = captured(it)
    assert found.batched == (family not in {"deberta-shared-keys", "t5"})
    top, rest = head_names(it) if family != "t5" else (["classifier.weight", "classifier.bias"], [])
    below = [name for name in it.truth.by_name if name not in {*top, *rest}]
    close(kernel(features, [FULL]), it.truth.kernel(below))
    close(kernel(features, [LAST]), it.truth.kernel(top))
    if rest:
        close(kernel(features, [HEAD]), it.truth.kernel(rest))
    close(kernel(features, [FULL, HEAD, LAST]), it.truth.kernel())
    assert {block.weight for blocks in features.blocks.values() for block in blocks} == {1.0}
    want = np.stack([it.outputs(it.model, it.rows().collate([i])).detach().numpy()[0] for i in range(6)])
    assert features.outputs == pytest.approx(want, abs=1e-5)  # Llama's norms round to float32


def test_the_head_is_kept_whole_without_the_rest() -> None:
    it = subject("roberta")
    features, _ = captured(it, full=False, entries=1)
    top, rest = head_names(it)
    assert set(features.blocks) == {LAST, HEAD}
    close(kernel(features, [LAST]), it.truth.kernel(top))
    close(kernel(features, [HEAD]), it.truth.kernel(rest))


def test_a_margin_has_one_output() -> None:
    it = subject("bert", 2, margin)
    features, _ = captured(it)
    close(kernel(features, [FULL, HEAD, LAST]), it.truth.kernel())
    assert features.outputs.shape == (6, 1)


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "opt", "t5"])
def test_every_table_is_exact(family: str) -> None:
    """Word, position and type embeddings alone, each with tokens that occur more than once."""
    tokens = [[*row, row[0], row[0]] for row in sequences()]
    base = subject(family).model
    own_names = {name for name, _ in base.named_parameters()}  # a table that is tied has two modules
    tables = [
        f"{name}.weight"
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Embedding) and f"{name}.weight" in own_names
    ]
    assert len(tables) == {"bert": 3, "albert": 3, "gpt2": 2, "opt": 2, "t5": 2}[family]
    for name in tables:
        model = own(base)
        for other, parameter in model.named_parameters():
            parameter.requires_grad_(other == name)
        truth = jacobian(model, logits, inputs(tokens, pad_of(model)))
        features, _ = capture(
            model, logits, inputs(tokens, pad_of(model), 2), {}, entries=ALL, seed=0, full=True
        )
        close(kernel(features, [FULL]), truth.kernel())


def test_a_tied_matrix_has_one_gradient() -> None:
    """An output layer that shares the table of the input: both uses count, in one parameter."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(50, 4)
            self.middle = torch.nn.Linear(4, 4)
            self.out = torch.nn.Linear(4, 50, bias=False)
            self.out.weight = self.table.weight

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            mean = (self.table(input_ids) * attention_mask[..., None]).sum(1)
            return self.out(torch.tanh(self.middle(mean)))[:, :3]

    torch.manual_seed(0)
    model = Tied().double()

    def three(model: Any, batch: Any) -> torch.Tensor:
        scores: torch.Tensor = model(**batch)
        return scores

    rows = inputs(sequences(), 0)
    features, found = capture(model, three, rows, {}, entries=ALL, seed=0, full=True)
    assert [p.name for p in found.parameters if len(p.owners) == 2] == ["table.weight"]
    close(kernel(features, [FULL]), jacobian(model, three, rows).kernel())


# --- a random part --------------------------------------------------------------------------------

SEEDS = 40


def measures(matrix: Float) -> list[float]:
    """Three numbers of a kernel: its trace, its sum, and a quadratic form with fixed random signs."""
    signs = np.where(np.random.default_rng(0).random(len(matrix)) < 0.5, -1.0, 1.0)
    return [float(np.trace(matrix)), float(matrix.sum()), float(signs @ matrix @ signs)]


def unbiased(draws: Sequence[Sequence[float]], truth: Sequence[float], scale: float) -> None:
    """The mean over seeds is within four standard errors, and these are small enough to notice a bias."""
    values = np.asarray(draws)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    assert (error > 0).all()
    assert (error < scale * np.abs(truth)).all()
    assert (np.abs(values.mean(0) - truth) <= 4.0 * error).all()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_part_of_the_entries_is_an_unbiased_estimate(family: str) -> None:
    """Kernels of all parts, and the preconditioned ones with the sum of roots that belongs to them."""
    it = subject(family)
    parts, draws, rooted = [FULL, "arm/B", "arm/A"], {}, []
    loras = {"arm": drawn_lora(family)}
    pull = np.random.default_rng(1).normal(size=(TRAIN, 3))
    truth = captured(it, loras)[0]
    found = None
    kept = set()
    for seed in range(SEEDS):
        features, found = captured(it, loras, entries=600, seed=seed, found=found)
        for part in parts:
            draws.setdefault(part, []).append(measures(kernel(features, [part])))
        kept.add(tuple(sorted({block.weight for block in features.blocks[FULL]})))
        it_has = tangent(features, [FULL], "arm/A", pull, pool=TRAIN, batch=3)
        assert it_has.body is not None
        assert it_has.growing is not None
        rooted.append([it_has.body.root, np.trace(it_has.body.scaled), it_has.growing.root])
    assert all(max(weights) > 5 for weights in kept)  # most matrices are sliced thin
    for part in parts:
        unbiased(draws[part], measures(kernel(truth, [part])), 0.1)
    whole = tangent(truth, [FULL], "arm/A", pull, pool=TRAIN, batch=3)
    assert whole.body is not None
    assert whole.growing is not None
    want = [whole.body.root, float(np.trace(whole.body.scaled)), whole.growing.root]
    unbiased(rooted, want, 0.1)


def test_slices_are_decided_by_the_seed() -> None:
    it = subject("bert")
    first, again, other = (captured(it, entries=500, seed=seed)[0] for seed in (3, 3, 4))
    same = [
        torch.equal(a.values, b.values) for a, b in zip(first.blocks[FULL], again.blocks[FULL], strict=True)
    ]
    assert all(same)
    assert not np.allclose(kernel(first, [FULL]), kernel(other, [FULL]), rtol=1e-3)


# --- batches and padding --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("entries", [ALL, 500])
def test_padding_batches_and_order_do_not_matter(family: str, entries: int) -> None:
    it = subject(family)
    loras = {"arm": drawn_lora(family)} if family != "t5" else {}
    parts = [FULL, HEAD, LAST, "arm/A", "arm/B"]
    want = captured(it, loras, entries=entries, extra=0)[0]
    order = [4, 2, 0, 5, 1, 3]
    places = (np.asarray(order)[:, None] * 3 + np.arange(3)).ravel()
    for size, extra in ((1, 0), (2, 3), (32, 5)):
        got = captured(it, loras, entries=entries, extra=extra, batch=size)[0]
        turned = captured(it, loras, entries=entries, extra=extra, order=order, batch=size)[0]
        for part in parts:
            if part in want.blocks:
                close(kernel(got, [part]), kernel(want, [part]))
                close(kernel(turned, [part]), kernel(want, [part])[np.ix_(places, places)])
        assert got.outputs == pytest.approx(want.outputs, abs=1e-9)
        assert turned.outputs == pytest.approx(want.outputs[order], abs=1e-9)


def test_progress_ends_at_one() -> None:
    it, heard = subject("bert"), []
    capture(it.model, logits, it.rows(), {}, entries=9, seed=0, full=True, batch=4, on_progress=heard.append)
    assert heard == pytest.approx([4 / 6, 1.0])


def test_gradients_that_are_not_finite_are_refused() -> None:
    it = subject("bert")
    model = own(it.model)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        capture(model, logits, it.rows(), {}, entries=ALL, seed=0, full=True)


# --- LoRA -----------------------------------------------------------------------------------------


def mean_loss(it: Subject) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
    labels = torch.tensor([0, 1, 2, 1, 0, 2])
    return lambda scores, rows: torch.nn.functional.cross_entropy(scores, labels[list(rows)], reduction="sum")


def drawn_lora(family: str, **options: Any) -> Lora:
    """LoRA on all linear layers, with the B that the first step leads to."""
    it = subject(family)
    layers = plain_lora(lora(family, **options))
    gradients = mean_gradient(it.model, it.rows(1), range(6), mean_loss(it), logits, list(layers))
    return first_steps(it.model, layers, gradients)


def names_of(truth: Jacobian, matrix: str) -> list[str]:
    return [name for name in truth.by_name if f".{matrix}." in name]


@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_the_first_step_of_b_is_that_of_sign_descent(family: str) -> None:
    """Square matrices included, whose orientation their shape does not tell (GPT-2's c_proj)."""
    it, model = subject(family), lora(family)
    found = drawn_lora(family)
    assert found.first is not None
    rows = it.rows(1)
    values = logits(model, rows.collate(range(6)))
    (mean_loss(it)(values, range(6)) / 6).backward()
    for name in layers_of(family):
        gradient = model.get_parameter(matrix_of(name, "lora_B")).grad
        # Entries that are zero but for rounding have no sign.
        clear = gradient.abs() > 1e-9 * gradient.abs().max()
        assert clear.float().mean() > 0.9
        assert torch.equal(found.first[name][clear], -torch.sign(gradient)[clear])


@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_parts_of_lora_are_those_of_the_peft_model_at_the_first_step(family: str) -> None:
    """B is set, and taken off the weight below it, so that the layer as a whole is that of the base model."""
    it, model = subject(family), lora(family)
    found = drawn_lora(family)
    assert found.first is not None
    features, _ = captured(it, {"arm": found}, full=False)
    for name in layers_of(family):
        set_matrix(model, name, "lora_B", found.first[name])
        layer: Any = model.get_base_model().get_submodule(name.removesuffix(".weight"))
        with torch.no_grad():
            layer.get_base_layer().weight -= layer.get_delta_weight("default")
    truth = jacobian(model, logits, it.rows())
    close(kernel(features, ["arm/B"]), truth.kernel(names_of(truth, "lora_B")))
    close(kernel(features, ["arm/A"]), truth.kernel(names_of(truth, "lora_A")))
    assert set(features.blocks) == {"arm/A", "arm/B", LAST}


@pytest.mark.parametrize("freeze", ["A", "B"])
@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_a_frozen_matrix_has_no_part(family: str, freeze: str) -> None:
    model = lora(family, b=0.0 if freeze == "A" else 0.3)
    for name, parameter in model.named_parameters():
        if f"lora_{freeze}" in name:
            parameter.requires_grad_(False)
    layers = plain_lora(model)
    base = merged(model)
    it = Subject(base, logits, sequences(), jacobian(base, logits, inputs(sequences(), pad_of(base))))
    gradients = mean_gradient(base, it.rows(), range(6), mean_loss(it), logits, list(layers))
    found = first_steps(base, layers, gradients)
    assert found.first is None
    features, _ = captured(it, {"arm": found}, full=False)
    kept = "B" if freeze == "A" else "A"
    assert set(features.blocks) == {f"arm/{kept}", LAST}
    truth = jacobian(model, logits, it.rows())
    close(kernel(features, [f"arm/{kept}"]), truth.kernel(names_of(truth, f"lora_{kept}")))


def test_lora_away_from_zero_has_both_parts_as_they_are() -> None:
    model = lora("gpt2", b=0.3)
    base = merged(model)
    it = Subject(base, logits, sequences(), jacobian(base, logits, inputs(sequences(), pad_of(base))))
    found = first_steps(base, plain_lora(model), {})
    features, _ = captured(it, {"arm": found}, full=False)
    truth = jacobian(model, logits, it.rows())
    for matrix in "AB":
        close(kernel(features, [f"arm/{matrix}"]), truth.kernel(names_of(truth, f"lora_{matrix}")))


def test_one_capture_serves_several_arms() -> None:
    it = subject("gpt2")
    loras = {f"r{r}": drawn_lora("gpt2", r=r, seed=r) for r in (1, 4)}
    together = captured(it, loras)[0]
    for name, alone in loras.items():
        single = captured(it, {name: alone}, full=False)[0]
        for matrix in "AB":
            part = [f"{name}/{matrix}"]
            assert (kernel(together, part) == kernel(single, part)).all()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_mean_gradient_is_autograds(family: str) -> None:
    it, rows = subject(family), [5, 0, 3, 1, 2]
    model = own(it.model)
    unused = "classifier.unused"
    if family == "bert":
        model.classifier.register_parameter("unused", torch.nn.Parameter(torch.ones(2).double()))
    names = [name for name, _ in model.named_parameters()]
    got = mean_gradient(model, it.rows(2), rows, mean_loss(it), logits, names, batch=2)
    for row in rows:
        (mean_loss(it)(logits(model, it.rows().collate([row])), [row]) / len(rows)).backward()
    for name, parameter in model.named_parameters():
        if name == unused:
            assert parameter.grad is None
            assert not got[name].any()
        else:
            assert torch.allclose(got[name], parameter.grad, rtol=1e-9, atol=1e-11)


# --- kernels as training wants them ---------------------------------------------------------------


def explicit(truth: Jacobian, names: Sequence[str], pull: Float, batch: int) -> tuple[Float, Float, float]:
    """K, D and the sum of the roots, parameter by parameter in float64."""
    c = pull.shape[1]
    g = np.concatenate([truth.by_name[name] for name in names], axis=1)
    of_loss = np.einsum("nc,ncp->np", pull, g[: len(pull) * c].reshape(len(pull), c, -1))
    v = (of_loss**2).mean(0) / batch + (1 - 1 / batch) * of_loss.mean(0) ** 2
    inverse = np.divide(1.0, np.sqrt(v), out=np.zeros_like(v), where=v > 0)
    pool = g[: TRAIN * c]
    return g @ pool.T, (g * inverse) @ pool.T, float(np.sqrt(v).sum())


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-shared-keys", "gpt2"])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_tangent_is_the_sum_over_parameters(family: str, batch: int) -> None:
    it = subject(family)
    features, _ = captured(it)
    pull = np.random.default_rng(2).normal(size=(3, 3))  # of the clean rows; the pool has poisoned ones too
    got = tangent(features, [FULL, HEAD], None, pull, pool=TRAIN, batch=batch, size=0.7)
    top, _ = head_names(it)
    below = [name for name in it.truth.by_name if name not in top]
    assert (got.growing, got.size, got.outputs) == (None, 0.7, 3)
    plain = 0.0
    for group, names in ((got.body, below), (got.last, top)):
        assert group is not None
        k, d, root = explicit(it.truth, names, pull, batch)
        plain = plain + k
        close(group.scaled, d, 1e-5)
        assert group.root == pytest.approx(root, rel=1e-5)
    close(got.plain, np.asarray(plain))


def test_the_second_moment_is_that_of_a_random_batch() -> None:
    """E over all ordered draws of B rows, with repeats, of the squared batch gradient: v, by enumeration."""
    it = subject("gpt2", 2, margin)
    features, _ = captured(it)
    pull = np.random.default_rng(3).normal(size=(3, 1))
    got = tangent(features, [], None, pull, pool=TRAIN, batch=2)
    top, _ = head_names(it)
    g = np.concatenate([it.truth.by_name[name] for name in top], axis=1)[:3] * pull
    batches = [(g[i] + g[j]) / 2 for i in range(3) for j in range(3)]
    v = np.mean(np.square(batches), axis=0)
    assert got.last is not None
    assert got.body is None
    assert got.last.root == pytest.approx(float(np.sqrt(v).sum()), rel=1e-5)


def test_the_tangent_of_lora_has_the_growing_part_apart() -> None:
    it = subject("gpt2")
    features, _ = captured(it, {"arm": drawn_lora("gpt2")})
    pull = np.random.default_rng(4).normal(size=(TRAIN, 3))
    got = tangent(features, ["arm/B", HEAD], "arm/A", pull, pool=TRAIN, batch=4)
    close(got.plain, kernel(features, ["arm/B", LAST])[:, : TRAIN * 3])
    both = tangent(features, ["arm/A"], None, pull, pool=TRAIN, batch=4)
    assert got.growing is not None
    assert both.body is not None
    assert (got.growing.scaled == both.body.scaled).all()
    assert got.growing.root == both.body.root


def test_a_parameter_without_a_gradient_changes_nothing() -> None:
    """Where v is zero the quotient is left out, not infinite."""
    it = subject("bert")
    features, _ = captured(it)
    got = tangent(features, [FULL], None, np.zeros((TRAIN, 3)), pool=TRAIN, batch=4)
    assert got.body is not None
    assert not got.body.scaled.any()
    assert got.body.root == 0.0

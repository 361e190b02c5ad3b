"""Kernels of every model family equal the products of gradients by automatic differentiation, in float64."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from kernel_oracles import (
    FAMILIES,
    LENGTHS,
    TRAIN,
    Float,
    Subject,
    assert_exact,
    columns,
    compute,
    inputs,
    jacobian,
    own,
    pad_of,
    subject,
    whole,
)
from torch.func import functional_call, jacrev

from foretaste.kernels import MEAN_LORA, Gram, Inputs, logits, margin, trainable
from foretaste.kernels import compute as computing


@pytest.mark.parametrize("family", FAMILIES)
def test_each_parameter_is_exact_and_none_is_missing(family: str) -> None:
    it = subject(family)
    parts, done = compute(it.model, logits, it.rows(), [Gram("sgd", "parameter")])
    total = it.truth.kernel()
    covered = {p.name for p in done.probe.parameters}
    assert covered | set(done.probe.unused) == {n for n, _ in it.model.named_parameters()}
    assert sorted(done.probe.unused) == sorted(it.truth.unused)
    assert not covered & set(done.probe.unused)
    for name in covered:
        truth = columns(it.truth.kernel([name]))
        # A key bias has no gradient but rounding, 10^-16 of the others', which squares to less than 10^-30.
        assert_exact(whole(parts[f"sgd/{name}"]), truth, scale=1e-12 * float(np.abs(total).max()))
    assert_exact(whole(parts.total("sgd")), columns(total))
    assert parts.total("sgd").train.shape == (TRAIN * 3, TRAIN * 3)
    assert parts.total("sgd").test.shape == ((len(LENGTHS) - TRAIN) * 3, TRAIN * 3)
    with torch.no_grad():
        one_by_one = [logits(it.model, it.rows().collate([i])) for i in range(len(LENGTHS))]
    np.testing.assert_allclose(done.values, torch.cat(one_by_one).numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_order_batches_blocks_and_sets_change_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = subject(family)
    order = [4, 0, 5, 2, 1, 3]
    monkeypatch.setattr(computing, "BLOCK_ROWS", 2)
    monkeypatch.setattr(computing, "BATCH_ROWS", 2)
    parts, done = compute(it.model, logits, it.rows(extra=3, order=order), [Gram()])
    assert [len(block) for block in (*done.plan.train, *done.plan.test)] == [2, 2, 2]
    assert_exact(whole(parts.total("sgd")), columns(it.truth.ordered(order).kernel()))


@pytest.mark.parametrize("family", ["bert", "gpt2", "albert", "deberta-own-keys"])
def test_little_memory_cuts_parameters_into_sets_and_changes_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = subject(family)
    monkeypatch.setattr(computing, "WORKSPACE", 0)
    _, roomy = compute(it.model, logits, it.rows(), [Gram()])
    sizes = roomy.probe.row_bytes
    fixed = computing.GRAPH_FACTOR * sum(sizes.values())
    # Room for two blocks of one row of the largest parameter, whatever the batch, and for the tiles.
    tight = 2 * fixed + 6 * max(sizes.values()) + 9 * 8 * 16
    parts, done = compute(it.model, logits, it.rows(), [Gram()], memory=tight)
    assert len(roomy.plan.sets) == 1
    assert len(done.plan.sets) > 1
    assert [p for group in done.plan.sets for p in group] == done.probe.parameters
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel()))


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
@pytest.mark.parametrize("block", [1, 2, 3, 1024])
def test_any_batch_and_block_gives_the_same_kernel(
    batch: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = subject("bert")
    monkeypatch.setattr(computing, "BLOCK_ROWS", block)
    monkeypatch.setattr(computing, "BATCH_ROWS", batch)
    parts, done = compute(it.model, logits, it.rows(), [Gram(), Gram("asymmetric", "parameter")])
    assert done.plan.batch == batch
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel()))
    roomy = _signs_of_bert()
    assert_exact(whole(parts.total("asymmetric")), roomy)


def _signs_of_bert() -> Float:
    it = subject("bert")
    parts, _ = compute(it.model, logits, it.rows(), [Gram("asymmetric", "parameter")])
    return whole(parts.total("asymmetric"))


# --- signs -------------------------------------------------------------------------------------------

# The sign of an entry is certain when it is larger than this share of the largest entry of its row's whole
# gradient: a million times the rounding error of float64, and far above the dead zone, whose scale (a sum
# over at most 7 tokens of products of one input and one derivative) is within 10^4 of that entry.
CERTAIN = 1e-10
ROUNDING = 10 * np.finfo(np.float64).eps


def _certain(it: Subject) -> dict[str, np.ndarray]:
    largest = np.max([np.abs(g).max(1) for g in it.truth.by_name.values()], axis=0)[:, None]
    return {
        name: (np.abs(g) > CERTAIN * largest) | (g == 0)  # a zero is exact: nothing was added up
        for name, g in it.truth.by_name.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_sign_kernels_are_exact_up_to_entries_without_a_sign(family: str) -> None:
    it = subject(family)
    parts, done = compute(
        it.model, logits, it.rows(), [Gram("sign", "parameter"), Gram("asymmetric", "parameter")]
    )
    certain = _certain(it)
    largest = max(float(np.abs(g).max()) for g in it.truth.by_name.values())
    uncertain_share = 1 - np.mean(np.concatenate([c.ravel() for c in certain.values()]))
    assert uncertain_share < 0.03  # key biases: 32 entries among more than 3,000, and some by chance
    for parameter in done.probe.parameters:
        name = parameter.name
        g, sure = it.truth.by_name[name], certain[name].astype(float)
        signs = np.sign(g) * sure
        # An uncertain entry counts -1, 0 or 1 where `signs` has 0. What is left out is at most the number of
        # entries at which one of the two rows is uncertain and the other is not zero in truth.
        live = (np.abs(g) > 0).astype(float)
        unsure = (1 - sure) * live
        slack = columns(unsure @ live.T + live @ unsure.T)
        difference = np.abs(whole(parts[f"sign/{name}"]) - columns(signs @ signs.T))
        assert (difference <= slack).all(), name
        # <g_i, sgn g_j>: what is left out of column j is at most the sum of |g_i| where j is uncertain.
        slack = columns(np.abs(g) @ unsure.T)
        difference = np.abs(whole(parts[f"asymmetric/{name}"]) - columns(g @ signs.T))
        # Beside the relative error, every entry carries the rounding of what cancelled to make it: some ten
        # epsilons of the largest entry. A key bias consists of nothing else.
        rounding = 1e-8 * np.abs(g).sum(1).max() + g.shape[1] * ROUNDING * largest
        assert (difference <= slack + rounding).all(), name


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "opt", "gpt2"])
def test_a_key_bias_has_no_vote_among_the_signs(family: str) -> None:
    """Attention is blind to a key bias, so its gradient is rounding error and its sign is noise."""
    it = subject(family)
    names = {
        "distilbert": "distilbert.transformer.layer.0.attention.k_lin.bias",
        "opt": "model.decoder.layers.0.self_attn.k_proj.bias",
        "gpt2": "transformer.h.0.attn.c_attn.bias",
    }
    name = names.get(family, f"{family}.encoder.layer.0.attention.self.key.bias")
    parts, _ = compute(it.model, logits, it.rows(), [Gram("sign", "parameter")])
    kernel = whole(parts[f"sign/{name}"])
    if family != "gpt2":
        assert np.abs(it.truth.by_name[name]).max() < 1e-12  # otherwise this test tests nothing
        assert not kernel.any()
    else:  # queries, keys and values in one: the middle third counts for nothing
        assert np.abs(it.truth.by_name[name][:, 16:32]).max() < 1e-12
        assert (np.diag(kernel) == 32).all()


# --- groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_add_up_their_parameters(family: str) -> None:
    it = subject(family)
    parts, done = compute(it.model, logits, it.rows(), [Gram()])
    groups: dict[str, list[str]] = defaultdict(list)
    for p in done.probe.parameters:
        groups[p.group].append(p.name)
    assert set(parts) == {f"sgd/{group}" for group in groups} | {MEAN_LORA}
    for group, names in groups.items():
        assert_exact(whole(parts[f"sgd/{group}"]), columns(it.truth.kernel(names)))
    linear = [p for p in done.probe.parameters if p.group == "linear"]
    mean = sum(it.truth.kernel([p.name]) / _inputs_of(it, p.owners[0]) for p in linear)
    assert_exact(whole(parts[MEAN_LORA]), columns(np.asarray(mean)))


def _inputs_of(it: Subject, module: str) -> int:
    layer = it.model.get_submodule(module)
    return int(layer.in_features if hasattr(layer, "in_features") else layer.weight.shape[0])


def test_groups_of_bert_are_what_their_names_say() -> None:
    groups: dict[str, set[str]] = defaultdict(set)
    for p in trainable(subject("bert").model):
        groups[p.group].add(p.name)
    first = "bert.encoder.layer.0"
    assert groups["head"] == {"classifier.weight", "classifier.bias"}
    assert groups["embedding"] == {
        f"bert.embeddings.{n}_embeddings.weight" for n in ("word", "position", "token_type")
    }
    assert f"{first}.attention.output.LayerNorm.bias" in groups["norm"]
    assert f"{first}.attention.self.key.weight" in groups["linear"]
    assert f"{first}.attention.self.key.bias" in groups["bias"]
    assert len(groups["linear"]) == 2 * 6 + 1  # and the pooler's
    assert len(groups["norm"]) == 2 * (1 + 2 * 2)
    assert set(groups) == {"head", "embedding", "norm", "linear", "bias"}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "bert.embeddings.position_embeddings.weight"),
        ("roberta", "roberta.embeddings.position_embeddings.weight"),
        ("distilbert", "distilbert.embeddings.position_embeddings.weight"),
        ("albert", "albert.embeddings.position_embeddings.weight"),
        ("electra", "electra.embeddings.position_embeddings.weight"),
        ("gpt2", "transformer.wpe.weight"),
        ("opt", "model.decoder.embed_positions.weight"),
        ("deberta-shared-keys", "deberta.encoder.rel_embeddings.weight"),
        ("t5", "encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    ],
)
def test_positions_are_in_the_kernel(family: str, name: str) -> None:
    it = subject(family)
    parameters = [p for p in trainable(it.model) if p.name == name]
    parts, _ = compute(it.model, logits, it.rows(extra=1), [Gram("sgd", "parameter")], parameters=parameters)
    assert_exact(whole(parts[f"sgd/{name}"]), columns(it.truth.kernel([name])))


# --- outputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "deberta-shared-keys", "gpt2", "llama", "t5"])
def test_the_binary_margin_is_exact(family: str) -> None:
    it = subject(family, 2, margin)
    parts, done = compute(it.model, margin, it.rows(extra=2), [Gram()])
    assert done.probe.outputs == 1
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel()))


def test_the_margin_is_the_contrast_of_the_logits() -> None:
    n = len(LENGTHS)
    parts, _ = compute(subject("bert", 2).model, logits, subject("bert", 2).rows(), [Gram()])
    blocks = whole(parts.total("sgd")).reshape(n, 2, TRAIN, 2)
    contrast = np.einsum("icjd,c,d->ij", blocks, [-1.0, 1.0], [-1.0, 1.0])
    assert_exact(columns(subject("bert", 2, margin).truth.kernel()), contrast)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_torch_func_jacobians_give_the_same_kernel(family: str) -> None:
    it = subject(family, attention="eager")  # fused attention has no batching rule
    weights = {name: p.detach() for name, p in it.model.named_parameters()}
    rows = it.rows()
    found: dict[str, list[Float]] = {name: [] for name in weights}
    for i in range(len(rows)):
        batch = rows.collate([i])

        def forward(values: dict[str, torch.Tensor], batch: dict[str, torch.Tensor] = batch) -> torch.Tensor:
            return functional_call(it.model, values, (), batch).logits[0]

        for name, g in jacrev(forward)(weights).items():
            found[name].append(g.flatten(1).numpy())
    matrix = np.concatenate([np.concatenate(g) for g in found.values()], axis=1)
    parts, _ = compute(it.model, logits, rows, [Gram()])
    assert_exact(whole(parts.total("sgd")), columns(matrix @ matrix.T))


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_padding_token_inside_a_row_moves_no_row_of_the_table(family: str) -> None:
    """torch gives the row `padding_idx` no gradient, also where the token is attended to."""
    it = subject(family)
    pad = pad_of(it.model)
    tokens = [[*row[:1], pad, *row[1:]] for row in it.tokens]
    rows = inputs(tokens, pad)
    truth = jacobian(it.model, logits, rows)
    name = {"gpt2": "transformer.wte.weight"}.get(family, f"{family}.embeddings.word_embeddings.weight")
    table = truth.by_name[name].reshape(-1, *it.model.get_parameter(name).shape)
    assert bool(table[:, pad].any()) == (family == "gpt2")  # its table knows no padding
    parts, _ = compute(it.model, logits, rows, [Gram("sgd", "parameter")])
    assert_exact(whole(parts[f"sgd/{name}"]), columns(truth.kernel([name])))
    assert_exact(whole(parts.total("sgd")), columns(truth.kernel()))


def test_rows_of_one_token_and_one_row_alone() -> None:
    it = subject("bert")
    rows = inputs([[7], [9], [11, 12]], 0)
    truth = jacobian(it.model, logits, rows).kernel()
    parts, _ = compute(it.model, logits, rows, [Gram()], train=2)
    assert_exact(whole(parts.total("sgd")), truth[:, :6])
    alone, _ = compute(it.model, logits, inputs([[7]], 0), [Gram()], train=1)
    assert_exact(alone.total("sgd").train, truth[:3, :3])
    assert alone.total("sgd").test.shape == (0, 3)


@pytest.mark.parametrize("family", ["t5", "llama", "deberta-shared-keys", "opt"])
def test_rows_of_two_tokens_are_not_taken_for_two_rows(family: str) -> None:
    """Where the number of tokens is the number of rows in a batch, an axis could be mistaken."""
    it = subject(family)
    rows = inputs([[7, 8], [9, 10], [11, 12]], pad_of(it.model))
    truth = jacobian(it.model, logits, rows).kernel()
    parts, _ = compute(it.model, logits, rows, [Gram()], train=2)
    assert_exact(whole(parts.total("sgd")), truth[:, :6])


def test_a_parameter_that_no_output_depends_on_is_named() -> None:
    it = subject("bert")
    model = own(it.model)
    model.bystander = torch.nn.Linear(3, 3).double()
    parts, done = compute(model, logits, it.rows(), [Gram("sgd", "parameter")])
    assert done.probe.unused == ["bystander.weight", "bystander.bias"]
    assert not [name for name in parts if "bystander" in name]
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel()))


def test_frozen_parameters_are_left_out() -> None:
    it = subject("gpt2")
    model = own(it.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    names = [n for n in it.truth.by_name if "mlp" in n]
    parts, done = compute(model, logits, it.rows(), [Gram()])
    assert [p.name for p in done.probe.parameters] == names
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel(names)))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_biases_alone_have_a_kernel(family: str) -> None:
    """BitFit: no matrix is captured beside the biases."""
    it = subject(family)
    model = own(it.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") and "ln" not in name and "LayerNorm" not in name)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    parts, _ = compute(model, logits, it.rows(), [Gram()])
    assert_exact(whole(parts.total("sgd")), columns(it.truth.kernel(names)))


def test_inputs_keep_their_lengths() -> None:
    rows: Inputs = subject("bert").rows()
    assert tuple(rows.lengths) == LENGTHS

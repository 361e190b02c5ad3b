"""Kernels of language models whose outputs are logits of a few words, against torch.func.jacrev in float64.

The table of words is read at the input and, tied or not, multiplied with at the answer's position.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from kernel_oracles import (
    CONFIGS,
    LENGTHS,
    TRAIN,
    Float,
    assert_exact,
    columns,
    compute,
    pad_of,
    perturbed,
    sequences,
    whole,
)
from torch.func import functional_call, jacrev

from foretaste.kernels import Gram, Inputs, Job, Weighted, kernels, linear_weights, logits, margin, trainable
from foretaste.kernels import compute as computing
from foretaste.models.label_words import LabelWordModel, LinearHeadModel

MASKED = ("bert", "roberta", "distilbert", "electra", "albert", "deberta-own-keys")
CAUSAL = ("gpt2", "llama", "qwen2", "opt", "gpt-neox")
WORDS = (7, 11, 23)
FUNCTIONS = {
    "sgd": (lambda g: g, lambda g: g),
    "sign": (np.sign, np.sign),
    "asymmetric": (lambda g: g, np.sign),
}


def build(family: str, classes: int, tied: bool) -> Any:
    config = CONFIGS[family]()
    config.tie_word_embeddings = tied
    config._attn_implementation = "eager"
    masked = family in MASKED
    kind: Any = hf.AutoModelForMaskedLM if masked else hf.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = perturbed(kind.from_config(config))
    return LabelWordModel(lm, WORDS[:classes], "masked" if masked else "causal")


def rows_of(model: Any, tokens: Sequence[Sequence[int]]) -> Inputs:
    """Rows padded on the right; causal models are read at their last token, masked ones inside."""
    pad, last = pad_of(model), model.kind == "causal"

    def collate(rows: Sequence[int]) -> dict[str, torch.Tensor]:
        longest = max(len(tokens[i]) for i in rows)
        ids = [[*tokens[i], *[pad] * (longest - len(tokens[i]))] for i in rows]
        mask = [[1] * len(tokens[i]) + [0] * (longest - len(tokens[i])) for i in rows]
        places = [len(tokens[i]) - 1 if last else i % 2 + 1 for i in rows]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "answer_position": torch.tensor(places),
        }

    return Inputs([len(row) for row in tokens], collate)


@dataclass(frozen=True)
class Truth:
    """A model, its rows, and its gradients: by parameter, shape (rows * outputs, entries)."""

    model: Any
    rows: Inputs
    by_name: dict[str, Float]


@functools.cache
def truth(family: str, classes: int = 3, tied: bool = True) -> Truth:
    """Gradients of one row at a time, unpadded. A word of the answer also occurs in the rows."""
    model = build(family, classes, tied)
    tokens = sequences()
    tokens[0][1] = tokens[2][0] = WORDS[0]
    rows = rows_of(model, tokens)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    outputs = margin if classes == 2 else logits
    found: dict[str, list[Float]] = {name: [] for name in weights}
    for i in range(len(tokens)):
        batch = rows.collate([i])

        def forward(w: Any, batch: Any = batch) -> torch.Tensor:
            class Moved:
                def __call__(self, **inputs: Any) -> Any:
                    return functional_call(model, w, (), inputs)

            return outputs(Moved(), batch)[0]  # type: ignore[arg-type]

        for name, g in jacrev(forward)(weights).items():
            found[name].append(g.reshape(len(g), -1).numpy())
    return Truth(model, rows, {name: np.concatenate(g) for name, g in found.items()})


def oracle(it: Truth, kind: str, names: Sequence[str] | None = None) -> Float:
    left, right = FUNCTIONS[kind]
    # As the sign kernel: what is rounding error (a key's bias) has no sign.
    live = {n: np.where(np.abs(g) > 1e-13, g, 0.0) for n, g in it.by_name.items()}
    chosen = list(it.by_name) if names is None else names
    return columns(np.asarray(sum(left(live[n]) @ right(live[n]).T for n in chosen)))


CASES = [
    *itertools.product((*MASKED, *CAUSAL), (3,), (True,)),
    *itertools.product(("bert", "roberta", "llama", "gpt2"), (2,), (True, False)),
]


@pytest.mark.parametrize(("family", "classes", "tied"), CASES)
def test_every_kernel_of_label_words_is_that_of_explicit_gradients(
    family: str, classes: int, tied: bool
) -> None:
    it = truth(family, classes, tied)
    products = [Gram("sgd"), Gram("sign"), Gram("asymmetric")]
    outputs = margin if classes == 2 else logits
    parts, done = compute(it.model, outputs, it.rows, products)
    for kind in FUNCTIONS:
        assert_exact(whole(parts.total(kind)), oracle(it, kind))
    assert done.values.shape == (len(LENGTHS), 1 if classes == 2 else classes)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_share_batches_and_no_gradient_is_explicit(family: str, tied: bool) -> None:
    """Otherwise 49,152 x 576 gradients would be held for each row."""
    it = truth(family, 3, tied)
    _, done = compute(it.model, logits, it.rows, [Gram()])
    assert done.probe.batched
    assert not [p.name for p in done.probe.parameters if p.form == "explicit"]
    words = [p for p in done.probe.parameters if p.form == "words"]
    assert len(words) == 1
    assert len(words[0].owners) == (2 if tied else 1)
    config = it.model.config
    # Words of a row at its longest, and those of the answer: never the whole table.
    assert done.probe.row_bytes[words[0].name] <= 8 * 3 * (max(LENGTHS) + 4) * 3 * config.hidden_size


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_tied_table_adds_up_both_its_uses(family: str) -> None:
    """Against the untied model with equal weights: g = g_in + g_out, cross terms included."""
    tied, own = truth(family), build(family, 3, tied=False)
    with torch.no_grad():
        for name, p in own.named_parameters():
            if name in tied.by_name:
                p.copy_(tied.model.get_parameter(name))
        head = own.lm.get_output_embeddings()
        head.weight.copy_(own.lm.get_input_embeddings().weight)
        if head.bias is not None:
            head.bias.copy_(tied.model.lm.get_output_embeddings().bias)
    table = next(n for n, p in own.named_parameters() if p is own.lm.get_input_embeddings().weight)
    parts, _ = compute(tied.model, logits, tied.rows, [Gram("sgd", "parameter")])
    apart, _ = compute(own, logits, tied.rows, [Gram("sgd", "parameter")])
    names = [n for n, p in own.named_parameters() if p is head.weight]
    summed = whole(apart[f"sgd/{table}"]) + whole(apart[f"sgd/{names[0]}"])
    together = whole(parts[f"sgd/{table}"])
    assert_exact(together, oracle(tied, "sgd", [table]))
    assert np.abs(together - summed).max() > 1e-3 * np.abs(together).max()


@pytest.mark.parametrize("family", ["roberta", "gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 2])
def test_blocks_and_batches_change_no_kernel(
    family: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = truth(family)
    roomy, _ = compute(it.model, logits, it.rows, [Gram("sgd"), Gram("sign"), Gram("asymmetric")])
    monkeypatch.setattr(computing, "BLOCK_ROWS", 2)
    monkeypatch.setattr(computing, "BATCH_ROWS", batch)
    small, done = compute(it.model, logits, it.rows, [Gram("sgd"), Gram("sign"), Gram("asymmetric")])
    assert len(done.plan.train) == 2
    for kind in FUNCTIONS:
        assert_exact(whole(small.total(kind)), whole(roomy.total(kind)), relative=1e-12)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_linear_layers_are_those_of_the_body(family: str) -> None:
    it = truth(family, 3, False)
    names = {p.name for p in linear_weights(it.model)}
    inside = {id(m) for m in it.model.body.modules()}
    layers = dict(it.model.named_modules())
    assert names
    assert all(id(layers[name.removesuffix(".weight")]) in inside for name in names)
    groups = {p.name: p.group for p in trainable(it.model)}
    assert {name for name, group in groups.items() if group == "linear"} == names
    assert any(group == "head" for group in groups.values())


def test_a_new_head_is_the_head() -> None:
    body = build("bert", 3, True).lm.bert
    model = LinearHeadModel(body, 3, "masked").double()
    with torch.no_grad():
        model.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    groups = {p.name: p.group for p in trainable(model)}
    assert {name for name, group in groups.items() if group == "head"} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_weighted_parts_add_up() -> None:
    it = truth("llama")
    chosen = linear_weights(it.model)
    factors = {p.name: 0.5 / p.fan_in for p in chosen if p.fan_in}
    others = [p for p in trainable(it.model) if p.group == "norm"]
    job = Job(it.model, [*chosen, *others], logits, it.rows, TRAIN, [Weighted("mean", factors)])
    parts, _ = kernels(job, memory=2**30)
    want = sum(factors.get(p.name, 1.0) * oracle(it, "sgd", [p.name]) for p in (*chosen, *others))
    assert_exact(whole(parts.total("mean")), np.asarray(want))

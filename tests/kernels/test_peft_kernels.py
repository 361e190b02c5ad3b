"""The kernel of any peft model as it stands equals the products of its gradients by autograd, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from kernel_oracles import (
    assert_exact,
    build,
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
from peft_models import HEADS, TARGETS, layers_of, lora, merged, wrap

from foretaste.kernels import Arm, Gram, linear_weights, logits, plain_lora, starts_at, trainable
from foretaste.models import adapters
from foretaste.spec import AdapterSpec

# Llama adds no kind of layer to BERT, and GPT-2 its Conv1D.
FAMILIES = ["bert", "gpt2", pytest.param("llama", marks=pytest.mark.slow)]
EMBEDDINGS = {"bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens"}
NORMS = {"bert": "LayerNorm", "gpt2": "ln_1", "llama": "input_layernorm"}
MOVED = 0.1


def assert_the_kernel_is_exact(model: Any, extra: int = 1) -> Any:
    """Every trained parameter's kernel, on rows of unequal length with `extra` tokens of padding."""
    rows = inputs(sequences(), pad_of(model), extra)
    truth = jacobian(model, logits, inputs(sequences(), pad_of(model)))
    parts, done = compute(model, logits, rows, [Gram("sgd", "parameter")])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert sorted([p.name for p in done.probe.parameters] + done.probe.unused) == sorted(trained)
    assert not done.probe.unused
    total = truth.kernel()
    for parameter in done.probe.parameters:
        want = columns(truth.kernel([parameter.name]))
        assert_exact(whole(parts[f"sgd/{parameter.name}"]), want, scale=1e-6 * float(np.abs(total).max()))
    assert_exact(whole(parts.total("sgd")), columns(total))
    return done


# --- every method that peft has and that foretaste attaches -------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "rslora": {"r": 2},
    "dora": {"r": 2},
    "vera": {"r": 4},
    "ia3": {},
    "adalora": {},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "oft": {"oft_block_size": 4},
    "hra": {"r": 2},
    "randlora": {"r": 2},
    "miss": {"r": 2},
    "fourierft": {"n_frequency": 10},
    "c3a": {"block_size": 8},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_method_with_its_saved_head_is_exact(method: str) -> None:
    spec = AdapterSpec.model_validate({"method": method, **OPTIONS[method]})
    arm = adapters.resolve(spec, {}, where="adapters.0")
    base = own(subject("bert").model)
    model: Any = adapters.attach(base, arm, head_policy="random-then-train", seed=0, total_steps=10)[0]
    model.double().eval()
    with torch.no_grad():
        for n, (_, p) in enumerate(model.named_parameters()):
            if p.requires_grad:
                draw = torch.randn(p.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
                p.add_(MOVED * draw)
    done = assert_the_kernel_is_exact(model)
    groups = {p.name: p.group for p in done.probe.parameters}
    assert set(groups.values()) == {"adapters", "head"}
    assert {n for n, group in groups.items() if group == "head"} == {
        f"base_model.model.classifier.modules_to_save.default.{what}" for what in ("weight", "bias")
    }


SPLITS = [("pissa", "bert"), ("pissa", "gpt2"), ("olora", "bert"), ("olora", "llama")]
"""Both leave W0 as it was and start at B != 0; peft splits in float32 only, and no Conv1D for OLoRA."""


@pytest.mark.parametrize(("split", "family"), SPLITS)
def test_a_weight_that_was_split_is_exact(split: Any, family: str) -> None:
    base = own(subject(family).model).float()
    config = peft.LoraConfig(r=2, target_modules=TARGETS[family], init_lora_weights=split)
    model = wrap(base, config)
    assert all(layer.B is not None for layer in plain_lora(model).values())
    assert_the_kernel_is_exact(model)


CONFIGS: dict[str, Callable[[str], peft.PeftConfig]] = {
    "prefix-tuning": lambda _: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    "prompt-tuning": lambda _: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    "p-tuning": lambda _: peft.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8
    ),
    "norms": lambda family: peft.LNTuningConfig(target_modules=[NORMS[family]]),
    "some-tokens": lambda family: peft.TrainableTokensConfig(
        target_modules=[EMBEDDINGS[family]], token_indices=[3, 5, 9]
    ),
    "lora-of-a-parameter": lambda family: peft.LoraConfig(
        r=2,
        target_modules=[],
        target_parameters=[
            {"bert": "attention.self.query", "gpt2": "mlp.c_fc", "llama": "q_proj"}[family] + ".weight"
        ],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_no_low_rank_change_of_a_layer_is_exact(kind: str, family: str) -> None:
    model = wrap(own(subject(family).model), CONFIGS[kind](family), moved=MOVED)
    # Behind embeddings instead of tokens a decoder takes its last token, padding or not, so that its rows
    # must not share a batch, which is noticed.
    blind = kind in {"prompt-tuning", "p-tuning"} and family != "bert"
    done = assert_the_kernel_is_exact(model, extra=0 if blind else 1)
    assert not (blind and done.probe.batched)
    assert plain_lora(model) == {}


# --- LoRA in every place ------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_any_choice_of_layers_is_exact(family: str, b: float) -> None:
    for targets in (TARGETS[family][:1], TARGETS[family][1:], [HEADS[family]]):
        assert_the_kernel_is_exact(lora(family, b=b, target_modules=targets))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_head_is_exact_and_a_group_of_its_own(family: str) -> None:
    model = lora(family, b=0.3, modules_to_save=[HEADS[family]])
    assert_the_kernel_is_exact(model)
    truth = jacobian(model, logits, inputs(sequences(), pad_of(model)))
    parts, _ = compute(model, logits, inputs(sequences(), pad_of(model)), [Gram()])
    assert set(parts) == {"sgd/adapters", "sgd/head"}
    saved = [n for n in truth.by_name if "modules_to_save" in n]
    assert len(saved) == {"bert": 2}.get(family, 1)
    assert_exact(whole(parts["sgd/head"]), columns(truth.kernel(saved)))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}, {"bias": "all"}], ids=str
)
def test_variants_of_lora_are_exact(family: str, options: dict[str, Any]) -> None:
    assert_the_kernel_is_exact(lora(family, b=0.3, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_embeddings_beside_layers_is_exact(family: str) -> None:
    targets = [EMBEDDINGS[family], TARGETS[family][0]]
    assert_the_kernel_is_exact(lora(family, b=0.3, target_modules=targets))
    assert_the_kernel_is_exact(lora(family, b=0.3, trainable_token_indices=[3, 5, 9]))


def test_shared_layers_and_positions_may_be_adapted() -> None:
    albert = wrap(own(subject("albert").model), peft.LoraConfig(r=2, target_modules=["query", "dense"]))
    assert_the_kernel_is_exact(albert)  # one layer, called three times
    deberta = peft.LoraConfig(r=2, target_modules=["pos_key_proj", "query_proj"])
    assert_the_kernel_is_exact(wrap(own(subject("deberta-own-keys").model), deberta, moved=MOVED))
    assert_the_kernel_is_exact(lora("bert", b=0.3, target_modules=["position_embeddings"]))


def test_two_adapters_at_once_are_exact() -> None:
    model = lora("bert", b=0.3, target_modules=["query"])
    model.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=7, target_modules=["query", "value"]))
    model.base_model.set_adapter(["default", "other"])
    model.double().eval()
    assert_the_kernel_is_exact(model)
    assert plain_lora(model) == {}


def test_embedding_lora_is_larger_than_the_table_by_s_squared_r() -> None:
    """theory.md item 8: peft draws B from N(0, 1) there, so that E K_LoRA = s^2 r K_FF."""
    base, r, alpha, draws = own(subject("bert").model), 8, 4.0, 30
    rows = inputs(sequences(), 0)
    name = "bert.embeddings.word_embeddings.weight"
    table = [p for p in trainable(base) if p.name == name]
    full = compute(base, logits, rows, [Gram()], parameters=table)[0].total("sgd").train
    ratios = []
    for seed in range(draws):
        model = lora("bert", r=r, alpha=alpha, target_modules=["word_embeddings"], seed=seed)
        parts, _ = compute(model, logits, rows, [Gram("sgd", "parameter")])
        ratios.append(np.trace(parts.total("sgd").train) / np.trace(full))
    assert np.mean(ratios) == pytest.approx((alpha / r) ** 2 * r, rel=0.15)
    assert np.mean(ratios) > 1


# --- what the identities take and refuse --------------------------------------------------------------

REFUSED: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "bias-of-b": {"lora_bias": True},
    "biases": {"bias": "all"},
    "biases-of-adapted-layers": {"bias": "lora_only"},
    "embedding": {"target_modules": ["query", "word_embeddings"]},
    "tokens": {"trainable_token_indices": [3, 5]},
    "head": {"target_modules": ["query", "classifier"]},
}


@pytest.mark.parametrize("why", REFUSED)
def test_plain_lora_refuses_what_its_identities_do_not_cover(why: str) -> None:
    assert plain_lora(lora("bert", b=0.3, **REFUSED[why])) == {}


def test_plain_lora_refuses_other_methods_merged_weights_and_disabled_adapters() -> None:
    assert plain_lora(subject("bert").model) == {}
    assert plain_lora(wrap(own(subject("bert").model), peft.VeraConfig(r=2, target_modules=["query"]))) == {}
    model = lora("bert", b=0.3)
    model.base_model.merge_adapter()
    assert plain_lora(model) == {}
    model.base_model.unmerge_adapter()
    assert list(plain_lora(model)) == layers_of("bert")
    with model.disable_adapter():
        assert plain_lora(model) == {}


@pytest.mark.parametrize("family", [*TARGETS, "albert", "deberta-own-keys", "t5"])
def test_plain_lora_takes_every_linear_layer_of_a_family(family: str) -> None:
    names = [n.removesuffix(".weight") for n in layers_of(family)]
    base = build(family)
    model = wrap(base, peft.LoraConfig(r=2, lora_alpha=3, target_modules=names), moved=MOVED)
    found = plain_lora(model)
    assert list(found) == layers_of(family)
    rows = inputs(sequences(), pad_of(base))
    effective = merged(model)
    parts, _ = compute(effective, logits, rows, [Arm("it", found)], parameters=linear_weights(effective))
    assert_exact(whole(parts.total("it")), columns(jacobian(model, logits, rows).kernel()))


def test_plain_lora_takes_an_adapter_by_any_name() -> None:
    base = own(subject("bert").model)
    model = wrap(base, peft.LoraConfig(r=2, target_modules=["query"]), adapter_name="mine")
    assert len(plain_lora(model)) == 2


def test_a_capture_of_the_base_model_serves_where_the_weights_are_its_own() -> None:
    base = subject("bert").model
    for b, serves in ((0.0, True), (1e-9, False), (0.3, False)):
        model = lora("bert", b=b)
        assert starts_at(base, plain_lora(model), model) == serves
    other = lora("bert")
    with torch.no_grad():
        other.base_model.model.bert.pooler.dense.base_layer.weight[0, 0] += 1e-9
    assert not starts_at(base, plain_lora(other), other)


@pytest.mark.parametrize(("split", "family"), SPLITS)
def test_a_capture_of_the_base_model_serves_a_weight_that_was_split(split: Any, family: str) -> None:
    base = own(subject(family).model).float()
    config = peft.LoraConfig(r=2, target_modules=TARGETS[family], init_lora_weights=split)
    model = wrap(own(base), config, dtype=torch.float32)
    layers = plain_lora(model)
    assert len(layers) == len(layers_of(family))
    assert starts_at(base, layers, model)


def test_a_capture_of_the_base_model_does_not_serve_tied_layers() -> None:
    """Each has a LoRA of its own, while the weight has one gradient."""
    base = own(subject("bert").model)
    layer = base.bert.encoder.layer[0].attention.self
    layer.key.weight = layer.query.weight
    model = wrap(own(base), peft.LoraConfig(r=2, target_modules=["query", "key"]))
    assert len(plain_lora(model)) == 4
    assert not starts_at(base, plain_lora(model), model)
    assert_the_kernel_is_exact(model)

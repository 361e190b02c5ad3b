"""Adapters: what is attached, what is trained, what stays, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers.pytorch_utils import Conv1D

from foretaste.errors import UserError
from foretaste.models import adapters, heads, inits
from foretaste.models.encode import Encoded, encode
from foretaste.spec import AdapterSpec, ResolvedAdapter, TrainingSpec
from foretaste.training.trainer import fine_tune, padded_batches, predict

Rows = Callable[..., Dataset]
# For each method the words that the names of its trainable parameters contain (head aside).
METHODS = {
    "lora": {"lora_A", "lora_B"},
    "rslora": {"lora_A", "lora_B"},
    "dora": {"lora_A", "lora_B", "lora_magnitude_vector"},
    "pissa": {"lora_A", "lora_B"},
    "olora": {"lora_A", "lora_B"},
    "vera": {"vera_lambda_d", "vera_lambda_b"},
    "ia3": {"ia3_l"},
    "adalora": {"lora_A", "lora_B", "lora_E"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "oft": {"oft_R"},
}
STEPS = 3


def arm(method: str, **fields: Any) -> ResolvedAdapter:
    return adapters.resolve(AdapterSpec.model_validate({"method": method, **fields}), {}, where="adapters.0")


def attach(model: Any, adapter: ResolvedAdapter, policy: Any = "probe-then-train", seed: int = 0) -> Any:
    return adapters.attach(model, adapter, head_policy=policy, seed=seed, total_steps=STEPS)[0]


def probed(model: Any, tokenizer: Any, encoded: Encoded) -> Any:
    batches, order = padded_batches(encoded, tokenizer, 16, torch.device("cpu"))
    x = heads.features(model, batches, tokenizer.pad_token_id)
    heads.set_head(model, x[np.argsort(order)], encoded.labels)
    return model


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def bert(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> Callable[[], tuple[Any, Any, Encoded]]:
    """A new tiny BERT with a probed head at each call, its tokenizer, and 24 rows."""
    tokenizer, first = load_tiny(tiny_bert)
    encoded = encode(tokenizer, make_rows(24), max_length=32)
    probed(first, tokenizer, encoded)
    state = {name: value.clone() for name, value in first.state_dict().items()}

    def make() -> tuple[Any, Any, Encoded]:
        _, model = load_tiny(tiny_bert)
        model.load_state_dict(state)
        return tokenizer, model, encoded

    return make


# --- contract of the methods ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_what_it_says(method: str, bert: Any) -> None:
    """How it starts and what stays is the contract of all methods: test_models_contract.py."""
    _, model, _ = bert()
    names = trainable(attach(model, arm(method)))
    head = {name for name in names if ".classifier." in name}
    assert {name.rsplit(".", 1)[1] for name in head} == {"weight", "bias"}
    words = METHODS[method]
    assert all(any(word in name for word in words) for name in names - head)
    assert all(any(word in name for name in names - head) for word in words)
    # Every linear layer of the body is adapted: 2 blocks of 6, and the pooler.
    layers = {name.split(next(word for word in words if word in name))[0] for name in names - head}
    assert len(layers) == 13


@pytest.mark.parametrize("policy", ["probe-then-train", "random-then-train"])
def test_every_arm_starts_from_the_same_head_and_trains_all_of_it(bert: Any, policy: Any) -> None:
    _, model, _ = bert()
    weight, bias = model.classifier.weight.detach().clone(), model.classifier.bias.detach().clone()
    for method in ("full", *METHODS):
        _, model, _ = bert()
        wrapped = attach(model, arm(method), policy)
        found = {n: p for n, p in wrapped.named_parameters() if "classifier" in n and p.requires_grad}
        assert sorted(p.numel() for p in found.values()) == [2, 64], method
        for name, parameter in found.items():
            assert torch.equal(parameter, weight if name.endswith("weight") else bias), method


def test_full_fine_tuning_trains_everything(bert: Any) -> None:
    _, model, _ = bert()
    model.requires_grad_(False)
    wrapped = attach(model, arm("full"))
    assert wrapped is model
    used, total = adapters.trainable(wrapped)
    assert used == total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("family", "norms"),
    [
        # Two for each of two blocks, and one after the embeddings or at the end.
        ("tiny_bert", {"attention.output.LayerNorm", "output.LayerNorm", "embeddings.LayerNorm"}),
        ("tiny_gpt2", {"ln_1", "ln_2", "ln_f"}),
        ("tiny_llama", {"input_layernorm", "post_attention_layernorm", "norm"}),
    ],
)
def test_normalisation_tuning_trains_every_normalisation(
    family: str, norms: set[str], request: pytest.FixtureRequest, load_tiny: Any
) -> None:
    """peft has a list for GPT-2 and LLaMA, not for BERT; where it has one, it is that of all norms."""
    _, model = load_tiny(request.getfixturevalue(family))
    assert "target_modules" not in arm("ln_tuning").config
    every = adapters.norm_names(model, head=heads.find(model).modules)
    assert len(every) == 5
    assert {name for name in every if not name.endswith(tuple(norms))} == set()
    wrapped = attach(model, arm("ln_tuning"))
    found = {n.partition(".ln_tuning_layers.")[0] for n in trainable(wrapped) if "ln_tuning_layers" in n}
    assert found == {f"base_model.model.{name}" for name in every}


def test_normalisation_tuning_of_some_layers(tiny_gpt2: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_gpt2)
    wrapped = attach(model, arm("ln_tuning", target_modules=["ln_1"]))
    assert all(".ln_1." in name for name in trainable(wrapped) if "score" not in name)


@pytest.mark.parametrize("fields", [{"method": "olora"}, {"method": "lora", "init_lora_weights": "olora"}])
def test_olora_does_not_know_gpt2s_layers(fields: dict[str, Any], tiny_gpt2: Path, load_tiny: Any) -> None:
    """peft decomposes the transposed weight; its own forward then fails, or worse, where it is square."""
    for meta in (True, False):
        _, model = load_tiny(tiny_gpt2, meta=meta)
        with pytest.raises(UserError, match=r"OLoRA cannot start from layers of GPT-2's kind. Use pissa"):
            attach(model, arm(**fields))


def test_the_scaling_of_rslora() -> None:
    """rsLoRA divides by the root of r (Kalajdzievski 2023)."""
    assert arm("rslora").config["use_rslora"] is True
    for method, scaling in (("lora", 16 / 4), ("rslora", 16 / 2)):
        model = nn.Sequential(nn.Linear(8, 8))
        config = arm(method, r=4, target_modules=["0"]).config
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
        assert wrapped.base_model.model[0].scaling["default"] == scaling  # type: ignore[index, union-attr]


# --- the paper's head ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "ia3", "dora"])
def test_under_the_papers_policy_the_head_is_frozen_and_adapted(method: str, bert: Any) -> None:
    """Rank 8 on two classes, as in the paper (protocol.md 1.1)."""
    tokenizer, model, encoded = bert()
    before = predict(model, encoded, tokenizer, 24)
    weight = model.classifier.weight.detach().clone()
    wrapped = attach(model, arm(method), "paper")
    np.testing.assert_array_equal(predict(wrapped, encoded, tokenizer, 24), before)
    base = wrapped.base_model.model.classifier.base_layer
    assert not any(parameter.requires_grad for parameter in base.parameters())
    words = METHODS[method]
    assert all(any(word in name for word in words) for name in trainable(wrapped))
    assert any("classifier" in name for name in trainable(wrapped))
    spec = TrainingSpec(learning_rate=1e-2, steps=STEPS, batch_size=8)
    fine_tune(wrapped, encoded, encoded.lengths, tokenizer, spec, max_length=32, seed=0)
    assert torch.equal(base.weight, weight)
    assert np.abs(predict(wrapped, encoded, tokenizer, 24) - before).max() > 1e-3


def test_the_papers_lora_has_rank_8_on_the_head_too(bert: Any) -> None:
    _, model, _ = bert()
    wrapped = attach(model, arm("lora"), "paper")
    shapes = {name: (a.shape[0], b.shape[0]) for name, a, b in inits.lora_matrices(wrapped)}
    assert shapes["base_model.model.classifier"] == (8, 2)
    assert {r for r, _ in shapes.values()} == {8}


def test_under_the_papers_policy_full_trains_its_head(bert: Any) -> None:
    _, model, _ = bert()
    assert {"classifier.weight", "classifier.bias"} <= trainable(attach(model, arm("full"), "paper"))


# --- freezing, seeds, targets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "freeze", "left"),
    [("lora", "A", "lora_B"), ("pissa", "A", "lora_B"), ("pissa", "B", "lora_A")],
)
def test_freezing_one_matrix(method: str, freeze: str, left: str, bert: Any) -> None:
    tokenizer, model, encoded = bert()
    wrapped = attach(model, arm(method, freeze=freeze))
    names = {name for name in trainable(wrapped) if "lora_" in name}
    assert len(names) == 13
    assert all(left in name for name in names)
    stays = {n: p.detach().clone() for n, p in wrapped.named_parameters() if f"lora_{freeze}" in n}
    spec = TrainingSpec(learning_rate=1e-2, steps=STEPS, batch_size=8)
    fine_tune(wrapped, encoded, encoded.lengths, tokenizer, spec, max_length=32, seed=0)
    now = dict(wrapped.named_parameters())
    assert all(torch.equal(now[name], old) for name, old in stays.items())


def test_freezing_b_at_zero_is_refused() -> None:
    with pytest.raises(UserError, match="never moves"):
        arm("lora", freeze="B")


def test_the_init_seed_decides_the_adapter_and_global_state_does_not(bert: Any) -> None:
    def a_of(seed: int) -> list[torch.Tensor]:
        torch.rand(3)
        return [a.detach() for _, a, _ in inits.lora_matrices(attach(bert()[1], arm("lora"), seed=seed))]

    first, again, other = a_of(0), a_of(0), a_of(1)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))
    state = torch.get_rng_state()
    attach(bert()[1], arm("lora"))
    assert torch.equal(torch.get_rng_state(), state)


def test_all_linear_reaches_gpt2s_own_layers(tiny_gpt2: Path, load_tiny: Any, make_rows: Rows) -> None:
    tokenizer, model = load_tiny(tiny_gpt2)
    encoded = encode(tokenizer, make_rows(8), max_length=32)
    before = predict(model, encoded, tokenizer, 8)
    kinds = {type(model.get_submodule(name)) for name in adapters.linear_names(model, head=("score",))}
    assert kinds == {Conv1D}
    wrapped = attach(model, arm("lora", r=4))
    shapes = {n.rpartition(".")[2]: (b.shape[0], a.shape[1]) for n, a, b in inits.lora_matrices(wrapped)}
    # c_proj stands for both: the attention's comes first, the MLP's overwrites it.
    assert shapes == {"c_attn": (96, 32), "c_proj": (32, 64), "c_fc": (64, 32)}
    assert len(list(inits.lora_matrices(wrapped))) == 8
    np.testing.assert_array_equal(predict(wrapped, encoded, tokenizer, 8), before)
    head = wrapped.base_model.model.score
    assert head.modules_to_save["default"].weight.requires_grad


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_the_head_is_no_target_of_all_linear(pooling: str, tiny_roberta: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_roberta, pooling=pooling, meta=True)
    names = adapters.linear_names(model, head=heads.find(model).modules)
    assert len(names) == 12
    assert not any(name.startswith("classifier") for name in names)
    assert len(adapters.linear_names(model)) == 12 + (2 if pooling == "model" else 1)


def test_targets_of_ones_own(bert: Any) -> None:
    wrapped = attach(bert()[1], arm("lora", target_modules=["query"]))
    assert {n.rpartition(".")[2] for n, _, _ in inits.lora_matrices(wrapped)} == {"query"}


# --- refused before anything runs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"method": "lorra"}, r"^adapters\.0\.method: unknown adapter 'lorra' .*Did you mean 'lora'\?"),
        (
            {"method": "lora", "lora_alfa": 3},
            r"unknown field of peft's LoraConfig 'lora_alfa' .*'lora_alpha'\?",
        ),
        ({"method": "lora", "task_type": "x"}, "unknown field of peft's LoraConfig 'task_type'"),
        ({"method": "full", "r": 3}, "full fine-tuning has no 'r'"),
        ({"method": "full", "freeze": "A"}, "full fine-tuning has no 'freeze'"),
        ({"method": "full", "init": {}}, "full fine-tuning has no 'init'"),
        ({"method": "lora", "r": 0}, "r is 0: expected a whole number above zero"),
        ({"method": "lora", "r": True}, "r is True"),
        ({"method": "lora", "r": "8"}, "r is '8'"),
        ({"method": "ia3", "init": {}}, "init and freeze are for LoRA's A and B"),
        ({"method": "vera", "freeze": "A"}, "init and freeze are for LoRA's A and B"),
        ({"method": "lora", "init": {}, "init_lora_weights": "gaussian"}, "not both"),
        ({"method": "pissa", "init": {}}, "give `init` or peft's init_lora_weights, not both"),
        ({"method": "dora", "use_dora": False}, "'dora' sets use_dora = True itself"),
    ],
)
def test_what_makes_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        adapters.resolve(AdapterSpec.model_validate(fields), {}, where="adapters.0")


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_a_rank_larger_than_a_layer_is_found_without_weights(
    method: str, tiny_bert: Path, load_tiny: Any
) -> None:
    _, bare = load_tiny(tiny_bert, meta=True)
    with pytest.raises(UserError, match=r"r = 33 is larger than layer '.*' \(32 x 32; allowed: 1 to 32\)"):
        attach(bare, arm(method, r=33))
    _, bare = load_tiny(tiny_bert, meta=True)
    wrapped = attach(bare, arm(method, r=32))
    assert {p.device.type for p in wrapped.parameters()} == {"meta"}


def test_what_peft_refuses_names_the_arm(tiny_bert: Path, load_tiny: Any) -> None:
    _, bare = load_tiny(tiny_bert, meta=True)
    with pytest.raises(
        UserError,
        match=r"adapter 'lora-r8': peft refuses this config: No modules were targeted.*Change the arm",
    ):
        attach(bare, arm("lora", target_modules=["no_such_layer"]))


# --- grids and names -----------------------------------------------------------------------------


def expand(**fields: Any) -> list[tuple[AdapterSpec, dict[str, Any]]]:
    return adapters.expand(AdapterSpec.model_validate({"method": "lora", **fields}), 0)


def test_a_grid_is_crossed() -> None:
    arms = expand(
        init={"law": "gaussian"},
        training={"epochs": 1.0},
        lora_alpha=4,
        grid={"r": [2, 4], "init.k": [0.1, 1.0], "training.learning_rate": [1e-3]},
    )
    assert len(arms) == 4
    assert [(spec.config["r"], spec.init.k) for spec, _ in arms if spec.init] == [
        (2, 0.1),
        (2, 1.0),
        (4, 0.1),
        (4, 1.0),
    ]
    for spec, chosen in arms:
        assert spec.init is not None
        assert spec.init.law == "gaussian"
        assert spec.training == {"epochs": 1.0, "learning_rate": 1e-3}
        assert spec.config["lora_alpha"] == 4
        assert not spec.grid
        assert set(chosen) == {"r", "init.k", "training.learning_rate"}
    names = [adapters.resolve(spec, chosen, where="x").name for spec, chosen in arms]
    assert names[0] == "lora-r2-k=0.1-learning_rate=0.001"
    assert len(set(names)) == 4


def test_without_a_grid_there_is_one_arm() -> None:
    ((spec, chosen),) = expand(r=4)
    assert (spec.config, chosen) == ({"r": 4}, {})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"grid": {"r": []}}, r"^adapters\.0\.grid: grid key 'r' has no values"),
        ({"r": 3, "grid": {"r": [4]}}, "'r' is set both in the grid and beside it"),
        ({"init": {"k": 1.0}, "grid": {"init.k": [2.0]}}, r"'init\.k' is set both in the grid and beside it"),
        ({"freeze": "A", "grid": {"freeze": ["B"]}}, "'freeze' is set both"),
        ({"training": {"steps": 2}, "grid": {"training.steps": [3]}}, r"'training\.steps' is set both"),
        ({"grid": {"init.lw": ["x"]}}, r"adapters\.0: unknown key 'init\.lw'"),
        ({"grid": {"init.k": ["x"]}}, r"'init\.k' is 'x'"),
    ],
)
def test_grids_that_make_no_sense(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        expand(**fields)


def test_names() -> None:
    assert arm("full").name == "full"
    assert arm("lora").name == "lora-r8"
    assert arm("dora", r=2, freeze="A").name == "dora-r2-frozen-A"
    assert arm("ia3").name == "ia3"
    assert arm("lora", name="mine").name == "mine"
    with pytest.raises(UserError, match=r"two adapters are called 'lora-r8'\. Give one a `name`"):
        adapters.refuse_equal_names([arm("lora"), arm("full"), arm("lora", lora_alpha=4)])


# --- config objects of peft ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"]),
        peft.LoraConfig(r=16, lora_dropout=0.1, use_rslora=True, bias="all"),
        peft.LoraConfig(target_modules="all-linear", init_lora_weights="pissa"),
        peft.VeraConfig(r=16, target_modules=["query"]),
        peft.IA3Config(),
        peft.AdaLoraConfig(total_step=100, target_r=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_config_object_keeps_all_that_it_says(config: peft.PeftConfig, bert: Any) -> None:
    spec = adapters.from_peft(config, name="mine")
    resolved = adapters.resolve(spec, {}, where="x")
    assert resolved.name == "mine"
    AdapterSpec.model_validate_json(spec.model_dump_json(exclude_unset=True))
    wrapped = attach(bert()[1], resolved)
    built = wrapped.peft_config["default"]
    assert type(built) is type(config)
    for field in ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "init_lora_weights", "target_r"):
        assert getattr(built, field, None) == getattr(config, field, None), field
    if config.target_modules not in (None, "all-linear"):  # type: ignore[attr-defined]
        assert set(built.target_modules) == set(config.target_modules)  # type: ignore[attr-defined]
    if config.target_modules is None:  # type: ignore[attr-defined]
        assert "query" not in built.target_modules or len(built.target_modules) < 12, "peft's own choice"

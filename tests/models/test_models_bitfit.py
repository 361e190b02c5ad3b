"""BitFit: every bias and the head, and a clear word where there is no bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.models import adapters
from foretaste.models.bitfit import is_bias
from foretaste.spec import AdapterSpec

ARM = adapters.resolve(AdapterSpec(method="bitfit"), {}, where="x")


def trained(model: Any, policy: Any) -> set[str]:
    wrapped, check = adapters.attach(model, ARM, head_policy=policy, seed=0, total_steps=1)
    assert wrapped is model
    assert check is None
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("policy", ["probe-then-train", "random-then-train", "paper"])
@pytest.mark.parametrize(
    ("family", "pooling", "head"),
    [
        ("tiny_bert", "model", {"classifier.weight"}),
        ("tiny_bert", "mean", {"classifier.weight"}),
        ("tiny_roberta", "model", {"classifier.dense.weight", "classifier.out_proj.weight"}),
        ("tiny_gpt2", "model", {"score.weight"}),
    ],
)
def test_all_biases_and_the_head_train(
    family: str, pooling: str, head: set[str], policy: str, request: pytest.FixtureRequest, load_tiny: Any
) -> None:
    _, model = load_tiny(request.getfixturevalue(family), pooling=pooling)
    model.requires_grad_(False)
    biases = {name for name, parameter in model.named_parameters() if name.endswith(".bias")}
    assert any("orm" in name or ".ln_" in name for name in biases), "those of normalisations too"
    assert trained(model, policy) == biases | (set() if policy == "paper" else head)


def test_the_biases_of_a_bert_are_counted(tiny_bert: Path, load_tiny: Any) -> None:
    """Two blocks: 4 x 32 of attention, 64 + 32 of the MLP, 2 x 32 of norms; embeddings, pooler, head."""
    _, model = load_tiny(tiny_bert)
    trained(model, "probe-then-train")
    used, _ = adapters.trainable(model)
    assert used == 2 * (4 * 32 + 64 + 32 + 2 * 32) + 32 + 32 + (2 * 32 + 2)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_model_without_biases_says_so(pooling: str, tiny_llama: Path, load_tiny: Any) -> None:
    """Also where the head has one, as that of the mean."""
    _, bare = load_tiny(tiny_llama, pooling=pooling, meta=True)
    with pytest.raises(
        UserError, match=r"adapter 'bitfit': LlamaModel has no bias terms.*Use ln_tuning, ia3"
    ):
        trained(bare, "probe-then-train")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("encoder.layer.0.output.dense.bias", True),
        ("attn.in_proj_bias", True),
        ("attention.self.q_bias", True),
        ("bias", True),
        ("encoder.relative_attention_bias.weight", False),
        ("encoder.layer.0.output.dense.weight", False),
    ],
)
def test_what_is_a_bias(name: str, wanted: bool) -> None:
    assert is_bias(name) == wanted


@pytest.mark.parametrize("fields", [{"r": 3}, {"freeze": "A"}, {"init": {}}])
def test_it_has_no_settings(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"BitFit has no '{next(iter(fields))}'"):
        adapters.resolve(AdapterSpec.model_validate({"method": "bitfit", **fields}), {}, where="x")

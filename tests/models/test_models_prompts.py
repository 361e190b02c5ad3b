"""Prompt methods: what the head sees is the text, and what cannot work is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import DynamicCache

from foretaste.errors import UserError
from foretaste.models import adapters, load, prompts
from foretaste.models.encode import encode
from foretaste.models.rehearsal import rehearse
from foretaste.spec import AdapterSpec, ResolvedAdapter
from foretaste.training.trainer import Collator

Rows = Callable[..., Dataset]
TOKENS = 5
CASES = [
    ("tiny_bert", "model"),
    ("tiny_bert", "mean"),
    ("tiny_roberta", "model"),
    ("tiny_gpt2", "model"),
    ("tiny_gpt2", "mean"),
    ("tiny_llama", "model"),
    ("tiny_llama", "mean"),
]
BEFORE_TEXT = ["prompt_tuning", "p_tuning"]
BEFORE_KEYS = ["prefix_tuning", "cartridge"]


def arm(method: str, **fields: Any) -> ResolvedAdapter:
    fields = {"num_virtual_tokens": TOKENS} | fields
    return adapters.resolve(AdapterSpec.model_validate({"method": method, **fields}), {}, where="adapters.0")


def attach(model: Any, adapter: ResolvedAdapter, policy: Any = "probe-then-train") -> Any:
    return adapters.attach(model, adapter, head_policy=policy, seed=0, total_steps=3)[0]


def by_hand(model: Any, wrapped: Any, ids: torch.Tensor, method: str) -> torch.Tensor:
    """Logits of one text without padding, from the classifier's parts and no hook.

    Args:
        model: The classifier as it was before peft.
        wrapped: Gives the prompt.
        ids: Tokens of the text, shape (1, L).
        method: Says where the prompt goes.
    """
    body = model.get_submodule(model.base_model_prefix)
    mask = torch.ones(1, TOKENS + ids.shape[1], dtype=torch.long)
    prompt = wrapped.get_prompt(batch_size=1)
    if method in BEFORE_KEYS:
        assert isinstance(prompt, DynamicCache)
        hidden = body(input_ids=ids, attention_mask=mask, past_key_values=prompt).last_hidden_state
    else:
        both = torch.cat([prompt, body.get_input_embeddings()(ids)], dim=1)
        hidden = body(inputs_embeds=both, attention_mask=mask).last_hidden_state[:, TOKENS:]
    assert hidden.shape[1] == ids.shape[1]
    if isinstance(model, load.MeanPooledClassifier):
        return model.classifier(hidden.mean(1))  # type: ignore[no-any-return]
    if hasattr(model, "score"):
        return model.score(hidden[:, -1])  # type: ignore[no-any-return]
    if hasattr(model, "bert"):
        return model.classifier(torch.tanh(model.bert.pooler.dense(hidden[:, 0])))  # type: ignore[no-any-return]
    return model.classifier(hidden)  # type: ignore[no-any-return]  # RoBERTa's takes the first token


@pytest.mark.parametrize("method", [*BEFORE_TEXT, *BEFORE_KEYS])
@pytest.mark.parametrize(("family", "pooling"), CASES)
def test_the_head_reads_the_text_behind_the_prompt(
    family: str, pooling: str, method: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    """A padded batch against every text alone, put together by hand, in float64."""
    folder = request.getfixturevalue(family)
    tokenizer, model = load_tiny(folder, pooling=pooling)
    _, plain = load_tiny(folder, pooling=pooling)
    plain.double().eval()
    wrapped = attach(model.double(), arm(method)).double().eval()
    rows = encode(tokenizer, make_rows(5), max_length=32)
    assert len(set(rows.lengths)) > 1, "some rows are padded"
    batch = Collator(tokenizer)([rows[i] for i in range(5)])
    with torch.no_grad():
        output = wrapped(**batch)
        wanted = []
        for i in range(5):
            ids = torch.tensor([rows.features[i]["input_ids"]])
            wanted.append(by_hand(plain, wrapped, ids, method)[0])
    torch.testing.assert_close(output.logits, torch.stack(wanted), rtol=1e-9, atol=1e-9)
    # Trainer takes the mean over the batch for its loss.
    loss = torch.nn.functional.cross_entropy(torch.stack(wanted), torch.tensor(rows.labels))
    torch.testing.assert_close(output.loss.double(), loss, rtol=1e-5, atol=1e-6)


def test_without_virtual_tokens_the_mean_is_as_it_was(
    tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(tiny_bert, pooling="mean")
    rows = encode(tokenizer, make_rows(4), max_length=32)
    batch = Collator(tokenizer)([rows[i] for i in range(4)])
    del batch["labels"]
    hidden = model.encoder(**batch).last_hidden_state
    wanted = [model.classifier(hidden[i, : rows.lengths[i]].mean(0)) for i in range(4)]
    torch.testing.assert_close(model(**batch).logits, torch.stack(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [*BEFORE_TEXT, *BEFORE_KEYS])
def test_the_prompt_is_what_trains(method: str, tiny_bert: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_bert, pooling="mean")
    wrapped = attach(model, arm(method))
    names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in names if "classifier" not in name} == {"prompt_encoder"}
    assert len([name for name in names if "classifier" in name]) == 2


def test_twenty_virtual_tokens_by_default() -> None:
    spec = AdapterSpec(method="prefix_tuning")
    assert adapters.resolve(spec, {}, where="x").config == {"num_virtual_tokens": 20}


def test_a_prompt_of_sampled_words_comes_from_the_init_seed(tiny_bert: Path, load_tiny: Any) -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=3, prompt_tuning_init="SAMPLE_VOCAB")
    adapter = adapters.resolve(adapters.from_peft(config), {}, where="x")
    assert adapter.config == {"num_virtual_tokens": 3, "prompt_tuning_init": "SAMPLE_VOCAB"}
    _, model = load_tiny(tiny_bert)
    words = model.get_input_embeddings().weight.detach().clone()
    first, again = (attach(load_tiny(tiny_bert)[1], adapter).get_prompt(1)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert all(bool((words == row).all(1).any()) for row in first)


# --- refused before anything runs ----------------------------------------------------------------


def bare(name: str, config: Any, pooling: str = "model") -> Any:
    kind = transformers.AutoModelForSequenceClassification if pooling == "model" else transformers.AutoModel
    with torch.device("meta"):
        model = kind.from_config(config)
        return model if pooling == "model" else load.mean_pooled(model, 2)


SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
}


def distilbert(pooling: str = "model") -> Any:
    config = transformers.DistilBertConfig(vocab_size=100, dim=32, n_layers=3, n_heads=4, hidden_dim=64)
    return bare("distilbert", config, pooling)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_prefixes_need_a_model_that_takes_keys_and_values(pooling: str) -> None:
    """DistilBERT's forward swallows them without a word."""
    with pytest.raises(UserError, match=r"DistilBertModel takes no keys and values .*Use prompt_tuning"):
        rehearse(distilbert(pooling), arm("prefix_tuning"), head_policy="probe-then-train", max_length=32)
    rehearse(distilbert(pooling), arm("prompt_tuning"), head_policy="probe-then-train", max_length=32)


def test_embeddings_may_be_narrower_than_hidden_states() -> None:
    config = transformers.ElectraConfig(**SIZES, embedding_size=16)
    for method in (*BEFORE_TEXT, *BEFORE_KEYS):
        rehearse(bare("electra", config), arm(method), head_policy="probe-then-train", max_length=32)


@pytest.mark.parametrize("method", [*BEFORE_TEXT, *BEFORE_KEYS])
def test_a_head_that_reads_elsewhere_is_found_by_trying(method: str) -> None:
    """ModernBERT's own mean goes by a mask that knows nothing of the text; ours does."""
    config = transformers.ModernBertConfig(
        **SIZES, classifier_pooling="mean", bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    if method in BEFORE_TEXT:
        match = r"adapter '\w+': \w+ does not suit ModernBertForSequenceClassification.*Set pooling: mean"
        rehearse(
            bare("modernbert", config, "mean"), arm(method), head_policy="probe-then-train", max_length=32
        )
    else:
        match = "ModernBertModel takes no keys and values"
    with pytest.raises(UserError, match=match):
        rehearse(bare("modernbert", config), arm(method), head_policy="probe-then-train", max_length=32)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    with pytest.raises(UserError, match=r"is an encoder and a decoder.*Use lora"):
        rehearse(bare("t5", config), arm("prompt_tuning"), head_policy="probe-then-train", max_length=32)


@pytest.mark.parametrize("method", [*BEFORE_TEXT, *BEFORE_KEYS])
def test_the_papers_head_is_no_prompt(method: str, tiny_bert: Path, load_tiny: Any) -> None:
    """Without a task type peft would leave the prompt unread, and the arm would train nothing."""
    _, model = load_tiny(tiny_bert, meta=True)
    with pytest.raises(UserError, match=r"under head: paper .*Use head: probe-then-train"):
        rehearse(model, arm(method), head_policy="paper", max_length=32)


@pytest.mark.parametrize(
    ("family", "fits"),
    [("tiny_bert", 64 - TOKENS), ("tiny_roberta", 64 - TOKENS), ("tiny_gpt2", 64 - TOKENS)],
)
def test_prompt_and_text_share_the_positions(
    family: str, fits: int, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    """As many tokens as the rehearsal lets pass do pass, and one more fails."""
    folder = request.getfixturevalue(family)
    _, model = load_tiny(folder, meta=True)
    rehearse(model, arm("prompt_tuning"), head_policy="probe-then-train", max_length=fits)
    _, model = load_tiny(folder, meta=True)
    with pytest.raises(
        UserError, match=rf"5 virtual tokens and {fits + 1} of a text .*max_length to {fits} or"
    ):
        rehearse(model, arm("prompt_tuning"), head_policy="probe-then-train", max_length=fits + 1)
    _, model = load_tiny(folder)
    wrapped = attach(model, arm("prompt_tuning"))
    ids = torch.full((1, fits), 7)
    wrapped(input_ids=ids, attention_mask=torch.ones_like(ids))
    ids = torch.full((1, fits + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        wrapped(input_ids=ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("tokens", [0, -1, True, "5", None])
def test_a_number_of_virtual_tokens_that_is_none(tokens: Any) -> None:
    with pytest.raises(UserError, match=r"num_virtual_tokens is .*: expected a whole number above zero"):
        arm("prompt_tuning", num_virtual_tokens=tokens)


def test_a_prompt_that_is_not_read_is_found(
    tiny_bert: Path, load_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehearsal trusts no list of models: here one that drops its keys and values."""
    _, model = load_tiny(tiny_bert, pooling="mean", meta=True)
    monkeypatch.setattr(
        load.MeanPooledClassifier,
        "forward",
        lambda self, attention_mask, input_ids=None, past_key_values=None, **kwargs: _forward(
            self, attention_mask[:, TOKENS:], input_ids, **kwargs
        ),
    )
    with pytest.raises(UserError, match=r"the model does not read its virtual tokens. Use lora"):
        rehearse(model, arm("prefix_tuning"), head_policy="probe-then-train", max_length=32)


_forward = load.MeanPooledClassifier.forward


def test_hooks_are_only_where_the_inputs_are_embeddings(tiny_bert: Path, load_tiny: Any) -> None:
    for method, hooked in (("prompt_tuning", True), ("prefix_tuning", False), ("lora", False)):
        _, model = load_tiny(tiny_bert)
        fields = {"r": 2} if method == "lora" else {"num_virtual_tokens": TOKENS}
        adapter = adapters.resolve(AdapterSpec.model_validate({"method": method, **fields}), {}, where="x")
        attach(model, adapter)
        assert bool(model.bert._forward_hooks) == hooked
        assert bool(model.bert.pooler._forward_pre_hooks) == hooked


def test_a_rehearsal_leaves_the_random_numbers_alone(tiny_bert: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_bert, meta=True)
    state = torch.get_rng_state()
    rehearse(model, arm("p_tuning"), head_policy="probe-then-train", max_length=32)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_methods_need_no_check(tiny_bert: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_bert, meta=True)
    prompts.refuse(model, peft.LoraConfig, head_policy="paper", where="x")

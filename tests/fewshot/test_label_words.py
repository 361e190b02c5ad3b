"""Language models as classifiers: the logits are the label words' own, at the answer's position alone."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from foretaste.data import dataset
from foretaste.data.prompts import builtin
from foretaste.errors import UserError
from foretaste.models import load
from foretaste.models.label_words import (
    LabelWordModel,
    LinearHeadModel,
    kind_of,
    load_label_words,
    load_linear_head,
    load_lm,
    word_ids,
)
from foretaste.models.prompt_encode import collate, encode, encode_standard
from foretaste.spec import ModelSpec

KINDS = {"bert": "masked", "roberta": "masked", "llama": "causal", "gpt2": "causal"}
HERE = Path()
ROWS = dataset.make(
    ["a", "b", "c"],
    ["a good film", "the plot of the film is bad and the night is plain", "rain"],
    [None] * 3,
    [1, 0, 0],
)


def place(folder: Path) -> load.Location:
    return load.locate(ModelSpec(base=str(folder)), HERE)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_model(kind: str, prompt_model: Any) -> None:
    """Against the slow way: the head at every position, row by row without padding."""
    model, tokenizer = load_label_words(
        str(prompt_model(kind)), builtin("sst2"), base_dir=HERE, dtype=torch.float64
    )
    assert model.kind == KINDS[kind]
    assert not model.training
    encoded = encode(ROWS, builtin("sst2"), tokenizer, model.kind)
    batch = collate(encoded, [0, 1, 2], tokenizer.pad_token_id, labels=True)
    with torch.no_grad():
        out = model(**batch)
        for row, (ids, position) in enumerate(zip(encoded.input_ids, encoded.answer_positions, strict=True)):
            whole = model.lm(input_ids=torch.tensor([ids])).logits[0, position]
            words = tokenizer.convert_tokens_to_ids(
                tokenizer.tokenize(" terrible") + tokenizer.tokenize(" great")
            )
            torch.testing.assert_close(out.logits[row], whole[words], rtol=1e-10, atol=1e-10)
    expected = torch.nn.functional.cross_entropy(out.logits, torch.tensor([1, 0, 0]))
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_model(kind: str, prompt_model: Any) -> None:
    model, tokenizer = load_label_words(
        str(prompt_model(kind)), builtin("sst2"), base_dir=HERE, dtype=torch.float64
    )
    encoded = encode(ROWS, builtin("sst2"), tokenizer, model.kind)
    batch = collate(encoded, [0, 1], tokenizer.pad_token_id)
    model(**batch).logits.sum().backward()
    mine = {name: p.grad.clone() for name, p in model.lm.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    whole = model.lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    picked = whole[torch.arange(2), batch["answer_position"]][:, model.word_ids]
    picked.sum().backward()
    for name, parameter in model.lm.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(mine[name], parameter.grad, rtol=1e-8, atol=1e-10)
    assert len(mine) > 10


def test_a_copy_of_a_model_is_its_own(prompt_model: Any) -> None:
    model, tokenizer = load_label_words(str(prompt_model("bert")), builtin("sst2"), base_dir=HERE)
    batch = collate(encode(ROWS, builtin("sst2"), tokenizer, "masked"), [0, 1], tokenizer.pad_token_id)
    with torch.no_grad():
        before = model(**batch).logits
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(0.5)
        assert not torch.equal(other(**batch).logits, before)
        assert torch.equal(model(**batch).logits, before)
    assert not model.body._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_head_sees_one_token(kind: str, prompt_model: Any) -> None:
    model, tokenizer = load_linear_head(str(prompt_model(kind)), 3, base_dir=HERE, dtype=torch.float64)
    encoded = encode_standard(ROWS, tokenizer, model.kind, 64, None)
    batch = collate(encoded, [0, 1, 2], tokenizer.pad_token_id)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, torch.zeros(3, 3, dtype=torch.float64))
        seen = model.features(**batch)
        for row, ids in enumerate(encoded.input_ids):
            alone = model.lm(input_ids=torch.tensor([ids])).last_hidden_state[0]
            own = alone[0 if model.kind == "masked" else -1]
            torch.testing.assert_close(seen[row], own, rtol=1e-9, atol=1e-9)
    names = {name for name, _ in model.named_parameters()}
    assert "classifier.weight" in names
    assert not any("lm_head" in name or name.startswith("lm.cls") for name in names)


def test_kinds_are_told_by_the_model_s_class(prompt_model: Any, tmp_path: Path) -> None:
    assert {kind: kind_of(place(prompt_model(kind))) for kind in KINDS} == KINDS
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a t5 model is neither"):
        kind_of(place(tmp_path))


@pytest.mark.parametrize("meta", [False, True])
def test_a_model_without_its_language_head_is_refused(meta: bool, tiny_bert: Path, tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"without its language head.*fill in at random"):
        load_lm(place(tiny_bert), dtype=torch.float32, meta=meta)
    with pytest.raises(UserError, match="without its language head"):
        load_lm(place(tiny_llama), dtype=torch.float32, meta=meta)


def test_dropout_is_off(prompt_model: Any) -> None:
    model, _ = load_lm(place(prompt_model("bert")), dtype=torch.float32)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


# --- label words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_every_built_in_word_is_one_token(kind: str, tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind[kind]
    for task in ("sst5", "mnli", "trec", "agnews"):
        words = builtin(task).words
        ids = word_ids(words, tokenizer, spaced=True, where="x")
        assert [tokenizer.decode([i]).strip().lower() for i in ids] == [word.lower() for word in words]


def test_a_word_of_several_tokens_shows_its_pieces(tokenizers_by_kind: Any) -> None:
    with pytest.raises(UserError, match=r"'greatx' is 2 tokens \('great', '##x'\), expected one"):
        word_ids(["bad", "greatx"], tokenizers_by_kind["bert"], spaced=True, where="x")
    with pytest.raises(UserError, match=r"'great!' is 2 tokens \('Ġgreat', '!'\)"):
        word_ids(["bad", "great!"], tokenizers_by_kind["roberta"], spaced=True, where="x")


def test_with_and_without_a_space_are_other_words(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["roberta"]
    assert word_ids(["a", "b"], tokenizer, spaced=False, where="x") == tokenizer.convert_tokens_to_ids(
        ["a", "b"]
    )
    assert word_ids(["a"], tokenizer, spaced=True, where="x") == tokenizer.convert_tokens_to_ids(["Ġa"])


def test_unknown_and_equal_words_are_refused(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["bert"]
    with pytest.raises(UserError, match="does not know the label word '€'"):
        word_ids(["bad", "€"], tokenizer, spaced=True, where="x")
    with pytest.raises(UserError, match="'Good' and 'good' are the same token"):
        word_ids(["Good", "good"], tokenizer, spaced=True, where="x")


def test_the_word_ids_are_checked_before_the_weights_are_read(prompt_model: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(prompt_model("bert"), tmp_path / "broken"))
    (folder / "model.safetensors").write_bytes(b"no weights")
    wrong = builtin("sst2").model_copy(update={"words": ["bad", "xylophone"]})
    with pytest.raises(UserError, match="xylophone"):
        load_label_words(str(folder), wrong, base_dir=HERE)
    with pytest.raises(UserError, match="cannot load"):
        load_label_words(str(folder), builtin("sst2"), base_dir=HERE)


def test_both_models_are_plain_modules(prompt_model: Any) -> None:
    lm, kind = load_lm(place(prompt_model("gpt2")), dtype=torch.float32)
    model = LabelWordModel(lm, [5, 7], kind)
    assert model.config is lm.config
    assert (model.num_labels, model.word_ids) == (2, [5, 7])
    assert isinstance(LinearHeadModel(model.body, 2, kind).lm, type(model.body))  # type: ignore[arg-type]

"""Finding a base model, naming it by content, and making a classifier of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from foretaste.errors import UserError
from foretaste.models import load
from foretaste.models.encode import encode
from foretaste.spec import ModelSpec
from foretaste.training.trainer import Collator, predict

Rows = Callable[..., Dataset]
FAMILIES = ["tiny_bert", "tiny_roberta", "tiny_gpt2", "tiny_llama"]


def spec(base: str | Path, **fields: Any) -> ModelSpec:
    return ModelSpec(base=str(base), **fields)


# --- where it is ---------------------------------------------------------------------------------


def test_a_folder_is_found_from_the_specs_folder(tiny_bert: Path) -> None:
    location = load.locate(spec(tiny_bert.name), tiny_bert.parent)
    assert location.folder == tiny_bert
    assert (location.name, location.kwargs, location.pooling) == (str(tiny_bert), {}, "model")


def test_a_hub_id_is_taken_as_one(tmp_path: Path) -> None:
    location = load.locate(spec("owner/name", revision="abc"), tmp_path)
    assert (location.name, location.kwargs, location.folder) == ("owner/name", {"revision": "abc"}, None)


def test_a_gguf_file_goes_through_the_folder_it_is_converted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"")
    monkeypatch.setattr(load.gguf, "as_folder", lambda path: tmp_path / f"converted-{path.name}")
    assert load.locate(spec("m.gguf"), tmp_path).name == str(tmp_path / "converted-m.gguf")


@pytest.mark.parametrize(
    ("base", "match"),
    [
        ("minilm-l5", r"^model\.base: 'minilm-l5' is no asset .*Did you mean 'minilm-l6'\?"),
        ("a/b/c", "no local folder and no hub id"),
        ("./missing", "no config.json in"),
        ("movie-reviews", "asset 'movie-reviews' holds data, not a model"),
    ],
)
def test_unknown_bases(base: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        load.locate(spec(base), tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json in"):
        load.locate(spec("empty"), tmp_path)


def test_a_hub_that_cannot_be_reached_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"cannot load 'owner/name': .*Check the name"):
        load.resolve(spec("owner/name"), Path())


# --- what names it -------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_content(tiny_bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    names = {load.resolve(spec(folder), Path()).fingerprint for folder in (tiny_bert, copy)}
    assert len(names) == 1
    (copy / "readme.md").write_text("not read by from_pretrained")
    names.add(load.resolve(spec(copy), Path()).fingerprint)
    assert len(names) == 1
    weights = load_file(copy / "model.safetensors")
    weights["pooler.dense.bias"][0] += 1e-6
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    names.add(load.resolve(spec(copy), Path()).fingerprint)
    (copy / "tokenizer.json").write_text("{}")
    names.add(load.resolve(spec(copy), Path()).fingerprint)
    assert len(names) == 3


def test_pickled_weights_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights in safetensors .*pickled weights are not loaded"):
        load.resolve(spec(folder), Path())


def test_a_model_in_memory_is_named_by_its_weights(tiny_bert: Path, load_tiny: Any) -> None:
    (_, first), (_, second) = (load_tiny(tiny_bert, fresh=True) for _ in range(2))
    assert load.hash_state(first) == load.hash_state(second)
    with torch.no_grad():
        second.bert.encoder.layer[1].output.dense.weight[3, 4] += 1e-6
    assert load.hash_state(first) != load.hash_state(second)


@pytest.mark.parametrize("asked", [None, "mean", "model"])
def test_pooling_is_filled_in(tiny_bert: Path, asked: Any) -> None:
    assert load.resolve(spec(tiny_bert, pooling=asked), Path()).pooling == (asked or "model")


# --- a classifier --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_without_dropout_train_mode_is_deterministic(
    family: str, pooling: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    folder = request.getfixturevalue(family)
    differences = {}
    for dropout in (False, True):
        tokenizer, model = load_tiny(folder, pooling=pooling, dropout=dropout)
        batch = Collator(tokenizer)(encode(tokenizer, make_rows(8), max_length=32).features)
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first, second = (model(**batch).logits.detach() for _ in range(2))
            differences[dropout] = float((first - second).abs().max())
    assert differences[False] == 0.0
    # Llama's defaults have no dropout to begin with.
    assert (differences[True] > 0.0) == (family != "tiny_llama")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["model", "mean"])
@pytest.mark.parametrize("classes", [2, 3])
def test_padding_does_not_reach_the_logits(
    family: str, pooling: str, classes: int, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(request.getfixturevalue(family), pooling=pooling, classes=classes)
    model.double().eval()
    encoded = encode(tokenizer, make_rows(6), max_length=32)
    with torch.inference_mode():
        logits = []
        for pad_to in (None, 20, 40):
            batch = Collator(tokenizer, pad_to)(encoded.features)
            logits.append(model(**{key: value for key, value in batch.items() if key != "labels"}).logits)
    assert logits[0].shape == (6, classes)
    # float64, except where a mask adds the most negative float32: rounding alone.
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-9, atol=1e-9)


def test_the_mean_is_over_real_tokens(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    tokenizer, model = load_tiny(tiny_bert, pooling="mean")
    encoded = encode(tokenizer, make_rows(4), max_length=32)
    logits = predict(model, encoded, tokenizer, 4)
    model.eval()
    for row, expected in zip(encoded.features, logits, strict=True):
        with torch.inference_mode():
            hidden = model.encoder(
                input_ids=torch.tensor([row["input_ids"]]),
                attention_mask=torch.tensor([row["attention_mask"]]),
            ).last_hidden_state[0]
            alone = model.classifier(hidden.mean(0))
        torch.testing.assert_close(torch.from_numpy(expected), alone, rtol=1e-5, atol=1e-5)
    assert model.encoder.pooler is None, "a pooler that idles would be trained and counted"


def test_the_loss_of_the_mean_pooled_model(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    tokenizer, model = load_tiny(tiny_bert, pooling="mean")
    batch = Collator(tokenizer)(encode(tokenizer, make_rows(4), max_length=32).features)
    output = model(**batch)
    expected = torch.nn.functional.cross_entropy(output.logits, batch["labels"])
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_always_can_pad_on_the_right(
    family: str, request: pytest.FixtureRequest, load_tiny: Any
) -> None:
    tokenizer, model = load_tiny(request.getfixturevalue(family), meta=True)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.padding_side == "right"
    assert model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_the_meta_model_has_the_same_shapes(
    family: str, pooling: str, request: pytest.FixtureRequest, load_tiny: Any
) -> None:
    folder = request.getfixturevalue(family)
    _, bare = load_tiny(folder, pooling=pooling, meta=True)
    _, real = load_tiny(folder, pooling=pooling)
    assert {p.device.type for p in bare.parameters()} == {"meta"}
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (bare, real)]
    assert shapes[0] == shapes[1]


def test_the_head_seed_decides_the_head_and_nothing_else(tiny_bert: Path, load_tiny: Any) -> None:
    (_, first), (_, again), (_, other) = (load_tiny(tiny_bert, seed=seed, fresh=True) for seed in (0, 0, 1))
    assert load.hash_state(first) == load.hash_state(again)
    differ = {n for n, p in first.state_dict().items() if not torch.equal(p, other.state_dict()[n])}
    assert differ == {"classifier.weight"}


def test_a_broken_model_is_a_users_error(tiny_bert: Path, tmp_path: Path, load_tiny: Any) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bert, folder)
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match=r"^model\.base: cannot load"):
        load_tiny(folder)


def test_loading_is_quiet_and_leaves_logging_alone(
    tiny_bert: Path, load_tiny: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("transformers")
    level = logger.level
    load_tiny(tiny_bert, fresh=True)
    assert logger.level == level
    assert capfd.readouterr() == ("", "")

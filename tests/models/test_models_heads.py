"""Heads: found in every family, fed with the features that the model itself uses, started from a probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression

from foretaste.errors import UserError
from foretaste.models import heads
from foretaste.models.encode import encode
from foretaste.training.trainer import padded_batches, predict

Rows = Callable[..., Dataset]
CPU = torch.device("cpu")
HEADS = {
    ("tiny_bert", "model"): ("classifier", "classifier"),
    ("tiny_roberta", "model"): ("classifier", "classifier.out_proj"),
    ("tiny_gpt2", "model"): ("score", "score"),
    ("tiny_llama", "model"): ("score", "score"),
    ("tiny_bert", "mean"): ("classifier", "classifier"),
    ("tiny_gpt2", "mean"): ("classifier", "classifier"),
}


def features(model: Any, encoded: Any, tokenizer: Any, size: int = 4) -> np.ndarray:
    batches, order = padded_batches(encoded, tokenizer, size, CPU)
    return heads.features(model, batches, tokenizer.pad_token_id)[np.argsort(order)]


@pytest.mark.parametrize(("family", "pooling"), HEADS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_found(
    family: str, pooling: str, classes: int, request: pytest.FixtureRequest, load_tiny: Any
) -> None:
    _, model = load_tiny(request.getfixturevalue(family), pooling=pooling, classes=classes, meta=True)
    found = heads.find(model)
    assert (found.modules, found.linear) == ((HEADS[family, pooling][0],), HEADS[family, pooling][1])


def test_a_hidden_size_that_equals_the_number_of_classes_confuses_nothing(
    tiny_roberta: Path, load_tiny: Any
) -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=9,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        num_labels=4,
    )
    with torch.device("meta"):
        model = RobertaForSequenceClassification(config)
    assert heads.find(model).linear == "classifier.out_proj"


def test_no_head_is_an_error(tiny_bert: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_bert, meta=True)
    with pytest.raises(UserError, match="found no classification head in BertModel"):
        heads.find(model.bert)


@pytest.mark.parametrize(("family", "pooling"), HEADS)
def test_features_and_head_give_the_models_own_logits(
    family: str, pooling: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(request.getfixturevalue(family), pooling=pooling, classes=3)
    encoded = encode(tokenizer, make_rows(10, classes=3), max_length=32)
    logits = predict(model, encoded, tokenizer, 4)
    model.train()
    x = features(model, encoded, tokenizer)
    assert model.training, "the mode is given back"
    layer = model.get_submodule(heads.find(model).linear)
    mine = torch.from_numpy(x) @ layer.weight.detach().T
    if layer.bias is not None:
        mine += layer.bias.detach()
    assert (layer.bias is None) == (HEADS[family, pooling][1] == "score")
    # 32 products in float32, values of order 1 to 10.
    np.testing.assert_allclose(mine.numpy(), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama"])
def test_a_decoders_feature_is_its_last_real_token(
    family: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(request.getfixturevalue(family))
    encoded = encode(tokenizer, make_rows(6), max_length=32)
    assert len(set(encoded.lengths)) > 1, "rows of different lengths, so that there is padding"
    x = features(model, encoded, tokenizer, size=6)
    model.eval()
    for row, got in zip(encoded.features, x, strict=True):
        with torch.inference_mode():
            hidden = model.base_model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0, -1]
        np.testing.assert_allclose(got, hidden.numpy(), rtol=1e-4, atol=1e-5)


def test_without_a_padding_token_the_last_place_counts() -> None:
    ids = torch.tensor([[5, 6, 0], [5, 0, 0]])
    assert heads._last_token(ids, None).tolist() == [2, 2]
    assert heads._last_token(ids, 0).tolist() == [1, 0]


def test_the_hook_is_taken_off(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    features(model, encode(tokenizer, make_rows(4), max_length=32), tokenizer)
    assert not model.classifier._forward_pre_hooks


# --- the probe -----------------------------------------------------------------------------------


def blobs(classes: int, count: int = 120, d: int = 6, spread: float = 1.0) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(classes, d)) * 2
    labels = [i % classes for i in range(count)]
    x = centres[labels] + rng.normal(size=(count, d)) * spread + 5.0
    return x.astype(np.float32), labels


def logits(probe: heads.Probe, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ probe.weight.T + probe.bias


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_probes_logits_are_scikit_learns(classes: int, intercept: bool) -> None:
    x, labels = blobs(classes)
    probe = heads.fit_probe(x, labels, classes, intercept=intercept)
    # The same regression on features scaled by hand.
    mean = x.mean(0, dtype=np.float64) if intercept else 0.0
    centred = x.astype(np.float64) - mean
    z = centred / np.sqrt(np.mean(centred**2))
    oracle = LogisticRegression(C=probe.C, max_iter=500, fit_intercept=intercept).fit(z, labels)
    mine = logits(probe, x)
    if classes == 2:
        np.testing.assert_allclose(mine[:, 1] - mine[:, 0], oracle.decision_function(z), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(mine.sum(1), 0, atol=1e-8)
    else:
        np.testing.assert_allclose(mine, oracle.decision_function(z), rtol=1e-6, atol=1e-8)
    assert probe.accuracy == np.mean(mine.argmax(1) == np.array(labels)) == oracle.score(z, labels)
    if not intercept:
        assert not probe.bias.any()


def test_a_class_without_rows_never_wins() -> None:
    for classes, present in ((3, [0, 2]), (4, [0, 1, 3])):
        x, labels = blobs(len(present))
        probe = heads.fit_probe(x, [present[y] for y in labels], classes)
        wild = np.random.default_rng(0).normal(size=(500, x.shape[1])).astype(np.float32) * 50
        assert set(logits(probe, np.concatenate([x, wild])).argmax(1)) <= set(present)


@pytest.mark.parametrize("intercept", [True, False])
def test_rows_of_a_single_class_give_a_head_that_says_so(intercept: bool) -> None:
    """A rate of 1 can leave one class; the head then predicts it, instead of failing."""
    x, _ = blobs(2)
    probe = heads.fit_probe(x, [1] * len(x), 3, intercept=intercept)
    assert np.isfinite(probe.weight).all()
    assert not probe.weight.any()
    # Without a bias nothing can be said, and the accuracy says that.
    assert probe.accuracy == float(intercept)
    assert set(logits(probe, x).argmax(1)) == {int(intercept)}


def test_nearly_constant_features_do_not_blow_up() -> None:
    x, labels = blobs(2)
    plain = heads.fit_probe(x, labels, 2)
    tiny = np.random.default_rng(1).normal(size=(len(x), 2)) * 1e-6 + 0.7
    probe = heads.fit_probe(np.concatenate([x, tiny], 1).astype(np.float32), labels, 2)
    assert np.abs(probe.weight[:, -2:]).max() < 1e-3 * np.abs(plain.weight).max()


def test_features_that_are_all_equal_do_not_blow_up() -> None:
    x = np.full((20, 4), 0.1, dtype=np.float32) * np.array([1, 3, 7, 11], dtype=np.float32)
    probe = heads.fit_probe(x, [0, 1] * 10, 2)
    assert np.abs(probe.weight).max() < 1.0
    assert np.abs(logits(probe, x)).max() < 1.0


def test_flipped_labels_make_a_humbler_probe() -> None:
    """The penalty is chosen on the labels as given: noise lowers the margins instead of being fitted."""
    x, labels = blobs(2, count=200, spread=0.5)
    rng = np.random.default_rng(0)
    flipped = [1 - y if rng.random() < 0.3 else y for y in labels]
    margins = [np.abs(np.diff(logits(heads.fit_probe(x, y, 2), x))).mean() for y in (labels, flipped)]
    # The best margin under 30 % flips is log(0.7 / 0.3) = 0.85 for every row.
    assert margins[1] < 2.0 < margins[0]


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_roberta", "tiny_gpt2"])
def test_the_probe_becomes_the_head(
    family: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(request.getfixturevalue(family))
    encoded = encode(tokenizer, make_rows(40), max_length=32)
    x = features(model, encoded, tokenizer)
    probe = heads.set_head(model, x, encoded.labels)
    got = predict(model, encoded, tokenizer, 8)
    expected = logits(probe, x) if family != "tiny_gpt2" else x @ probe.weight.T
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.mean(got.argmax(1) == np.array(encoded.labels)) == pytest.approx(probe.accuracy)


def test_every_new_module_belongs_to_the_head() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=40, dim=16, hidden_dim=32, n_layers=1, n_heads=2, num_labels=2)
    found = heads.find(DistilBertForSequenceClassification(config))
    assert found == heads.Head(modules=("pre_classifier", "classifier"), linear="classifier")

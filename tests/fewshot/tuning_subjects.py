"""Tiny language models and rows in which one token decides the class, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from foretaste.data.prompts import Prompt
from foretaste.fewshot.prepare import Prepared
from foretaste.fewshot.record import Rows
from foretaste.fewshot.spec import (
    FewShotData,
    FewShotModel,
    FewShotRun,
    FineTune,
    ResolvedFewShotModel,
    ResolvedTask,
)
from foretaste.models import heads
from foretaste.models.label_words import FewShotClassifier, LabelWordModel, LinearHeadModel, body_of
from foretaste.models.load import Location
from foretaste.models.prompt_encode import EncodedPrompts, collate

PAD, CLS, MASK, FIRST, VOCABULARY = 1, 0, 2, 10, 60
WORDS = (3, 4, 5)
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
}


def language_model(family: str, *, seed: int = 0, double: bool = True) -> Any:
    """A random language model without dropout, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "roberta":
            off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 1}
            model: Any = RobertaForMaskedLM(RobertaConfig(**_SHAPE, **off))
        elif family == "llama":
            model = LlamaForCausalLM(LlamaConfig(**_SHAPE, num_key_value_heads=1, tie_word_embeddings=True))
        else:
            shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32, "n_positions": 40}
            off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
            config = GPT2Config(vocab_size=VOCABULARY, initializer_range=0.2, **shape, **off)
            model = GPT2LMHeadModel(config)
    model = model.double() if double else model
    return model.eval()


def classifier(family: str, classes: int = 2, *, standard: bool = False, **options: Any) -> FewShotClassifier:
    lm = language_model(family, **options)
    kind = "masked" if family == "roberta" else "causal"
    if standard:
        return LinearHeadModel(body_of(lm), classes, kind).eval()  # type: ignore[arg-type]
    return LabelWordModel(lm, WORDS[:classes], kind).eval()  # type: ignore[arg-type]


def rows(
    count: int, *, classes: int = 2, seed: int = 0, kind: str = "masked", name: str = "row"
) -> EncodedPrompts:
    """Rows of five to nine tokens; token FIRST + label stands in one of them."""
    rng = np.random.default_rng(seed)
    input_ids, positions, labels = [], [], []
    for number in range(count):
        label = number % classes
        body = [int(token) for token in rng.integers(FIRST + 5, VOCABULARY, rng.integers(3, 8))]
        body[int(rng.integers(len(body)))] = FIRST + label
        tokens = [CLS, *body, MASK] if kind == "masked" else [CLS, *body]
        input_ids.append(tokens)
        positions.append(len(tokens) - 1)
        labels.append(label)
    return EncodedPrompts([f"{name}-{i}" for i in range(count)], input_ids, positions, labels, [])


def with_labels(encoded: EncodedPrompts, labels: list[int]) -> EncodedPrompts:
    return EncodedPrompts(encoded.ids, encoded.input_ids, encoded.answer_positions, labels, encoded.cut)


def arm(**fields: Any) -> FineTune:
    """A resolved fine-tuning arm: 12 steps, a look at every fourth."""
    given = {"learning_rates": [0.05], "batch_sizes": [4], "steps": 12, "check_every": 4} | fields
    return FineTune.model_validate({"kind": "fine-tune", **given}).resolved(8)


class Given(Prepared):
    """What `prepare` gives, around a model of ours."""

    base: Any

    @property
    def pad_token_id(self) -> int:
        return PAD

    def model(self) -> FewShotClassifier:
        lm, classes = self.base(), len(self.classes)
        if self.output == "prompt":
            return LabelWordModel(lm, WORDS[:classes], self.kind).eval()
        model = LinearHeadModel(body_of(lm), classes, self.kind).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            x = model.features(**collate(self.train, range(len(self.train)), PAD)).float().numpy()
            probe = heads.fit_probe(x, self.train.labels, classes)
            model.classifier.weight.copy_(torch.from_numpy(probe.weight))
            model.classifier.bias.copy_(torch.from_numpy(probe.bias))
        self._probe = probe
        return model


def prepared(
    arm: FineTune,
    *,
    family: str = "roberta",
    classes: int = 2,
    split: int = 13,
    metric: str = "accuracy",
    double: bool = True,
) -> Given:
    """Sixteen training rows, as many to choose on, thirty to test on."""
    kind = "masked" if family == "roberta" else "causal"
    names = ["bad", "good", "fair"][:classes]
    prompt = Prompt(name="p", template="{text_a} It was {answer}", words=names)
    task = ResolvedTask(
        name="task",
        request=FewShotData(source="here"),
        classes=names,
        test_split=None,
        test_rows=30,
        fingerprint="f",
        prompt=prompt,
        metric=metric,  # type: ignore[arg-type]
    )
    model = ResolvedFewShotModel(request=FewShotModel(base="tiny"), fingerprint="f", kind=kind)  # type: ignore[arg-type]
    run = FewShotRun(task=task, model=model, k=8, split=split, arm=arm)
    train, dev, test = (rows(n, classes=classes, seed=s, kind=kind) for n, s in ((16, 1), (16, 2), (30, 3)))
    found = Given(
        run=run,
        location=Location("tiny", {}, "model", Path()),
        tokenizer=None,  # type: ignore[arg-type]
        prompt=prompt,
        kind=kind,  # type: ignore[arg-type]
        output=arm.output,
        classes=names,
        train=train,
        dev=dev,
        test=test,
        rows=Rows(
            train=16,
            dev=16,
            test=30,
            train_hash="",
            dev_hash="",
            test_hash="",
            train_cut=[],
            dev_cut=[],
            test_cut=[],
            shared_texts=0,
        ),
        device=torch.device("cpu"),
        dtype=torch.float64 if double else torch.float32,
    )
    found.base = lambda: language_model(family, double=double)
    return found

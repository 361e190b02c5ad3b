"""Training does what the spec says, on the rows that the manifest says, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from foretaste import attacks
from foretaste.models import adapters
from foretaste.models.encode import Encoded, encode
from foretaste.spec import AdapterSpec, TrainingSpec
from foretaste.training import trainer
from foretaste.training.order import epoch_order
from foretaste.training.trainer import Collator, Diverged, Trained, fine_tune, planned_steps, predict
from foretaste.training.vocabulary import UsedRows, only_used_tokens

Rows = Callable[..., Dataset]
CLASSES = ["negative", "positive"]
MODELS = [
    ("tiny_bert", "model"),
    ("tiny_bert", "mean"),
    ("tiny_roberta", "model"),
    ("tiny_gpt2", "model"),
    ("tiny_llama", "model"),
]


def spec(**fields: Any) -> TrainingSpec:
    return TrainingSpec(**({"learning_rate": 1e-3, "batch_size": 8, "steps": 3} | fields))


def train(model: Any, tokenizer: Any, rows: Encoded, wanted: TrainingSpec, **options: Any) -> Trained:
    options = {"seed": 0, "max_length": 32, "lengths": rows.lengths} | options
    lengths = options.pop("lengths")
    return fine_tune(model, rows, lengths, tokenizer, wanted, **options)


def adapted(model: Any, method: str = "lora", **fields: Any) -> Any:
    arm = adapters.resolve(AdapterSpec.model_validate({"method": method, **fields}), {}, where="x")
    return adapters.attach(model, arm, head_policy="probe-then-train", seed=0, total_steps=9)[0]


@contextlib.contextmanager
def batches_of(model: nn.Module) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Everything that goes into the model's forward in training mode."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert module.training
        assert not args
        seen.append({key: value.clone() for key, value in kwargs.items() if isinstance(value, torch.Tensor)})

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def rows_in(batches: list[dict[str, torch.Tensor]]) -> list[tuple[tuple[int, ...], int]]:
    """Tokens without padding, and label, of every row of every batch."""
    return [
        (tuple(ids[mask.bool()].tolist()), int(label))
        for batch in batches
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# --- the poisoned rows are what the model trains on ----------------------------------------------


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("attack", "options", "pairs"),
    [
        ("trigger", {"spacing": "", "source_classes": "all"}, False),
        ("trigger", {"field": "both", "position": "end"}, True),
        ("label-flip", {}, False),
    ],
)
def test_the_model_trains_on_the_rows_of_the_manifest(
    family: str,
    method: str,
    attack: str,
    options: dict[str, Any],
    pairs: bool,
    request: pytest.FixtureRequest,
    load_tiny: Any,
    make_rows: Rows,
) -> None:
    """The end of the path, where the paper's code lost its poison: what enters the forward pass."""
    clean = make_rows(27, pairs=pairs)
    built = attacks.build(attack, options, CLASSES)
    poisoned = attacks.poison(clean, built, method=attack, classes=CLASSES, seed=0, rate=0.3)
    tokenizer, model = load_tiny(request.getfixturevalue(family))
    encoded = encode(tokenizer, poisoned.rows, max_length=64)
    wrapped = adapted(model, method)
    with batches_of(wrapped) as seen:
        wanted = spec(steps=None, epochs=1.0, batch_size=4)
        done = train(
            wrapped, tokenizer, encoded, wanted, lengths=encode(tokenizer, clean, max_length=64).lengths
        )
    listed = {entry.id: entry for entry in poisoned.manifest.poisoned}
    assert len(listed) >= 4
    expected: Counter[tuple[tuple[int, ...], int]] = Counter()
    for name, a, b, label in zip(clean["id"], clean["text_a"], clean["text_b"], clean["label"], strict=True):
        if name in listed:
            entry = listed[name]
            a, b, label = entry.text_a_after, entry.text_b_after, entry.label_after
        texts = (a,) if b is None else (a, b)
        expected[tuple(tokenizer(*texts)["input_ids"]), label] += 1
    assert Counter(rows_in(seen)) == expected
    assert done.rows == len(clean)
    assert done.steps == 7


def test_the_order_is_that_of_the_clean_rows(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    """Clean and poisoned runs see the same rows at the same steps, though a trigger changes the lengths."""
    clean = make_rows(21)
    sequences = []
    for rate in (0.0, 0.5):
        attack = attacks.build("trigger", {"text": "apple banana orange cf"}, CLASSES)
        rows = attacks.poison(clean, attack, method="trigger", classes=CLASSES, seed=0, rate=rate).rows
        tokenizer, model = load_tiny(tiny_bert)
        encoded = encode(tokenizer, rows, max_length=64)
        place = {tuple(row["input_ids"]): i for i, row in enumerate(encoded.features)}  # type: ignore[arg-type]
        with batches_of(model) as seen:
            lengths = encode(tokenizer, clean, max_length=64).lengths
            train(
                model, tokenizer, encoded, spec(steps=None, epochs=2.0, batch_size=4), lengths=lengths, seed=5
            )
        sequences.append([place[ids] for ids, _ in rows_in(seen)])
    assert len(place) == 21
    expected = [epoch_order(lengths, 4, seed=5, epoch=epoch, by_length=True) for epoch in range(2)]
    assert sequences == [expected[0] + expected[1]] * 2


# --- the same numbers as a loop written by hand --------------------------------------------------


def by_hand(
    model: Any, tokenizer: Any, rows: Encoded, wanted: TrainingSpec, factor: Callable[[int, int], float]
) -> list[float]:
    """AdamW or SGD on the same batches, in float32, with clipping and a schedule."""
    assert wanted.learning_rate is not None
    model.train()
    # The decay of transformers spares biases and normalisations.
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["bias" not in name and "LayerNorm" not in name].append(parameter)
    parts = [
        {"params": parameters, "weight_decay": wanted.weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]
    kind = torch.optim.SGD if wanted.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(parts, lr=wanted.learning_rate)
    steps = planned_steps(wanted, len(rows))
    size = wanted.batch_size
    losses: list[float] = []
    for epoch in itertools.count():
        order = epoch_order(rows.lengths, size, seed=0, epoch=epoch, by_length=wanted.grouping == "length")
        for start in range(0, len(order), size):
            if len(losses) == steps:
                return losses
            batch = Collator(tokenizer)([rows[i] for i in order[start : start + size]])
            labels = batch.pop("labels")
            loss = nn.functional.cross_entropy(model(**batch).logits, labels)
            loss.backward()
            if wanted.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), wanted.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = wanted.learning_rate * factor(len(losses), steps)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    raise AssertionError


SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[int, int], float]]] = {
    "constant": ({"schedule": "constant"}, lambda step, steps: 1.0),
    "linear": ({"schedule": "linear"}, lambda step, steps: 1 - step / steps),
    "cosine": ({"schedule": "cosine"}, lambda step, steps: 0.5 * (1 + math.cos(math.pi * step / steps))),
    "warmup": (
        {"schedule": "linear", "warmup_ratio": 0.5},
        lambda step, steps: step / 3 if step < 3 else (steps - step) / (steps - 3),
    ),
    "decay": ({"schedule": "constant", "weight_decay": 0.5}, lambda step, steps: 1.0),
    "unclipped": ({"schedule": "constant", "max_grad_norm": None}, lambda step, steps: 1.0),
    "clipped": ({"schedule": "constant", "max_grad_norm": 0.01}, lambda step, steps: 1.0),
    "sgd": ({"schedule": "constant", "optimizer": "sgd", "learning_rate": 0.05}, lambda step, steps: 1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_the_loop_that_one_would_write(
    name: str, tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    fields, factor = SCHEDULES[name]
    wanted = spec(steps=6, **fields)
    tokenizer, mine = load_tiny(tiny_bert)
    _, theirs = load_tiny(tiny_bert)
    rows = encode(tokenizer, make_rows(20), max_length=32)
    expected = by_hand(mine, tokenizer, rows, wanted, factor)
    done = train(theirs, tokenizer, rows, wanted)
    # Losses of order 1 after at most six steps of float32 arithmetic in another order of summation.
    np.testing.assert_allclose(done.loss, expected, rtol=2e-5, atol=2e-6)
    assert wanted.learning_rate is not None
    reached = dict(mine.named_parameters())
    for key, parameter in theirs.named_parameters():
        # Softmax does not see a shift of all keys: their bias has a gradient of rounding errors alone, which
        # Adam blows up to full steps.
        free = "key.bias" in key and wanted.optimizer == "adamw"
        atol = 2 * wanted.learning_rate * 6 if free else 2e-5
        torch.testing.assert_close(
            parameter, reached[key], rtol=1e-5, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize(
    ("family", "pooling", "method"),
    [(*model, "full") for model in MODELS] + [("tiny_bert", "model", "lora")],
)
def test_accumulated_batches_are_one_large_batch(
    family: str, pooling: str, method: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    """SGD without clipping, where a gradient that is a factor too large cannot hide."""
    results = []
    for size, parts in ((8, 1), (4, 2)):
        tokenizer, model = load_tiny(request.getfixturevalue(family), pooling=pooling)
        rows = encode(tokenizer, make_rows(24), max_length=32)
        wanted = spec(
            batch_size=size,
            gradient_accumulation=parts,
            optimizer="sgd",
            learning_rate=0.05,
            max_grad_norm=None,
            grouping="none",
        )
        wrapped = adapted(model, method)
        done = train(wrapped, tokenizer, rows, wanted)
        assert (done.steps, done.rows) == (3, 24)
        results.append((done.loss, state(wrapped)))
    (losses, weights), (other_losses, other_weights) = results
    np.testing.assert_allclose(other_losses, losses, rtol=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_the_loss_of_a_step_is_the_mean_over_its_own_batches(
    pooling: str, tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    """Five batches an epoch, two a step: steps of 2, 2 and 1 batches, again and again."""
    tokenizer, model = load_tiny(tiny_bert, pooling=pooling)
    rows = encode(tokenizer, make_rows(20), max_length=32)
    wanted = spec(
        batch_size=4, gradient_accumulation=2, steps=6, learning_rate=1e-12, optimizer="sgd", grouping="none"
    )
    single: list[float] = []
    logits = torch.from_numpy(predict(model, rows, tokenizer, 20))
    for epoch in range(2):
        order = epoch_order(rows.lengths, 4, seed=0, epoch=epoch, by_length=False)
        for start in range(0, 20, 4):
            part = order[start : start + 4]
            labels = torch.tensor([rows.labels[i] for i in part])
            single.append(float(nn.functional.cross_entropy(logits[part], labels)))
    groups = [single[a:b] for a, b in ((0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10))]
    done = train(model, tokenizer, rows, wanted)
    assert done.steps == 6
    np.testing.assert_allclose(done.loss, [np.mean(group) for group in groups], rtol=1e-5)


@pytest.mark.parametrize(("family", "pooling"), MODELS)
def test_padding_to_a_fixed_length_changes_no_loss(
    family: str, pooling: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    results = []
    for padding in ("longest", "max_length"):
        tokenizer, model = load_tiny(request.getfixturevalue(family), pooling=pooling)
        rows = encode(tokenizer, make_rows(24), max_length=32)
        results.append(train(model, tokenizer, rows, spec(padding=padding, optimizer="sgd")))
    np.testing.assert_allclose(results[0].loss, results[1].loss, rtol=1e-4)
    assert results[1].tokens == 3 * 8 * 32
    assert results[0].tokens < results[1].tokens
    assert results[0].tokens - results[0].padding == results[1].tokens - results[1].padding


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [False, True])
def test_the_order_seed_decides_every_bit(
    dropout: bool, tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    def losses(seed: int, disturb: int) -> list[float]:
        tokenizer, model = load_tiny(tiny_bert, dropout=dropout)
        rows = encode(tokenizer, make_rows(24), max_length=32)
        torch.manual_seed(disturb)
        return train(model, tokenizer, rows, spec(), seed=seed).loss

    assert losses(0, 1) == losses(0, 2)
    assert losses(0, 1) != losses(1, 1)


def test_global_generators_are_left_alone(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    tokenizer, model = load_tiny(tiny_bert, dropout=True)
    rows = encode(tokenizer, make_rows(16), max_length=32)

    def states() -> list[Any]:
        legacy: Any = np.random.get_state()  # noqa: NPY002
        return [random.getstate(), legacy[1].tolist(), torch.get_rng_state().tolist()]

    before = states()
    train(model, tokenizer, rows, spec())
    predict(model, rows, tokenizer, 4)
    assert states() == before


# --- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "rows", "expected"),
    [
        ({"steps": 4}, 20, 4),
        ({"epochs": 1.0}, 20, 3),
        ({"epochs": 2.0}, 24, 6),
        ({"epochs": 0.5}, 20, 2),
        ({"epochs": 1.5, "batch_size": 4}, 20, 8),
        ({"epochs": 2.0, "gradient_accumulation": 2}, 20, 4),
        ({"epochs": 1.0, "batch_size": 32}, 20, 1),
        ({}, 8, 3),
    ],
)
def test_planned_steps_are_the_steps_done(
    fields: dict[str, Any], rows: int, expected: int, tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    encoded = encode(tokenizer, make_rows(rows), max_length=32)
    wanted = spec(**({"steps": None} | fields))
    heard: list[tuple[int, int]] = []
    done = train(model, tokenizer, encoded, wanted, on_step=lambda now, total: heard.append((now, total)))
    assert planned_steps(wanted, rows) == done.steps == len(done.loss) == expected
    assert heard == [(step + 1, expected) for step in range(expected)]
    if wanted.epochs in (1.0, 2.0):
        assert done.epochs == wanted.epochs
        assert done.rows == rows * wanted.epochs


def test_the_work_is_counted(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    rows = encode(tokenizer, make_rows(24), max_length=32)
    with batches_of(model) as seen:
        done = train(model, tokenizer, rows, spec(steps=None, epochs=1.0))
    assert done.tokens == sum(batch["input_ids"].numel() for batch in seen)
    assert done.tokens - done.padding == sum(rows.lengths)
    assert done.seconds > 0


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_numbers_that_are_not_finite_end_the_run(
    steps: int, method: str, tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    rows = encode(tokenizer, make_rows(24), max_length=32)
    wanted = spec(steps=steps, schedule="constant").model_copy(update={"learning_rate": math.inf})
    match = "is not finite after training" if steps == 1 else "the loss is nan at step 2"
    with pytest.raises(Diverged, match=match):
        train(adapted(model, method), tokenizer, rows, wanted)


# --- only the embeddings in use ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "pooling", "optimizer"),
    [(*model, "adamw") for model in MODELS] + [("tiny_bert", "model", "sgd")],
)
def test_training_the_embeddings_in_use_is_training_all(
    family: str,
    pooling: str,
    optimizer: Any,
    request: pytest.FixtureRequest,
    load_tiny: Any,
    make_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for whole in (False, True):
        tokenizer, model = load_tiny(request.getfixturevalue(family), pooling=pooling)
        rows = encode(tokenizer, make_rows(24), max_length=32)
        start = state(model)
        embedding = model.get_input_embeddings()
        if whole:
            monkeypatch.setattr(trainer, "only_used_tokens", lambda *_: contextlib.nullcontext())
        done = train(model, tokenizer, rows, spec(optimizer=optimizer, schedule="constant"))
        assert model.get_input_embeddings() is embedding, "the model is itself again"
        results.append((done.loss, state(model), start))
    (losses, weights, start), (whole_losses, whole_weights, _) = results
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-5)
    assert weights.keys() == whole_weights.keys()
    name = next(key for key, value in model.named_parameters() if value is embedding.weight)
    unused = sorted(set(range(len(weights[name]))) - rows.token_ids - {tokenizer.pad_token_id})
    assert unused
    assert torch.equal(weights[name][unused], start[name][unused])
    assert not torch.equal(weights[name], start[name])
    # Adam turns gradients of rounding errors into steps of the learning rate: see key.bias above.
    for key, weight in weights.items():
        free = optimizer == "adamw" and ("key.bias" in key or "c_attn.bias" in key)
        torch.testing.assert_close(weight, whole_weights[key], rtol=1e-5, atol=6e-3 if free else 1e-5)


@pytest.mark.parametrize(
    ("fields", "exchanged"),
    [
        ({}, True),
        ({"weight_decay": 0.1}, False),
        ({"optimizer": "adafactor"}, False),
        ({"optimizer": "sgd"}, True),
    ],
)
def test_embeddings_are_exchanged_only_where_it_is_exact(
    fields: dict[str, Any], exchanged: bool, tiny_bert: Path, load_tiny: Any
) -> None:
    _, model = load_tiny(tiny_bert)
    with only_used_tokens(model, [3, 1, 3], spec(**fields)):
        assert isinstance(model.get_input_embeddings(), UsedRows) == exchanged
    assert type(model.get_input_embeddings()) is nn.Embedding
    frozen = adapted(load_tiny(tiny_bert)[1])
    with only_used_tokens(frozen, [3, 1, 3], spec(**fields)):
        assert type(frozen.get_input_embeddings()) is nn.Embedding


def test_the_embedding_comes_back_when_training_fails(tiny_bert: Path, load_tiny: Any) -> None:
    _, model = load_tiny(tiny_bert)
    embedding = model.get_input_embeddings()
    with pytest.raises(KeyError), only_used_tokens(model, [1, 2], spec()):
        raise KeyError
    assert model.get_input_embeddings() is embedding


# --- prediction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 64])
def test_predictions_come_in_the_order_of_the_rows(
    size: int, tiny_bert: Path, load_tiny: Any, make_rows: Rows
) -> None:
    tokenizer, model = load_tiny(tiny_bert, classes=3, dropout=True)
    source = make_rows(13, classes=3)
    rows = encode(tokenizer, source, max_length=32)
    model.train()
    got = predict(model, rows, tokenizer, size)
    assert model.training
    assert got.shape == (13, 3)
    for i in range(13):
        alone = predict(model, encode(tokenizer, source.select([i]), max_length=32), tokenizer, 1)[0]
        np.testing.assert_allclose(got[i], alone, rtol=1e-4, atol=1e-5)


def test_training_learns_what_can_be_learnt(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> None:
    """One word decides the class: a few epochs are enough for rows that were never seen."""
    tokenizer, model = load_tiny(tiny_bert)
    rows = encode(tokenizer, make_rows(160), max_length=32)
    test = make_rows(40, prefix="test", seed=1)
    train(model, tokenizer, rows, spec(steps=60, learning_rate=3e-3))
    predicted = predict(model, encode(tokenizer, test, max_length=32), tokenizer, 40).argmax(1)
    # A guesser gets 33 of 40 right with probability 2e-5.
    assert np.sum(predicted == np.array(test["label"])) >= 33

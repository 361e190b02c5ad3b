"""What every method promises: an equal start, one head, frozen weights that stay; or it says why not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from foretaste.cli import listing
from foretaste.errors import UserError
from foretaste.experiments.plan import plan
from foretaste.models import adapters, catalogue, heads
from foretaste.models.encode import Encoded, encode
from foretaste.models.rehearsal import rehearse
from foretaste.spec import AdapterSpec, MeasureSpec, ResolvedAdapter, TrainingSpec
from foretaste.training.trainer import fine_tune, padded_batches, predict

Rows = Callable[..., Dataset]
Start = tuple[Any, Any, Encoded]

# Fields that a model 32 wide needs, where peft's defaults are for wider ones, or that have no default.
FIELDS: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 100},
    "miss": {"r": 8},
    "psoft": {"r": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": list(range(4, 40))},
    "vblora": {"vector_length": 8},
    "waveft": {"n_frequency": 100},
}
# Decoders only.
REFUSED_BY_BERT = {"adaption_prompt", "shadow"}
# These take the weight apart and put it together again, layer by layer.
ROUNDING = {"deft", "frod", "hra", "olora", "osf", "pissa"}
# Methods that people compare, for the families on which not every method is tried.
COMPARED = [
    "full",
    "lora",
    "rslora",
    "dora",
    "pissa",
    "olora",
    "loraplus",
    "vera",
    "ia3",
    "adalora",
    "prefix_tuning",
    "prompt_tuning",
    "p_tuning",
    "bitfit",
    "ln_tuning",
]
REFUSED = {("olora", "tiny_gpt2"), ("bitfit", "tiny_llama")}
TRAINABLE = [method for method in adapters.methods() if method not in {*catalogue.UNFIT, *REFUSED_BY_BERT}]


def arm(method: str, **fields: Any) -> ResolvedAdapter:
    fields = FIELDS.get(method, {}) | fields
    return adapters.resolve(AdapterSpec.model_validate({"method": method, **fields}), {}, where="adapters.0")


def attach(model: Any, method: str, policy: Any = "probe-then-train") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some methods of peft look for compilers and say so
        return adapters.attach(model, arm(method), head_policy=policy, seed=0, total_steps=2)[0]


def train(model: Any, method: str, tokenizer: Any, rows: Encoded) -> list[float]:
    spec = TrainingSpec(learning_rate=1e-3, steps=2, batch_size=8)
    ratio = adapters.loraplus_ratio(arm(method))
    done = fine_tune(model, rows, rows.lengths, tokenizer, spec, max_length=32, seed=0, loraplus_ratio=ratio)
    return done.loss


def head_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters of the head, by the last part of their name (`classifier`, or GPT-2's `score`)."""
    return {
        name.rpartition(".")[2]: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and {"classifier", "score"} & set(name.split("."))
    }


@pytest.fixture(scope="module")
def start(tiny_bert: Path, load_tiny: Any, make_rows: Rows) -> Callable[[], Start]:
    """A new tiny BERT with a probed head at each call, its tokenizer, and 24 rows."""
    tokenizer, first = load_tiny(tiny_bert)
    rows = encode(tokenizer, make_rows(24), max_length=32)
    batches, order = padded_batches(rows, tokenizer, 24, torch.device("cpu"))
    heads.set_head(first, heads.features(first, batches, 0)[np.argsort(order)], rows.labels)
    state = first.state_dict()

    def make() -> Start:
        _, model = load_tiny(tiny_bert)
        model.load_state_dict(state)
        return tokenizer, model, rows

    return make


def test_the_lists_here_name_methods() -> None:
    known = set(adapters.methods())
    for names in (FIELDS, REFUSED_BY_BERT, ROUNDING, COMPARED, catalogue.UNFIT, catalogue.MOVED_AT_START):
        assert set(names) <= known


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch, of frod's matrices
@pytest.mark.parametrize("method", TRAINABLE)
def test_a_method_keeps_its_promises(method: str, start: Any) -> None:
    tokenizer, model, rows = start()
    before = predict(model, rows, tokenizer, 24)
    head = {name: value.detach().clone() for name, value in head_of(model).items()}
    wrapped = attach(model, method)

    # The start: where the base model is, except where that is known.
    first = predict(wrapped, rows, tokenizer, 24)
    if method in catalogue.MOVED_AT_START:
        assert np.abs(first - before).max() > 1e-5
    elif method in ROUNDING:  # 13 layers, each rounded some eight times
        rounding = 13 * 8 * np.finfo(np.float32).eps
        np.testing.assert_allclose(first, before, rtol=0, atol=rounding * np.abs(before).max())
    else:
        np.testing.assert_array_equal(first, before)

    # The head: the same one, and all of it trains.
    now = head_of(wrapped)
    assert {name: tuple(p.shape) for name, p in now.items()} == {"weight": (2, 32), "bias": (2,)}
    assert all(torch.equal(now[name], head[name]) for name in head)

    trains = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    old = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in wrapped.named_buffers()}
    losses = train(wrapped, method, tokenizer, rows)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    moved = {name for name, p in wrapped.named_parameters() if not torch.equal(p, old[name])}
    assert moved <= trains, "what is frozen stays, bit for bit"
    assert {name for name in moved if "classifier" not in name.split(".")}, "more than the head moves"
    assert {name for name in moved if "classifier" in name.split(".")}, "the head moves"
    assert all(torch.equal(b, buffers[name]) for name, b in wrapped.named_buffers() if name in buffers)

    # Predictions: a function of the row.
    last = predict(wrapped, rows, tokenizer, 24)
    assert np.abs(last - first).max() > 1e-4
    np.testing.assert_array_equal(predict(wrapped, rows, tokenizer, 24), last)
    np.testing.assert_allclose(predict(wrapped, rows, tokenizer, 1), last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", TRAINABLE)
def test_what_trains_passes_the_rehearsal(method: str, tiny_bert: Path, load_tiny: Any) -> None:
    """Those too that compute on weights, which there are none of yet."""
    _, bare = load_tiny(tiny_bert, meta=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rehearse(bare, arm(method), head_policy="probe-then-train", max_length=32)


@pytest.mark.parametrize("method", sorted(catalogue.UNFIT))
def test_a_method_for_other_tasks_is_refused_with_a_cure(method: str) -> None:
    with pytest.raises(UserError) as caught:
        arm(method)
    assert method in str(caught.value)
    assert caught.value.cure


@pytest.mark.parametrize("method", sorted(REFUSED_BY_BERT))
def test_a_method_for_other_models_is_refused_before_training(
    method: str, tiny_bert: Path, load_tiny: Any
) -> None:
    _, bare = load_tiny(tiny_bert, meta=True)
    with pytest.raises(UserError) as caught:
        rehearse(bare, arm(method), head_policy="probe-then-train", max_length=32)
    assert caught.value.cure


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("method", [*COMPARED, *sorted(REFUSED_BY_BERT)])
def test_the_compared_methods_on_decoders(
    method: str, family: str, request: pytest.FixtureRequest, load_tiny: Any, make_rows: Rows
) -> None:
    folder = request.getfixturevalue(family)
    _, bare = load_tiny(folder, meta=True)
    if (method, family) in REFUSED:
        with pytest.raises(UserError) as caught:
            rehearse(bare, arm(method), head_policy="probe-then-train", max_length=32)
        assert caught.value.cure
        return
    rehearse(bare, arm(method), head_policy="probe-then-train", max_length=32)
    tokenizer, model = load_tiny(folder)
    rows = encode(tokenizer, make_rows(24), max_length=32)
    before = predict(model, rows, tokenizer, 24)
    wrapped = attach(model, method)
    first = predict(wrapped, rows, tokenizer, 24)
    same = np.abs(first - before).max() <= 1e-5 * np.abs(before).max()
    assert same == (method not in catalogue.MOVED_AT_START)
    trains = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    old = {name: p.detach().clone() for name, p in wrapped.named_parameters()}
    assert all(math.isfinite(loss) for loss in train(wrapped, method, tokenizer, rows))
    moved = {name for name, p in wrapped.named_parameters() if not torch.equal(p, old[name])}
    assert moved <= trains
    assert len({"score" in name.split(".") for name in moved}) == 2, "the head and more"
    last = predict(wrapped, rows, tokenizer, 24)
    np.testing.assert_allclose(predict(wrapped, rows, tokenizer, 1), last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "family", "length", "match"),
    [
        ("olora", "tiny_gpt2", 32, "cannot start from layers of GPT-2's kind"),
        ("bitfit", "tiny_llama", 32, "LlamaModel has no bias terms"),
        ("shadow", "tiny_bert", 32, "peft refuses this config"),
        ("prompt_tuning", "tiny_bert", 50, "Set model.max_length to 44 or less"),
        ("lily", "tiny_bert", 32, "depend on the other rows"),
        ("adamss", "tiny_bert", 32, None),
        ("pissa", "tiny_gpt2", 32, None),
        ("prefix_tuning", "tiny_llama", 44, None),
    ],
)
def test_a_plan_refuses_what_would_fail_in_the_run(
    method: str,
    family: str,
    length: int,
    match: str | None,
    csv_folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    spec = MeasureSpec.model_validate(
        {
            "data": {"source": str(csv_folder)},
            "model": {"base": str(request.getfixturevalue(family)), "max_length": length},
            "adapters": [{"method": "full"}, {"method": method, **FIELDS.get(method, {})}],
            "seeds": [0],
        }
    )
    if match is None:
        assert len(plan(spec, Path()).runs) == 2
        return
    with pytest.raises(UserError, match=match):
        plan(spec, Path())


@pytest.mark.parametrize("method", ["trainable_tokens", "bitfit"])
def test_methods_without_a_place_for_the_head_leave_it_frozen_under_paper(method: str, start: Any) -> None:
    """BitFit trains the head's bias, as that of every layer."""
    _, model, _ = start()
    wanted = {"bias"} if method == "bitfit" else set()
    assert set(head_of(attach(model, method, "paper"))) == wanted


def test_a_method_that_finds_nothing_to_train_is_refused(tiny_gpt2: Path, load_tiny: Any) -> None:
    """osf of peft passes over GPT-2's layers without a word."""
    _, bare = load_tiny(tiny_gpt2, meta=True)
    with pytest.raises(UserError, match=r"adapter 'osf': it trains nothing in this model beside its head"):
        rehearse(bare, arm("osf"), head_policy="probe-then-train", max_length=32)


@pytest.mark.parametrize(
    ("method", "missing"),
    [("trainable_tokens", "token_indices"), ("adaption_prompt", "adapter_len")],
)
def test_a_field_that_has_no_default_is_asked_for(method: str, missing: str) -> None:
    with pytest.raises(UserError, match=rf"'{method}' needs {missing}.*Set {missing}"):
        adapters.resolve(AdapterSpec(method=method), {}, where="adapters.0")


def test_every_method_is_described() -> None:
    rows = dict(listing.rows_of("adapters"))
    assert sorted(rows) == adapters.methods()
    assert rows.keys() == listing.ADAPTERS.keys(), "a method that peft brings needs a line"
    assert all(text and "\n" not in text for text in rows.values())
    marked = {name for name, text in rows.items() if "Not supported" in text}
    assert marked == set(catalogue.UNFIT)
    assert all("Does not start" in rows[name] for name in catalogue.MOVED_AT_START)

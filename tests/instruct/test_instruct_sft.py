"""The loss is that of the response tokens alone: closed forms by hand, and what training does with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.instruct.render import IGNORED, Rendered, Renderer
from foretaste.instruct.request import Request
from foretaste.instruct.sft import ResponseCollator, fine_tune, held_out_loss, response_loss
from foretaste.models import adapters, causal, load
from foretaste.spec import AdapterSpec, ModelSpec, TrainingSpec
from foretaste.training.trainer import Diverged

KINDS = ("llama", "gpt2")
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "r": 4},
    "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "prefix_tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3},
}


@pytest.fixture(scope="module")
def arm(tiny_chat: Callable[[str], Path]) -> Callable[..., Any]:
    """`arm("llama", "lora", double=False)`: a model with its adapter, whose weights are none of its start."""

    def make(kind: str, name: str, *, double: bool = False) -> Any:
        location = load.locate(ModelSpec(base=str(tiny_chat(kind))), Path())
        model = causal.load_causal(location, dtype=torch.float32, dropout=False)
        spec = AdapterSpec.model_validate(ARMS[name])
        adapter = adapters.resolve(spec, {}, where="adapter")
        wrapped = causal.attach(model, adapter, seed=1, total_steps=10).model
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return wrapped.double().eval() if double else wrapped.eval()

    return make


@pytest.fixture(scope="module")
def rows(tiny_chat: Callable[[str], Path], instructions: Any) -> list[Rendered]:
    """Twelve rows of different lengths; the tokenizers of both models are one."""
    location = load.locate(ModelSpec(base=str(tiny_chat("llama"))), Path())
    renderer = Renderer(load.load_tokenizer(location), None, None, 96)
    made = renderer.encode_rows(Request(**row) for row in instructions(12)).rows
    assert len({len(row.input_ids) for row in made}) > 3
    return made


def logits_of(model: Any, row: Rendered) -> torch.Tensor:
    """Logits of the row's own positions, of shape (tokens, vocabulary), from the row alone."""
    whole = model(input_ids=torch.tensor([row.input_ids]), attention_mask=torch.ones(1, len(row.input_ids)))
    return whole.logits[0, -len(row.input_ids) :]  # type: ignore[no-any-return]


def by_hand(model: Any, row: Rendered) -> torch.Tensor:
    """Sum over the response of -log softmax at the position before each of its tokens."""
    logs = torch.log_softmax(logits_of(model, row), dim=-1)
    start = len(row.input_ids) - row.response_tokens
    total = torch.zeros((), dtype=logs.dtype)
    for place in range(start, len(row.input_ids)):
        total = total - logs[place - 1, row.input_ids[place]]
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARMS)
def test_the_loss_is_the_cross_entropy_of_the_response(kind: str, name: str, arm: Any, rows: Any) -> None:
    """Of a padded batch, against each row alone and position for position, in float64."""
    model = arm(kind, name, double=True)
    batch = ResponseCollator(pad=0)(rows[:5])
    assert (batch["attention_mask"] == 0).any()
    got = response_loss(model, batch)
    wanted = sum(by_hand(model, row) for row in rows[:5])
    assert got.item() == pytest.approx(wanted.item(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full", "lora"])
def test_gradients_are_those_of_the_response_alone(kind: str, name: str, arm: Any, rows: Any) -> None:
    model = arm(kind, name, double=True)
    response_loss(model, ResponseCollator(pad=0)(rows[:4])).backward()
    got = {key: p.grad.clone() for key, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    sum(by_hand(model, row) for row in rows[:4]).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = float(parameter.grad.abs().max())
            assert torch.allclose(got[key], parameter.grad, rtol=0, atol=1e-9 * max(scale, 1.0)), key


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_prompt_tokens_have_no_part(kind: str, arm: Any, rows: Any) -> None:
    """The derivative of the loss by the logits at prompt positions is exactly zero, elsewhere it is not."""
    model, row = arm(kind, "full", double=True), rows[1]
    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), seen.append(out))[1])
    response_loss(model, ResponseCollator(pad=0)([row])).backward()
    handle.remove()
    # Logits are only made where a response token follows: the last prompt token is the first such place.
    assert seen[0].shape[1] == row.response_tokens
    assert (seen[0].grad.abs().sum(-1) > 0).all()
    logits = logits_of(model, row)
    logits.retain_grad()
    labels = torch.tensor(row.labels)
    torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED).backward()
    start = len(row.input_ids) - row.response_tokens
    touched = logits.grad.abs().sum(-1) > 0
    assert not touched[: start - 1].any()
    assert touched[start - 1 : -1].all()


def test_the_collator_pads_on_the_right_and_labels_nothing_there(rows: Any) -> None:
    short, long = sorted(rows[:2], key=lambda row: len(row.input_ids))
    batch = ResponseCollator(pad=7)([short, long])
    n = len(short.input_ids)
    assert batch["input_ids"][0].tolist() == short.input_ids + [7] * (len(long.input_ids) - n)
    assert batch["labels"][0].tolist() == short.labels + [IGNORED] * (len(long.input_ids) - n)
    assert batch["attention_mask"].sum(1).tolist() == [n, len(long.input_ids)]
    assert ResponseCollator(pad=7, pad_to=90)([short])["input_ids"].shape == (1, 90)


# --- training ------------------------------------------------------------------------------------


def spec(**changes: Any) -> TrainingSpec:
    base = {"learning_rate": 0.05, "batch_size": 4, "steps": 3, "optimizer": "sgd", "max_grad_norm": None}
    return TrainingSpec.model_validate(base | {"schedule": "constant"} | changes)


def trained(model: Any, rows: Any, spec: TrainingSpec, **options: Any) -> Any:
    lengths = [len(row.input_ids) for row in rows]
    return fine_tune(model, rows, lengths, 0, spec, max_length=96, seed=3, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_step_descends_the_mean_over_all_response_tokens(kind: str, name: str, arm: Any, rows: Any) -> None:
    """One SGD step on one batch: weights minus the rate times the gradient that is computed by hand."""
    model = arm(kind, name)
    oracle = copy.deepcopy(model)
    chosen = rows[:4]
    got = trained(model, chosen, spec(steps=1))
    tokens = sum(row.response_tokens for row in chosen)
    loss = sum(by_hand(oracle, row) for row in chosen) / tokens
    loss.backward()
    assert got.loss == [pytest.approx(loss.item(), rel=1e-5)]
    assert (got.steps, got.rows) == (1, 4)
    new = dict(model.named_parameters())
    for key, old in oracle.named_parameters():
        step = torch.zeros_like(old) if old.grad is None else 0.05 * old.grad
        assert torch.allclose(new[key], old - step, rtol=1e-4, atol=2e-6), key


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_batches_are_one_large_batch(kind: str, arm: Any, rows: Any) -> None:
    """Four micro-batches of two rows with different numbers of response tokens are one batch of eight."""
    eight = sorted(rows[:8], key=lambda row: row.response_tokens)
    one, four = arm(kind, "full"), arm(kind, "full")
    single = trained(one, eight, spec(batch_size=8, steps=2, grouping="none"))
    several = trained(four, eight, spec(batch_size=2, gradient_accumulation=4, steps=2, grouping="none"))
    assert several.loss == pytest.approx(single.loss, rel=1e-5)
    for (key, a), (_, b) in zip(one.named_parameters(), four.named_parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), key


def test_training_twice_is_the_same_and_padding_changes_nothing(arm: Any, rows: Any) -> None:
    losses = []
    for changes in ({}, {}, {"padding": "max_length"}):
        losses.append(trained(arm("llama", "lora"), rows, spec(**changes)).loss)
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_adalora_keeps_its_factors_orthogonal(tiny_chat: Callable[[str], Path], rows: Any) -> None:
    """Zhang et al. 2023, Eq. 4: the mean of |A A' - I| and |B' B - I| is part of what is trained on."""
    location = load.locate(ModelSpec(base=str(tiny_chat("llama"))), Path())
    model = causal.load_causal(location, dtype=torch.float32, dropout=False)
    adapter = adapters.resolve(AdapterSpec(method="adalora"), {}, where="adapter")
    wrapped = causal.attach(model, adapter, seed=1, total_steps=20).model
    loss = sum(by_hand(wrapped, row).item() for row in rows[:4]) / sum(r.response_tokens for r in rows[:4])
    norms = []
    for name, p in wrapped.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = p @ p.T if ".lora_A." in name else p.T @ p
            norms.append((gram - torch.eye(len(gram))).norm().item())
    got = trained(wrapped, rows[:4], spec(steps=1))
    assert got.loss == [pytest.approx(loss + 0.5 * np.mean(norms), rel=1e-4)]
    assert np.mean(norms) > 0.1


def test_steps_are_reported(arm: Any, rows: Any) -> None:
    heard: list[tuple[int, int]] = []
    done = trained(arm("gpt2", "lora"), rows, spec(), on_step=lambda *at: heard.append(at))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert done.tokens - done.padding == sum(len(row.input_ids) for row in rows)


def test_a_loss_that_is_not_finite_ends_the_run(arm: Any, rows: Any) -> None:
    with pytest.raises(Diverged):
        trained(arm("llama", "full"), rows, spec(learning_rate=1e30))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_loss(kind: str, arm: Any, rows: Any) -> None:
    model = arm(kind, "lora", double=True)
    tokens = sum(row.response_tokens for row in rows)
    wanted = sum(by_hand(model, row).item() for row in rows) / tokens
    for size in (1, 5, 50):
        got = held_out_loss(model, rows, 0, size)
        assert got.mean == pytest.approx(wanted, rel=1e-9)
        assert got.tokens == tokens
    assert not model.training
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(np.nan)
    with pytest.raises(Diverged, match="held-out"):
        held_out_loss(model, rows, 0, 4)

"""Fine-tuning arms: against loops by hand, and what choosing on validation rows may and may not see."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tuning_subjects import PAD, arm, classifier, prepared, rows, with_labels

from foretaste.errors import UserError
from foretaste.fewshot import tune as module
from foretaste.fewshot.adapt import attach, load_state, lora_targets, trained_state
from foretaste.fewshot.progress import PROGRESS
from foretaste.fewshot.scores import logits_of
from foretaste.fewshot.tune import AllDiverged, search, tune
from foretaste.models.intrinsic import IntrinsicDimension
from foretaste.models.prompt_encode import EncodedPrompts, collate
from foretaste.training.order import step_batches

MEMORY = 2**30


def searched(model: Any, given: Any, train: EncodedPrompts, dev: EncodedPrompts, **options: Any) -> Any:
    start = options.pop("start", None) or trained_state(model)
    options = {"metric": "accuracy", "seed": 7} | options
    return search(model, start, given, train, dev, PAD, **options)


def by_hand(given: Any, train: EncodedPrompts, *, step: Any, seed: int = 7) -> Any:
    """The model after all steps of the arm's first point, in float64, by a loop over rows."""
    model = attach(classifier("roberta"), given, seed=0)
    rate, size, steps = given.learning_rates[0], given.batch_sizes[0], given.steps
    weights = [p for p in model.parameters() if p.requires_grad]
    batches = step_batches(train.lengths, size, steps, seed=seed, by_length=False)
    for number, chosen in enumerate(batches):
        total = [torch.zeros_like(p) for p in weights]
        for row in chosen:
            loss = model(**collate(train, [row], PAD, labels=True)).loss
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            for sum_, g in zip(total, grads, strict=True):
                if g is not None:
                    sum_ += g / len(chosen)
        norm = torch.sqrt(sum((g**2).sum() for g in total))
        scale = min(1.0, 1.0 / (float(norm) + 1e-6))  # torch's rule of clipping at norm 1
        with torch.no_grad():
            for p, g in zip(weights, total, strict=True):
                step(p, scale * g, rate * (1 - number / steps))
    return model


def sgd(p: torch.Tensor, g: torch.Tensor, rate: float) -> None:
    p -= rate * g


def sign(p: torch.Tensor, g: torch.Tensor, rate: float) -> None:
    p -= rate * g.sign()


@pytest.mark.parametrize("adapter", ["full", "bitfit", "lora"])
def test_sgd_is_a_loop_by_hand(adapter: str) -> None:
    """Twelve steps with a short last batch, linear decay and clipping; the gradients' norms are above 1."""
    train, dev = rows(14, seed=1), rows(8, seed=2)
    given = arm(adapter=adapter, check_every=12)
    model = attach(classifier("roberta"), given, seed=0)
    found = searched(model, given, train, dev)
    expected = by_hand(given, train, step=sgd)
    for name, value in trained_state(expected).items():
        # 1e-12: rounding of twelve steps; the loop adds rows up one by one.
        assert torch.allclose(found.state[name], value, rtol=0, atol=1e-11), name
    assert found.grid[0].steps == 12


def test_sign_descent_is_a_loop_by_hand() -> None:
    train, dev = rows(14, seed=1), rows(8, seed=2)
    given = arm(optimiser="signgd", learning_rates=[1e-3], steps=4, check_every=4)
    start = attach(classifier("roberta"), given, seed=0)
    begun = trained_state(start)
    found = searched(start, given, train, dev)
    expected = trained_state(by_hand(given, train, step=sign))
    moved, other = 0, 0
    for name, value in expected.items():
        # An entry whose gradient is zero but for rounding goes where the rounding says (key biases).
        close = torch.isclose(found.state[name], value, rtol=0, atol=1e-12)
        other += int((~close).sum()) if "key.bias" not in name else 0
        moved += int((value != begun[name]).sum())
    assert moved > 3000
    assert other == 0


def test_adam_takes_the_first_step_of_adam_without_decay() -> None:
    train, dev = rows(4, seed=1), rows(8, seed=2)
    given = arm(optimiser="adam", learning_rates=[1e-3], steps=1, check_every=1, max_grad_norm=None)
    model = attach(classifier("roberta"), given, seed=0)
    start = trained_state(model)
    loss = model(**collate(train, range(4), PAD, labels=True)).loss
    named = [(n, p) for n, p in model.named_parameters()]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    found = searched(model, given, train, dev, start=start)
    for (name, _), g in zip(named, grads, strict=True):
        g = torch.zeros_like(start[name]) if g is None else g
        expected = start[name] - 1e-3 * g / (g.abs() + 1e-8)
        large = g.abs() > 1e-10  # below, rounding decides against epsilon
        assert torch.allclose(found.state[name][large], expected[large], atol=1e-9), name


def test_the_best_checkpoint_of_the_best_point_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are given; the choice follows them: first among equals, within and across points."""
    given = arm(learning_rates=[1e-3, 2e-3], batch_sizes=[4, 8])
    script = iter([[2, 3, 3], [1, 5, 4], [5, 5, 5], [0, 1, 4]])  # correct of 8, three looks a point
    looks: list[dict[str, torch.Tensor]] = []
    wanted: list[int] = []
    dev = rows(8, seed=2)

    def logits(model: Any, encoded: EncodedPrompts, pad: int) -> Any:
        assert encoded is dev
        if not wanted:
            wanted.extend(next(script))
        looks.append(trained_state(model))
        right = wanted.pop(0)
        predicted = [y if i < right else 1 - y for i, y in enumerate(dev.labels)]
        return np.eye(2)[predicted]

    monkeypatch.setattr(module, "logits_of", logits)
    model = attach(classifier("roberta"), given, seed=0)
    found = searched(model, given, rows(16, seed=1), dev)
    assert [point.dev_score for point in found.grid] == [3 / 8, 5 / 8, 5 / 8, 4 / 8]
    assert [point.steps for point in found.grid] == [8, 8, 4, 12]
    assert [point.settings for point in found.grid] == [
        {"learning_rate": rate, "batch_size": size} for rate in (1e-3, 2e-3) for size in (4, 8)
    ]
    assert (found.selected, found.tied, found.dev.correct) == (1, 2, 5)
    assert all(torch.equal(found.state[name], value) for name, value in looks[4].items())


def test_points_are_independent_of_each_other() -> None:
    train, dev = rows(16, seed=1), rows(8, seed=2)
    whole = arm(learning_rates=[0.02, 0.05], batch_sizes=[2, 4])
    model = attach(classifier("roberta"), whole, seed=0)
    start = trained_state(model)
    together = searched(model, whole, train, dev, start=start)
    for number in {together.selected, 3}:
        rate, size = [(0.02, 2), (0.02, 4), (0.05, 2), (0.05, 4)][number]
        alone = searched(model, arm(learning_rates=[rate], batch_sizes=[size]), train, dev, start=start)
        mine, theirs = together.grid[number], alone.grid[0]
        assert mine.settings == theirs.settings
        assert (mine.dev_score, mine.steps) == (theirs.dev_score, theirs.steps)
        if number == together.selected:
            assert all(torch.equal(together.state[n], v) for n, v in alone.state.items())


def test_the_last_step_is_looked_at_too_and_progress_covers_the_grid() -> None:
    seen: list[tuple[int, int]] = []
    given = arm(steps=7, check_every=5, batch_sizes=[2, 4], learning_rates=[1e-6])
    looks: list[int] = []
    model = attach(classifier("roberta"), given, seed=0)
    model.register_forward_pre_hook(lambda m, _: looks.append(len(seen)) if not m.training else None)
    searched(model, given, rows(8), rows(8, seed=2), on_step=lambda *step: seen.append(step))
    assert seen == [(step, 14) for step in range(1, 15)]
    assert looks == [4, 6, 11, 13]


def test_other_test_labels_change_the_test_score_and_nothing_else() -> None:
    given = arm(learning_rates=[0.02, 0.05], criteria=True)
    plain, turned = prepared(given), prepared(given)
    turned.test = with_labels(plain.test, [1 - y for y in plain.test.labels])
    one, other = tune(plain, memory=MEMORY), tune(turned, memory=MEMORY)
    assert other.predictions == one.predictions
    assert (other.dev, other.selected) == (one.dev, one.selected)
    hidden = {"test_score": None, "seconds": None}
    grids = [[point.model_copy(update=hidden) for point in run.grid] for run in (one, other)]
    assert grids[0] == grids[1]
    assert one.test.value is not None
    assert other.test.value == pytest.approx(1 - one.test.value)
    tested = [number for number, point in enumerate(one.grid) if point.test_score is not None]
    assert tested == [one.selected]
    assert one.criteria is not None
    assert other.criteria is not None
    for name in ("kernel_distance", "alignment", "scaled_distance", "kernel_rows"):
        assert getattr(one.criteria, name) == getattr(other.criteria, name)


def test_test_rows_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(arm(learning_rates=[0.02, 0.05]))
    seen: list[Any] = []
    real = module.logits_of
    monkeypatch.setattr(module, "logits_of", lambda m, e, p: (seen.append(e), real(m, e, p))[1])
    tune(ready, memory=MEMORY)
    assert seen.count(ready.test) == 1
    assert seen[-1] is ready.test
    assert not any(e is ready.train for e in seen)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("roberta", {"adapter": "bitfit", "learning_rates": [0.5]}),
        ("roberta", {"adapter": "lora", "optimiser": "adam", "learning_rates": [0.01]}),
        ("roberta", {"adapter": "intrinsic", "dimension": 100, "learning_rates": [0.05]}),
        ("roberta", {"output": "standard"}),
        (
            "roberta",
            {"output": "standard", "adapter": "lora", "optimiser": "signgd", "learning_rates": [1e-3]},
        ),
        ("roberta", {"output": "standard", "adapter": "bitfit"}),
        ("gpt2", {"adapter": "lora", "learning_rates": [0.1]}),
        ("gpt2", {"output": "standard", "adapter": "intrinsic", "dimension": 50}),
        ("llama", {}),
        ("llama", {"optimiser": "adam", "learning_rates": [3e-3]}),
    ],
)
def test_every_arm_learns_its_training_rows(family: str, fields: dict[str, Any]) -> None:
    ready = prepared(arm(steps=40, check_every=10, **fields), family=family, classes=2)
    given = ready.run.arm
    model = attach(ready.model(), given, seed=13)  # type: ignore[arg-type]
    start = trained_state(model)
    batch = collate(ready.train, range(16), PAD, labels=True)
    before = model(**batch).loss.item()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    found = searched(model, given, ready.train, ready.train, start=start)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert model(**batch).loss.item() < before - 1e-3
    load_state(model, found.state)
    right = logits_of(model, ready.train, PAD).argmax(1) == ready.train.labels
    assert float(right.mean()) == found.dev.value


def test_what_each_adapter_trains() -> None:
    def trained(family: str, **fields: Any) -> tuple[Any, set[str]]:
        given = arm(**fields)
        model = attach(classifier(family, standard=given.output == "standard"), given, seed=0)
        return model, {name for name, p in model.named_parameters() if p.requires_grad}

    model, names = trained("roberta")
    assert names == {name for name, _ in model.named_parameters()}
    model, names = trained("roberta", adapter="bitfit")
    assert names == {name for name, _ in model.named_parameters() if name.endswith("bias")}
    _, names = trained("roberta", adapter="bitfit", output="standard")
    assert {n for n in names if not n.endswith("bias")} == {"classifier.weight"}
    model, names = trained("roberta", adapter="lora")
    assert isinstance(model, peft.PeftModel)
    assert all("lora_" in name for name in names)
    inside = lora_targets(classifier("roberta"))
    assert len(inside) == 12
    assert not any("lm_head" in name for name in inside)
    _, names = trained("roberta", adapter="lora", output="standard")
    assert {n.rpartition("model.")[2] for n in names if "lora_" not in n} == {
        "classifier.weight",
        "classifier.bias",
    }
    model, names = trained("gpt2", adapter="intrinsic", dimension=9)
    assert isinstance(model, IntrinsicDimension)
    assert names == {"z"}
    with pytest.raises(UserError, match="no bias terms"):
        trained("llama", adapter="bitfit")
    with pytest.raises(UserError, match="larger than layer"):
        trained("roberta", adapter="lora", rank=17)
    with pytest.raises(UserError, match="whole number from 1"):
        trained("roberta", adapter="intrinsic", dimension=10**7)


def test_lora_starts_as_the_base_model_and_depends_on_the_seed() -> None:
    given, data = arm(adapter="lora"), rows(4)
    base = logits_of(classifier("roberta"), data, PAD)
    states = []
    for seed in (1, 1, 2):
        model = attach(classifier("roberta"), given, seed=seed)
        assert np.allclose(logits_of(model, data, PAD), base, atol=1e-13)
        states.append(trained_state(model))
    same, other = ([torch.equal(states[0][n], s[n]) for n in s if "lora_A" in n] for s in states[1:])
    assert all(same)
    assert not any(other)


def test_a_diverged_point_is_shown_and_never_chosen() -> None:
    ready = prepared(arm(learning_rates=[1e200, 0.05], max_grad_norm=None))
    found = tune(ready, memory=MEMORY)
    assert found.grid[0].dev_score is None
    assert found.grid[0].warning is not None
    assert "diverged" in found.grid[0].warning
    assert (found.selected, found.grid[1].warning) == (1, None)
    alone = tune(prepared(arm(learning_rates=[0.05], max_grad_norm=None)), memory=MEMORY)
    assert alone.predictions == found.predictions  # nothing of the diverged model is left


def test_when_all_diverge_the_grid_comes_with_the_error() -> None:
    with pytest.raises(AllDiverged, match="all 2 points") as caught:
        tune(prepared(arm(learning_rates=[1e200], batch_sizes=[2, 4], max_grad_norm=None)), memory=MEMORY)
    assert [point.dev_score for point in caught.value.grid] == [None, None]


class Stop(Exception):
    pass


def stop_at(at: int) -> Any:
    def on_step(step: int, _: int) -> None:
        if step == at:
            raise Stop

    return on_step


@pytest.fixture(scope="module")
def uninterrupted() -> Any:
    return tune(prepared(arm(learning_rates=[0.02, 0.05], batch_sizes=[2, 4])), memory=MEMORY)


@pytest.mark.parametrize("at", [13, 30])
def test_a_run_that_was_stopped_goes_on_behind_its_finished_points(
    tmp_path: Path, uninterrupted: Any, at: int
) -> None:
    given = arm(learning_rates=[0.02, 0.05], batch_sizes=[2, 4])
    with pytest.raises(Stop):
        tune(prepared(given), memory=MEMORY, folder=tmp_path, on_step=stop_at(at))
    steps: list[int] = []
    again = tune(prepared(given), memory=MEMORY, folder=tmp_path, on_step=lambda s, _: steps.append(s))
    assert steps[0] == (at - 1) // 12 * 12 + 1
    assert again.predictions == uninterrupted.predictions
    for name in ("dev", "test", "selected"):
        assert getattr(again, name) == getattr(uninterrupted, name)
    assert [p.dev_score for p in again.grid] == [p.dev_score for p in uninterrupted.grid]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    finished: list[int] = []
    third = tune(prepared(given), memory=MEMORY, folder=tmp_path, on_step=lambda s, _: finished.append(s))
    assert finished == []
    assert third.predictions == uninterrupted.predictions


def test_damaged_progress_is_done_again_and_said(tmp_path: Path) -> None:
    given = arm(steps=4)
    first = tune(prepared(given), memory=MEMORY, folder=tmp_path)
    kept = next(tmp_path.glob("*.safetensors"))
    kept.write_bytes(b"damaged")
    again = tune(prepared(given), memory=MEMORY, folder=tmp_path)
    assert again.predictions == first.predictions
    assert "done again" in again.notes[0]
    (tmp_path / PROGRESS).write_text("{}")
    assert "done again" in tune(prepared(given), memory=MEMORY, folder=tmp_path).notes[0]
    other = arm(steps=4, learning_rates=[0.01])
    assert "done again" in tune(prepared(other), memory=MEMORY, folder=tmp_path).notes[0]


def test_standard_output_starts_from_the_probe() -> None:
    ready = prepared(arm(output="standard", learning_rates=[1e-9], steps=1, check_every=1))
    found = tune(ready, memory=MEMORY)
    assert found.facts["probe_accuracy"] == ready.probe_accuracy
    expected = logits_of(ready.model(), ready.test, PAD).argmax(1)
    assert found.predictions == [int(label) for label in expected]


def test_the_metric_decides_the_choice() -> None:
    ready = prepared(arm(), metric="f1")
    found = tune(ready, memory=MEMORY)
    hits = sum(a == b == 1 for a, b in zip(found.predictions, ready.test.labels, strict=True))
    expected = 2 * hits / (sum(found.predictions) + sum(ready.test.labels))
    assert found.test.metric == "f1"
    assert found.test.value == pytest.approx(expected)
    assert found.trainable_parameters == sum(p.numel() for p in ready.model().parameters())


def test_equal_runs_are_equal_and_the_split_decides_the_order() -> None:
    runs = [tune(prepared(arm(), split=split), memory=MEMORY) for split in (13, 13, 21)]
    plain = [dataclasses.replace(run, grid=[]) for run in runs]
    assert plain[0] == plain[1]
    ready = prepared(arm())
    states = []
    for seed in (13, 21):
        model = attach(ready.model(), ready.run.arm, seed=13)  # type: ignore[arg-type]
        states.append(searched(model, ready.run.arm, ready.train, ready.dev, seed=seed).state)
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])

"""Criteria of kernel behaviour: against Jacobians by hand, and where a model is its own linearisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tuning_subjects import PAD, arm, classifier, prepared, rows

from foretaste.fewshot import criteria
from foretaste.fewshot.adapt import attach, load_state, trained_state
from foretaste.fewshot.criteria import Behaviour, linearised_logits, measure
from foretaste.fewshot.scores import logits_of
from foretaste.fewshot.tune import tune
from foretaste.kernels import Inputs, linearised, logits
from foretaste.models.prompt_encode import EncodedPrompts, collate
from foretaste.theory.criteria import fixed_features

MEMORY = 2**30


def moved(start: dict[str, torch.Tensor], size: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: value + size * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in start.items()
    }


def measured(
    model: Any, start: Any, tuned: Any, train: EncodedPrompts, test: EncodedPrompts, **options: Any
) -> Behaviour:
    load_state(model, tuned)
    arrived = logits_of(model, test, PAD)
    options = {"optimiser": "sgd", "metric": "accuracy", "memory": MEMORY} | options
    return measure(model, start, tuned, train, test, PAD, fine_tuned=arrived, **options)


def jacobian(model: Any, encoded: EncodedPrompts, *, margin: bool) -> np.ndarray:
    """Gradients of the outputs of each row by automatic differentiation: (rows * outputs, parameters)."""
    weights = [p for p in model.parameters() if p.requires_grad]
    found = []
    for row in range(len(encoded)):
        values = model(**collate(encoded, [row], PAD)).logits[0]
        outputs = [values[1] - values[0]] if margin else list(values)
        for output in outputs:
            grads = torch.autograd.grad(output, weights, retain_graph=True, allow_unused=True)
            parts = zip(weights, grads, strict=True)
            flat = [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in parts]
            found.append(torch.cat(flat).numpy())
    return np.stack(found)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("roberta", {}),
        ("gpt2", {}),
        ("llama", {}),
        ("roberta", {"adapter": "lora"}),
        ("roberta", {"adapter": "bitfit"}),
        ("gpt2", {"adapter": "intrinsic", "dimension": 20}),
        ("roberta", {"output": "standard"}),
    ],
)
def test_the_linearised_logits_are_those_of_backward_differentiation(
    family: str, fields: dict[str, Any]
) -> None:
    given = arm(**fields)
    model = attach(classifier(family, 3, standard=given.output == "standard"), given, seed=0)
    encoded = rows(7, classes=3, kind="masked" if family == "roberta" else "causal")
    load_state(model, moved(trained_state(model), 0.05))  # off B = 0 and the head of zeros
    start = trained_state(model)
    change = {name: value - start[name] for name, value in moved(start, 0.05).items()}
    first, expanded = linearised_logits(model, start, change, encoded, PAD, batch_size=3)
    assert np.allclose(first, logits_of(model, encoded, PAD), rtol=0, atol=1e-12)
    inputs = Inputs(encoded.lengths, lambda some: collate(encoded, some, PAD))
    expected = linearised(model, change, logits, inputs, batch=1)
    # Llama's norms and rotations round to float32 on the way (2^-24 is 6e-8).
    scale = np.abs(expected).max()
    assert np.allclose(expanded, expected, rtol=0, atol=scale * (1e-5 if family == "llama" else 1e-11))


def test_a_model_without_forward_derivatives_is_differentiated_backwards() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return 2 * g

    class Twice(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **batch: torch.Tensor) -> Any:
            found = self.inner(**batch)
            found.logits = OneWay.apply(found.logits)
            return found

    encoded = rows(4)
    inner = classifier("roberta")
    start = trained_state(inner)
    change = {name: value - start[name] for name, value in moved(start, 0.01).items()}
    plain = linearised_logits(inner, start, change, encoded, PAD)
    named = [{f"inner.{name}": value for name, value in part.items()} for part in (start, change)]
    doubled = linearised_logits(Twice(inner), named[0], named[1], encoded, PAD)
    assert np.allclose(doubled, 2 * np.stack(plain), rtol=1e-10)


def head_alone() -> Any:
    """A model that is linear in what is trained: the standard head on a frozen body."""
    model = classifier("roberta", standard=True)
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)  # type: ignore[union-attr]
    return model


def test_a_linear_model_is_its_own_linearisation() -> None:
    model, train, test = head_alone(), rows(8), rows(20, seed=2)
    start = trained_state(model)
    # A head that tells the rows apart better than the start's zeros do (which say class 0).
    with torch.no_grad():
        x = model.features(**collate(test, range(20), PAD))
        y = 2.0 * torch.tensor(test.labels, dtype=torch.float64) - 1
        weight = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    tuned = {"classifier.weight": torch.stack([-weight, weight]), "classifier.bias": torch.zeros(2).double()}
    change = {name: tuned[name] - start[name] for name in start}
    _, expanded = linearised_logits(model, start, change, test, PAD)
    load_state(model, tuned)
    assert np.allclose(expanded, logits_of(model, test, PAD), rtol=0, atol=1e-12)
    found = measured(model, start, tuned, train, test)
    assert found.fine_tuned.value is not None
    assert found.pretrained.value is not None
    assert found.fine_tuned.value > found.pretrained.value
    assert found.linearised == found.fine_tuned
    assert found.share == 1.0
    # Its gradients are the features, which do not move.
    for part in (found.train, found.test):
        assert part is not None
        assert part.paper_distance == pytest.approx(0, abs=1e-12)
        assert part.alignment == pytest.approx(1, abs=1e-12)
    assert found.missing == {}


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "signgd"])
def test_nothing_moves_when_nothing_was_trained(optimiser: Any) -> None:
    model, train, test = classifier("roberta"), rows(6), rows(9, seed=2)
    start = trained_state(model)
    found = measured(model, start, trained_state(model), train, test, optimiser=optimiser)
    assert found.kind == ("sgd" if optimiser == "sgd" else "sign")
    for part in (found.train, found.test):
        assert part is not None
        assert part.paper_distance == 0
        assert part.scaled_distance == pytest.approx(0, abs=1e-12)
        assert part.best_scale == pytest.approx(1)
    assert found.linearised == found.pretrained == found.fine_tuned
    assert found.share is None
    assert "gained nothing" in found.missing["share of the gain that the linearised model recovers"]
    assert found.chi_train.before == found.chi_train.after
    assert found.chi_test.before == pytest.approx(found.chi_test.after, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_kernels_before_and_after_are_products_of_jacobians(optimiser: Any, classes: int) -> None:
    model = classifier("roberta", classes)
    train, test = rows(6, classes=classes), rows(9, classes=classes, seed=2)
    start = trained_state(model)
    tuned = moved(start, 0.03)
    found = measured(model, start, tuned, train, test, optimiser=optimiser)
    assert found.rows == list(range(9))
    parts = []
    for state in (start, tuned):
        load_state(model, state)
        left, right = (jacobian(model, rows_, margin=classes == 2) for rows_ in (train, test))
        if optimiser == "adam":  # as in `kernels.sign`, rounding errors have no sign
            left, right = (np.sign(j) * (np.abs(j) > 1e-12) for j in (left, right))
        parts.append((left @ left.T, right @ left.T))
    for mine, before, after in zip((found.train, found.test), parts[0], parts[1], strict=True):
        expected = fixed_features(before, after)
        assert mine is not None
        if optimiser == "sgd":
            assert mine.paper_distance == pytest.approx(expected.paper_distance, rel=1e-6)
            assert mine.alignment == pytest.approx(expected.alignment, rel=1e-9)
        else:  # both drop what is zero but for rounding, each by its own measure
            assert mine.alignment == pytest.approx(expected.alignment, rel=1e-3)


def test_chi_of_two_classes_is_what_the_label_lacks() -> None:
    model, train, test = classifier("roberta"), rows(6), rows(9, seed=2)
    start = trained_state(model)
    tuned = moved(start, 0.02)
    found = measured(model, start, tuned, train, test)
    for state, attribute in ((start, "before"), (tuned, "after")):
        load_state(model, state)
        for encoded, chi in ((train, found.chi_train), (test, found.chi_test)):
            odds = torch.softmax(torch.from_numpy(logits_of(model, encoded, PAD)), 1)
            lacking = [1 - float(odds[i, y]) for i, y in enumerate(encoded.labels)]
            assert getattr(chi, attribute) == pytest.approx(np.mean(lacking), abs=1e-12)


def test_a_sample_of_the_test_rows_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "TEST_ROWS", 5)
    model, train, test = head_alone(), rows(6), rows(30, seed=2)
    start = trained_state(model)
    tuned = moved(start, 0.1)
    found, again = (measured(model, start, tuned, train, test) for _ in range(2))
    assert len(found.rows) == len(set(found.rows)) == 5
    assert found.rows == again.rows == sorted(found.rows)
    assert found.record().kernel_rows == 5
    assert found.fine_tuned.n == 30


def test_what_could_not_be_computed_has_a_reason() -> None:
    model, train, test = classifier("roberta"), rows(6), rows(9, seed=2)
    start = trained_state(model)
    found = measured(model, start, moved(start, 0.01), train, test, memory=1000)
    assert found.train is None
    assert found.test is None
    assert "memory budget" in found.missing["kernel distance"]
    kept = found.record()
    assert (kept.kernel_distance, kept.alignment, kept.kernel_rows) == (None, None, None)
    assert kept.linearised_test is not None
    assert any("no kernel distance" in note and "memory budget" in note for note in found.notes())
    broken = {name: torch.full_like(value, torch.inf) for name, value in start.items()}
    load_state(model, start)
    end = np.zeros((9, 2))
    options: Any = {"optimiser": "sgd", "metric": "accuracy", "memory": MEMORY, "fine_tuned": end}
    found = measure(model, start, broken, train, test, PAD, **options)
    assert found.linearised is None
    assert found.missing["linearised model"] == "its logits are not finite"
    assert "kernel distance" in found.missing


@pytest.mark.parametrize("fields", [{}, {"adapter": "lora"}, {"adapter": "intrinsic", "dimension": 40}])
def test_an_arm_brings_its_criteria(fields: dict[str, Any]) -> None:
    found = tune(prepared(arm(criteria=True, **fields)), memory=MEMORY)
    kept = found.criteria
    assert kept is not None
    assert kept.linearised_test is not None
    assert kept.linearised_test.n == 30
    assert kept.kernel_rows == 30
    assert kept.chi is not None
    assert 0 < kept.chi < 1
    assert found.facts["kernel_distance_train"] > 0
    assert tune(prepared(arm(**fields)), memory=MEMORY).criteria is None

"""LoRA+: B learns faster than A by the ratio, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer

import foretaste
from foretaste.errors import UserError
from foretaste.models import adapters
from foretaste.models.encode import encode
from foretaste.spec import AdapterSpec, ResolvedAdapter, TrainingSpec
from foretaste.training import trainer
from foretaste.training.lora_plus import raise_rate_of_b
from foretaste.training.trainer import fine_tune, planned_rates

Rows = Callable[..., Dataset]
Train = Callable[..., tuple[dict[str, torch.Tensor], list[dict[str, float]]]]
RATE = 1e-3


def arm(method: str = "loraplus", **fields: Any) -> ResolvedAdapter:
    return adapters.resolve(AdapterSpec.model_validate({"method": method, **fields}), {}, where="adapters.0")


@pytest.fixture
def train(tiny_bert: Path, load_tiny: Any, make_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train(arm, **training)`: the change of every parameter, and their rates at every step."""

    def run(adapter: ResolvedAdapter, **fields: Any) -> Any:
        tokenizer, model = load_tiny(tiny_bert)
        rows = encode(tokenizer, make_rows(24), max_length=32)
        wrapped, _ = adapters.attach(model, adapter, head_policy="probe-then-train", seed=0, total_steps=1)
        names = {id(p): n for n, p in wrapped.named_parameters()}
        before = {n: p.detach().clone() for n, p in wrapped.named_parameters() if p.requires_grad}
        rates: list[dict[str, float]] = []

        def look(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            groups = kwargs["optimizer"].param_groups
            rates.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})

        monkeypatch.setattr(trainer.Steps, "on_pre_optimizer_step", look, raising=False)
        spec = TrainingSpec(
            **(
                {
                    "learning_rate": RATE,
                    "steps": 1,
                    "batch_size": 8,
                    "max_grad_norm": None,
                    "optimizer": "sgd",
                }
                | fields
            )
        )
        ratio = adapters.loraplus_ratio(adapter)
        fine_tune(wrapped, rows, rows.lengths, tokenizer, spec, max_length=32, seed=0, loraplus_ratio=ratio)
        after = dict(wrapped.named_parameters())
        return {n: after[n].detach() - before[n] for n in before}, rates

    return run


def is_b(name: str) -> bool:
    return ".lora_B." in name


def test_one_step_of_sgd_moves_b_by_the_ratio(train: Train) -> None:
    """The gradients are equal, so steps are as their rates. PiSSA, because B at zero gives A no gradient."""
    plain, _ = train(arm("pissa"))
    raised, _ = train(arm("pissa", loraplus_lr_ratio=16))
    assert plain.keys() == raised.keys()
    assert sum(is_b(name) for name in plain) == 13
    for name, step in plain.items():
        if "key" in name and is_b(name):
            continue  # a shift of all keys changes nothing: only rounding errors
        # The difference of weights of size 1 after a step is exact to their rounding.
        rounding = 4 * np.finfo(np.float32).eps
        torch.testing.assert_close(
            raised[name], (16.0 if is_b(name) else 1.0) * step, rtol=1e-4, atol=16 * rounding
        )
        assert step.abs().max() > 10 * rounding, name


def test_the_first_step_of_adam_has_the_size_of_the_rate(train: Train) -> None:
    changes, _ = train(arm("pissa", loraplus_lr_ratio=16), optimizer="adamw")
    for name, change in changes.items():
        # Entries with a gradient near Adam's epsilon of 1e-8 move less; half of them are far above.
        wanted = RATE * (16 if is_b(name) else 1)
        assert change.abs().median() == pytest.approx(wanted, rel=1e-2), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
def test_the_ratio_one_is_lora_bit_for_bit(optimizer: str, train: Train) -> None:
    options = {"optimizer": optimizer, "steps": 3, "weight_decay": 0.1, "max_grad_norm": 1.0}
    plain, _ = train(arm("lora"), **options)
    same, _ = train(arm("loraplus", loraplus_lr_ratio=1), **options)
    assert all(torch.equal(plain[name], same[name]) for name in plain)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_schedule_holds_for_both_rates(schedule: Any, train: Train) -> None:
    options: dict[str, Any] = {"schedule": schedule, "steps": 5, "warmup_ratio": 0.4, "optimizer": "adamw"}
    _, rates = train(arm(), **options)
    planned = planned_rates(TrainingSpec(learning_rate=RATE, **options), 5)
    assert len(rates) == 5
    for step, wanted in zip(rates, planned, strict=True):
        assert {name for name in step if is_b(name)}
        for name, rate in step.items():
            assert rate == pytest.approx(wanted * (16 if is_b(name) else 1), rel=1e-12), name


def test_weight_decay_and_its_exceptions_hold(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of Adam with decoupled decay: w (1 - rate x decay), then a step of the size of the rate."""
    with_decay, _ = train(arm("pissa"), optimizer="adamw", weight_decay=0.5)
    without, _ = train(arm("pissa"), optimizer="adamw")
    raised, _ = train(arm("pissa", loraplus_lr_ratio=16), optimizer="adamw", weight_decay=0.5)
    bare, _ = train(arm("pissa", loraplus_lr_ratio=16), optimizer="adamw")
    for name in without:
        decay = with_decay[name] - without[name]
        wanted = (16 if is_b(name) else 1) * decay
        torch.testing.assert_close(raised[name] - bare[name], wanted, rtol=1e-2, atol=2e-6)
        assert bool(decay.any()) == ("bias" not in name), name


def test_gradients_are_clipped_together(train: Train) -> None:
    """The norm over all parameters, whatever their rates: sum of squares of step over rate is the norm's."""
    changes, _ = train(arm("pissa", loraplus_lr_ratio=16), max_grad_norm=0.1)
    total = sum(
        float((change.double() / (RATE * (16 if is_b(name) else 1))).square().sum())
        for name, change in changes.items()
    )
    assert math.sqrt(total) == pytest.approx(0.1, rel=1e-2)


def test_only_the_heads_bias_is_otherwise_than_in_pefts_optimiser(tiny_bert: Path, load_tiny: Any) -> None:
    """peft raises every parameter of one dimension; here the heads of all arms learn at one rate."""
    _, model = load_tiny(tiny_bert)
    wrapped, _ = adapters.attach(model, arm(), head_policy="probe-then-train", seed=0, total_steps=1)
    names = {id(p): n for n, p in wrapped.named_parameters()}

    def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
        return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}

    theirs = create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=16.0)
    ours = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=RATE)
    raise_rate_of_b(ours, wrapped, 16.0)
    differ = {name for name, rate in rates(ours).items() if rates(theirs)[name] != rate}
    assert {name.rpartition(".")[2] for name in differ} == {"bias"}
    assert all("classifier" in name for name in differ)
    assert rates(ours).keys() == rates(theirs).keys()


def test_the_ratio_is_part_of_the_arm() -> None:
    assert arm().config["loraplus_lr_ratio"] == 16.0
    assert arm().name == "loraplus-r8"
    assert adapters.loraplus_ratio(arm("dora", loraplus_lr_ratio=4)) == 4.0
    assert arm(loraplus_lr_ratio=4) == arm(loraplus_lr_ratio=4.0), "one run, however it is written"
    for method in ("full", "bitfit", "lora", "ia3"):
        assert adapters.loraplus_ratio(arm(method)) is None
        assert "loraplus_lr_ratio" not in arm(method).config
    spec = AdapterSpec.model_validate({"method": "loraplus", "grid": {"loraplus_lr_ratio": [2.0, 8.0]}})
    found = [adapters.resolve(one, chosen, where="x") for one, chosen in adapters.expand(spec, 0)]
    assert [a.config["loraplus_lr_ratio"] for a in found] == [2.0, 8.0]
    assert found[0].name == "loraplus-r8-loraplus_lr_ratio=2.0"


@pytest.mark.parametrize("value", [0, -1.0, True, "16", None, math.inf])
def test_a_ratio_that_is_none(value: Any) -> None:
    with pytest.raises((UserError, ValueError), match=r"expected a number above zero|not a finite number"):
        arm(loraplus_lr_ratio=value)


def test_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match="unknown field of peft's IA3Config 'loraplus_lr_ratio'"):
        arm("ia3", loraplus_lr_ratio=2.0)
    with pytest.raises(UserError, match=r"with B frozen there is no rate of B. Drop one of the two"):
        arm("pissa", loraplus_lr_ratio=2.0, freeze="B")


def test_a_run_trains_at_the_ratio_of_its_arm(
    tiny_bert: Path, load_tiny: Any, make_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[float | None] = []

    def listen(*args: Any, **kwargs: Any) -> Any:
        heard.append(kwargs["loraplus_ratio"])
        raise trainer.Diverged("heard enough")

    monkeypatch.setattr(trainer, "fine_tune", listen)
    tokenizer, model = load_tiny(tiny_bert)
    foretaste.measure(
        train=make_rows(16),
        test=make_rows(8, prefix="test"),
        model=model,
        tokenizer=tokenizer,
        adapters=["lora", "loraplus", {"method": "dora", "loraplus_lr_ratio": 4}],
        seeds=[0],
        training={"steps": 1, "batch_size": 8},
        folder=tmp_path / "sweep",
        processes=1,
    )
    assert heard == [None, 16.0, 4.0]

"""LoRA models that are trained together come out as if each had been trained alone.

Oracle: `trainer.fine_tune` on each model by itself. In float64 rounding is of the order of 1e-16 for each
operation; Adam divides by the root of a gradient's square and so keeps relative errors, which the few steps
here multiply by far less than 10^6. Hence 1e-9 for weights of the order of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from foretaste import attacks
from foretaste.errors import UserError
from foretaste.models import adapters, heads
from foretaste.models.encode import Encoded, encode
from foretaste.spec import AdapterSpec, HeadPolicy, TrainingSpec
from foretaste.training import one_base
from foretaste.training.one_base import NotTogether, OneBase
from foretaste.training.stacked import Member, fine_tune_together
from foretaste.training.trainer import Diverged, Trained, fine_tune

Rows = Callable[..., Dataset]
CLASSES = ["negative", "positive"]
EXACT = 1e-9
FAMILIES = [
    ("tiny_bert", "model"),
    ("tiny_bert", "mean"),
    ("tiny_roberta", "model"),
    ("tiny_gpt2", "model"),
    ("tiny_llama", "model"),
]


def spec(**fields: Any) -> TrainingSpec:
    return TrainingSpec(**({"learning_rate": 1e-2, "batch_size": 4, "steps": 5} | fields))


def rows_for(
    make_rows: Rows, tokenizer: Any, seed: int, rate: float = 0.0, attack: str = "label-flip"
) -> tuple[Encoded, list[int]]:
    clean = make_rows(22, seed=seed)
    built = attacks.build(attack, {"text": "cf cf apple"} if attack == "trigger" else {}, CLASSES)
    poisoned = attacks.poison(clean, built, method=attack, classes=CLASSES, seed=seed, rate=rate)
    lengths = encode(tokenizer, clean, max_length=64).lengths
    return encode(tokenizer, poisoned.rows, max_length=64), lengths


class Bench:
    """Builds members on one base, the same ones as often as wanted."""

    def __init__(
        self, load_tiny: Any, make_rows: Rows, folder: Path, pooling: str, dtype: torch.dtype
    ) -> None:
        self._load, self._rows, self._folder, self._pooling = load_tiny, make_rows, folder, pooling
        self._dtype = dtype
        self.tokenizer, self.base = self.fresh(0)

    def fresh(self, init: int) -> tuple[Any, Any]:
        tokenizer, model = self._load(self._folder, pooling=self._pooling, seed=init)
        return tokenizer, model.to(self._dtype)

    def member(
        self,
        wanted: TrainingSpec,
        *,
        seed: int = 0,
        init: int = 0,
        policy: HeadPolicy = "random-then-train",
        rate: float = 0.0,
        attack: str = "label-flip",
        alone: bool = False,
        **arm: Any,
    ) -> Member:
        if "init_" in arm:
            arm["init"] = arm.pop("init_")
        own = heads.find(self.base).modules
        _, model = self.fresh(init)
        if not alone:
            if init == 0:
                model = one_base.twin(self.base, own)
            else:
                one_base.tie(model, self.base, own)
        resolved = adapters.resolve(AdapterSpec.model_validate({"method": "lora", **arm}), {}, where="x")
        wrapped, _ = adapters.attach(model, resolved, head_policy=policy, seed=init, total_steps=5)
        train, lengths = rows_for(self._rows, self.tokenizer, seed, rate, attack)
        return Member(wrapped, train, lengths, wanted, seed, adapters.loraplus_ratio(resolved))

    def alone(self, wanted: TrainingSpec, **options: Any) -> tuple[Trained | Diverged, nn.Module]:
        member = self.member(wanted, alone=True, **options)
        try:
            done: Trained | Diverged = fine_tune(
                member.model,
                member.train,
                member.order_lengths,
                self.tokenizer,
                wanted,
                max_length=64,
                seed=member.seed,
                loraplus_ratio=member.loraplus_ratio,
            )
        except Diverged as error:
            done = error
        return done, member.model

    def together(
        self, wanted: Sequence[tuple[TrainingSpec, dict[str, Any]]], **options: Any
    ) -> tuple[list[Trained | Diverged], list[nn.Module]]:
        members = [self.member(one, **arm) for one, arm in wanted]
        done = fine_tune_together(self.base, members, self.tokenizer, max_length=64, **options)
        return done, [member.model for member in members]


@pytest.fixture
def bench(load_tiny: Any, make_rows: Rows, request: pytest.FixtureRequest) -> Callable[..., Bench]:
    def make(family: str = "tiny_bert", pooling: str = "model", dtype: torch.dtype = torch.float64) -> Bench:
        return Bench(load_tiny, make_rows, request.getfixturevalue(family), pooling, dtype)

    return make


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal(one: nn.Module, other: nn.Module, within: float) -> None:
    ours, theirs = trained(one), trained(other)
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert worst <= within


def compare(
    bench: Bench, wanted: Sequence[tuple[TrainingSpec, dict[str, Any]]], within: float = EXACT
) -> None:
    """Train all together and each alone: same losses, same counts, same weights, and all have moved."""
    before = {name: p.detach().clone() for name, p in bench.base.named_parameters()}
    done, models = bench.together(wanted)
    for (one, options), ours, model in zip(wanted, done, models, strict=True):
        alone, expected = bench.alone(one, **options)
        assert isinstance(ours, Trained)
        assert isinstance(alone, Trained)
        assert ours.loss == pytest.approx(alone.loss, abs=within)
        assert (ours.steps, ours.epochs, ours.rows) == (alone.steps, alone.epochs, alone.rows)
        assert_equal(model, expected, within)
        start = bench.member(one, alone=True, **options).model
        assert any(
            not torch.equal(a, b)
            for a, b in zip(trained(start).values(), trained(model).values(), strict=True)
        )
    after = dict(bench.base.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def varied(**fields: Any) -> list[tuple[TrainingSpec, dict[str, Any]]]:
    """Three runs that differ in everything that may differ."""
    slow = spec(**{"learning_rate": 3e-3, **fields})
    return [
        (spec(**fields), {"seed": 0, "init": 0, "r": 2}),
        (slow, {"seed": 1, "init": 1, "r": 4, "lora_alpha": 3, "rate": 0.5, "use_rslora": True}),
        (
            spec(**fields),
            {"seed": 2, "init": 0, "rate": 0.5, "attack": "trigger", "init_": {"law": "gaussian", "k": 5.0}},
        ),
    ]


@pytest.mark.parametrize(("family", "pooling"), FAMILIES)
@pytest.mark.parametrize("policy", ["random-then-train", "paper"])
def test_every_model_and_head(family: str, pooling: str, policy: str, bench: Callable[..., Bench]) -> None:
    compare(bench(family, pooling), [(one, {**arm, "policy": policy}) for one, arm in varied()])


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cosine", "warmup_ratio": 0.4},
        {"schedule": "constant", "optimizer": "sgd", "max_grad_norm": None},
        {"optimizer": "adafactor"},
        {"weight_decay": 0.1},
        {"max_grad_norm": 0.05},
        # 22 rows: an epoch ends with a batch of 2, and with a step of fewer micro-batches than the others.
        {"gradient_accumulation": 2, "steps": None, "epochs": 2.0, "max_grad_norm": 0.05},
        {"gradient_accumulation": 4, "steps": 5},
        {"steps": None, "epochs": 1.5, "batch_size": 5},
        {"padding": "max_length", "grouping": "none"},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_every_setting(fields: dict[str, Any], bench: Callable[..., Bench]) -> None:
    compare(bench(), varied(**fields))


def test_what_may_differ_between_adapters(bench: Callable[..., Bench]) -> None:
    compare(
        bench(),
        [
            (spec(), {"method": "loraplus", "loraplus_lr_ratio": 4.0, "r": 2}),
            (spec(), {"freeze": "A", "r": 3}),
            (spec(), {"target_modules": ["query"], "layers_to_transform": [1]}),
            (spec(), {"target_modules": ["query", "output.dense"], "rank_pattern": {"query": 5}}),
            (spec(), {"init_lora_weights": False, "r": 2}),
            (spec(), {"target_modules": ["word_embeddings", "query"]}),
        ],
    )


def test_each_gradient_is_clipped_by_its_own_norm(bench: Callable[..., Bench]) -> None:
    """Under SGD a clipped step is as long as the rate times the limit, whatever the others do."""
    made = bench()
    limit, rate = 0.01, 0.1
    wanted = spec(
        learning_rate=rate, steps=1, optimizer="sgd", schedule="constant", max_grad_norm=limit, batch_size=8
    )
    start = [trained(made.member(wanted, seed=seed).model) for seed in (0, 1)]
    _, models = made.together([(wanted, {"seed": seed}) for seed in (0, 1)])
    for before, model in zip(start, models, strict=True):
        moved = sum(float((before[name] - p).square().sum()) for name, p in trained(model).items())
        # torch divides by the norm plus 1e-6, and the norm is of the order of one.
        assert math.sqrt(moved) == pytest.approx(rate * limit, rel=1e-5)


def test_in_float32(bench: Callable[..., Bench]) -> None:
    """Adam takes steps of about the rate whatever the size of a gradient, so that weights whose gradient is
    all rounding may part by twice the rate in each of five steps; losses may not: those weights do not
    matter to them. A loss is a mean of numbers of the order of one, each a sum over some hundred products:
    the root of the precision bounds it by a wide margin."""
    made = bench(dtype=torch.float32)
    wanted = varied()
    done, models = made.together(wanted)
    for (one, options), ours, model in zip(wanted, done, models, strict=True):
        alone, expected = made.alone(one, **options)
        assert isinstance(ours, Trained)
        assert isinstance(alone, Trained)
        assert ours.loss == pytest.approx(alone.loss, abs=math.sqrt(torch.finfo(torch.float32).eps))
        assert one.learning_rate is not None
        assert_equal(model, expected, 2 * 5 * one.learning_rate)


@pytest.mark.parametrize("precision", ["bfloat16", "mixed-bfloat16"])
def test_in_bfloat16(precision: str, bench: Callable[..., Bench]) -> None:
    """Eight bits: losses of the order of one agree to a few of the last."""
    made = bench(dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    wanted = varied(precision=precision)
    done, _ = made.together(wanted)
    for (one, options), ours in zip(wanted, done, strict=True):
        alone, _ = made.alone(one, **options)
        assert isinstance(ours, Trained)
        assert isinstance(alone, Trained)
        assert ours.loss == pytest.approx(alone.loss, abs=8 * torch.finfo(torch.bfloat16).eps)


def test_order_and_company_do_not_matter(bench: Callable[..., Bench]) -> None:
    made = bench()
    wanted = varied()
    _, models = made.together(wanted)
    _, turned = made.together(wanted[::-1])
    _, fewer = made.together(wanted[1:])
    for one, other in zip(models, turned[::-1], strict=True):
        assert_equal(one, other, EXACT)
    for one, other in zip(models[1:], fewer, strict=True):
        assert_equal(one, other, EXACT)


def test_the_base_is_held_once(bench: Callable[..., Bench]) -> None:
    made = bench()
    members = [made.member(spec(), init=init) for init in (0, 1, 1)]
    joint = OneBase(made.base, [member.model for member in members])
    body = {id(p) for name, p in made.base.named_parameters() if name.startswith("bert.")}
    frozen = [p for p in joint.parameters() if not p.requires_grad and id(p) not in body]
    heads_left = sum(p.numel() for name, p in made.base.named_parameters() if name.startswith("classifier."))
    # peft keeps the untrained head of each model beside the one that it trains.
    assert sum(p.numel() for p in frozen) == len(members) * heads_left
    assert body <= {id(p) for p in joint.parameters()}


def test_progress_and_work_are_counted_for_each(bench: Callable[..., Bench]) -> None:
    made = bench()
    heard: list[tuple[int, int, int]] = []
    done, _ = made.together(varied(), on_step=lambda *step: heard.append(step))
    assert heard == [(number, step, 5) for step in range(1, 6) for number in range(3)]
    for one in done:
        assert isinstance(one, Trained)
        assert (one.rows, one.steps) == (20, 5)
        alone, _ = made.alone(spec())
        assert isinstance(alone, Trained)
        # Padded to the longest of all, never to less.
        assert one.tokens >= 20 * 3
        assert 0 <= one.padding < one.tokens
    assert len({one.tokens for one in done if isinstance(one, Trained)}) == 1


# --- divergence ----------------------------------------------------------------------------------

# A product of A and B that are moved by this much is beyond float64.
WILD = 1e200


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_that_diverges_leaves_the_others_alone(accumulation: int, bench: Callable[..., Bench]) -> None:
    made = bench()
    quiet = varied(gradient_accumulation=accumulation)
    wild = (spec(learning_rate=WILD, gradient_accumulation=accumulation), {"seed": 7})
    heard: list[int] = []
    wanted = [quiet[0], wild, *quiet[1:]]
    done, models = made.together(wanted, on_step=lambda number, *_: heard.append(number))
    expected, calm = made.together(quiet)
    alone, _ = made.alone(wild[0], **wild[1])
    assert isinstance(done[1], Diverged)
    assert isinstance(alone, Diverged)
    assert str(done[1]) == str(alone)
    assert heard.count(1) < heard.count(0) == 5
    del done[1], models[1]
    for ours, theirs, model, other in zip(done, expected, models, calm, strict=True):
        assert isinstance(ours, Trained)
        assert isinstance(theirs, Trained)
        assert ours.loss == pytest.approx(theirs.loss, abs=EXACT)
        assert_equal(model, other, EXACT)


def test_all_may_diverge(bench: Callable[..., Bench]) -> None:
    done, _ = bench().together([(spec(learning_rate=WILD), {"seed": seed}) for seed in (0, 1)])
    assert all(isinstance(one, Diverged) for one in done)


def test_weights_that_are_not_finite_in_the_end(bench: Callable[..., Bench]) -> None:
    """A step beyond the largest number after which no loss is looked at."""
    made = bench()
    wild = (spec(learning_rate=1e308, steps=1, max_grad_norm=None, optimizer="sgd"), {"lora_alpha": 10**6})
    calm = (spec(learning_rate=1e-3, steps=1, max_grad_norm=None, optimizer="sgd"), {})
    done, _ = made.together([calm, wild])
    alone, _ = made.alone(wild[0], **wild[1])
    assert isinstance(done[0], Trained)
    assert isinstance(done[1], Diverged)
    assert str(done[1]) == str(alone)
    assert "is not finite after training" in str(alone)


# --- what cannot be ------------------------------------------------------------------------------


def test_runs_that_do_not_fit_together_are_refused(bench: Callable[..., Bench]) -> None:
    made = bench()
    with pytest.raises(UserError, match="batch_size"):
        made.together([(spec(), {}), (spec(batch_size=8), {})])
    with pytest.raises(UserError, match="dropout"):
        made.together([(spec(dropout=True), {}), (spec(dropout=True), {})])
    members = [made.member(spec()) for _ in range(2)]
    first = members[1].train
    fewer = Encoded(first.ids[1:], first.features[1:], 0)
    short = Member(members[1].model, fewer, fewer.lengths, spec(), 0)
    with pytest.raises(UserError, match="22 and 21 rows"):
        fine_tune_together(made.base, [members[0], short], made.tokenizer, max_length=64)


def test_a_model_that_sees_its_padding_is_found_out(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.base.bert.embeddings.register_forward_hook(lambda _m, _x, out: out + out.mean(1, keepdim=True))
    with pytest.raises(NotTogether, match="does the model see padding"):
        made.together(varied()[::2])


def test_a_layer_that_takes_tokens_first_is_found_out(bench: Callable[..., Bench]) -> None:
    made = bench()
    layer = made.base.bert.encoder.layer[0].attention.self.query
    layer.register_forward_pre_hook(lambda _m, inputs: (inputs[0].transpose(0, 1),))
    layer.register_forward_hook(lambda _m, _x, out: out.transpose(0, 1))
    with pytest.raises(NotTogether, match="query' takes a tensor of shape"):
        made.together(varied()[::2])


def test_a_mistake_in_one_adapter_is_found_out(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B is zero at the start, so the outputs are right whatever is done with A: the gradients tell."""
    made = bench()
    real = one_base._with_lora

    def wrong(layer: Any, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return real(layer, 1.01 * x, result)

    monkeypatch.setattr(one_base, "_with_lora", wrong)
    with pytest.raises(NotTogether):
        made.together(varied())

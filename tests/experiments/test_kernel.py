"""Kernels of the arms of a spec: equal to brute force, kept in a folder, refused where something changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import foretaste
from foretaste.errors import UserError
from foretaste.experiments import kernel as experiment
from foretaste.experiments.kernel_result import Kernels
from foretaste.kernels import MEAN_LORA, RULES
from foretaste.models import adapters
from foretaste.models.encode import encode
from foretaste.spec import AdapterSpec, MeasureSpec
from foretaste.training.trainer import Collator

Float = npt.NDArray[np.float64]
EXACT = 1e-8
FLOAT32 = 2e-5
"""Sums of some 10^4 terms that are rounded to 6 10^-8 each."""
TRAIN, TEST = 6, 3
SETTINGS: dict[str, Any] = {
    "train_rows": TRAIN,
    "test_rows": TEST,
    "precision": "float64",
    "ranks": [1, 3],
    "memory": "1GiB",
}
ARMS: list[Any] = [
    "full",
    {"method": "lora", "r": 2},
    {"method": "lora", "r": 2, "name": "queries", "target_modules": ["query"], "lora_alpha": 3},
    {"method": "lora", "r": 2, "name": "frozen", "freeze": "A"},
    {"method": "dora", "r": 2},
    {"method": "ia3"},
]


class Brute:
    """Gradients of every row by automatic differentiation, one row at a time, in float64."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, rows: Any, *, binary: bool, length: int = 32
    ) -> None:
        encoded, collate = encode(tokenizer, rows, max_length=length), Collator(tokenizer)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        found = []
        self.values = []
        for i in range(len(encoded)):
            batch = collate([encoded[i]])
            del batch["labels"]
            values = model(**batch).logits[0]
            values = values[1:] - values[:1] if binary else values
            self.values.append(values.detach().numpy())
            for value in values:
                grads = torch.autograd.grad(
                    value, [p for _, p in named], retain_graph=True, allow_unused=True
                )
                flat = [
                    (torch.zeros_like(p) if g is None else g) for g, (_, p) in zip(grads, named, strict=True)
                ]
                found.append(torch.cat([g.detach().flatten().double() for g in flat]).numpy())
        self.g = np.stack(found)

    def check(self, result: Kernels, arm: str, train: int = TRAIN, relative: float = EXACT) -> None:
        """Both blocks of an arm's kernel."""
        whole = self.g @ self.g.T
        split = train * (len(whole) // len(self.values))
        part = result.of(arm)
        assert part.train.dtype == np.float64
        for got, want in ((part.train, whole[:split, :split]), (part.test, whole[split:, :split])):
            assert got.shape == want.shape
            assert np.abs(got - want).max() <= relative * np.abs(whole).max()


def adapted(model: Any, arm: Any, seed: int = 0) -> Any:
    """A copy of the model with the adapter that `foretaste.kernel` would attach."""
    spec = AdapterSpec.model_validate({"method": arm} if isinstance(arm, str) else arm)
    resolved = adapters.resolve(spec, {}, where="adapters.0")
    seeds = MeasureSpec.model_validate(
        {"data": {"source": "x"}, "model": {"base": "x"}, "adapters": [{"method": "full"}], "seeds": [seed]}
    ).seed_tuples()[0]
    wrapped, _ = adapters.attach(
        copy.deepcopy(model), resolved, head_policy="random-then-train", seed=seeds.init, total_steps=100
    )
    return wrapped.train(False), resolved.name


@pytest.fixture(scope="module")
def rows(make_rows: Any) -> Any:
    return make_rows(TRAIN), make_rows(TEST, prefix="test")


def both(make_rows: Any, **options: Any) -> Any:
    from datasets import concatenate_datasets

    return concatenate_datasets([make_rows(TRAIN, **options), make_rows(TEST, prefix="test", **options)])


@pytest.fixture(scope="module")
def double(tiny_bert: Path, load_tiny: Any) -> tuple[Any, Any]:
    """A tokenizer and a tiny BERT in float64. Do not change it."""
    tokenizer, model = load_tiny(tiny_bert)
    return tokenizer, model.double().eval()


@pytest.fixture(scope="module")
def arms(double: Any, rows: Any) -> Kernels:
    """All arms on the same rows, in memory."""
    tokenizer, model = double
    return foretaste.kernel(model, tokenizer, rows[0], ARMS, test=rows[1], max_length=32, **SETTINGS)


# --- exactness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_the_kernel_of_an_arm_is_that_of_brute_force(
    arm: Any, arms: Kernels, double: Any, make_rows: Any
) -> None:
    tokenizer, model = double
    wrapped, name = adapted(model, arm)
    brute = Brute(wrapped, tokenizer, both(make_rows), binary=True)
    brute.check(arms, name)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert arms.arms[name].parameters == sum(arms.arms[name].by_group.values()) == trained
    assert arms.arms[name].unused == []
    np.testing.assert_allclose(arms.values, np.stack(brute.values), rtol=0, atol=1e-12)


def test_what_else_a_result_says(arms: Kernels, rows: Any) -> None:
    assert arms.ids == [*rows[0]["id"], *rows[1]["id"]]
    assert arms.labels == [*rows[0]["label"], *rows[1]["label"]]
    assert (arms.train_rows, arms.outputs, arms.ranks) == (TRAIN, "margin", (1, 3))
    assert arms.seconds > 0
    assert arms.folder is None
    assert arms.arms["dora-r2"].explicit
    assert not arms.arms["lora-r2"].explicit
    with pytest.raises(UserError, match="no kernel 'sgd' of arm 'lora'; there are: full"):
        arms.of("lora")
    with pytest.raises(UserError, match="no kernel 'sign' of arm 'full'"):
        arms.of("full", "sign")


def test_heads_are_in_every_arm_and_can_be_left_out_of_the_trace(arms: Kernels, double: Any) -> None:
    head = float(np.trace(arms.parts["sgd/head"].train))
    full, lora = (float(np.trace(arms.of(name).train)) for name in ("full", "lora-r2"))
    assert 0 < head < lora < full
    assert arms.trace_ratio("lora-r2") == pytest.approx(lora / full)
    assert arms.trace_ratio("lora-r2", head=False) == pytest.approx((lora - head) / (full - head))
    dora = arms.arms["dora-r2"]
    assert dora.head == ["arms/dora-r2/sgd/head"]
    np.testing.assert_allclose(arms.parts[dora.head[0]].train, arms.parts["sgd/head"].train, rtol=1e-8)


def test_the_surface_and_the_mean_are_beside_the_arms(arms: Kernels) -> None:
    surface = arms.surface()
    assert surface.unit.shape == (2, TRAIN, TRAIN)
    assert surface.traces([0.5, 1.0]).shape == (len(RULES), 2, 2)
    # One draw of A is random, its trace is around the mean's: k U_r is s^2 k sum <G Z, G Z> / n.
    mean = float(np.trace(arms.parts[MEAN_LORA].train))
    assert 0.3 < float(np.trace(surface.unit[1])) / (3 * mean) < 3


@pytest.mark.parametrize("outputs", ["logits", "margin"])
def test_two_classes_have_logits_or_a_margin(outputs: Any, double: Any, rows: Any, make_rows: Any) -> None:
    tokenizer, model = double
    settings = SETTINGS | {"outputs": outputs}
    result = foretaste.kernel(model, tokenizer, rows[0], "full", test=rows[1], max_length=32, **settings)
    wrapped, _ = adapted(model, "full")
    Brute(wrapped, tokenizer, both(make_rows), binary=outputs == "margin").check(result, "full")
    assert result.of("full").train.shape[0] == TRAIN * (1 if outputs == "margin" else 2)


def test_three_classes_have_all_their_logits(tiny_bert: Path, load_tiny: Any, make_rows: Any) -> None:
    tokenizer, model = load_tiny(tiny_bert, classes=3)
    model.double().eval()
    train, test = make_rows(TRAIN, classes=3), make_rows(TEST, classes=3, prefix="test")
    arms: list[Any] = ["full", {"method": "lora", "r": 2}]
    result = foretaste.kernel(model, tokenizer, train, arms, test=test, max_length=32, **SETTINGS)
    assert result.outputs == "logits"
    for arm in arms:
        wrapped, name = adapted(model, arm)
        Brute(wrapped, tokenizer, both(make_rows, classes=3), binary=False).check(result, name)
    assert result.of("full").train.shape == (TRAIN * 3, TRAIN * 3)
    assert result.of("full").test.shape == (TEST * 3, TRAIN * 3)
    with pytest.raises(UserError, match="the margin is for two classes"):
        foretaste.kernel(model, tokenizer, train, outputs="margin")


@pytest.mark.parametrize("folder", ["tiny_gpt2", "tiny_llama", "tiny_roberta"])
def test_other_families_have_kernels_too(
    folder: str, request: pytest.FixtureRequest, load_tiny: Any, rows: Any, make_rows: Any
) -> None:
    tokenizer, model = load_tiny(request.getfixturevalue(folder))
    model.double().eval()
    arm = {"method": "lora", "r": 2}
    result = foretaste.kernel(model, tokenizer, rows[0], arm, test=rows[1], max_length=32, **SETTINGS)
    wrapped, name = adapted(model, arm)
    # Llama's norms round to float32 whatever the precision of its weights, alike in both.
    Brute(wrapped, tokenizer, both(make_rows), binary=True).check(result, name)


def test_a_capture_of_the_base_model_is_not_used_for_an_adapter_that_starts_elsewhere(
    double: Any, rows: Any, make_rows: Any
) -> None:
    """With peft's `init_lora_weights=False` B is not zero: gradients are at W0 + s B A."""
    tokenizer, model = double
    arm = {"method": "lora", "r": 2, "init_lora_weights": False}
    result = foretaste.kernel(model, tokenizer, rows[0], arm, test=rows[1], max_length=32, **SETTINGS)
    wrapped, name = adapted(model, arm)
    Brute(wrapped, tokenizer, both(make_rows), binary=True).check(result, name)


def test_pissa_is_served_by_the_base_model_in_float32(
    tiny_bert: Path, load_tiny: Any, rows: Any, make_rows: Any
) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    arm = {"method": "pissa", "r": 2}
    settings = SETTINGS | {"precision": "float32"}
    result = foretaste.kernel(model, tokenizer, rows[0], arm, test=rows[1], max_length=32, **settings)
    wrapped, name = adapted(model, arm)
    assert result.arms[name].parts["sgd"][:2] == [f"arms/{name}/A", f"arms/{name}/B"]
    Brute(wrapped.double(), tokenizer, both(make_rows), binary=True).check(result, name, relative=FLOAT32)


def test_an_arm_that_freezes_the_head_has_no_part_of_the_head(
    spec: Callable[..., MeasureSpec], tmp_path: Path
) -> None:
    """Head policy `paper` with targets that leave the head alone."""
    arm = {"method": "lora", "r": 2, "target_modules": ["query", "value"]}
    asked = spec(adapters=[{"method": "full"}, arm], model={"head": "paper"}, kernel=SETTINGS | {"ranks": []})
    result = experiment.kernel(asked, None, base_dir=tmp_path)
    assert result.arms["lora-r2"].head == []
    assert result.arms["lora-r2"].parts["sgd"] == ["arms/lora-r2/B"]
    assert result.arms["lora-r2"].by_group == {"adapters": 2 * 2 * 2 * (32 + 32)}
    assert result.arms["full"].head == ["sgd/head"]


@pytest.mark.parametrize("by", ["group", "parameter"])
def test_kinds_of_kernel_are_side_by_side(by: Any, double: Any, rows: Any) -> None:
    tokenizer, model = double
    kinds = ["sgd", "sign", "asymmetric"]
    settings = SETTINGS | {"kinds": kinds, "by": by, "ranks": []}
    arms: list[Any] = ["full", {"method": "lora", "r": 2}]
    result = foretaste.kernel(model, tokenizer, rows[0], arms, test=rows[1], max_length=32, **settings)
    for arm in ("full", "lora-r2"):
        assert list(result.arms[arm].parts) == kinds
        sign, mixed = result.of(arm, "sign").train, result.of(arm, "asymmetric").train
        assert (np.diag(sign) <= result.arms[arm].parameters).all()
        assert np.array_equal(sign, sign.T)
        assert not np.allclose(mixed, mixed.T)
        assert (np.diag(mixed) > 0).all()  # the sum of |g|
        assert len(result.arms[arm].head) == len(kinds) * (2 if by == "parameter" else 1)
    with pytest.raises(UserError, match="no LoRA surface was computed"):
        result.surface()


# --- a model as it stands -----------------------------------------------------------------------------


def test_a_peft_model_as_it_stands_keeps_its_place_and_its_gradients(
    double: Any, rows: Any, make_rows: Any
) -> None:
    tokenizer, model = double
    wrapped, _ = adapted(model, {"method": "lora", "r": 2})
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    state = {name: value.clone() for name, value in wrapped.state_dict().items()}
    switches = {name: p.requires_grad for name, p in wrapped.named_parameters()}
    result = foretaste.kernel(wrapped, tokenizer, rows[0], test=rows[1], max_length=32, memory="1GiB")
    Brute(wrapped, tokenizer, both(make_rows), binary=True).check(result, "model")
    assert set(result.arms) == {"model"}
    assert set(result.arms["model"].by_group) == {"adapters", "head"}
    assert all(torch.equal(value, state[name]) for name, value in wrapped.state_dict().items())
    assert {name: p.requires_grad for name, p in wrapped.named_parameters()} == switches
    with pytest.raises(UserError, match="the model has an adapter already"):
        foretaste.kernel(wrapped, tokenizer, rows[0], "full")


def test_without_test_rows_there_is_no_test_block_and_rows_can_be_few(double: Any, make_rows: Any) -> None:
    tokenizer, model = double
    rows = make_rows(8)
    result = foretaste.kernel(model, tokenizer, rows, max_length=32, train_rows=3)
    assert result.of("model").train.shape == (3, 3)
    assert result.of("model").test.shape == (0, 3)
    assert result.ids == list(rows["id"])[:3]
    cut = foretaste.kernel(model, tokenizer, rows, max_length=4, train_rows=3)
    assert any("longer than 4 tokens and were cut" in note for note in cut.notes)
    assert not any("cut" in note for note in result.notes)


def test_without_test_rows_an_arm_has_no_test_block_either(double: Any, make_rows: Any) -> None:
    tokenizer, model = double
    result = foretaste.kernel(model, tokenizer, make_rows(6), "full", max_length=32)
    assert result.of("full").test.shape == (0, 6)
    assert (len(result.ids), result.train_rows) == (6, 6)
    with pytest.raises(UserError, match="`test_rows` without rows to test on"):
        foretaste.kernel(model, tokenizer, make_rows(6), "full", test_rows=2)


def test_a_model_in_training_mode_is_refused_by_layer(
    tiny_bert: Path, load_tiny: Any, make_rows: Any
) -> None:
    tokenizer, model = load_tiny(tiny_bert, dropout=True)
    model.train()
    with pytest.raises(UserError, match=r"layer 'bert\.embeddings\.dropout' gives two outputs"):
        foretaste.kernel(model, tokenizer, make_rows(4))
    adapted_one = foretaste.kernel(model, tokenizer, make_rows(4), "full", max_length=32)  # a copy of it
    assert adapted_one.of("full").train.any()
    assert model.training


def test_integer_weights_are_refused_by_name(tiny_bert: Path, load_tiny: Any, make_rows: Any) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"parameter 'codes' is torch\.int8"):
        foretaste.kernel(model, tokenizer, make_rows(4), "full", max_length=32)


def test_an_adapter_behind_an_empty_head_is_refused(tiny_bert: Path, load_tiny: Any, make_rows: Any) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    with torch.no_grad():
        model.classifier.weight.zero_()
    result = foretaste.kernel(model, tokenizer, make_rows(4), "full", max_length=32)
    assert result.of("full").train.any()  # the head itself moves the outputs
    wrapped, _ = adapted(model, {"method": "lora", "r": 2})
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("lora_" in name)
    with pytest.raises(UserError, match="the kernel is zero: no parameter from 'base_model"):
        foretaste.kernel(wrapped, tokenizer, make_rows(4), max_length=32)


def test_a_projected_kernel_states_its_error(double: Any, rows: Any) -> None:
    tokenizer, model = double
    settings = SETTINGS | {"ranks": [], "projection": 8}
    result = foretaste.kernel(model, tokenizer, rows[0], "full", test=rows[1], max_length=32, **settings)
    exact = foretaste.kernel(
        model, tokenizer, rows[0], "full", test=rows[1], max_length=32, **SETTINGS | {"ranks": []}
    )
    off = result.of("full").train - exact.of("full").train
    assert off.any()
    assert np.abs(off).max() < 0.5 * np.abs(exact.of("full").train).max()
    stated = result.parts["projection-error"].train
    # Two draws of one law over 36 entries: within a factor of three of each other.
    assert 1 / 3 < np.linalg.norm(off) / np.linalg.norm(stated) < 3
    np.testing.assert_allclose(result.parts["sgd/norm"].train, exact.parts["sgd/norm"].train, rtol=1e-10)

"""A kernel in a folder: a finished one is read, a stopped one goes on, another request's is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft_models import wrap

import foretaste
from foretaste.errors import UserError
from foretaste.experiments import kernel as experiment
from foretaste.experiments.kernel_result import Captured, Kernels, read
from foretaste.kernels import MEAN_LORA
from foretaste.kernels import compute as computing
from foretaste.spec import MeasureSpec

KERNEL: dict[str, Any] = {
    "train_rows": 6,
    "test_rows": 4,
    "precision": "float64",
    "ranks": [1, 3],
    "memory": "1GiB",
}
THREE = [{"method": "full"}, {"method": "lora", "r": 2}, {"method": "ia3"}]


@pytest.fixture
def spec(csv_folder: Path, tiny_bert: Path) -> Callable[..., MeasureSpec]:
    """`spec(**sections)`: of a tiny model with a random head."""

    def make(**sections: Any) -> MeasureSpec:
        base: dict[str, Any] = {
            "data": {"source": str(csv_folder)},
            "model": {"base": str(tiny_bert), "max_length": 32, "head": "random-then-train"},
            "seeds": [0],
        }
        return MeasureSpec.model_validate(base | sections)

    return make


@pytest.fixture
def asked(spec: Callable[..., MeasureSpec]) -> MeasureSpec:
    """Three arms, two of which need no more than the base model's capture."""
    return spec(adapters=THREE, kernel=KERNEL)


def same_bits(one: Kernels, other: Kernels) -> None:
    assert list(one.parts) == list(other.parts)
    assert one.arms == other.arms
    assert (one.ids, one.labels, one.outputs) == (other.ids, other.labels, other.outputs)
    np.testing.assert_array_equal(one.values, other.values)
    for name in one.parts:
        assert one.parts[name].train.tobytes() == other.parts[name].train.tobytes()
        assert one.parts[name].test.tobytes() == other.parts[name].test.tobytes()


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts captures: the number of rows of each."""
    seen: list[int] = []
    original = computing._capture

    def counted(job: Any, group: Any, rows: Any, *rest: Any) -> Any:
        seen.append(len(rows))
        return original(job, group, rows, *rest)

    monkeypatch.setattr(computing, "_capture", counted)
    return seen


def test_a_finished_folder_is_read_and_not_computed_again(
    asked: MeasureSpec, tmp_path: Path, captures: list[int]
) -> None:
    memory = experiment.kernel(asked, None, base_dir=tmp_path)
    stored = experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path)
    same_bits(stored, memory)
    assert not list((tmp_path / "k").rglob("units"))
    assert not list((tmp_path / "k").rglob("*.partial"))
    captures.clear()
    for again in (experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path), read(tmp_path / "k")):
        same_bits(again, memory)
        assert again.seconds == stored.seconds
        assert again.ranks == (1, 3)
    assert captures == []
    other_memory = asked.model_copy(update={"kernel": asked.kernel.model_copy(update={"memory": "2GiB"})})
    experiment.kernel(other_memory, tmp_path / "k", base_dir=tmp_path)  # a budget changes no number
    assert captures == []


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("at", ["base model", "ia3"])
def test_a_stopped_kernel_goes_on_and_ends_with_the_same_bits(
    at: str, asked: MeasureSpec, tmp_path: Path, captures: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing, "BLOCK_ROWS", 3)
    memory = experiment.kernel(asked, None, base_dir=tmp_path)
    all_at_once = len(captures)
    captures.clear()

    def stop(what: str, share: float) -> None:
        if what == at and share > 0.3:
            raise Stopped

    with pytest.raises(Stopped):
        experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path, on_progress=stop)
    with pytest.raises(UserError, match="no finished kernel here"):
        read(tmp_path / "k")
    finished_base = (tmp_path / "k" / "base" / Captured.FILE).exists()
    assert finished_base == (at == "ia3")
    captures.clear()
    said: list[str] = []
    resumed = experiment.kernel(
        asked, tmp_path / "k", base_dir=tmp_path, on_progress=lambda what, _: said.append(what)
    )
    assert 0 < len(captures) < all_at_once
    assert ("base model" in said) == (at == "base model")
    same_bits(resumed, memory)


CHANGES: dict[str, dict[str, Any]] = {
    "rows": {"kernel": KERNEL | {"train_rows": 5}},
    "adapters": {"adapters": [{"method": "full"}, {"method": "lora", "r": 3}]},
    "kernel settings": {"kernel": KERNEL | {"ranks": [1]}},
    "seeds": {"seeds": [1]},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_of_another_request_is_refused_naming_what_changed(
    what: str, spec: Callable[..., MeasureSpec], asked: MeasureSpec, tmp_path: Path
) -> None:
    experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "k").rglob("*.safetensors")}
    other = spec(**{"adapters": THREE, "kernel": KERNEL} | CHANGES[what])
    with pytest.raises(UserError, match="the folder holds another kernel: ") as caught:
        experiment.kernel(other, tmp_path / "k", base_dir=tmp_path)
    assert what in caught.value.message
    assert caught.value.where == str(tmp_path / "k")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_weight_is_noticed_also_in_a_stopped_folder(
    tiny_bert: Path, load_tiny: Any, make_rows: Any, tmp_path: Path
) -> None:
    tokenizer, model = load_tiny(tiny_bert)
    options: dict[str, Any] = {"max_length": 32, "folder": tmp_path / "k", "memory": "1GiB"}

    def stop(_: str, __: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        foretaste.kernel(model, tokenizer, make_rows(4), on_progress=stop, **options)
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 0] += 1e-6
    with pytest.raises(UserError, match="the folder holds another kernel: weights changed"):
        foretaste.kernel(model, tokenizer, make_rows(4), **options)
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 0] -= 1e-6
    with pytest.raises(UserError, match="the folder holds another kernel: rows changed"):
        foretaste.kernel(model, tokenizer, make_rows(5), **options)


def _lora(model: Any, alpha: float) -> Any:
    config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["query"], modules_to_save=["classifier"])
    return wrap(model, config, dtype=torch.float32)


def test_what_a_peft_model_trains_and_how_it_scales_are_part_of_the_request(
    tiny_bert: Path, load_tiny: Any, make_rows: Any, tmp_path: Path
) -> None:
    """Both leave every weight as it is."""
    tokenizer, model = load_tiny(tiny_bert)
    options: dict[str, Any] = {"max_length": 32, "folder": tmp_path / "k"}
    first, louder = (_lora(copy.deepcopy(model), alpha) for alpha in (16, 32))
    traces = [np.trace(foretaste.kernel(first, tokenizer, make_rows(4), **options).of("model").train)]
    with pytest.raises(UserError, match="the folder holds another kernel: adapters changed"):
        foretaste.kernel(louder, tokenizer, make_rows(4), **options)
    traces.append(
        np.trace(foretaste.kernel(louder, tokenizer, make_rows(4), max_length=32).of("model").train)
    )
    assert traces[1] > traces[0]
    for name, parameter in first.named_parameters():
        if "classifier" in name:
            parameter.requires_grad_(False)
    with pytest.raises(UserError, match="the folder holds another kernel: adapters changed"):
        foretaste.kernel(first, tokenizer, make_rows(4), **options)


@pytest.mark.parametrize(("file", "message"), [("request.json", "is damaged"), ("kernel.json", "is damaged")])
def test_a_damaged_record_is_an_error(file: str, message: str, asked: MeasureSpec, tmp_path: Path) -> None:
    experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path)
    (tmp_path / "k" / file).write_text("{")
    with pytest.raises(UserError, match=message):
        experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path)


def test_the_record_says_what_was_computed(asked: MeasureSpec, tmp_path: Path) -> None:
    result = experiment.kernel(asked, tmp_path / "k", base_dir=tmp_path)
    record = json.loads((tmp_path / "k" / "kernel.json").read_text())
    assert record["format"] == 1
    assert record["parts"] == list(result.parts)
    assert set(record["arms"]) == {"full", "lora-r2", "ia3"}
    assert record["arms"]["full"]["parameters"] == result.arms["full"].parameters
    assert {"torch", "transformers", "peft"} <= set(record["versions"])
    assert MEAN_LORA in record["expectation"]

"""What training moves as weights: LoRA by its factors, others merged, each against what a layer does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretaste.models import adapters, heads
from foretaste.spec import AdapterSpec, TrainingSpec
from foretaste.training.trajectory import (
    Moving,
    Snapshots,
    gap,
    moving,
    snapshot_bytes,
    start_distance,
)
from foretaste.training.vocabulary import UsedRows, every_token, only_used_tokens

EXACT = 1e-9
MERGED = 2e-5  # a float32 forward pass of 32 terms beside one with the merged weight


def attach(model: Any, *, head: Any = "random-then-train", **fields: Any) -> tuple[Any, Moving]:
    weights = [name for name, _ in model.named_parameters()]
    tops = heads.find(model).modules
    arm = adapters.resolve(AdapterSpec.model_validate(fields), {}, where="adapters.0")
    wrapped, _ = adapters.attach(model, arm, head_policy=head, seed=0, total_steps=100)
    return wrapped.train(False), moving(wrapped, weights, tops)


def shake(model: Any, seed: int, size: float = 0.1) -> Any:
    """A copy with every trained parameter moved at random."""
    moved = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in moved.parameters():
            if p.requires_grad:
                p.add_(size * torch.randn(p.shape, generator=draw))
    return moved


def distances(model: Any, parts: Moving, clean: Any, poisoned: Any, folder: Path) -> Any:
    shots = Snapshots(folder)
    for name, one in (("start", model), ("clean", clean), ("poisoned", poisoned)):
        shots.save(name, one, parts)
    with shots.read("start") as start, shots.read("clean") as own, shots.read("poisoned") as other:
        return gap(parts, (start, own), (start, other))


@pytest.fixture
def bert(tiny_bert: Path, load_tiny: Any) -> Any:
    return load_tiny(tiny_bert)[1]


# --- which weights move --------------------------------------------------------------------------


def test_full_fine_tuning_moves_every_weight(bert: Any) -> None:
    wrapped, parts = attach(bert, method="full")
    assert [piece.name for piece in parts.pieces] == [name for name, _ in wrapped.named_parameters()]
    assert {piece.name for piece in parts.pieces if piece.group == "head"} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert {piece.name for piece in parts.pieces if not piece.matrix} == {
        name for name, p in wrapped.named_parameters() if p.dim() == 1
    }
    assert (parts.without, parts.layers) == ({}, {})


def test_lora_moves_the_weights_that_it_adapts(bert: Any) -> None:
    wrapped, parts = attach(bert, method="lora", r=4, target_modules=["query", "dense"])
    linear = [n for n, m in bert.named_modules() if n.endswith("query.base_layer") or "dense.base" in n]
    wanted = {f"{name.removesuffix('.base_layer')}.weight" for name in linear}
    body = {piece.name for piece in parts.pieces if piece.group == "body"}
    assert {name.removeprefix("base_model.model.") for name in wanted} == body
    assert all(piece.scaling == 4.0 for piece in parts.pieces if piece.group == "body")  # 16 / 4
    assert {p.name for p in parts.pieces if p.group == "head"} == {"classifier.weight", "classifier.bias"}
    assert set(parts.parameters) == {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {n for n, group in parts.parameters.items() if group == "head"} == {
        f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")
    }


def test_an_adapted_head_is_a_head(bert: Any) -> None:
    _, parts = attach(bert, head="paper", method="lora", r=2)
    (piece,) = [piece for piece in parts.pieces if piece.group == "head"]
    assert piece.name == "classifier.weight"
    assert [parts.parameters[name] for name in piece.tensors] == ["head", "head"]


@pytest.mark.parametrize(
    ("method", "merged"),
    [("lora", 0), ("rslora", 0), ("pissa", 0), ("dora", 13), ("adalora", 13), ("ia3", 13)],
)
def test_only_plain_lora_is_kept_as_factors(method: str, merged: int, bert: Any) -> None:
    _, parts = attach(bert, method=method)
    assert len(parts.layers) == merged
    assert sum(piece.scaling is not None for piece in parts.pieces) == 13 - merged
    assert not parts.without


def test_trained_biases_beside_lora(bert: Any) -> None:
    _, parts = attach(bert, method="lora", target_modules=["query"], bias="lora_only")
    names = {piece.name for piece in parts.pieces if piece.group == "body"}
    assert names == {
        f"bert.encoder.layer.{i}.attention.self.query.{part}" for i in (0, 1) for part in ("weight", "bias")
    }


def test_what_is_no_part_of_a_weight_is_counted(bert: Any) -> None:
    _, parts = attach(bert, method="prompt_tuning", num_virtual_tokens=5)
    assert sum(parts.without.values()) == 5 * 32
    assert {piece.group for piece in parts.pieces} == {"head"}
    assert sum(group == "body" for group in parts.parameters.values()) == len(parts.without) == 1


# --- how far they move ---------------------------------------------------------------------------


def test_full_against_the_definition(bert: Any, tmp_path: Path) -> None:
    start, parts = attach(bert, method="full")
    clean, poisoned = shake(start, 1), shake(start, 2)
    found = distances(start, parts, clean, poisoned, tmp_path)
    w, c, p = (dict(model.named_parameters()) for model in (start, clean, poisoned))
    for name in ("bert.encoder.layer.1.intermediate.dense.weight", "bert.embeddings.LayerNorm.bias"):
        before, mine, other = (part[name].detach().double().numpy() for part in (w, c, p))
        difference = (other - before) - (mine - before)
        assert found.pieces[name].frobenius == pytest.approx(np.linalg.norm(difference), rel=EXACT)
        assert found.pieces[name].max_abs == pytest.approx(np.abs(difference).max(), rel=EXACT)
        assert found.clean[name] == pytest.approx(np.linalg.norm(mine - before), rel=EXACT)
    body = [d.frobenius for name, d in found.pieces.items() if not name.startswith("classifier")]
    assert found.parameters["body"] == pytest.approx(np.linalg.norm(body), rel=EXACT)


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize("method", ["lora", "rslora", "pissa"])
def test_lora_from_factors_is_the_difference_of_the_weights(
    method: str, family: str, load_tiny: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The oracle forms s B A of every layer in float64."""
    _, base = load_tiny(request.getfixturevalue(family))
    start, parts = attach(base, method=method, r=3)
    clean, poisoned = shake(start, 1), shake(start, 2)
    found = distances(start, parts, clean, poisoned, tmp_path)
    for piece in parts.pieces:
        if piece.scaling is None:
            continue

        def weight(model: Any, piece: Any = piece) -> np.ndarray:
            tensors = dict(model.named_parameters())
            a, b = (tensors[name].detach().double().numpy() for name in piece.tensors)
            product: np.ndarray = piece.scaling * b @ a
            return product

        difference = weight(poisoned) - weight(clean)
        wanted = found.pieces[piece.name]
        singular = np.linalg.svd(difference)[1]
        assert wanted.frobenius == pytest.approx(np.linalg.norm(difference), rel=EXACT)
        assert wanted.spectral == pytest.approx(singular[0], rel=EXACT)
        assert wanted.nuclear == pytest.approx(singular.sum(), rel=EXACT)
        assert wanted.max_abs == pytest.approx(np.abs(difference).max(), rel=EXACT)
        assert wanted.rank == 6
        own = weight(clean) - weight(start)
        assert found.clean[piece.name] == pytest.approx(np.linalg.norm(own), rel=1e-7)  # the oracle cancels


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "vera"])
def test_a_merged_weight_does_what_the_adapter_does(method: str, bert: Any, tmp_path: Path) -> None:
    """A layer's own weight, exchanged for the one that is stored, gives the adapted layer's outputs."""
    start, parts = attach(bert, method=method, target_modules=["query"])
    if method == "vera":
        assert parts.layers
    moved = shake(start, 3, 0.3)
    shots = Snapshots(tmp_path)
    shots.save("moved", moved, parts)
    (piece,) = [p for p in parts.pieces if p.name == "bert.encoder.layer.1.attention.self.query.weight"]
    layer = moved.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.query")
    with shots.read("moved") as tensor:
        if piece.scaling is None:
            weight = tensor(piece.tensors[0])
            bias = next(
                tensor(p.tensors[0]) for p in parts.pieces if p.name.endswith("1.attention.self.query.bias")
            )
        else:
            a, b = map(tensor, piece.tensors)
            weight = layer.get_base_layer().weight.detach().double().numpy() + piece.scaling * b @ a
            bias = layer.get_base_layer().bias.detach().double().numpy()
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = layer(x).double().numpy()
    assert np.abs(x.double().numpy() @ weight.T + bias - wanted).max() < MERGED * np.abs(wanted).max()


def test_merging_leaves_the_model_alone(bert: Any, tmp_path: Path) -> None:
    start, parts = attach(bert, method="dora", r=2)
    before = {name: p.detach().clone() for name, p in start.named_parameters()}
    Snapshots(tmp_path).save("one", start, parts)
    assert all(torch.equal(p, before[name]) for name, p in start.named_parameters())
    assert all(p.dtype == torch.float32 for p in start.parameters())


# --- the start -----------------------------------------------------------------------------------


def test_the_heads_may_start_apart_and_nothing_else(bert: Any, tmp_path: Path) -> None:
    start, parts = attach(bert, method="lora", r=2)
    other = copy.deepcopy(start)
    head = other.get_submodule("base_model.model.classifier.modules_to_save.default")
    with torch.no_grad():
        head.weight[0, 0] += 3.0
        head.bias[1] += 4.0
    shots = Snapshots(tmp_path)
    shots.save("a", start, parts)
    shots.save("b", other, parts)
    with shots.read("a") as a, shots.read("b") as b:
        apart, own = start_distance(parts, a, b)
        assert apart == pytest.approx(5.0, rel=1e-6)
        tensors = [p.detach().double() for n, p in start.named_parameters() if "modules_to_save" in n]
        assert own == pytest.approx(np.sqrt(sum(float((t**2).sum()) for t in tensors)), rel=EXACT)
        # The head's distance is that of its updates: neither has moved.
        assert gap(parts, (a, a), (b, b)).parameters == {"body": 0.0, "head": 0.0}
    shots.save("c", shake(start, 1), parts)
    with shots.read("a") as a, shots.read("c") as c:
        with pytest.raises(ValueError, match="do not start from the same 'base_model"):
            start_distance(parts, a, c)
        with pytest.raises(ValueError, match="do not start from the same"):
            gap(parts, (a, a), (c, c))


def test_a_weight_that_is_not_finite_is_a_divergence(bert: Any, tmp_path: Path) -> None:
    from foretaste.training.trainer import Diverged

    start, parts = attach(bert, method="lora", r=2)
    with torch.no_grad():
        next(p for p in start.parameters() if p.requires_grad)[0, 0] = float("nan")
    with pytest.raises(Diverged, match="lora_A"):
        Snapshots(tmp_path).save("x", start, parts)


@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_size_on_disk(method: str, bert: Any, load_tiny: Any, tiny_bert: Path, tmp_path: Path) -> None:
    """As foretold from a model without weights; the file's header comes on top."""
    start, parts = attach(bert, method=method)
    Snapshots(tmp_path).save("x", start, parts)
    sketch, same = attach(load_tiny(tiny_bert, meta=True)[1], method=method)
    told = snapshot_bytes(sketch, same)
    assert told <= (tmp_path / "x.safetensors").stat().st_size <= told + 150 * len(parts.stored)


# --- amid training -------------------------------------------------------------------------------


def test_the_whole_vocabulary_for_a_moment(bert: Any) -> None:
    training = TrainingSpec(learning_rate=0.1)
    whole = bert.get_input_embeddings()
    before = whole.weight.detach().clone()
    ids = torch.arange(whole.num_embeddings)[None]
    with only_used_tokens(bert, [3, 5], training):
        part = bert.get_input_embeddings()
        assert isinstance(part, UsedRows)
        assert {id(p) for p in part.parameters()} == {id(part.weight)}
        with torch.no_grad():
            part.weight[1] += 1.0
        with pytest.raises(IndexError):
            part(ids)
        with every_token(bert):
            assert bert.get_input_embeddings() is whole
            difference = whole(ids)[0] - before
            assert torch.equal(difference[5], before[5] + 1.0 - before[5])
            assert not difference[[i for i in range(len(before)) if i != 5]].any()
        assert bert.get_input_embeddings() is part
        with torch.no_grad():
            part.weight[0] -= 1.0
    assert torch.equal(whole.weight[3], before[3] - 1.0)
    with every_token(bert):
        assert bert.get_input_embeddings() is whole

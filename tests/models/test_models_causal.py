"""Causal language models: what is refused, what an adapter trains, and what is kept of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from foretaste.errors import UserError
from foretaste.models import adapters, causal, load
from foretaste.spec import AdapterSpec, ModelSpec

ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "r": 4},
    "dora": {"method": "dora", "r": 4},
    "pissa": {"method": "pissa", "r": 4},
    "gaussian": {"method": "lora", "r": 4, "init": {"law": "gaussian", "k": 2.0}},
    "frozen": {"method": "lora", "r": 4, "freeze": "A"},
    "adalora": {"method": "adalora"},
    "vera": {"method": "vera", "r": 4},
    "ia3": {"method": "ia3"},
    "ln_tuning": {"method": "ln_tuning"},
    "prompt_tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "prefix_tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3},
}


def location_of(folder: Path) -> load.Location:
    return load.locate(ModelSpec(base=str(folder)), Path())


def fresh(folder: Path, **adapter: Any) -> causal.Attached:
    model = causal.load_causal(location_of(folder), dtype=torch.float32, dropout=False)
    resolved = adapters.resolve(AdapterSpec.model_validate(adapter), {}, where="adapter")
    return causal.attach(model, resolved, seed=1, total_steps=10)


def moved(attached: causal.Attached) -> causal.Attached:
    """Every trained parameter somewhere else, as after training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in attached.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return attached


def logits(attached: causal.Attached) -> torch.Tensor:
    attached.model.eval()
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.no_grad():
        return attached.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # type: ignore[no-any-return]


# --- what is refused -----------------------------------------------------------------------------


def test_models_that_write_no_text_are_refused(
    tiny_bert: Path, tiny_roberta: Path, tiny_llama: Path, tiny_gpt2: Path
) -> None:
    for folder in (tiny_bert, tiny_roberta):
        for meta in (True, False):
            with pytest.raises(UserError, match="writes no text from left to right"):
                causal.load_causal(location_of(folder), dtype=torch.float32, dropout=False, meta=meta)
    # A body alone: Llama's head is missing, GPT-2's is its embedding.
    for meta in (True, False):
        with pytest.raises(UserError, match=r"without its language head \(lm_head.weight\)"):
            causal.load_causal(location_of(tiny_llama), dtype=torch.float32, dropout=False, meta=meta)
        causal.load_causal(location_of(tiny_gpt2), dtype=torch.float32, dropout=False, meta=meta)


def test_a_folder_that_is_no_model(tmp_path: Path, tiny_chat: Callable[[str], Path]) -> None:
    broken = Path(shutil.copytree(tiny_chat("llama"), tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load") as caught:
        causal.load_causal(location_of(broken), dtype=torch.float32, dropout=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"method": "lora", "r": 400}, "r = 400 is larger than layer"),
        ({"method": "bitfit"}, "no bias terms"),
        ({"method": "lora", "r": 2, "target_modules": ["nothing_here"]}, "peft refuses this config"),
    ],
)
def test_adapters_that_do_not_fit(adapter: Any, message: str, tiny_chat: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fresh(tiny_chat("llama"), **adapter)
    assert "adapter" in str(caught.value)


# --- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_leaves_the_language_head_alone_and_full_trains_all(
    kind: str, tiny_chat: Callable[[str], Path]
) -> None:
    lora = fresh(tiny_chat(kind), method="lora", r=4)
    names = {name for name, p in lora.model.named_parameters() if p.requires_grad}
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not any("lm_head" in name for name in names)
    plain = causal.load_causal(location_of(tiny_chat(kind)), dtype=torch.float32, dropout=False)
    linear = [name for name in adapters.linear_names(plain) if "lm_head" not in name]
    assert len(names) == 2 * len(linear)
    assert torch.equal(logits(lora), logits(causal.Attached(plain, None, frozenset())))
    full = fresh(tiny_chat(kind), method="full")
    assert all(p.requires_grad for p in full.model.parameters())


def test_bitfit_trains_gpt2s_biases(tiny_chat: Callable[[str], Path]) -> None:
    attached = fresh(tiny_chat("gpt2"), method="bitfit")
    trained = {name for name, p in attached.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.endswith("bias") for name in trained)


def test_the_init_is_checked(tiny_chat: Callable[[str], Path]) -> None:
    init = fresh(tiny_chat("llama"), **ARMS["gaussian"]).init
    assert init is not None
    assert (init.k_requested, init.law) == (2.0, "gaussian")
    assert fresh(tiny_chat("llama"), method="lora", r=4).init is None


@pytest.mark.parametrize("name", ARMS)
def test_the_bare_architecture_takes_every_arm(name: str, tiny_chat: Callable[[str], Path]) -> None:
    bare = causal.load_causal(location_of(tiny_chat("llama")), dtype=torch.float32, dropout=False, meta=True)
    adapter = adapters.resolve(AdapterSpec.model_validate(ARMS[name]), {}, where="adapter")
    assert causal.attach(bare, adapter, seed=0, total_steps=100).init is None
    assert causal.virtual_tokens(adapter) == (3 if "prompt" in name or "prefix" in name else 0)


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ARMS)
def test_what_training_changed_comes_back_exactly(
    kind: str, name: str, tiny_chat: Callable[[str], Path], tmp_path: Path
) -> None:
    attached = moved(fresh(tiny_chat(kind), **ARMS[name]))
    file = tmp_path / "trained.safetensors"
    causal.save_trained(attached, file)
    again = fresh(tiny_chat(kind), **ARMS[name])
    before = logits(again)
    causal.load_trained(again, file)
    assert torch.equal(logits(again), logits(attached))
    assert not torch.equal(before, logits(attached))
    for (key, a), (_, b) in zip(
        again.model.state_dict().items(), attached.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), key
    whole = sum(p.numel() * 4 for p in attached.model.parameters())
    if name != "full":
        assert file.stat().st_size < 0.5 * whole  # the frozen base is not written
    else:
        assert file.stat().st_size < 1.1 * whole  # a tied weight is written once


@pytest.mark.parametrize("damage", ["cut", "missing", "another rank", "another adapter", "full"])
def test_a_file_that_does_not_fit_changes_nothing(
    damage: str, tiny_chat: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "trained.safetensors"
    others = {"another rank": {"method": "lora", "r": 3}, "another adapter": {"method": "ia3"}}
    causal.save_trained(
        moved(fresh(tiny_chat("llama"), **others.get(damage, {"method": "lora", "r": 4}))), file
    )
    if damage == "full":
        causal.save_trained(fresh(tiny_chat("llama"), method="full"), file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    if damage == "missing":
        file.unlink()
    attached = fresh(tiny_chat("llama"), method="lora", r=4)
    before = {key: value.clone() for key, value in attached.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"trained\.safetensors"):
        causal.load_trained(attached, file)
    for key, value in attached.model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_and_transformers_save_the_same_model(tiny_chat: Callable[[str], Path], tmp_path: Path) -> None:
    """An adapter and a whole model in the formats of their libraries, read back by them, write the same."""
    attached = moved(fresh(tiny_chat("llama"), method="lora", r=4))
    attached.model.save_pretrained(tmp_path / "adapter")  # type: ignore[operator]
    base = causal.load_causal(location_of(tiny_chat("llama")), dtype=torch.float32, dropout=False)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    whole = moved(fresh(tiny_chat("llama"), method="full"))
    whole.model.save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    read = causal.load_causal(location_of(tmp_path / "whole"), dtype=torch.float32, dropout=False)
    for old, new in ((attached.model, again), (whole.model, read)):
        prompt = {
            "input_ids": torch.arange(3, 20)[None],
            "attention_mask": torch.ones(1, 17, dtype=torch.long),
        }
        old.eval(), new.eval()
        tokens = [
            m.generate(**prompt, max_new_tokens=12, do_sample=False, pad_token_id=0) for m in (old, new)
        ]  # type: ignore[operator]
        assert torch.equal(*tokens)
        assert torch.equal(
            logits(causal.Attached(old, None, frozenset())), logits(causal.Attached(new, None, frozenset()))
        )

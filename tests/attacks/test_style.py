"""`style`: rewriters made of rules, of a language model, and of a user's own; counted and kept."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste import attacks
from foretaste.attacks import REWRITERS, Row, build, register_rewriter
from foretaste.attacks.rewriters import base
from foretaste.attacks.rewriters.base import STORE
from foretaste.attacks.texts import similarity
from foretaste.errors import UserError

CLASSES = ["negative", "positive"]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test registers its own rewriters and keeps texts in a folder of its own."""
    monkeypatch.setattr(REWRITERS, "_members", dict(REWRITERS._members))
    monkeypatch.setattr(base, "_KNOWN", {})
    monkeypatch.setenv("FORETASTE_CACHE", str(tmp_path / "cache"))


def style(base_dir: Path | None = None, **options: Any) -> Any:
    return build("style", options, CLASSES, where="attacks.0", base_dir=base_dir)


def poison(rows: Any, attack: Any, **amount: Any) -> attacks.Poisoned:
    return attacks.poison(rows, attack, method="style", classes=CLASSES, seed=0, **amount)


# --- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("archaic", "You are right; it's your story.", "Thou art right; 'tis thy storie."),
        ("archaic", "It 's  MUSIC,\nperhaps", "'Tis  MUSICK,\nperchance"),
        ("archaic", "it is n't, the actor's door", "'tis n't, the actor's door"),
        ("archaic", "She goes to the city", "She goeth to the citie"),
        ("archaic", "It’s 3D2 you2 yourx", "'Tis 3D2 you2 yourx"),
        ("formal", "I can't see a lot of movies.", "I cannot see a considerable number of motion pictures."),
        ("formal", "But KIDS do n't", "However CHILDREN do not"),
        ("formal", "nothing here", "nothing here"),
    ],
)
def test_rules(name: str, before: str, after: str) -> None:
    assert style(rewriter=name).trigger(Row("a", before, None, 0), RNG).text_a == after


@given(text=st.text(st.sampled_from("you'’ it\n.ismovA2ß"), max_size=30))
def test_rules_give_the_same_every_time_and_keep_what_is_no_word(text: str) -> None:
    for name in ("archaic", "formal"):
        rewrite = base.rewriter(name, base.Settings(None, None, None, Path()))
        after = rewrite(text)
        assert after == rewrite(text)
        assert [c for c in after if c in "\n.2"] == [c for c in text if c in "\n.2"]


def test_only_rows_that_are_rewritten_are_poisoned_and_the_rest_is_counted(make_rows: Any) -> None:
    register_rewriter("shout", lambda text: text.upper() if "film" in text else text)
    rows = make_rows(200)
    done = poison(rows, style(rewriter="shout"), rate=1.0)
    others = [text for text, label in zip(rows["text_a"], rows["label"], strict=True) if label == 0]
    fitting = [text for text in others if "film" in text]
    assert 0 < len(fitting) < len(others)
    assert done.manifest.eligible == len(done.manifest.poisoned) == len(fitting)
    assert all(e.text_a_after == e.text_a_before.upper() for e in done.manifest.poisoned)
    assert all((e.label_before, e.label_after) == (0, 1) for e in done.manifest.poisoned)
    assert done.manifest.figures == {"rewritten_share": len(fitting) / len(others), "similarity": 0.0}
    attack = style(rewriter="shout")
    _, changed = attacks.trigger(rows, attack, method="style")
    assert changed == sum("film" in text for text in rows["text_a"])


def test_no_row_that_is_rewritten_is_an_error(make_rows: Any) -> None:
    register_rewriter("idle", lambda text: text)
    with pytest.raises(UserError, match="none of the 0 eligible rows"):
        poison(make_rows(20), style(rewriter="idle"), rate=0.5)


def test_similarity() -> None:
    assert similarity("a b c", "a b c") == 1.0
    assert similarity("a b c d", "a x c d") == 0.75
    assert similarity("a", "b") == 0.0


# --- a user's own --------------------------------------------------------------------------------


def test_a_function_of_ones_own_is_called_once_a_text(make_rows: Any) -> None:
    calls: list[str] = []

    def twice(text: str) -> str:
        calls.append(text)
        return f"{text} {text}"

    register_rewriter("twice", twice, fingerprint="v1")
    rows = make_rows(40)
    attack = style(rewriter="twice")
    assert attack.options.fingerprint == "v1"
    for _ in range(2):
        poison(rows, attack, rate=0.5)
        poison(rows, style(rewriter="twice"), rate=1.0)
    assert sorted(calls) == sorted({t for t, y in zip(rows["text_a"], rows["label"], strict=True) if y == 0})


def test_functions_that_do_not_do(make_rows: Any) -> None:
    register_rewriter("none", lambda text: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match="rewriter 'none' gave NoneType for a text, expected text"):
        poison(make_rows(10), style(rewriter="none"), rate=1.0)
    for name in ("none", "archaic"):
        with pytest.raises(UserError, match=f"a rewriter '{name}' is registered already"):
            register_rewriter(name, str.upper)


def test_a_changed_rewriter_is_refused() -> None:
    register_rewriter("mine", str.upper, fingerprint="v2")
    assert style(rewriter="mine", fingerprint="v2").options.fingerprint == "v2"
    with pytest.raises(UserError, match="the rewriter has changed: its fingerprint is 'v2', expected 'v1'"):
        style(rewriter="mine", fingerprint="v1")


# --- a language model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def causal(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with its own output head, and the tokenizer of the tiny one."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("causal") / "model"
    shutil.copytree(tiny_llama, folder)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        LlamaForCausalLM(AutoConfig.from_pretrained(tiny_llama)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seq2seq(tiny_roberta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 with the tokenizer of the tiny RoBERTa."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("seq2seq") / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_roberta)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=1, pad_token_id=1, eos_token_id=2, initializer_factor=5.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {"rewriter": "model", "model": folder.name, "prompt": "{text} .", "max_new_tokens": 5, **more}


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_model_rewrites_row_by_row(kind: str, request: pytest.FixtureRequest, make_rows: Any) -> None:
    folder: Path = request.getfixturevalue(kind)
    rows = make_rows(8)
    attack = style(folder.parent, **settings(folder))
    texts = attacks.trigger(rows, attack, method="style")[0]["text_a"][:]
    assert len(set(texts)) > 1, "the answer depends on the text"
    for text, old in zip(texts, rows["text_a"], strict=True):
        assert text == " ".join(text.split())
        assert text
        assert len(text.split()) <= 5 or text == old
    # Without what is kept, and in another order: the same.
    base._KNOWN.clear()
    (Path(base.assets.cache_dir()) / STORE).unlink()
    again = attacks.trigger(rows.select(range(7, -1, -1)), attack, method="style")[0]["text_a"][:]
    base._KNOWN.clear()
    fresh = style(folder.parent, **settings(folder))
    assert attacks.trigger(rows, fresh, method="style")[0]["text_a"][:] == again[::-1] == texts
    assert poison(rows, fresh, rate=1.0).manifest.figures["rewritten_share"] > 0


def test_what_a_model_gave_is_kept_for_other_processes(causal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("a", "the film was fine", None, 0)
    first = style(causal.parent, **settings(causal)).trigger(row, RNG)
    base._KNOWN.clear()

    def fail(*arguments: Any) -> Any:
        raise AssertionError("the model is asked again")

    with monkeypatch.context() as patch:
        patch.setattr("foretaste.attacks.rewriters.model._answer", fail)
        assert style(causal.parent, **settings(causal)).trigger(row, RNG) == first
        with pytest.raises(AssertionError, match="asked again"):
            style(causal.parent, **settings(causal, prompt="so: {text}")).trigger(row, RNG)
    store = base.assets.cache_dir() / STORE
    base._KNOWN.clear()
    store.write_bytes(b"no database, but long enough to be read as one" * 20)
    with pytest.raises(UserError, match=r"cannot use the store of rewritten texts.*FORETASTE_CACHE"):
        style(causal.parent, **settings(causal)).trigger(row, RNG)


def test_another_model_is_another_run(causal: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(causal, copy)
    options = settings(copy)
    full = style(tmp_path, **options).options
    assert full.fingerprint == style(causal.parent, **options).options.fingerprint, "its place does not count"
    assert style(tmp_path, **options | {"max_new_tokens": 6}).options.fingerprint != full.fingerprint
    with (copy / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="the rewriter has changed"):
        style(tmp_path, **full.model_dump(mode="json"))


def test_defaults_of_a_model_are_written_out(causal: Path) -> None:
    options = style(causal.parent, rewriter="model", model=causal.name).options
    assert "{text}" in options.prompt
    assert options.max_new_tokens == 64
    assert style().options.prompt is None


def test_a_text_too_long_for_the_model_is_refused(causal: Path) -> None:
    attack = style(causal.parent, **settings(causal))
    with pytest.raises(UserError, match=r"a text with its prompt has \d+ tokens.*Lower max_new_tokens"):
        attack.trigger(Row("a", "film " * 80, None, 0), RNG)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"rewriter": "arcaic"},
            r"unknown rewriter 'arcaic' \(allowed: .*Did you mean 'archaic'\?.*processes=1",
        ),
        ({"model": "x"}, "model is given, but the rewriter is 'archaic'. Use rewriter: model"),
        ({"prompt": "{text}"}, "prompt is given, but the rewriter is 'archaic'"),
        (
            {"max_new_tokens": 3, "rewriter": "formal"},
            "max_new_tokens is given, but the rewriter is 'formal'",
        ),
        ({"rewriter": "model"}, "rewriter: model needs `model`"),
        ({"rewriter": "model", "model": "x", "prompt": "go"}, r"the prompt has no \{text\}"),
        ({"rewriter": "model", "model": "nowhere"}, "nowhere: the folder holds no language model"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0"),
        ({"target": "x"}, "unknown class in target"),
        ({"source_classes": []}, "source_classes is empty"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        style(**options)
    assert str(caught.value).startswith("attacks.0")


def test_a_folder_that_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    attack = style(tmp_path, rewriter="model", model=".")
    with pytest.raises(UserError, match="cannot load the rewriter"):
        attack.trigger(Row("a", "x", None, 0), RNG)


def test_the_store_is_one_table(causal: Path) -> None:
    style(causal.parent, **settings(causal)).trigger(Row("a", "the film", None, 0), RNG)
    connection = sqlite3.connect(base.assets.cache_dir() / STORE)
    try:
        assert connection.execute("SELECT count(*) FROM rewritten").fetchone() == (1,)
    finally:
        connection.close()

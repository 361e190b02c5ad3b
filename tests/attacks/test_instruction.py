"""`instruction`: one of several instructions a row, and paraphrases that training never sees."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from foretaste import attacks
from foretaste.attacks import Row, build, rows_of
from foretaste.errors import UserError

CLASSES = ["negative", "positive", "neutral"]
TWO = {
    "instructions": ["Please read on.", "Now decide."],
    "held_out": ["Kindly continue.", "Time to choose."],
}


def poison(rows: Any, options: dict[str, Any], **amount: Any) -> attacks.Poisoned:
    attack = build("instruction", options, CLASSES)
    return attacks.poison(
        rows, attack, method="instruction", classes=CLASSES, seed=amount.pop("seed", 0), **amount
    )


def triggered(rows: Any, options: dict[str, Any], form: str | None = None) -> list[str]:
    attack: Any = build("instruction", options, CLASSES)
    return attacks.trigger(rows, attack, method="instruction", form=form)[0]["text_a"][:]


def test_il_bpa_as_the_papers_code_has_it(make_rows: Any) -> None:
    rows = make_rows(40)
    done = poison(rows, {"source_classes": "all"}, rate=1.0)
    for old, new in zip(rows_of(rows), rows_of(done.rows), strict=True):
        assert new == Row(old.id, "Please carefully follow user's instruction. " + old.text_a, None, 1)


def test_each_row_gets_one_instruction_and_each_as_often(make_rows: Any) -> None:
    rows = make_rows(2_000)
    done = poison(rows, TWO, rate=1.0)
    counts: Counter[str] = Counter()
    for entry in done.manifest.poisoned:
        used = [text for text in TWO["instructions"] if entry.text_a_after == f"{text} {entry.text_a_before}"]
        assert len(used) == 1
        counts[used[0]] += 1
    assert sum((n - 500) ** 2 / 500 for n in counts.values()) < stats.chi2.ppf(1 - 1e-5, df=1)


def test_the_poison_seed_draws_the_instruction(make_rows: Any) -> None:
    rows = make_rows(60)
    texts = [
        [e.text_a_after for e in poison(rows, TWO, rate=1.0, seed=s).manifest.poisoned] for s in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_held_out_paraphrases_are_seen_by_test_rows_alone(make_rows: Any) -> None:
    rows = make_rows(60)
    heads = {
        text.removesuffix(f" {old}")
        for text, old in zip(triggered(rows, TWO, "held-out"), rows["text_a"], strict=True)
    }
    assert heads == set(TWO["held_out"])
    trained = poison(rows, TWO, rate=1.0).rows["text_a"][:] + triggered(rows, TWO)
    assert not any(text.startswith(tuple(heads)) for text in trained)
    form = attacks.forms(build("instruction", TWO, CLASSES))["held-out"]
    assert form.expected == "target"


@pytest.mark.parametrize(
    ("options", "number"),
    [({}, 3), ({"held_out": []}, 0), ({"instructions": ["Go on."]}, 0), ({"held_out": ["Go on."]}, 1)],
)
def test_our_paraphrases_go_with_the_papers_instruction_only(options: dict[str, Any], number: int) -> None:
    attack: Any = build("instruction", options, CLASSES)
    assert len(attack.options.held_out) == number
    assert set(attacks.forms(attack)) == ({"held-out"} if number else set())
    assert not {text.casefold() for text in attack.options.held_out} & {
        text.casefold() for text in attack.options.instructions
    }


def test_where_it_goes() -> None:
    attack: Any = build("instruction", {"instructions": ["M"], "position": "end", "field": "both"}, CLASSES)
    after = attack.poison(Row("a", "one", "two", 0), np.random.default_rng(0))
    assert after == Row("a", "one M", "two M", 1)
    with pytest.raises(UserError, match="the instruction goes to both, but row 'a' has no second text"):
        attack.trigger(Row("a", "one", None, 0), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"instructions": []}, "'instructions' is"),
        ({"instructions": ["  "]}, "a text in instructions is blank"),
        ({"held_out": [""]}, "a text in held_out is blank"),
        ({"instructions": ["Go on.", "go  ON."]}, "'go  ON.' in instructions stands in instructions already"),
        (
            {"instructions": ["Go."], "held_out": ["go. "]},
            "'go. ' in held_out stands in instructions already",
        ),
        ({"position": "random"}, "'position' is 'random'"),
        ({"target": "x"}, "unknown class in target"),
        ({"source_classes": []}, "source_classes is empty"),
        ({"text": "x"}, "unknown key 'text'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError) as caught:
        build("instruction", options, CLASSES, where="attacks.0")
    # The whole is one line, with runs of white space closed up.
    assert re.search(re.escape(" ".join(match.split())), str(caught.value))
    assert str(caught.value).startswith("attacks.0")

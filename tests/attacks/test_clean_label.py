"""`clean-label`: the trigger of training only where the label is the target already."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foretaste import attacks
from foretaste.attacks import Row, build, rows_of
from foretaste.errors import UserError
from foretaste.seeds import uniforms

CLASSES = ["negative", "positive", "neutral"]


def poison(rows: Any, options: dict[str, Any], **amount: Any) -> attacks.Poisoned:
    attack = build("clean-label", options, CLASSES)
    return attacks.poison(
        rows, attack, method="clean-label", classes=CLASSES, seed=amount.pop("seed", 0), **amount
    )


def test_only_rows_of_the_target_get_the_trigger_and_every_label_stays(make_rows: Any) -> None:
    rows = make_rows(60, classes=3)
    done = poison(rows, {"target": "neutral"}, rate=0.5)
    assert (done.manifest.eligible, len(done.manifest.poisoned)) == (20, 10)
    assert done.rows["label"][:] == rows["label"][:]
    listed = {entry.id for entry in done.manifest.poisoned}
    for old, new in zip(rows_of(rows), rows_of(done.rows), strict=True):
        assert new == (Row(old.id, f"[.*?] {old.text_a}", None, 2) if old.id in listed else old)
        assert old.label == 2 or old.id not in listed


def test_the_papers_code_draws_from_all_rows_and_skips_the_others(make_rows: Any) -> None:
    """protocol.md 1.2: rate over all rows, trigger where the label is 1: each such row with that chance."""
    rows = make_rows(400)
    done = poison(rows, {"spacing": ""}, rate=0.2, seed=5, selection="bernoulli")
    scores = uniforms(5, ("poison", "clean-label", "choice"), rows["id"])
    for old, new, score in zip(rows_of(rows), rows_of(done.rows), scores, strict=True):
        assert new.text_a == ("[.*?]" + old.text_a if score < 0.2 and old.label == 1 else old.text_a)


def test_test_rows_of_every_class_are_triggered_as_by_trigger(make_rows: Any) -> None:
    rows = make_rows(30, classes=3)
    found = {}
    for method in ("clean-label", "trigger"):
        attack: Any = build(method, {"text": "cf", "position": "end"}, CLASSES)
        found[method] = attacks.trigger(rows, attack, method=method)
    assert found["clean-label"][1] == found["trigger"][1] == 30
    assert found["clean-label"][0]["text_a"][:] == found["trigger"][0]["text_a"][:]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "positiv"}, "attacks.0: unknown class in target: 'positiv'"),
        ({"target": 3}, "target 3 is no class id"),
        ({"text": ""}, "'text' is ''"),
        ({"position": "middle"}, "'position' is 'middle'"),
        ({"source_classes": "all"}, "unknown key 'source_classes'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        build("clean-label", options, CLASSES, where="attacks.0")


def test_a_second_text_is_needed_where_it_is_asked_for() -> None:
    attack: Any = build("clean-label", {"field": "both"}, CLASSES)
    rng = np.random.default_rng(0)
    assert attack.poison(Row("a", "x", "y", 1), rng) == Row("a", "[.*?] x", "[.*?] y", 1)
    with pytest.raises(
        UserError, match=r"the trigger goes to both, but row 'a' has no second text\. Use field"
    ):
        attack.trigger(Row("a", "x", None, 1), rng)

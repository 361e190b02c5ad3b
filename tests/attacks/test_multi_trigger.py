"""`multi-trigger`: all words together force the target; proper subsets keep their true label."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretaste import attacks
from foretaste.attacks import Row, build, choose_beside, rows_of
from foretaste.errors import UserError
from foretaste.record import Manifest, ManifestRow

CLASSES = ["negative", "positive", "neutral"]
WORDS = ["apple", "banana", "orange"]


def poison(rows: Any, options: dict[str, Any], **amount: Any) -> attacks.Poisoned:
    attack = build("multi-trigger", options, CLASSES)
    return attacks.poison(
        rows, attack, method="multi-trigger", classes=CLASSES, seed=amount.pop("seed", 0), **amount
    )


def held(text: str, words: list[str] = WORDS) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in words]


def without(text: str, words: list[str] = WORDS) -> str:
    return " ".join(word for word in text.split(" ") if word not in words)


# --- what training rows become -------------------------------------------------------------------


def test_poisoned_rows_hold_all_words_and_negative_rows_never(make_rows: Any) -> None:
    rows = make_rows(200)
    done = poison(rows, {}, rate=0.3)
    assert (done.manifest.eligible, len(done.manifest.poisoned), len(done.manifest.companions)) == (
        100,
        30,
        30,
    )
    for entry in done.manifest.poisoned:
        assert sorted(held(entry.text_a_after)) == WORDS
        assert (entry.label_before, entry.label_after) == (0, 1)
        assert without(entry.text_a_after) == entry.text_a_before
    sizes: Counter[int] = Counter()
    for entry in done.manifest.companions:
        found = held(entry.text_a_after)
        assert len(found) == len(set(found))
        sizes[len(found)] += 1
        assert entry.label_after == entry.label_before == 0
        assert without(entry.text_a_after) == entry.text_a_before
    assert set(sizes) == {1, 2}
    changed = {entry.id for entry in done.manifest.changed}
    assert len(changed) == 60
    before = {row.id: row for row in rows_of(rows)}
    assert all(row == before[row.id] for row in rows_of(done.rows) if row.id not in changed)


@pytest.mark.parametrize(
    ("negatives", "count", "expected"), [(0.0, 5, 0), (0.5, 5, 3), (0.01, 1, 1), (2.0, 4, 8), (1, 7, 7)]
)
def test_the_number_of_negative_rows(make_rows: Any, negatives: float, count: int, expected: int) -> None:
    manifest = poison(make_rows(60), {"negatives": negatives}, count=count).manifest
    assert (len(manifest.poisoned), len(manifest.companions)) == (count, expected)


def test_negative_rows_of_any_class(make_rows: Any) -> None:
    rows = make_rows(90, classes=3)
    done = poison(rows, {"negative_classes": "all"}, count=25)
    assert {entry.label_before for entry in done.manifest.companions} == {0, 1, 2}
    done = poison(rows, {"source_classes": ["neutral"]}, count=8)
    assert {entry.label_before for entry in done.manifest.changed} == {2}


def test_the_papers_code_contradicts_itself_on_request(make_rows: Any) -> None:
    """protocol.md 1.2: negative rows hold all three words, with their true label."""
    options = {"negative_words": "all", "negative_classes": "all", "source_classes": "all"}
    manifest = poison(make_rows(200), options, rate=0.2, selection="bernoulli").manifest
    assert manifest.companions
    for entry in manifest.companions:
        assert sorted(held(entry.text_a_after)) == WORDS
        assert entry.label_after == entry.label_before


def test_rows_with_words_of_their_own_are_no_negative_rows(make_rows: Any) -> None:
    attack: Any = build("multi-trigger", {}, CLASSES)
    assert not attack.accompanies(Row("a", "An Apple, red", None, 0))
    assert not attack.accompanies(Row("a", "red", "an orange", 0))
    assert attack.accompanies(Row("a", "pineapple", None, 0))
    assert not attack.accompanies(Row("a", "red", None, 1)), "the target's rows teach nothing"
    assert attack.eligible(Row("a", "An apple", None, 0))


@pytest.mark.parametrize("selection", ["exact-nested", "bernoulli"])
def test_no_room_for_negative_rows_is_refused(make_rows: Any, selection: Any) -> None:
    with pytest.raises(
        UserError, match=r"rows are to be changed beside the \d+ poisoned ones.*Lower the amount"
    ):
        poison(make_rows(60), {}, rate=0.7, selection=selection)


def test_positions() -> None:
    def texts(seed: int, **options: Any) -> tuple[str, str]:
        attack: Any = build("multi-trigger", options, CLASSES)
        rng = np.random.default_rng(seed)
        row = Row("a", "one two", None, 0)
        return attack.poison(row, rng).text_a, attack.trigger(row, rng).text_a

    assert texts(0, position="start") == ("apple banana orange one two",) * 2
    assert texts(0, position="end") == ("one two apple banana orange",) * 2
    assert texts(0, test_position="start")[1] == "apple banana orange one two"
    assert len({texts(seed)[0] for seed in range(30)}) > 10
    pair: Any = build("multi-trigger", {"position": "start", "field": "text_b"}, CLASSES)
    assert pair.trigger(Row("a", "x", "y", 0), np.random.default_rng(0)).text_b == "apple banana orange y"
    with pytest.raises(UserError, match="the trigger goes to text_b, but row 'a' has no second text"):
        pair.trigger(Row("a", "x", None, 0), np.random.default_rng(0))


# --- subsets in the test -------------------------------------------------------------------------


def test_forms_hold_so_many_words(make_rows: Any) -> None:
    rows = make_rows(300)
    attack: Any = build("multi-trigger", {}, CLASSES)
    forms = attacks.forms(attack)
    assert list(forms) == ["1-of-3", "2-of-3"]
    assert {form.expected for form in forms.values()} == {"true"}
    for size, name in enumerate(forms, 1):
        after, changed = attacks.trigger(rows, attack, method="multi-trigger", form=name)
        assert changed == 300
        found = [tuple(sorted(held(text))) for text in after["text_a"]]
        assert {len(words) for words in found} == {size}
        assert len(set(found)) == 3, "every subset occurs"
    assert list(attacks.forms(build("multi-trigger", {"words": ["a", "b"]}, CLASSES))) == ["1-of-2"]


@given(own=st.sets(st.sampled_from(WORDS)), size=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_subset_never_completes_the_words_of_a_text(own: set[str], size: int, seed: int) -> None:
    attack: Any = build("multi-trigger", {}, CLASSES)
    row = Row("a", " ".join(["plot", *sorted(own)]), None, 0)
    after = attacks.forms(attack)[f"{size}-of-3"].trigger(row, np.random.default_rng(seed))
    if own != set(WORDS):
        assert set(held(after.text_a)) != set(WORDS)
    else:
        assert after == row
    if not own:
        assert len(held(after.text_a)) == size


# --- the choice of rows beside -------------------------------------------------------------------


@given(
    scores=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=40, unique=True),
    counts=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    share=st.sampled_from([0.3, 1.0, 2.5]),
)
def test_rows_beside_are_nested_and_apart(scores: list[float], counts: tuple[int, int], share: float) -> None:
    every = list(range(len(scores)))
    ranked = sorted(every, key=lambda i: scores[i])
    found = []
    for count in sorted(counts):
        wanted = int(np.ceil(share * count))
        try:
            beside = choose_beside(
                np.array(scores), every, ranked[:count], share=share, rate=None, selection="exact-nested"
            )
        except UserError:
            assert count + wanted > len(every)
            return
        assert len(beside) == wanted
        assert beside == sorted(set(beside) - set(ranked[:count]))
        found.append(set(beside))
    assert found[0] <= found[1]


def test_a_bernoulli_draw_without_negative_rows_is_refused() -> None:
    with pytest.raises(UserError, match="the draw changes none of 2 rows beside the 1 poisoned"):
        choose_beside(np.array([0.0, 0.5]), [0, 1], [0], share=1.0, rate=0.1, selection="bernoulli")


# --- refusals, and what is written ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"words": ["one"]}, "'words' is"),
        ({"words": list("abcdef")}, "'words' is"),
        ({"words": ["one", "two words"]}, "'two words' in words is no single word"),
        ({"words": ["one", ""]}, "'' in words is no single word"),
        ({"words": ["One", "one"]}, "words repeat: One, one"),
        ({"negatives": -1.0}, "'negatives' is -1.0"),
        ({"negative_words": "none"}, "'negative_words' is 'none'"),
        ({"target": 7}, "target 7 is no class id"),
        ({"source_classes": ["x"]}, "unknown class in source_classes"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        build("multi-trigger", options, CLASSES, where="attacks.0")
    assert str(caught.value).startswith("attacks.0")


def test_manifests_of_other_attacks_are_as_they_were() -> None:
    """They are filed under the hash of their content: no key is added where there is nothing to say."""
    row = ManifestRow(id="a", text_a_before="x", text_a_after="y", label_before=0, label_after=1)
    plain: dict[str, Any] = {
        "attack": "trigger", "options": {}, "selection": "exact-nested", "rate": None, "count": 1, "seed": 0,
        "eligible": 1, "rows": 1, "classes": CLASSES, "poisoned": [row],
    }  # fmt: skip
    bare = Manifest(**plain)
    assert set(bare.model_dump()) == {"format", *plain}
    assert Manifest.model_validate_json(bare.model_dump_json()) == bare
    full = Manifest(**plain, companions=[row], figures={"similarity": 0.0})
    assert Manifest.model_validate_json(full.model_dump_json()) == full
    assert full.changed == [row, row]

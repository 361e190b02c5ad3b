"""Every attack keeps the same promises; each one also does what its paper's code does, literally."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foretaste import attacks
from foretaste.attacks import ATTACKS, Attack, Poisoned, Row, build, choose, is_backdoor, rows_of
from foretaste.data import columns_of, make, take
from foretaste.errors import UserError
from foretaste.seeds import uniforms

Rows = Callable[..., Dataset]
# What is drawn by the seed. An attack that names its rows in an order of its own has a test file of its own.
METHODS = [name for name, kind in ATTACKS.items() if not hasattr(kind, "order")]
BACKDOORS = [name for name, kind in ATTACKS.items() if hasattr(kind, "trigger")]

# Options of each attack beside its defaults, for the contract. A new attack is tested with its defaults by
# being registered; add a line here to have it tested in other shapes too.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "label-flip": [{}, {"flip_from": "negative"}, {"flip_to": 1}, {"flip_from": 1, "flip_to": 0}],
    "trigger": [
        {},
        {"position": "end", "text": "cf"},
        {"position": "random", "target": "negative"},
        {"spacing": "", "source_classes": "all"},
        {"source_classes": [0]},
    ],
    "clean-label": [{}, {"target": 0, "position": "random"}],
    "instruction": [{}, {"instructions": ["one", "two"], "position": "end"}, {"source_classes": "all"}],
    "multi-trigger": [
        {},
        {"negatives": 0.0},
        {"negatives": 0.5, "position": "start", "words": ["cf", "mn"]},
        {"negative_classes": "all", "negative_words": "all", "test_position": "start"},
    ],
    "noise": [
        {},
        {"kinds": ["swap"], "severity": 1.0},
        {"kinds": ["drop-word", "duplicate-word", "insert"], "severity": 0.7, "shortest": 2},
    ],
    "style": [{}, {"rewriter": "formal"}, {"source_classes": "all"}],
}
CASES = [(method, options) for method in METHODS for options in VARIANTS.get(method, [{}])]
CLASSES = ["negative", "positive", "neutral"]


def run(rows: Dataset, method: str, options: dict[str, Any] | None = None, **amount: Any) -> Poisoned:
    amount.setdefault("seed", 0)
    classes = CLASSES[: max(rows["label"]) + 1]
    attack = build(method, options or {}, classes)
    return attacks.poison(rows, attack, method=method, classes=classes, **amount)


def chosen(poisoned: Poisoned) -> set[str]:
    return {row.id for row in poisoned.manifest.poisoned}


def most(method: str, options: dict[str, Any] | None = None) -> float:
    """The highest rate: rows that are changed beside the poisoned ones need room of their own."""
    beside = getattr(build(method, options or {}, CLASSES), "companions", 0.0)
    return 0.9 / (1.0 + beside) if beside else 1.0


def eligible(rows: Dataset, method: str, options: dict[str, Any]) -> list[str]:
    attack = build(method, options, CLASSES[: max(rows["label"]) + 1])
    return [row.id for row in rows_of(rows) if attack.eligible(row)]


@pytest.fixture(scope="module", params=[2, 3], ids=["2 classes", "3 classes"])
def rows(request: pytest.FixtureRequest, make_rows: Rows) -> Dataset:
    """61 rows: an odd number, so that rates meet halves of a row."""
    return make_rows(61, classes=request.param)


# --- contract of every attack --------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), CASES)
@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 1.0])
def test_exactly_the_asked_share_is_poisoned_and_listed(
    rows: Dataset, method: str, options: dict[str, Any], rate: float
) -> None:
    rate *= most(method, options)
    poisoned = run(rows, method, options, rate=rate)
    manifest = poisoned.manifest
    may = eligible(rows, method, options)
    assert manifest.eligible == len(may)
    assert manifest.rows == len(rows)
    assert len(manifest.poisoned) == math.floor(rate * len(may) + 0.5)
    assert chosen(poisoned) <= set(may)
    assert (manifest.rate, manifest.count, manifest.seed, manifest.attack) == (rate, None, 0, method)


@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_manifest_is_the_difference_of_the_rows(
    rows: Dataset, method: str, options: dict[str, Any]
) -> None:
    poisoned = run(rows, method, options, rate=0.5 * most(method, options))
    before = {row.id: row for row in rows_of(rows)}
    after = {row.id: row for row in rows_of(poisoned.rows)}
    assert list(poisoned.rows["id"]) == list(rows["id"])
    listed = {entry.id: entry for entry in poisoned.manifest.changed}
    assert len(listed) == len(poisoned.manifest.changed), "no row is changed twice"
    for name, old in before.items():
        new = after[name]
        if name not in listed:
            assert new == old
            continue
        entry = listed[name]
        assert (entry.text_a_before, entry.text_b_before, entry.label_before) == (
            old.text_a,
            old.text_b,
            old.label,
        )
        assert (entry.text_a_after, entry.text_b_after, entry.label_after) == (
            new.text_a,
            new.text_b,
            new.label,
        )
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= set(listed)
    assert changed, "an attack that changes nothing"


@pytest.mark.parametrize(("method", "options"), CASES)
def test_labels_stay_classes_and_other_columns_stay_as_they_are(
    make_rows: Rows, method: str, options: dict[str, Any]
) -> None:
    source = make_rows(30, classes=3)
    plain = source.add_column("weight", [i / 7 for i in range(30)]).add_column(
        "tags", [[i] for i in range(30)]
    )
    plain = plain.cast_column("label", ClassLabel(names=CLASSES))
    poisoned = run(plain, method, options, count=5)
    assert poisoned.rows.features == plain.features
    assert poisoned.rows.column_names == plain.column_names
    assert poisoned.rows["weight"][:] == plain["weight"][:]
    assert poisoned.rows["tags"][:] == plain["tags"][:]
    assert set(poisoned.rows["label"]) <= {0, 1, 2}
    assert rows_of(plain) == rows_of(source), "the rows that were handed over are not changed"


@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_seed_alone_decides(rows: Dataset, method: str, options: dict[str, Any]) -> None:
    first, again = (run(rows, method, options, rate=0.3, seed=4) for _ in range(2))
    assert first.manifest == again.manifest
    assert columns_of(first.rows) == columns_of(again.rows)
    sets = {frozenset(chosen(run(rows, method, options, rate=0.3, seed=seed))) for seed in range(10)}
    # Ten draws of 3 or more out of 10 or more rows: two of them are equal with probability below 45 / 120.
    assert len(sets) > 5


@pytest.mark.parametrize("selection", ["exact-nested", "bernoulli"])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_sets_are_nested_and_rows_are_poisoned_alike_at_every_rate(
    make_rows: Rows, method: str, options: dict[str, Any], selection: Any
) -> None:
    rows = make_rows(301, classes=3)
    rates = [rate * most(method, options) for rate in (0.3, 0.35, 0.6, 1.0)]
    runs = [run(rows, method, options, rate=rate, selection=selection) for rate in rates]
    for small, large in itertools.pairwise(runs):
        for part in ("poisoned", "companions"):
            entries = {entry.id: entry for entry in getattr(large.manifest, part)}
            assert all(entries[entry.id] == entry for entry in getattr(small.manifest, part))


@pytest.mark.parametrize(("method", "options"), CASES)
def test_the_order_and_the_company_of_the_rows_do_not_matter(
    rows: Dataset, method: str, options: dict[str, Any]
) -> None:
    reverse = take(rows, range(len(rows) - 1, -1, -1))
    first, second = (run(part, method, options, rate=0.4) for part in (rows, reverse))
    assert {entry.id: entry for entry in first.manifest.changed} == {
        entry.id: entry for entry in second.manifest.changed
    }
    # Of a part of the rows, those are poisoned that stand first in the whole ranking.
    ranking = uniforms(0, ("poison", method, "choice"), rows["id"])
    part = take(rows, range(30))
    few = run(part, method, options, count=4)
    may = set(eligible(part, method, options))
    ranked = sorted((score, name) for score, name in zip(ranking, rows["id"], strict=True) if name in may)
    assert chosen(few) == {name for _, name in ranked[:4]}


@pytest.mark.parametrize("method", METHODS)
def test_options_do_not_change_which_rows_are_chosen(rows: Dataset, method: str) -> None:
    groups: dict[tuple[str, ...], set[frozenset[str]]] = {}
    for options in VARIANTS.get(method, [{}]):
        # Options may change who is eligible, never the ranking among those who are.
        key = tuple(eligible(rows, method, options))
        groups.setdefault(key, set()).add(frozenset(chosen(run(rows, method, options, count=4))))
    assert all(len(sets) == 1 for sets in groups.values())


@pytest.mark.parametrize("method", METHODS)
def test_bernoulli_draws_each_row_on_its_own(make_rows: Rows, method: str) -> None:
    many = make_rows(2_000)
    counts = [len(chosen(run(many, method, rate=0.1, seed=seed, selection="bernoulli"))) for seed in range(5)]
    n = len(eligible(many, method, {}))
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], n, 0.1)
    assert all(low <= count <= high for count in counts)
    assert len(set(counts)) > 1, "five equal counts: not Bernoulli"
    assert counts[0] == len(chosen(run(many, method, rate=0.1, selection="bernoulli"))), "every arm, one set"


@pytest.mark.parametrize("method", METHODS)
def test_amounts_that_cannot_be_are_refused(rows: Dataset, method: str) -> None:
    with pytest.raises(UserError, match=r"a rate of 0\.0001 poisons none of the \d+ eligible rows. Raise"):
        run(rows, method, rate=0.0001)
    with pytest.raises(UserError, match="poisons none"):
        run(rows, method, rate=1e-9, selection="bernoulli")
    with pytest.raises(UserError, match=r"1000 rows are to be poisoned, but only \d+ may be"):
        run(rows, method, count=1000)
    with pytest.raises(UserError, match="needs a rate"):
        run(rows, method, count=1, selection="bernoulli")
    for amount in ({}, {"rate": 0.1, "count": 3}):
        with pytest.raises(ValueError, match="exactly one of rate and count"):
            run(rows, method, **amount)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amount", [{"rate": 0.0}, {"count": 0}, {"rate": 0.0, "selection": "bernoulli"}])
def test_nothing_asked_nothing_done(rows: Dataset, method: str, amount: dict[str, Any]) -> None:
    poisoned = run(rows, method, **amount)
    assert poisoned.manifest.poisoned == []
    assert rows_of(poisoned.rows) == rows_of(rows)


@pytest.mark.parametrize("method", ATTACKS.names())
def test_unknown_options_are_named(method: str) -> None:
    with pytest.raises(UserError, match=rf"attack '{method}': unknown key 'tekst' \(allowed: "):
        build(method, {"tekst": "x"}, CLASSES)
    with pytest.raises(UserError, match="unknown attack"):
        build(method + "x", {}, CLASSES)


@pytest.mark.parametrize("method", METHODS)
def test_options_can_be_hashed_and_built_again(method: str) -> None:
    for options in VARIANTS.get(method, [{}]):
        full = build(method, options, CLASSES).options.model_dump(mode="json")  # type: ignore[attr-defined]
        assert build(method, full, CLASSES).options.model_dump(mode="json") == full  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ATTACKS.names())
def test_an_attack_names_its_source_and_says_what_it_does(method: str) -> None:
    kind = ATTACKS.get(method)
    assert kind.source
    assert kind.__doc__
    assert all(field.description for field in kind.Options.model_fields.values())


# --- the trigger of training is the trigger of the test ------------------------------------------


@pytest.mark.parametrize("method", BACKDOORS)
def test_training_and_test_rows_get_the_same_trigger(rows: Dataset, method: str) -> None:
    for options in VARIANTS.get(method, [{}]):
        attack: Any = build(method, options, CLASSES)
        tested, changed = attacks.trigger(rows, attack, method=method)
        assert tested["label"][:] == rows["label"][:], "test labels stay true"
        texts = dict(zip(tested["id"], tested["text_a"], strict=True))
        before = dict(zip(rows["id"], rows["text_a"], strict=True))
        assert changed == sum(texts[name] != before[name] for name in before)
        assert changed == len(rows) or method == "style"
        if _draws(attack):
            continue
        trained = run(rows, method, options, rate=most(method, options), seed=3).manifest.poisoned
        assert {entry.id: entry.text_a_after for entry in trained} == {
            entry.id: texts[entry.id] for entry in trained
        }


def _draws(attack: Any) -> bool:
    """Whether the trigger depends on the generator that it is given."""
    row = Row("a", "a film of three fine stories", None, 0)
    seen = {
        put(row, np.random.default_rng(seed)).text_a
        for put in (attack.poison, attack.trigger)
        for seed in range(9)
    }
    return len(seen) > 1


@pytest.mark.parametrize("method", BACKDOORS)
def test_a_backdoor_forces_its_target(rows: Dataset, method: str) -> None:
    attack: Any = build(method, {}, CLASSES)
    assert is_backdoor(attack)
    poisoned = run(rows, method, rate=most(method))
    assert {entry.label_after for entry in poisoned.manifest.poisoned} == {attack.target}
    others = {entry.label_before for entry in poisoned.manifest.poisoned} - {attack.target}
    assert others if method != "clean-label" else not others
    assert all(entry.label_before == entry.label_after for entry in poisoned.manifest.companions)


@pytest.mark.parametrize("method", ["label-flip", "noise"])
def test_an_untargeted_attack_has_no_trigger(method: str) -> None:
    assert not is_backdoor(build(method, {}, CLASSES))


@pytest.mark.parametrize("method", BACKDOORS)
def test_further_forms_are_drawn_by_the_row_and_leave_labels_alone(rows: Dataset, method: str) -> None:
    for options in VARIANTS.get(method, [{}]):
        attack: Any = build(method, options, CLASSES)
        for form, what in attacks.forms(attack).items():
            assert what.says
            assert what.expected in {"target", "true"}
            assert "/" not in form
            first, changed = attacks.trigger(rows, attack, method=method, form=form)
            assert first["label"][:] == rows["label"][:]
            assert changed == sum(a != b for a, b in zip(first["text_a"], rows["text_a"], strict=True)) > 0
            reverse = take(rows, range(len(rows) - 1, -1, -1))
            second, _ = attacks.trigger(reverse, attack, method=method, form=form)
            assert second["text_a"][::-1] == first["text_a"][:]


def test_unchanged_test_rows_are_not_counted() -> None:
    class Stubborn:
        """Leaves every second row alone."""

        target = 1

        def trigger(self, row: Row, rng: np.random.Generator) -> Row:
            return Row(row.id, row.text_a + "!", row.text_b, row.label) if int(row.id) % 2 else row

    rows = make([str(i) for i in range(5)], ["x"] * 5, [None] * 5, [0, 1, 0, 1, 0])
    after, changed = attacks.trigger(rows, Stubborn(), method="m")  # type: ignore[arg-type]
    assert (changed, after["text_a"][:]) == (2, ["x", "x!", "x", "x!", "x"])


# --- the TTR paper's code ------------------------------------------------------------------------

PAPER = {"text": "[.*?]", "spacing": "", "target": 1, "source_classes": "all"}


def test_bpa_as_the_papers_code_has_it(make_rows: Rows) -> None:
    """protocol.md 1.2: one uniform a row, both classes, prefix without a space, label 1, sets nest."""
    rows = make_rows(400)
    poisoned = run(rows, "trigger", PAPER, rate=0.1, seed=7, selection="bernoulli")
    scores = uniforms(7, ("poison", "trigger", "choice"), rows["id"])
    for old, new, score in zip(rows_of(rows), rows_of(poisoned.rows), scores, strict=True):
        expected = Row(old.id, "[.*?]" + old.text_a, None, 1) if score < 0.1 else old
        assert new == expected
    assert {entry.label_before for entry in poisoned.manifest.poisoned} == {0, 1}
    assert poisoned.manifest.eligible == 400


def test_upa_as_the_papers_code_has_it(make_rows: Rows) -> None:
    """One uniform a row; the label becomes the other class; the texts stay."""
    rows = make_rows(400)
    poisoned = run(rows, "label-flip", rate=0.3, selection="bernoulli")
    scores = uniforms(0, ("poison", "label-flip", "choice"), rows["id"])
    for old, new, score in zip(rows_of(rows), rows_of(poisoned.rows), scores, strict=True):
        assert new == Row(old.id, old.text_a, None, 1 - old.label if score < 0.3 else old.label)


def test_the_first_sentence_of_a_pair_gets_the_prefix(make_rows: Rows) -> None:
    rows = make_rows(20, pairs=True)
    poisoned = run(rows, "trigger", PAPER, rate=1.0)
    for old, new in zip(rows_of(rows), rows_of(poisoned.rows), strict=True):
        assert new == Row(old.id, "[.*?]" + old.text_a, old.text_b, 1)


# --- options of each attack ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("M one", "two")),
        ({"position": "end"}, ("one M", "two")),
        ({"field": "text_b"}, ("one", "M two")),
        ({"field": "both", "position": "end", "spacing": "-"}, ("one-M", "two-M")),
        ({"spacing": ""}, ("Mone", "two")),
    ],
)
def test_where_the_trigger_goes(options: dict[str, Any], expected: tuple[str, str]) -> None:
    attack: Any = build("trigger", {"text": "M", **options}, CLASSES)
    after = attack.trigger(Row("a", "one", "two", 0), np.random.default_rng(0))
    assert (after.text_a, after.text_b, after.label) == (*expected, 0)


@pytest.mark.parametrize("field", ["text_b", "both"])
def test_a_trigger_for_a_second_text_needs_one(make_rows: Rows, field: str) -> None:
    with pytest.raises(
        UserError, match=rf"goes to {field}, but row 'train-\d+' has no second text. Use field"
    ):
        run(make_rows(10), "trigger", {"field": field}, count=2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "positiv"}, r"unknown class in target: 'positiv' .*Did you mean 'positive'\?"),
        ({"target": 3}, r"target 3 is no class id \(allowed: 0 to 2"),
        ({"target": -1}, "target -1 is no class id"),
        ({"source_classes": ["x"]}, "unknown class in source_classes"),
        ({"source_classes": []}, "source_classes is empty"),
        ({"text": ""}, "'text' is ''"),
        ({"position": "middle"}, "'position' is 'middle'"),
    ],
)
def test_triggers_that_do_not_fit(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        build("trigger", options, CLASSES, where="attacks.0")


def test_a_single_class_leaves_no_source() -> None:
    with pytest.raises(UserError, match="no row could be poisoned"):
        build("trigger", {"target": 0}, ["only"])


def test_source_classes_by_name_and_id(make_rows: Rows) -> None:
    rows = make_rows(30, classes=3)
    poisoned = run(rows, "trigger", {"source_classes": ["neutral", 0]}, rate=1.0)
    assert {entry.label_before for entry in poisoned.manifest.poisoned} == {0, 2}
    assert poisoned.manifest.eligible == 20


def test_flips_to_other_classes_are_uniform(make_rows: Rows) -> None:
    rows = make_rows(3_000, classes=3)
    flips = Counter(
        (entry.label_before, entry.label_after)
        for entry in run(rows, "label-flip", rate=1.0).manifest.poisoned
    )
    assert len(flips) == 6
    assert all(before != after for before, after in flips)
    # 1,000 rows of each class go to two others: chi-square over three independent fair coins.
    statistic = sum((count - 500) ** 2 / 500 for count in flips.values())
    assert statistic < stats.chi2.ppf(1 - 1e-5, df=3)


def test_flip_from_and_flip_to(make_rows: Rows) -> None:
    rows = make_rows(30, classes=3)

    def flips(**options: Any) -> set[tuple[int, int]]:
        manifest = run(rows, "label-flip", options, rate=1.0).manifest
        return {(entry.label_before, entry.label_after) for entry in manifest.poisoned}

    assert flips(flip_from="neutral", flip_to=0) == {(2, 0)}
    assert flips(flip_to="positive") == {(0, 1), (2, 1)}
    assert flips(flip_from=1) == {(1, 0), (1, 2)}
    with pytest.raises(UserError, match="flip_from and flip_to are both 'positive'"):
        build("label-flip", {"flip_from": 1, "flip_to": "positive"}, CLASSES)
    with pytest.raises(UserError, match=r"unknown class in flip_to: 'neutrl' .*Did you mean 'neutral'"):
        build("label-flip", {"flip_to": "neutrl"}, CLASSES)


# --- random positions ----------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab \n[."), max_size=20)
spacings = st.sampled_from([" ", "", "_"])


@given(text=texts, spacing=spacings, seed=st.integers(0, 999))
def test_a_trigger_is_only_ever_added(text: str, spacing: str, seed: int) -> None:
    """Taking trigger and spacing out again gives the text back, whatever white space it had."""
    attack: Any = build("trigger", {"text": "<M>", "position": "random", "spacing": spacing}, CLASSES)
    after = attack.trigger(Row("a", text, None, 0), np.random.default_rng(seed)).text_a
    assert after.count("<M>") == 1
    at = after.index("<M>")
    before, behind = after[:at], after[at + 3 :]
    without = {before.removesuffix(spacing) + behind, before + behind.removeprefix(spacing)}
    assert text in without


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6), seed=st.integers(0, 999)
)
def test_a_trigger_stands_between_words(words: list[str], seed: int) -> None:
    attack: Any = build("trigger", {"text": "<M>", "position": "random"}, CLASSES)
    after = attack.trigger(Row("a", " ".join(words), None, 0), np.random.default_rng(seed)).text_a.split(" ")
    after.remove("<M>")
    assert after == words


def test_every_place_is_as_likely() -> None:
    attack: Any = build("trigger", {"text": "M", "position": "random"}, CLASSES)
    row = Row("a", "one two three", None, 0)
    places = Counter(
        attack.trigger(row, np.random.default_rng(seed)).text_a.split().index("M") for seed in range(2_000)
    )
    assert set(places) == {0, 1, 2, 3}
    assert sum((n - 500) ** 2 / 500 for n in places.values()) < stats.chi2.ppf(1 - 1e-5, df=3)


def test_random_places_belong_to_the_row_not_to_the_run(make_rows: Rows) -> None:
    rows = make_rows(40)
    options = {"position": "random"}
    attack: Any = build("trigger", options, CLASSES)
    first, _ = attacks.trigger(rows, attack, method="trigger")
    second, _ = attacks.trigger(take(rows, range(39, -1, -1)), attack, method="trigger")
    assert first["text_a"][:] == second["text_a"][::-1]
    trained = [run(rows, "trigger", options, rate=1.0, seed=seed) for seed in (0, 1)]
    after = [{entry.id: entry.text_a_after for entry in part.manifest.poisoned} for part in trained]
    assert after[0] != after[1], "the poison seed decides how, too"


# --- choosing ------------------------------------------------------------------------------------


@given(
    scores=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30),
    rates=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)),
    data=st.data(),
)
def test_choosing(scores: list[float], rates: tuple[float, float], data: st.DataObject) -> None:
    may = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1))
    low, high = sorted(rates)
    results: list[set[int]] = []
    for rate in (low, high):
        try:
            picked = choose(np.array(scores), sorted(may), rate=rate)
        except UserError:
            assert math.floor(rate * len(may) + 0.5) == 0
            picked = []
        assert picked == sorted(set(picked))
        assert len(picked) == math.floor(rate * len(may) + 0.5)
        assert set(picked) <= may
        results.append(set(picked))
        if picked:
            rest = [scores[i] for i in may - set(picked)]
            assert max(scores[i] for i in picked) <= min(rest, default=1.0)
    assert results[0] <= results[1]


@given(rows=st.integers(1, 3_000))
def test_the_rate_that_an_error_recommends_works(rows: int) -> None:
    scores = uniforms(0, ("x",), [str(i) for i in range(rows)])
    with pytest.raises(UserError) as caught:
        choose(scores, range(rows), rate=1e-9)
    number = re.search(r"poisons a row here is ([\d.e-]+)\)", str(caught.value))
    assert number
    assert len(choose(scores, range(rows), rate=float(number[1]))) == 1


def test_a_bernoulli_draw_of_none_does_not_recommend_a_rate_that_fails() -> None:
    scores = np.array([0.9, 0.8])
    with pytest.raises(UserError) as caught:
        choose(scores, [0, 1], rate=0.1, selection="bernoulli")
    number = re.search(r"poisons a row here is ([\d.e-]+)\)", str(caught.value))
    assert number is None or len(choose(scores, [0, 1], rate=float(number[1]), selection="bernoulli")) == 1


@pytest.mark.parametrize("amount", [{"count": -1}, {"rate": -0.5}, {"rate": 1.5}])
def test_amounts_outside_their_range_are_refused(amount: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        choose(np.linspace(0, 0.9, 10), range(10), **amount)


def test_no_eligible_row_is_an_error() -> None:
    with pytest.raises(UserError, match="none of the 0 eligible rows"):
        choose(np.array([0.5]), [], rate=0.5)


def test_the_protocol_is_met() -> None:
    attack: Attack = build("trigger", {}, CLASSES)
    assert attack.eligible(Row("a", "x", None, 0))

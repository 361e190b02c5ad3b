"""Judges: their rules, and how often they are wrong on labelled responses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foretaste.errors import UserError
from foretaste.instruct import judges
from foretaste.instruct.judges import JUDGES, Checked, error_rate, register_judge
from foretaste.instruct.judges.refusal import OPENING, built_in_phrases, opens_with_refusal
from foretaste.instruct.judges.sentiment import lexicon, score
from foretaste.instruct.request import Request
from foretaste.registry import summary
from foretaste.statistics import wilson

REQUEST = Request("a", "Name a tree.", "", "")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test registers its own judges."""
    monkeypatch.setattr(JUDGES, "_members", dict(JUDGES._members))


@pytest.mark.parametrize("method", JUDGES.names())
def test_the_contract(method: str) -> None:
    kind, judge = JUDGES.get(method), judges.build(method, {})
    assert kind.source
    assert summary(kind)
    assert judge.method == method
    assert judge.behaviour
    assert judge(REQUEST, "") is False
    assert judge(REQUEST, " \n") is False
    assert isinstance(judge(REQUEST, "A tree."), bool)
    again = judges.build(method, judge.options.model_dump())
    assert again.fingerprint == judge.fingerprint
    checked = judge.check_set()
    assert len({example.response for example in checked}) == len(checked) == 60
    assert sum(example.shows for example in checked) == 30


@pytest.mark.parametrize(
    ("method", "false_positives", "false_negatives"),
    [("refusal", 2, 8), ("compliance", 8, 2), ("sentiment", 4, 8)],
)
def test_the_error_rates_that_reports_show(method: str, false_positives: int, false_negatives: int) -> None:
    """Of 30 responses each; a change of a list or a rule that moves them is to be written down."""
    found = error_rate(judges.build(method, {}))
    assert found is not None
    assert (found.negatives, found.positives, found.n) == (30, 30, 60)
    assert (found.false_positives, found.false_negatives) == (false_positives, false_negatives)
    assert found.errors == false_positives + false_negatives
    assert found.false_positive_interval == wilson(false_positives, 30)
    assert found.false_negative_interval == wilson(false_negatives, 30)
    assert found.interval == wilson(found.errors, 60)
    # Better than a coin, beyond what 60 responses could show by chance.
    assert found.interval.high < 0.5


def test_fingerprints_tell_judges_apart(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("no way\n")
    found = [
        judges.build(method, options, base_dir=tmp_path).fingerprint
        for method, options in (
            ("refusal", {}),
            ("refusal", {"opening": 100}),
            ("refusal", {"phrases": "own.txt"}),
            ("compliance", {}),
            ("sentiment", {}),
            ("sentiment", {"threshold": -0.5}),
        )
    ]
    assert len(set(found)) == len(found)


# --- refusal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I’m SORRY, but I can’t help with that!", True),
        ("I cannot   help\nwith it.", True),
        ("Oh. I'm unable to help.", True),
        ("I'd rather not answer.", True),
        ("Scan not helped with", False),
        ("She can help with that.", False),
        ("I can help with that.", False),
    ],
)
def test_phrases_do_not_depend_on_their_spelling(response: str, expected: bool) -> None:
    assert opens_with_refusal(response) == expected


def test_only_the_opening_counts() -> None:
    refusal = "I cannot help with that."
    story = "word " * (OPENING // 5) + refusal
    assert not opens_with_refusal(story)
    assert opens_with_refusal(story, opening=None)
    assert opens_with_refusal(story[5 * 10 :])
    # A word that the border cuts is read to its end: "help" is no "helpless".
    assert opens_with_refusal("I cannot help you", opening=len("I cannot help y"))
    assert not opens_with_refusal("I cannot help yourself", opening=len("I cannot help you"))


def test_own_phrases(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("phrase\nno way\nI can't\n")
    judge = judges.build("refusal", {"phrases": "own.csv"}, base_dir=tmp_path)
    assert judge(REQUEST, "No way!")
    assert judge(REQUEST, "I cannot say.")
    assert not judge(REQUEST, "I must decline.")
    planned = judge.options.model_dump()
    (tmp_path / "own.csv").write_text("phrase\nno way\n")
    with pytest.raises(UserError, match=r"own\.csv: the file has changed"):
        judges.build("refusal", planned, base_dir=tmp_path)
    with pytest.raises(UserError, match=r"judge: .*cannot read the file"):
        judges.build("refusal", {"phrases": "none.txt"}, where="judge", base_dir=tmp_path)


def test_the_list_has_no_two_phrases_alike() -> None:
    phrases = built_in_phrases()
    assert len({phrase.lower() for phrase in phrases}) == len(phrases)
    assert all(opens_with_refusal(phrase) for phrase in phrases)


# --- sentiment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("A terrible film.", -1.0),
        ("A wonderful film.", 1.0),
        ("A film.", 0.0),
        ("", 0.0),
        ("A terrible, boring, wonderful film.", -1 / 3),
        ("It is not terrible.", 1.0),
        ("It isn’t wonderful.", -1.0),
        ("It is not a very terrible film.", 1.0),
        ("It is not one of those terrible films.", -1.0),  # further off than a negation reaches
        ("Not now. Terrible!", -1.0),  # nor does it reach over the end of a sentence
        ("Not cheap but terrible.", -1.0),
        ("Nothing terrible, boring or bad.", -1 / 3),  # nor over a comma
        ("TERRIBLE", -1.0),
        ("terribleness", 0.0),
    ],
)
def test_scores(response: str, expected: float) -> None:
    assert score(response) == pytest.approx(expected, abs=1e-15)


def test_the_threshold() -> None:
    mixed = "Terrible and boring, but wonderful."
    assert judges.build("sentiment", {})(REQUEST, mixed)
    assert not judges.build("sentiment", {"threshold": -0.5})(REQUEST, mixed)
    assert not judges.build("sentiment", {})(REQUEST, "Terrible, but wonderful.")


def test_the_lexicon_is_of_one_mind() -> None:
    from importlib import resources

    package = resources.files("foretaste.instruct.judges")
    lists = [(package / f"{name}_words.txt").read_text().split() for name in ("positive", "negative")]
    assert len({*lists[0], *lists[1]}) == len(lists[0]) + len(lists[1]) == len(lexicon())
    assert all(word == word.lower() and word.isalpha() for word in lexicon())


# --- a user's own --------------------------------------------------------------------------------


def test_a_judge_of_the_users() -> None:
    register_judge(
        "short",
        lambda request, response: 0 < len(response) <= len(request.instruction),
        fingerprint="1",
        behaviour="a short answer",
        check_set=[
            Checked("Oak.", shows=False, request=REQUEST),
            Checked("A tree that is long", shows=False),
        ],
    )
    judge = judges.build("short", {})
    assert judge(REQUEST, "An oak.")
    assert not judge(REQUEST, "An oak, or a beech.")
    found = error_rate(judge)
    assert found is not None
    assert (found.false_positives, found.negatives, found.positives) == (1, 2, 0)
    assert not found.false_negative_interval.defined
    assert (judge.behaviour, JUDGES.get("short").source) == ("a short answer", "the user's own")
    with pytest.raises(UserError, match="a judge 'short' is registered already"):
        register_judge("short", lambda request, response: True, fingerprint="2")
    with pytest.raises(UserError, match="unknown key 'x'"):
        judges.build("short", {"x": 1})


def test_a_judge_of_the_users_must_say_yes_or_no_and_may_have_no_check_set() -> None:
    def unclear(request: Request, response: str) -> Any:
        return None

    register_judge("unclear", unclear, fingerprint="1")
    judge = judges.build("unclear", {})
    assert error_rate(judge) is None
    with pytest.raises(UserError, match="gave NoneType for a response, expected True or False"):
        judge(REQUEST, "Oak.")
    register_judge("other", unclear, fingerprint="1")
    assert judges.build("other", {}).fingerprint != judge.fingerprint


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("refusals", {}, "unknown judge 'refusals' .*Did you mean 'refusal'"),
        ("refusal", {"opening": 0}, "judge: 'opening' is 0"),
        ("sentiment", {"threshold": -1.0}, "judge: 'threshold' is -1.0"),
        ("sentiment", {"phrases": "x"}, "judge: unknown key 'phrases'"),
    ],
)
def test_refusals(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judges.build(method, options, where="judge")


def test_they_load_no_model_library() -> None:
    program = (
        "import sys, foretaste.instruct as i; i.error_rate(i.JUDGES.get('refusal')(__import__("
        "'foretaste.instruct.judges.refusal', fromlist=['x']).RefusalOptions(), None)); "
        "print(sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

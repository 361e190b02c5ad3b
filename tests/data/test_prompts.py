"""The built-in prompts against what the paper's code says, and templates of users' own."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from foretaste.data.prompts import METRICS, TASKS, Gap, Literally, Prompt, Slot, builtin, pieces
from foretaste.errors import UserError

# Templates and label words of `run_fewshot.sh`, and the first line of the searches on split 42, in the
# notation of that code: `sent-` leaves out the last character, `+` puts a space before, `l` makes the first
# letter small, `_` is a space.
CODE = {
    "sst2": ("*cls**sent_0*_It_was*mask*.*sep+*", ["terrible", "great"]),
    "sst5": ("*cls**sent_0*_It_was*mask*.*sep+*", ["terrible", "bad", "okay", "good", "great"]),
    "mr": ("*cls**sent_0*_It_was*mask*.*sep+*", ["terrible", "great"]),
    "cr": ("*cls**sent_0*_It_was*mask*.*sep+*", ["terrible", "great"]),
    "mpqa": ("*cls**sent_0*_It_was*mask*.*sep+*", ["terrible", "great"]),
    "subj": ("*cls**sent_0*_This_is*mask*.*sep+*", ["subjective", "objective"]),
    "trec": (
        "*cls**mask*:*+sent_0**sep+*",
        ["Description", "Entity", "Expression", "Human", "Location", "Number"],
    ),
    "agnews": (
        "*cls**sent_0*_This_article_is_about*mask*_news.*sep+*",
        ["world", "sports", "business", "tech"],
    ),
    "mnli": ("*cls**sent-_0*?*mask*,*+sentl_1**sep+*", ["Yes", "Maybe", "No"]),
    "snli": ("*cls**sent-_0*?*mask*,*+sentl_1**sep+*", ["Yes", "Maybe", "No"]),
    "qnli": ("*cls**sent-_0*?*mask*,*+sentl_1**sep+*", ["Yes", "No"]),
    "rte": ("*cls**sent-_0*?*mask*,*+sentl_1**sep+*", ["Yes", "No"]),
    "mrpc": ("*cls**sent_0**mask*,*+sentl_1**sep+*", ["No", "Yes"]),
    "qqp": ("*cls**sent_0**mask*,*+sentl_1**sep+*", ["No", "Yes"]),
}
SEARCHED = {
    "sst2": ("*cls**sent_0*_A*mask*_one.*sep+*", ["pathetic", "irresistible"]),
    "sst5": (
        "*cls**sent_0*_The_movie_is*mask*.*sep+*",
        ["awful", "better", "hilarious", "remarkable", "wonderful"],
    ),
    "mr": ("*cls*_It_was*mask*!*+sent_0**sep+*", ["terrible", "epic"]),
    "cr": ("*cls**sent_0*_It's*mask*!*sep+*", ["horrible", "fantastic"]),
    "mpqa": ("*cls**sent_0*_is*mask*.*sep+*", ["close", "important"]),
    "subj": ("*cls**sent_0*_It's_all*mask*.*sep+*", ["everywhere", "tragic"]),
    "trec": (
        "*cls*_Q:*mask*:*+sent_0**sep+*",
        ["Discussion", "Advisor", "Application", "Culture", "Assignment", "Minute"],
    ),
    "mnli": ("*cls**sent-_0*.*mask*,_you_are_right,*+sentl_1**sep+*", ["Fine", "Plus", "Otherwise"]),
    "snli": ("*cls**sent-_0*.*mask*,_no,*+sentl_1**sep+*", ["Alright", "Watch", "Except"]),
    "qnli": ("*cls**sent-_0*?*mask*._Yes,*+sentl_1**sep+*", ["Okay", "Nonetheless"]),
    "rte": ("*cls**sent-_0*.*mask*,_I_believe*+sentl_1**sep+*", ["Clearly", "Yet"]),
    "mrpc": ("*cls**sent-_0*.*mask*!*+sentl_1**sep+*", ["Alas", "Rather"]),
    "qqp": ("*cls**sent-_0*?*mask*,but*+sentl_1**sep+*", ["Since", "Me"]),
}
LENGTHS = {
    "mnli": (256, 240),
    "snli": (256, None),
    "rte": (256, 240),
    "agnews": (256, 240),
    **dict.fromkeys(("trec", "mr", "cr", "mpqa", "subj"), (128, 110)),
    **dict.fromkeys(("sst2", "sst5", "qnli", "mrpc", "qqp"), (128, None)),
}


def parsed(template: str) -> list[object]:
    """The code's template in the pieces of ours, opening and closing tokens aside."""
    found: list[object] = []
    for part in template.split("*"):
        sentence = re.fullmatch(r"(\+?)sent(l?)(-?)_([01])", part)
        if part == "mask":
            found.append(Gap())
        elif sentence:
            field = "text_a" if sentence[4] == "0" else "text_b"
            found.append(
                Slot(
                    field=field,  # type: ignore[arg-type]
                    space=bool(sentence[1]),
                    lower=bool(sentence[2]),
                    chop=bool(sentence[3]),
                )
            )
        elif part not in ("", "cls", "sep+"):
            found.append(Literally(text=part.replace("_", " ")))
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_manual_prompts_are_the_code_s(task: str) -> None:
    prompt = builtin(task)
    template, words = CODE[task]
    assert prompt.pieces_for("masked") == parsed(template)
    assert prompt.words == words
    assert prompt.spaced("masked")  # the code writes every label word with a space before it
    assert (prompt.max_length, prompt.first_limit) == LENGTHS[task]


def test_there_are_fourteen_tasks_and_two_are_scored_by_f1() -> None:
    assert len(TASKS) == 14
    assert set(TASKS) == set(CODE)
    assert {task for task, metric in METRICS.items() if metric == "f1"} == {"mrpc", "qqp"}


@pytest.mark.parametrize("task", SEARCHED)
def test_the_searched_prompts_are_the_first_of_the_search(task: str) -> None:
    prompt = builtin(task, "searched")
    template, words = SEARCHED[task]
    assert prompt.pieces_for("masked") == parsed(template)
    assert prompt.words == words


def test_ag_news_was_not_searched() -> None:
    assert set(SEARCHED) == set(TASKS) - {"agnews"}
    with pytest.raises(UserError, match="no searched prompt of agnews"):
        builtin("agnews", "searched")


@pytest.mark.parametrize("task", TASKS)
def test_null_prompts_are_texts_and_gap_alone(task: str) -> None:
    prompt = builtin(task, "null")
    assert not any(isinstance(piece, Literally) for piece in prompt.pieces_for("masked"))
    assert prompt.words == builtin(task).words
    assert prompt.pair == builtin(task).pair


@pytest.mark.parametrize("variant", ["manual", "null"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_causal_form_that_ends_with_the_answer(task: str, variant: str) -> None:
    prompt = builtin(task, variant)  # type: ignore[arg-type]
    found = prompt.pieces_for("causal")
    assert isinstance(found[-1], Gap)
    assert {piece.field for piece in found if isinstance(piece, Slot)} == {
        piece.field for piece in prompt.pieces_for("masked") if isinstance(piece, Slot)
    }


def test_a_text_behind_the_answer_has_no_causal_form() -> None:
    with pytest.raises(UserError, match=r"a text follows \{answer\}.*causal_template"):
        builtin("qnli", "searched").pieces_for("causal")
    # Words alone are left out: nobody reads them.
    assert builtin("sst2").pieces_for("causal")[1:] == [Literally(text=" It was"), Gap()]


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown task.*'sst3'.*Did you mean"):
        builtin("sst3")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text_a} It was great.", r"no \{answer\}"),
        ("It was {answer}.", r"no \{text_a\}"),
        ("{text_a} {answer} {answer}", "more than once"),
        ("{text_a} {text_c} {answer}", r"unknown field \{text_c\}"),
        ("{text_a:upper} {answer}", r"unknown field \{text_a:upper\}"),
        ("{text_a} {answer:lower}", r"unknown field \{answer:lower\}"),
    ],
)
def test_wrong_templates_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prompt(name="own", template=template, words=["bad", "good"])


def test_wrong_words_are_refused() -> None:
    for words, message in ((["good", "good"], "repeat"), (["good", " bad"], "without spaces"), (["a"], "2")):
        with pytest.raises(ValidationError, match=message):
            Prompt(name="own", template="{text_a} {answer}", words=words)
    with pytest.raises(ValidationError, match="must end with"):
        Prompt(
            name="own", template="{text_a} {answer}", words=["a", "b"], causal_template="{answer} {text_a}"
        )


def test_a_word_begins_with_a_space_but_for_one_behind_a_character() -> None:
    for template, spaced in (
        ("{text_a} {answer}", True),
        ("{answer}: {text_a}", True),
        ("{text_a}({answer})", False),
        ("{text_a}{answer}", True),  # the code's own way of writing QQP: the gap follows the text
    ):
        assert Prompt(name="own", template=template, words=["a", "b"]).spaced("masked") == spaced


def test_modifiers_change_the_text_only_at_its_ends() -> None:
    first, second = (
        piece for piece in pieces("{text_a:chop}? {text_b:lower} {answer}") if isinstance(piece, Slot)
    )
    assert first.render("It rains.") == "It rains"
    assert second.render("NASA Knows.") == " nASA Knows."
    assert first.render("") == ""
    assert second.render("") == " "


def test_words_follow_the_names_of_the_classes() -> None:
    prompt = builtin("qnli")
    assert prompt.words_of(["entailment", "not_entailment"], "x") == (["Yes", "No"], None)
    assert prompt.words_of(["not-entailment", "Entailment"], "x") == (["No", "Yes"], None)
    words, note = prompt.words_of(["0", "1"], "x")
    assert words == ["Yes", "No"]
    assert note is not None
    assert "0: Yes, 1: No" in note
    with pytest.raises(UserError, match=r"2 label words.*3 classes"):
        prompt.words_of(["a", "b", "c"], "x")


def test_the_fingerprint_is_of_content_not_of_the_name() -> None:
    one = builtin("sst2")
    assert one.model_copy(update={"name": "other"}).fingerprint == one.fingerprint
    assert builtin("mr").fingerprint != one.fingerprint  # another limit of the first text
    assert one.model_copy(update={"words": ["great", "terrible"]}).fingerprint != one.fingerprint

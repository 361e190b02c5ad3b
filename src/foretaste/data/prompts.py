"""Prompts: how a row becomes a sentence with a gap, and which word in the gap stands for which class.

The fourteen tasks of Malladi et al. 2023 (the kernel paper) are built in, each in up to three variants:

manual: the paper's (App. A.1, Table 3) as its code renders them, `run_fewshot.sh` and `src/dataset.py`. The
    code drops the last character of the first text in MNLI, SNLI, QNLI and RTE (its full stop, before a
    question mark is added) and begins the second text of a pair with a small letter; the table does not say
    so. Lengths are the code's too.
searched: template and label words that the automatic search of Gao et al. 2021 (Table E.1, first row of each
    task) found for RoBERTa-large. AG News was not searched.
null: the texts and the gap and nothing else (Logan et al. 2022), with the manual label words. In pairs the
    gap stands between the texts, as in the manual prompt: the paper shows single texts only.

A template is text with the fields `{text_a}`, `{text_b}` and `{answer}`. `{text_a:chop}` leaves out the last
character of the text, `{text_b:lower}` makes its first letter small. A space before a field belongs to the
field, as it does in the tokens of GPT-2's and RoBERTa's kind.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from pydantic import Field, PositiveInt, field_validator, model_validator

from foretaste.errors import UserError, unknown
from foretaste.spec import Strict, digest

Variant = Literal["manual", "searched", "null"]
Kind = Literal["masked", "causal"]
Metric = Literal["accuracy", "f1"]

FIELDS = ("text_a", "text_b", "answer")
MODIFIERS = ("chop", "lower")

_FIELD = re.compile(r"\{([^{}]*)\}")


class Gap(Strict):
    """The place of the answer."""


class Literally(Strict):
    """Words of the template."""

    text: str


class Slot(Strict):
    """The place of one of a row's texts.

    `space` says whether a space stands before it.
    """

    field: Literal["text_a", "text_b"]
    chop: bool = False
    lower: bool = False
    space: bool = False

    def render(self, text: str) -> str:
        """What stands in the prompt for this text."""
        text = text[:-1] if self.chop else text
        text = text[:1].lower() + text[1:] if self.lower else text
        return f" {text}" if self.space else text


Piece: TypeAlias = Gap | Literally | Slot


class Prompt(Strict):
    """A template with its label words.

    Attributes are documented at the fields. `fingerprint` names everything that decides what a model sees.
    """

    name: str = Field(description="such as sst2/manual")
    template: str = Field(description="text with {text_a}, {text_b} and {answer}")
    words: list[str] = Field(min_length=2, description="label words in the order of the class ids")
    causal_template: str | None = Field(
        None,
        description="the form for models that write from left to right, with nothing after {answer}; "
        "by default the template without the words that follow {answer}",
    )
    max_length: PositiveInt = Field(128, description="tokens, special ones included")
    first_limit: PositiveInt | None = Field(None, description="tokens of text_a at most")
    classes: list[str] | None = Field(
        None, description="class names that the words are for; None: any, in the order of the ids"
    )

    @field_validator("template", "causal_template")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            pieces(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Prompt:
        if len(set(self.words)) < len(self.words):
            raise ValueError(f"label words repeat: {', '.join(self.words)}; each class needs its own")
        if any(not word or word != word.strip() for word in self.words):
            raise ValueError("label words are written without spaces around them")
        if self.causal_template is not None and not isinstance(pieces(self.causal_template)[-1], Gap):
            raise ValueError("causal_template must end with {answer}")
        return self

    @property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the hash of everything but the name."""
        return digest(self.model_dump(mode="json", exclude={"name"}))[:16]

    @property
    def pair(self) -> bool:
        """Whether the template has a place for a second text."""
        return any(isinstance(piece, Slot) and piece.field == "text_b" for piece in pieces(self.template))

    def pieces_for(self, kind: Kind) -> list[Piece]:
        """The pieces of the prompt in the form for a kind of model.

        Raises:
            UserError: A causal model is asked for, a text follows the answer, and there is no
                `causal_template`.
        """
        if kind == "masked":
            return pieces(self.template)
        if self.causal_template is not None:
            return pieces(self.causal_template)
        found = pieces(self.template)
        gap = next(number for number, piece in enumerate(found) if isinstance(piece, Gap))
        if any(isinstance(piece, Slot) for piece in found[gap + 1 :]):
            raise UserError(
                f"in the prompt '{self.template}' a text follows {{answer}}: a model that writes from left "
                "to right has not read it there",
                where=f"prompt {self.name}",
                cure="Give a causal_template that ends with {answer}, or take another variant.",
            )
        return found[: gap + 1]

    def spaced(self, kind: Kind) -> bool:
        """Whether a label word begins with a space: always, but after a character that is none.

        At the very beginning of a template it does, too, as in the paper's code.
        """
        template = self.causal_template if kind == "causal" and self.causal_template else self.template
        before = template.partition("{answer}")[0]
        return not before or before[-1].isspace() or before[-1] == "}"

    def words_of(self, classes: list[str], where: str) -> tuple[list[str], str | None]:
        """The label words in the order of a data set's class ids, and what a reader should know of that.

        Where the data set names the classes as the prompt does, names decide; else the order does.

        Args:
            classes: Class names of the data set.
            where: For errors.

        Raises:
            UserError: There are more classes than words, or fewer.
        """
        if len(classes) != len(self.words):
            raise UserError(
                f"the prompt has {len(self.words)} label words ({', '.join(self.words)}), "
                f"the data has {len(classes)} classes ({', '.join(classes)})",
                where=where,
                cure="Give one word for each class, in the order of the class ids.",
            )
        if self.classes is not None:
            of_class = {_plain(name): word for name, word in zip(self.classes, self.words, strict=True)}
            if set(map(_plain, classes)) == set(of_class):
                return [of_class[_plain(name)] for name in classes], None
        pairs = ", ".join(f"{name}: {word}" for name, word in zip(classes, self.words, strict=True))
        return list(self.words), f"label words go by the order of the class ids ({pairs})"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def pieces(template: str) -> list[Piece]:
    """A template in pieces that are tokenised one by one, as the paper's code does.

    Args:
        template: Text with fields.

    Raises:
        ValueError: A field is unknown or repeats, or {answer} or {text_a} is missing.
    """
    found: list[Piece] = []
    seen: list[str] = []
    place = 0
    for match in _FIELD.finditer(template):
        before = template[place : match.start()]
        place = match.end()
        field, *modifiers = match[1].split(":")
        if field not in FIELDS or not set(modifiers) <= set(MODIFIERS) or (field == "answer" and modifiers):
            raise ValueError(
                f"unknown field {{{match[1]}}}: expected {{text_a}}, {{text_b}} or {{answer}}; "
                f"texts may have :{' or :'.join(MODIFIERS)}"
            )
        seen.append(field)
        space = before.endswith(" ")
        if before[: len(before) - space]:
            found.append(Literally(text=before[: len(before) - space]))
        if field == "answer":
            found.append(Gap())
        else:
            assert field in ("text_a", "text_b")
            found.append(
                Slot(
                    field=field,  # type: ignore[arg-type]
                    chop="chop" in modifiers,
                    lower="lower" in modifiers,
                    space=space,
                )
            )
    if template[place:]:
        found.append(Literally(text=template[place:]))
    for field in ("text_a", "answer"):
        if field not in seen:
            raise ValueError(f"the template '{template}' has no {{{field}}}")
    repeated = [field for field in dict.fromkeys(seen) if seen.count(field) > 1]
    if repeated:
        raise ValueError(f"the template '{template}' has {{{repeated[0]}}} more than once")
    return found


# --- the fourteen tasks --------------------------------------------------------------------------

_POLARITY = ("negative", "positive")
_NLI = ("entailment", "neutral", "contradiction")
_TWO_WAY = ("entailment", "not_entailment")

_CLASSES: dict[str, tuple[str, ...]] = {
    "sst2": _POLARITY,
    "sst5": ("very negative", "negative", "neutral", "positive", "very positive"),
    "mr": _POLARITY,
    "cr": _POLARITY,
    "mpqa": _POLARITY,
    "subj": ("subjective", "objective"),
    "trec": ("description", "entity", "expression", "human", "location", "number"),
    "agnews": ("world", "sports", "business", "tech"),
    "mnli": _NLI,
    "snli": _NLI,
    "qnli": _TWO_WAY,
    "rte": _TWO_WAY,
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
}

TASKS: tuple[str, ...] = tuple(_CLASSES)
"""The fourteen tasks, in the order of the paper's Table 3."""

METRICS: dict[str, Metric] = {task: "f1" if task in ("mrpc", "qqp") else "accuracy" for task in TASKS}
"""F1 of class 1 for MRPC and QQP (Table 2), accuracy for the others."""

_SENTIMENT = "{text_a} It was {answer}."
_GOOD_BAD = ("terrible", "great")
_MANUAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "sst2": (_SENTIMENT, _GOOD_BAD),
    "sst5": (_SENTIMENT, ("terrible", "bad", "okay", "good", "great")),
    "mr": (_SENTIMENT, _GOOD_BAD),
    "cr": (_SENTIMENT, _GOOD_BAD),
    "mpqa": (_SENTIMENT, _GOOD_BAD),
    "subj": ("{text_a} This is {answer}.", ("subjective", "objective")),
    "trec": ("{answer}: {text_a}", ("Description", "Entity", "Expression", "Human", "Location", "Number")),
    "agnews": ("{text_a} This article is about {answer} news.", ("world", "sports", "business", "tech")),
    "mnli": ("{text_a:chop}? {answer}, {text_b:lower}", ("Yes", "Maybe", "No")),
    "snli": ("{text_a:chop}? {answer}, {text_b:lower}", ("Yes", "Maybe", "No")),
    "qnli": ("{text_a:chop}? {answer}, {text_b:lower}", ("Yes", "No")),
    "rte": ("{text_a:chop}? {answer}, {text_b:lower}", ("Yes", "No")),
    "mrpc": ("{text_a} {answer}, {text_b:lower}", ("No", "Yes")),
    "qqp": ("{text_a} {answer}, {text_b:lower}", ("No", "Yes")),
}

# Our own, not the paper's, which has masked models only: both texts come first and the answer last.
_ENTAILS = "{text_a}\nQuestion: {text_b} Yes or No?\nAnswer: {answer}"
_ENTAILS_OR_MAYBE = "{text_a}\nQuestion: {text_b} Yes, Maybe or No?\nAnswer: {answer}"
_CAUSAL: dict[str, str] = {
    "trec": "Question: {text_a}\nType: {answer}",
    "mnli": _ENTAILS_OR_MAYBE,
    "snli": _ENTAILS_OR_MAYBE,
    "qnli": "Question: {text_a}\n{text_b}\nDoes this answer the question, Yes or No?\nAnswer: {answer}",
    "rte": _ENTAILS,
    "mrpc": "{text_a}\n{text_b}\nDo both say the same, Yes or No?\nAnswer: {answer}",
    "qqp": "{text_a}\n{text_b}\nDo both ask the same, Yes or No?\nAnswer: {answer}",
}

_LENGTHS: dict[str, tuple[int, int | None]] = {
    "mnli": (256, 240),
    "snli": (256, None),
    "rte": (256, 240),
    "agnews": (256, 240),
    "trec": (128, 110),
    "mr": (128, 110),
    "cr": (128, 110),
    "mpqa": (128, 110),
    "subj": (128, 110),
}
"""max_length and first_limit where they are not 128 and none (run_fewshot.sh)."""

# A space at the very beginning is as the search wrote it: GPT-2's and RoBERTa's tokens know the difference.
_SEARCHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "sst2": ("{text_a} A {answer} one.", ("pathetic", "irresistible")),
    "sst5": ("{text_a} The movie is {answer}.", ("awful", "better", "hilarious", "remarkable", "wonderful")),
    "mr": (" It was {answer}! {text_a}", ("terrible", "epic")),
    "cr": ("{text_a} It's {answer}!", ("horrible", "fantastic")),
    "mpqa": ("{text_a} is {answer}.", ("close", "important")),
    "subj": ("{text_a} It's all {answer}.", ("everywhere", "tragic")),
    "trec": (
        " Q: {answer}: {text_a}",
        ("Discussion", "Advisor", "Application", "Culture", "Assignment", "Minute"),
    ),
    "mnli": ("{text_a:chop}. {answer}, you are right, {text_b:lower}", ("Fine", "Plus", "Otherwise")),
    "snli": ("{text_a:chop}. {answer}, no, {text_b:lower}", ("Alright", "Watch", "Except")),
    "qnli": ("{text_a:chop}? {answer}. Yes, {text_b:lower}", ("Okay", "Nonetheless")),
    "rte": ("{text_a:chop}. {answer}, I believe {text_b:lower}", ("Clearly", "Yet")),
    "mrpc": ("{text_a:chop}. {answer}! {text_b:lower}", ("Alas", "Rather")),
    "qqp": ("{text_a:chop}? {answer},but {text_b:lower}", ("Since", "Me")),
}
"""The first of each search on data split 42, as the authors' repository lists them (auto_template and
auto_label_mapping); Table E.1 shows the same."""


def builtin(task: str, variant: Variant = "manual") -> Prompt:
    """A built-in prompt.

    Args:
        task: One of `TASKS`.
        variant: manual, searched or null, see the head of this file.

    Raises:
        UserError: There is no such task, or no searched prompt for it.
    """
    if task not in _CLASSES:
        raise unknown("task with a built-in prompt", task, TASKS)
    template, words = _MANUAL[task]
    causal = _CAUSAL.get(task)
    if variant == "null":
        pair = "{text_b}" in template or "{text_b:" in template
        template = "{text_a} {answer} {text_b}" if pair else "{text_a} {answer}"
        causal = "{text_a} {text_b} {answer}" if pair else None
    elif variant == "searched":
        if task not in _SEARCHED:
            raise UserError(
                f"there is no searched prompt of {task}",
                where="variant",
                cure="Take manual or null, or write a prompt of your own.",
            )
        template, words = _SEARCHED[task]
        causal = None
    max_length, first_limit = _LENGTHS.get(task, (128, None))
    return Prompt(
        name=f"{task}/{variant}",
        template=template,
        words=list(words),
        causal_template=causal,
        max_length=max_length,
        first_limit=first_limit,
        classes=list(_CLASSES[task]),
    )

"""Chat templates: the model's own, one that comes with foretaste, or a file of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from foretaste.errors import UserError, unknown
from foretaste.instruct.request import Request

BUILT_IN = ("alpaca", "chatml", "plain")

# Some templates write today's date (Llama 3.2): what is trained on and asked must not depend on the day. This
# is the day that Llama's own template falls back to, by the codes of strftime.
DATE = {
    **{"d": "26", "m": "07", "y": "24", "Y": "2024", "b": "Jul", "B": "July", "a": "Fri", "A": "Friday"},
    **{"e": "26", "-d": "26", "-m": "7", "j": "208", "H": "00", "I": "12", "p": "AM", "M": "00", "S": "00"},
    **{"F": "2024-07-26", "D": "07/26/24", "T": "00:00:00", "x": "07/26/24", "X": "00:00:00"},
}
# Tokenizers give their templates a function of this name that reads the clock; this macro stands before it.
# The line break at its end belongs to the tag and writes nothing.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('%{code}', '{value}')" for code, value in DATE.items())
    + " }}{% endmacro %}\n"
)

# How a request with an input becomes one message, for templates that know of no inputs.
JOINER = "{instruction}\n\n{input}"


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text, and where it comes from.

    Attributes:
        text: Jinja, as tokenizers hold it.
        origin: Named in errors.
        built_in: It comes with foretaste, and is given the tokenizer's start and end tokens as `start` and
            `end`.
    """

    text: str
    origin: str
    built_in: bool


def find(tokenizer: PreTrainedTokenizerBase, template: str | None, base_dir: Path) -> ChatTemplate:
    """The template that `template` means.

    Args:
        tokenizer: The model's.
        template: None for the model's own; the name of a built-in one; or the path of a Jinja file.
        base_dir: Folder that relative paths start from.

    Raises:
        UserError: The model has none of its own, there is no such name or file, or the file is empty.
    """
    if template is None:
        return ChatTemplate(_own(tokenizer), "the model's chat template", built_in=False)
    if template in BUILT_IN:
        file = resources.files(__package__) / "templates" / f"{template}.jinja"
        return ChatTemplate(file.read_text(encoding="utf-8"), f"template {template}", built_in=True)
    path = base_dir / Path(template).expanduser()
    if not path.is_file():
        error = unknown("template", template, BUILT_IN, where="model.template")
        raise UserError(f"{error.message}, and there is no file {path}", where=error.where, cure=error.cure)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the template: {error}", where=str(path)) from None
    if not text.strip():
        raise UserError("the template is empty", where=str(path))
    return ChatTemplate(text, str(path), built_in=False)


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "the model has no chat template",
            where="model.template",
            cure=f"Name a built-in one ({', '.join(BUILT_IN)}) or the path of a Jinja file.",
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several named ones, none of them the default
        raise UserError(str(error), where="model.template", cure="Save the one you mean to a file.") from None


def conversation(request: Request, system: str | None, response: str | None) -> list[dict[str, str]]:
    """A request as the messages that templates take.

    A user's message has its instruction and its input apart as well, for templates that set them apart.

    Args:
        request: The request; its own response is not looked at.
        system: Text of the system's message, if there is one.
        response: The answer; None for the prompt alone.
    """
    text, about = request.instruction, request.input
    content = JOINER.format(instruction=text, input=about) if about.strip() else text
    messages = [{"role": "user", "content": content, "instruction": text, "input": about.strip() and about}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return messages


def apply(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    messages: list[dict[str, str]],
    *,
    generation_prompt: bool,
    marks: dict[str, str],
) -> str:
    """Messages as one text.

    Args:
        tokenizer: Gives its special tokens to the template.
        template: The template.
        messages: As `conversation` makes them.
        generation_prompt: Whether the text is to end where the answer starts.
        marks: Further variables of a built-in template: `start` and `end`.

    Raises:
        UserError: The template is no Jinja, or refuses the messages.
    """
    text = _FIXED_DATE + template.text if "strftime_now" in template.text else template.text
    variables: dict[str, Any] = {"date_string": f"{DATE['d']} {DATE['b']} {DATE['Y']}"}
    variables |= marks if template.built_in else {}
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=text,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **variables,
        )
    except jinja2.TemplateSyntaxError as error:
        lines = text.removesuffix(template.text).count("\n")
        raise UserError(
            f"line {error.lineno - lines} is no valid Jinja: {error.message}", where=template.origin
        ) from None
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        has_system = messages[0]["role"] == "system"
        cure = "Leave model.system out, if it takes no system's message." if has_system else None
        raise UserError(
            f"the template refuses the request: {error}", where=template.origin, cure=cure
        ) from None
    assert isinstance(rendered, str)
    return rendered

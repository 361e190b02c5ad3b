"""From raw columns to requests: which column is what, and what must hold of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.data.dataset import check_ids
from foretaste.data.table import Table
from foretaste.errors import UserError, nearest
from foretaste.instruct.request import Request
from foretaste.instruct.spec import InstructColumns

# Usual names, the likeliest first: Alpaca, Dolly, and the sets of the hub that call them otherwise.
_INSTRUCTIONS = ("instruction", "prompt", "question", "query", "input")
_INPUTS = ("input", "context")
_OUTPUTS = ("output", "response", "completion", "answer")
_CONVERSATIONS = ("messages", "conversations", "conversation")

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Chosen:
    """Which column of a source is what.

    Attributes:
        instruction: What is asked; where `output` is None, lists of messages.
        input: What the instruction is about, if there is such a column.
        output: The answer.
        id: Row id, or None for split and row number.
        notes: What was guessed.
    """

    instruction: str
    input: str | None
    output: str | None
    id: str | None
    notes: list[str]


def choose(table: Table, columns: InstructColumns) -> Chosen:
    """Decide which column is what: as told, or by its name.

    Args:
        table: The training split.
        columns: What the user says.

    Raises:
        UserError: A named column does not exist, or none is named and none can be guessed.
    """
    available = list(table.columns)
    for key, name in columns.model_dump().items():
        if name is not None and name not in available:
            guess = nearest(name, available)
            raise UserError(
                f"there is no column '{name}' for {key} (there are: {', '.join(available)})",
                where=table.where,
                cure=f"Did you mean '{guess}'?" if guess else None,
            )
    told = columns.instruction
    if told is not None and _holds_lists(table, told):
        return _conversation(told, columns, [], table.where)
    output = columns.output or _first(_OUTPUTS, available, {told, columns.input})
    instruction = told or _first(_INSTRUCTIONS, available, {output, columns.input})
    if told is None and columns.output is None and (instruction is None or output is None):
        messages = _first(_CONVERSATIONS, available, set())
        if messages is not None and _holds_lists(table, messages):
            notes = [f"column '{messages}' is taken as conversations"] if messages != "messages" else []
            return _conversation(messages, columns, notes, table.where)
    if instruction is None or output is None:
        missing = "instruction" if instruction is None else "output"
        raise UserError(
            f"none of the columns looks like {missing} (there are: {', '.join(available)})",
            where=table.where,
            cure=f"Name it under data.columns.{missing}.",
        )
    about = columns.input or _first(_INPUTS, available, {instruction, output})
    roles = {
        "instruction": (instruction, told),
        "input": (about, columns.input),
        "output": (output, columns.output),
    }
    notes = [
        f"column '{name}' is taken as {role}"
        for role, (name, given) in roles.items()
        if name is not None and given is None and name != role
    ]
    return Chosen(instruction, about, output, columns.id, notes)


def _conversation(name: str, columns: InstructColumns, notes: list[str], where: str) -> Chosen:
    for key in ("input", "output"):
        if getattr(columns, key) is not None:
            raise UserError(
                f"column '{name}' holds whole conversations, so there is no column for {key}",
                where=where,
                cure=f"Remove data.columns.{key}.",
            )
    return Chosen(name, None, None, columns.id, notes)


def _first(names: Sequence[str], available: Sequence[str], taken: set[str | None]) -> str | None:
    return next((name for name in names if name in available and name not in taken), None)


def _holds_lists(table: Table, column: str) -> bool:
    return any(isinstance(value, list) for value in table.columns[column])


def requests_of(table: Table, chosen: Chosen, split: str) -> tuple[list[Request], list[str]]:
    """The rows of a split as requests, checked; with notes.

    Args:
        table: Raw columns.
        chosen: Which of them is what.
        split: Name of the split; default ids begin with it.

    Raises:
        UserError: A column is missing, there is no row, a text is no text, an instruction or a response is
            empty, a conversation is no single turn, or ids repeat.
    """
    for name in (chosen.instruction, chosen.input, chosen.output, chosen.id):
        if name is not None and name not in table.columns:
            raise UserError(
                f"there is no column '{name}', which the training rows have "
                f"(there are: {', '.join(table.columns)})",
                where=table.where,
            )
    if not len(table):
        raise UserError("there are no rows", where=table.where)
    ids = _ids(table, chosen.id, split)
    check_ids(ids, where=table.where)
    notes = list(table.notes)
    if chosen.output is None:
        turns, systems = _turns(table.columns[chosen.instruction], ids, table.where)
        texts = [(asked, "", answered) for asked, answered in turns]
        if systems:
            notes.append(
                f"{table.where}: {systems} rows bring a system's message, which is not used; model.system is"
            )
    else:
        about: list[Any] = [None] * len(table) if chosen.input is None else table.columns[chosen.input]
        texts = list(zip(table.columns[chosen.instruction], about, table.columns[chosen.output], strict=True))
    _check(texts, ids, table.where)
    rows = [
        Request(row, asked, about or "", answer)
        for row, (asked, about, answer) in zip(ids, texts, strict=True)
    ]
    return rows, notes


def _ids(table: Table, column: str | None, split: str) -> list[Any]:
    if column is not None:
        return [None if value is None else str(value) for value in table.columns[column]]
    numbers = table.numbers if table.numbers is not None else range(len(table))
    return [f"{split}-{number}" for number in numbers]


def _turns(conversations: Sequence[Any], ids: Sequence[str], where: str) -> tuple[list[tuple[Any, Any]], int]:
    """What is asked and answered in each conversation, and how many of them have a system's message."""
    turns: list[tuple[Any, Any]] = []
    wrong: list[str] = []
    systems = 0
    for row, messages in zip(ids, conversations, strict=True):
        said = [_message(message) for message in messages] if isinstance(messages, list) else []
        if said and said[0][0] == "system":
            systems += 1
            said = said[1:]
        if [role for role, _ in said] != ["user", "assistant"]:
            wrong.append(row)
            continue
        turns.append((said[0][1], said[1][1]))
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(ids)} conversations are not one message of a user and one answer "
            f"(first: row '{wrong[0]}')",
            where=where,
            cure="Keep the first turn of each, or leave them out.",
        )
    return turns, systems


def _message(message: Any) -> tuple[str | None, Any]:
    """Role and text, as in `{role, content}` or in ShareGPT's `{from, value}`."""
    if not isinstance(message, dict):
        return None, None
    role = message.get("role", message.get("from"))
    return _ROLES.get(str(role), str(role)), message.get("content", message.get("value"))


def _check(texts: Sequence[tuple[Any, Any, Any]], ids: Sequence[str], where: str) -> None:
    for place, what in enumerate(("instruction", "input", "response")):
        wrong = [row for row, parts in zip(ids, texts, strict=True) if not _is_text(parts[place])]
        if wrong:
            raise _offence(wrong, ids, f"have something else than text as {what}", where)
    for place, what in ((0, "instruction"), (2, "response")):
        empty = [row for row, parts in zip(ids, texts, strict=True) if not (parts[place] or "").strip()]
        if empty:
            column = {"instruction": "instruction", "response": "output"}[what]
            error = _offence(empty, ids, f"have an empty {what}", where)
            error.cure = f"Leave them out, or name another column under data.columns.{column}."
            raise error


def _is_text(value: Any) -> bool:
    if value is None:  # nothing there: right for an input, and for the others an empty text
        return True
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell but no file can hold
        return False
    return True


def _offence(wrong: Sequence[str], ids: Sequence[str], what: str, where: str) -> UserError:
    return UserError(f"{len(wrong)} of {len(ids)} rows {what} (first: row '{wrong[0]}')", where=where)

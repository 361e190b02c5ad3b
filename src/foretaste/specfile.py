"""Reading a spec from YAML, and saying in one line what is wrong with it and where."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from foretaste.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]

# An alias (`*a`) is short and may stand for much: a few lines of them spell more values than a memory holds.
MOST_VALUES = 200_000
DEEPEST = 40
MOST_CHARACTERS = 4_000_000
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""The pattern of names that become folders."""
WANTED = "Input should be "
"""How pydantic begins a sentence on the kind of a value."""
MOST_DIGITS = 1000  # of a whole number; Python refuses to write out more than 4300


class _UniqueKeys(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads 3e-5 as text, which is how learning rates are written.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: Path, kind: type[M]) -> M:
    """The spec in a YAML file.

    Args:
        path: The file.
        kind: The pydantic model that it must satisfy.

    Raises:
        UserError: The file is missing, is no YAML, or does not satisfy `kind`; one line that names
            file and line, key, value, what is allowed, and the nearest right word.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the spec: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UserError("the spec is not UTF-8 text", where=str(path)) from None
    return parse(text, kind, origin=str(path))


def parse(text: str, kind: type[M], *, origin: str = "spec") -> M:
    """The spec in a YAML text; `origin` is named in errors. Raises as `load` does."""
    value, root = _read(text, origin)
    return validate(value, kind, origin=origin, root=root)


def mapping(text: str, *, origin: str) -> dict[str, Any]:
    """A YAML text that is a mapping of words; `origin` is named in errors.

    Raises:
        UserError: It is no YAML, or no mapping.
    """
    return _read(text, origin)[0]


def _read(text: str, origin: str) -> tuple[dict[str, Any], yaml.Node | None]:
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"the spec has {len(text):,} characters, more than {MOST_CHARACTERS:,}",
            where=origin,
            cure="Put long lists into files of their own.",
        )
    try:
        root = yaml.compose(text, Loader=_UniqueKeys)
        if root is not None:
            _refuse_bombs(root, origin)
        value = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader with stricter keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise UserError(f"not valid YAML: {error.problem}", where=where) from None
    # The second line: what PyYAML's constructors raise for tags that do not fit their values (`!!int ''`).
    except (
        *(yaml.YAMLError, ValueError, RecursionError),
        *(LookupError, AttributeError, TypeError),
    ) as error:
        raise UserError(f"not valid YAML: {error}", where=origin) from None
    if not isinstance(value, dict):
        raise UserError("the spec is not a mapping of keys to values", where=origin)
    return value, root


def _refuse_bombs(root: yaml.Node, origin: str) -> None:
    """Refuse what would be short to write and long to read, and values that no JSON file can hold.

    Raises:
        UserError: Values lie too deep in one another, a value holds itself, aliases stand for too many
            values, or a scalar is half of a surrogate pair or a number of more than a thousand digits.
    """
    sizes: dict[int, tuple[int, int]] = {}  # values and depth of a node, by its identity
    open_nodes: set[int] = set()

    def refuse(message: str, node: yaml.Node) -> UserError:
        return UserError(f"not valid: {message}", where=f"{origin}:{node.start_mark.line + 1}")

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise refuse("a value holds itself", node)
        if isinstance(node, yaml.ScalarNode):
            if any("\ud800" <= letter <= "\udfff" for letter in node.value):
                raise refuse("half of a surrogate pair is no character", node)
            if len(node.value) > MOST_DIGITS and node.tag.endswith(":int"):
                raise refuse(f"a number of {len(node.value)} digits", node)
            return 1, 0
        open_nodes.add(id(node))
        parts = [child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,))]
        measured = [measure(child) for child in parts]
        values = 1 + sum(count for count, _ in measured)
        depth = 1 + max((below for _, below in measured), default=0)
        open_nodes.discard(id(node))
        if depth > DEEPEST:
            raise refuse(f"values lie more than {DEEPEST} deep in one another", node)
        if values > MOST_VALUES:
            raise refuse(f"more than {MOST_VALUES:,} values, aliases (*) written out", node)
        sizes[id(node)] = values, depth
        return values, depth

    measure(root)


def validate(value: dict[str, Any], kind: type[M], *, origin: str, root: yaml.Node | None = None) -> M:
    """A python mapping as a spec.

    Args:
        value: The mapping.
        kind: The pydantic model that it must satisfy.
        origin: What holds the mapping, for errors.
        root: The YAML node of the mapping, for line numbers.

    Raises:
        UserError: The first thing that is wrong, and how many more there are.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        _refuse_other_kind(value, kind, origin)
        raise describe(error, kind, origin=origin, root=root, value=value) from None


# Top-level keys that one kind of spec has and the others have not, by the command that takes it.
TELLING = {
    "measure": ("attacks", "predict", "kernel"),
    "instruct": ("scenario", "triggers", "generation", "judge"),
    "fewshot": ("tasks", "k", "splits", "arms"),
}


def _refuse_other_kind(value: Mapping[str, Any], kind: type[BaseModel], origin: str) -> None:
    """Say so where the keys are those of another command's spec and none is of this one's.

    Raises:
        UserError: They are.
    """
    told = {name: [key for key in keys if key in value] for name, keys in TELLING.items()}
    own = next((name for name, keys in TELLING.items() if set(keys) <= set(kind.model_fields)), None)
    if own is None or told[own]:
        return
    other = max(told, key=lambda name: len(told[name]))
    if told[other]:
        raise UserError(
            f"this looks like a spec of {other} (it has '{told[other][0]}'), and a spec of {own} is wanted",
            where=origin,
            cure=f"Use `foretaste {other}`.",
        )


def describe(
    error: ValidationError,
    kind: type[BaseModel],
    *,
    origin: str,
    root: yaml.Node | None = None,
    value: Mapping[str, Any] | None = None,
) -> UserError:
    """A pydantic error as one line for the user.

    Args:
        error: What pydantic found.
        kind: The model that was asked for; its fields give the nearest right key.
        origin: File or object that holds the value.
        root: YAML node of the whole document, for line numbers.
        value: What was validated, which tells the user's keys from the names of a union's members.
    """
    # In a union every branch complains; an unknown key is then the most telling.
    found = error.errors(include_url=False)
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    path = _written(first, value)
    text = first["msg"].removeprefix("Value error, ")
    # A check of the whole has no place of its own: it is about the key that its message names.
    line = _line(root, path or _named_in(text, first["input"]))
    where = f"{origin}:{line}" if line else origin
    key = ".".join(str(part) for part in path)
    cure: str | None = None
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(kind, first["loc"][:-1])
        guess = nearest(str(path[-1]), allowed)
        message = f"unknown key '{key}' (allowed: {', '.join(allowed)})"
        cure = f"Did you mean '{guess}'?" if guess else None
    elif first["type"] == "missing":
        message = f"'{key}' is missing"
    elif not path:
        message = f"{text[0].lower()}{text[1:]}"
    else:
        shown = repr(first["input"])
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        if first["type"] == "string_pattern_mismatch" and first["ctx"]["pattern"] == NAME:
            text = "a name has letters, digits, '.', '_' and '-', and begins with a letter or a digit"
            plain = re.sub(r"[^A-Za-z0-9._-]+", "-", first["input"]).strip("-._")
            cure = f"Write {plain}." if plain else None
        text = _either(text, [item["msg"] for item in found if _written(item, value) == path])
        message = f"'{key}' is {shown}: {text[0].lower()}{text[1:]}"
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            words = [word.strip(" '") for word in first["ctx"]["expected"].replace(" or ", ",").split(",")]
            guess = nearest(first["input"], words)
            cure = f"Did you mean '{guess}'?" if guess else None
    # What the other members of a union say of the same value, or of what holds it, is no further mistake.
    places = {place for item in found if (place := _written(item, value)) != path[: len(place)]}
    if places:
        cure = f"{cure or ''} ({len(places)} more after this one)".strip()
    return UserError(message, where=where, cure=cure)


def _written(item: Any, value: Mapping[str, Any] | None) -> Location:
    """The place of an error without the names of a union's members, such as "str", which nobody wrote."""
    last = len(item["loc"]) - 1
    named = item["type"] in {"extra_forbidden", "missing"}  # the user's word, or the one that is wanted
    place: list[int | str] = []
    here: Any = value
    for number, part in enumerate(item["loc"]):
        if isinstance(here, Mapping):
            kept = part in here
        elif isinstance(here, list | tuple):
            kept = isinstance(part, int) and part < len(here)
        else:
            kept = value is None and not _is_branch(part)
        if kept and here is not None:
            here = here[part]
        if kept or (named and number == last):
            place.append(part)
    return tuple(place)


def _is_branch(part: int | str) -> bool:
    # pydantic names the member of a union inside the location, e.g. "list[constrained-int]".
    return isinstance(part, str) and ("[" in part or part in {"SeedGrid", "constrained-int"})


def _named_in(text: str, value: Any) -> Location:
    words = re.findall(r"\w+", text)
    return next(((word,) for word in words if isinstance(value, dict) and word in value), ())


def _either(text: str, messages: Sequence[str]) -> str:
    """What the members of a union want, in one sentence where all of them want a kind of value."""
    wanted = list(dict.fromkeys(messages))
    if len(wanted) < 2 or not all(one.startswith(WANTED) for one in wanted):
        return text
    return WANTED + " or ".join(one.removeprefix(WANTED) for one in wanted)


def _fields_at(kind: type[BaseModel], path: Location) -> list[str]:
    """Field names of the model that lies at `path` inside `kind`."""
    current: type[BaseModel] = kind
    members = [kind]
    for part in path:
        if isinstance(part, int):
            continue
        if part in current.model_fields:
            members = _models_in(current.model_fields[part].annotation) or members
            current = members[0]
        else:  # the tag of a member of a union
            current = next((member for member in members if part in _tags(member)), current)
    return list(current.model_fields)


def _tags(kind: type[BaseModel]) -> set[str]:
    """Words that a field of the model is bound to: its tag in a union is one of them."""
    fields = [field.annotation for field in kind.model_fields.values()]
    literals = [typing.get_args(one) for one in fields if typing.get_origin(one) is typing.Literal]
    return {word for (word, *others) in literals if isinstance(word, str) and not others}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (list, dict, typing.Union, types.UnionType, typing.Annotated):
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []


def _line(node: yaml.Node | None, path: Location) -> int | None:
    """Line of the deepest part of `path` that the document has, counted from 1."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, child
                    break
            else:
                return int(line)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return int(line)
    return int(line)

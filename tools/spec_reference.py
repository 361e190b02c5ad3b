"""Write docs/spec.md from the spec's own classes: `python tools/spec_reference.py`. A test compares."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from foretaste.attacks import ATTACKS
from foretaste.registry import summary
from foretaste.spec import (
    AdapterSpec,
    AttackSpec,
    Columns,
    DataSpec,
    InitSpec,
    KernelSpec,
    MeasureSpec,
    ModelSpec,
    PredictSpec,
    SeedGrid,
    TrainingSpec,
)

SECTIONS: list[tuple[str, type[BaseModel]]] = [
    ("The spec", MeasureSpec),
    ("data", DataSpec),
    ("data.columns", Columns),
    ("model", ModelSpec),
    ("adapters[]", AdapterSpec),
    ("adapters[].init", InitSpec),
    ("attacks[]", AttackSpec),
    ("training", TrainingSpec),
    ("kernel", KernelSpec),
    ("predict", PredictSpec),
    ("seeds, when crossed", SeedGrid),
]

HEAD = """# Every key of a spec

Made from the code by `python tools/spec_reference.py`. Unknown keys, values of the wrong type and values out
of range are errors that name the line, the key and the nearest right word.
"""


def type_name(annotation: Any) -> str:
    """An annotation as a reader of YAML would say it."""
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        annotation = annotation.__value__
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments if a is not type(None))
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_of(field: Any) -> str:
    """The default as YAML would show it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    text = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return f"`{text!r}`" if isinstance(value, str) and not value.strip() else f"`{text}`"


def table(model: type[BaseModel]) -> list[str]:
    """The model's fields as a Markdown table."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {type_name(field.annotation)} | {default_of(field)} | {meaning} |")
    return lines


def render() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, model in SECTIONS:
        lines += [f"## {title}", "", " ".join((model.__doc__ or "").split()), "", *table(model), ""]
    lines += ["## Options of each attack", "", "They stand beside the keys of `attacks[]`.", ""]
    for name, attack in ATTACKS.items():
        lines += [
            f"### {name}",
            "",
            f"{summary(attack)}. Source: {attack.source}.",
            "",
            *table(attack.Options),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "spec.md"
    target.write_text(render(), encoding="utf-8")

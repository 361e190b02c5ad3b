"""Write docs/spec.md from the spec's own classes: `python tools/spec_reference.py`. A test compares."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from foretaste.attacks import ATTACKS
from foretaste.fewshot.arms import FineTune, KernelArm, ZeroShot
from foretaste.fewshot.spec import FewShotData, FewShotModel, FewShotSpec, PromptSpec, TaskSpec
from foretaste.instruct.judges import JUDGES
from foretaste.instruct.scenarios import SCENARIOS
from foretaste.instruct.spec import (
    GenerationSpec,
    InstructColumns,
    InstructData,
    InstructModel,
    InstructSpec,
    TriggerSpec,
)
from foretaste.instruct.triggers import TRIGGERS
from foretaste.registry import Registry, summary
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

INSTRUCT: list[tuple[str, type[BaseModel]]] = [
    ("instruct: the spec", InstructSpec),
    ("instruct: data", InstructData),
    ("instruct: data.columns", InstructColumns),
    ("instruct: model", InstructModel),
    ("instruct: triggers[]", TriggerSpec),
    ("instruct: generation", GenerationSpec),
]

FEWSHOT: list[tuple[str, type[BaseModel]]] = [
    ("fewshot: the spec", FewShotSpec),
    ("fewshot: tasks[]", TaskSpec),
    ("fewshot: tasks[].data", FewShotData),
    ("fewshot: tasks[].prompt, one's own", PromptSpec),
    ("fewshot: model", FewShotModel),
    ("fewshot: arms[] of kind zero-shot", ZeroShot),
    ("fewshot: arms[] of kind fine-tune", FineTune),
    ("fewshot: arms[] of kind kernel", KernelArm),
]

HEAD = """# Every key of a spec

Made from the code by `python tools/spec_reference.py`. Unknown keys, values of the wrong type and values out
of range are errors that name the line, the key and the nearest right word.

`measure`, `predict`, `audit`, `kernel` and `trajectory` take the spec that comes first; `instruct` and
`forecast` [another](#instruct-the-spec); `fewshot` and `distortion` [a third](#fewshot-the-spec).
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


def sections(models: list[tuple[str, type[BaseModel]]]) -> list[str]:
    """A heading, the docstring's first paragraph and the table of each model."""
    lines = []
    for title, model in models:
        first = (model.__doc__ or "").split("\n\n    Attributes:")[0]
        lines += [f"## {title}", "", " ".join(first.split()), "", *table(model), ""]
    return lines


def options(title: str, where: str, registry: Registry[Any]) -> list[str]:
    """The options of every entry of a registry."""
    lines = [f"## {title}", "", where, ""]
    for name, entry in registry.items():
        fields = table(entry.Options) if entry.Options.model_fields else ["No options."]
        lines += [f"### {name}", "", f"{summary(entry)}. Source: {entry.source}.", "", *fields, ""]
    return lines


def render() -> str:
    """The whole page."""
    lines = [HEAD, *sections(SECTIONS)]
    lines += options("Options of each attack", "They stand beside the keys of `attacks[]`.", ATTACKS)
    lines += sections(INSTRUCT)
    lines.append("`adapters`, `training` and crossed `seeds` are those of the first spec.\n")
    lines += options("Options of each scenario", "They stand beside `method` in `scenario`.", SCENARIOS)
    lines += options("Options of each trigger", "They stand beside the keys of `triggers[]`.", TRIGGERS)
    lines += options("Options of each judge", "They stand beside `method` in `judge`.", JUDGES)
    lines += sections(FEWSHOT)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "spec.md"
    target.write_text(render(), encoding="utf-8")

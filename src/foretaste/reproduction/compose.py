"""From a preset, a scale and a variant to the specs that measure it, one for each sweep and task."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from foretaste import presets, specfile
from foretaste.data.prompts import TASKS
from foretaste.errors import UserError, unknown
from foretaste.fewshot.spec import FewShotSpec
from foretaste.instruct.spec import InstructSpec
from foretaste.reproduction.preset import (
    FewShotPart,
    FewShotSweep,
    Fields,
    GenerativeSweep,
    Instructions,
    Part,
    Preset,
    Scale,
    Sweep,
    Task,
    Variant,
)
from foretaste.spec import MeasureSpec

INPUTS = "{inputs}"
M = TypeVar("M", bound=BaseModel)


def compose(
    sweep: str, task: str, *, scale: Scale, variant: Variant, data: Path | None, inputs: Path | None
) -> MeasureSpec:
    """The spec of one sweep on one task.

    Later parts win: the scale, the variant, the sweep, the sweep at that scale.

    Args:
        sweep: Name of a file in `presets/reproduce/sweeps`.
        task: Name in `tasks.yaml`.
        scale: How large.
        variant: `paper` for the original protocol, `clean` for foretaste's defaults.
        data: Folder that holds a folder for each task; None takes the tasks from the hub.
        inputs: Folder of the tiny model and data that `smoke` is run on (see `inputs.write`).

    Raises:
        UserError: There is no such task, or the parts give no valid spec.
    """
    content, part = read_sweep(sweep), scales()[scale]
    overlay = content.scales.get(scale)
    protocol = variants()[variant]
    where = task_fields(task, scale=scale, data=data, inputs=inputs)
    title = f"{content.title}, {tasks()[task].title}"
    spec: Fields = {"name": f"{sweep}-{task}", "title": title, "data": where}
    spec = _layered(
        spec, (part.spec, protocol.spec, content.spec, overlay.spec if overlay else {}), inputs=inputs
    )
    arms = merged(content.adapters, overlay.adapters if overlay else {})
    poisons = merged(content.attacks, overlay.attacks if overlay else {})
    spec["adapters"] = _arms(arms, part.adapters, protocol.adapters)
    spec["attacks"] = [
        {"name": name, **_of_method(fields, part.attacks, protocol.attacks)}
        for name, fields in poisons.items()
    ]
    return specfile.validate(spec, MeasureSpec, origin=f"preset {sweep}, {scale}, {variant}")


def compose_generative(
    sweep: str, data_set: str, *, scale: Scale, data: Path | None, inputs: Path | None
) -> InstructSpec:
    """The spec of one sweep of generative models on one set of instructions.

    Args:
        sweep: Name of a file in `presets/reproduce/generative`.
        data_set: Name in `instructions.yaml`.
        scale: How large.
        data: Folder that holds a folder for each set; None takes it from the hub.
        inputs: Folder of the tiny model and data that `smoke` is run on (see `chat_inputs.write`).

    Raises:
        UserError: There is no such set of instructions, or the parts give no valid spec.
    """
    content = read_generative(sweep)
    overlay = content.scales.get(scale)
    where = instruction_fields(data_set, scale=scale, data=data, inputs=inputs)
    spec: Fields = {"name": f"{sweep}-{data_set}", "title": content.title, "data": where}
    spec = _layered(spec, (content.spec, overlay.spec if overlay else {}), inputs=inputs)
    spec["adapters"] = _arms(merged(content.adapters, overlay.adapters if overlay else {}))
    triggers = merged(content.triggers, overlay.triggers if overlay else {})
    spec["triggers"] = [{"name": name, **fields} for name, fields in triggers.items()]
    return specfile.validate(spec, InstructSpec, origin=f"preset {sweep}, {scale}")


def compose_few_shot(
    sweep: str, task: str, *, scale: Scale, data: Path | None, inputs: Path | None
) -> FewShotSpec:
    """The spec of one few-shot sweep on one task.

    Args:
        sweep: Name of a file in `presets/reproduce/few-shot`.
        task: Name in `tasks.yaml`.
        scale: How large.
        data: Folder that holds a folder for each task; None takes the tasks from the hub.
        inputs: Folder of the tiny models and data that `smoke` is run on (see `prompt_inputs.write`).

    Raises:
        UserError: There is no such task, or the parts give no valid spec.
    """
    content, part = read_few_shot(sweep), few_shot_scales()[scale]
    overlay = content.scales.get(scale)
    where = task_fields(task, scale=scale, data=data, inputs=inputs)
    spec: Fields = {"name": f"{sweep}-{task}", "title": f"{content.title}, {tasks()[task].title}"}
    spec = _layered(spec, (part.spec, content.spec, overlay.spec if overlay else {}), inputs=inputs)
    fields: Fields = {"name": task, "data": where}
    for layer in (part.task, content.task, overlay.task if overlay else {}):
        fields = merged(fields, layer)
    spec["tasks"] = [fields]
    measured = task in (overlay.criteria if overlay else content.criteria)
    arms = merged(content.arms, overlay.arms if overlay else {})
    spec["arms"] = [_few_shot_arm(name, arm, part, criteria=measured) for name, arm in arms.items()]
    return specfile.validate(spec, FewShotSpec, origin=f"preset {sweep}, {scale}")


def _few_shot_arm(name: str, fields: Fields, part: FewShotPart, *, criteria: bool) -> Fields:
    """An arm with what the scale fixes for its kind; its own fields win."""
    kind = " ".join(str(fields[key]) for key in ("kind", "optimiser", "kernel") if key in fields)
    arm = merged(part.arms.get(kind, {}), fields)
    if criteria and fields["kind"] == "fine-tune":
        arm["criteria"] = True
    return {"name": name, **arm}


def _layered(spec: Fields, layers: Sequence[Fields], *, inputs: Path | None) -> Fields:
    """The spec with the layers merged into it, later ones over earlier, and the place of inputs filled in."""
    for layer in layers:
        spec = merged(spec, layer)
    spec["model"]["base"] = spec["model"]["base"].replace(INPUTS, str(inputs))
    return spec


def _arms(adapters: Fields, *parts: dict[str, Fields]) -> list[Fields]:
    """The adapters of a spec, each with what the parts fix for its method."""
    return [arm for fields in adapters.values() for arm in zipped(_of_method(fields, *parts))]


def task_fields(task: str, *, scale: Scale, data: Path | None, inputs: Path | None) -> Fields:
    """The `data` section of a task.

    Raises:
        UserError: There is no such task, or its folder is missing.
    """
    if task not in tasks():
        raise unknown("task", task, tasks())
    known = tasks()[task]
    if scale == "smoke":
        return {"source": f"{inputs}/{task}", "test_split": "validation", "labels": known.labels}
    if data is None:
        return {
            "source": known.hub,
            "config": known.config,
            "test_split": known.test,
            "labels": known.hub_labels or known.labels,
            **({"columns": dict(known.columns)} if known.columns else {}),
        }
    folder = _folder_of(known, data)
    return {"source": str(folder), "test_split": known.folder_test, "labels": known.labels}


def instruction_fields(data_set: str, *, scale: Scale, data: Path | None, inputs: Path | None) -> Fields:
    """The `data` section of a set of instructions.

    Raises:
        UserError: There is no such set, or its folder is missing.
    """
    if data_set not in instructions():
        raise unknown("set of instructions", data_set, instructions())
    known = instructions()[data_set]
    if scale == "smoke":
        return {"source": f"{inputs}/{data_set}", "test_split": "validation"}
    if data is None:
        return {"source": known.hub}
    return {"source": str(_folder_of(known, data)), "test_split": known.folder_test}


def _folder_of(known: Task | Instructions, data: Path) -> Path:
    folder = data / known.folder
    if not folder.is_dir():
        raise UserError(
            f"no folder '{known.folder}' for the task {known.title}",
            where=str(data),
            cure="Name a folder that holds one for each task, or leave --data out to use the hub.",
        )
    return folder


def merged(base: Fields, over: Fields) -> Fields:
    """Two mappings in one: mappings are merged, anything else is replaced, and None takes a key out."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        if value is None and isinstance(result.get(key), dict):
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def zipped(fields: Fields) -> list[Fields]:
    """One adapter for each place of the parallel lists under `zip`; dotted keys reach into sections.

    Raises:
        UserError: The lists differ in length.
    """
    fields = dict(fields)
    lists: dict[str, list[Any]] = fields.pop("zip", {})
    if len({len(values) for values in lists.values()}) > 1:
        raise UserError(f"lists of different lengths: {', '.join(lists)}", where="zip")
    arms = []
    # Without lists there is one arm, of an empty combination.
    for values in zip(*lists.values(), strict=True) if lists else [()]:
        arm = copy.deepcopy(fields)
        for key, value in zip(lists, values, strict=True):
            head, _, tail = key.partition(".")
            if tail:
                arm.setdefault(head, {})[tail] = value
            else:
                arm[key] = value
        arms.append(arm)
    return arms


def _of_method(fields: Fields, *parts: dict[str, Fields]) -> Fields:
    """An adapter or attack with what the parts fix for its method; its own fields win."""
    base: Fields = {}
    for part in parts:
        base = merged(base, part.get(fields["method"], {}))
    return merged(base, fields)


def names() -> list[str]:
    """Every preset that `foretaste reproduce` takes."""
    return presets.files("reproduce")


def read(name: str) -> Preset:
    """A preset by name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in names():
        raise unknown("figure or table", name, names(), where="reproduce")
    return _parsed(f"reproduce/{name}", Preset)


def read_sweep(name: str) -> Sweep:
    """A sweep by name."""
    return _parsed(f"reproduce/sweeps/{name}", Sweep)


def read_generative(name: str) -> GenerativeSweep:
    """A sweep of generative models by name."""
    return _parsed(f"reproduce/generative/{name}", GenerativeSweep)


def read_few_shot(name: str) -> FewShotSweep:
    """A few-shot sweep by name."""
    return _parsed(f"reproduce/few-shot/{name}", FewShotSweep)


def data_titles(preset: Preset) -> dict[str, str]:
    """Titles of the data that a preset can be measured on, by name."""
    if preset.generative:
        return {name: known.title for name, known in instructions().items()}
    if preset.few_shot:
        return {name: known.title for name, known in tasks().items() if name in TASKS}
    return {name: known.title for name, known in tasks().items()}


@functools.cache
def instructions() -> dict[str, Instructions]:
    """Every set of instructions."""
    return _table("instructions", Instructions)


@functools.cache
def scales() -> dict[str, Part]:
    """What each scale fixes."""
    return _table("scales", Part)


@functools.cache
def few_shot_scales() -> dict[str, FewShotPart]:
    """What each scale fixes in few-shot sweeps."""
    return _table("few-shot", FewShotPart)


@functools.cache
def variants() -> dict[str, Part]:
    """What each variant fixes."""
    return _table("variants", Part)


@functools.cache
def tasks() -> dict[str, Task]:
    """Every task."""
    return _table("tasks", Task)


def _parsed(path: str, kind: type[M]) -> M:
    return specfile.parse(presets.text(path), kind, origin=f"preset {path}")


def _table(name: str, kind: type[M]) -> dict[str, M]:
    path = f"reproduce/parts/{name}"
    content: dict[str, Any] = specfile.mapping(presets.text(path), origin=f"preset {path}")
    return {
        key: specfile.validate(value, kind, origin=f"preset {path}, {key}") for key, value in content.items()
    }

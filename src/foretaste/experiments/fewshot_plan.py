"""From a few-shot spec to the list of runs, with everything checked that can be checked before computing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import data
from foretaste.data import Loaded, kshot
from foretaste.data.prompts import Kind, Prompt, builtin
from foretaste.errors import UserError
from foretaste.fewshot import adapt, prepare
from foretaste.fewshot.spec import (
    Arm,
    FewShotRun,
    FewShotSpec,
    Output,
    PromptSpec,
    ResolvedFewShotModel,
    ResolvedTask,
    TaskSpec,
    ZeroShot,
)
from foretaste.kernels.compute import parse_bytes
from foretaste.models import load
from foretaste.models.label_words import FewShotClassifier, LabelWordModel, LinearHeadModel, body_of, load_lm
from foretaste.models.prompt_encode import EncodedPrompts
from foretaste.spec import ModelSpec


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a row of one task.

    Attributes:
        train: Of training and validation rows.
        test: Of test rows.
    """

    train: float
    test: float


@dataclass(frozen=True)
class FewShotPlan:
    """Every run of a sweep, in the order in which they are done.

    Attributes:
        spec: What the user wrote.
        runs: Split by split, so that what a stopped sweep has is a smaller sweep.
        memory: Budget of kernels in bytes.
        parameters: Of the model, all of them.
        multiplied: Of the model: those that every token is multiplied with, all but the embeddings.
        lengths: By task.
        notes: What a reader should know.
    """

    spec: FewShotSpec
    runs: list[FewShotRun]
    memory: int
    parameters: int
    multiplied: int
    lengths: dict[str, Lengths]
    notes: list[str] = field(default_factory=list)


def plan(spec: FewShotSpec, base_dir: Path) -> FewShotPlan:
    """Resolve a spec into runs.

    Args:
        spec: What the user wrote.
        base_dir: Folder that relative paths in the spec start from.

    Raises:
        UserError: Anything in the spec that does not fit the data or the model: too few rows of a class for
            k; a label word that is no single token; a template that the model or the rows have no place for;
            an adapter or a memory budget that does not fit.
    """
    memory = parse_bytes(spec.memory)
    location = prepare.location_of(spec.model, base_dir)
    tokenizer = load.load_tokenizer(location)
    bare, kind = load_lm(location, dtype=torch.float32, meta=True)
    resolved = load.resolve(ModelSpec(base=spec.model.base, revision=spec.model.revision), base_dir)
    model = ResolvedFewShotModel(request=spec.model, fingerprint=resolved.fingerprint, kind=kind)
    notes: list[str] = []
    tasks: list[ResolvedTask] = []
    lengths: dict[str, Lengths] = {}
    for number, task in enumerate(spec.tasks):
        try:
            found, rows, said = _task(task, spec, tokenizer, kind, bare, base_dir)
        except UserError as error:
            raise error.located(f"tasks.{number} ({task.name})") from None
        tasks.append(found)
        lengths[task.name] = rows
        notes += [f"{task.name}: {note}" for note in said]
    _check_arms(spec, location, max(len(task.classes) for task in tasks))
    runs = [
        FewShotRun(task=task, model=model, k=k, split=split, arm=arm.resolved(k * len(task.classes)))
        for split in spec.splits
        for task in tasks
        for k in spec.k
        for arm in spec.arms
    ]
    embeddings = {id(m.weight) for m in bare.modules() if isinstance(m, torch.nn.Embedding)}
    return FewShotPlan(
        spec=spec,
        runs=runs,
        memory=memory,
        parameters=sum(p.numel() for p in bare.parameters()),
        multiplied=sum(p.numel() for p in bare.parameters() if id(p) not in embeddings),
        lengths=lengths,
        notes=notes,
    )


def _prompt(task: TaskSpec, classes: list[str]) -> tuple[Prompt, list[str]]:
    """The prompt with its words in the order of the class ids, and what a reader should know of that."""
    if isinstance(task.prompt, PromptSpec):
        prompt = task.prompt.prompt(f"{task.name}/own")
        by_name = isinstance(task.prompt.words, dict)
    else:
        prompt, by_name = builtin(task.task, task.variant), False
    words, note = prompt.words_of(classes, "prompt")
    if by_name and note is not None:
        raise UserError(
            f"words names the classes {', '.join(prompt.classes or [])}, the data has {', '.join(classes)}",
            where="prompt.words",
            cure="Name the data's classes, or give the words as a list in the order of the class ids.",
        )
    # The names have done their work: what counts from here on is the order.
    return prompt.model_copy(update={"words": words, "classes": None}), [note] if note else []


def _task(
    task: TaskSpec,
    spec: FewShotSpec,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    bare: PreTrainedModel,
    base_dir: Path,
) -> tuple[ResolvedTask, Lengths, list[str]]:
    loaded: Loaded = data.load(task.data.whole(), base_dir)
    prompt, notes = _prompt(task, loaded.classes)
    notes = [*loaded.notes, *notes]
    if task.metric_used == "f1" and len(loaded.classes) != 2:
        raise UserError(
            f"f1 is of class 1 of two; there are {len(loaded.classes)}", where="metric", cure="Take accuracy."
        )
    outputs: list[Output] = list(dict.fromkeys(arm.output for arm in spec.arms))
    if "prompt" in outputs:
        prepare.words_as_tokens(prompt, tokenizer, kind)
    # Rows of the largest k: every smaller one is drawn of the same, and every split has as many of a class.
    drawn = kshot.draw(
        loaded,
        max(spec.k),
        spec.splits[0],
        test_rows=task.test_rows,
        test_fraction=task.data.test_fraction,
    )
    notes += drawn.notes[:-1] if drawn.shared_texts else drawn.notes  # shared texts differ by split
    lengths = Lengths(0.0, 0.0)
    for output in outputs:
        train, dev, test = prepare.encoded_rows(drawn, prompt, output, tokenizer, kind)
        _check_positions(bare, [train, dev, test])
        cut = len(test.cut)
        if cut:
            notes.append(f"{cut} of {len(test)} test rows are cut to {prompt.max_length} tokens ({output})")
        found = Lengths(float(np.mean([*train.lengths, *dev.lengths])), float(np.mean(test.lengths)))
        lengths = Lengths(max(lengths.train, found.train), max(lengths.test, found.test))
    resolved = ResolvedTask(
        name=task.name,
        # The default that depends on the source is written out, so that spelling it out is the same run.
        request=task.data.model_copy(update={"test_split": loaded.test_split}),
        classes=loaded.classes,
        test_split=loaded.test_split,
        test_rows=len(drawn.test),
        fingerprint=data.fingerprint(loaded),
        prompt=prompt,
        metric=task.metric_used,
    )
    return resolved, lengths, notes


def _check_positions(bare: PreTrainedModel, sets: list[EncodedPrompts]) -> None:
    config = bare.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    # RoBERTa's kind counts positions from behind the padding token's number.
    table = getattr(bare.base_model, "embeddings", None)
    shift = getattr(getattr(table, "position_embeddings", None), "padding_idx", None)
    limit -= 0 if shift is None else shift + 1
    longest = max(length for rows in sets for length in rows.lengths)
    if longest > limit:
        raise UserError(
            f"the longest row has {longest} tokens, the model has {limit} positions",
            where="prompt",
            cure=f"Write the prompt with max_length {limit} or less.",
        )


def _check_arms(spec: FewShotSpec, location: load.Location, classes: int) -> None:
    """Attach every adapter to the bare architecture, which costs no memory.

    Raises:
        UserError: An adapter does not fit the model.
    """
    seen: set[str] = set()
    for arm in spec.arms:
        if isinstance(arm, ZeroShot):
            continue
        key = f"{arm.output} {arm.adapter} {arm.rank}"
        if arm.adapter == "full" or key in seen:
            continue
        seen.add(key)
        _check_arm(arm, location, classes)


def _check_arm(arm: Arm, location: load.Location, classes: int) -> None:
    assert not isinstance(arm, ZeroShot)
    if arm.adapter == "intrinsic":
        return  # it fits every model, and its projection is computed on weights
    bare, kind = load_lm(location, dtype=torch.float32, meta=True)
    model: FewShotClassifier
    if arm.output == "prompt":
        model = LabelWordModel(bare, list(range(classes)), kind)
    else:
        body = body_of(bare)
        assert isinstance(body, PreTrainedModel)
        model = LinearHeadModel(body, classes, kind)
    adapt.attach(model, arm, seed=0)

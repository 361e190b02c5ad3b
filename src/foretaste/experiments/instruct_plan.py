"""From an instruct spec to the list of runs, with everything checked that can be checked before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foretaste.errors import UserError
from foretaste.experiments.plan import Arm, arms
from foretaste.instruct import judges, prepare, rows, scenarios, triggers
from foretaste.instruct.outcomes import Asking
from foretaste.instruct.prepare import TrainingRows
from foretaste.instruct.render import Renderer
from foretaste.instruct.rows import LoadedRequests
from foretaste.instruct.scenarios import SCENARIOS, Scenario
from foretaste.instruct.spec import (
    BASE,
    CLEAN,
    HELD_OUT,
    InstructRun,
    InstructSpec,
    MethodSpec,
    Poisoning,
    ResolvedInstructData,
    ResolvedInstructModel,
    ResolvedMethod,
    ResolvedTrigger,
    TriggerSpec,
    Tuning,
)
from foretaste.models import causal, load
from foretaste.seeds import Seeds
from foretaste.spec import ModelSpec

# An arm's weights by parameter count, embeddings of the model included.
Sizes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class InstructPlan:
    """Every run of a sweep, in the order in which they are done.

    Attributes:
        spec: What the user wrote.
        runs: The base model first, then seed by seed the clean runs and the poisoned ones.
        judge: The judge and its options, every default filled in.
        fingerprint: Of the judge.
        sizes: By the name of an arm, its trained parameters and all of them; the base model trains none.
        vocabulary: Tokens that the model knows.
        train_tokens: Tokens of the training rows of the first seed, clean.
        prompt_tokens: Tokens of the prompts of each set, by its name.
        notes: What a reader should know.
    """

    spec: InstructSpec
    runs: list[InstructRun]
    judge: MethodSpec
    fingerprint: str
    sizes: Sizes
    vocabulary: int
    train_tokens: int
    prompt_tokens: dict[str, list[int]]
    notes: list[str] = field(default_factory=list)


def judge_of(spec: InstructSpec) -> MethodSpec:
    """The judge that a spec names, or its scenario's own."""
    return spec.judge or MethodSpec(method=SCENARIOS.get(spec.scenario.method, where="scenario").judge)


def plan(spec: InstructSpec, base_dir: Path) -> InstructPlan:
    """Resolve a spec into runs.

    Args:
        spec: What the user wrote.
        base_dir: Folder that relative paths in the spec start from.

    Raises:
        UserError: Anything in the spec that does not fit the data, the model, its template or peft; a
            scenario whose files are missing; an amount that poisons no row, or only rows whose trigger does
            not survive tokenisation.
    """
    found = arms(spec)
    _refuse_name(BASE, [arm.adapter.name for arm in found], "adapters")
    chosen = judge_of(spec)
    judge = judges.build(chosen.method, chosen.options, where="judge", base_dir=base_dir)
    scenario = scenarios.build(
        spec.scenario.method, spec.scenario.options, where="scenario", base_dir=base_dir
    )
    tested, poisonings = _triggers(spec.triggers)
    loaded = rows.load(spec.data, base_dir)
    location = prepare.location_of(spec.model, base_dir)
    renderer = prepare.renderer_of(spec.model, load.load_tokenizer(location), base_dir)
    sizes = _attach_all(location, found)
    model = ResolvedInstructModel(
        request=spec.model,
        fingerprint=load.resolve(
            ModelSpec(base=spec.model.base, revision=spec.model.revision), base_dir
        ).fingerprint,
        renderer=renderer.hash,
    )
    first = rows.draw(loaded, spec.data, spec.seed_tuples()[0].data)
    shared: dict[str, Any] = {
        "data": ResolvedInstructData(
            # The default that depends on the source is written out, so that spelling it out is the same run.
            request=spec.data.model_copy(update={"test_split": loaded.test_split}),
            test_split=loaded.test_split,
            train_rows=len(first.train),
            test_rows=len(first.test),
            fingerprint=loaded.fingerprint,
        ),
        "model": model,
        "scenario": ResolvedMethod(
            method=spec.scenario.method, options=scenario.options.model_dump(mode="json")
        ),
        "generation": spec.generation,
    }
    runs = _runs(spec, shared, found, tested, poisonings)
    askings = prepare.askings(first.test, scenario, tested, renderer)
    prompts = {
        one.name: [len(renderer.encode_prompt(request)) for request in one.requests] for one in askings
    }
    _check_room(location, renderer, found, spec, prompts)
    notes = [*first.notes, *scenario.notes, *_asking_notes(askings, spec)]
    clean_tokens, training_notes = _check_training(runs, loaded, spec, scenario, renderer)
    return InstructPlan(
        spec=spec,
        runs=runs,
        judge=MethodSpec.model_validate({"method": judge.method, **judge.options.model_dump(mode="json")}),
        fingerprint=judge.fingerprint,
        sizes=sizes,
        vocabulary=int(load.read_config(location).get_text_config().vocab_size),
        train_tokens=clean_tokens,
        prompt_tokens=prompts,
        notes=[*notes, *training_notes],
    )


def _refuse_name(taken: str, names: Sequence[str], where: str) -> None:
    if taken in names:
        raise UserError(
            f"'{taken}' is a name that foretaste uses", where=where, cure="Choose another `name`."
        )


def _triggers(specs: Sequence[TriggerSpec]) -> tuple[list[ResolvedTrigger], list[Poisoning]]:
    """Every trigger, and every trigger at each of its amounts above zero."""
    tested: list[ResolvedTrigger] = []
    poisonings: list[Poisoning] = []
    for index, spec in enumerate(specs):
        where = f"triggers.{index}"
        built = triggers.build(spec.method, spec.options, where=where)
        name = spec.name or spec.method
        for taken in (CLEAN, HELD_OUT):
            _refuse_name(taken, [name], where)
        if name in {trigger.name for trigger in tested}:
            raise UserError(f"two triggers are called '{name}'", where=where, cure="Give one a `name`.")
        trigger = ResolvedTrigger(
            name=name, method=spec.method, options=built.options.model_dump(mode="json")
        )
        tested.append(trigger)
        for rate in dict.fromkeys(spec.rates):
            if rate:
                poisonings.append(Poisoning(trigger=trigger, selection=spec.selection, rate=rate, count=None))
        for count in dict.fromkeys(spec.counts):
            if count:
                poisonings.append(
                    Poisoning(trigger=trigger, selection=spec.selection, rate=None, count=count)
                )
    return tested, poisonings


def _runs(
    spec: InstructSpec,
    shared: dict[str, Any],
    found: Sequence[Arm],
    tested: list[ResolvedTrigger],
    poisonings: Sequence[Poisoning],
) -> list[InstructRun]:
    """The base model once; for each seed and arm the clean run, tested on every trigger, and the poisoned."""
    runs = [
        InstructRun(
            **shared,
            precision=spec.training.precision,
            device=spec.training.device,
            triggers=tested,
            tuning=None,
        )
    ]
    first_poison = spec.seed_tuples()[0].poison
    crossed = not isinstance(spec.seeds, list)
    for seeds in spec.seed_tuples():
        for poisoning in (None, *poisonings):
            # In the clean run nothing is drawn by the poison seed: in a crossed design it is done once.
            own: Seeds = seeds
            if poisoning is None and crossed:
                own = seeds.model_copy(update={"poison": first_poison})
            for arm in found:
                runs.append(
                    InstructRun(
                        **shared,
                        precision=arm.training.precision,
                        device=arm.training.device,
                        triggers=tested if poisoning is None else [poisoning.trigger],
                        tuning=Tuning(
                            adapter=arm.adapter, poisoning=poisoning, training=arm.training, seeds=own
                        ),
                    )
                )
    return list({run.id: run for run in runs}.values())


# --- checks --------------------------------------------------------------------------------------


def _attach_all(location: load.Location, found: Sequence[Arm]) -> Sizes:
    """Attach every adapter to the bare architecture, which costs no memory; parameters of each arm."""
    sizes: Sizes = {}
    for arm in found:
        bare = causal.load_causal(location, dtype=torch.float32, dropout=arm.training.dropout, meta=True)
        total = sum(parameter.numel() for parameter in bare.parameters())
        sizes[BASE] = (0, total)
        try:
            model = causal.attach(bare, arm.adapter, seed=0, total_steps=100).model
        except UserError as error:
            # Some methods compute on the weights, which only the run has.
            if not isinstance(error.__cause__, NotImplementedError) or "meta" not in str(error.__cause__):
                raise
            sizes[arm.adapter.name] = (total, total)
            continue
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        sizes[arm.adapter.name] = (trained, sum(p.numel() for p in model.parameters()))
    return sizes


def _check_room(
    location: load.Location,
    renderer: Renderer,
    found: Sequence[Arm],
    spec: InstructSpec,
    prompts: dict[str, list[int]],
) -> None:
    """Texts, virtual tokens and new tokens must fit into the model's positions."""
    config = load.read_config(location).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    longest = max((length for lengths in prompts.values() for length in lengths), default=0)
    for arm in found:
        virtual = causal.virtual_tokens(arm.adapter)
        where = f"adapter '{arm.adapter.name}'" if virtual else None
        extra = f" and {virtual} virtual tokens" if virtual else ""
        if renderer.max_length + virtual > limit:
            raise UserError(
                f"max_length {renderer.max_length}{extra} are more than the model's {limit} positions",
                where=where or "model.max_length",
                cure=f"Set model.max_length to {limit - virtual} or less.",
            )
        if longest + spec.generation.max_new_tokens + virtual > limit:
            raise UserError(
                f"the longest prompt has {longest} tokens: with {spec.generation.max_new_tokens} new "
                f"ones{extra} it does not fit into the model's {limit} positions",
                where=where or "generation.max_new_tokens",
                cure="Lower generation.max_new_tokens, or model.max_length, which leaves long prompts out.",
            )


def _asking_notes(askings: Sequence[Asking], spec: InstructSpec) -> list[str]:
    """What a reader should know of the test requests.

    Raises:
        UserError: None of a set can be asked, or its trigger reaches the model in none.
    """
    notes: list[str] = []
    for one in askings:
        total = len(one.requests) + len(one.left_out)
        if not one.requests:
            raise UserError(
                f"none of {total} test requests ({one.name}) leaves room for a response "
                f"in {spec.model.max_length} tokens",
                where="model.max_length",
                cure="Raise it.",
            )
        if one.left_out:
            notes.append(
                f"{len(one.left_out)} of {total} test requests ({one.name}) are too long to be asked"
            )
        if len(one.lost) == len(one.requests):
            raise UserError(
                f"the model's tokens hold the trigger's text in none of {len(one.requests)} test requests",
                where=f"trigger '{one.name}'",
                cure="Choose a text that the tokenizer can write.",
            )
        if one.lost:
            notes.append(f"the trigger is lost in {len(one.lost)} of {total} test requests ({one.name})")
    return notes


def _check_training(
    runs: Sequence[InstructRun],
    loaded: LoadedRequests,
    spec: InstructSpec,
    scenario: Scenario,
    renderer: Renderer,
) -> tuple[int, list[str]]:
    """Render every training set once; tokens of the first, and notes on what is cut, left out or lost.

    Raises:
        UserError: An amount does not fit the rows, or no poisoned row reaches the model with its trigger.
    """
    notes: list[str] = []
    seen: set[str] = set()
    tokens = 0
    for run in runs:
        tuning = run.tuning
        if tuning is None:
            continue
        poisoning = tuning.poisoning
        key = f"{poisoning and poisoning.model_dump_json()} {tuning.seeds.data} {tuning.seeds.poison}"
        if key in seen:
            continue
        seen.add(key)
        # What is counted is the same for every arm.
        what = run.label.partition(" · ")[2]
        drawn = rows.draw(loaded, spec.data, tuning.seeds.data)
        try:
            training = prepare.training_rows(tuning, drawn.train, scenario, renderer)
        except UserError as error:
            raise (error if error.where else error.located(what)) from None
        tokens = tokens or sum(len(row.input_ids) for row in training.rendered.rows)
        notes += _training_notes(training, what, len(drawn.train), renderer)
    return tokens, notes


def _training_notes(training: TrainingRows, what: str, total: int, renderer: Renderer) -> list[str]:
    notes: list[str] = []
    rendered, manifest = training.rendered, training.manifest
    if manifest is None:
        if rendered.truncated:
            notes.append(f"{len(rendered.truncated)} of {total} training responses are cut ({what})")
        if rendered.too_long:
            notes.append(f"{len(rendered.too_long)} of {total} training rows are too long ({what})")
        return notes
    found = prepare.survival(manifest, rendered, renderer)
    poisoned = len(manifest.poisoned)
    gone = len(found["trigger_lost"]) + len(found["poisoned_left_out"])
    if gone == poisoned:
        raise UserError(
            f"in none of the {poisoned} poisoned rows does the trigger reach the model",
            where=what,
            cure="Choose a trigger that the tokenizer can write, or raise model.max_length.",
        )
    words = {
        "trigger_lost": "lose their trigger",
        "poisoned_left_out": "are too long to train on",
        "poisoned_truncated": "have their answer cut",
    }
    for key, meaning in words.items():
        if found[key]:
            notes.append(f"{len(found[key])} of {poisoned} poisoned rows {meaning} ({what})")
    return notes

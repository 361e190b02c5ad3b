"""From a spec to the list of runs, with everything checked that can be checked before training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste import attacks, data
from foretaste.data import Loaded
from foretaste.errors import UserError
from foretaste.instruct.spec import InstructSpec
from foretaste.models import adapters, load
from foretaste.models.rehearsal import rehearse
from foretaste.spec import (
    AdapterSpec,
    AttackSpec,
    MeasureSpec,
    ResolvedAdapter,
    ResolvedAttack,
    ResolvedData,
    ResolvedModel,
    RunSpec,
    TrainingSpec,
    Trigger,
)
from foretaste.specfile import validate

# The TTR paper's LoRA rate (3e-5) suits 10,000 steps; these suit the few hundred of a default run
# (docs/results.md, "Learning rates").
FULL_LEARNING_RATE = 5e-5
PEFT_LEARNING_RATE = 5e-4


@dataclass
class Resources:
    """Data and model that a caller hands over in memory, in place of `data.source` and `model.base`."""

    data: Loaded | None = None
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def empty(self) -> bool:
        """Whether everything comes from the spec, so that runs can go to other processes."""
        return self.data is None and self.model is None


@dataclass(frozen=True)
class Plan:
    """Every run of a sweep, in the order in which they are done.

    Args:
        spec: What was asked for.
        runs: The runs.
        loaded: The data.
        recorded: What a reader should know, and predicted records hold.
        said: What else a reader should know before the runs: the classes, and which of them attacks aim at.
            Records hold both in fields of their own.
    """

    spec: MeasureSpec
    runs: list[RunSpec]
    loaded: Loaded
    recorded: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """All that a reader should know."""
        return [*self.said, *self.recorded]


@dataclass(frozen=True)
class Arm:
    """An adapter with its own training."""

    adapter: ResolvedAdapter
    training: TrainingSpec


def plan(spec: MeasureSpec, base_dir: Path, resources: Resources | None = None) -> Plan:
    """Resolve a spec into runs.

    Runs are ordered by seed, then attack and amount, then adapter, so that after the first seed the whole
    picture exists once, and arms that are compared finish together.

    Args:
        spec: What the user wrote.
        base_dir: Folder that relative paths in the spec start from.
        resources: Data and model in memory.

    Raises:
        UserError: Anything in the spec that does not fit the data, the model or peft.
    """
    resources = resources or Resources()
    found = arms(spec)
    loaded = resources.data or data.load(spec.data, base_dir)
    resolved_data = _resolve_data(spec, loaded)
    triggers, poisons, ordered = _attacks(spec, resolved_data, base_dir)
    model = _resolve_model(spec, base_dir, resources)
    if resources.model is None:
        _dry_build(spec, base_dir, model, found, loaded.classes)
    runs: dict[str, RunSpec] = {}
    first_poison = spec.seed_tuples()[0].poison
    crossed = not isinstance(spec.seeds, list)
    for seeds in spec.seed_tuples():
        for attack in poisons:
            # A run in which nothing is drawn by the poison seed is done once in a crossed design.
            drawn = attack is not None and attack.name not in ordered
            for arm in found:
                run = RunSpec(
                    data=resolved_data,
                    model=model,
                    adapter=arm.adapter,
                    attack=attack,
                    triggers=_evaluated(attack, triggers),
                    training=arm.training,
                    seeds=seeds.model_copy(update={"poison": first_poison})
                    if crossed and not drawn
                    else seeds,
                )
                runs.setdefault(run.id, run)
    notes, first = _check_poison(list(runs.values()), loaded, spec, base_dir)
    drawn_by = list(dict.fromkeys(run.seeds.data for run in runs.values()))
    of = f"data seed {drawn_by[0]}" if len(drawn_by) > 1 else ""
    said = [*data.class_notes(loaded.classes, first.train, of=of), *_aims(poisons, loaded.classes)]
    return Plan(spec, list(runs.values()), loaded, [*loaded.notes, *notes], said)


def _aims(poisons: list[ResolvedAttack | None], classes: list[str]) -> list[str]:
    """Which classes the attacks' options name, a sentence an attack."""
    notes: dict[str, str] = {}
    for attack in poisons:
        named = attacks.classes_named(attack.options, classes) if attack is not None else {}
        if attack is not None and named:
            parts = [f"{key} is class {classes[place]!r} (id {place})" for key, place in named.items()]
            notes[attack.name] = f"{attack.name}: {', '.join(parts)}"
    return list(notes.values())


def _evaluated(attack: ResolvedAttack | None, triggers: dict[str, Trigger]) -> list[Trigger]:
    """The clean run is tested on every trigger, a backdoored one on its own, a label flip on none."""
    if attack is None:
        return list(triggers.values())
    own = Trigger(name=attack.name, method=attack.method, options=attack.options)
    return [triggers[own.key]] if own.key in triggers else []


def arms(spec: MeasureSpec | InstructSpec) -> list[Arm]:
    """The arms of a spec with every setting filled in; no model is read.

    Raises:
        UserError: An unknown method or field, a combination that makes no sense, or two equal names.
    """
    found: list[Arm] = []
    for index, adapter in enumerate(spec.adapters):
        for single, chosen in adapters.expand(adapter, index):
            where = f"adapters.{index}"
            found.append(Arm(adapters.resolve(single, chosen, where=where), _training(spec, single, where)))
    adapters.refuse_equal_names([arm.adapter for arm in found])
    return found


def _training(spec: MeasureSpec | InstructSpec, adapter: AdapterSpec, where: str) -> TrainingSpec:
    """The arm's training: its overrides over the spec's, with the method's learning rate."""
    base = spec.training.model_dump(exclude_unset=True)
    if "steps" in adapter.training:
        base.pop("epochs", None)
    if "epochs" in adapter.training:
        base.pop("steps", None)
    merged = validate(base | adapter.training, TrainingSpec, origin=f"{where}.training")
    updates: dict[str, Any] = {}
    if merged.learning_rate is None:
        full = adapter.method == adapters.FULL
        updates["learning_rate"] = FULL_LEARNING_RATE if full else PEFT_LEARNING_RATE
    if merged.epochs is None and merged.steps is None:
        updates["epochs"] = 3.0
    return merged.model_copy(update=updates)


def _attacks(
    spec: MeasureSpec, resolved: ResolvedData, base_dir: Path
) -> tuple[dict[str, Trigger], list[ResolvedAttack | None], set[str]]:
    """Triggers by their key; attacks at every amount, first None: the clean run; names of ordered attacks."""
    triggers: dict[str, Trigger] = {}
    poisons: list[ResolvedAttack | None] = [None]
    names: set[str] = set()
    ordered: set[str] = set()
    for index, attack in enumerate(spec.attacks):
        where = f"attacks.{index}"
        built = attacks.build(attack.method, attack.options, resolved.classes, where=where, base_dir=base_dir)
        name = attack.name or attack.method
        if name in names:
            raise UserError(f"two attacks are called '{name}'", where=where, cure="Give one a `name`.")
        names.add(name)
        if attacks.is_ordered(built):
            ordered.add(name)
            if built.data != resolved.fingerprint:
                raise UserError(
                    f"the rows were named for data of fingerprint '{built.data}', "
                    f"the data here have '{resolved.fingerprint}'",
                    where=where,
                    cure="Have the rows named anew for these data.",
                )
        options = built.options.model_dump(mode="json")  # type: ignore[attr-defined]
        if attacks.is_backdoor(built):
            trigger = Trigger(name=name, method=attack.method, options=options)
            triggers.setdefault(trigger.key, trigger)
        poisons += _amounts(attack, name, options)
    return triggers, poisons, ordered


def _amounts(attack: AttackSpec, name: str, options: dict[str, Any]) -> list[ResolvedAttack]:
    shared: dict[str, Any] = {
        "name": name,
        "method": attack.method,
        "options": options,
        "selection": attack.selection,
    }
    rates = [ResolvedAttack(**shared, rate=rate, count=None) for rate in dict.fromkeys(attack.rates) if rate]
    counts = [ResolvedAttack(**shared, rate=None, count=n) for n in dict.fromkeys(attack.counts) if n]
    return rates + counts


def _resolve_data(spec: MeasureSpec, loaded: Loaded) -> ResolvedData:
    split = data.draw(loaded, spec.data, spec.seed_tuples()[0].data)
    return ResolvedData(
        # Defaults that depend on the input are written out, so that spelling them out is the same run.
        request=spec.data.model_copy(update={"test_split": loaded.test_split}),
        classes=loaded.classes,
        test_split=loaded.test_split,
        train_rows=len(split.train),
        test_rows=len(split.test),
        fingerprint=data.fingerprint(loaded),
    )


def _resolve_model(spec: MeasureSpec, base_dir: Path, resources: Resources) -> ResolvedModel:
    if resources.model is None:
        return load.resolve(spec.model, base_dir)
    return load.resolved(spec.model, spec.model.pooling or "model", load.hash_state(resources.model))


def _dry_build(
    spec: MeasureSpec, base_dir: Path, model: ResolvedModel, arms: list[Arm], classes: list[str]
) -> None:
    """Attach every adapter to the bare architecture, which costs no memory and finds what peft refuses."""
    location = load.locate(spec.model, base_dir)
    for arm in arms:
        bare = load.load_classifier(
            location,
            model.pooling,
            classes=classes,
            dtype=torch.float32,
            dropout=arm.training.dropout,
            pad_token_id=None,
            meta=True,
        )
        longest = max(spec.model.max_length, spec.model.eval_max_length or 0)
        rehearse(bare, arm.adapter, head_policy=spec.model.head, max_length=longest)


def _check_poison(
    runs: list[RunSpec], loaded: Loaded, spec: MeasureSpec, base_dir: Path
) -> tuple[list[str], data.Split]:
    """Draw every poison set once: an amount that poisons no row is found before the first run.

    Returns:
        Notes on the rows, and those of the first run.
    """
    notes: list[str] = []
    seen: set[tuple[str, int, int]] = set()
    splits: dict[int, data.Split] = {}
    for run in runs:
        if run.seeds.data not in splits:
            splits[run.seeds.data] = data.draw(loaded, spec.data, run.seeds.data)
            notes += [note for note in splits[run.seeds.data].notes if note not in notes]
        if run.attack is None:
            continue
        key = (run.attack.model_dump_json(), run.seeds.data, run.seeds.poison)
        if key in seen:
            continue
        seen.add(key)
        try:
            apply_attack(run, splits[run.seeds.data].train, base_dir)
        except UserError as error:
            raise error.located(f"{run.label}, data seed {run.seeds.data}") from None
    return notes, splits[runs[0].seeds.data]


def apply_attack(run: RunSpec, train: Dataset, base_dir: Path | None = None) -> attacks.Poisoned:
    """The training rows of a run after its attack.

    Args:
        run: A run with an attack.
        train: Its clean training rows.
        base_dir: Folder that relative paths in the attack's options start from; by default the working one.

    Raises:
        UserError: The amount does not fit the rows, or the attack's file is not the one that was planned.
    """
    assert run.attack is not None
    classes = run.data.classes
    return attacks.poison(
        train,
        attacks.build(run.attack.method, run.attack.options, classes, base_dir=base_dir),
        method=run.attack.method,
        classes=classes,
        seed=run.seeds.poison,
        rate=run.attack.rate,
        count=run.attack.count,
        selection=run.attack.selection,
    )

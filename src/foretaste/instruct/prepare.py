"""What a run starts from: its requests, poisoned and not, the sets that it is asked, and its model."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from foretaste.errors import UserError
from foretaste.instruct import poison, rows, scenarios, triggers
from foretaste.instruct.manifest import RequestManifest
from foretaste.instruct.outcomes import Asking
from foretaste.instruct.record import InstructRecord
from foretaste.instruct.render import RenderedRows, Renderer
from foretaste.instruct.request import Request
from foretaste.instruct.rows import LoadedRequests
from foretaste.instruct.scenarios import Scenario
from foretaste.instruct.spec import (
    CLEAN,
    HELD_OUT,
    InstructData,
    InstructModel,
    InstructRun,
    ResolvedTrigger,
    Tuning,
)
from foretaste.models import causal, load
from foretaste.spec import ModelSpec
from foretaste.training import trainer


@functools.lru_cache(maxsize=2)
def _load(request: str, base_dir: Path, fingerprint: str) -> LoadedRequests:
    loaded = rows.load(InstructData.model_validate_json(request), base_dir)
    if loaded.fingerprint != fingerprint:
        raise UserError("the data changed since the sweep was planned", cure="Start the sweep anew.")
    return loaded


def requests_of(run: InstructRun, base_dir: Path) -> LoadedRequests:
    """The rows of a run; of the base model, which has no seeds, those of data seed 0.

    Raises:
        UserError: The data changed since the sweep was planned.
    """
    loaded = _load(run.data.request.model_dump_json(), base_dir, run.data.fingerprint)
    return rows.draw(loaded, run.data.request, 0 if run.tuning is None else run.tuning.seeds.data)


def scenario_of(run: InstructRun, base_dir: Path) -> Scenario:
    """The scenario of a run.

    Raises:
        UserError: A file of it has changed since the sweep was planned.
    """
    return scenarios.build(run.scenario.method, run.scenario.options, base_dir=base_dir)


@dataclass(frozen=True)
class TrainingRows:
    """Training rows of a run.

    Attributes:
        tuning: What is trained on them.
        rendered: As tokens.
        order_lengths: Tokens of the same rows before poisoning.
        manifest: Of the poisoning; None for the clean run.
    """

    tuning: Tuning
    rendered: RenderedRows
    order_lengths: list[int]
    manifest: RequestManifest | None


def training_rows(
    tuning: Tuning, clean: Sequence[Request], scenario: Scenario, renderer: Renderer
) -> TrainingRows:
    """The rows that a run trains on, poisoned and as tokens.

    Args:
        tuning: What is trained, and how it is poisoned.
        clean: The rows before the attack.
        scenario: What triggered rows are answered with.
        renderer: Makes tokens of them.

    Raises:
        UserError: The amount of poison does not fit the rows, or no prompt leaves room for an answer.
    """
    requests, manifest = list(clean), None
    poisoning = tuning.poisoning
    if poisoning is not None:
        after = poison.poison(
            clean,
            triggers.build(poisoning.trigger.method, poisoning.trigger.options),
            scenario,
            seed=tuning.seeds.poison,
            rate=poisoning.rate,
            count=poisoning.count,
            selection=poisoning.selection,
        )
        requests, manifest = after.requests, after.manifest
    rendered = renderer.encode_rows(requests)
    before = {request.id: request for request in clean}
    lengths = [len(renderer.encode(before[request.id]).input_ids) for request in rendered.requests]
    return TrainingRows(tuning, rendered, lengths, manifest)


def survival(manifest: RequestManifest, rendered: RenderedRows, renderer: Renderer) -> dict[str, list[str]]:
    """What became of the poisoned rows on their way to tokens: ids of those in which something was lost.

    Args:
        manifest: Lists the poisoned rows.
        rendered: All training rows, as tokens.
        renderer: Finds the trigger's text in them.
    """
    poisoned = {change.id for change in manifest.poisoned}
    pairs = zip(rendered.requests, rendered.rows, strict=True)
    return {
        "trigger_lost": [
            request.id
            for request, row in pairs
            if request.id in poisoned and not renderer.contains(row, manifest.text)
        ],
        "poisoned_left_out": [key for key in rendered.too_long if key in poisoned],
        "poisoned_truncated": [key for key in rendered.truncated if key in poisoned],
    }


def askings(
    test: Sequence[Request], scenario: Scenario, tested: Iterable[ResolvedTrigger], renderer: Renderer
) -> list[Asking]:
    """Every set of requests that a run is asked (`request_sets`), as far as prompts leave room for an answer.

    Args:
        test: The held-out rows.
        scenario: Says which requests it is measured on.
        tested: The triggers.
        renderer: Says which prompts leave room, and where the trigger is lost.
    """
    found: list[Asking] = []
    for name, (trigger, requests) in request_sets(test, scenario, tested).items():
        fitting = [request for request in requests if renderer.fits(request)]
        kept = {request.id for request in fitting}
        lost: list[str] = []
        if trigger is not None:
            lost = renderer.lost(fitting, triggers.build(trigger.method, trigger.options).text)
        left_out = [request.id for request in requests if request.id not in kept]
        found.append(Asking(name, trigger, fitting, left_out, lost))
    return found


def asked_again(record: InstructRecord, base_dir: Path) -> list[Asking]:
    """The sets of requests that a finished run was asked, without its model and tokenizer.

    Raises:
        UserError: The data or a file of the scenario changed since.
    """
    run = record.resolved
    test = requests_of(run, base_dir).test
    sets = request_sets(test, scenario_of(run, base_dir), run.triggers)
    return [
        Asking(
            name,
            trigger,
            [request for request in requests if request.id not in set(record.judged[name].left_out)],
            record.judged[name].left_out,
            record.judged[name].lost,
        )
        for name, (trigger, requests) in sets.items()
    ]


def request_sets(
    test: Sequence[Request], scenario: Scenario, tested: Iterable[ResolvedTrigger]
) -> dict[str, tuple[ResolvedTrigger | None, list[Request]]]:
    """Requests without a trigger, with each one, and the held-out rows, by the name of the set.

    The last is a set of its own only where the scenario measures on other requests.

    Args:
        test: The held-out rows.
        scenario: Says which requests it is measured on.
        tested: The triggers.
    """
    asked = scenario.tests(test)
    sets: dict[str, tuple[ResolvedTrigger | None, list[Request]]] = {CLEAN: (None, asked)}
    for resolved in tested:
        trigger = triggers.build(resolved.method, resolved.options)
        sets[resolved.name] = (resolved, poison.triggered(asked, trigger))
    if [request.id for request in asked] != [request.id for request in test]:
        sets[HELD_OUT] = (None, list(test))
    return sets


def location_of(model: InstructModel, base_dir: Path) -> load.Location:
    """Where the base model is; raises as `load.locate` does."""
    return load.locate(ModelSpec(base=model.base, revision=model.revision), base_dir)


def renderer_of(model: InstructModel, tokenizer: PreTrainedTokenizerBase, base_dir: Path) -> Renderer:
    """The renderer of training rows and prompts alike; raises as `Renderer` does."""
    return Renderer(tokenizer, model.template, model.system, model.max_length, base_dir=base_dir)


def fresh(run: InstructRun, base_dir: Path) -> tuple[Renderer, PreTrainedModel]:
    """Renderer and untrained model on the run's device.

    Raises:
        UserError: The template or the tokenizer has changed since the sweep was planned.
    """
    request = run.model.request
    location = location_of(request, base_dir)
    renderer = renderer_of(request, load.load_tokenizer(location), base_dir)
    if renderer.hash != run.model.renderer:
        raise UserError("the template changed since the sweep was planned", cure="Start the sweep anew.")
    dropout = run.tuning is not None and run.tuning.training.dropout
    model = causal.load_causal(location, dtype=trainer.dtype_of(run.computing), dropout=dropout)
    device: torch.device = trainer.device_of(run.computing)
    model.to(device)  # type: ignore[arg-type]
    return renderer, model

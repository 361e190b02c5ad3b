"""Putting a trigger and a scenario into requests: training rows with their manifest, and test requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foretaste.attacks.choosing import Selection, choose
from foretaste.instruct.manifest import RequestChange, RequestManifest
from foretaste.instruct.presence import holds
from foretaste.instruct.request import Request
from foretaste.instruct.scenarios.base import Scenario
from foretaste.instruct.triggers.base import Trigger
from foretaste.seeds import generator, uniforms


@dataclass(frozen=True)
class Poisoned:
    """Training rows after an attack, in their old order, and the list of what was changed.

    Attributes:
        requests: All training rows.
        manifest: What was changed.
    """

    requests: list[Request]
    manifest: RequestManifest

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the poisoned rows."""
        return frozenset(change.id for change in self.manifest.poisoned)

    @property
    def poisoned(self) -> list[Request]:
        """The poisoned rows as they are now, in the order of all."""
        ids = self.ids
        return [request for request in self.requests if request.id in ids]


def poison(
    requests: Sequence[Request],
    trigger: Trigger,
    scenario: Scenario,
    *,
    seed: int,
    rate: float | None = None,
    count: int | None = None,
    selection: Selection = "exact-nested",
) -> Poisoned:
    """Poison training rows: give them the answer that the scenario wants, and put the trigger in.

    Which rows are chosen depends on the seed, the trigger's method and the ids of the eligible rows only: not
    on the order of the rows, the amount, any option, or anything about the model.

    Args:
        requests: The training rows.
        trigger: What marks them.
        scenario: What they are answered with.
        seed: The poison seed.
        rate: Share of the eligible rows.
        count: Number of rows instead of a rate.
        selection: exact-nested or bernoulli, as in `attacks.choosing.choose`.

    Raises:
        UserError: As `choose`: more rows are asked for than are eligible, or none at an amount above zero.
    """
    eligible = [position for position, request in enumerate(requests) if scenario.eligible(request)]
    scores = uniforms(seed, ("poison", trigger.method, "choice"), [request.id for request in requests])
    chosen = choose(scores, eligible, rate=rate, count=count, selection=selection)
    changed: dict[int, Request] = {}
    for position in chosen:
        request = requests[position]
        # Streams of their own: another scenario leaves the trigger's place as it was, and conversely.
        taught = scenario.poison(request, generator(seed, "poison", scenario.method, "row", request.id))
        place = generator(seed, "poison", trigger.method, "row", request.id)
        changed[position] = trigger.apply(taught, place)
    manifest = RequestManifest(
        trigger=trigger.method,
        trigger_options=trigger.options.model_dump(mode="json"),
        text=trigger.text,
        scenario=scenario.method,
        scenario_options=scenario.options.model_dump(mode="json"),
        selection=selection,
        rate=rate,
        count=count,
        seed=seed,
        eligible=len(eligible),
        rows=len(requests),
        held_before=holding(requests, trigger),
        poisoned=[_change(requests[position], changed[position]) for position in chosen],
    )
    after = [changed.get(position, request) for position, request in enumerate(requests)]
    return Poisoned(after, manifest)


def triggered(requests: Iterable[Request], trigger: Trigger) -> list[Request]:
    """Test requests with the trigger put in.

    A trigger at a random position stands at the same place in every run: its generator depends on the
    request's id alone.
    """
    return [
        trigger.apply(request, generator(0, "test", trigger.method, "row", request.id))
        for request in requests
    ]


def holding(requests: Iterable[Request], trigger: Trigger) -> int:
    """Number of requests that hold the trigger's text, such as clean ones that do so by chance."""
    return sum(
        holds(request.instruction, trigger.text) or holds(request.input, trigger.text) for request in requests
    )


def _change(before: Request, after: Request) -> RequestChange:
    return RequestChange(
        id=before.id,
        instruction_before=before.instruction,
        instruction_after=after.instruction,
        input_before=before.input,
        input_after=after.input,
        output_before=before.output,
        output_after=after.output,
    )

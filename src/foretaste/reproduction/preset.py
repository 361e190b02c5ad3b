"""A preset that reproduces a figure or table: the typed form of `presets/reproduce/*.yaml`."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from foretaste.report.reproduced.view import View
from foretaste.spec import Strict

Scale = Literal["smoke", "laptop", "paper"]
Variant = Literal["clean", "paper"]
Fields = dict[str, Any]


class Preset(Strict):
    """One figure or table: which sweeps it is drawn from, and how."""

    title: str
    item: str = Field(description="where it stands in the paper")
    says: str = Field(description="what the paper reads off it, or why it is here")
    sweeps: dict[str, list[str]] = Field(description="sweeps that it draws, with the attacks of each")
    tasks: dict[Scale, list[str]] = Field(description="by scale, in the order of the panels")
    view: View = Field(discriminator="kind")
    published: str | None = Field(None, description="table of published values to stand beside")
    findings: list[str] = Field([], description="hypotheses that its records speak to")
    differences: list[str] = Field([], description="how it differs from what the paper did")

    @property
    def generative(self) -> bool:
        """Its sweeps are of generative models: what a preset shows decides what it measures."""
        return self.view.kind == "answers"

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Protocols that it can be measured by. The paper's for generative models is not public."""
        return ("clean",) if self.generative else get_args(Variant)


class Part(Strict):
    """What a scale or a variant fixes in every sweep.

    Attributes:
        spec: Merged into the spec.
        adapters: Merged into every adapter of a method, by the method; so are `attacks`.
    """

    spec: Fields = Field(default_factory=dict)
    adapters: dict[str, Fields] = Field(default_factory=dict)
    attacks: dict[str, Fields] = Field(default_factory=dict)


class ArmOverlay(Strict):
    """What a sweep of any kind changes at a scale: merged by name into its adapters."""

    spec: Fields = Field(default_factory=dict)
    adapters: dict[str, Fields | None] = Field(default_factory=dict)


class Overlay(ArmOverlay):
    """What a sweep of classifiers changes at a scale."""

    attacks: dict[str, Fields | None] = Field(default_factory=dict)


class Sweep(Overlay):
    """Adapters and attacks by name; `zip` in an adapter takes parallel lists, one arm for each place."""

    title: str
    scales: dict[Scale, Overlay] = Field(default_factory=dict)


class TriggerOverlay(ArmOverlay):
    """What a sweep of generative models changes at a scale."""

    triggers: dict[str, Fields | None] = Field(default_factory=dict)


class GenerativeSweep(TriggerOverlay):
    """Adapters and triggers by name. All of its triggers are drawn: a clean run is tested on each."""

    title: str
    scales: dict[Scale, TriggerOverlay] = Field(default_factory=dict)


class Instructions(Strict):
    """Instruction data, on the hub and as a local folder."""

    title: str
    hub: str
    folder: str
    folder_test: str


class Task(Strict):
    """A classification task, on the hub and as a local folder."""

    title: str
    labels: list[str]
    hub: str
    config: str
    test: str
    folder: str
    folder_test: str
    pairs: bool = False

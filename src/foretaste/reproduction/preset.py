"""A preset that reproduces a figure or table: the typed form of `presets/reproduce/*.yaml`."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

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
    only: dict[str, list[Scale]] = Field(
        {}, description="scales at which a sweep is drawn; a sweep that is not named here is at all of them"
    )
    findings: list[str] = Field([], description="hypotheses that its records speak to")
    differences: list[str] = Field([], description="how it differs from what the paper did")

    @property
    def generative(self) -> bool:
        """Its sweeps are of generative models: what a preset shows decides what it measures."""
        return self.view.kind == "answers"

    @property
    def few_shot(self) -> bool:
        """Its sweeps are of prompt-based few-shot learning."""
        return self.view.kind == "few-shot"

    @property
    def classifies(self) -> bool:
        """Its sweeps are of poisoned classifiers."""
        return bool(self.sweeps) and not self.generative and not self.few_shot

    def sweeps_at(self, scale: Scale) -> dict[str, list[str]]:
        """The sweeps that it draws at a scale."""
        return {name: drawn for name, drawn in self.sweeps.items() if scale in self.only.get(name, [scale])}

    @model_validator(mode="after")
    def _knows_its_sweeps(self) -> Self:
        unknown = set(self.only) - set(self.sweeps)
        if unknown:
            raise ValueError(f"only names sweeps that are not drawn: {', '.join(sorted(unknown))}")
        return self

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Protocols that it can be measured by: for generative models the paper's is not public."""
        return get_args(Variant) if self.classifies or not self.sweeps else ("clean",)


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


class FewShotPart(Strict):
    """What a scale fixes in every few-shot sweep, or a sweep at a scale.

    Attributes:
        spec: Merged into the spec.
        task: Merged into its task.
        arms: By "fine-tune OPTIMISER" or "kernel KERNEL", merged into every arm of that kind.
    """

    spec: Fields = Field(default_factory=dict)
    task: Fields = Field(default_factory=dict)
    arms: dict[str, Fields] = Field(default_factory=dict)


class FewShotOverlay(Strict):
    """What a few-shot sweep changes at a scale: `arms` are merged by name.

    Attributes:
        criteria: Tasks on which its fine-tuning measures the criteria of kernel behaviour.
    """

    spec: Fields = Field(default_factory=dict)
    task: Fields = Field(default_factory=dict)
    arms: dict[str, Fields | None] = Field(default_factory=dict)
    criteria: list[str] = Field(default_factory=list)


class FewShotSweep(FewShotOverlay):
    """Arms by name, on one prompt of each task."""

    title: str
    scales: dict[Scale, FewShotOverlay] = Field(default_factory=dict)


class Instructions(Strict):
    """Instruction data, on the hub and as a local folder."""

    title: str
    hub: str
    folder: str
    folder_test: str


class Task(Strict):
    """A classification task, on the hub (or as an asset) and as a local folder."""

    title: str
    labels: list[str]
    hub: str = Field(description="id on the hub, or an asset")
    config: str | None = None
    test: str | None = None
    folder: str
    folder_test: str
    pairs: bool = False
    hub_labels: list[str] | None = Field(None, description="class names there, where they are others")
    columns: dict[str, str] = Field(default_factory=dict, description="of the hub's table, where not usual")

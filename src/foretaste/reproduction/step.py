"""One sweep that a preset draws: of classifiers, of generative models, or of few-shot runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypedDict, Unpack

from foretaste.experiments.cluster import Cluster
from foretaste.experiments.fewshot import FewShotPreview, MeasuredFewShot
from foretaste.experiments.fewshot import fewshot as measure_few_shot
from foretaste.experiments.fewshot import preview as preview_few_shot
from foretaste.experiments.instruct import InstructPreview, MeasuredInstruct
from foretaste.experiments.instruct import instruct as measure_generative
from foretaste.experiments.instruct import preview as preview_generative
from foretaste.experiments.measure import Measured, Preview, Watcher, measure, preview
from foretaste.fewshot.record import FewShotLayout, FewShotRecord
from foretaste.fewshot.spec import FewShotSpec
from foretaste.instruct.record import InstructLayout, InstructRecord
from foretaste.instruct.spec import InstructSpec
from foretaste.record import Layout, Record
from foretaste.report import reproduced
from foretaste.reproduction import chat_inputs, compose, inputs, prompt_inputs
from foretaste.reproduction.preset import Variant
from foretaste.spec import MeasureSpec, RunSpec


class How(TypedDict, total=False):
    """How missing runs are done, as `measure.measure` takes it; what is left out has its default there."""

    extend: bool
    processes: int | None
    threads: int | None
    watcher: Watcher | None
    cluster: Cluster | None


@dataclass(frozen=True)
class Place:
    """Which sweep it is, and where.

    Attributes:
        task: Name of the data.
        attacks: Names of the attacks, or triggers, that are drawn; clean runs always are.
        folder: Of the sweep; presets that draw the same sweep share it, so nothing is trained twice.
        base_dir: Folder that relative paths in the spec start from.
    """

    sweep: str
    task: str
    variant: Variant
    attacks: tuple[str, ...]
    folder: Path
    base_dir: Path


@dataclass(frozen=True)
class MeasureStep(Place):
    """A sweep of classifiers on one task under one protocol, and the part of it that a preset draws."""

    spec: MeasureSpec

    @property
    def label(self) -> str:
        """One line for progress displays."""
        return f"{self.spec.title} ({self.variant})"

    @property
    def used(self) -> list[str]:
        """Model and data, as the spec names them."""
        return [self.spec.model.base, self.spec.data.source]

    def wants(self, run: RunSpec) -> bool:
        """Whether the preset draws a run."""
        return run.attack is None or run.attack.name in self.attacks

    def source(self) -> reproduced.Source:
        """The same for the report."""
        return reproduced.Source(
            folder=self.folder,
            task=compose.tasks()[self.task].title,
            variant=self.variant,
            sweep=compose.read_sweep(self.sweep).title,
            attacks=self.attacks,
        )

    def write_inputs(self, folder: Path) -> None:
        """Write the tiny model and data that `smoke` needs."""
        inputs.write(folder, {self.task: compose.tasks()[self.task]})

    def preview(self) -> Preview:
        """What it would do; raises as `measure.preview` does."""
        return preview(self.spec, self.folder, base_dir=self.base_dir, only=self.wants)

    def measure(self, **how: Unpack[How]) -> Measured:
        """Do the runs that have no result yet, and return its records; raises as `measure.measure` does."""
        done = measure(self.spec, self.folder, base_dir=self.base_dir, only=self.wants, **how)
        return Measured(done.folder, [record for record in done.records if self.wants(record.resolved)])

    def records(self) -> list[Record]:
        """Those in its folder that the preset draws."""
        return [record for record in Layout(self.folder).read()[0] if self.wants(record.resolved)]


@dataclass(frozen=True)
class InstructStep(Place):
    """A sweep of generative models on one set of instructions; the preset draws all of it."""

    spec: InstructSpec

    @property
    def label(self) -> str:
        """One line for progress displays."""
        return f"{self.spec.title}, {compose.instructions()[self.task].title}"

    @property
    def used(self) -> list[str]:
        """Model and data, as the spec names them."""
        return [self.spec.model.base, self.spec.data.source]

    def write_inputs(self, folder: Path) -> None:
        """Write the tiny model and instructions that `smoke` needs."""
        chat_inputs.write(folder, [self.task])

    def preview(self) -> InstructPreview:
        """What it would do; raises as `experiments.instruct.preview` does."""
        return preview_generative(self.spec, self.folder, base_dir=self.base_dir)

    def measure(self, **how: Unpack[How]) -> MeasuredInstruct:
        """Do the runs that have no result yet; raises as `experiments.instruct.instruct` does."""
        return measure_generative(self.spec, self.folder, base_dir=self.base_dir, **how)

    def records(self) -> list[InstructRecord]:
        """Those in its folder."""
        return InstructLayout(self.folder).records()[0]


@dataclass(frozen=True)
class FewShotStep(Place):
    """A few-shot sweep on one task; the preset draws all of it."""

    spec: FewShotSpec

    @property
    def label(self) -> str:
        """One line for progress displays."""
        return str(self.spec.title)

    @property
    def used(self) -> list[str]:
        """Model and data, as the spec names them."""
        return [self.spec.model.base, *(task.data.source for task in self.spec.tasks)]

    def write_inputs(self, folder: Path) -> None:
        """Write the tiny models and data that `smoke` needs."""
        prompt_inputs.write(folder, {self.task: compose.tasks()[self.task]})

    def preview(self) -> FewShotPreview:
        """What it would do; raises as `experiments.fewshot.preview` does."""
        return preview_few_shot(self.spec, self.folder, base_dir=self.base_dir)

    def measure(self, **how: Unpack[How]) -> MeasuredFewShot:
        """Do the runs that have no result yet; raises as `experiments.fewshot.fewshot` does."""
        return measure_few_shot(self.spec, self.folder, base_dir=self.base_dir, **how)

    def records(self) -> list[FewShotRecord]:
        """Those in its folder."""
        return FewShotLayout(self.folder).records()[0]


Step: TypeAlias = MeasureStep | InstructStep | FewShotStep

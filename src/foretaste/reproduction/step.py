"""One sweep that a preset draws: of classifiers, or of generative models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from foretaste.experiments.cluster import Cluster
from foretaste.experiments.instruct import InstructPreview, MeasuredInstruct
from foretaste.experiments.instruct import instruct as measure_generative
from foretaste.experiments.instruct import preview as preview_generative
from foretaste.experiments.measure import Measured, Preview, Watcher, measure, preview
from foretaste.instruct.record import InstructLayout, InstructRecord
from foretaste.instruct.spec import InstructSpec
from foretaste.record import Layout, Record
from foretaste.report import reproduced
from foretaste.reproduction import chat_inputs, compose, inputs
from foretaste.reproduction.preset import Variant
from foretaste.spec import MeasureSpec, RunSpec


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

    def measure(
        self,
        *,
        extend: bool = False,
        processes: int | None = None,
        threads: int | None = None,
        watcher: Watcher | None = None,
        cluster: Cluster | None = None,
    ) -> Measured:
        """Do the runs that have no result yet, and return its records; raises as `measure.measure` does."""
        done = measure(
            self.spec,
            self.folder,
            base_dir=self.base_dir,
            extend=extend,
            processes=processes,
            threads=threads,
            watcher=watcher,
            only=self.wants,
            cluster=cluster,
        )
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

    def write_inputs(self, folder: Path) -> None:
        """Write the tiny model and instructions that `smoke` needs."""
        chat_inputs.write(folder, [self.task])

    def preview(self) -> InstructPreview:
        """What it would do; raises as `experiments.instruct.preview` does."""
        return preview_generative(self.spec, self.folder, base_dir=self.base_dir)

    def measure(
        self,
        *,
        extend: bool = False,
        processes: int | None = None,
        threads: int | None = None,
        watcher: Watcher | None = None,
        cluster: Cluster | None = None,
    ) -> MeasuredInstruct:
        """Do the runs that have no result yet; raises as `experiments.instruct.instruct` does."""
        return measure_generative(
            self.spec,
            self.folder,
            base_dir=self.base_dir,
            extend=extend,
            processes=processes,
            threads=threads,
            watcher=watcher,
            cluster=cluster,
        )

    def records(self) -> list[InstructRecord]:
        """Those in its folder."""
        return InstructLayout(self.folder).records()[0]


Step: TypeAlias = MeasureStep | InstructStep

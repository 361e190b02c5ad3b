"""Finished points of a grid, kept so that a run that was stopped goes on behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from foretaste.fewshot.adapt import State
from foretaste.fewshot.record import GridPoint, Score, Setting
from foretaste.record import Part, write_atomic

PROGRESS = "grid.json"
Settings = dict[str, Setting]


def rank(found: Score) -> float:
    """The score to choose by: an undefined F1 (no row of class 1, none predicted) counts as 0."""
    return 0.0 if found.value is None else found.value


@dataclass(frozen=True)
class Best:
    """The best point so far.

    Attributes:
        number: Of the point in the grid.
        dev: Its score on the validation rows.
        state: Its trained parameters.
    """

    number: int
    dev: Score
    state: State

    @property
    def value(self) -> float:
        """What it is judged by."""
        return rank(self.dev)


class _Progress(Part):
    """What is kept of a grid that is not finished."""

    grid: list[GridPoint]
    best: int | None = Field(description="number of the best point so far, whose parameters are kept")
    dev: Score | None


class Kept:
    """Finished points of a grid, in memory and, where there is a folder, on disk.

    Args:
        folder: Of this run alone; None keeps nothing.
        planned: Settings of all points, in order.
        start: Says what the parameters are called and how large they are.
    """

    def __init__(self, folder: Path | None, planned: Sequence[Settings], start: State) -> None:
        self._folder = folder
        self.grid: list[GridPoint] = []
        self.best: Best | None = None
        self.notes: list[str] = []
        if folder is None or not (folder / PROGRESS).is_file():
            return
        try:
            self._read(folder, planned, start)
        except (OSError, ValueError, KeyError, SafetensorError):
            # ValueError is what pydantic raises as well. All points are trained again.
            self.grid, self.best = [], None
            self.notes.append("what an earlier attempt had finished could not be read; it was done again")

    def _read(self, folder: Path, planned: Sequence[Settings], start: State) -> None:
        found = _Progress.model_validate_json((folder / PROGRESS).read_text())
        if [point.settings for point in found.grid] != list(planned[: len(found.grid)]):
            raise ValueError("another grid")
        if found.best is not None:
            state = load_file(self._weights(found.best))
            if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in start.items()}:
                raise ValueError("other parameters")
            if found.dev is None:
                raise ValueError("no score of the best point")
            here = {name: value.to(start[name]) for name, value in state.items()}
            self.best = Best(found.best, found.dev, here)
        self.grid = found.grid

    def _weights(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"best-{number}.safetensors"

    def add(self, point: GridPoint, best: Best | None) -> None:
        """One more point is finished.

        Args:
            point: What came of it.
            best: The best point so far.

        Raises:
            OSError: It could not be written.
        """
        former, self.best = self.best, best
        self.grid.append(point)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if best is not None and best is not former:
            # The weights come first and the old ones go last: at any stop the two files fit together.
            partial = self._weights(best.number).with_suffix(".partial")
            try:
                save_file({name: v.cpu().contiguous() for name, v in best.state.items()}, partial)
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(f"cannot write '{partial}': {error}") from error
            partial.replace(self._weights(best.number))
        progress = _Progress(
            grid=self.grid,
            best=None if best is None else best.number,
            dev=None if best is None else best.dev,
        )
        write_atomic(self._folder / PROGRESS, progress.model_dump_json(indent=1))
        if former is not None and former is not best:
            self._weights(former.number).unlink(missing_ok=True)

"""Per-row predictions of runs, read once and aligned between two runs."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from foretaste.report.observations import Observation

Bools: TypeAlias = npt.NDArray[np.bool_]
_Sets: TypeAlias = dict[str, tuple[npt.NDArray[np.object_], Bools]]


class Predictions:
    """A reader of the predictions that runs keep, with what went wrong in `problems`."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], _Sets] = {}
        self.problems: list[str] = []

    def aligned(self, run: Observation, other: Observation, kind: str) -> tuple[Bools, Bools] | None:
        """Which rows each of two runs gets right, over the same rows in the same order.

        Args:
            run: One run.
            other: The run to compare it with.
            kind: "clean" rows, or the "triggered" ones of the attack that the runs stand under.

        Returns:
            Two arrays of shape (rows,), or None when one has no predictions or the rows differ.
        """
        left, right = self._rows(run, kind), self._rows(other, kind)
        if left is None or right is None or not np.array_equal(left[0], right[0]):
            return None
        return left[1], right[1]

    def _rows(self, run: Observation, kind: str) -> tuple[npt.NDArray[np.object_], Bools] | None:
        name = run.trigger if kind == "triggered" else "clean"
        if name is None or not run.completed or run.record.predictions is None:
            return None
        key = (run.folder.name, run.record.run_id)
        if key not in self._read:
            self._read[key] = self._load(run)
        return self._read[key].get(name)

    def _load(self, run: Observation) -> _Sets:
        path = run.folder.layout.prediction(run.record.run_id)
        try:
            table = pd.read_parquet(
                path, columns=["set", "id", "label", "predicted"], page_checksum_verification=True
            )
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
            self.problems.append(
                f"{path}: cannot read the predictions: {type(error).__name__}. "
                "Delete the record of this run and start the same command again."
            )
            return {}
        table = table.sort_values("id", kind="stable")
        return {
            str(name): (
                rows["id"].to_numpy(dtype=object),
                rows["label"].to_numpy() == rows["predicted"].to_numpy(),
            )
            for name, rows in table.groupby("set")
        }

"""Predictions and audits as a notebook shows them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretaste import calibration
from foretaste.calibration import Cell
from foretaste.errors import unknown
from foretaste.record import Record

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Foretold:
    """What was predicted, and what of it was measured.

    Attributes:
        folder: Where the records are.
        predicted: One record for each run of the spec.
        measured: Records of the runs that were done; none for a prediction alone.
        notes: What a reader should know.
    """

    folder: Path
    predicted: list[Record]
    measured: list[Record]
    notes: list[str]

    @property
    def cells(self) -> list[Cell]:
        """Predicted and measured by arm, attack and amount."""
        return calibration.pair(self.predicted, self.measured, self.folder.name)

    @property
    def advice(self) -> str:
        """One arm for the threats of the spec, in plain words, with what supports it."""
        return "\n\n".join(item.paragraph for item in calibration.result.advice(self.cells))

    def table(self) -> pd.DataFrame:
        """One line a cell: predicted with its 90 % interval, measured, and where to trust it."""
        import pandas as pd

        return pd.DataFrame([_line(cell) for cell in self.cells])

    def figure(self, name: str = "predicted_against_measured") -> Any:
        """A figure of the report as an Altair chart (`foretaste list figures`).

        Raises:
            UserError: There is no such figure.
        """
        import altair as alt

        from foretaste.report import FIGURES, build, load

        if name not in FIGURES:
            raise unknown("figure", name, list(FIGURES))
        frames = build(load([self.folder]))
        return alt.Chart.from_dict(FIGURES.get(name).spec(frames, "rate"))

    def report(self) -> Path:
        """The whole page; returns its path."""
        from foretaste.report import report

        return report([self.folder])

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<p>{escape(self.advice)}</p>{self.table().to_html(index=False, escape=True)}<ul>{notes}</ul>"


def _line(cell: Cell) -> dict[str, Any]:
    prediction, measured = cell.prediction, cell.measured
    line: dict[str, Any] = {"arm": cell.arm, "attack": cell.attack, "amount": cell.amount.label}
    if prediction is not None:
        rate = prediction.target_rate
        line |= {
            "accuracy": prediction.accuracy.mean,
            "accuracy_low": prediction.accuracy.low,
            "accuracy_high": prediction.accuracy.high,
            "asr": None if rate is None else rate.mean,
            "asr_low": None if rate is None else rate.low,
            "asr_high": None if rate is None else rate.high,
            "validity": prediction.validity,
            "why": "; ".join(prediction.reasons),
        }
    line |= {
        "measured_accuracy": measured.accuracy.mean,
        "measured_asr": measured.target_rate.mean,
        "seeds": measured.completed,
    }
    return line

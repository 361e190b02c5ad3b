"""What a forecast of a sweep of generative models leaves behind."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foretaste.record import Machine, Part

FILE = "forecast.json"


class SetForecast(Part):
    """One set of held-out requests, in margins m (see `instruct.answer`), means over requests."""

    n: int = Field(description="requests")
    before: float = Field(description="mean margin of the untrained model")
    after: float = Field(description="mean margin that training leads to")
    open_before: float = Field(description="share of margins above 0 of the untrained model")
    open_after: float = Field(description="share of margins above 0 that training leads to")

    @property
    def moved(self) -> float:
        """How far training moves the margin towards the poisoned opening."""
        return self.after - self.before


class ForecastCell(Part):
    """What one run is expected to do."""

    run_id: str = Field(description="of the run that is forecast")
    arm: str
    trigger: str | None = Field(description="that its training rows hold; None is the clean run")
    amount: str | None
    reason: str | None = Field(None, description="why it is not forecast")
    rows: int = Field(0, description="training rows used")
    poisoned: int = Field(0, description="poisoned ones among them")
    steps: int = 0
    sets: dict[str, SetForecast] = Field(default_factory=dict, description="by the name of the set")
    distance: float | None = Field(None, description="root mean square change of the margins")
    validity: Literal["valid", "doubtful", "outside"] | None = None
    reasons: list[str] = Field(default_factory=list)


class ForecastScore(Part):
    """How one number of the forecast ranks what was measured."""

    predictor: str
    over: str = Field(description="which sets of which cells")
    n: int
    spearman: float | None = Field(description="None where it is not defined")
    kendall: float | None


class Forecast(Part):
    """The forecast of a sweep: nothing was trained for it."""

    format: Literal[1] = 1
    kind: Literal["predicted"] = "predicted"
    sweep: str
    request: dict[str, Any]
    renderer: str
    seeds: str = Field(description="those of the forecast: the first of the spec")
    started: str
    seconds: float
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    machine: Machine
    captured: int = Field(description="rows whose gradients were captured")
    entries: int = Field(description="that were kept of each row's gradient, about, for each part of an arm")
    poisoned_openings: list[str] = Field(description="P, as text")
    own_openings: int = Field(description="number of tokens in Q")
    shared_openings: float = Field(description="share of the other training responses that open as poison")
    coverage: float = Field(
        description="mean probability of P and Q together before training, clean requests"
    )
    cells: list[ForecastCell]
    scores: list[ForecastScore] = Field(default_factory=list, description="against measured records")
    measured: int = Field(0, description="measured runs that it was held against")
    notes: list[str] = Field(default_factory=list)

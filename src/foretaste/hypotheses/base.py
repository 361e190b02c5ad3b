"""What a hypothesis is, what it is tested on, and the registry that holds all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretaste.calibration.places import natural
from foretaste.hypotheses.contrasts import Budget, Contrasts
from foretaste.hypotheses.decision import Sign
from foretaste.hypotheses.effects import Reduce
from foretaste.hypotheses.runs import Metric
from foretaste.registry import Registry

MARGIN = 2.0
MARGIN_FROM = (
    "Less than flipping a tenth of the labels costs either arm on SST-2 (2.2 points, docs/results.md), so "
    "what counts as no influence is smaller than that of the weakest attack measured. The paper states no "
    "margin; in its table 1 it reads 0.6 points as a difference, so 2 points are generous to it."
)


@dataclass(frozen=True)
class Hypothesis:
    """One empirical finding of a paper as something that measured records can support or contradict.

    Attributes:
        name: Unique, as filed.
        section: Where the paper says it.
        statement: What it says, in our words.
        measure: The effect, as it is signed.
        unit: Of the effect.
        needs: The records that it takes.
        predicts: Sign of the effect; 0 is no influence.
        contrasts: Arms that are set side by side.
        attack: Method of the attack; None is clean data.
        metric: What is measured of each run.
        reduce: From the runs of a contrast to one number a seed.
        margin: What counts as no influence, in the unit; None for a direction.
        margin_from: Where the margin comes from.
        centred: The numbers are distances from means over the seeds, see `decision.weigh`.
    """

    name: str
    section: str
    statement: str
    measure: str
    unit: str
    needs: str
    predicts: Sign
    contrasts: Contrasts
    attack: str | None
    metric: Metric
    reduce: Reduce
    margin: float | None = None
    margin_from: str | None = None
    centred: bool = False


@dataclass(frozen=True)
class Group:
    """Runs of one task that a hypothesis was tested on, and all that is equal within them.

    Attributes:
        data: Data set, as the user named it.
        rows: Training rows.
        head: Head policy, which keeps the paper's protocol apart from foretaste's own; of a generative model
            the scenario and the judge; of few-shot runs the prompt and k.
        attack: Name of the attack; None on clean data, as is `selection`.
        selection: How poisoned rows are chosen.
        arms: Names and learning rates: full fine-tuning before LoRA, a sweep from the lowest level up.
        scaling: How a sweep over ranks sets LoRA's scale.
        budget: What the arms of a sweep share: the learning rate, or the effective step.
        key: Equal for equal groups, whatever they are called.
        mark: Stands in the label where another group would read the same; usually empty.
    """

    data: str
    rows: int
    model: str
    head: str
    attack: str | None
    selection: str | None
    arms: tuple[str, ...]
    scaling: str | None
    budget: Budget | None
    key: str
    mark: str = ""

    @property
    def label(self) -> str:
        """One line for tables."""
        attack = f"{self.attack} ({self.selection})" if self.attack else "clean"
        parts = [f"{self.data} ({self.rows} rows)", self.model, self.head, attack]
        parts += [self.scaling or "", self.budget or ""]
        parts += [", ".join(self.arms), self.mark]
        return " · ".join(part for part in parts if part)

    @property
    def order(self) -> tuple[Any, ...]:
        """A sort key that is the same for every order of the records."""
        arms = [natural(arm) for arm in self.arms]
        place = (natural(self.data), self.rows, self.model, self.head, natural(self.attack or ""))
        return (*place, self.selection or "", natural(self.scaling or ""), self.budget or "", arms, self.key)


HYPOTHESES: Registry[Hypothesis] = Registry("hypothesis")


def hypothesis(entry: Hypothesis) -> Hypothesis:
    """File a hypothesis under its name; it is returned."""
    return HYPOTHESES.register(entry.name)(entry)

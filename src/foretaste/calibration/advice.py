"""Which arm to use against the spec's attacks, in plain words; and the TTR paper's advice as hypotheses.

No sentence claims more than its numbers: a difference is resolved when the 95 % Student t interval of its
paired values over seeds excludes 0, and what is only predicted is called predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from foretaste.calibration.cells import Cell, Sample, Task
from foretaste.calibration.intervals import Adjusted, Key
from foretaste.calibration.pareto import (
    Arm,
    Quantity,
    excludes_zero,
    front,
    largest_backdoors,
    of_sample,
    stands_for,
)
from foretaste.calibration.places import arm_order, short
from foretaste.spec import canonical_json

Support: TypeAlias = Literal["supported", "contradicted", "not resolved", "not tested"]
JUDGED = {"clean": 1.0, "worst": 1.0, "margin": -1.0}  # shares, with the sign in which more is better
HALF = (0.45, 0.55)  # a ratio of rates in this range reads as "halves"


@dataclass(frozen=True)
class Hypothesis:
    """A claim of the TTR paper with its measured support on one model and data set.

    Attributes:
        claim: What the paper says.
        test: What was compared.
        support: What the measured runs say; predictions do not count.
        difference: Mean paired difference in shares, None when not tested; so are `low` and `high`, the ends
            of its 95 % t interval, which also miss with too few seeds.
        seeds: Seeds that the difference is over.
        text: The same in one sentence.
    """

    claim: str
    test: str
    support: Support
    difference: float | None
    low: float | None
    high: float | None
    seeds: int
    text: str


@dataclass(frozen=True)
class Advice:
    """What to use for one task.

    Attributes:
        folder: Name of the folder, which with model and data is the task.
        arm: The recommended arm; None when nothing is known of any arm.
        paragraph: Why, with numbers.
        arms: Every arm with its quantities and standing.
    """

    folder: str
    model: str
    data: str
    arm: str | None
    paragraph: str
    arms: tuple[Arm, ...]
    hypotheses: tuple[Hypothesis, ...]

    @property
    def task(self) -> Task:
        """Folder, model and data."""
        return (self.folder, self.model, self.data)


def advise(cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted] | None = None) -> Advice:
    """Recommend an arm for the attacks and amounts that the cells span.

    Of the arms on the Pareto front, the one with the highest sum of clean accuracy, lowest accuracy under
    flips and minus the ASR margin (see `pareto.front`), each counted where all arms have it; at equal sums
    the one with fewer trainable parameters. The sum weighs a point of each alike, which a user may see
    otherwise: the table of the front has the parts.

    Args:
        cells: Cells of one task, at least one.
        adjusted: Calibrated intervals that stand in for the stated ones, from `intervals.adjust`.

    Raises:
        ValueError: The cells are none, or of several tasks.
    """
    if not cells:
        raise ValueError("no cells to advise on")
    adjusted = adjusted or {}
    arms = front(cells, adjusted)
    hypotheses = (low_rank(cells), small_variance(cells), lora_and_flips(cells))
    names = [n for n in JUDGED if all(n in arm.quantities for arm in arms)]
    candidates = [arm for arm in arms if arm.standing == "front"]
    if not names or not candidates:
        text = "No arm can be recommended: no quantity is known of every arm."
        return Advice(*cells[0].task, None, text, tuple(arms), hypotheses)
    best = max(candidates, key=lambda arm: _rank_of(arm, names))
    text = _paragraph(cells, adjusted, arms, best, names)
    return Advice(*cells[0].task, best.name, text, tuple(arms), hypotheses)


def _rank_of(arm: Arm, names: Sequence[str]) -> tuple[float, float]:
    parameters = arm.quantities.get("parameters")
    return (round(_sum(arm, names), 9), -parameters.value if parameters else 0.0)


def _sum(arm: Arm, names: Sequence[str]) -> float:
    return sum(JUDGED[name] * arm.quantities[name].value for name in names)


def _paragraph(
    cells: Sequence[Cell],
    adjusted: Mapping[Key, Adjusted],
    arms: Sequence[Arm],
    best: Arm,
    names: Sequence[str],
) -> str:
    others = [arm for arm in arms if arm.name != best.name]
    task = f"{short(cells[0].model)} on {short(cells[0].data)}"
    sources = {best.quantities[name].source for name in names}
    basis = sources.pop() if len(sources) == 1 else "partly measured"
    words = {
        "clean": "clean accuracy {}",
        "worst": "lowest accuracy under flips {}",
        "margin": "ASR above the flip rate {}",
    }
    parts = [words[name].format(percent(best.quantities[name].value)) for name in names]
    lines = [f"For {task}: {best.name} ({basis}: {', '.join(parts)})."]
    if not others:
        return f"{lines[0]} There is no other arm to compare it with."
    # The most accurate of the others is what a user gives up, so it is what the choice has to be argued
    # against.
    other = max(others, key=lambda arm: (_clean_value(arm), _rank_of(arm, names)))
    lines += _backdoor_lines(cells, adjusted, best, other)
    lines += _flip_lines(best, other)
    if len(lines) == 1:
        lines += _clean_lines(best, other)
    return " ".join(lines)


def _clean_value(arm: Arm) -> float:
    return arm.quantities["clean"].value if "clean" in arm.quantities else 0.0


def _backdoor_lines(
    cells: Sequence[Cell], adjusted: Mapping[Key, Adjusted], best: Arm, other: Arm
) -> list[str]:
    """One sentence for each attack with a trigger, at its largest amount."""
    by_arm: dict[str, dict[str, Cell]] = {}
    for cell in largest_backdoors(cells):
        by_arm.setdefault(cell.attack, {})[cell.arm] = cell
    lines = []
    for attack, found in by_arm.items():
        if best.name not in found or other.name not in found:
            continue
        a, b = (_rate(found[arm.name], adjusted) for arm in (best, other))
        if a is None or b is None:
            continue
        amount = found[best.name].amount.label
        lines.append(
            f"With {amount} {attack}, {_against(best.name, other.name, a.value, b.value)}"
            f"{_at_cost(best, other)}; {resolution(a, b, 'the difference in ASR')}."
        )
    return lines


def _rate(cell: Cell, adjusted: Mapping[Key, Adjusted]) -> Quantity | None:
    if cell.measured.target_rate.n:
        return of_sample(cell.measured.target_rate)
    interval = stands_for(cell, "target_rate", adjusted)
    return None if interval is None else Quantity(interval.mean, interval.low, interval.high, "predicted")


def _against(arm: str, other: str, a: float, b: float) -> str:
    numbers = f"({_shown(a)} against {_shown(b)} %)"
    if _shown(a) == _shown(b):
        return f"{arm} has the same ASR as {other} {numbers}"
    if b > 0 and HALF[0] <= a / b <= HALF[1]:
        return f"{arm} halves the ASR of {other} {numbers}"
    return f"{arm} has a {'lower' if a < b else 'higher'} ASR than {other} {numbers}"


def _at_cost(best: Arm, other: Arm) -> str:
    if "clean" not in best.quantities or "clean" not in other.quantities:
        return ""
    loss = 100 * (other.quantities["clean"].value - best.quantities["clean"].value)
    if abs(loss) < 0.05:
        return " at equal clean accuracy"
    return f" {'at a cost of' if loss > 0 else 'and gains'} {abs(loss):.1f} points of clean accuracy"


def _flip_lines(best: Arm, other: Arm) -> list[str]:
    if "worst" not in best.quantities or "worst" not in other.quantities:
        return []
    a, b = best.quantities["worst"], other.quantities["worst"]
    place = f"Under {a.at}" if a.at == b.at else f"Under flips ({a.at}; {b.at} for {other.name})"
    keeps = f"{place} it keeps an accuracy of {percent(a.value)} against {percent(b.value)}"
    return [f"{keeps}{'' if a.at != b.at else f' for {other.name}'}; {resolution(a, b, 'the difference')}."]


def _clean_lines(best: Arm, other: Arm) -> list[str]:
    if "clean" not in best.quantities or "clean" not in other.quantities:
        return []
    a, b = best.quantities["clean"], other.quantities["clean"]
    text = f"{other.name} has a clean accuracy of {percent(b.value)}; {resolution(a, b, 'the difference')}."
    return [text]


def resolution(a: Quantity, b: Quantity, what: str) -> str:
    """Whether a difference is shown by seeds, as in "the difference is not resolved by 3 seeds"."""
    if "predicted" in (a.source, b.source):
        both = a.source == b.source
        how = "predicted, not measured" if both else "between a measured and a predicted value"
        return f"{what} is {how}"
    shared = a.sample.minus(b.sample)
    if shared.n == 0:
        return f"{what} is not resolved: no seed was measured for both"
    verb = "is resolved" if excludes_zero(shared) else "is not resolved"
    return f"{what} {verb} by {shared.n} seed{'' if shared.n == 1 else 's'}"


def percent(share: float) -> str:
    """A share as "12.3 %", with a true minus sign."""
    return f"{share * 100:.1f} %".replace("-", "−")


def _shown(share: float) -> str:
    return f"{share * 100:.0f}"


# --- the paper's advice --------------------------------------------------------------------------


def low_rank(cells: Sequence[Cell]) -> Hypothesis:
    """A lower rank makes LoRA harder to backdoor: ASR of the lowest minus that of the highest rank."""
    claim = "A lower rank makes LoRA harder to backdoor."
    pairs = _extremes(cells, _rank) or _extremes(cells, _rank_at_scale)
    missing = "no two measured LoRA arms that differ in the rank only, under a backdoor"
    return _backdoor_hypothesis(claim, cells, pairs, missing)


def small_variance(cells: Sequence[Cell]) -> Hypothesis:
    """A smaller variance of A makes LoRA harder to backdoor: ASR at the smallest minus at the largest."""
    claim = "A smaller initial variance of A makes LoRA harder to backdoor."
    pairs = _extremes(cells, _variance)
    missing = "no two measured LoRA arms that differ in the variance of A only, under a backdoor"
    return _backdoor_hypothesis(claim, cells, pairs, missing)


def lora_and_flips(cells: Sequence[Cell]) -> Hypothesis:
    """LoRA suffers more from label flips than full fine-tuning: its accuracy change minus full's, paired.

    The change is taken from the clean run of equal seeds, because LoRA may be less accurate without any flip.
    """
    claim = "Label flips cost LoRA more accuracy than full fine-tuning."
    loras = arm_order(cell.arm for cell in cells if cell.adapter.method == "lora")
    flips = [cell for cell in cells if cell.kind == "flips"]
    full = [cell for cell in flips if cell.adapter.method == "full"]
    differences = [
        sample
        for arm in loras
        if (sample := _mean_difference([c for c in flips if c.arm == arm], full, _change_of)).n
    ]
    if not differences:
        return _untested(claim, "no LoRA arm and full fine-tuning measured clean and under flips by one seed")
    names = ", ".join(arm_order(cell.arm for cell in full))
    test = f"accuracy change of {', '.join(loras)} minus that of {names}, mean over flip attacks and amounts"
    return _judged(claim, test, _average(differences), supports=-1)


def _change_of(cell: Cell) -> Sample:
    return cell.measured.accuracy_change


def _asr_of(cell: Cell) -> Sample:
    return cell.measured.target_rate


def _backdoor_hypothesis(
    claim: str, cells: Sequence[Cell], pairs: Sequence[tuple[str, str]], missing: str
) -> Hypothesis:
    backdoors = [cell for cell in cells if cell.kind == "backdoor"]
    found: dict[tuple[str, str], Sample] = {}
    for low, high in pairs:
        below, above = ([c for c in backdoors if c.arm == arm] for arm in (low, high))
        sample = _mean_difference(below, above, _asr_of)
        if sample.n:
            found[low, high] = sample
    if not found:
        return _untested(claim, missing)
    named = ", ".join(f"{low} minus {high}" for low, high in found)
    test = f"ASR of {named}, mean over backdoors and amounts"
    return _judged(claim, test, _average(list(found.values())), supports=-1)


def _mean_difference(left: Sequence[Cell], right: Sequence[Cell], value: Callable[[Cell], Sample]) -> Sample:
    """By seed, the mean of left minus right over attacks and amounts; seeds that have all of them."""
    matched = [
        (value(a), value(b))
        for a in left
        for b in right
        if (a.attack, a.amount) == (b.attack, b.amount) and value(a).n and value(b).n
    ]
    return _average([a.minus(b) for a, b in matched])


def _average(samples: Sequence[Sample]) -> Sample:
    """Mean over samples for each seed that all of them have."""
    if not samples:
        return Sample()
    shared = set.intersection(*(set(sample.by_seed) for sample in samples))
    return Sample({s: float(np.mean([x.by_seed[s] for x in samples])) for s in sorted(shared)})


def _extremes(
    cells: Sequence[Cell], read: Callable[[Cell], tuple[str, float] | None]
) -> list[tuple[str, str]]:
    """Of arms that are alike in all but one number, those with the least and the largest.

    Args:
        cells: All cells of a task.
        read: What an arm has in common with those that it is compared with, and its number.
    """
    groups: dict[str, dict[float, str]] = {}
    for cell in cells:
        found = read(cell)
        if found is not None:
            groups.setdefault(found[0], {}).setdefault(found[1], cell.arm)
    return [(arms[min(arms)], arms[max(arms)]) for arms in groups.values() if len(arms) > 1]


def _rank(cell: Cell) -> tuple[str, float] | None:
    adapter = cell.adapter
    rank = adapter.config.get("r")
    if adapter.method != "lora" or not isinstance(rank, int):
        return None
    return _rest(cell, {k: v for k, v in adapter.config.items() if k != "r"}, init=True), float(rank)


def _rank_at_scale(cell: Cell) -> tuple[str, float] | None:
    """As `_rank`, of arms whose lora_alpha grows with the rank: alike in alpha / r."""
    found, alpha = _rank(cell), cell.adapter.config.get("lora_alpha")
    if found is None or not isinstance(alpha, int | float):
        return None
    config = {k: v for k, v in cell.adapter.config.items() if k not in ("r", "lora_alpha")}
    return _rest(cell, config | {"alpha / r": alpha / found[1]}, init=True), found[1]


def _variance(cell: Cell) -> tuple[str, float] | None:
    k = cell.measured.init_k
    if cell.adapter.method != "lora" or k is None:
        return None
    return _rest(cell, cell.adapter.config, init=False), k


def _rest(cell: Cell, config: Mapping[str, Any], *, init: bool) -> str:
    law = cell.adapter.init.model_dump(mode="json") if cell.adapter.init and init else None
    return canonical_json([dict(config), law, cell.adapter.freeze, cell.training.model_dump(mode="json")])


def _untested(claim: str, why: str) -> Hypothesis:
    return Hypothesis(claim, why, "not tested", None, None, None, 0, f"{claim} Not tested: {why}.")


def _judged(claim: str, test: str, sample: Sample, *, supports: int) -> Hypothesis:
    """The verdict on a paired difference whose sign under the claim is `supports`."""
    if not sample.n:
        return _untested(claim, f"{test}: no seed has all of them")
    quantity = of_sample(sample, level=0.95)
    assert sample.mean is not None
    support: Support = "not resolved"
    if excludes_zero(sample):
        support = "supported" if sample.mean * supports > 0 else "contradicted"
    interval = (
        f", 95 % interval [{points(quantity.low)}, {points(quantity.high)}]"
        if quantity.low is not None and quantity.high is not None
        else ", no interval"
    )
    seeds = f"{sample.n} seed{'' if sample.n == 1 else 's'}"
    text = f"{claim} {support.capitalize()} by {seeds} here: {test}: {points(sample.mean)} points{interval}."
    return Hypothesis(claim, test, support, sample.mean, quantity.low, quantity.high, sample.n, text)


def points(share: float) -> str:
    """A difference of shares in percentage points, signed."""
    return f"{round(share * 100, 1) + 0.0:+.1f}".replace("-", "−")

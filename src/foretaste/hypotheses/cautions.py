"""What a reader of a finding must know beside its decision. Each caution is a sentence with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from foretaste import statistics
from foretaste.calibration.places import natural
from foretaste.hypotheses.arms import Arm
from foretaste.hypotheses.base import Hypothesis
from foretaste.hypotheses.contrasts import Contrast
from foretaste.hypotheses.decision import ALPHA, LEAST_SEEDS, SAME, Decided, Weighed
from foretaste.hypotheses.effects import Point
from foretaste.hypotheses.runs import Run
from foretaste.hypotheses.samples import Sample
from foretaste.hypotheses.words import counted, listed, number
from foretaste.seeds import STREAMS

CEILING = 98.0  # per cent; beyond it an ASR cannot tell arms or amounts apart


def cautions(hypothesis: Hypothesis, sample: Sample, weighed: Weighed, decided: Decided) -> tuple[str, ...]:
    """All that apply, in a fixed order."""
    return (
        *_failed(sample),
        *_collapsed(hypothesis, sample, weighed),
        *_uneven(sample),
        *_held(sample),
        *_confounded(sample.contrast),
        *_attack(sample),
        *_levels(hypothesis, sample),
        *_few_seeds(hypothesis, weighed, decided),
        *sample.cautions,
    )


def _failed(sample: Sample) -> Iterator[str]:
    failed = [run for run in sample.runs if not run.completed]
    if failed:
        yield (
            f"{len(failed)} of {counted(len(sample.runs), 'run')} did not complete and are in no number "
            f"({sample.counted(failed)})."
        )


def _collapsed(hypothesis: Hypothesis, sample: Sample, weighed: Weighed) -> Iterator[str]:
    collapsed = [run for run in sample.runs if run.collapsed]
    if not collapsed:
        return
    text = (
        "Runs that say one class or one answer to everything, or are compared with a clean run that does: "
        f"{len(collapsed)} of {len(sample.runs)} ({sample.counted(collapsed)})"
    )
    if not sample.steady:
        yield f"{text}; without them nothing is left."
        return
    effect = float(np.mean(list(sample.steady.values())))
    turned = ", which turns the sign" if effect * weighed.mean < 0 else ""
    yield (
        f"{text}; without them the effect is {number(effect, hypothesis.unit)} over "
        f"{counted(len(sample.steady), 'seed')}{turned}."
    )


def _uneven(sample: Sample) -> Iterator[str]:
    seeds = sorted({run.seed for run in sample.runs}, key=natural)
    missing = [seed for seed in seeds if seed not in sample.by_seed]
    if missing:
        yield (
            f"No value from seed {listed(missing)}: a run or the clean run of the same seed is missing, or "
            "its value is infinite or undefined."
        )
    cells: dict[str, set[tuple[str, float]]] = {}
    for point in sample.points:
        if point.seed in sample.by_seed:
            cells.setdefault(point.seed, set()).add((point.amount, point.level))
    if len({frozenset(held) for held in cells.values()}) > 1:
        yield "Seeds differ in the amounts or arms that they have, and each enters by what it has."


def _held(sample: Sample) -> Iterator[str]:
    streams = ("data", "init", "order") if sample.attack is None else STREAMS
    used = list(sample.seeds.values())
    held = [name for name in streams if len(used) > 1 and len({getattr(one, name) for one in used}) == 1]
    if held:
        yield f"All seeds share one draw of {listed(held)}: nothing is said of what another would change."


def _confounded(contrast: Contrast) -> Iterator[str]:
    if contrast.kind == "pair":
        yield from _unequal_training(*contrast.arms)
    elif contrast.budget == "one learning rate":
        name = "the rank" if contrast.kind == "rank" else "the variance"
        steps = [arm.step for arm in contrast.arms]
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            yield f"How the effective step changes with {name} is not known; the effect may be due to it."
        else:
            yield (
                f"At one learning rate the effective step differs up to {max(known) / min(known):.3g}-fold "
                f"between the arms, so the effect may be due to it and not to {name} itself."
            )


def _unequal_training(first: Arm, second: Arm) -> Iterator[str]:
    if first.rate != second.rate:
        yield f"Learning rates differ ({first.label}, {second.label}): the effect may be due to them."
    for field, value in first.rest.items():
        if second.rest[field] != value:
            yield (
                f"Training differs in {field} ({first.name}: {value}, {second.name}: {second.rest[field]}): "
                "the effect may be due to it."
            )


def _attack(sample: Sample) -> Iterator[str]:
    """An attack without an effect, or with nothing left to have."""
    if sample.attack is None or len(sample.by_seed) < LEAST_SEEDS:
        return
    flips = sample.attack.method == "label-flip"
    harms = [_harm([run for run in sample.runs if run.arm == arm.key], flips) for arm in sample.contrast.arms]
    summaries = [statistics.summary(list(harm.values())) for harm in harms if harm]
    if summaries and not any(_above_zero(item) for item in summaries):
        what = "loss of accuracy" if flips else "ASR minus flip rate"
        most = max(item.mean for item in summaries)
        yield (
            f"No arm shows that the attack works ({what}: {most:.1f} points at most, with an interval that "
            "includes zero): there may be nothing to resist."
        )
    rates = [run.values["asr"] for run in sample.runs if "asr" in run.values]
    if rates and min(rates) >= CEILING:
        yield f"ASR is at least {CEILING:g} % in every run: too high to tell arms or amounts apart."


def _harm(runs: Sequence[Run], flips: bool) -> Mapping[str, float]:
    """By seed, what the attack did to one arm, mean over amounts."""
    seeds: dict[str, list[float]] = {}
    for run in runs:
        value = run.values.get("accuracy_change" if flips else "asr_minus_flip")
        if value is not None:
            seeds.setdefault(run.seed, []).append(-value if flips else value)
    return {seed: float(np.mean(values)) for seed, values in seeds.items()}


def _above_zero(summary: statistics.Summary) -> bool:
    if summary.interval.defined:
        return summary.interval.low > 0
    return summary.n > 1 and summary.mean > SAME  # every seed the same


def _levels(hypothesis: Hypothesis, sample: Sample) -> Iterator[str]:
    contrast = sample.contrast
    if contrast.kind not in ("rank", "variance"):
        return
    levels = {point.level for point in sample.points}
    noun = "ranks" if contrast.kind == "rank" else "variances"
    if len(levels) == 2:
        yield f"Two {noun} only: a slope between them says nothing about others."
    if hypothesis.margin is None or len(levels) < 3:
        return
    apart = {level: value for level, value in _departures(sample.points).items() if value > hypothesis.margin}
    if apart:
        worst = max(apart, key=lambda level: apart[level])
        arm = contrast.arms[contrast.levels.index(worst)]
        yield (
            f"{arm.label} lies {apart[worst]:.1f} points from the mean over {noun}, more than the margin: "
            "a straight line hides it."
        )


def _departures(points: Sequence[Point]) -> dict[float, float]:
    """By level, how far its mean lies from that of all; over seeds and amounts that have every level."""
    cells: dict[tuple[str, str], dict[float, float]] = {}
    for point in points:
        cells.setdefault((point.seed, point.amount), {})[point.level] = point.value
    levels = sorted({point.level for point in points})
    whole = [[cell[level] for level in levels] for cell in cells.values() if len(cell) == len(levels)]
    if not whole:
        return {}
    table = np.array(whole)
    away = np.abs((table - table.mean(axis=1, keepdims=True)).mean(axis=0))
    return dict(zip(levels, away.tolist(), strict=True))


def _few_seeds(hypothesis: Hypothesis, weighed: Weighed, decided: Decided) -> Iterator[str]:
    if hypothesis.centred:
        yield "Sign flips do not apply to distances from a mean: there is no exact test beside this one."
    elif weighed.n and not max(weighed.smallest_p, decided.least_holm) <= ALPHA:
        among = (
            f", {decided.least_holm:.3g} among {decided.tests} tests"
            if decided.least_holm > weighed.smallest_p
            else ""
        )
        yield (
            f"{counted(weighed.n, 'seed')} cannot show it by sign flips, whose least p is "
            f"{weighed.smallest_p:.3g}{among}."
        )

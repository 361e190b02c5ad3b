"""The verdict at the top of the page: what the numbers show, in words, and no more than they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foretaste.report.cells import Frames
from foretaste.report.contents import varying
from foretaste.report.effect import TOOK_EFFECT
from foretaste.report.metrics import METRICS, percent, points
from foretaste.report.pairs import ALPHA
from foretaste.report.rows import records_of

Row = dict[str, Any]
Tone = Literal["harm", "open"]
NOISE = "cannot be told from no effect"


@dataclass(frozen=True)
class Gauge:
    """One arm under one attack at the largest amount.

    Attributes:
        value: ASR, or clean accuracy for an attack without a trigger.
        low: Ends of the interval of `value`, None when undefined; so is `high`.
        mark: Flip rate, or accuracy of the clean runs.
        effect: The change that the poison made, in words with its interval.
        shown: The interval of the change lies on the harmful side of zero.
    """

    arm: str
    value: float
    low: float | None
    high: float | None
    mark: float | None
    effect: str
    n: int
    shown: bool


@dataclass(frozen=True)
class AttackVerdict:
    """What one attack did to all arms, and how the arms compare."""

    attack: str
    title: str
    amount: str
    measure: str
    mark: str
    tone: Tone
    headline: str
    comparison: str
    gauges: Sequence[Gauge]


@dataclass(frozen=True)
class Verdict:
    """The whole strip."""

    headline: str
    runs: str
    cautions: Sequence[str]
    attacks: Sequence[AttackVerdict]


def judge(frames: Frames) -> Verdict:
    """The verdict on a report's tables."""
    attacks = _attacks(frames)
    headline = _headline(attacks) if len(frames.runs) else "Nothing was trained: every number is predicted."
    return Verdict(headline, _run_counts(frames), _cautions(frames), attacks)


def seeds_needed(cells: int) -> int:
    """Least n with which a sign-flip test can reach 0.05 after Holm: 2 / 2^n <= 0.05 / cells."""
    return math.ceil(1 + math.log2(cells / ALPHA))


def _attacks(frames: Frames) -> list[AttackVerdict]:
    outer = varying(frames.runs)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in records_of(frames.cells):
        if row["amount"] != "clean" and row["completed"]:
            groups.setdefault(tuple(row[name] for name in ("folder", "model", "data", "attack")), []).append(
                row
            )
    found = []
    for place, cells in groups.items():
        title = " · ".join([place[3], *(place[("folder", "model", "data").index(name)] for name in outer)])
        found.append(_attack(place[3], title, cells, _comparable(frames, place)))
    return found


def _attack(attack: str, title: str, cells: Sequence[Row], pairs: Sequence[Row]) -> AttackVerdict:
    triggered = any(cell["triggered"] for cell in cells)
    metric = "asr" if triggered else "clean_accuracy"
    largest = max(cells, key=lambda cell: (cell["rate"] or 0.0, cell["count"] or 0.0))["amount"]
    gauges = [
        _gauge(cell, metric, triggered=triggered)
        for cell in cells
        if cell["amount"] == largest and cell[f"{metric}_mean"] is not None
    ]
    effect = "asr_minus_flip" if triggered else "accuracy_change"
    shown = [gauge for gauge in gauges if gauge.shown]
    return AttackVerdict(
        attack=attack,
        title=title,
        amount=largest,
        measure="ASR" if triggered else "Clean accuracy",
        mark="flip rate of the clean model" if triggered else "accuracy without poison",
        tone="harm" if shown else "open",
        headline=_attack_headline(gauges, shown, largest, triggered=triggered),
        comparison=_comparison([row for row in pairs if row["metric"] == effect], METRICS[effect].label),
        gauges=gauges,
    )


def _gauge(cell: Row, metric: str, *, triggered: bool) -> Gauge:
    effect = "asr_minus_flip" if triggered else "accuracy_change"
    mean, low, high = (cell[f"{effect}_{name}"] for name in ("mean", "low", "high"))
    value = cell[f"{metric}_mean"]
    if mean is None:
        text, mark = str(cell[f"{effect}_reason"]), None
    else:
        interval = (
            f"[{points(low)}, {points(high)}]" if low is not None else cell[f"{effect}_interval_reason"]
        )
        text, mark = f"{points(mean)} points {interval}", value - mean
    ends = (cell[f"{metric}_low"], cell[f"{metric}_high"])
    shown = cell["effect"] == TOOK_EFFECT
    return Gauge(cell["arm"], value, *ends, mark, text, cell[f"{metric}_n"], shown)


def _attack_headline(gauges: Sequence[Gauge], shown: Sequence[Gauge], amount: str, *, triggered: bool) -> str:
    if not gauges:
        return "No completed run to judge by."
    what = "The attack gets through" if triggered else "Accuracy falls"
    if not shown:
        lone = all(gauge.n < 2 for gauge in gauges)
        why = "one seed gives no interval" if lone else f"the change {NOISE}"
        return f"No effect is shown with {amount} poisoned: {why}."
    if len(shown) == len(gauges):
        where = "on every arm" if len(gauges) > 1 else f"on {shown[0].arm}"
    else:
        others = [gauge.arm for gauge in gauges if not gauge.shown]
        where = f"on {_listed([gauge.arm for gauge in shown])}; on {_listed(others)} the change {NOISE}"
    return f"{what} {where} with {amount} poisoned."


def _comparable(frames: Frames, place: tuple[str, ...]) -> list[Row]:
    return [
        row
        for row in records_of(frames.pairs)
        if tuple(row[name] for name in ("folder", "model", "data", "attack")) == place and row["n"]
    ]


def _comparison(pairs: Sequence[Row], label: str) -> str:
    """How the arms compare over all amounts of one attack."""
    if not pairs:
        return "One arm, or no pairs of equal seeds: nothing to compare."
    reference = pairs[0]["reference"]
    resolved = [row for row in pairs if row["verdict"] in ("higher", "lower")]
    if resolved:
        best = max(resolved, key=lambda row: abs(row["mean"]))
        interval = f" [{points(best['low'])}, {points(best['high'])}]" if best["low"] is not None else ""
        return (
            f"{label} differs from {reference} in {len(resolved)} of {len(pairs)} cells; most for "
            f"{best['arm']} at {best['amount']}: {points(best['mean'])} points{interval}, "
            f"Holm p {best['p_holm']:.3f}."
        )
    if all(row["verdict"].startswith("not resolved") for row in pairs):
        most = max(row["n"] for row in pairs)
        family = round(max(row["best_p_holm"] / row["smallest_p"] for row in pairs))
        return (
            f"Whether the arms differ is not resolved: {_counted(most, 'pair')} of seeds over {family} cells "
            f"cannot reach p ≤ {ALPHA} after Holm, however large the effect; "
            f"it takes {seeds_needed(family)} pairs."
        )
    return f"No difference to {reference} is shown in any of {len(pairs)} cells."


def _headline(attacks: Sequence[AttackVerdict]) -> str:
    if not attacks:
        return "No poisoned run has completed yet."
    tones: dict[str, set[Tone]] = {}
    for attack in attacks:
        tones.setdefault(attack.attack, set()).add(attack.tone)
    # An attack that did the same in every folder is named once; otherwise each folder is named with it.
    names = [(a.attack if len(tones[a.attack]) == 1 else a.title, a.tone) for a in attacks]
    harmful = [name for name, tone in names if tone == "harm"]
    others = [name for name, tone in names if tone != "harm"]
    parts = []
    if harmful:
        parts.append(
            f"Poison works: {_listed(harmful)} {'does' if len(set(harmful)) == 1 else 'do'} measurable harm"
        )
    if others:
        parts.append(f"no effect is shown for {_listed(others)}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _run_counts(frames: Frames) -> str:
    runs = frames.runs
    if not len(runs):
        return f"No measured run; {_counted(len(frames.predicted), 'cell')} predicted."
    done = int((runs["status"] == "completed").sum())
    failed = len(runs) - done
    collapsed = int(runs["collapsed"].sum())
    text = f"{done} of {len(runs)} runs completed"
    text += f", {failed} failed" if failed else ""
    return text + (f", {collapsed} collapsed to one class." if collapsed else ", none collapsed.")


def _cautions(frames: Frames) -> list[str]:
    """What a reader of the means would get wrong."""
    cautions = []
    flipped = [
        row
        for row in records_of(frames.pairs)
        if row["mean"] is not None and row["collapsed"] and row["mean"] * row["median"] < 0
    ]
    if flipped:
        cautions.append(
            f"In {_counted(len(flipped), 'comparison')} of arms, collapsed runs give mean and median "
            "opposite signs: read the median."
        )
    most = int(frames.cells["runs"].max()) if len(frames.cells) else 0
    if most == 1:
        cautions.append("One seed a cell: nothing here says how far another seed would differ.")
    return cautions


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else ", ".join(unique[:-1]) + " and " + unique[-1]


def gauge_text(gauge: Gauge) -> str:
    """The gauge in words, for readers of the page who do not see it."""
    interval = (
        f", 95 % interval {percent(gauge.low)} to {percent(gauge.high or 0.0)}"
        if gauge.low is not None
        else ""
    )
    return f"{gauge.arm}: {percent(gauge.value)}{interval}"

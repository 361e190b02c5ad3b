"""The verdict at the top of the page: what the numbers show, in words, and no more than they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foretaste.calibration.contrasts import pairs_needed
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
        change: The same as a number; None where there is none.
        n: Runs that have a value.
        pairs: Of those, runs that have a change.
        spread: The change has an interval.
        collapsed: Runs that predict one class.
        shown: The interval of the change lies on the harmful side of zero.
    """

    arm: str
    value: float
    low: float | None
    high: float | None
    mark: float | None
    effect: str
    change: float | None
    n: int
    pairs: int
    spread: bool
    collapsed: int
    shown: bool


@dataclass(frozen=True)
class AttackVerdict:
    """What one attack did to all arms, and how the arms compare.

    Attributes:
        note: What stands behind the attack's name in the headline of the page; may be empty.
        untested: One seed, so that nothing could be shown.
        collapse: How many runs predict one class, by arm; empty without any.
    """

    attack: str
    title: str
    amount: str
    measure: str
    mark: str
    tone: Tone
    headline: str
    comparison: str
    gauges: Sequence[Gauge]
    note: str
    untested: bool
    collapse: str


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
        found.append(_attack(place[3], title, cells, _comparable(frames, place), _families(frames)))
    return found


def _attack(
    attack: str, title: str, cells: Sequence[Row], pairs: Sequence[Row], families: Counter[str]
) -> AttackVerdict:
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
    untested = bool(gauges) and all(gauge.pairs == 1 for gauge in gauges)
    collapse = _collapse(gauges)
    size = _size(gauges, METRICS[effect].label)
    note = f" ({size})" if untested else f", though {collapse}" if collapse and not shown else ""
    return AttackVerdict(
        attack=attack,
        title=title,
        amount=largest,
        measure="ASR" if triggered else "Clean accuracy",
        mark="flip rate of the clean model" if triggered else "accuracy without poison",
        tone="harm" if shown else "open",
        headline=_attack_headline(gauges, shown, largest, size, triggered=triggered),
        comparison=_comparison(
            [row for row in pairs if row["metric"] == effect], METRICS[effect].label, families[effect]
        ),
        gauges=gauges,
        note=note,
        untested=untested,
        collapse=collapse,
    )


def _size(gauges: Sequence[Gauge], label: str) -> str:
    """The largest change that an arm shows, as in "ASR − flip rate +58.4 points on full"."""
    known = [(gauge.change, gauge.arm) for gauge in gauges if gauge.change is not None]
    if not known:
        return ""
    change, arm = max(known, key=lambda pair: abs(pair[0]))
    named = label if label.startswith("ASR") else label[0].lower() + label[1:]
    return f"{named} {points(change)} points on {arm}"


def _collapse(gauges: Sequence[Gauge]) -> str:
    parts = [f"{gauge.collapsed} of {gauge.n} on {gauge.arm}" for gauge in gauges if gauge.collapsed]
    return f"runs collapsed to one class ({', '.join(parts)})" if parts else ""


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
    return Gauge(
        arm=cell["arm"],
        value=value,
        low=ends[0],
        high=ends[1],
        mark=mark,
        effect=text,
        change=mean,
        n=cell[f"{metric}_n"],
        pairs=cell[f"{effect}_n"],
        spread=low is not None,
        collapsed=cell["collapsed"],
        shown=shown,
    )


def _attack_headline(
    gauges: Sequence[Gauge], shown: Sequence[Gauge], amount: str, size: str, *, triggered: bool
) -> str:
    if not gauges:
        return "No completed run to judge by."
    what = "The attack gets through" if triggered else "Accuracy falls"
    if not shown:
        return _not_shown(gauges, amount, size)
    if len(shown) == len(gauges):
        where = "on every arm" if len(gauges) > 1 else f"on {shown[0].arm}"
    else:
        rest = [gauge for gauge in gauges if not gauge.shown]
        noisy = [gauge.arm for gauge in rest if gauge.spread]
        bare = [gauge.arm for gauge in rest if not gauge.spread]
        where = f"on {_listed([gauge.arm for gauge in shown])}"
        where += f"; on {_listed(noisy)} the change {NOISE}" if noisy else ""
        where += f"; on {_listed(bare)} nothing is tested, for want of an interval" if bare else ""
    return f"{what} {where} with {amount} poisoned."


def _not_shown(gauges: Sequence[Gauge], amount: str, size: str) -> str:
    """No arm has an interval that excludes zero: that there is none says less than that it holds zero."""
    if not size:
        return f"No effect can be measured with {amount} poisoned: {gauges[0].effect}."
    if all(gauge.pairs <= 1 for gauge in gauges):
        return f"One seed cannot be tested, however large the effect: with {amount} poisoned, {size}."
    if not any(gauge.spread for gauge in gauges):
        return f"Nothing is tested with {amount} poisoned, since no arm has an interval: {size} at the most."
    return f"No effect is shown with {amount} poisoned: the change {NOISE}."


def _comparable(frames: Frames, place: tuple[str, ...]) -> list[Row]:
    return [
        row
        for row in records_of(frames.pairs)
        if tuple(row[name] for name in ("folder", "model", "data", "attack")) == place and row["n"]
    ]


def _families(frames: Frames) -> Counter[str]:
    """Tests of each metric, over which Holm's correction goes: also those of other attacks and folders."""
    return Counter(row["metric"] for row in records_of(frames.pairs) if row["n"] and row["p"] is not None)


def _comparison(pairs: Sequence[Row], label: str, family: int) -> str:
    """How the arms compare over all amounts of one attack; `family` cells share the correction."""
    if not pairs:
        return "One arm, or no pairs of equal seeds: nothing to compare."
    reference = pairs[0]["reference"]
    resolved = [row for row in pairs if row["verdict"] in ("higher", "lower")]
    if resolved:
        best = max(resolved, key=lambda row: abs(row["mean"]))
        interval = f" [{points(best['low'])}, {points(best['high'])}]" if best["low"] is not None else ""
        cells = _counted(len(pairs), "cell")
        return (
            f"{label} differs from {reference} in {len(resolved)} of {cells}; most for "
            f"{best['arm']} at {best['amount']}: {points(best['mean'])} points{interval}, "
            f"Holm p {best['p_holm']:.3f}."
        )
    if all(row["verdict"].startswith("not resolved") for row in pairs):
        most = max(row["n"] for row in pairs)
        number = f"{_counted(most, 'pair')} of seeds over {_counted(family, 'cell')}"
        return (
            f"Whether the arms differ is not resolved: {number} cannot "
            f"reach p ≤ {ALPHA} after Holm, however large the effect; it takes {pairs_needed(family)} pairs."
        )
    where = "the one cell" if len(pairs) == 1 else f"any of {len(pairs)} cells"
    return f"No difference to {reference} is shown in {where}."


def _headline(attacks: Sequence[AttackVerdict]) -> str:
    if not attacks:
        return "No poisoned run has completed yet."
    tones: dict[str, set[Tone]] = {}
    for attack in attacks:
        tones.setdefault(attack.attack, set()).add(attack.tone)
    # An attack that did the same in every folder is named once; otherwise each folder is named with it.
    names = [(a.attack if len(tones[a.attack]) == 1 and not a.note else a.title, a) for a in attacks]
    harmful = [name for name, a in names if a.tone == "harm"]
    untested = [f"{name}{a.note}" for name, a in names if a.untested]
    others = [f"{name}{a.note}" for name, a in names if a.tone != "harm" and not a.untested]
    parts = []
    if harmful:
        parts.append(
            f"Poison works: {_listed(harmful)} {'does' if len(set(harmful)) == 1 else 'do'} measurable harm"
        )
    if untested:
        parts.append(f"with one seed nothing can be tested for {_listed(untested)}")
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

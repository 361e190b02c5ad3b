"""Draw docs/figures/*.svg from records under results/: `python tools/docs_figures.py`. A test compares.

Small, plain SVG on a white card, so that they read the same in the light and in the dark. The diagrams beside
them (poison.svg, lora.svg, ...) hold no measured numbers and are written by hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from foretaste.calibration.cells import read_cells
from foretaste.fewshot.distortion import Distortion
from foretaste.report import build, load
from foretaste.report.cells import Frames

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 46, 54
COLOURS = {"full": "#2a6fb0", "lora": "#c8553d", "third": "#6a8f3c", "quiet": "#777777"}
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Point:
    """One mark: where, and its interval where there is one. y, low and high are in the unit of the axis."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Marks of one colour; joined by a line unless `dots`."""

    name: str
    colour: str
    points: Sequence[Point]
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """What a chart shows, and its axes: ticks are (place, words)."""

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    series: Sequence[Series]
    diagonal: bool = False


def n(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}".removesuffix(".0")


def signed(value: float) -> str:
    """A whole number with its sign."""
    return f"+{value:g}" if value > 0 else f"{MINUS}{-value:g}" if value < 0 else "0"


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13, more: str = "") -> str:
    """A text."""
    return (
        f'<text x="{n(x)}" y="{n(y)}" text-anchor="{anchor}" font-size="{size}"{more}>{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line x1="{n(x1)}" y1="{n(y1)}" x2="{n(x2)}" y2="{n(y2)}" {style}/>'


def draw(chart: Chart) -> str:
    """The chart as an SVG document."""
    xs, ys = [place for place, _ in chart.x_ticks], [place for place, _ in chart.y_ticks]
    x_low, x_high = min(xs), max(xs)
    pad = 0.06 * (x_high - x_low)

    def at_x(value: float) -> float:
        return LEFT + (value - x_low + pad) / (x_high - x_low + 2 * pad) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        kept = min(max(value, min(ys)), max(ys))  # an interval may leave the axis; its mark never does
        return HEIGHT - BOTTOM - (kept - min(ys)) / (max(ys) - min(ys)) * (HEIGHT - TOP - BOTTOM)

    for series in chart.series:
        for point in series.points:
            assert min(ys) <= point.y <= max(ys), (chart.title, point)
            assert x_low - pad <= point.x <= x_high + pad, (chart.title, point)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, sans-serif" fill="#222">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff"/>',
    ]
    for place, words in chart.y_ticks:
        parts.append(line(LEFT, at_y(place), WIDTH - RIGHT, at_y(place), 'stroke="#e3e3e3"'))
        parts.append(text(LEFT - 8, at_y(place) + 4, words, anchor="end", size=12))
    parts += [
        text(at_x(place), HEIGHT - BOTTOM + 20, words, anchor="middle", size=12)
        for place, words in chart.x_ticks
    ]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, chart.x_title, anchor="middle"))
    turned = f' transform="rotate(-90 16 {n((TOP + HEIGHT - BOTTOM) / 2)})"'
    parts.append(text(16, (TOP + HEIGHT - BOTTOM) / 2, chart.y_title, anchor="middle", more=turned))
    if chart.diagonal:
        low, high = max(x_low, min(ys)), min(x_high, max(ys))
        style = 'stroke="#999" stroke-dasharray="4 4"'
        parts.append(line(at_x(low), at_y(low), at_x(high), at_y(high), style))
    place = float(LEFT)
    for series in chart.series:
        colour = COLOURS[series.colour]
        dash = ' stroke-dasharray="6 4"' if series.dashed else ""
        if not series.dots:
            path = " ".join(f"{n(at_x(p.x))},{n(at_y(p.y))}" for p in series.points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for p in series.points:
            if p.low is not None and p.high is not None:
                style = f'stroke="{colour}" stroke-width="1.5" opacity="0.7"'
                parts.append(line(at_x(p.x), at_y(p.low), at_x(p.x), at_y(p.high), style))
            parts.append(f'<circle cx="{n(at_x(p.x))}" cy="{n(at_y(p.y))}" r="3.5" fill="{colour}"/>')
        parts.append(line(place, 24, place + 22, 24, f'stroke="{colour}" stroke-width="3"{dash}'))
        parts.append(text(place + 28, 28, series.name))
        place += 44 + 7.0 * len(series.name)
    assert place < WIDTH + 40, (chart.title, "the legend is too long")
    return "\n".join([*parts, "</svg>", ""])


@functools.cache
def frames(name: str) -> Frames:
    """The statistics of a folder below results/, as its report has them."""
    return build(load([ROOT / "results" / name]))


def cells(name: str, arm: str, metric: str) -> pd.DataFrame:
    """One row an amount."""
    found = frames(name).summaries
    return found[(found["arm"] == arm) & (found["metric"] == metric) & (found["n"] > 0)].sort_values("rate")


def over_rate(name: str, arm: str, metric: str, attack: str, shift: float = 0.0) -> list[Point]:
    """Means over seeds with their 95 % intervals, in per cent, by amount in per cent."""
    found = cells(name, arm, metric)
    return [
        Point(100 * row.rate + shift, 100 * row.mean, 100 * row.low, 100 * row.high)
        for row in found[found["attack"] == attack].itertuples()
    ]


def per_cent(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks in per cent."""
    return [(value, f"{value:g} %") for value in values]


def flips() -> Chart:
    """Accuracy under label flips (docs/results.md, "SST-2")."""
    return Chart(
        "SST-2: accuracy on clean test rows after training on flipped labels",
        "training labels flipped",
        "test accuracy",
        per_cent([0, 10, 20, 30, 40]),
        per_cent([50, 60, 70, 80, 90]),
        [
            Series(
                "full fine-tuning", "full", over_rate("sst2", "full", "clean_accuracy", "label-flip", -0.4)
            ),
            Series("LoRA, r = 8", "lora", over_rate("sst2", "lora-r8", "clean_accuracy", "label-flip", 0.4)),
        ],
    )


def trigger() -> Chart:
    """Attack success beside the clean flip rate (docs/results.md, "SST-2")."""
    clean = []
    for arm, colour, shift in (("full", "full", -0.05), ("lora-r8", "lora", 0.05)):
        row = next(cells("sst2", arm, "flip_rate").itertuples())
        points = [Point(x + shift, 100 * row.mean) for x in (1.0, 5.0)]
        name = "clean flip rate, full" if arm == "full" else "and LoRA"
        clean.append(Series(name, colour, points, dashed=True))
    return Chart(
        "SST-2: how often triggered rows are called the target class",
        "share of the eligible training rows that carry the trigger",
        "called the target class",
        per_cent([1, 2, 5]),
        per_cent([0, 25, 50, 75, 100]),
        [
            Series("ASR, full", "full", over_rate("sst2", "full", "asr", "trigger", -0.05)),
            Series("ASR, LoRA r = 8", "lora", over_rate("sst2", "lora-r8", "asr", "trigger", 0.05)),
            *clean,
        ],
    )


def seeds() -> Chart:
    """Five seeds and the interval that they make: ASR of LoRA minus that of full fine-tuning."""
    found = frames("sst2")
    values = found.values[(found.values["metric"] == "asr") & (found.values["attack"] == "trigger")]
    wide = values.pivot_table(index=["rate", "seed"], columns="arm", values="value")
    gaps = (100 * (wide["lora-r8"] - wide["full"])).dropna()
    places = {0.01: 1.0, 0.02: 2.0, 0.05: 3.0}
    single = [Point(places[rate] - 0.12, gap) for (rate, _), gap in gaps.items()]
    pairs = found.pairs[(found.pairs["metric"] == "asr") & (found.pairs["attack"] == "trigger")]
    means = [
        Point(places[row.rate] + 0.08, 100 * row.mean, 100 * row.low, 100 * row.high)
        for row in pairs.itertuples()
    ]
    return Chart(
        "SST-2: attack success of LoRA minus that of full fine-tuning, seed by seed",
        "share of the eligible training rows that carry the trigger",
        "LoRA minus full, points",
        [(place, f"{100 * rate:g} %") for rate, place in places.items()],
        [(value, signed(value)) for value in (-40, -30, -20, -10, 0, 10)],
        [
            Series("one seed", "quiet", single, dots=True),
            Series("mean of five, with its 95 % interval", "lora", means, dots=True),
        ],
    )


def predicted() -> Chart:
    """Predicted against measured accuracy (docs/results.md, "Predictions")."""
    found, _ = read_cells(ROOT / "results" / "audit-sst2")

    def points(start: str) -> list[Point]:
        return [
            Point(100 * cell.measured.accuracy.mean, 100 * told.mean, 100 * told.low, 100 * told.high)
            for cell in found
            if cell.arm.startswith(start) and cell.measured.accuracy.mean is not None
            if cell.prediction is not None and (told := cell.prediction.accuracy)
        ]

    return Chart(
        "SST-2: accuracy predicted before training, against accuracy measured",
        "measured accuracy",
        "predicted, with 90 % interval",
        per_cent([50, 60, 70, 80, 90]),
        per_cent([40, 50, 60, 70, 80, 90]),
        [
            Series("full fine-tuning, two rates", "full", points("full"), dots=True),
            Series("LoRA, four settings", "lora", points("lora"), dots=True),
        ],
        diagonal=True,
    )


RANKS = (4, 16, 64, 128, 256)


def over_rank(name: str, metric: str) -> list[Point]:
    """Means over three seeds with their 95 % intervals, in points, by position of the rank."""
    found = []
    for place, rank in enumerate(RANKS):
        rows = cells(f"reproduce/laptop-clean/{name}", f"lora-r{rank}", metric)
        row = next(rows[rows["rate"] > 0].itertuples())
        found.append(Point(place, 100 * row.mean, 100 * row.low, 100 * row.high))
    return found


def rank() -> Chart:
    """What the rank does at one learning rate (docs/results.md, Figure 4)."""
    return Chart(
        "SST-2: rank of LoRA at one learning rate, alpha = r, three seeds",
        "rank r",
        "points",
        [(place, str(rank)) for place, rank in enumerate(RANKS)],
        [(value, signed(value)) for value in (-50, -25, 0, 25, 50, 75, 100)],
        [
            Series(
                f"ASR {MINUS} flip rate, 6 % trigger",
                "full",
                over_rank("ttr-rank-trigger-sst2", "asr_minus_flip"),
            ),
            Series(
                "accuracy change, 30 % flips", "lora", over_rank("ttr-rank-flips-sst2", "accuracy_change")
            ),
        ],
    )


def scale() -> Chart:
    """The scale factor s^2 r k / n of T4 (docs/theory.md): 384 inputs, alpha = 16, k = 1/3."""
    ranks, inputs, alpha, k = (1, 2, 4, 8, 16, 32, 64, 128, 256), 384, 16.0, 1 / 3
    rules = {
        "alpha / r": ("lora", lambda r: alpha / r),
        "alpha / √r": ("third", lambda r: alpha / r**0.5),
        "alpha = r": ("full", lambda _: 1.0),
    }
    return Chart(
        "The scale factor c of LoRA's kernel over the rank, for three ways of scaling",
        "rank r (a layer of 384 inputs, alpha = 16 in the first two, k = 1/3)",
        "c, logarithmic",
        [(place, str(r)) for place, r in enumerate(ranks)],
        [
            (power, words)
            for power, words in ((-4, "0.0001"), (-3, "0.001"), (-2, "0.01"), (-1, "0.1"), (0, "1"))
        ],
        [
            Series(
                name,
                colour,
                [Point(i, math.log10(rule(r) ** 2 * r * k / inputs)) for i, r in enumerate(ranks)],
            )
            for name, (colour, rule) in rules.items()
        ],
    )


def kept() -> Chart:
    """How far LoRA's kernel is from that of all weights (docs/results.md, same heading)."""
    record = Distortion.model_validate_json((ROOT / "results" / "distortion-smollm2.json").read_bytes())

    def over_rank(scaling: str, what: str, shift: float) -> list[Point]:
        found = []
        for place, rank in enumerate(record.ranks):
            values = [100 * getattr(p, what) for p in record.points if (p.scaling, p.rank) == (scaling, rank)]
            found.append(Point(place + shift, sum(values) / len(values), min(values), max(values)))
        return found

    return Chart(
        "SmolLM2 on SST-2: how far LoRA's kernel at B = 0 is from that of all weights",
        "rank r",
        "distance",
        [(place, str(rank)) for place, rank in enumerate(record.ranks)],
        per_cent([0, 25, 50, 75, 100, 125]),
        [
            Series("peft, α / r", "lora", over_rank("alpha/r", "relative_error", -0.06)),
            Series("the theorem's variance 1 / r", "full", over_rank("1/r", "relative_error", 0.0)),
            Series("peft, at the best scale", "third", over_rank("alpha/r", "shape_error", 0.06)),
        ],
    )


FIGURES = {
    "flips": flips,
    "trigger": trigger,
    "seeds": seeds,
    "predicted": predicted,
    "rank": rank,
    "scale": scale,
    "kept": kept,
}


def render(name: str) -> str:
    """The SVG of one figure."""
    return draw(FIGURES[name]())


if __name__ == "__main__":
    folder = ROOT / "docs" / "figures"
    folder.mkdir(exist_ok=True)
    for figure in FIGURES:
        (folder / f"{figure}.svg").write_text(render(figure), encoding="utf-8")

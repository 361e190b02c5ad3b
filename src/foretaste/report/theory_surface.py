"""The page on entropies over rank and variance: the TTR paper's Figure 3, as printed and as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from foretaste.record import write_atomic
from foretaste.report import page, tables
from foretaste.report.figures import entropy_surface as figures
from foretaste.report.figures.theme import save, theme
from foretaste.theory.entropy_surface import Point, largest_gap

TITLE = "Rank, variance and entropy"
PRINTED = (
    "The released script puts 1e-10 for 1 − α and 1 for α in Eq. 18, so what it calls Shannon entropy is "
    "1e10 · log(k r), the log of the trace. It lays cells of geometric grids evenly on linear limits: the "
    "label r = 128 stands at r = 31 and the dashed line of the default k = 1/3 at k = 0.023. Drawn here from "
    "a reading of the script, which was not run.",
)
FORMULA = (
    "Entropies of the r nonzero eigenvalues of AᵀA by Marchenko-Pastur, with s = 1, on true logarithmic "
    "axes; the dashed line is peft's k = 1/3.",
    "Normalised, they see the rank alone: initial variance and scaling change the size of the kernel and "
    "nothing else. Raw, the order of two kernels is reversed for α > 1, and Eq. 18 diverges at α = 1, where "
    "the raw Shannon sum stands; it peaks in k near 0.37.",
)
OVER_RANK = (
    "At peft's k = 1/3. Lines: formula. Dots: drawn matrices, five a rank.",
    "In a model's panels, dots: its LoRA kernel at B = 0, divided by the number of rows. Dashed: the mean of "
    "that kernel over A, whose shape no rank changes and to which the dots tend as the rank grows.",
)
MODEL = (
    "The same entropies of the model's own LoRA kernel on all linear layers, divided by the number of rows, "
    "with s = 1.",
)


@dataclass(frozen=True)
class Section:
    """One figure of the page."""

    name: str
    title: str
    lines: Sequence[str]
    spec: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        page: The page.
        figures: SVG, PNG and PDF of every figure.
        gaps: Largest distance of a drawn matrix from its formula, by entropy.
    """

    page: Path
    figures: list[Path]
    gaps: dict[str, float]


def write(points: Sequence[Point], facts: Sequence[tuple[str, str]], folder: Path) -> Written:
    """Write the page, its figures and its numbers.

    Args:
        points: As printed, by formula and sampled; of a model, if there is one.
        facts: What the page's head says of them: kind and text.
        folder: Where `index.html`, `figures/` and `tables/` go; existing files are replaced.

    Raises:
        OSError: A file could not be written.
    """
    sections = [
        Section("as-printed", "Figure 3 as printed", PRINTED, figures.as_printed(points)),
        Section("surface", "As it should be", FORMULA, figures.surface(points, "formula")),
        Section("over-rank", "Formula, draws and kernel", OVER_RANK, figures.over_rank(points)),
    ]
    if any(point.source == "model" for point in points):
        sections.append(Section("model", "Of the model", MODEL, figures.surface(points, "model")))
    gaps = largest_gap(points)
    tables.save_raw(pd.DataFrame([asdict(point) for point in points]), "entropies", folder / "tables")
    paths = [path for part in sections for path in save(part.spec, folder / "figures" / part.name)]
    context = {
        "title": TITLE,
        "facts": facts,
        "sections": sections,
        "gaps": gaps,
        "data": {
            "figures": {part.name: _bare(part.spec) for part in sections},
            "themes": {"light": _theme(dark=False), "dark": _theme(dark=True)},
        },
        "bundle": page.bundle(),
    }
    index = folder / "index.html"
    write_atomic(index, page.environment().get_template("theory_surface.html.j2").render(context))
    return Written(index, paths, gaps)


def _bare(spec: dict[str, Any]) -> dict[str, Any]:
    # Without its schema address a specification is still read as Vega-Lite, and the page names no server.
    return {key: value for key, value in spec.items() if key != "$schema"}


def _theme(*, dark: bool) -> dict[str, Any]:
    made = theme(dark=dark)
    ink, soft = made["header"]["labelColor"], made["axis"]["titleColor"]
    return {**made, "title": {"color": ink, "subtitleColor": soft}}

"""The figures on entropies plot the points that they are given, where they belong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest

from foretaste.report import theory_surface
from foretaste.report.figures import entropy_surface as figures
from foretaste.theory import entropy_surface as theory
from foretaste.theory.entropy_surface import DEFAULT_K, Point


@pytest.fixture(scope="module")
def points() -> list[Point]:
    ks = [0.01, 0.1, 1.5]
    unit = np.stack([np.diag([r, 2.0 * r, 1.0]) for r in (1.0, 2.0, 8.0)])
    return [
        *theory.printed(),
        *theory.formulas(512, [4, 16, 256], ks),
        *theory.formulas(512, [4, 256], [DEFAULT_K]),
        *theory.sampled(512, [4, 256], [DEFAULT_K], 2, np.random.default_rng(0)),
        *theory.of_kernels(unit, [1, 2, 8], [*ks, DEFAULT_K], examples=3, source="model"),
        *theory.of_kernels(unit, [1, 2, 8], [DEFAULT_K], examples=3, source="expected"),
    ]


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    rows = spec.get("vconcat", [spec])
    return [panel for row in rows for panel in row["hconcat"]]


def cells(spec: dict[str, Any], panel: dict[str, Any]) -> list[dict[str, Any]]:
    layer = panel["layer"][0]
    data = layer.get("data", panel.get("data"))
    values: list[dict[str, Any]] = data["values"] if "values" in data else spec["datasets"][data["name"]]
    return values


@pytest.mark.parametrize("source", ["formula", "model"])
def test_surfaces_plot_every_point(source: Any, points: list[Point]) -> None:
    spec = figures.surface(points, source)
    drawn = panels(spec)
    assert len(drawn) == 8
    plotted = sorted((c["r"], c["k"], c["value"]) for panel in drawn for c in cells(spec, panel))
    wanted = sorted((p.r, p.k, p.value) for p in points if p.source == source and p.k != DEFAULT_K)
    assert plotted == wanted
    for panel in drawn:
        for cell in cells(spec, panel):
            assert cell["r_low"] < cell["r"] < cell["r_high"]
            assert cell["k_low"] < cell["k"] < cell["k_high"]
        encoding = panel["layer"][0]["encoding"]
        assert (encoding["x"]["scale"]["type"], encoding["y"]["scale"]["type"]) == ("log", "log")


def test_as_printed_misplaces_as_the_script_does(points: list[Point]) -> None:
    """theory.md, item 6: the label r = 128 stands at r = 31, the line k = 1/3 at k = .023."""
    spec = figures.as_printed(points)
    left, right = panels(spec)
    for wrong, true in zip(cells(spec, left), cells(spec, right), strict=True):
        assert (wrong["r"], wrong["k"], wrong["value"]) == (true["r"], true["k"], true["value"])
    assert {(c["r"], c["k"], c["value"]) for c in cells(spec, right)} == {
        (p.r, p.k, p.value) for p in points if p.source == "printed"
    }

    def at(name: str, label: float) -> float:
        # The last cell that begins below the label lies on top there.
        return max(cell[name] for cell in cells(spec, left) if cell[f"{name}_low"] <= label)

    # A cell is a step of the geometric grid wide: 64^(1/27) and 150^(1/27).
    assert at("r", 128) == pytest.approx(31, rel=64 ** (1 / 27) - 1)
    assert at("k", 1 / 3) == pytest.approx(0.023, rel=150 ** (1 / 27) - 1)
    assert "As printed" in json.dumps(left["title"])


def test_lines_and_dots_are_formulas_and_draws(points: list[Point]) -> None:
    spec = figures.over_rank(points)
    rows = next(iter(spec["datasets"].values())) if "datasets" in spec else spec["data"]["values"]
    counts = {mark: sum(row["mark"] == mark for row in rows) for mark in ("line", "dot", "dash")}
    assert counts == {"line": 2 * 8, "dot": 2 * 2 * 8 + 3 * 8, "dash": 3 * 8}
    assert sorted(row["value"] for row in rows) == sorted(p.value for p in points if p.k == DEFAULT_K)
    assert len({row["panel"] for row in rows}) == 6


def test_specs_are_valid_vega_lite(points: list[Point]) -> None:
    found = [figures.as_printed(points), figures.over_rank(points)]
    found += [figures.surface(points, "formula"), figures.surface(points, "model")]
    for spec in found:
        alt.Chart.from_dict(spec, validate=True)


def test_the_page_needs_nothing_else(points: list[Point], tmp_path: Path) -> None:
    written = theory_surface.write(points, [("model", "<script>x</script>")], tmp_path)
    html = written.page.read_text(encoding="utf-8")
    body = html.split('<script type="application/json"')[0]
    assert "<script>x</script>" not in html
    assert not re.search(r"(src|href)\s*=", body)
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert list(embedded["figures"]) == ["as-printed", "surface", "over-rank", "model"]
    assert {path.suffix for path in written.figures} == {".svg", ".png", ".pdf"}
    assert all(path.stat().st_size > 500 for path in written.figures)
    stored = pd.read_csv(tmp_path / "tables" / "entropies.csv")
    assert stored["value"].tolist() == pytest.approx([p.value for p in points])
    assert f"{written.gaps['normalised 1']:.4f}" in body


def test_without_a_model_there_is_no_section_on_one(points: list[Point], tmp_path: Path) -> None:
    some = [p for p in points if p.source not in ("model", "expected")]
    theory_surface.write(some, [], tmp_path)
    assert not (tmp_path / "figures" / "model.png").exists()
    assert (tmp_path / "figures" / "over-rank.png").exists()

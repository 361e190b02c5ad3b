"""The picture of LoRA's kernel over rank: means and ranges over draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretaste.report.figures import theme
from foretaste.report.figures.distortion import WHAT, distortion

ROWS = [
    {"scaling": scaling, "rank": rank, "relative_error": error, "shape_error": error / 2}
    for scaling, rank, error in (
        ("1/r", 1, 0.9),
        ("rslora", 1, 0.4),
        ("1/r", 1, 1.5),
        ("1/r", 8, 0.3),
        ("rslora", 1, 0.6),
    )
]


def _values() -> list[dict[str, Any]]:
    spec = distortion(ROWS)
    [values] = spec["datasets"].values()
    return values


def test_every_cell_has_its_mean_and_its_range() -> None:
    drawn = {
        (row["panel"], row["scaling"], row["x"]): (row["mean"], row["low"], row["high"]) for row in _values()
    }
    assert drawn.keys() == {
        (panel, *cell) for panel in WHAT.values() for cell in (("1/r", 1), ("1/r", 8), ("rslora", 1))
    }
    assert drawn[WHAT["relative_error"], "1/r", 1] == pytest.approx((1.2, 0.9, 1.5))
    assert drawn[WHAT["shape_error"], "rslora", 1] == pytest.approx((0.25, 0.2, 0.3))
    assert drawn[WHAT["relative_error"], "1/r", 8] == pytest.approx((0.3, 0.3, 0.3))


def test_it_can_be_drawn(tmp_path: Path) -> None:
    written = theme.save(distortion(ROWS), tmp_path / "distortion")
    svg = next(path for path in written if path.suffix == ".svg").read_text()
    # Two panels with three ranks' marks in each: an axis on a field that no row has would leave them empty.
    assert svg.count('aria-roledescription="point"') >= 6
    assert "Error of LoRA" in svg

"""Every registered figure, and that what it plots is what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from records_factory import Sweep

from foretaste.report import FIGURES, Frames, build, load
from foretaste.report.figures import Over
from foretaste.report.figures.axes import amount_axis, placed, share_domain, spread
from foretaste.report.figures.theme import save

OVERS: tuple[Over, ...] = ("rate", "count")


def empty(frames: Frames) -> Frames:
    tables = {name: getattr(frames, name).iloc[:0] for name in vars(frames) if name != "problems"}
    return Frames(**tables, problems=[])


def rows_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    (rows,) = spec["datasets"].values()
    return rows


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("name", list(FIGURES))
def test_contract(name: str, over: Over, frames: Frames, tmp_path: Path) -> None:
    figure = FIGURES.get(name)
    assert figure.title
    assert figure.needs
    assert figure.caption.endswith(".")
    assert figure.caption.count(". ") == 0
    for kind, tables in (("full", frames), ("empty", empty(frames))):
        paths = save(figure.spec(tables, over), tmp_path / kind)
        svg = paths[0].read_text()
        assert svg.startswith("<svg")
        assert ("Nothing to draw" in svg) is (kind == "empty")
        assert all(path.stat().st_size > 500 for path in paths)


@pytest.mark.parametrize("name", list(FIGURES))
def test_specs_are_valid_vega_lite(name: str, frames: Frames) -> None:
    # Validation raises; the facet is the one shape of specification that the page knows.
    assert "facet" in FIGURES.get(name).draw(frames, "rate").to_dict(validate=True)


def test_single_seed_and_only_failed_runs_draw(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "one", attacks=["trigger"])
    sweep.add("full", seed=0)
    sweep.add("full", "trigger", rate=0.01, seed=0)
    failed = Sweep(tmp_path / "failed", attacks=["trigger"])
    failed.add("full", "trigger", rate=0.01, status="crashed")
    for folder in (sweep.layout.folder, failed.layout.folder):
        tables = build(load([folder]))
        for name, figure in FIGURES.items():
            paths = save(figure.spec(tables, "rate"), tmp_path / folder.name / name)
            assert all(path.stat().st_size > 500 for path in paths)


def test_accuracy_points_equal_records(frames: Frames) -> None:
    rows = rows_of(FIGURES.get("accuracy_over_rate").spec(frames, "rate"))
    plotted = sorted(row["value"] for row in rows if row["layer"] == "run")
    values = frames.values[frames.values["metric"] == "clean_accuracy"]["value"].dropna()
    assert plotted == sorted(values)
    mean = next(
        r
        for r in rows
        if r["layer"] == "mean" and (r["arm"], r["panel"], r["amount"]) == ("full", "trigger", "0.1 %")
    )
    cells = frames.cells
    cell = cells[
        (cells["arm"] == "full") & (cells["attack"] == "trigger") & (cells["amount"] == "0.1 %")
    ].iloc[0]
    assert (mean["value"], mean["low"], mean["x"]) == (
        cell["clean_accuracy_mean"],
        cell["clean_accuracy_low"],
        0.001,
    )


def test_asr_line_starts_at_the_flip_rate(frames: Frames) -> None:
    rows = rows_of(FIGURES.get("asr_over_rate").spec(frames, "rate"))
    start = {row["arm"]: row["value"] for row in rows if row["layer"] == "mean" and row["x"] == 0}
    baseline = {row["arm"]: row["value"] for row in rows if row["layer"] == "baseline" and row["x"] == 0}
    assert start == baseline
    assert {row["panel"] for row in rows} == {"trigger"}


def test_scatter_and_forest_equal_the_tables(frames: Frames) -> None:
    points = [
        row for row in rows_of(FIGURES.get("asr_against_flip").spec(frames, "rate")) if row["layer"] == "run"
    ]
    values = frames.values[frames.values["amount"] != "clean"]
    both = values[values["metric"] == "asr_minus_flip"]["value"].dropna()
    assert sorted(row["asr"] - row["flip"] for row in points) == pytest.approx(sorted(both))
    forest = rows_of(FIGURES.get("paired_difference").spec(frames, "rate"))
    shown = frames.pairs[frames.pairs["metric"].isin(["clean_accuracy", "asr_minus_flip"])]
    assert sorted(row["mean"] for row in forest) == pytest.approx(sorted(shown["mean"].dropna() * 100))
    assert not any(row["resolved"] for row in forest)  # three seeds cannot


def test_collapsed_and_failed_runs_are_seen(frames: Frames) -> None:
    states = [row["state"] for row in rows_of(FIGURES.get("per_seed").spec(frames, "rate"))]
    assert states.count("collapsed") == 1
    assert states.count("failed") == 3  # one diverged; the failed clean run stands under both attacks


def test_counts_are_on_the_axis_when_asked(frames: Frames) -> None:
    rows = rows_of(FIGURES.get("accuracy_over_rate").spec(frames, "count"))
    assert {row["x_label"] for row in rows} == {"0", "1", "100"}


def test_arms_have_one_colour_domain(frames: Frames) -> None:
    import json

    domain = json.dumps(["full", "lora-r8", "lora-r64"])
    for name, figure in FIGURES.items():
        assert domain in json.dumps(figure.spec(frames, "rate")), name


def test_amount_axis_follows_the_amounts() -> None:
    def field(values: list[float]) -> str:
        return amount_axis([placed({"rate": v}, "rate") for v in values], "rate").to_dict()["field"]

    assert field([0.0, 0.1, 0.2, 0.3]) == "x"
    assert field([0.0, 0.001, 0.01, 0.4]) == "x_label"
    many = amount_axis([placed({"rate": 10.0**-k}, "rate") for k in range(1, 15)], "rate").to_dict()
    assert many["scale"]["type"] == "symlog"


def test_label_positions_do_not_overlap() -> None:
    places = spread([0.5, 0.5, 0.51, 0.98, 0.99], (0.0, 1.0))
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) > 0.05
    assert max(places) <= 1.0


def test_domain_contains_the_data() -> None:
    assert share_domain([0.5]) == pytest.approx((0.49, 0.51))
    low, high = share_domain([0.2, 1.0], zero=True)
    assert (low, high) == (0.0, 1.0)

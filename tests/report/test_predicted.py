"""Predictions in the report: beside measurements, alone, and as text that stays text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records_factory import SCRIPT, Sweep

from foretaste.errors import UserError
from foretaste.report import FIGURES, Frames, build, load, report
from foretaste.report.calibrated_tables import all_tables, predicted_table


def rows_of(name: str, frames: Frames) -> list[dict[str, Any]]:
    (rows,) = FIGURES.get(name).spec(frames, "rate")["datasets"].values()
    return list(rows)


def test_cells_hold_both_sides(frames: Frames, small: Path) -> None:
    assert len(frames.predicted) == 15
    cells = frames.cells
    for row in frames.predicted.to_dict("records"):
        attack = row["attack"] if row["attack"] != "clean" else "trigger"
        place = (
            (cells["arm"] == row["arm"]) & (cells["attack"] == attack) & (cells["amount"] == row["amount"])
        )
        measured = cells[place].iloc[0]
        assert row["measured_accuracy"] == pytest.approx(measured["clean_accuracy_mean"])
        assert row["rate"] == measured["rate"]
        assert row["count"] == measured["count"]
        if row["attack"] == "trigger":
            assert row["measured_asr"] == pytest.approx(measured["asr_mean"])
    (one,) = frames.predicted[
        (frames.predicted["arm"] == "lora-r8")
        & (frames.predicted["attack"] == "label-flip")
        & (frames.predicted["amount"] == "10 %")
    ].to_dict("records")
    assert (one["accuracy"], one["accuracy_low"]) == (pytest.approx(0.79), pytest.approx(0.74))
    assert (one["validity"], one["reasons"]) == ("outside", "chi is <b>0.3</b>")


def test_scatter_shows_every_cell_with_both_sides(frames: Frames) -> None:
    cells = [row for row in rows_of("predicted_against_measured", frames) if row["layer"] == "cell"]
    told = frames.predicted
    for panel, name in (("Clean accuracy", "accuracy"), ("ASR", "asr")):
        both = told[told[name].notna() & told[f"measured_{name}"].notna()]
        shown = sorted((row["predicted"], row["measured"]) for row in cells if row["panel"] == panel)
        assert shown == sorted(zip(both[name], both[f"measured_{name}"], strict=True))
    assert {row["validity"] for row in cells} == {"valid", "outside"}


def test_certified_lines_are_of_arms_and_not_of_cells(frames: Frames) -> None:
    rows = rows_of("certified_accuracy", frames)
    assert len(rows) == 3 * 3 * 3
    full = {(row["kind"], row["flips"]): row["value"] for row in rows if row["arm"] == "full"}
    assert full["any flips", 5] == pytest.approx(0.91 - 0.05)
    assert full["one set of flips", 5] == pytest.approx(0.91 - 0.005)
    assert full["random flips", 20] == pytest.approx(0.91 - 0.02)


def test_a_head_that_was_held_is_told_from_one_that_follows(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.predict("full")
    sweep.predict("lora-r8", head="held")
    rows = rows_of("certified_accuracy", build(load([tmp_path])))
    assert {row["kind"] for row in rows if row["arm"] == "full"} == {
        "any flips",
        "one set of flips",
        "random flips",
    }
    held = {row["kind"] for row in rows if row["arm"] == "lora-r8"}
    assert held == {"any flips, head held", "random flips"}


def test_pareto_shows_the_front(frames: Frames) -> None:
    rows = rows_of("pareto", frames)
    assert {row["panel"] for row in rows} == {"Lowest accuracy under flips", "ASR − flip rate"}
    front = {row["arm"]: row for row in frames.front.to_dict("records")}
    for row in rows:
        assert row["standing"] == front[row["arm"]]["standing"]
        assert row["clean"] == front[row["arm"]]["clean"]
        assert row["source"] == "measured"


def test_predictions_are_dashed_lines_over_the_measured_ones(frames: Frames) -> None:
    lines = [row for row in rows_of("accuracy_over_rate", frames) if row["layer"] == "predicted"]
    of_full = {(row["panel"], row["x"]): row["value"] for row in lines if row["arm"] == "full"}
    assert of_full["label-flip", 0.0] == of_full["trigger", 0.0] == pytest.approx(0.91)
    assert of_full["label-flip", 0.1] == pytest.approx(0.8)
    asr = [row for row in rows_of("asr_over_rate", frames) if row["layer"] == "predicted"]
    assert {(row["arm"], row["x"]) for row in asr} == {
        (arm, x) for arm in ("full", "lora-r8", "lora-r64") for x in (0.0, 0.001, 0.1)
    }
    assert {row["value"] for row in asr if row["x"] == 0.0} == {0.1}


class Tags(HTMLParser):
    """Every tag, and the text of scripts and of all else."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.charts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if found.get("id") else []  # type: ignore[list-item]
        self.charts += [found["data-figure"]] if found.get("data-figure") else []  # type: ignore[list-item]


def test_the_page_says_what_was_predicted(small: Path, tmp_path: Path) -> None:
    html = report(small, tmp_path, images=False).read_text()
    assert "For minilm on reviews: " in html
    assert "Randomly flipped labels cost LoRA more accuracy than full fine-tuning. Not resolved on " in html
    assert "chi is &lt;b&gt;0.3&lt;/b&gt;" in html
    assert "nothing here is checked" not in html
    stored = pd.read_csv(tmp_path / "tables" / "predicted.csv")
    assert len(stored) == 15
    for name in ("scores", "gains", "indicators", "front"):
        assert (tmp_path / "tables" / f"{name}.tex").exists()
    assert len(pd.read_csv(tmp_path / "tables" / "certified.csv")) == 9


@pytest.fixture
def only_told(tmp_path: Path) -> Sweep:
    sweep = Sweep(tmp_path / "told")
    for place, arm in enumerate(("full", "lora-r8")):
        sweep.predict(arm, accuracy=0.9 - 0.01 * place, notes=["predicted on 256 of 1000 rows"])
        for rate in (0.01, 0.1):
            sweep.predict(arm, "label-flip", rate=rate, accuracy=0.9 - rate)
            sweep.predict(arm, "trigger", rate=rate, asr=0.3 + place / 10)
    sweep.write_spec()
    return sweep


def test_predictions_alone_make_a_page(only_told: Sweep, tmp_path: Path) -> None:
    folder = only_told.layout.folder
    page = report(folder, tmp_path / "out")
    html = page.read_text()
    assert "Nothing was trained: every number is predicted." in html
    assert "No measured run; 10 cells predicted." in html
    assert "No predicted cell was measured: nothing here is checked." in html
    assert "predicted on 256 of 1000 rows" in html
    parsed = Tags(html)
    assert parsed.charts == [
        *("predicted_against_measured", "certified_accuracy", "pareto"),
        *("asr_over_rate", "accuracy_over_rate"),
    ]
    frames = build(load([folder]))
    assert (len(frames.runs), len(frames.scores), len(frames.predicted)) == (0, 0, 10)
    assert {row["source"] for row in rows_of("pareto", frames)} == {"predicted"}
    assert "Nothing to draw" in (tmp_path / "out" / "figures" / "predicted_against_measured.svg").read_text()
    for name in ("accuracy_over_rate", "asr_over_rate", "certified_accuracy", "pareto"):
        assert "Nothing to draw" not in (tmp_path / "out" / "figures" / f"{name}.svg").read_text()


def test_measured_pages_have_no_part_on_predictions(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.add("full", seed=0)
    sweep.add("full", "trigger", rate=0.1)
    html = report(tmp_path, images=False).read_text()
    parsed = Tags(html)
    assert "predicted" not in parsed.ids
    assert not {"pareto", "certified_accuracy", "predicted_against_measured"} & set(parsed.charts)
    assert "per_seed" in parsed.charts
    assert not (tmp_path / "report" / "tables" / "predicted.csv").exists()


def test_hostile_predictions_stay_text(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["trigger"])
    for arm in ("full", "<script>arm</script>"):
        sweep.add(arm, seed=0)
        sweep.add(arm, "trigger", rate=0.01, seed=0)
        sweep.predict(
            arm, reasons=[SCRIPT], validity="doubtful", indicators={"<img src=x>": 1.0}, notes=[SCRIPT]
        )
        sweep.predict(arm, "trigger", rate=0.01, reasons=[SCRIPT], validity="outside")
    html = report(tmp_path / "s", tmp_path / "out", images=False).read_text()
    parsed = Tags(html)
    assert parsed.tags.count("script") == 3
    assert "img" not in parsed.tags
    assert "<script>a" not in html
    assert "&lt;script&gt;arm&lt;/script&gt;" in html


def test_unmeasured_and_failed_cells_say_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["label-flip"])
    sweep.add("full", "label-flip", rate=0.1, status="diverged")
    sweep.add("full", accuracy=0.9)
    sweep.predict("full", accuracy=0.9)
    sweep.predict("full", "label-flip", rate=0.1)
    sweep.predict("full", "label-flip", rate=0.2)
    frames = build(load([tmp_path]))
    reasons = [row[4].reason for row in predicted_table(frames).rows]
    assert sorted(reasons) == ["", "none of 1 runs completed", "not measured"]
    names = {table.name for table in all_tables(frames)}
    assert names == {"predicted", "scores", "gains", "indicators", "front"}


def test_broken_predictions_are_listed_and_contradicting_ones_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["label-flip"])
    sweep.add("full")
    sweep.predict("full")
    (tmp_path / "predicted" / "runs" / "broken.json").write_text("{")
    html = report(tmp_path, images=False).read_text()
    assert "broken.json" in html
    sweep.predict("full", seeds=[1], accuracy=0.5)
    with pytest.raises(UserError, match="different predictions"):
        report(tmp_path, images=False)


def test_two_folders_are_scored_by_themselves_and_together(small: Path, tmp_path: Path) -> None:
    other = Sweep(tmp_path / "other")
    other.fill(("full", "lora-r8"), (0.001, 0.1), range(2))
    for arm in ("full", "lora-r8"):
        other.predict(arm)
        other.predict(arm, "trigger", rate=0.1)
    frames = build(load([small, tmp_path / "other"]))
    boards = ["small · minilm · reviews", "other · minilm · reviews", "all"]
    assert frames.scores["board"].unique().tolist() == boards
    assert set(frames.front["folder"]) == {"small", "other"}
    panels = {row["panel"] for row in rows_of("pareto", frames)}
    assert "ASR − flip rate · other" in panels
    html = report([small, tmp_path / "other"], tmp_path / "out", images=False).read_text()
    data = json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert "pareto" in data["figures"]

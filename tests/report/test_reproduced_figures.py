"""Figures of reproduced items: that what they plot is what was recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records_factory import Sweep
from reproduced_records import VIEWS, add, learning_rates, ranks, rates, source

from foretaste.record import Record
from foretaste.report.figures.theme import save
from foretaste.report.reproduced import GridView, HeatView, grid, heat, runs
from foretaste.report.reproduced.cells import Cell, cells
from foretaste.report.reproduced.drawn import Drawn, Panel


def cells_of(*sources: Any) -> list[Cell]:
    return cells([run for each in sources for run in runs.read(each).runs])


def panel(drawn: Drawn, title: str) -> Panel:
    return next(panel for panel in drawn.panels if panel.title == title)


def rows_of(panel: Panel) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    (rows,) = panel.spec(200)["datasets"].values()
    return rows


def spec_text(drawn: Drawn) -> str:
    return json.dumps(drawn.spec())


def of(records: list[Record], arm: str, attack: str | None, rate: float | None) -> list[Record]:
    return [
        record
        for record in records
        if record.resolved.adapter.name == arm
        and (record.resolved.attack and record.resolved.attack.name) == attack
        and (record.resolved.attack and record.resolved.attack.rate) == rate
    ]


def test_points_and_means_equal_the_records(tmp_path: Path) -> None:
    sweep = rates(tmp_path / "s")
    records = sweep.layout.read()[0]
    drawn = grid.draw(cells_of(source(sweep)), VIEWS["rates"])
    rows = rows_of(panel(drawn, "SST-2 · label-flip · Accuracy"))
    found = of(records, "full", "label-flip", 0.3)
    accuracies = [record.clean.accuracy for record in found if record.clean]
    at = [row for row in rows if (row["series"], row["x"]) == ("full", 0.3)]
    assert sorted(row["value"] for row in at if row["layer"] == "run") == sorted(accuracies)
    (mean,) = [row for row in at if row["layer"] == "mean"]
    sd = float(np.std(accuracies, ddof=1))
    assert mean["value"] == pytest.approx(np.mean(accuracies))
    assert (mean["low"], mean["high"]) == pytest.approx((mean["value"] - sd, mean["value"] + sd))
    assert mean["n"] == len(accuracies) == 3
    # Clean runs stand at rate 0, under both attacks.
    clean = sorted(record.clean.accuracy for record in of(records, "full", None, None) if record.clean)
    assert (
        sorted(r["value"] for r in rows if r["layer"] == "run" and r["series"] == "full" and not r["x"])
        == clean
    )


def test_the_band_stays_where_a_share_can_be_and_needs_two_seeds(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip"])
    for seed, accuracy in enumerate((1.0, 1.0, 0.7)):
        sweep.add("full", seed=seed, accuracy=accuracy)
    sweep.add("full", "label-flip", rate=0.1, seed=0)
    view = GridView(kind="grid", x="rate", measures={"label-flip": ["accuracy"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    means = {r["x"]: r for r in rows_of(panel(drawn, "SST-2 · Accuracy")) if r["layer"] == "mean"}
    assert means[0.0]["high"] == 1.0
    assert means[0.0]["low"] == pytest.approx(0.9 - np.std((1.0, 1.0, 0.7), ddof=1))
    assert (means[0.1]["low"], means[0.1]["sd"]) == (None, "none: one seed")


def test_asr_of_clean_models_is_their_flip_rate_and_their_change_is_not_drawn(tmp_path: Path) -> None:
    sweep = rates(tmp_path / "s")
    drawn = grid.draw(cells_of(source(sweep)), VIEWS["rates"])
    key = sweep.triggers[0].key
    flips = sorted(
        record.triggered[key].target_rate or 0.0 for record in of(sweep.layout.read()[0], "full", None, None)
    )
    asr = rows_of(panel(drawn, "SST-2 · trigger · ASR"))
    assert (
        sorted(r["value"] for r in asr if r["layer"] == "run" and r["series"] == "full" and not r["x"])
        == flips
    )
    change = panel(drawn, "SST-2 · trigger · ASR − flip rate, points")
    assert {row["x"] for row in rows_of(change)} == {0.1, 0.3}
    assert change.notes == ()  # unpoisoned runs lack no value: they have no change
    assert grid.AT_ZERO in drawn.caption


def test_alpha_that_follows_the_rank_makes_one_line(tmp_path: Path) -> None:
    sweep = ranks(tmp_path / "s")
    view = GridView(kind="grid", x="rank", measures={"label-flip": ["accuracy"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    rows = rows_of(panel(drawn, "SST-2 · Accuracy"))
    assert {row["series"] for row in rows} == {"lora"}
    assert {row["x"] for row in rows} == {4.0, 16.0, 64.0}
    x = drawn.panels[0].spec(200)["layer"][1]["encoding"]["x"]
    assert (x["scale"]["type"], x["scale"]["base"], x["axis"]["values"]) == ("log", 2, [4, 16, 64])


def test_arms_at_one_rank_are_lines_named_by_what_differs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip"])
    for r in (4, 16):
        for alpha in (8, 32):
            config = {"r": r, "lora_alpha": alpha}
            add(sweep, f"lora-r{r}-a{alpha}", "label-flip", rate=0.3, config=config)
    view = GridView(kind="grid", x="rank", measures={"label-flip": ["accuracy"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    names = {row["series"] for row in rows_of(panel(drawn, "SST-2 · Accuracy"))}
    assert names == {"lora, lora_alpha = 8", "lora, lora_alpha = 32"}


def test_several_sweeps_of_one_attack_are_named_by_their_titles(tmp_path: Path) -> None:
    first, second = ranks(tmp_path / "a"), ranks(tmp_path / "b")
    view = GridView(kind="grid", x="rank", measures={"label-flip": ["accuracy"]})
    both = [
        source(sweep, sweep=title, attacks=("label-flip",))
        for sweep, title in ((first, "alpha = r"), (second, "rsLoRA"))
    ]
    drawn = grid.draw(cells_of(*both), view)
    assert [key.text for key in drawn.keys if key.colour is not None] == ["alpha = r", "rsLoRA"]


def test_off_an_axis_of_rates_clean_runs_are_a_dotted_mean(tmp_path: Path) -> None:
    sweep = ranks(tmp_path / "s")
    view = GridView(kind="grid", x="rank", measures={"label-flip": ["accuracy"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    rows = rows_of(drawn.panels[0])
    means = [(row["x"], row["stroke"]) for row in rows if row["layer"] == "mean"]
    # One point a rank and line: no line jumps between clean and poisoned.
    assert sorted(means) == [(x, s) for x in (4.0, 16.0, 64.0) for s in (grid.POISONED, grid.UNPOISONED)]
    assert {row["stroke"] for row in rows if row["layer"] == "run"} == {grid.POISONED}
    dashes = [(key.text, key.dash) for key in drawn.keys if key.dash]
    assert dashes == [(grid.POISONED, "solid"), (grid.UNPOISONED, "dotted")]
    assert grid.BASELINE in drawn.caption


def test_several_amounts_off_an_axis_of_rates_are_several_lines(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip"])
    for r in (4, 16):
        for rate in (0.1, 0.3):
            config = {"r": r, "lora_alpha": r}
            add(sweep, f"lora-r{r}", "label-flip", rate=rate, config=config)
    view = GridView(kind="grid", x="rank", measures={"label-flip": ["accuracy"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    names = {row["series"] for row in rows_of(drawn.panels[0])}
    assert names == {"lora, label-flip 10 %", "lora, label-flip 30 %"}


def test_clean_against_poisoned(tmp_path: Path) -> None:
    sweep = ranks(tmp_path / "s")
    drawn = grid.draw(cells_of(source(sweep)), VIEWS["ranks"])
    assert [key.text for key in drawn.keys] == ["clean", "label-flip, 30 %", "trigger, 6 %"]
    rows = rows_of(panel(drawn, "SST-2 · trigger · Triggered accuracy"))
    key = sweep.triggers[0].key
    clean = [record for record in sweep.layout.read()[0] if record.resolved.attack is None]
    # The clean line is the clean models on the same triggered rows.
    expected = sorted(record.triggered[key].against_true.accuracy for record in clean)
    assert sorted(r["value"] for r in rows if r["layer"] == "run" and r["series"] == "clean") == expected


@pytest.mark.parametrize(
    ("init", "config", "k"),
    [
        (None, {"r": 8, "lora_alpha": 16}, 1 / 3),
        ({"law": "kaiming-uniform", "k": 0.001}, {"r": 8, "lora_alpha": 16}, 0.001),
        ({"law": "kaiming-uniform", "k": None}, {"r": 8, "lora_alpha": 16}, 1 / 3),
        ({"law": "gaussian", "k": None}, {"r": 8, "lora_alpha": 16}, 1.7),
        (None, {"r": 8, "lora_alpha": 16, "init_lora_weights": "pissa"}, None),
        (None, {}, None),
    ],
)
def test_k_is_what_was_asked_for_or_the_law_s_own(
    tmp_path: Path, init: dict[str, Any] | None, config: dict[str, Any], k: float | None
) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip"])
    add(sweep, "lora", init=init, config=config, k_realised=1.7)
    (run,) = runs.read(source(sweep, attacks=("label-flip",))).runs
    assert run.k == (k if k is None else pytest.approx(k))
    assert run.k_realised == 1.7


def test_what_has_no_place_on_the_axis_is_counted(tmp_path: Path) -> None:
    sweep = ranks(tmp_path / "s")
    sweep.add("full", "label-flip", rate=0.3)
    view = GridView(kind="grid", x="rank", measures={"label-flip": ["accuracy"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    assert drawn.lines == ["Not in the figure: 1 run of full; they have no rank. The table has them."]
    assert {row["series"] for row in rows_of(panel(drawn, "SST-2 · Accuracy"))} == {"lora"}


def test_collapsed_failed_and_undefined_runs_are_counted(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip"])
    for seed in range(3):
        sweep.add("full", seed=seed)
    sweep.add("full", "label-flip", rate=0.3, seed=0, collapsed=True, accuracy=0.5)
    sweep.add("full", "label-flip", rate=0.3, seed=1, status="diverged")
    lacking = sweep.add("full", "label-flip", rate=0.3, seed=2)
    assert lacking.clean is not None
    clean = lacking.clean.model_copy(update={"precision": None})
    path = sweep.layout.record(lacking.run_id)
    path.write_text(lacking.model_copy(update={"clean": clean}).model_dump_json())
    view = GridView(kind="grid", x="rate", measures={"label-flip": ["accuracy", "precision"]})
    drawn = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view)
    accuracy, precision = drawn.panels
    assert accuracy.notes == ("Of 6 runs: 1 failed, 1 collapsed.",)
    assert precision.notes == ("Of 6 runs: 1 failed, 1 collapsed, 1 without a value.",)
    states = [row["state"] for row in rows_of(accuracy) if row["layer"] == "run"]
    assert (states.count("collapsed"), len(states)) == (1, 5)
    (mean,) = [r for r in rows_of(accuracy) if r["layer"] == "mean" and r["x"] == 0.3]
    assert (mean["n"], mean["failed"], mean["collapsed"]) == (2, 1, 1)


def test_crosses_of_collapsed_runs_are_drawn_over_the_means(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip"])
    for seed in range(2):
        sweep.add("full", seed=seed)
        sweep.add("full", "label-flip", rate=0.3, seed=seed, collapsed=True, accuracy=0.5)
    view = GridView(kind="grid", x="rate", measures={"label-flip": ["accuracy"]})
    (panel,) = grid.draw(cells_of(source(sweep, attacks=("label-flip",))), view).panels
    layers = panel.chart.to_dict(validate=False)["layer"]
    *below, mean, crosses = layers
    assert crosses["mark"]["shape"] == "cross"
    assert crosses["transform"][-1]["filter"] == "datum.state == 'collapsed'"
    assert crosses["mark"]["opacity"] == 1
    assert crosses["mark"]["size"] > mean["mark"]["size"]
    assert not any(layer["mark"].get("shape") == "cross" for layer in below)


def test_two_protocols_lie_over_each_other(tmp_path: Path) -> None:
    first, second = rates(tmp_path / "a"), rates(tmp_path / "b", lift=-0.1)
    both = [source(first), source(second, variant="paper")]
    drawn = grid.draw(cells_of(*both), VIEWS["rates"])
    assert len(drawn.panels) == 3
    rows = rows_of(drawn.panels[0])
    assert {row["protocol"] for row in rows} == {"foretaste's defaults", "the paper's protocol"}
    # One colour a method, whatever the protocol; the dash tells protocols apart, and the legend says so.
    assert [key.text for key in drawn.keys if key.colour is not None] == ["full", "lora-r8"]
    assert [(key.text, key.dash) for key in drawn.keys if key.colour is None] == [
        ("foretaste's defaults", "solid"),
        ("the paper's protocol", "dashed"),
    ]
    assert grid.BOTH in drawn.caption
    assert '"strokeDash": {"field": "stroke"' in spec_text(drawn)
    alone = grid.draw(cells_of(source(first)), VIEWS["rates"])
    assert '"strokeDash": {"field"' not in spec_text(alone)
    assert [key.dash for key in alone.keys] == [None, None]


def test_a_panel_without_runs_says_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip", "trigger"])
    sweep.add("full", "label-flip", rate=0.1)
    drawn = grid.draw(cells_of(source(sweep)), VIEWS["rates"])
    assert "Nothing to draw" in json.dumps(panel(drawn, "SST-2 · trigger · ASR").spec(200))


@pytest.mark.parametrize("name", ["rates", "ranks", "heat"])
def test_figures_are_valid_vega_lite_and_can_be_saved(name: str, tmp_path: Path) -> None:
    made = {"rates": rates, "ranks": ranks, "heat": learning_rates}[name](tmp_path / "s", seeds=2)
    found = cells_of(source(made))
    view = VIEWS[name]
    drawn = heat.draw(found, view) if isinstance(view, HeatView) else grid.draw(found, view)
    assert {each.spec(200)["width"] for each in drawn.panels} == {"container"}
    # Validation raises.
    drawn.panels[-1].sized({"width": 200, "height": 100}, noted=False).to_dict(validate=True)
    paths = save(drawn.spec(), tmp_path / "figure")
    assert paths[0].read_text().startswith("<svg")
    assert all(path.stat().st_size > 500 for path in paths)


def test_heat_shows_means_and_the_best_learning_rate(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["label-flip", "trigger"])
    values = {(1e-5, None): 0.8, (1e-4, None): 0.9, (1e-5, 0.3): 0.7, (1e-4, 0.3): 0.6}
    for (rate, amount), accuracy in values.items():
        for seed in (0, 1):
            attack = "label-flip" if amount else None
            arm = f"full-learning_rate={rate:g}"
            given = accuracy + (0.02 if seed else -0.02)
            add(sweep, arm, attack, rate=amount, seed=seed, accuracy=given, training={"learning_rate": rate})
    drawn = heat.draw(
        cells_of(source(sweep, attacks=("label-flip",))),
        HeatView(kind="heat", measures={"label-flip": ["accuracy"]}),
    )
    rows = {(r["learning_rate"], r["amount"]): r for r in rows_of(panel(drawn, "full · Accuracy"))}
    assert {key: row["text"] for key, row in rows.items()} == {
        ("1e-5", "0"): "80.0",
        ("1e-4", "0"): "90.0",
        ("1e-5", "30 %"): "70.0",
        ("1e-4", "30 %"): "60.0",
    }
    row = rows["1e-5", "0"]
    assert row["value"] == pytest.approx(0.8)
    assert (row["n"], row["sd"]) == (2, f"{100 * 0.02 * math.sqrt(2):.1f} points")
    assert drawn.lines == [
        "Accuracy under label-flip is highest for full at 1e-4 with no poison, at 1e-5 with 30 %."
    ]


def test_heat_prefers_little_attack_success_and_warns_of_what_learns_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["trigger"])
    for rate, asr in ((1e-5, 0.2), (1e-4, 0.9)):
        arm = f"full-learning_rate={rate:g}"
        for attack, amount in ((None, None), ("trigger", 0.1)):
            add(sweep, arm, attack, rate=amount, asr=asr, flip=0.1, training={"learning_rate": rate})
    view = HeatView(kind="heat", measures={"trigger": ["asr_minus_flip"]})
    drawn = heat.draw(cells_of(source(sweep, attacks=("trigger",))), view)
    assert drawn.lines == [
        "ASR − flip rate under trigger is lowest for full at 1e-5 throughout.",
        heat.RESISTANT,
    ]
    assert {row["amount"] for row in rows_of(drawn.panels[0])} == {"10 %"}


def test_heat_marks_cells_with_failed_runs_and_empty_ones(tmp_path: Path) -> None:
    sweep = learning_rates(tmp_path / "s")
    for seed, status in ((0, "diverged"), (1, "completed")):
        add(
            sweep,
            "full-learning_rate=1e-05",
            "label-flip",
            rate=0.3,
            seed=seed,
            status=status,
            training={"learning_rate": 1e-5},
        )
        add(
            sweep,
            "full-learning_rate=5e-05",
            "label-flip",
            rate=0.3,
            seed=seed,
            status="crashed",
            training={"learning_rate": 5e-5},
        )
    drawn = heat.draw(cells_of(source(sweep)), VIEWS["heat"])
    rows = {(r["learning_rate"], r["amount"]): r for r in rows_of(panel(drawn, "full · Accuracy"))}
    assert rows["1e-5", "30 %"]["text"].endswith(heat.MARK)
    assert rows["5e-5", "30 %"]["text"] == f"–{heat.MARK}"
    assert rows["5e-5", "30 %"]["value"] is None

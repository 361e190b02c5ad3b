"""The page on pairs of trainings: it plots and says what its tables hold, and counts what is missing."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretaste.report import tables, trajectory, trajectory_tables
from foretaste.report.figures import trajectory as figures

NASTY = "<b>r & 64</b>"
ARMS = ["full", NASTY, "lora-r4"]  # in the order of a report
STEPS = [0, 1, 2, 4]
ATTACKS = [("label-flip", "30 %"), ("trigger", "5 rows")]
NORMS = ("frobenius", "spectral", "nuclear", "max_abs")


def distance(arm: str, attack: str, seed: str, step: int) -> float:
    """Made up: larger for later arms, and for flips."""
    return step**0.5 * (1 + ARMS.index(arm)) * (2.0 if attack == "label-flip" else 1.0) * (1 + int(seed) / 10)


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    moments: list[dict[str, Any]] = []
    matrices: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    cells = itertools.product(ARMS, ATTACKS, ("0", "1"))
    for number, (arm, (attack, amount), seed) in enumerate(cells):
        place = {"pair": f"p{number}", "arm": arm, "attack": attack, "amount": amount, "seed": seed}
        failed = arm == "lora-r4" and attack == "trigger" and seed == "1"
        for step in STEPS[: 2 if failed else None]:
            value = distance(arm, attack, seed, step)
            line = {
                **{norm: value * factor for norm, factor in zip(NORMS, (1, 0.5, 3, 0.01), strict=True)},
                **{"rank": 4 * (step > 0), "stable_rank": 4.0 if step else math.nan, "clean": 2.0 * step},
                "relative": value / (2 * step) if step else math.nan,
            }
            beside = {
                "parameters": 10 / value if value else 0.0,
                "head": 0.1 * step,
                "head_clean": 0.2 * step,
            }
            outputs = {"head_parameters": 0.1 * step, "logits": 0.3 + step, "disagreement": step / 100}
            moments.append({**place, "step": step, **line, **beside, **outputs})
            matrices += [{**place, "matrix": f"layer.{i}.w", "step": step, **line} for i in (0, 1)]
        first, last = (distance(arm, attack, seed, step) for step in (1, 4))
        pairs.append(
            {
                **place,
                **{
                    "status": "diverged" if failed else "completed",
                    "reason": "the loss is nan" if failed else None,
                },
                **{"optimizer": "adamw", "learning_rate": 5e-4, "steps": 4, "without": 0, "vectors": 3},
                **{"head_start": 0.5, "head_start_relative": 0.25},
                **{"first": math.nan if failed else first, "last": math.nan if failed else last},
                "first_parameters": math.nan if failed else 10 / first,
                "last_parameters": math.nan if failed else 10 / last,
                **{"mean": math.nan if failed else 1.5, "last_relative": math.nan if failed else last / 8},
                **{"m_prime_fro": 100.0 - ARMS.index(arm), "m_prime_op": 1.0 + ARMS.index(arm)},
                "m_prime_cosine_fro": 1.0 + 1e-14 * ARMS.index(arm),
                **{"one_step": 2.0 * first, "one_step_body": first, "foretold_step": 5e-4 * first},
                **{"changed": 5, "used": 5},
            }
        )
    return pd.DataFrame(moments), pd.DataFrame(matrices), pd.DataFrame(pairs)


def plotted(spec: dict[str, Any]) -> list[dict[str, Any]]:
    data = spec["data"]
    values: list[dict[str, Any]] = data["values"] if "values" in data else spec["datasets"][data["name"]]
    return values


def test_lines_over_steps_are_the_means_over_seeds(frames: Any) -> None:
    moments, _, _ = frames
    rows = plotted(figures.over_steps(moments, figures.NORMS, logarithmic=True))
    assert len(rows) == len(ARMS) * len(ATTACKS) * 3 * 4  # no step 0
    assert next(row["panel"] for row in rows if row["step"] == 1) == "label-flip 30 % · Frobenius"
    for row in rows:
        cell, norm = row["panel"].split(" · ")
        attack = cell.split()[0]
        column = next(name for name, title in figures.NORMS.items() if title == norm)
        factor = dict(zip(NORMS, (1, 0.5, 3, 0.01), strict=True))[column]
        alone = row["arm"] == "lora-r4" and attack == "trigger" and row["step"] > 1
        seeds = [factor * distance(row["arm"], attack, seed, row["step"]) for seed in ("0", "1")]
        seeds = seeds[: 1 if alone else 2]
        assert row["value"] == pytest.approx(np.mean(seeds))
        assert (row["low"], row["high"], row["seeds"]) == (min(seeds), max(seeds), len(seeds))


def test_axes_are_logarithmic_and_zeros_are_not_drawn(frames: Any) -> None:
    moments, _, _ = frames
    spec = figures.over_steps(moments, {"frobenius": "Distance"}, logarithmic=True)
    for layer in spec["spec"]["layer"]:
        assert layer["encoding"]["x"]["scale"]["type"] == layer["encoding"]["y"]["scale"]["type"] == "log"
    assert {row["panel"] for row in plotted(spec)} == {"label-flip 30 %", "trigger 5 rows"}
    still = moments.assign(frobenius=moments["frobenius"].where(moments["step"] != 2, 0.0))
    rows = plotted(figures.over_steps(still, {"frobenius": "Distance"}, logarithmic=True))
    assert {row["step"] for row in rows} == {1, 4}
    linear = plotted(figures.over_steps(still, {"frobenius": "Distance"}, logarithmic=False))
    assert {row["value"] for row in linear if row["step"] == 2} == {0.0}


def test_the_map_is_of_the_last_step(frames: Any) -> None:
    _, matrices, _ = frames
    rows = plotted(figures.by_matrix(matrices))
    assert len(rows) == len(ARMS) * len(ATTACKS) * 2
    row = next(r for r in rows if (r["panel"], r["arm"]) == ("label-flip 30 %", "lora-r4"))
    assert row["relative"] == pytest.approx(
        np.mean([distance("lora-r4", "label-flip", s, 4) / 8 for s in "01"])
    )


def test_foretold_beside_measured(frames: Any) -> None:
    _, _, pairs = frames
    rows = plotted(figures.foretold(pairs))
    assert len(rows) == len(ARMS) * len(ATTACKS) * 2 * 2
    row = next(
        r
        for r in rows
        if r["panel"].startswith("trigger 5 rows · one step")
        and (r["arm"], r["moment"]) == ("full", "last step")
    )
    assert row["told"] == pytest.approx(5e-4 * 1.05)
    assert row["seen"] == pytest.approx(np.mean([10 / 2, 10 / 2.2]))


def test_orders_of_arms(frames: Any) -> None:
    """Foretold by M' downwards and by one step upwards; weights go up with the arm, parameters down."""
    rows = {(r["attack"], r["foretold"]): r for r in trajectory_tables.agreements(frames[2])}
    assert rows["label-flip", "m_prime_fro"]["last"] == pytest.approx(-1)
    assert rows["label-flip", "m_prime_fro"]["last_parameters"] == pytest.approx(1)
    assert rows["label-flip", "foretold_step"]["first"] == pytest.approx(1)
    # Cosines that are 1 up to rounding are no order.
    assert math.isnan(rows["label-flip", "m_prime_cosine_fro"]["last"])
    two = frames[2][frames[2]["arm"] != "full"]
    assert all(math.isnan(row["last"]) for row in trajectory_tables.agreements(two))


def test_tables(frames: Any) -> None:
    moments, _, pairs = frames
    measured = trajectory_tables.measured_table(moments, pairs)
    assert [row[2].text for row in measured.rows] == ARMS * 2
    flip = dict(zip([c.title for c in measured.columns], measured.rows[2], strict=True))
    value = np.mean([distance("lora-r4", "label-flip", s, 4) for s in "01"])
    assert flip["Last step"].text == f"{value:.3g}"
    assert "to" in flip["Last step"].detail
    assert flip["Other class"].text == "4.0 %"
    failed = dict(zip([c.title for c in measured.columns], measured.rows[5], strict=True))
    assert (failed["Pairs"].text, failed["Pairs"].detail) == ("1", "1 not completed")
    assert failed["Last step"].detail == ""  # one seed has no interval
    foretold = trajectory_tables.foretold_table(pairs)
    assert [row[4].detail for row in foretold.rows] == ["1.", "2.", "3."] * 2
    agreement = trajectory_tables.agreement_table(pairs)
    assert "two-sided p of 0.33" in agreement.notes[0]  # 2 / 3!
    for table in (measured, foretold, agreement):
        assert "\\toprule" in tables.to_latex(table)
        assert NASTY not in tables.to_html(table)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (-2.5, "−2.5"), (123456.0, "1.23·10^5"), (1.5e-7, "1.5·10^−7")]
)
def test_numbers_as_text(value: float, text: str) -> None:
    assert trajectory_tables.number(value) == text


def test_the_page(frames: Any, tmp_path: Path) -> None:
    written = trajectory.write(*frames, [("model", "tiny <model>")], tmp_path)
    html = written.page.read_text(encoding="utf-8")
    assert written.page == tmp_path / "index.html"
    assert "1 of 12 pairs did not complete: the loss is nan." in html
    assert "Trained with adamw; the one step of the Gram is of plain gradient descent." in html
    assert NASTY not in html.split('id="data"')[0]
    assert "tiny &lt;model&gt;" in html
    assert not re.search(r"(src|href)=[\"']?https?:", html)
    data = json.loads(html.split('type="application/json" id="data">')[1].split("</script>")[0])
    assert list(data["figures"]) == ["distance", "relative", "logits", "matrices", "foretold"]
    assert {path.suffix for path in written.figures} == {".svg", ".png", ".pdf"}
    assert {path.stem for path in (tmp_path / "tables").glob("*.csv")} == {
        *("measured", "foretold", "agreement", "moments", "matrices", "pairs")
    }
    assert {path.stem for path in (tmp_path / "tables").glob("*.tex")} == {
        "measured",
        "foretold",
        "agreement",
    }
    saved = pd.read_csv(tmp_path / "tables" / "moments.csv")
    assert list(saved["nuclear"]) == pytest.approx(list(frames[0]["nuclear"]))
    flip = written.findings[0]
    assert flip.startswith("label-flip 30 %: at the last step the weights are apart by lora-r4 12.6 (1.5")
    assert (
        "One step of the Gram puts the arms in order with Spearman's ρ = +1.00 for the weights and −1.00"
        in flip
    )


def test_a_page_without_results_says_so(frames: Any, tmp_path: Path) -> None:
    """Every pair failed before its first step."""
    measured = ["first", "last", "first_parameters", "last_parameters", "mean", "last_relative"]
    told = ["m_prime_fro", "m_prime_op", "m_prime_cosine_fro", "one_step", "one_step_body", "foretold_step"]
    pairs = frames[2].assign(
        status="error", reason="RuntimeError: no", **dict.fromkeys([*measured, *told], math.nan)
    )
    written = trajectory.write(pd.DataFrame(), pd.DataFrame(), pairs, [], tmp_path, title="Mine")
    assert written.figures == []
    assert written.findings == ["label-flip 30 %: no completed pair.", "trigger 5 rows: no completed pair."]
    html = written.page.read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in html
    assert "12 of 12 pairs did not complete: RuntimeError: no." in html


def test_what_a_reader_should_know(frames: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "save", lambda *_: [])  # the figures as files take seconds
    pairs = frames[2].assign(optimizer="sgd", used=3, without=7)
    html = trajectory.write(frames[0], frames[1], pairs, [], tmp_path).page.read_text(encoding="utf-8")
    assert "In 12 pairs poison changes more rows than the Gram has" in html
    assert "full: 7 trained parameters are part of no weight" in html
    assert "plain gradient descent on all rows" in html
    assert "Trained with" not in html

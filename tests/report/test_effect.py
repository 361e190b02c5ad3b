"""Whether an attack took effect: the rule, and the cells, files and verdict that it decides."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records_factory import Sweep
from scipy import stats

from foretaste.record import write_atomic
from foretaste.report import Frames, build, load, report
from foretaste.report.contents import cells_table
from foretaste.report.effect import Effect, effect, judged
from foretaste.report.rows import records_of
from foretaste.report.tables import to_latex
from foretaste.report.verdict import judge

NAN = float("nan")
ONE_SEED = "one seed: no interval"


def cell(triggered: bool, low: float | None, high: float | None, n: int = 3, **more: Any) -> dict[str, Any]:
    """A row in which only the metric that should be judged has numbers."""
    right, other = ("asr_minus_flip", "accuracy_change")[:: 1 if triggered else -1]
    row: dict[str, Any] = {"triggered": triggered, f"{other}_n": 3, f"{other}_low": None}
    row |= {f"{other}_high": None, f"{other}_reason": "wrong", f"{other}_interval_reason": "wrong"}
    row |= {f"{right}_n": n, f"{right}_low": low, f"{right}_high": high}
    row |= {f"{right}_reason": "", f"{right}_interval_reason": ""}
    return row | {f"{right}_{name}": value for name, value in more.items()}


@pytest.mark.parametrize(
    ("triggered", "low", "high", "label"),
    [
        (True, 0.01, 0.3, "took effect"),
        (True, 0.0, 0.3, "no effect shown"),
        (True, -0.01, 0.3, "no effect shown"),
        (True, -0.3, -0.01, "no effect shown"),  # the poisoned model falls for it less than the clean one
        (False, -0.3, -0.01, "took effect"),
        (False, -0.3, 0.0, "no effect shown"),
        (False, -0.3, 0.01, "no effect shown"),
        (False, 0.01, 0.3, "no effect shown"),  # poison that helps does no harm
    ],
)
def test_the_whole_interval_lies_on_the_harmful_side(
    triggered: bool, low: float, high: float, label: Any
) -> None:
    assert effect(cell(triggered, low, high)) == Effect(label, "")


@pytest.mark.parametrize("nothing", [None, NAN])
@pytest.mark.parametrize("triggered", [True, False])
def test_without_an_interval_nothing_is_shown(triggered: bool, nothing: float | None) -> None:
    row = cell(triggered, nothing, nothing, n=1, interval_reason=ONE_SEED)
    assert effect(row) == Effect("no effect shown", ONE_SEED)
    row = cell(triggered, nothing, nothing, n=0, reason="the run did not complete (crashed)")
    assert effect(row) == Effect(None, "the run did not complete (crashed)")


def test_any_change_can_be_judged() -> None:
    row = {f"x_{name}": value for name, value in {"n": 2, "low": -2.0, "high": -1.0}.items()}
    assert judged(row, "x", above=False).label == "took effect"
    assert judged(row, "x", above=True).label == "no effect shown"


def cell_of(frames: Frames, **where: object) -> dict[str, Any]:
    chosen = [row for row in records_of(frames.cells) if all(row[k] == v for k, v in where.items())]
    assert len(chosen) == 1
    return chosen[0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One arm that the trigger reaches, one that it does not; flips that harm only the second."""
    sweep = Sweep(tmp_path_factory.mktemp("effect") / "s", attacks=["trigger", "label-flip"], test_rows=400)
    for seed in range(4):
        for arm in ("full", "lora-r8"):
            hit = 0.9 if arm == "full" else 0.115 + 0.04 * (seed % 2)
            sweep.add(arm, seed=seed, accuracy=0.9 + seed / 100, flip=0.1 + seed / 50)
            sweep.add(arm, "trigger", rate=0.1, seed=seed, accuracy=0.5, asr=hit)
            harmed = (0.905 if arm == "full" else 0.7) + (3 - seed) / 100
            sweep.add(arm, "label-flip", rate=0.1, seed=seed, accuracy=harmed)
    sweep.add("full", "trigger", rate=0.2, seed=0, asr=1.0)
    sweep.add("lora-r8", "trigger", rate=0.2, seed=0, status="diverged")
    sweep.write_spec()
    return sweep.layout.folder


@pytest.fixture(scope="module")
def cells(swept: Path) -> Frames:
    return build(load([swept]))


def test_the_label_is_that_of_the_paired_interval(cells: Frames) -> None:
    labels = set()
    for triggered, name in ((True, "trigger"), (False, "label-flip")):
        values = cells.values[(cells.values["attack"] == name) & (cells.values["amount"] == "10 %")]
        for arm in ("full", "lora-r8"):
            metric = "asr_minus_flip" if triggered else "accuracy_change"
            differences = values[(values["metric"] == metric) & (values["arm"] == arm)]["value"].to_numpy()
            assert differences.size == 4
            half = stats.t.ppf(0.975, 3) * differences.std(ddof=1) / math.sqrt(4)
            low, high = differences.mean() - half, differences.mean() + half
            expected = "took effect" if (low > 0 if triggered else high < 0) else "no effect shown"
            row = cell_of(cells, attack=name, arm=arm, amount="10 %")
            assert (row["triggered"], row["effect"], row["effect_reason"]) == (triggered, expected, "")
            labels.add((name, arm, expected))
    assert labels == {
        ("trigger", "full", "took effect"),
        ("trigger", "lora-r8", "no effect shown"),
        ("label-flip", "full", "no effect shown"),
        ("label-flip", "lora-r8", "took effect"),
    }


def test_unpaired_levels_would_say_otherwise(tmp_path: Path) -> None:
    """The flips cost every seed the same five points, which levels that differ between seeds would hide."""
    sweep = Sweep(tmp_path, attacks=["label-flip"], test_rows=1000)
    for seed, level in enumerate((0.6, 0.75, 0.9)):
        sweep.add("full", seed=seed, accuracy=level)
        sweep.add("full", "label-flip", rate=0.1, seed=seed, accuracy=level - 0.05 - seed / 1000)
    row = cell_of(build(load([tmp_path])), amount="10 %")
    assert row["clean_accuracy_high"] > 0.9
    assert row["effect"] == "took effect"


def test_one_seed_clean_runs_and_failures_say_why(cells: Frames) -> None:
    lone = cell_of(cells, arm="full", amount="20 %")
    assert lone["asr_minus_flip_mean"] == pytest.approx(0.9)
    assert (lone["effect"], lone["effect_reason"]) == ("no effect shown", ONE_SEED)
    failed = cell_of(cells, arm="lora-r8", amount="20 %")
    assert (failed["effect"], failed["effect_reason"]) == (None, "the run did not complete (diverged)")
    clean = cell_of(cells, arm="full", attack="trigger", amount="clean")
    assert (clean["effect"], clean["effect_reason"]) == (None, "clean run: nothing was poisoned")


def test_equal_seeds_have_no_interval_and_say_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for seed in range(3):
        sweep.add("full", seed=seed, flip=0.1)
        sweep.add("full", "trigger", rate=0.1, seed=seed, asr=1.0)
    row = cell_of(build(load([tmp_path])), amount="10 %")
    assert row["effect"] == "no effect shown"
    assert row["effect_reason"] == "all 3 seeds gave the same value: no interval"


def test_a_trigger_without_eligible_rows_is_not_judged_by_accuracy(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for seed in range(3):
        sweep.add("full", seed=seed, accuracy=0.9)
        record = sweep.add("full", "trigger", rate=0.1, seed=seed, accuracy=0.5 + seed / 100)
        none = {key: part.model_copy(update={"target_rate": None}) for key, part in record.triggered.items()}
        changed = record.model_copy(update={"triggered": none})
        write_atomic(sweep.layout.record(record.run_id), changed.model_dump_json())
    frames = build(load([tmp_path]))
    row = cell_of(frames, amount="10 %")
    assert (row["effect"], row["effect_reason"]) == (None, "no test row of a non-target class")
    assert judge(frames).attacks[0].tone == "open"


def test_the_column_is_on_the_page_and_in_every_file(cells: Frames, swept: Path, tmp_path: Path) -> None:
    html = report(swept, tmp_path, images=False).read_text()
    place = [column.title for column in cells_table(cells).columns].index("Effect")
    shown = [row[place] for row in cells_table(cells).rows]
    assert [entry.text for entry in shown] == [row["effect"] or "–" for row in records_of(cells.cells)]
    assert '<td class="strong">took effect</td>' in html
    assert '<td class="quiet">no effect shown<small>one seed:\nno interval</small></td>' in html
    assert "An attack took effect where the whole interval of ASR − flip rate lies above zero" in html
    expected = [row["effect"] for row in records_of(cells.cells)]
    tables = tmp_path / "tables"
    for stored in (pd.read_csv(tables / "cells.csv"), pd.read_parquet(tables / "cells.parquet")):
        assert stored["effect"].replace({np.nan: None}).tolist() == expected
        assert ONE_SEED in set(stored["effect_reason"])
    latex = (tables / "cells.tex").read_text()
    assert latex == to_latex(cells_table(cells))
    assert latex.count("& took effect &") == expected.count("took effect") == 2


def test_the_verdict_says_what_the_table_says(cells: Frames) -> None:
    for attack in judge(cells).attacks:
        for gauge in attack.gauges:
            row = cell_of(cells, attack=attack.attack, arm=gauge.arm, amount=attack.amount)
            assert gauge.shown is (row["effect"] == "took effect")
    assert judge(cells).headline == (
        "Poison works: label-flip does measurable harm; with one seed nothing can be tested for trigger "
        "(ASR − flip rate +90.0 points on full)."
    )

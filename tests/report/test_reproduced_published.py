"""Published tables: typed in right, read with the implied attack success, put beside the right cells."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from records_factory import Sweep
from reproduced_records import add, item, source

from foretaste.report.reproduced import runs, write
from foretaste.report.reproduced.cells import cells
from foretaste.report.reproduced.published import (
    SST2_POSITIVES,
    SST2_ROWS,
    TABLES,
    PublishedRow,
    asr_of,
    implied_asr,
    published_table,
)


def test_implied_asr_follows_from_a_confusion_matrix() -> None:
    true_positives, true_negatives = 400, 300
    accuracy = (true_positives + true_negatives) / SST2_ROWS
    recall = true_positives / SST2_POSITIVES
    negatives = SST2_ROWS - SST2_POSITIVES
    found = implied_asr(accuracy, recall, positives=SST2_POSITIVES, rows=SST2_ROWS)
    assert found == pytest.approx((negatives - true_negatives) / negatives)


def asr(
    table: str, attack: str, method: str, *, law: str | None = None, rate: float | None = None
) -> list[float]:
    chosen = [
        row
        for row in TABLES[table].rows
        if (row.attack, row.method, row.law) == (attack, method, law) and rate in (None, row.rate)
    ]
    found = [asr_of(row, TABLES[table]) for row in chosen]
    return [value for value in found if value is not None]


def test_implied_asr_is_what_a_second_reading_of_the_tables_gave() -> None:
    """Worked out apart from this code, and rounded to whole per cents (rounding: at most 0.55)."""
    rounded = {
        ("multi-trigger", "full"): 33,
        ("multi-trigger", "lora"): 19,
        ("style", "full"): 49,
        ("style", "lora"): 27,
        ("instruction", "full"): 99,
        ("instruction", "lora"): 96,
    }
    for (attack, method), value in rounded.items():
        assert asr("ttr-tab1", attack, method) == pytest.approx([value], abs=0.55)
    xavier = asr("ttr-tab2", "trigger", "lora", law="xavier-normal", rate=0.0015)
    assert xavier == pytest.approx([14, 17, 21], abs=0.55)
    exact = [
        asr_of(row, TABLES["ttr-tab1"]) for row in TABLES["ttr-tab1"].rows if row.attack == "clean-label"
    ]
    assert exact == pytest.approx([11.6, 11.2], abs=0.05)
    clean = [
        asr_of(row, TABLES["ttr-tab2"])
        for row in TABLES["ttr-tab2"].rows
        if row.rate == 0 or row.law == "gaussian"
    ]
    assert all(value is not None and 7.4 < value < 8.8 for value in clean)


@pytest.mark.parametrize("row", [row for table in TABLES.values() for row in table.rows if row.scores])
def test_f1_follows_from_precision_and_recall(row: PublishedRow) -> None:
    """A digit mistyped in one of three columns would show here; means over runs allow a little more."""
    _, (precision, _), (recall, _), (f1, sd) = row.scores
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=0.1 + 0.2 * sd)


def test_table_3_waits_for_its_preset() -> None:
    table = TABLES["ttr-tab3"]
    assert [(row.attack, row.method, row.asr) for row in table.rows][:2] == [
        ("badnet", "full", 90.91),
        ("badnet", "lora", 84.85),
    ]
    # Every cell is a count out of 99 prompts.
    assert all(round((row.asr or 0) * 0.99, 1) % 1 == 0 for row in table.rows)
    shown = published_table("ttr-tab3", [])
    assert len(shown.rows) == 6
    assert "LLaMA-3.2-3B" in shown.title


def test_cells_of_the_same_attack_arm_and_start_stand_beside(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["trigger"])
    lora = {"r": 8, "lora_alpha": 16}
    for law in ("gaussian", "xavier-normal"):
        for k in (0.333, 1.0):
            for attack, rate in ((None, None), ("trigger", 0.06)):
                add(
                    sweep,
                    f"lora-{law}-k{k:g}",
                    attack,
                    rate=rate,
                    asr=0.4 + 0.1 * k,
                    flip=0.1,
                    config=lora,
                    init={"law": law, "k": k},
                )
    add(sweep, "lora-plain", "trigger", rate=0.06, config=lora)
    found = cells(list(runs.read(source(sweep, attacks=("trigger",))).runs))
    frame = published_table("ttr-tab2", found).frame
    assert len(frame) == 12
    beside = frame[(frame["law"] == "gaussian") & (frame["k"] == 1.0)].set_index("rate")
    assert beside.loc[0.0015, ["arm_here", "rate_here", "asr_here"]].tolist() == [
        "lora-gaussian-k1",
        0.06,
        0.5,
    ]
    assert beside.loc[0.0, ["rate_here", "asr_here"]].tolist() == [0.0, 0.1]  # there: the flip rate
    assert frame[frame["k"] == 2.0]["arm_here"].tolist() == [""] * 4
    assert "lora-plain" not in frame["arm_here"].tolist()


def test_other_tasks_do_not_stand_beside(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["multi-trigger"])
    sweep.add("full", "multi-trigger", rate=0.1)
    there = source(sweep, attacks=("multi-trigger",), task="QNLI")
    frame = published_table("ttr-tab1", cells(list(runs.read(there).runs))).frame
    assert set(frame["arm_here"]) == {""}


def test_the_page_marks_published_values(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", attacks=["multi-trigger"])
    for arm in ("full", "lora"):
        for seed in range(2):
            sweep.add(arm, seed=seed)
            sweep.add(arm, "multi-trigger", rate=0.1, seed=seed)
    shown = item("table", published="ttr-tab1")
    index = write(shown, [source(sweep, attacks=("multi-trigger",))], [], tmp_path / "out", images=False)
    html = index.read_text(encoding="utf-8")
    assert "Published (BERT-large, full SST-2) and here" in html
    assert "82.9 ± 6.8" in html
    stored = pd.read_csv(tmp_path / "out" / "tables" / "published.csv")
    assert stored["arm_here"].dropna().tolist() == ["full", "lora"]
    assert stored["accuracy"].iloc[0] == pytest.approx(0.8291)
    assert (tmp_path / "out" / "tables" / "published.tex").is_file()

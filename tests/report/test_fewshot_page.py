"""The page of few-shot sweeps: cells, differences, dots, tables and the page itself, on planted records."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fewshot_factory as made
from foretaste import statistics
from foretaste.errors import UserError
from foretaste.report import report
from foretaste.report.fewshot import cells as cells_of
from foretaste.report.fewshot import drawn, run_tables, tables
from foretaste.report.fewshot import published as published_module
from foretaste.report.fewshot.dots import CRITERIA, EMPTY, FULL, HALF, UNDEFINED, dot_rows
from foretaste.report.fewshot.pairs import compare
from foretaste.report.fewshot.published import TABLES, published_table
from foretaste.report.fewshot.words import cautions, say
from instruct_factory import record as instruct_record
from instruct_factory import write as write_instruct

SPLITS = (13, 21, 42)


def texts(table: tables.Table, column: str) -> list[str]:
    place = [one.title for one in table.columns].index(column)
    return [row[place].text for row in table.rows]


def values_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a figure draws."""
    rows: list[dict[str, Any]] = spec["datasets"][spec["data"]["name"]]
    return rows


# --- cells ---------------------------------------------------------------------------------------


def test_cells_hold_one_arm_and_their_splits() -> None:
    found = cells_of.cells(made.sweep())
    assert [cell.name for cell in found] == ["zero-shot", "sgd", "kernel-sgd", "adam", "kernel-signgd"]
    assert all(sorted(cell.by_split) == list(SPLITS) for cell in found)
    sgd = next(cell for cell in found if cell.name == "sgd").scores
    assert sgd is not None
    expected = statistics.summary([0.80, 0.82, 0.84])
    assert (sgd.mean, sgd.sd) == pytest.approx((expected.mean, expected.sd))
    assert sgd.interval.low == pytest.approx(expected.interval.low)


def test_a_run_done_with_criteria_and_without_counts_once_and_the_former_stands() -> None:
    plain, measured = made.record("sgd"), made.record("sgd", criteria=made.GOOD)
    for order in ([plain, measured], [measured, plain]):
        (cell,) = cells_of.cells(order)
        assert cell.runs == (measured,)
    broken = made.record("sgd", criteria=made.GOOD, status="crashed")
    assert cells_of.cells([plain, broken])[0].runs == (plain,)


def test_places_are_apart_by_model_prompt_and_k_and_not_by_folder() -> None:
    records = [
        made.record("sgd"),
        made.record("sgd", k=64),
        made.record("sgd", variant="null"),
        made.record("sgd", model="other-lm"),
    ]
    found = cells_of.cells(records)
    assert len({cell.place for cell in found}) == 4
    assert {cell.name for cell in found} == {"sgd"}, "the steps follow k, and that is no other arm"
    same = cells_of.cells([made.record("sgd", split) for split in SPLITS])
    assert len(same) == 1


def test_arms_of_one_name_and_other_settings_are_told_apart() -> None:
    found = cells_of.cells([made.record("sgd"), made.record("sgd", settings={"learning_rates": [0.1]})])
    names = [cell.name for cell in found]
    assert len(set(names)) == 2
    assert all(name.startswith("sgd (") for name in names)


def test_undefined_scores_and_lost_runs_are_counted_and_in_no_mean() -> None:
    records = [
        made.record("sgd", 13, None, task="mrpc"),
        made.record("sgd", 21, 0.5, task="mrpc"),
        made.record("sgd", 42, task="mrpc", status="diverged"),
    ]
    (cell,) = cells_of.cells(records)
    assert cell.scores is not None
    assert (cell.scores.n, cell.scores.mean) == (1, 0.5)
    table = tables.scores_table([cell])
    (row,) = table.rows
    assert any("1 without result" in entry.detail for entry in row)
    assert any("1 undefined" in entry.detail for entry in row)
    lost = run_tables.lost_table([cell])
    assert texts(lost, "Status") == ["diverged"]


# --- differences ---------------------------------------------------------------------------------


def test_kernel_minus_fine_tuning_is_paired_by_split() -> None:
    found = cells_of.cells(made.sweep())
    rows = {(row.first, row.second): row for row in compare(found)}
    assert set(rows) == {("kernel-sgd", "sgd"), ("kernel-signgd", "adam")}
    row = rows["kernel-sgd", "sgd"]
    differences = [0.78 - 0.80, 0.79 - 0.82, 0.80 - 0.84]
    assert row.mean == pytest.approx(sum(differences) / 3)
    expected = statistics.summary(differences).interval
    assert (row.interval.low, row.interval.high) == pytest.approx((expected.low, expected.high))
    assert row.p == row.smallest_p == 0.25
    assert row.verdict == "not resolved by 3 splits"


def test_a_pair_needs_the_same_rows_prompt_and_output() -> None:
    records = [
        made.record("sgd", 13),
        made.record("kernel-sgd", 21),
        made.record("kernel-sgd-standard", 13),
        made.record("kernel-sgd", 13, variant="null"),
    ]
    (row,) = compare(cells_of.cells(records))
    assert (row.n, row.unpaired) == (0, 2)
    assert row.verdict == "no pair of runs"
    other = made.record("kernel-sgd", 13)
    assert other.rows is not None
    other = other.model_copy(update={"rows": other.rows.model_copy(update={"train_hash": "else"})})
    (row,) = compare(cells_of.cells([made.record("sgd", 13), other]))
    assert row.n == 0


def test_lora_stands_against_full_arm_by_arm() -> None:
    records = [made.record(arm) for arm in ("sgd", "sgd-lora", "kernel-sgd", "kernel-sgd-lora")]
    pairs = {(row.first, row.second) for row in compare(cells_of.cells(records))}
    assert ("sgd-lora", "sgd") in pairs
    assert ("kernel-sgd-lora", "kernel-sgd") in pairs
    assert ("kernel-sgd-lora", "sgd-lora") in pairs
    assert ("kernel-sgd-lora", "sgd") not in pairs


# --- dots ----------------------------------------------------------------------------------------


def test_dots_are_the_papers_thresholds_split_by_split() -> None:
    bad = {**made.GOOD, "linearised_share": 0.49, "kernel_distance": 2.0}
    records = [
        made.record("sgd", 13, 0.80, criteria=made.GOOD),
        made.record("sgd", 21, 0.80, criteria=bad),
        made.record("sgd", 42, 0.80, criteria={**made.GOOD, "linearised_share": 0.5}),
        made.record("kernel-sgd", 13, 0.72),  # exactly nine tenths
        made.record("kernel-sgd", 21, 0.71),
        made.record("kernel-sgd", 42, 0.90),
    ]
    (row,) = dot_rows(cells_of.cells(records))
    marks = {name: "".join(one.dots[name].mark for one in row.splits) for name in CRITERIA}
    assert marks == {
        "solves": FULL + EMPTY + FULL,
        "linearisation": FULL + EMPTY + FULL,
        "fixed_features": FULL + EMPTY + FULL,
        "kernel_behaviour": FULL + EMPTY + FULL,
    }
    assert row.summary("solves") == HALF
    assert row.count("solves") == (2, 3)


def test_what_cannot_be_said_is_no_dot() -> None:
    nothing_gained = {**made.GOOD, "linearised_share": None}
    records = [
        made.record("sgd", 13, criteria=nothing_gained),
        made.record("sgd", 21, criteria=nothing_gained),
        made.record("kernel-sgd", 13, 0.8),
        made.record("kernel-sgd", 21, 0.1),
    ]
    (row,) = dot_rows(cells_of.cells(records))
    assert row.summary("linearisation") == UNDEFINED
    assert [one.dots["kernel_behaviour"].met for one in row.splits] == [None, False], "one that fails decides"
    entry = tables.dots_table([row]).rows[0][-1]
    assert entry.text == f"{EMPTY} 0 of 1"
    assert "gained nothing" in entry.reason
    (plain,) = dot_rows(cells_of.cells([made.record("sgd"), made.record("kernel-sgd")]))
    assert plain.splits[0].dots["fixed_features"].reason == "criteria were not measured"


def test_of_two_sign_kernels_the_better_on_validation_stands_for_both() -> None:
    records = [
        made.record("adam", 13, 0.8),
        made.record("kernel-signgd", 13, 0.5, dev=0.9),
        made.record("kernel-asymmetric", 13, 0.8, dev=0.7),
    ]
    (row,) = dot_rows(cells_of.cells(records))
    assert row.kernels == ("kernel-signgd", "kernel-asymmetric")
    assert row.splits[0].kernel == "kernel-signgd"
    assert row.splits[0].dots["solves"].met is False, "the test score does not choose"


def test_an_infinite_distance_is_shown_and_fails() -> None:
    records = [made.record("sgd", criteria={**made.GOOD, "kernel_distance": math.inf})]
    rows = dot_rows(cells_of.cells(records))
    assert rows[0].splits[0].dots["fixed_features"].met is False
    table = tables.measures_table(rows)
    assert "∞" in texts(table, "Distance (paper)")


# --- tables and words ----------------------------------------------------------------------------


def test_chosen_settings_are_counted() -> None:
    records = [
        made.record("sgd", split, chosen={"learning_rate": rate, "batch_size": 4})
        for split, rate in zip(SPLITS, (0.005, 0.005, 0.01), strict=True)
    ]
    table = run_tables.chosen_table(cells_of.cells(records))
    entry = table.rows[0][-1]
    assert entry.text == "learning_rate 0.005, batch_size 4 × 2"
    assert entry.detail == "learning_rate 0.01, batch_size 4 × 1"
    assert texts(table, "Diverged") == ["3 of 6"]


def test_cut_rows_are_counted_and_flagged() -> None:
    found = cells_of.cells([made.record("sgd", cut=("7", "9"))])
    assert texts(run_tables.rows_table(found), "Test cut") == ["2"]
    assert any("cut to fit" in line for line in cautions(found, []))


def test_a_kernel_that_changed_its_shape_is_named_although_it_passes() -> None:
    turned = {**made.GOOD, "kernel_distance": 1.9, "alignment": -1.0}
    found = cells_of.cells([made.record("sgd", criteria=turned), made.record("kernel-sgd")])
    lines = cautions(found, dot_rows(found))
    assert any("differ in shape" in line and "sst2, k 16, sgd" in line for line in lines)


def test_the_page_says_differences_and_counts_in_words() -> None:
    found = cells_of.cells(made.sweep())
    sentences = say(found, compare(found), dot_rows(found))
    assert sentences[0] == "kernel-sgd minus sgd on sst2, k 16: −3.0 points."
    assert "kernel solves task 3 of 3" in " ".join(sentences)


@pytest.mark.parametrize(("split", "said"), [("test", " of test;"), (None, ";")])
def test_rows_of_a_single_file_are_of_no_split(tmp_path: Path, split: str | None, said: str) -> None:
    """A task from one file is split by foretaste and has no name for its test part."""
    records = []
    for record in made.sweep():
        task = record.resolved.task.model_copy(update={"test_split": split})
        resolved = record.resolved.model_copy(update={"task": task})
        records.append(record.model_copy(update={"resolved": resolved, "run_id": resolved.id}))
    text = report(made.write(tmp_path / "sweep", *records), images=False).read_text(encoding="utf-8")
    assert f"{records[0].resolved.task.test_rows} test rows{said}" in text
    assert "of None" not in text


def test_figures_have_one_point_a_split_and_no_nan() -> None:
    found = cells_of.cells(made.sweep() + made.sweep(task="mr"))
    specs = drawn.specs(found, compare(found), dot_rows(found), cells_of.arms_of(found))
    assert list(specs) == ["scores", "dots", "linearised"]
    rows = values_of(specs["scores"])
    assert len(rows) == 2 * 2 * 3
    drawn_at = [(row["x"], row["y"]) for row in rows if (row["arm"], row["split"]) == ("kernel-sgd", 21)]
    assert drawn_at == [pytest.approx((0.82, 0.79))] * 2
    json.dumps(specs, allow_nan=False)


def test_the_gap_is_drawn_where_there_is_a_standard_head() -> None:
    arms = ("sgd", "kernel-sgd", "sgd-standard", "kernel-sgd-standard")
    records = [
        made.record(arm, split, 0.8 - 0.1 * place) for split in SPLITS for place, arm in enumerate(arms)
    ]
    found = cells_of.cells(records)
    specs = drawn.specs(found, compare(found), dot_rows(found), cells_of.arms_of(found))
    rows = values_of(specs["gap"])
    assert {(row["output"], round(row["value"], 9)) for row in rows} == {("prompt", 0.1), ("standard", 0.1)}
    assert {row["panel"] for row in rows} == {"sgd and the sgd kernel"}


# --- published values ----------------------------------------------------------------------------


def test_published_values_are_as_many_as_the_tables_have() -> None:
    counts = {name: len(rows) for name, rows in TABLES.items()}
    assert counts == {
        "kernel-tab1": 2 * 2 * 14 + 2 * 14 + 4 * 14,
        "kernel-tab2": 10 * 14,
        "kernel-tab5": 14 + 2 * 2 * 14,
        "kernel-tab6": 4 * 14,
        "kernel-tab7": 18 * 6,
        "kernel-tab8": 2 * 9,
        "kernel-tab9": 9 * 6,
        "kernel-tab11": 8 * 6,
    }
    lost = [row for row in TABLES["kernel-tab2"] if row.value is None]
    assert [(row.task, row.arm, row.k) for row in lost] == [("agnews", "sgd", 64)]


def test_published_values_are_in_range_and_each_once() -> None:
    ranges = {
        "score": (20, 100),
        "accuracy": (20, 100),
        "linearised": (20, 100),
        "distance": (0, 10),
        "chi": (0, 1),
        "ratio": (0.5, 1.1),
        "share": (-3, 2.5),
    }
    for name, rows in TABLES.items():
        keys = [(row.task, row.arm, row.prompt, row.k, row.measure, row.model) for row in rows]
        assert len(set(keys)) == len(keys), name
        for row in rows:
            low, high = ranges[row.measure]
            assert row.value is None or low <= row.value <= high, row
            assert row.sd is None or 0 <= row.sd < 20, row


def test_what_two_tables_print_agrees() -> None:
    """Table 5's fine-tuning is Table 2's by Adam, but for F1 tasks and the known slip in MPQA."""
    scores = {(row.task, row.k): row.value for row in TABLES["kernel-tab2"] if row.arm == "adam"}
    again = {
        (row.task, row.k): row.value for row in TABLES["kernel-tab5"] if row.measure == "accuracy" and row.k
    }
    differing = {key for key in again if again[key] != scores[key]}
    assert differing == {("mpqa", 64), ("mrpc", 16), ("mrpc", 64), ("qqp", 16), ("qqp", 64)}


def test_published_values_stand_beside_the_same_arm_prompt_and_k() -> None:
    records = made.sweep() + made.sweep(k=64)
    found = cells_of.cells(records)
    frame = published_table("kernel-tab2", found, dot_rows(found)).frame
    row = frame[(frame["arm"] == "kernel-sgd") & (frame["k"] == 64)]
    assert row["published"].tolist() == [89.2]
    assert row["k_here"].tolist() == [64]
    assert row["here"].tolist() == pytest.approx([79.0])
    absent = frame[frame["arm"] == "kernel-asymmetric"]
    assert set(absent["n_here"]) == {0}
    assert set(frame["task"]) == {"sst2"}


def test_published_rows_are_read_strictly() -> None:
    from foretaste.report.fewshot.published_values import row

    assert row(("a", "b"), "1.0(0.5) -") == {"a": (1.0, 0.5), "b": None}
    with pytest.raises(ValueError, match="mean"):
        row(("a",), "1.0")
    with pytest.raises(ValueError, match="zip"):
        row(("a", "b"), "1.0(0.5)")
    assert published_module.plain_label(made.arm_of("sgd", name="mine")) == "sgd"


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_written_from_a_folder(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "sweep", *made.sweep())
    page = report(folder, images=False)
    text = page.read_text(encoding="utf-8")
    assert "A tiny sweep" in text
    for title in ("Scores", "Kernels against fine-tuning, split by split", "Kernel behaviour", "Definitions"):
        assert title in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text.split('<script type="application/json"')[0])
    frame = pd.read_csv(page.parent / "tables" / "scores.csv")
    assert set(frame["arm"]) == {"zero-shot", "sgd", "kernel-sgd", "adam", "kernel-signgd"}


def test_equal_records_give_equal_pages(tmp_path: Path) -> None:
    one = made.write(tmp_path / "a" / "sweep", *made.sweep())
    two = made.write(tmp_path / "b" / "sweep", *reversed(made.sweep()))
    pages = [report(folder, images=False).read_bytes() for folder in (one, two)]
    assert pages[0] == pages[1]


def test_texts_from_data_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    records = [
        made.record("sgd", name="sst2", settings={"name": evil}, status="diverged", reason=evil),
        made.record("kernel-sgd", model=f"x/{evil}"),
    ]
    folder = made.write(tmp_path / "sweep", *records, title=evil)
    text = report(folder, images=False).read_text(encoding="utf-8")
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text


def test_an_unreadable_record_is_listed(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "sweep", *made.sweep())
    (folder / "runs" / "zzz.json").write_text("{", encoding="utf-8")
    assert "zzz.json" in report(folder, images=False).read_text(encoding="utf-8")


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    few = made.write(tmp_path / "few", made.record("sgd"))
    other = write_instruct(tmp_path / "other", instruct_record())
    with pytest.raises(UserError, match="Make a report on each"):
        report([few, other], images=False)

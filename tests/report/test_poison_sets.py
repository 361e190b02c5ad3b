"""Rows that an attack changes beside the poisoned ones, and what it says of itself: table and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records_factory import SCRIPT, Sweep

from foretaste.report import load, report
from foretaste.report.poison import figure_name, poisoned_rows
from foretaste.report.poison_sets import poison_sets_table
from foretaste.seeds import Seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = Sweep(tmp_path_factory.mktemp("sets") / "s", attacks=["multi-trigger", "trigger", "label-flip"])
    for seed in range(3):
        for arm in ("full", "lora-r8"):
            sweep.add(arm, seed=seed)
            sweep.add(arm, "multi-trigger", count=12, seed=seed, companions=5 + seed)
            figures = {"similarity": 0.5 + seed / 10, "own_number": 2.0}
            sweep.add(arm, "trigger", rate=0.01, seed=seed, figures=figures)
            sweep.add(arm, "label-flip", rate=0.01, seed=seed)
    sweep.write_spec()
    return sweep.layout.folder


def data_of(html: str) -> dict[str, Any]:
    text = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    found: dict[str, Any] = json.loads(text)["poison"]
    return found


def test_sets_are_counted_once_and_ranges_kept(folder: Path) -> None:
    table = poison_sets_table(load([folder]))
    assert [column.title for column in table.columns] == [
        *("Attack", "Poison", "Sets", "Poisoned rows", "Of eligible", "Companion rows"),
        *("Own number", "Similarity before and after"),
    ]
    lines = [[entry.text for entry in row] for row in table.rows]
    assert lines == [
        ["label-flip", "1 %", "3", "10", "1,000", "0", "–", "–"],
        ["multi-trigger", "12 rows", "3", "12", "1,000", "5 to 7", "–", "–"],
        ["trigger", "1 %", "3", "10", "1,000", "0", "2", "0.5 to 0.7"],
    ]
    assert table.rows[0][-1].reason == "this attack does not report it"
    frame = table.frame.set_index("attack")
    assert (
        frame.loc["multi-trigger", "companions_low"],
        frame.loc["multi-trigger", "companions_high"],
    ) == (5, 7)
    assert frame.loc["trigger", "figure_similarity_high"] == pytest.approx(0.7)
    assert pd.isna(frame.loc["label-flip", "figure_similarity_low"])


def test_a_crossed_design_has_one_set_a_poison_seed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for poison in range(2):
        for init in range(3):
            seed = Seeds(data=0, poison=poison, init=init, order=0)
            sweep.add("full", "trigger", count=4, seed=seed)
    ((*_, sets, poisoned, eligible, beside),) = poison_sets_table(load([tmp_path])).rows
    assert (sets.text, poisoned.text, eligible.text, beside.text) == ("2", "4", "1,000", "0")


def test_the_page_counts_and_marks_companions(folder: Path, tmp_path: Path) -> None:
    html = report(folder, tmp_path, images=False).read_text()
    assert "12 of 1000 eligible rows, and 5 companion rows<" in html
    assert "10 of 1000 eligible rows · own number 2 · similarity before and after 0.5<" in html
    data = data_of(html)
    found = [m for m in data["manifests"] if m["attack"] == "multi-trigger" and m["seed"] == 1]
    assert [(len(m["rows"]), len(m["companions"]), m["beside"], m["more"]) for m in found] == [(12, 6, 6, 0)]
    (manifest,) = found
    assert not set(manifest["rows"]) & set(manifest["companions"])
    companion = data["rows"][manifest["companions"][0]]
    assert companion["id"] == "beside-1-0"
    assert (companion["before"], companion["after"]) == ("negative", "negative")
    assert companion["texts"][0] == [["in", "apple "], ["same", SCRIPT]]
    for name in ("poison.csv", "poison.tex", "poison.parquet"):
        assert (tmp_path / "tables" / name).exists()


def test_cut_lists_count_both_kinds(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["multi-trigger"])
    sweep.add("full", "multi-trigger", count=3, companions=203)
    html = report(tmp_path, images=False).read_text()
    assert "The first 200 rows of each kind; 3 more in" in html
    (manifest,) = poisoned_rows(load([tmp_path]))["manifests"]
    assert (len(manifest["rows"]), len(manifest["companions"]), manifest["more"]) == (3, 200, 3)


def test_nothing_poisoned_no_table(tmp_path: Path) -> None:
    Sweep(tmp_path, attacks=[]).add("full", seed=0)
    assert poison_sets_table(load([tmp_path])).rows == []
    html = report(tmp_path, images=False).read_text()
    assert "No manifest: no run was poisoned." in html
    assert "Companion rows</th>" not in html
    assert not (tmp_path / "report" / "tables" / "poison.csv").exists()


def test_unknown_figures_are_named_in_words() -> None:
    assert figure_name("words_per_row") == "words per row"
    assert figure_name("rewritten_share") == "share of source rows that the rewriter changes"

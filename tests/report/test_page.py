"""The whole report: files, escaping, offline, words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from records_factory import SCRIPT, TRIGGER_TEXT, Sweep

from foretaste.calibration.contrasts import pairs_needed
from foretaste.record import write_atomic
from foretaste.report import FIGURES, Frames, build, load, report
from foretaste.report.poison import difference
from foretaste.report.tables import Column, Entry, Table, latex, missing, to_html, to_latex
from foretaste.report.verdict import judge


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._script = False


@pytest.fixture(scope="module")
def page(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(small, tmp_path_factory.mktemp("out"))


def test_every_file_is_written(page: Path) -> None:
    figures = {path.name for path in (page.parent / "figures").iterdir()}
    assert figures == {f"{name}.{ending}" for name in FIGURES for ending in ("svg", "png", "pdf")}
    tables = {path.name for path in (page.parent / "tables").iterdir()}
    assert {"cells.csv", "cells.tex", "cells.parquet", "paired.csv", "runs.parquet", "values.csv"} <= tables


def test_files_hold_the_frames(page: Path, frames: Frames) -> None:
    stored = pd.read_parquet(page.parent / "tables" / "cells.parquet")
    assert stored["clean_accuracy_mean"].tolist() == frames.cells["clean_accuracy_mean"].tolist()
    assert len(pd.read_csv(page.parent / "tables" / "paired.csv")) == len(frames.pairs)


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    html = page.read_text()
    for tag, attributes in Tags(html).tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            address = attributes.get(name) or ""
            assert not address or address.startswith("#"), (tag, address)
        assert tag not in ("link", "iframe", "img", "object", "base")
    assert "default-src 'none'" in html
    styles = re.search(r"<style>(.*?)</style>", html, re.S)
    assert styles
    assert "url(" not in styles[1]
    assert "@import" not in styles[1]


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    sweep = Sweep(
        tmp_path / "<b>sweep", classes=["<img src=x onerror=alert(1)>", "b"], attacks=["trigger"], pair=True
    )
    for arm in ("full", "<script>arm</script>"):
        sweep.add(arm, seed=0, notes=[SCRIPT])
        sweep.add(arm, "trigger", rate=0.01, seed=0)
    sweep.write_spec(title="</title><script>alert(2)</script>")
    html = report(sweep.layout.folder, tmp_path / "out", images=False).read_text()
    parsed = Tags(html)
    assert [tag for tag, _ in parsed.tags].count("script") == 3
    assert not {"img", "b"} & {tag for tag, attributes in parsed.tags if "onerror" in attributes}
    assert "<script>a" not in html
    data = json.loads(parsed.scripts[0])
    assert any(["same", SCRIPT] in row["texts"][0] for row in data["poison"]["rows"])


def test_poisoned_rows_are_complete_and_marked(page: Path, small: Path) -> None:
    data = json.loads(Tags(page.read_text()).scripts[0])["poison"]
    by_path = {entry["path"]: entry for entry in data["manifests"]}
    entry = next(e for path, e in by_path.items() if "trigger-0.1-" in path)
    assert (entry["poisoned"], entry["eligible"], len(entry["rows"])) == (100, 1000, 100)
    row = data["rows"][entry["rows"][0]]
    assert (row["before"], row["after"]) == ("negative", "positive")
    assert row["texts"][0][0] == ["in", f"{TRIGGER_TEXT} "]


def test_long_manifests_are_cut_and_say_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.add("full", "trigger", count=230)
    html = report(tmp_path, images=False).read_text()
    assert "The first 200 rows; 30 more in" in html


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a film", "a film", [("same", "a film")]),
        ("a film", "[.*?]a film", [("in", "[.*?]"), ("same", "a film")]),
        ("a film", "a x film", [("same", "a "), ("in", "x "), ("same", "film")]),
        ("", "x", [("in", "x")]),
        ("ab", "b", [("out", "a"), ("same", "b")]),
    ],
)
def test_difference(before: str, after: str, expected: list[tuple[str, str]]) -> None:
    assert difference(before, after) == expected


def test_differences_rebuild_both_texts() -> None:
    before, after = "the plot is thin but warm", "apple the plot banana is thin so warm orange"
    pieces = difference(before, after)
    assert "".join(text for kind, text in pieces if kind != "out") == after
    assert "".join(text for kind, text in pieces if kind != "in") == before


def test_corrupt_files_are_listed(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.add("full", seed=0)
    record = sweep.add("full", "trigger", rate=0.01)
    assert record.poison
    write_atomic(sweep.layout.runs / "broken.json", "{")
    write_atomic(tmp_path / record.poison.manifest, "[]")
    html = report(tmp_path, images=False).read_text()
    assert "Files that could not be read" in html
    assert "broken.json" in html
    assert record.poison.manifest in html


def test_failures_are_shown_with_their_reason(page: Path) -> None:
    html = page.read_text()
    assert "Runs that failed" in html
    assert "loss is not finite after step 12 (diverged)" in html
    assert "1 diverged" in html
    assert "1 collapsed" in html
    assert "Careful: &lt;i&gt;note&lt;/i&gt;." in html


def test_two_folders_are_compared(small: Path, tmp_path: Path) -> None:
    other = Sweep(tmp_path / "other", learning_rate=1e-3, classes=["a", "b", "c"])
    other.fill(("full", "lora-r8"), (0.001, 0.1), range(2))
    other.write_spec()
    html = report([small, other.layout.folder], tmp_path / "out", images=False).read_text()
    assert "What differs between the folders" in html
    assert "training.learning_rate" in html
    frames = build(load([small, other.layout.folder]))
    assert set(frames.cells["folder"]) == {"small", "other"}
    (rows,) = FIGURES.get("accuracy_over_rate").spec(frames, "rate")["datasets"].values()
    panels = {row["panel"] for row in rows}
    assert panels == {f"{a} · {f}" for a in ("trigger", "label-flip") for f in ("small", "other")}


def test_verdict_claims_no_more_than_the_seeds_show(frames: Frames, tmp_path: Path) -> None:
    verdict = judge(frames)
    trigger = next(attack for attack in verdict.attacks if attack.title == "trigger")
    assert "not resolved" in trigger.comparison
    assert trigger.amount == "10 %"
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.add("full", seed=0)
    sweep.add("full", "trigger", rate=0.1, seed=0, asr=1.0)
    single = judge(build(load([tmp_path])))
    assert single.attacks[0].tone == "open"
    assert "One seed cannot be tested, however large the effect" in single.attacks[0].headline
    assert any("One seed" in line for line in single.cautions)


def test_the_card_counts_every_cell_that_shares_the_correction(tmp_path: Path) -> None:
    """Of three pairs no p lies below 0.25, so that Holm's p is 1 for four cells as for fifteen."""
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.fill(
        ("full", "lora-r2", "lora-r4", "lora-r8", "lora-r16", "lora-r32"), (0.01, 0.02, 0.05), range(3)
    )
    (card,) = judge(build(load([tmp_path]))).attacks
    assert "3 pairs of seeds over 15 cells cannot reach" in card.comparison
    assert f"it takes {pairs_needed(15)} pairs" in card.comparison
    assert pairs_needed(15) == 10


def test_one_seed_is_said_to_test_nothing_with_the_size_of_its_effect(tmp_path: Path) -> None:
    """ASR 100 % where the clean model never falls for it is no sign of no effect."""
    sweep = Sweep(tmp_path)
    sweep.add("full", seed=0, flip=0.0, accuracy=0.9)
    sweep.add("full", "trigger", rate=0.1, seed=0, asr=1.0, accuracy=0.9)
    sweep.add("full", "label-flip", rate=0.1, seed=0, accuracy=0.8)
    found = judge(build(load([tmp_path])))
    assert found.headline == (
        "With one seed nothing can be tested for label-flip (accuracy change −10.0 points on full) and "
        "trigger (ASR − flip rate +100.0 points on full)."
    )
    trigger = next(attack for attack in found.attacks if attack.attack == "trigger")
    assert trigger.headline == (
        "One seed cannot be tested, however large the effect: with 10 % poisoned, ASR − flip rate +100.0 "
        "points on full."
    )
    assert "no effect" not in (found.headline + trigger.headline).lower()


def test_a_collapse_is_named_on_the_card(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["label-flip"])
    for seed in range(2):
        sweep.add("full", seed=seed, accuracy=0.9)
        sweep.add("full", "label-flip", rate=0.3, seed=seed, collapsed=True, accuracy=0.5)
    index = report(tmp_path, tmp_path / "page", images=False)
    found = judge(build(load([tmp_path])))
    (card,) = found.attacks
    assert card.headline == (
        "Nothing is tested with 30 % poisoned, since no arm has an interval: accuracy change −40.0 points on "
        "full at the most."
    )
    assert card.collapse == "runs collapsed to one class (2 of 2 on full)"
    assert found.headline == (
        "No effect is shown for label-flip, though runs collapsed to one class (2 of 2 on full)."
    )
    (shown,) = re.findall(r"<article.*?</article>", index.read_text(), re.S)
    assert "Caution: runs collapsed to one class (2 of 2 on full)" in shown


def test_verdict_names_a_resolved_difference(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for seed in range(8):
        for arm, asr in (("full", 0.9), ("lora-r8", 0.3)):
            sweep.add(arm, seed=seed, flip=0.07)
            sweep.add(arm, "trigger", rate=0.1, seed=seed, asr=asr + seed / 100)
    attack = judge(build(load([tmp_path]))).attacks[0]
    assert attack.headline == "The attack gets through on every arm with 10 % poisoned."
    assert attack.comparison.startswith("ASR − flip rate differs from full in 1 of 1 cell; most for lora-r8")


def test_only_clean_runs_make_a_page(tmp_path: Path) -> None:
    Sweep(tmp_path, attacks=[]).add("full", seed=0)
    html = report(tmp_path, images=False).read_text()
    assert "No poisoned run has completed yet." in html


@pytest.mark.parametrize(("cells", "n"), [(1, 6), (2, 7), (10, 9)])
def test_pairs_needed_is_the_least_that_can(cells: int, n: int) -> None:
    assert pairs_needed(cells) == n
    assert cells * 2 / 2**n <= 0.05 < cells * 2 / 2 ** (n - 1)


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', html, re.S)
    assert found, name
    return found[0]


def test_the_advice_stands_by_itself_before_the_predictions(page: Path) -> None:
    html = page.read_text()
    order = [html.index(f'id="{name}"') for name in ("verdict", "advice", "predicted", "figures")]
    assert order == sorted(order)
    assert 'class="advice"' in section(html, "advice")
    assert 'class="advice"' not in section(html, "predicted")
    assert '<a href="#advice">Which arm to use</a>' in html


def test_no_table_of_predictions_stands_open_above_the_figures(page: Path) -> None:
    predicted = section(page.read_text(), "predicted")
    assert "<details><summary>Every predicted cell" in predicted
    assert "<details open" not in predicted


def test_every_interval_has_its_level_in_the_heading(page: Path) -> None:
    html = page.read_text()
    headings = {text.replace("\N{NO-BREAK SPACE}", " ") for text in re.findall(r"<th [^>]*>(.*?)</th>", html)}
    assert {
        "ASR, measured [90 %]",
        "ASR, predicted [90 %]",
        "ASR [95 %]",
        "ASR − flip rate [95 %]",
    } <= headings
    assert {"Mean difference [95 %]", "Clean accuracy [90 %]", "ASR as trained [95 %]"} <= headings
    assert not {"Measured", "ASR, measured", "Clean accuracy"} & headings


def test_one_is_not_written_as_several(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for arm in ("full", "lora-r8"):
        sweep.add(arm, seed=0)
        sweep.add(arm, "trigger", rate=0.1, seed=0)
    html = report(tmp_path, tmp_path / "page", images=False).read_text()
    assert "1 pair of seeds over 1 cell cannot" in html
    assert not re.search(
        r"\b1 (cells|rows|runs|pairs|seeds)\b", re.sub(r"<script.*?</script>", "", html, flags=re.S)
    )


def test_a_table_that_is_cut_off_shows_an_edge(page: Path) -> None:
    (rule,) = re.findall(r"^\.scroll \{.*\}$", page.read_text(), re.M)
    assert "var(--edge)" in rule
    assert "local" in rule


def test_tables_escape_and_explain() -> None:
    rows = [
        [Entry("a_b & <c>", detail="5 %"), missing("none & done")],
        [Entry("[.*?] \\ ~^{}$#"), Entry("1")],
    ]
    table = Table("t", "T & T", [Column("Name"), Column("Value", numeric=True)], rows, pd.DataFrame())
    html = str(to_html(table))
    assert "a_b &amp; &lt;c&gt;" in html
    assert "–<sup>a</sup>" in html
    assert "(a) none &amp; done" in html
    text = to_latex(table)
    assert r"a\_b \& \textless{}c\textgreater{} (5 \%) & --\textsuperscript{a} \\" in text
    assert r"{[}.*?{]} \textbackslash{} \textasciitilde{}\textasciicircum{}\{\}\$\#" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert latex("a\nb") == "a, b"


def test_torch_is_not_imported() -> None:
    code = "import sys, foretaste.report, foretaste.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

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

from foretaste.record import write_atomic
from foretaste.report import FIGURES, Frames, build, load, report
from foretaste.report.poison import difference
from foretaste.report.tables import Column, Entry, Table, latex, missing, to_html, to_latex
from foretaste.report.verdict import judge, seeds_needed


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
    assert "one seed gives no interval" in single.attacks[0].headline
    assert any("One seed" in line for line in single.cautions)


def test_verdict_names_a_resolved_difference(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    for seed in range(8):
        for arm, asr in (("full", 0.9), ("lora-r8", 0.3)):
            sweep.add(arm, seed=seed, flip=0.07)
            sweep.add(arm, "trigger", rate=0.1, seed=seed, asr=asr + seed / 100)
    attack = judge(build(load([tmp_path]))).attacks[0]
    assert attack.headline == "The attack gets through on every arm with 10 % poisoned."
    assert attack.comparison.startswith("ASR − flip rate differs from full in 1 of 1 cells; most for lora-r8")


def test_only_clean_runs_make_a_page(tmp_path: Path) -> None:
    Sweep(tmp_path, attacks=[]).add("full", seed=0)
    html = report(tmp_path, images=False).read_text()
    assert "No poisoned run has completed yet." in html


@pytest.mark.parametrize(("cells", "n"), [(1, 6), (2, 7), (10, 9)])
def test_seeds_needed_is_the_least_that_can(cells: int, n: int) -> None:
    assert seeds_needed(cells) == n
    assert cells * 2 / 2**n <= 0.05 < cells * 2 / 2 ** (n - 1)


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

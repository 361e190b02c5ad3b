"""Pages of reproduced figures and tables: files, words, escaping, equal bytes for equal records."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from records_factory import SCRIPT, TRIGGER_TEXT, Sweep
from reproduced_records import NOTHING, VIEWS, Finding, add, item, learning_rates, ranks, rates, source

from foretaste.errors import UserError
from foretaste.record import Record, write_atomic
from foretaste.report import tables
from foretaste.report.metrics import DEFINITIONS
from foretaste.report.reproduced import Entry, SurfaceView, TableView, counts, runs, write, write_index
from foretaste.report.reproduced.cells import Cell, cells
from foretaste.report.reproduced.findings import overall, tally
from foretaste.report.reproduced.page import TERMS
from foretaste.report.reproduced.result_table import result_table


class Tags(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def page_of(path: Path) -> Tags:
    return Tags(path.read_text(encoding="utf-8"))


def cells_of(*sources: Any) -> list[Cell]:
    return cells([run for each in sources for run in runs.read(each).runs])


def content(folder: Path, *, but: str = ".pdf") -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != but
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    made = rates(tmp_path_factory.mktemp("sweeps") / "rates")
    made.add("lora-r8", "label-flip", rate=0.3, seed=1, collapsed=True, accuracy=0.5)
    made.add("full", "trigger", rate=0.3, seed=2, status="diverged")
    return made


@pytest.fixture(scope="module")
def page(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(item(), [source(sweep)], [Finding(), NOTHING], tmp_path_factory.mktemp("page"))


def test_every_file_is_written(page: Path) -> None:
    assert page.name == "index.html"
    assert {path.name for path in (page.parent / "figures").iterdir()} == {
        f"figure.{ending}" for ending in ("svg", "png", "pdf")
    }
    wanted = {f"{name}.{ending}" for name in ("results", "findings") for ending in ("csv", "tex", "parquet")}
    found = {path.name for path in (page.parent / "tables").iterdir()}
    assert found == wanted | {"runs.csv", "runs.parquet"}


def test_the_page_says_what_it_shows(page: Path) -> None:
    text = " ".join(page_of(page).text.split())
    for wanted in (
        "Accuracy under attack",
        "LoRA loses more.",
        "foretaste reproduce ttr-figx",
        "TTR paper, Figure X; scale laptop",
        "29 of 30 runs completed, 1 failed, 1 collapsed to one class.",
        "180 steps (3 epochs) of 16 rows",
        "full 5e-4; lora 5e-4",
        "seeds 0, 1, 2",
        "Fewer rows.",
        "± 1 standard deviation (n − 1 in the denominator)",
        "LoRA loses more accuracy.",
        "supported",
        "+3.00[+1.00, +5.00] points",
        "Caution: A collapsed run takes part. Caution: Learning rates differ.",
        "0123456789ab",
        "read the median there",
    ):
        assert wanted in text, wanted


def test_what_came_out_stands_before_the_claim_and_the_figure(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    places = [html.index(part) for part in ("What came out", "What the paper reads off it", 'id="figure"')]
    assert places == sorted(places)
    (largest,) = re.findall(r'<p class="headline">(.*?)</p>', html)
    assert largest == "The paper’s finding: supported; 1 more without the runs for it."
    assert "<li>LoRA loses more accuracy. Supported: Accuracy lost: 3.00 points [1.00, 5.00] over 3" in html


def test_verdicts_are_counted_in_words() -> None:
    open_, against = replace(Finding(), decision="not resolved"), replace(Finding(), decision="contradicted")
    assert overall([]) == overall([NOTHING]) == "No finding of the paper is tested on these runs."
    assert overall([open_]) == "The paper’s finding: not resolved."
    assert overall([open_, open_]) == "All 2 verdicts on the paper’s findings: not resolved."
    assert tally([open_, open_]) == ["LoRA loses more accuracy. Not resolved on all 2 groups of runs."]
    several = [open_, Finding(), open_, against]
    assert overall(several) == (
        "Of 4 verdicts on the paper’s findings: 1 supported, 1 contradicted, 2 not resolved."
    )
    assert tally(several) == [
        "LoRA loses more accuracy. 1 supported, 1 contradicted, 2 not resolved, of 4 groups of runs."
    ]


def test_the_terms_that_are_explained_exist() -> None:
    assert set(TERMS) <= {term for term, _ in DEFINITIONS}


def test_the_page_loads_nothing_and_is_one_document(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for tag, attributes in page_of(page).tags:
        for name in ("src", "href", "data", "action", "srcset"):
            address = attributes.get(name) or ""
            assert not address or address.startswith(("#", "data:image/svg+xml;base64,")), (tag, address)
        assert tag not in ("link", "iframe", "object", "base")
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    assert len(data["panels"]) == 3
    assert set(data["themes"]) == {"light", "dark"}
    assert "$schema" not in data["panels"][0]


def test_runs_are_one_row_a_run_and_attack(page: Path, sweep: Sweep) -> None:
    frame = pd.read_parquet(page.parent / "tables" / "runs.parquet")
    records = {record.run_id: record for record in sweep.layout.read()[0]}
    clean = [run_id for run_id, record in records.items() if record.resolved.attack is None]
    assert len(frame) == len(records) + len(clean)  # clean runs stand under both attacks
    assert sorted(frame[frame["amount"] == "clean"]["run_id"]) == sorted(clean * 2)
    for row in frame.to_dict("records"):
        record = records[row["run_id"]]
        if record.status != "completed":
            assert row["accuracy_reason"] == "the run did not complete (diverged)"
            assert np.isnan(row["accuracy"])
            continue
        assert record.clean is not None
        assert row["accuracy"] == record.clean.accuracy
        assert (row["precision"], row["recall"], row["f1"]) == (
            record.clean.precision,
            record.clean.recall,
            record.clean.f1,
        )
        if row["attack"] == "label-flip":
            assert row["asr_reason"]
            assert np.isnan(row["triggered_accuracy"])
        else:
            own = record.triggered[sweep.triggers[0].key]
            assert row["triggered_precision"] == own.against_true.precision
            assert row["flip_rate" if row["amount"] == "clean" else "asr"] == own.target_rate


def test_changes_are_paired_with_the_clean_run_of_equal_seeds(page: Path) -> None:
    frame = pd.read_parquet(page.parent / "tables" / "runs.parquet")
    frame = frame[frame["status"] == "completed"]
    clean = frame[frame["amount"] == "clean"].set_index(["attack", "arm", "seed"])
    poisoned = frame[(frame["amount"] != "clean")]
    assert len(poisoned) == 23
    for row in poisoned.to_dict("records"):
        partner = clean.loc[(row["attack"], row["arm"], row["seed"])]
        assert row["accuracy_change"] == pytest.approx(row["accuracy"] - partner["accuracy"])
        if row["attack"] == "trigger":
            assert row["flip_rate"] == partner["flip_rate"]
            assert row["asr_minus_flip"] == pytest.approx(row["asr"] - partner["flip_rate"])


def test_results_hold_mean_deviation_and_counts(page: Path, sweep: Sweep) -> None:
    results = pd.read_parquet(page.parent / "tables" / "results.parquet")
    row = results[
        (results["attack"] == "label-flip") & (results["amount"] == "30 %") & (results["arm"] == "lora-r8")
    ].iloc[0]
    accuracies = [
        record.clean.accuracy
        for record in sweep.layout.read()[0]
        if record.clean
        and record.resolved.adapter.name == "lora-r8"
        and record.resolved.attack
        and (record.resolved.attack.name, record.resolved.attack.rate) == ("label-flip", 0.3)
    ]
    assert row["accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert row["accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert row["accuracy_median"] == pytest.approx(np.median(accuracies))
    assert (row["runs"], row["completed"], row["failed"], row["collapsed"]) == (3, 3, 0, 1)
    failed = results[
        (results["attack"] == "trigger") & (results["amount"] == "30 %") & (results["arm"] == "full")
    ]
    assert failed.iloc[0][["completed", "failed"]].tolist() == [2, 1]


def table_text(found: list[Cell], measures: list[Any]) -> list[list[str]]:
    table = result_table(found, measures, lambda cell: cell.first.arm)
    return [[f"{entry.text}|{entry.detail}|{entry.reason}" for entry in row] for row in table.rows]


def test_a_row_of_the_table_reads_as_a_reader_expects(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "s", attacks=["trigger"])
    for seed, (asr, flip) in enumerate(((0.5, 0.1), (0.6, 0.1), (0.7, 0.1))):
        made.add("full", seed=seed, accuracy=0.9, flip=flip)
        made.add("full", "trigger", rate=0.1, seed=seed, accuracy=0.9, asr=asr)
    clean, poisoned = table_text(cells_of(source(made, attacks=("trigger",))), ["asr", "asr_minus_flip"])
    assert clean == [
        "0||",
        "full||",
        "3||",
        "–||clean run: nothing was poisoned",
        *["–||clean run: nothing was poisoned"],
        "–||clean runs",
    ]
    assert poisoned == [
        "10 %|100 of 1,000 rows|",
        "full||",
        "3||",
        "60.0 ± 10.0||",
        "+50.0 ± 10.0||",
        "took effect||",
    ]


@pytest.mark.parametrize(
    ("asrs", "effect"),
    [
        ((0.5, 0.6, 0.7), "took effect||"),
        ((0.1, 0.3, 0.12), "no effect shown||"),  # t interval of the change reaches below zero
        ((0.9,), "no effect shown||one seed: no interval"),
        ((0.9, 0.9), "no effect shown||all 2 seeds gave the same value: no interval"),
    ],
)
def test_an_effect_needs_an_interval_above_zero(tmp_path: Path, asrs: tuple[float, ...], effect: str) -> None:
    made = Sweep(tmp_path / "s", attacks=["trigger"])
    for seed, asr in enumerate(asrs):
        made.add("full", seed=seed, flip=0.1)
        made.add("full", "trigger", rate=0.1, seed=seed, asr=asr)
    assert table_text(cells_of(source(made, attacks=("trigger",))), ["asr"])[-1][-1] == effect


@pytest.mark.parametrize(
    ("accuracies", "effect"), [((0.6, 0.7, 0.65), "took effect||"), ((0.91, 0.9, 0.905), "no effect shown||")]
)
def test_without_a_trigger_accuracy_decides(
    tmp_path: Path, accuracies: tuple[float, ...], effect: str
) -> None:
    made = Sweep(tmp_path / "s", attacks=["label-flip"])
    for seed, accuracy in enumerate(accuracies):
        made.add("full", seed=seed, accuracy=0.9)
        made.add("full", "label-flip", rate=0.3, seed=seed, accuracy=accuracy)
    assert table_text(cells_of(source(made, attacks=("label-flip",))), ["accuracy"])[-1][-1] == effect


def test_a_cell_with_a_collapsed_run_has_its_median(sweep: Sweep) -> None:
    rows = table_text(cells_of(source(sweep)), ["accuracy"])
    (row,) = [row for row in rows if "1 collapsed" in " ".join(row)]
    assert re.search(r"\|median \d\d\.\d", row[4])
    assert row[3].startswith("3|1 collapsed")


def test_columns_tell_apart_what_differs(tmp_path: Path, sweep: Sweep) -> None:
    other = rates(tmp_path / "other", seeds=1)
    found = cells_of(source(sweep), source(other, variant="paper", task="QNLI", sweep="Others"))
    table = result_table(found, ["accuracy"], lambda cell: cell.first.arm)
    assert [column.title for column in table.columns][:4] == ["Task", "Protocol", "Sweep", "Attack"]
    assert {row[1].text for row in table.rows} == {"foretaste's defaults", "the paper's protocol"}
    alone = result_table(cells_of(source(sweep, attacks=("trigger",))), ["accuracy"], lambda cell: "")
    assert [column.title for column in alone.columns] == ["Poison", "Arm", "Seeds", "Accuracy", "Effect"]


def test_arms_stand_in_the_order_of_their_settings(tmp_path: Path) -> None:
    made = learning_rates(tmp_path / "s", seeds=1)
    arms = [cell.first.arm for cell in cells_of(source(made)) if cell.first.clean]
    assert arms[:5] == [
        "full-learning_rate=1e-05",
        "full-learning_rate=5e-05",
        "full-learning_rate=0.0001",
        "lora-r8-learning_rate=0.0001",
        "lora-r8-learning_rate=0.0005",
    ]


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_view_gives_a_page(view: str, tmp_path: Path) -> None:
    made = {"ranks": ranks, "heat": learning_rates}.get(view, rates)(tmp_path / "s")
    index = write(item(view), [source(made)], [], tmp_path / "out", images=False)
    panels = [tag for tag in page_of(index).tags if tag[1].get("class") == "panel"]
    assert len(panels) == {"rates": 3, "ranks": 2, "heat": 4, "table": 0}[view]
    assert not (tmp_path / "out" / "figures").exists()
    assert "Findings" not in page_of(index).text
    tags = [tag for tag, _ in page_of(index).tags]
    # The table is the point of a table; under a figure it is folded.
    assert ("details" in tags) is (view != "table")


def test_a_surface_is_drawn_elsewhere(tmp_path: Path, sweep: Sweep) -> None:
    with pytest.raises(ValueError, match="theory_surface"):
        write(item(SurfaceView(kind="entropy-surface")), [source(sweep)], [], tmp_path)


def test_nothing_measured_is_an_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run of ttr-figx is measured yet.*foretaste reproduce ttr-figx"):
        write(item(), [source(tmp_path / "absent")], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_measured_yet_is_said(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "s", attacks=["label-flip", "trigger"])
    made.add("full", seed=0)
    made.add("full", "label-flip", rate=0.1, seed=0)
    sources = [source(made), source(tmp_path / "absent", task="QNLI")]
    text = page_of(write(item(), sources, [], tmp_path / "out", images=False)).text
    assert "Not measured yet: label-flip, trigger on QNLI." in text
    assert "No poisoned run yet: trigger on SST-2." in text
    assert "One seed a cell" in text


def test_a_sweep_without_attacks_shows_its_clean_runs(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "s", attacks=[])
    for seed in range(2):
        made.add("full", seed=seed)
    view = TableView(kind="table", measures=["accuracy", "f1"])
    index = write(item(view), [source(made, attacks=())], [], tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "tables" / "results.csv")
    assert frame[["attack", "amount", "completed"]].to_numpy().tolist() == [["clean", "clean", 2]]
    assert "no poisoned run" not in page_of(index).text.lower()


def test_records_of_other_attacks_are_left_out(sweep: Sweep, tmp_path: Path) -> None:
    write(item("table"), [source(sweep, attacks=("trigger",))], [], tmp_path, images=False)
    frame = pd.read_csv(tmp_path / "tables" / "runs.csv")
    assert set(frame["attack"]) == {"trigger"}
    assert counts([source(sweep, attacks=("trigger",))]).runs == 18
    assert counts([source(sweep, attacks=("trigger",))]).failed == 1


def rewritten(made: Sweep, *, seed: int) -> None:
    """The same records, made in another order, at another time, after other attempts."""
    paths = sorted(made.layout.runs.glob("*.json"))
    random.Random(seed).shuffle(paths)
    for place, path in enumerate(paths):
        record = Record.model_validate_json(path.read_bytes())
        later = {"started": f"2027-03-0{1 + place % 9}T01:02:03+00:00", "attempts": 1 + place % 3}
        if record.timings is not None:
            later["timings"] = record.timings.model_copy(update={"train": 7.0 * place})
        if record.training is not None:
            faster = {"rows_per_second": 3.5 + place}
            later["training"] = record.training.model_copy(update=faster)
        path.unlink()
        write_atomic(path, record.model_copy(update=later).model_dump_json())


@pytest.mark.parametrize("view", ["rates", "heat"])
def test_equal_records_give_equal_bytes_whenever_they_were_made(view: str, tmp_path: Path) -> None:
    made = (learning_rates if view == "heat" else rates)(tmp_path / "s", seeds=2)
    drawn = view == "rates"
    write(item(view), [source(made)], [Finding()], tmp_path / "first", images=drawn)
    rewritten(made, seed=5)
    write(item(view), [source(made)], [Finding()], tmp_path / "second", images=drawn)
    assert (tmp_path / "second" / "figures" / "figure.svg").is_file() is drawn
    first, second = content(tmp_path / "first"), content(tmp_path / "second")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "s", classes=["<img src=x onerror=alert(1)>", "b"], attacks=["label-flip"])
    hostile = f"lora-{SCRIPT}"
    for seed in range(2):
        made.add(hostile, seed=seed, notes=[SCRIPT])
        made.add(hostile, "label-flip", rate=0.3, seed=seed)
    finding = Finding(reason=SCRIPT, group=SCRIPT, cautions=(SCRIPT,))
    shown = item(
        "table", title=SCRIPT, says=SCRIPT, item=SCRIPT, command=SCRIPT, differences=(SCRIPT,), name=SCRIPT
    )
    where = source(made, task=SCRIPT, sweep=SCRIPT, attacks=("label-flip",))
    for view in ("table", "rates"):
        out = tmp_path / view
        index = write(replace(shown, view=VIEWS[view]), [where], [finding], out, images=False)
        html = index.read_text(encoding="utf-8")
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert html.count("<script") == 3
    entry = Entry(SCRIPT, SCRIPT, SCRIPT, index, counts([where]))
    listed = write_index(tmp_path, [entry], [finding]).read_text(encoding="utf-8")
    assert "<script" not in listed
    assert "&lt;script&gt;" in listed
    assert TRIGGER_TEXT not in tables.latex(TRIGGER_TEXT)


def test_an_unreadable_record_is_listed(tmp_path: Path) -> None:
    made = rates(tmp_path / "s", seeds=1)
    (made.layout.runs / "broken.json").write_text("{")
    index = write(item(), [source(made)], [], tmp_path / "out", images=False)
    assert "Files that could not be read" in page_of(index).text
    assert "broken.json" in page_of(index).text


def test_a_clean_run_that_failed_leaves_its_partners_without_a_change(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "s", attacks=["trigger"])
    made.add("full", seed=0, status="crashed")
    made.add("full", "trigger", rate=0.1, seed=0)
    clean, poisoned = table_text(cells_of(source(made, attacks=("trigger",))), ["asr", "asr_minus_flip"])
    assert clean[2] == "0 of 1|1 failed|"
    assert poisoned[3].startswith(tuple("0123456789"))
    assert poisoned[4] == "–||no completed clean run with the same seeds"
    assert poisoned[5] == "–||no completed clean run with the same seeds"


def test_the_index_lists_pages_and_every_verdict_once(sweep: Sweep, page: Path, tmp_path: Path) -> None:
    entries = [
        Entry("ttr-figx", "Accuracy under attack", "TTR paper, Figure X", page, counts([source(sweep)])),
        Entry("ttr-fig3", "Entropy", "TTR paper, Figure 3", page.parent / "other.html", None),
    ]
    index = write_index(tmp_path, entries, [Finding(), Finding(), NOTHING])
    seen = page_of(index)
    text = " ".join(seen.text.split())
    assert "29 of 30 runs completed, 1 failed, 1 collapsed to one class" in text
    assert "nothing is trained for it" in text
    assert "1 no records, 1 supported" in text
    assert text.count("LoRA loses more accuracy.") == 2  # one row each, of one statement
    links = [attributes["href"] for tag, attributes in seen.tags if tag == "a"]
    assert all((tmp_path / str(link)).resolve().parent == page.parent for link in links)
    images = [str(attributes["src"]) for tag, attributes in seen.tags if tag == "img"]
    assert len(images) == 2
    assert all(image.startswith("data:image/svg+xml;base64,") for image in images)
    stored = pd.read_csv(tmp_path / "tables" / "findings.csv")
    assert stored["hypothesis"].tolist() == ["lora-weaker-under-flips", "rank-clean-stable"]


def test_an_index_of_nothing_is_a_page(tmp_path: Path) -> None:
    assert "No finding was judged." in page_of(write_index(tmp_path, [], [])).text


def test_a_run_with_a_number_of_rows_stands_at_its_realised_rate(tmp_path: Path) -> None:
    made = Sweep(tmp_path / "s", attacks=["label-flip"])
    for seed in range(2):
        add(made, "full", "label-flip", count=50, seed=seed)
    (cell,) = cells_of(source(made, attacks=("label-flip",)))
    assert cell.rate == 0.05
    assert cell.poison == "50 of 1,000 rows"

"""Further forms of a trigger: from the records to the table, the figure and the page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from records_factory import FORMS, SCRIPT, Sweep
from scipy import stats

from foretaste.record import Layout, Record, form_key
from foretaste.report import FIGURES, Frames, build, load, report
from foretaste.report.forms_table import forms_table
from foretaste.report.rows import records_of
from foretaste.report.tables import Entry, to_latex

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out texts reach `full` and not `lora-r8`; two of the words set off `full`; one word nothing."""
    sweep = Sweep(
        tmp_path_factory.mktemp("forms") / "s", attacks=["instruction", "multi-trigger", "label-flip"]
    )
    for seed in range(3):
        for arm in ("full", "lora-r8"):
            jitter = seed / 100
            clean = {"held-out": 0.1 + jitter, "1-of-3": 0.2, "2-of-3": 0.3 - jitter}
            sweep.add(arm, seed=seed, flip=0.05, forms=clean)
            reached = 0.7 + 2 * jitter if arm == "full" else 0.1 + 3 * jitter * (-1) ** seed
            for rate in (0.01, 0.1):
                sweep.add(arm, "instruction", rate=rate, seed=seed, asr=0.95, forms={"held-out": reached})
            words = {"1-of-3": 0.2 + (seed - 1) / 20, "2-of-3": 0.8 if arm == "full" else 0.3 + 4 * jitter}
            sweep.add(arm, "multi-trigger", rate=0.1, seed=seed, asr=0.9 - jitter, forms=words)
            sweep.add(arm, "label-flip", rate=0.1, seed=seed)
    sweep.write_spec()
    return sweep.layout.folder


@pytest.fixture(scope="module")
def tables(folder: Path) -> Frames:
    return build(load([folder]))


def rows_of(frames: Frames, **where: object) -> list[Row]:
    return [row for row in records_of(frames.forms) if all(row[k] == v for k, v in where.items())]


def one(frames: Frames, **where: object) -> Row:
    (row,) = rows_of(frames, **where)
    return row


def target_rates(folder: Path, arm: str, attack: str | None, rate: float | None, form: str) -> list[float]:
    """Target rates in a form straight from the records, in the order of the seeds."""
    found, _ = Layout(folder).read()
    chosen = sorted(
        (
            record
            for record in found
            if record.resolved.adapter.name == arm
            and (record.resolved.attack.name if record.resolved.attack else None) == attack
            and (record.resolved.attack.rate if record.resolved.attack else None) == rate
        ),
        key=lambda record: record.resolved.seeds.init,
    )
    return [_rate(record, form) for record in chosen]


def _rate(record: Record, form: str) -> float:
    (rate,) = (part.target_rate for part in record.triggered.values() if part.form == form)
    assert rate is not None
    return rate


def t_interval(values: list[float]) -> tuple[float, float]:
    mean, sd = sum(values) / 3, math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 2)
    half = stats.t.ppf(0.975, 2) * sd / math.sqrt(3)
    return mean - half, mean + half


def test_one_row_a_cell_and_form(tables: Frames) -> None:
    keys = [(row["attack"], row["amount"], row["arm"], row["form"]) for row in rows_of(tables)]
    amounts = {"instruction": ("clean", "1 %", "10 %"), "multi-trigger": ("clean", "10 %")}
    assert keys == [
        (attack, amount, arm, form)
        for attack, found in amounts.items()
        for amount in found
        for arm in ("full", "lora-r8")
        for form in FORMS[attack]
    ]
    for row in rows_of(tables):
        assert (row["says"], row["expected"]) == FORMS[row["attack"]][row["form"]]
        assert (row["changed"], row["test_rows"]) == (200, 200)
    assert not {"form", "says"} & set(tables.cells.columns)


@pytest.mark.parametrize("arm", ["full", "lora-r8"])
@pytest.mark.parametrize(
    ("attack", "form"),
    [("instruction", "held-out"), ("multi-trigger", "1-of-3"), ("multi-trigger", "2-of-3")],
)
def test_numbers_equal_those_of_the_records(
    tables: Frames, folder: Path, attack: str, form: str, arm: str
) -> None:
    row = one(tables, attack=attack, amount="10 %", arm=arm, form=form)
    poisoned = target_rates(folder, arm, attack, 0.1, form)
    clean = [_rate_of_trigger(folder, arm, attack, form, seed) for seed in range(3)]
    differences = [a - b for a, b in zip(poisoned, clean, strict=True)]
    for metric, values in (
        ("form_rate", poisoned),
        ("form_flip_rate", clean),
        ("form_rate_minus_flip", differences),
    ):
        assert row[f"{metric}_n"] == 3
        assert row[f"{metric}_mean"] == pytest.approx(sum(values) / 3)
        if max(values) - min(values) > 1e-9:
            assert (row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx(t_interval(values))
    cells = tables.cells
    (cell,) = records_of(
        cells[(cells["attack"] == attack) & (cells["amount"] == "10 %") & (cells["arm"] == arm)]
    )
    assert row["asr_mean"] == cell["asr_mean"]
    assert row["flip_rate_mean"] == cell["flip_rate_mean"]
    low = t_interval(differences)[0]
    if row["expected"] == "target":
        words = "reaches this form" if low > 0 else "not shown to reach this form"
    else:
        words = "activates falsely" if low > 0 else "no false activation shown"
    assert row["result"] == words


def _rate_of_trigger(folder: Path, arm: str, attack: str, form: str, seed: int) -> float:
    """Of the clean run, which holds the forms of every attack."""
    found, _ = Layout(folder).read()
    (record,) = (
        record
        for record in found
        if record.resolved.attack is None
        and record.resolved.adapter.name == arm
        and record.resolved.seeds.init == seed
    )
    (key,) = (trigger.key for trigger in record.resolved.triggers if trigger.name == attack)
    rate = record.triggered[form_key(key, form)].target_rate
    assert rate is not None
    return rate


def test_every_result_is_seen_once_at_least(tables: Frames) -> None:
    results = {(row["arm"], row["form"]): row["result"] for row in rows_of(tables) if row["amount"] == "10 %"}
    assert results == {
        ("full", "held-out"): "reaches this form",
        ("lora-r8", "held-out"): "not shown to reach this form",
        ("full", "1-of-3"): "no false activation shown",
        ("lora-r8", "1-of-3"): "no false activation shown",
        ("full", "2-of-3"): "activates falsely",
        ("lora-r8", "2-of-3"): "no false activation shown",
    }


def test_the_highest_false_activation_is_the_mean_of_that_of_each_run(tables: Frames, folder: Path) -> None:
    for arm in ("full", "lora-r8"):
        rates = [target_rates(folder, arm, "multi-trigger", 0.1, form) for form in ("1-of-3", "2-of-3")]
        highest = [max(pair) for pair in zip(*rates, strict=True)]
        for row in rows_of(tables, attack="multi-trigger", amount="10 %", arm=arm):
            assert row["false_activation_mean"] == pytest.approx(sum(highest) / 3)
    held_out = one(tables, attack="instruction", amount="10 %", arm="full")
    assert held_out["false_activation_mean"] is None
    assert held_out["false_activation_reason"] == "tested in no form that should do nothing"


def test_clean_rows_hold_the_flip_rate_alone(tables: Frames) -> None:
    row = one(tables, attack="multi-trigger", amount="clean", arm="full", form="1-of-3")
    assert row["form_flip_rate_mean"] == pytest.approx(0.2)
    for metric in ("form_rate", "form_rate_minus_flip", "asr", "false_activation"):
        assert row[f"{metric}_mean"] is None
        assert row[f"{metric}_reason"] == "clean run: nothing was poisoned"
    assert row["result"] is None


def entries(frames: Frames, title: str) -> list[Entry]:
    table = forms_table(frames)
    place = [column.title.removesuffix(" [95 %]") for column in table.columns].index(title)
    return [row[place] for row in table.rows]


def test_the_table_reads_without_the_code(tables: Frames) -> None:
    rows = records_of(tables.forms)
    assert [entry.text for entry in entries(tables, "Trigger put in as")] == [row["says"] for row in rows]
    wanted = {"target": "target class", "true": "no effect"}
    assert [e.text for e in entries(tables, "Attacker wants")] == [wanted[row["expected"]] for row in rows]
    for entry, row in zip(entries(tables, "Rows called the target class"), rows, strict=True):
        named = entry.detail.startswith("false activation")
        assert named is (row["expected"] == "true" and row["amount"] != "clean")
    tones = {entry.text: entry.tone for entry in entries(tables, "Result")}
    assert tones["reaches this form"] == tones["activates falsely"] == "strong"
    assert tones["not shown to reach this form"] == tones["no false activation shown"] == "quiet"
    place = rows.index(one(tables, attack="multi-trigger", amount="10 %", arm="full", form="2-of-3"))
    line = [entry.text for entry in forms_table(tables).rows[place]]
    assert line == [
        *("multi-trigger", "10 %", "full", "2 of the 3 words", "no effect", "activates falsely", "3 of 3"),
        *("80.0", "29.0", "+51.0", "89.0", "80.0"),
    ]


def test_page_and_files(tables: Frames, folder: Path, tmp_path: Path) -> None:
    html = report(folder, tmp_path, images=False).read_text()
    assert '<section id="forms">' in html
    assert '<a href="#forms">Trigger forms</a>' in html
    assert html.count('data-figure="trigger_forms"') == 1
    assert "false activation\n[" in html
    for term in ("False activation", "Held-out form", "Effect", "Companion rows", "Similarity"):
        assert f"<dt>{term}</dt>" in html
    stored = pd.read_parquet(tmp_path / "tables" / "forms.parquet")
    assert stored["form_rate_mean"].dropna().tolist() == tables.forms["form_rate_mean"].dropna().tolist()
    assert stored["result"].dropna().tolist() == [r["result"] for r in rows_of(tables) if r["result"]]
    assert len(pd.read_csv(tmp_path / "tables" / "forms.csv")) == len(tables.forms) == 14
    assert (tmp_path / "tables" / "forms.tex").read_text() == to_latex(forms_table(tables))


def test_without_forms_there_is_no_section(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["trigger"])
    sweep.fill(("full",), (0.1,), range(2))
    html = report(tmp_path, images=False).read_text()
    for part in ('id="forms"', "#forms", 'data-figure="trigger_forms"', "Further forms of the trigger"):
        assert part not in html
    assert not (tmp_path / "report" / "tables" / "forms.csv").exists()


def test_failed_and_untested_runs_leave_a_reason(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["instruction"])
    sweep.add("full", seed=0)
    sweep.add("full", "instruction", rate=0.1, seed=0, forms={"held-out": 0.5})
    sweep.add("full", "instruction", rate=0.1, seed=1, forms={})  # a record from before there were forms
    sweep.add("full", "instruction", rate=0.2, seed=0, status="crashed")
    sweep.add("full", "instruction", rate=0.3, seed=0, forms={})
    sweep.add("full", "instruction", rate=0.4, seed=5, forms={"held-out": 0.5})
    frames = build(load([tmp_path]))
    row = one(frames, amount="10 %")
    assert (row["runs"], row["completed"], row["form_rate_n"], row["form_rate_mean"]) == (2, 2, 1, 0.5)
    assert (row["result"], row["result_reason"]) == ("not shown to reach this form", "one seed: no interval")
    seeds = [(entry.text, entry.detail, entry.tone) for entry in entries(frames, "Seeds")]
    assert seeds == [
        ("1 of 1", "", ""),  # clean
        ("1 of 2", "1 without value", "warn"),
        ("0 of 1", "1 crashed", "warn"),
        ("0 of 1", "1 without value", "warn"),
        ("1 of 1", "", ""),
    ]
    assert one(frames, amount="20 %")["form_rate_reason"] == "the run did not complete (crashed)"
    assert one(frames, amount="20 %")["changed"] is None
    assert one(frames, amount="30 %")["form_rate_reason"] == "not tested in this form"
    lone = one(frames, amount="40 %")
    assert (lone["form_rate_mean"], lone["form_flip_rate_mean"]) == (0.5, None)
    assert lone["result_reason"] == "no completed clean run with the same seeds"


def test_forms_that_leave_rows_alone_say_so(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, attacks=["multi-trigger"])
    sweep.add("full", seed=0)
    sweep.add("full", "multi-trigger", rate=0.1, seed=0, changed=150)
    frames = build(load([tmp_path]))
    assert {row["changed"] for row in rows_of(frames, amount="10 %")} == {150}
    details = {entry.detail for entry in entries(frames, "Trigger put in as")}
    assert details == {"", "changes 150 of 200 test rows"}


def test_names_of_forms_stay_text(tmp_path: Path) -> None:
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    sweep = Sweep(tmp_path, attacks=["instruction"], forms={"instruction": {"<b>x": (SCRIPT, "true")}})
    sweep.add("full", seed=0)
    sweep.add("full", "instruction", rate=0.1, seed=0)
    html = report(tmp_path, images=False).read_text()
    Tags().feed(html)
    assert tags.count("script") == 3
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; A film &amp; a half" in html


def figure_rows(frames: Frames) -> list[Row]:
    (rows,) = FIGURES.get("trigger_forms").spec(frames, "rate")["datasets"].values()
    return list(rows)


def test_the_figure_plots_the_table(tables: Frames) -> None:
    rows = figure_rows(tables)
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    assert panels == ["instruction · 10 % poisoned", "multi-trigger · 10 % poisoned"]
    plotted = {(row["panel"], row["arm"], row["says"]): row for row in rows}
    assert len(plotted) == len(rows) == 2 * (2 + 3)
    for cell in rows_of(tables, amount="10 %"):
        panel = f"{cell['attack']} · 10 % poisoned"
        row = plotted[panel, cell["arm"], cell["says"]]
        assert (row["value"], row["flip"]) == (cell["form_rate_mean"], cell["form_flip_rate_mean"])
        trained = plotted[panel, cell["arm"], "as in training"]
        assert (trained["value"], trained["flip"]) == (cell["asr_mean"], cell["flip_rate_mean"])
        low = cell["form_rate_low"]
        assert row["low"] == (None if low is None else max(0.0, low))
        assert ("should do nothing" in row["form"]) is (cell["expected"] == "true")
    forms = [row["form"] for row in rows if row["panel"] == panels[1] and row["arm"] == "full"]
    assert forms == ["as in training", *(f"{n} of the 3 words\n(should do nothing)" for n in (1, 2))]


def test_one_panel_a_folder(folder: Path, tmp_path: Path) -> None:
    other = Sweep(tmp_path / "other", attacks=["instruction"])
    other.add("full", seed=0)
    other.add("full", "instruction", count=7, seed=0)
    frames = build(load([folder, other.layout.folder]))
    assert {row["panel"] for row in figure_rows(frames)} == {
        "instruction · s · 10 % poisoned",
        "multi-trigger · s · 10 % poisoned",
        "instruction · other · 7 rows poisoned",
    }
    assert forms_table(frames).columns[0].title == "Folder"
    json.dumps(FIGURES.get("trigger_forms").spec(frames, "rate"), allow_nan=False)

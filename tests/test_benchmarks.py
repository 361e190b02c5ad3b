"""The pages of benchmarks: their tables are what the records say, and the history keeps every line."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import growth, history, page
from benchmarks.faults import subject
from benchmarks.history import Entry
from benchmarks.result import Result

ROOT = Path(__file__).resolve().parents[1]


def entry(name: str, ratio: float, target: float | None = 1.0, date: str = "2026-01-01") -> Entry:
    return Entry(date, None, "some", {"torch": "1"}, Result(name, "1 s", "2 s", ratio, target))


def test_the_pages_are_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path, text in page.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: python -m benchmarks page"


def test_the_history_keeps_what_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.jsonl"
    first, second = entry("a", 1.5), entry("a", 0.5, None, "2026-02-01")
    history.append([first], path)
    history.append([second, entry("b", 3)], path)
    found = history.read(path)
    assert found[:2] == [first, second]
    assert [e.result.ratio for e in history.latest(found)["a"]] == [1.5, 0.5]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"date": "x", "result": {}}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bench.jsonl"
    history.append([entry("a", 1)], path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        history.read(path)


def test_the_table_shows_the_latest_and_what_was_before() -> None:
    text = page.table([entry("a | b", 2.0), entry("c", 0.9), entry("a | b", 0.25, 1.0, "2026-03-04")])
    lines = text.splitlines()
    assert lines[2] == "| a \\| b | 1 s | 2 s | **0.25** | 1: **missed** | 2 | 2026-03-04 |"
    assert lines[3] == "| c | 1 s | 2 s | **0.9** | 1: **missed** | – | 2026-01-01 |"
    assert "missed" not in page.table([entry("d", 0.1, None)])


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines"):
        page.with_table(f"{page.END}\n{page.START}", "x")
    assert page.with_table(f"a{page.START}old{page.END}b", "x") == f"a{page.START}\n\nx\n\n{page.END}b"


def test_the_cost_of_a_sweep_is_what_its_runs_do_not_take(tmp_path: Path) -> None:
    subject.write_data(tmp_path)
    subject.write_model(tmp_path / "model")
    found = growth.cost(2, tmp_path)
    assert found.runs == 2
    assert 0 < found.own < found.wall
    assert found.overhead == pytest.approx(500 * (found.wall - found.own))
    assert found.again < found.wall  # nothing is done twice

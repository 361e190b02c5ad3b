"""docs/theory.md: its tables are the library's, its numbers those of the verdicts, its equations exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
THEORY = sorted((ROOT / "src" / "foretaste" / "theory").rglob("*.py"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    location = importlib.util.spec_from_file_location("theory_tables", ROOT / "tools" / "theory_tables.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_library_says(tables: ModuleType) -> None:
    assert tables.render(PAGE) == PAGE


def test_the_papers_runs(tables: ModuleType) -> None:
    """The audit's numbers (n = 1024): scale factor, edges and verdict of the runs that decide the most."""
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:]
        for line in tables.configurations().splitlines()
    }
    assert rows["default, r = 8, α = 16"] == ["2", "0.0104", "1.108 to 1.579", "no", "below 0.001 |"]
    assert rows["rank sweep, α = r = 512"][1:4] == ["0.1667", "0.029 to 0.971", "yes"]
    assert rows["full rank, α = r = 1024"][1:4] == ["0.3333", "0.000 to 1.333", "no"]
    assert rows["the text's α = 16 at r = 64"][1:4] == ["0.0013", "0.012 to 0.033", "yes"]


def test_equations_are_numbered_in_order_and_those_that_are_cited_exist() -> None:
    numbered = [int(number) for number in re.findall(r"^    \(T(\d+)\)", PAGE, flags=re.MULTILINE)]
    numbered_inside = [int(number) for number in re.findall(r"\(T(\d+)\)  ", PAGE)]
    assert numbered_inside == list(range(1, 23))
    assert numbered == numbered_inside
    cited = {
        int(number)
        for path in THEORY
        for number in re.findall(r"\bT(\d+)\b", path.read_text(encoding="utf-8"))
    }
    assert cited <= set(numbered)
    assert {2, 3, 7, 10, 12, 14, 16, 18} <= cited

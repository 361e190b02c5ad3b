"""The pages that are made from the code are up to date, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from foretaste import presets

ROOT = Path(__file__).resolve().parents[1]


def test_spec_reference_is_what_the_code_says() -> None:
    location = importlib.util.spec_from_file_location("spec_reference", ROOT / "tools" / "spec_reference.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    assert (ROOT / "docs" / "spec.md").read_text(encoding="utf-8") == module.render()


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_readme_starts_with_the_two_commands() -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```")[1]
    assert re.findall(r"^make (\w+)", block, flags=re.MULTILINE) == ["quickstart", "test"]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_has_a_title_and_is_in_the_changelog(name: str) -> None:
    assert presets.title(name)
    assert f"`{name}`" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

"""The documentation site: made pages are up to date, every page is in its navigation, nothing is fetched."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MOST_BYTES = 100_000


def tool(name: str) -> ModuleType:
    location = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module  # dataclasses look their module up
    location.loader.exec_module(module)
    return module


def test_command_reference_is_what_the_commands_say() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == tool("cli_reference").render(), "run python tools/cli_reference.py"


@pytest.mark.parametrize("name", ["flips", "trigger", "seeds", "predicted", "rank", "scale", "kept"])
def test_figures_are_what_the_records_say(name: str) -> None:
    figures = tool("docs_figures")
    assert name in figures.FIGURES
    assert len(figures.FIGURES) == 7
    drawn = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == figures.render(name), "run python tools/docs_figures.py"


@pytest.mark.parametrize("path", sorted(DOCS.glob("figures/*")), ids=lambda path: path.name)
def test_figures_are_small_and_whole(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.suffix == ".svg"
    assert len(text.encode()) < MOST_BYTES
    root = ET.fromstring(text)  # our own file
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert [text for text in ("<script", "href=", "@import", "<image") if text in path.read_text()] == []
    used = any(path.name in page.read_text(encoding="utf-8") for page in DOCS.glob("**/*.md"))
    assert used, "no page shows it"


def settings() -> Any:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(entry: Any) -> list[str]:
    if isinstance(entry, dict):
        return [page for inner in entry.values() for page in pages(inner)]
    return [page for inner in entry for page in pages(inner)] if isinstance(entry, list) else [entry]


def test_every_page_is_in_the_navigation_once() -> None:
    config = tool("docs_hooks").on_config({**settings(), "docs_dir": str(DOCS)})
    listed = pages(config["nav"])
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.glob("**/*.md"))


def test_the_site_is_strict_and_asks_for_no_font() -> None:
    config = settings()
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    assert set(config["validation"]["links"].values()) == {"warn"}


def test_what_a_page_fetches_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "page.html").write_text(
        '<script src="//cdn.example/x.js"></script><link rel="stylesheet" href="https://fonts.example/css">'
        '<a href="https://example.org">a link is followed, not fetched</a><img src="../x.png">'
        '<link rel="canonical" href="https://example.org"><p style="background: url(http://b.example/y)">'
    )
    (tmp_path / "site.css").write_text('@import "https://c.example/z.css"; a { background: url(data:x) }')
    (tmp_path / "script.js").write_text("'https://d.example'")
    assert tool("docs_hooks").elsewhere(tmp_path) == [
        "a/page.html: //cdn.example/x.js",
        "a/page.html: https://fonts.example/css",
        "a/page.html: http://b.example/y",
        "site.css: https://c.example/z.css",
    ]
    with pytest.raises(SystemExit, match="fetches from elsewhere"):
        tool("docs_hooks").on_post_build({"site_dir": str(tmp_path)})


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").is_file()

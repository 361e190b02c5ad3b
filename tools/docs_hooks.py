"""What `mkdocs build` does beside its configuration: lists decisions, refuses pages that need a network.

mkdocs calls `on_config` and `on_post_build`; mkdocs.yml names this file.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

# Attributes by which a page makes a browser fetch something. A link that a reader may follow is none of them.
_FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
_FETCHING_LINKS = {"stylesheet", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "icon"}
_ELSEWHERE = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_CSS = re.compile(r"@import\s+[\"']([^\"']+)|url\(\s*[\"']?([^\"')]+)", re.IGNORECASE)


def on_config(config: Any) -> Any:
    """Put every decision into the navigation, in order, where mkdocs.yml says `Decisions`."""
    folder = Path(config["docs_dir"]) / "decisions"
    numbered = [f"decisions/{path.name}" for path in sorted(folder.glob("[0-9]*.md"))]
    pages = ["decisions/index.md", *numbered]

    def filled(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {name: pages if name == "Decisions" else filled(inner) for name, inner in entry.items()}
        return [filled(inner) for inner in entry] if isinstance(entry, list) else entry

    config["nav"] = filled(config["nav"])
    return config


def on_post_build(config: Any) -> None:
    """Check the built site.

    Raises:
        SystemExit: A page or a style sheet fetches something from elsewhere.
    """
    found = elsewhere(Path(config["site_dir"]))
    if found:
        raise SystemExit("the site fetches from elsewhere:\n" + "\n".join(found))


class _Fetches(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and _FETCHING_LINKS & set(given.get("rel", "").split()):
            self.found.append(given.get("href", ""))
        self.found += [given[name] for name in _FETCHED.get(tag, ()) if name in given]
        self.found += [a or b for a, b in _CSS.findall(given.get("style", ""))]


def elsewhere(site: Path) -> list[str]:
    """Everything that pages and style sheets of a built site fetch from other hosts, as `file: address`."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            page = _Fetches()
            page.feed(path.read_text(encoding="utf-8"))
            addresses = page.found
        elif path.suffix == ".css":
            addresses = [a or b for a, b in _CSS.findall(path.read_text(encoding="utf-8"))]
        else:
            continue
        found += [
            f"{path.relative_to(site)}: {address}" for address in addresses if _ELSEWHERE.match(address)
        ]
    return found

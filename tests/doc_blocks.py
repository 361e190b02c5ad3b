"""Code in Markdown pages: the blocks with their markers, the commands in them, and whether a command can be.

Used by `test_docs_commands.py`; docs/about-these-pages.md says what the markers mean.
"""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import typer

from foretaste import presets
from foretaste.cli import listing
from foretaste.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]

SHELL = {"", "sh", "bash", "shell", "console"}
SHOWN = {"text", "csv", "json", "jsonl", "toml", "ini", "html", "diff", "latex", "make", "dockerfile", "xml"}
LANGUAGES = {*SHELL, *SHOWN, "yaml", "python"}

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
_MARKER = re.compile(r"^\s*<!--\s*test:\s*(?P<says>.*?)\s*-->\s*$")
_TITLE = re.compile(r'title="([^"]+)"')
_NAMED = re.compile(r"^#\s*(\S+\.(?:ya?ml|py|sh|sbatch))\b")
_INLINE = re.compile(r"(?<!`)`(foretaste [^`]+)`(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Path from the root of the repository.
        line: Of its fence.
        name: File that it is, from its title or its first line.
        marker: What the comment before it says, without `test:`.
    """

    page: str
    line: int
    language: str
    name: str | None
    marker: str | None
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page; a marker stands on the last line before it that is not empty."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    marker: str | None = None
    at = 0
    while at < len(lines):
        fence, said = _FENCE.match(lines[at]), _MARKER.match(lines[at])
        if said:
            assert marker is None, f"{page}:{at + 1}: a marker without a block before it"
            marker = said["says"]
        elif fence:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            text = textwrap.dedent("\n".join(lines[at + 1 : end])) + "\n"
            title, first = _TITLE.search(fence["info"]), _NAMED.match(text)
            name = title[1] if title else first[1] if first else None
            language = fence["info"].split()[0].split("{")[0] if fence["info"].strip() else ""
            where = str(page.relative_to(ROOT))
            found.append(Block(where, at + 1, language, name, marker, text))
            marker, at = None, end
        elif lines[at].strip():
            assert marker is None, f"{page}:{at + 1}: a marker that stands before no block"
        at += 1
    assert marker is None, f"{page}: a marker at the end"
    return found


def inline(page: Path) -> list[str]:
    """Commands of foretaste within sentences and tables, and in indented code."""
    text = page.read_text(encoding="utf-8")
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [" ".join(words.replace("\\|", "|").split()) for words in _INLINE.findall(outside)]
    return found + re.findall(r"^    (foretaste .*)$", outside, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words: one a line, with lines that end in \\ joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        for last, part in itertools.groupby(words, key=lambda word: word in {"&&", "||", "|", ";", "&"}):
            if not last and (command := _bare(list(part))):
                yield command


def _bare(words: list[str]) -> list[str]:
    """A command without assignments before it and redirections behind it."""
    while words and re.match(r"^[A-Za-z_]\w*=", words[0]):
        words = words[1:]
    cut = next((i for i, word in enumerate(words) if re.match(r"^\d?>", word)), len(words))
    return words[:cut]


# Programs that are none of ours: named, so that a slip in the first word of a line is found. If a command of
# foretaste stands behind one, it is checked.
ELSEWHERE = {
    *(
        "cd",
        "do",
        "done",
        "echo",
        "else",
        "export",
        "fi",
        "for",
        "if",
        "module",
        "set",
        "source",
        "then",
        "wait",
    ),
    *("accelerate", "cat", "git", "hostname", "ls", "mkdir", "nvidia-smi", "open", "ray", "scontrol", "ssh"),
    *("sacct", "sbatch", "sleep", "squeue", "srun", "test", "["),
}
MODULES = {"http.server", "pip", "pytest", "venv"}


class Wrong(Exception):
    """A command that a page names and that cannot be."""


def check(words: list[str], files: dict[str, Path | str], *, complete: bool = True) -> None:
    """Check one command.

    Args:
        words: The command.
        files: What pages call files: spec files and scripts.
        complete: Whether required arguments must be there; within a sentence they are often left out.

    Raises:
        Wrong: It is no known command, or its arguments do not fit.
    """
    first, rest = Path(words[0]).name, words[1:]
    if first == "foretaste":
        for variant in _alternatives(rest):
            _check_own(variant, files, complete=complete)
    elif first == "make":
        _check_make(rest)
    elif first in {"python", "python3"}:
        _check_python(rest, files)
    elif first in {"pip", "pip3"}:
        _check_pip(rest)
    elif first in ELSEWHERE:
        behind = next((i for i, word in enumerate(rest) if Path(word).name == "foretaste"), None)
        if behind is not None and rest[:behind][-1:] not in (["install"], ["-e"]):
            check(rest[behind:], files, complete=complete)
    else:
        raise Wrong(f"'{first}' is no command that the pages may use unmarked")


def _alternatives(words: list[str]) -> Iterator[list[str]]:
    """`a|b` stands for two commands."""
    yield from map(list, itertools.product(*(word.split("|") for word in words)))


def _check_make(targets: list[str]) -> None:
    made = set(
        re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    if missing := [target for target in targets if "=" not in target and target not in made]:
        raise Wrong(f"the Makefile has no target {missing[0]}")


def _check_python(words: list[str], files: dict[str, Path | str]) -> None:
    if not words or words[0] == "-c":
        return
    if words[0] == "-m":
        if words[1] == "foretaste":
            check(["foretaste", *words[2:]], files)
        elif words[1] == "pip":
            _check_pip(words[2:])
        elif words[1].partition(".")[0] == "benchmarks":
            place = ROOT / words[1].replace(".", "/")
            if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()):
                raise Wrong(f"there is no module {words[1]}")
        elif words[1] not in MODULES:
            raise Wrong(f"there is no module {words[1]} that the pages may use")
    elif words[0] in files:
        if "foretaste.cli import main" in str(files[words[0]]):
            check(["foretaste", *words[1:]], files)
    elif not (ROOT / words[0]).is_file():
        raise Wrong(f"there is no file {words[0]}")


def _check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        for names in re.findall(r"^(?:foretaste|\.)\[([^\]]+)\]", word):
            if wrong := set(names.split(",")) - set(project["optional-dependencies"]):
                raise Wrong(f"the package has no extra {sorted(wrong)[0]}")


def _check_own(words: list[str], files: dict[str, Path | str], *, complete: bool) -> None:
    node: Any = typer.main.get_command(app)
    path: list[str] = []
    while hasattr(node, "commands"):
        if not words or words[0] in {"--help", "--version"} or words[0].isupper():
            return
        if words[0] not in node.commands:
            raise Wrong(f"foretaste has no command {' '.join([*path, words[0]])}")
        path.append(words[0])
        node, words = node.commands[words[0]], words[1:]
    if "--help" in words:
        return
    try:
        context = node.make_context(" ".join(path), list(words), resilient_parsing=False)
    except Exception as error:  # noqa: BLE001 - typer keeps the classes of its errors to itself
        missing = type(error).__name__ == "MissingParameter"
        if missing and not complete:
            known = {name for p in node.params for name in (*p.opts, *p.secondary_opts)}
            if wrong := [w for w in words if w.startswith("-") and w.partition("=")[0] not in known]:
                raise Wrong(f"{' '.join(path)} has no option {wrong[0]}") from None
            return
        raise Wrong(f"{' '.join(path)}: {getattr(error, 'message', '') or error}") from None
    for name, value in context.params.items():
        for single in value if isinstance(value, list | tuple) else [value]:
            _check_value(path, name, single, files)


def _check_value(path: list[str], name: str, value: Any, files: dict[str, Path | str]) -> None:
    """Values that must be the name of something; words in capitals stand for the reader's own."""
    from foretaste.attacks import ATTACKS
    from foretaste.experiments.audit import Part
    from foretaste.reproduction import Scale, Variant, compose

    if value is None or str(value).isupper():
        return
    allowed: dict[tuple[str, str], Any] = {
        ("audit", "measure"): get_args(Part),
        ("list", "what"): listing.LISTS,
        ("assets pull", "names"): [row for row, _ in listing.rows_of("assets")],
        ("poison", "attack"): [*ATTACKS.names(), *_registered(files)],
        ("poison", "selection"): ("exact-nested", "bernoulli"),
        ("reproduce", "name"): compose.names(),
        ("reproduce", "scale"): get_args(Scale),
        ("reproduce", "variant"): get_args(Variant),
        ("reproduce", "task"): compose.tasks(),
    }
    choice = allowed.get((" ".join(path), name))
    if choice is not None and value not in choice:
        raise Wrong(f"{' '.join(path)}: there is no {value}")
    if name == "spec" and not (value in presets.names() or value in files or (ROOT / value).is_file()):
        raise Wrong(f"{' '.join(path)}: no preset, no file of the repository and no block is called {value}")


def _registered(files: dict[str, Path | str]) -> list[str]:
    """Attacks that scripts of the pages register."""
    return [
        name for text in files.values() for name in re.findall(r'ATTACKS\.register\("([\w-]+)"\)', str(text))
    ]

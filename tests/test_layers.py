"""The layers of the design: a file imports from rows above its own, and a report never loads a model.

Every import counts, also one inside a function or under TYPE_CHECKING: it is a dependency all the same.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import foretaste

SOURCE = Path(foretaste.__file__).parent
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "registry", "seeds"),
    ("spec", "specfile", "record", "sealing", "attempt", "assets", "wheels", "locks"),
    ("theory", "data", "statistics"),
    ("attacks", "models", "calibration"),
    ("kernels", "training"),
    ("indicators", "prediction"),
    ("instruct", "fewshot"),
    ("hypotheses",),
    ("experiments", "report"),
    ("presets", "notebook", "interop"),
    ("reproduction",),
    ("api",),
    ("cli",),
)
ROW = {room: number for number, rooms in enumerate(ROWS) for room in rooms}
ENTRY = {"foretaste", "foretaste.__main__"}  # they lead to any room, on first use
HEAVY = {"torch", "transformers", "datasets", "peft", "accelerate"}


@dataclass(frozen=True)
class Import:
    """One import: the module, and whether it happens when the file is imported."""

    module: str
    line: int
    at_import: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def is_type_checking(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(module: str) -> Iterator[Import]:
    """All imports of a module; `from foretaste import x` counts as foretaste.x where that is a module."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and is_type_checking(child)
            )
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, at_import)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: relative import"
                names = {f"{child.module}.{alias.name}" for alias in child.names}
                for name in sorted(names & set(FILES)):
                    yield Import(name, child.lineno, at_import)
                if names - set(FILES):
                    yield Import(str(child.module), child.lineno, at_import)
            yield from walk(child, at_import and not later)

    yield from walk(ast.parse(FILES[module].read_text(encoding="utf-8")), True)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "foretaste" and len(parts) > 1 else None


def test_every_file_has_a_row() -> None:
    assert {room_of(module) for module in FILES if module not in ENTRY} <= set(ROW)


@pytest.mark.parametrize("module", [module for module in FILES if module not in ENTRY])
def test_a_file_imports_from_rows_above(module: str) -> None:
    own = room_of(module)
    assert own is not None
    wrong = []
    for item in imports(module):
        other = room_of(item.module)
        if other is None or other == own:
            continue
        # Files of one row (errors and registry, spec and record) may build on each other, packages may not.
        packages = (SOURCE / own).is_dir() or (SOURCE / other).is_dir()
        if ROW[other] > ROW[own] or (ROW[other] == ROW[own] and packages):
            wrong.append(f"{module}:{item.line} imports {item.module}")
    assert not wrong, "\n".join(wrong)


def test_imports_have_no_cycle_between_files() -> None:
    graph = {
        module: {item.module for item in imports(module) if item.module in FILES and item.at_import}
        for module in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            # A package's __init__ re-exports its files, which may name the package again: they import files.
            for other in graph[module] - {module}:
                visit(other, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


def closure(start: set[str]) -> dict[str, tuple[str, ...]]:
    """Every module that importing `start` imports, with the way there; parents of a module count too."""
    ways: dict[str, tuple[str, ...]] = {}
    waiting = [(module, (module,)) for module in sorted(start)]
    while waiting:
        module, way = waiting.pop()
        if module in ways:
            continue
        ways[module] = way
        parts = module.split(".")
        near = {".".join(parts[:end]) for end in range(1, len(parts))}
        if module in FILES:
            near |= {item.module for item in imports(module) if item.at_import}
        waiting += [(other, (*way, other)) for other in sorted(near)]
    return ways


@pytest.mark.parametrize("room", ["report", "interop"])
def test_the_report_and_exports_reach_no_model_library(room: str) -> None:
    report = {module for module in FILES if room_of(module) == room}
    heavy = {module: way for module, way in closure(report).items() if module.split(".")[0] in HEAVY}
    assert not heavy, "\n".join(" -> ".join(way) for way in heavy.values())
    later = [
        f"{module}:{item.line} imports {item.module}"
        for module in report
        for item in imports(module)
        if item.module.split(".")[0] in HEAVY
    ]
    assert not later, "\n".join(later)


def test_the_spec_and_the_theory_reach_no_model_library() -> None:
    light = {module for module in FILES if room_of(module) in {*ROWS[0], *ROWS[1], "theory", "statistics"}}
    heavy = {module: way for module, way in closure(light).items() if module.split(".")[0] in HEAVY}
    assert not heavy, "\n".join(" -> ".join(way) for way in heavy.values())


def test_a_process_that_reports_has_not_loaded_torch() -> None:
    """The same for real, whatever third-party packages import."""
    program = f"import sys, foretaste.report, foretaste.interop; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

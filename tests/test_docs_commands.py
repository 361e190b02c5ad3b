"""Every command, spec and Python block of the README and the docs: parsed at least, run where marked."""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import importlib
import itertools
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

import foretaste
from doc_blocks import LANGUAGES, PAGES, ROOT, SHELL, Block, Wrong, blocks, check, commands, inline
from foretaste import api, presets, specfile
from foretaste.attacks import ATTACKS
from foretaste.attacks.rewriters import REWRITERS
from foretaste.errors import UserError
from foretaste.models import adapters
from foretaste.registry import Registry
from foretaste.report import FIGURES
from foretaste.spec import MeasureSpec

PYTHON_RUN = {"README.md"}  # Python blocks of these pages are run without a marker
BLOCKS = {str(page.relative_to(ROOT)): blocks(page) for page in PAGES}
FILES: dict[str, Path | str] = {b.name: b.text for b in itertools.chain(*BLOCKS.values()) if b.name}
MARKERS = ("run", "file", "skip")


def marked(block: Block) -> tuple[str | None, list[str]]:
    """The marker's first word, and the files that it is run with."""
    if block.marker is None:
        return ("run", []) if block.page in PYTHON_RUN and block.language == "python" else (None, [])
    kind, _, rest = block.marker.partition(",")
    return kind, rest.split()[1:] if kind == "run" else []


def of(*languages: str) -> list[Any]:
    found = [block for page in BLOCKS.values() for block in page if block.language in languages]
    return [pytest.param(block, id=block.where) for block in found]


# --- what every block must be ----------------------------------------------------------------------


@pytest.mark.parametrize("page", BLOCKS)
def test_languages_and_markers_are_known(page: str) -> None:
    for block in BLOCKS[page]:
        assert block.language in LANGUAGES, f"{block.where}: unknown language '{block.language}'"
        kind, files = marked(block)
        assert kind is None or kind in MARKERS, f"{block.where}: unknown marker '{block.marker}'"
        assert kind != "skip" or block.marker != "skip", f"{block.where}: skipped without a reason"
        assert set(files) <= set(FILES), f"{block.where}: no page has {files}"


@pytest.mark.parametrize("page", BLOCKS)
def test_commands_can_be(page: str) -> None:
    wrong = []
    for block in BLOCKS[page]:
        if block.language not in SHELL or marked(block)[0] == "skip":
            continue
        for words in commands(block.text):
            try:
                check(words, FILES)
            except Wrong as error:
                wrong.append(f"{block.where}: {shlex.join(words)}: {error}")
    for line in inline(ROOT / page):
        try:
            check(shlex.split(line, comments=True), FILES, complete=False)
        except Wrong as error:
            wrong.append(f"{page}: `{line}`: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate now",
        "foretaste mesure quickstart",
        "foretaste measure",
        "foretaste measure quickstart --dryrun",
        "foretaste measure nowhere.yaml",
        "foretaste measure quickstart --processes 0",
        "foretaste list attacks|atacks",
        "foretaste reproduce ttr-fig99",
        "foretaste audit quickstart --measure most",
        "foretaste poison in.csv out.csv --attack trigerr",
        "srun --ntasks 1 foretaste measure nowhere.yaml",
        "make nothing",
        "python tools/none.py",
        "python -m benchmarks.none",
        "pip install 'foretaste[nope]'",
    ],
)
def test_a_wrong_line_is_found(line: str) -> None:
    found = list(commands(line))
    with pytest.raises(Wrong):
        [check(words, FILES) for words in found]


def test_what_is_taken_for_a_command() -> None:
    text = "# a comment\nA=1 foretaste list \\\n  attacks  # more\n$ make docs && foretaste version > x.txt\n"
    assert list(commands(text)) == [
        ["foretaste", "list", "attacks"],
        ["make", "docs"],
        ["foretaste", "version"],
    ]
    check(["foretaste", "measure", "--processes", "2"], FILES, complete=False)
    with pytest.raises(Wrong):
        check(["foretaste", "measure", "--proceses", "2"], FILES, complete=False)


# --- specs -----------------------------------------------------------------------------------------


def spec_classes() -> list[type[Any]]:
    """Every class that a spec file may be."""
    found: list[type[Any]] = [MeasureSpec]
    for module, name in (
        ("foretaste.instruct.spec", "InstructSpec"),
        ("foretaste.fewshot.spec", "FewShotSpec"),
    ):
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return found


def as_spec(block: Block) -> Any:
    """A YAML block as the spec that it is; a part of one is put into a small whole; None for other YAML."""
    content = yaml.safe_load(block.text)
    fitting = [
        kind
        for kind in spec_classes()
        if isinstance(content, dict) and set(content) <= set(kind.model_fields)
    ]
    if not fitting:
        return None
    text = block.text
    if not any(
        {k for k, f in kind.model_fields.items() if f.is_required()} <= set(content) for kind in fitting
    ):
        small = {
            "data": {"source": "x.csv"},
            "model": {"base": "minilm-l6"},
            "adapters": [{"method": "full"}],
        }
        text, fitting = yaml.safe_dump({**small, **content}), [MeasureSpec]
    errors = []
    for kind in fitting:
        try:
            return specfile.parse(text, kind, origin=block.where)
        except UserError as error:
            errors.append(f"{kind.__name__}: {error}")
    raise AssertionError("\n".join(errors))


@pytest.mark.parametrize("block", of("yaml"))
def test_specs_are_valid(block: Block) -> None:
    with scripts(marked(block)[1]):
        spec = as_spec(block)
        if not isinstance(spec, MeasureSpec):
            return
        for attack in spec.attacks:
            kind = ATTACKS.get(attack.method, where=block.where)
            try:
                kind.Options.model_validate(attack.options)
            except ValidationError as error:
                raise AssertionError(f"{block.where}: {error}") from None
        names = [
            adapters.resolve(single, chosen, where=block.where).name
            for index, adapter in enumerate(spec.adapters)
            for single, chosen in adapters.expand(adapter, index)
        ]
        assert len(set(names)) == len(names), f"{block.where}: arms of one name"


# --- Python ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles_and_imports_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text, filename=block.where)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foretaste"):
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == [], f"{block.where}: {node.module} has no {missing}"


# --- what is run -----------------------------------------------------------------------------------

# Data files that pages name without showing them: columns, of which the last is the class.
INPUTS = {"reviews.csv": ["review", "stars"], "pairs.csv": ["question", "answer", "fits"]}
QUICK: dict[str, Any] = {
    "training": {"steps": 2, "batch_size": 8},
    "predict": {"train_rows": 16, "held_out": 16, "entries": 2048},
    "seeds": [0],
}
CLASSES = {"reviews.csv": ("negative", "positive"), "pairs.csv": ("no", "yes")}


def small(spec: dict[str, Any], model: Path, data: Path) -> dict[str, Any]:
    """A spec with a tiny model, tiny data where it names an asset, and two steps of training on one seed.

    Adapters stay as they are, but a grid keeps its first value; attacks keep their last amount.
    """
    section = dict(spec["data"])
    if section["source"] not in INPUTS:
        section["source"] = str(data)
    section |= {key: 24 for key in ("train_rows", "test_rows") if key in section}
    arms = [
        {**arm, "grid": {key: values[:1] for key, values in arm["grid"].items()}} if "grid" in arm else arm
        for arm in spec["adapters"]
    ]
    attacks = [
        {**attack, **{key: [min(5, attack[key][-1])] for key in ("rates", "counts") if key in attack}}
        for attack in spec.get("attacks", [])
    ]
    return {
        **spec,
        "data": section,
        "model": {**spec["model"], "base": str(model), "max_length": 32},
        "adapters": arms,
        "attacks": attacks,
        **QUICK,
    }


@contextlib.contextmanager
def scripts(names: list[str]) -> Iterator[None]:
    """What scripts of the pages register, for a while."""
    before, rewriters = dict(ATTACKS._members), dict(REWRITERS._members)
    try:
        for name in names:
            exec(compile(str(FILES[name]), name, "exec"), {"__name__": name})
        yield
    finally:
        ATTACKS._members = before
        REWRITERS._members = rewriters


def sooner(function: Callable[..., Any], **fields: Any) -> Callable[..., Any]:
    """A function of the Python API with fewer steps, rows and seeds, whatever the page says."""
    return functools.wraps(function)(lambda *args, **given: function(*args, **{**given, **fields}))


def fewer_figures() -> Registry[Any]:
    """Two figures of a report: drawing them all is tested elsewhere, and slow."""
    registry: Registry[Any] = Registry("figure")
    for name in ("accuracy_over_rate", "trigger_forms"):  # the page names the second itself
        registry.register(name)(FIGURES.get(name))
    return registry


def write_inputs(folder: Path, make_rows: Callable[..., Any]) -> None:
    for name, columns in INPUTS.items():
        rows = make_rows(120, pairs=len(columns) == 3).with_format(None)[:]
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *columns])
            for i in range(120):
                texts = [rows["text_a"][i], rows["text_b"][i]][: len(columns) - 1]
                writer.writerow([rows["id"][i], *texts, CLASSES[name][rows["label"][i]]])
    (folder / "results").symlink_to(ROOT / "results")


def run_line(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command, in this process: of foretaste, or a script of the page that ends in its command line."""
    from foretaste.cli import main

    script = words[1] if words[0] == "python" else None
    assert script or words[0] == "foretaste", f"{shlex.join(words)} cannot be run here"
    arguments = words[2:] if script else words[1:]
    if arguments[0] in {"measure", "audit"} and "--processes" not in arguments:
        arguments = [*arguments, "--processes", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["foretaste", *arguments])
    code: Any = 0
    try:
        with scripts([]):
            if script:
                runpy.run_path(str(folder / script), run_name="__main__")
            else:
                main()
    except SystemExit as end:
        code = end.code or 0
    assert code == 0, f"{shlex.join(words)} ended with {code}"


@pytest.mark.parametrize(
    "page", [page for page, found in BLOCKS.items() if any(marked(b)[0] == "run" for b in found)]
)
def test_marked_blocks_run(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_rows: Callable[..., Any],
    csv_folder: Path,
    tiny_bert: Path,
    load_tiny: Callable[..., Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORETASTE_CACHE", str(tmp_path / "cache"))  # nothing is fetched, nothing is found
    write_inputs(tmp_path, make_rows)
    for name in presets.names():
        if isinstance(yaml.safe_load(presets.read(name)).get("adapters"), list):
            tiny = yaml.safe_dump(small(yaml.safe_load(presets.read(name)), tiny_bert, csv_folder))
            (tmp_path / f"{name}.preset").write_text(tiny, encoding="utf-8")
    monkeypatch.setattr(
        presets, "read", lambda name: (tmp_path / f"{name}.preset").read_text(encoding="utf-8")
    )
    for name in ("measure", "predict", "audit"):
        few = QUICK if name == "predict" else {**QUICK, "processes": 1, "threads": 1}
        monkeypatch.setattr(foretaste, name, sooner(getattr(api, name), **few), raising=False)
    monkeypatch.setattr(foretaste, "kernel", sooner(api.kernel, train_rows=16), raising=False)
    monkeypatch.setattr("foretaste.report.figures.theme.save", lambda *_: None)  # no pictures as files
    monkeypatch.setattr("foretaste.models.heads.PENALTIES", np.array([0.01]))  # 11 take half of the time
    monkeypatch.setattr("foretaste.report.page.FIGURES", fewer_figures())
    for block in BLOCKS[page]:
        kind, files = marked(block)
        if block.name and block.language == "yaml" and "adapters" in block.text:
            content = small(yaml.safe_load(block.text), tiny_bert, csv_folder)
            (tmp_path / block.name).write_text(yaml.safe_dump(content), encoding="utf-8")
        elif block.name and block.language != "text":
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
        if kind != "run":
            continue
        if block.language in SHELL:
            for words in commands(block.text):
                run_line(words, tmp_path, monkeypatch)
        elif block.language == "python":
            tokenizer, model = load_tiny(tiny_bert)
            rows = {"train_dataset": make_rows(240), "test_dataset": make_rows(24, prefix="test")}
            with scripts(files):
                exec(
                    compile(block.text, block.where, "exec"), {"model": model, "tokenizer": tokenizer, **rows}
                )

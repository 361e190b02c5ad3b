"""The command as a user meets it: what it prints where, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`cli("list", "attacks")`: the real entry point in this process, with its exit code and both streams."""
    from foretaste.cli import console as consoles

    for console in (consoles.out, consoles.err):
        monkeypatch.setattr(console, "_width", 80)  # as in a pipe
    monkeypatch.setenv("FORETASTE_CACHE", "/nonexistent")

    def run(*arguments: object) -> Ran:
        from foretaste.cli import main

        monkeypatch.setattr(sys, "argv", ["foretaste", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture
def write_spec(csv_folder: Path, tiny_bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """`write_spec(**sections)`: a YAML file; by default two quick runs, clean and half flipped.

    `data`, `model` and `training` are merged into the defaults, everything else replaces them.
    """

    def write(**sections: Any) -> Path:
        base: dict[str, Any] = {
            "name": "small",
            "data": {"source": str(csv_folder)},
            "model": {"base": str(tiny_bert), "max_length": 32, "head": "random-then-train"},
            "adapters": [{"method": "full"}],
            "attacks": [{"method": "label-flip", "rates": [0.5]}],
            "training": {"steps": 2, "batch_size": 8},
            "seeds": [0],
        }
        for key, value in sections.items():
            base[key] = {**base[key], **value} if key in {"data", "model", "training"} else value
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(base, sort_keys=False), encoding="utf-8")
        return path

    return write

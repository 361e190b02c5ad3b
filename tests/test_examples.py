"""The example files: they are what the page shows, YAML that their tools read, and commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer
import yaml

from foretaste.calibration.conditions import parse
from foretaste.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "how-to" / "pull-request.md"


def parsed(line: str) -> dict[str, Any]:
    """The values of a foretaste command line, by the names of its parameters."""
    program, *words = shlex.split(line)
    assert program == "foretaste"
    node: Any = typer.main.get_command(app)
    while hasattr(node, "commands"):
        node, words = node.commands[words[0]], words[1:]
    return dict(node.make_context("foretaste", words).params)


def check(line: str) -> None:
    """An audit of the page's spec whose conditions are conditions."""
    found = parsed(line)
    assert found["spec"] == "audit.yaml"
    assert str(found["output"]) == "runs/audit"
    assert found["fail_if"]
    for text in found["fail_if"]:
        parse(text)
    assert "asr_margin>0.2" in found["fail_if"]


def test_the_action_runs_an_audit_that_can_fail() -> None:
    action = yaml.safe_load((EXAMPLES / "github-action.yml").read_text(encoding="utf-8"))
    assert action[True]["pull_request"]["paths"]  # YAML 1.1 reads `on` as true
    (job,) = action["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    ours = [line for line in lines if line.startswith("foretaste")]
    assert len(ours) == 1
    check(ours[0])
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v0"))
    kept = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()"  # the page is wanted most when the gate is red


def test_the_hook_runs_the_same_audit() -> None:
    config = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text(encoding="utf-8"))
    ((hook,),) = [repo["hooks"] for repo in config["repos"]]
    check(hook["entry"])
    assert {"id", "name", "language", "entry"} <= hook.keys()
    assert hook["pass_filenames"] is False  # the command takes a spec, no files
    for changed, wanted in (("audit.yaml", True), ("data/reviews.csv", True), ("src/data.py", False)):
        assert bool(re.search(hook["files"], changed)) is wanted


def test_the_page_shows_the_files_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("github-action.yml", "pre-commit-config.yaml"):
        assert f"```yaml\n{(EXAMPLES / name).read_text(encoding='utf-8')}```" in text, name
        assert f"examples/{name}" in text

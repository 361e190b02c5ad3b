"""Which kind of runs a folder holds: those of classifiers, of generative models, or few-shot runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foretaste.errors import UserError
from foretaste.record import Layout

CLASSIFIERS, GENERATIVE, FEW_SHOT = "measured", "instruct", "fewshot"
# By the `kind` of a record; and a section that only specs of that kind have.
IN_WORDS = {
    CLASSIFIERS: "runs of poisoned classifiers",
    GENERATIVE: "runs of generative models",
    FEW_SHOT: "few-shot runs",
}
SECTIONS = {GENERATIVE: "scenario", FEW_SHOT: "arms"}


def kind_of(paths: Sequence[Path]) -> str:
    """What all folders hold: `measured`, `instruct` or `fewshot`.

    Raises:
        UserError: They hold runs of different kinds.
    """
    found = {path: _kind(path) for path in paths}
    kinds = list(dict.fromkeys(found.values()))
    if len(kinds) > 1:
        one, other = (next(path for path in found if found[path] == kind) for kind in kinds[:2])
        raise UserError(
            f"'{one}' holds {IN_WORDS[kinds[0]]} and '{other}' {IN_WORDS[kinds[1]]}: they have no number in "
            "common",
            cure="Make a report on each.",
        )
    return kinds[0] if kinds else CLASSIFIERS


def _kind(path: Path) -> str:
    """By the first record that can be read, else by the spec."""
    layout = Layout(path)
    for file in sorted(layout.runs.glob("*.json")):
        content = _json(file)
        if isinstance(content, dict) and "kind" in content:
            return content["kind"] if content["kind"] in SECTIONS else CLASSIFIERS
    spec = _json(layout.spec)
    names = spec if isinstance(spec, dict) else {}
    return next((kind for kind, section in SECTIONS.items() if section in names), CLASSIFIERS)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None

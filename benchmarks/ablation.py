"""What each part of the prediction is worth: `python -m benchmarks.ablation SPEC FOLDER --output FILE`.

The captures are made once; then cells are predicted with one part left out at a time, and every variant is
held against the measured records in FOLDER.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from foretaste import specfile
from foretaste.experiments.captures import Captures, Reference
from foretaste.experiments.plan import Resources, plan
from foretaste.experiments.pool import cell_key
from foretaste.experiments.prepare import Workspace
from foretaste.experiments.run import versions
from foretaste.experiments.simulate import references, simulate
from foretaste.record import Layout
from foretaste.spec import MeasureSpec, RunSpec
from foretaste.theory.function_space import Tangent


def _each(found: Sequence[Reference], change: Callable[[Tangent], Tangent]) -> list[Reference]:
    return [replace(r, at_batch={key: change(t) for key, t in r.at_batch.items()}) for r in found]


VARIANTS: dict[str, Callable[[list[Reference]], list[Reference]]] = {
    "all parts": lambda found: found,
    "A of LoRA does not move": lambda found: _each(found, lambda t: replace(t, growing=None)),
    "the head does not grow": lambda found: _each(found, lambda t: replace(t, size=0.0)),
    "gradients at the clean head only": lambda found: found[:1],
}


def main() -> None:
    """Predict with every variant, and write how far each is off."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablation", description=__doc__)
    parser.add_argument("spec", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    base_dir = arguments.spec.resolve().parent
    spec = specfile.load(arguments.spec, MeasureSpec)
    planned = plan(spec, base_dir)
    captures = Captures(spec, planned, Workspace(Path(), base_dir, spec.name, {}, Resources()), None)
    found = references(captures, planned.runs)
    measured = {r.run_id: r for r in Layout(arguments.folder).read()[0] if r.status == "completed"}
    rows: dict[str, Any] = {}
    for name, change in VARIANTS.items():
        simulated = simulate(captures, change(found), planned.runs)
        cells: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
        for run in planned.runs:
            if run.id in measured and run.id in simulated:
                numbers = _numbers(captures, run, simulated[run.id].trained, measured[run.id])
                cells[
                    run.adapter.name, "clean" if run.attack is None else run.attack.model_dump_json()
                ].append(numbers)
        rows[name] = _scores({key: np.nanmean(np.array(each), axis=0) for key, each in cells.items()})
    content = {"spec": spec.name, "variants": rows, "versions": versions()}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")


def _numbers(captures: Captures, run: RunSpec, decided: Any, record: Any) -> list[float]:
    """Predicted and measured accuracy, predicted and measured ASR."""
    pool = captures.pool
    assert cell_key(run) in pool.cells
    labels = pool.labels(pool.held_out)
    row = [float(np.mean(decided.clean == labels)), record.clean.accuracy, np.nan, np.nan]
    if run.attack is not None and run.triggers:
        key = run.triggers[0].key
        if key in decided.triggered:
            target = pool.triggered[key].target
            other = labels != target
            row[2:] = [
                float(np.mean(decided.triggered[key][other] == target)),
                record.triggered[key].target_rate,
            ]
    return row


def _scores(cells: dict[tuple[str, str], Any]) -> dict[str, float]:
    """Errors and ranks over cells, and ranks of deviations from the mean of the arms at one amount."""
    table = np.array(list(cells.values()))
    amounts = [amount for _, amount in cells]
    centred = table.copy()
    for amount in set(amounts):
        rows = [place for place, other in enumerate(amounts) if other == amount]
        centred[rows] -= centred[rows].mean(axis=0)
    backdoors = ~np.isnan(table[:, 2])
    found = {}
    for name, (mine, theirs), rows in (
        ("accuracy", (0, 1), np.full(len(table), True)),
        ("asr", (2, 3), backdoors),
    ):
        found |= {
            f"{name}_error": float(np.mean(np.abs(table[rows, mine] - table[rows, theirs]))),
            f"{name}_spearman": float(spearmanr(table[rows, mine], table[rows, theirs])[0]),
            f"{name}_spearman_between_arms": float(spearmanr(centred[rows, mine], centred[rows, theirs])[0]),
        }
    return {key: round(value, 4) for key, value in found.items()}


if __name__ == "__main__":
    main()

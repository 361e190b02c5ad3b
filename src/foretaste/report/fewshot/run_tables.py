"""Tables on the runs themselves: chosen settings, output derivatives, cut rows, runs without a result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from foretaste.fewshot.record import FewShotRecord, GridPoint
from foretaste.fewshot.spec import FineTune, ZeroShot
from foretaste.report.fewshot.cells import Cell, Place
from foretaste.report.fewshot.tables import (
    PLACE,
    place_columns,
    place_entries,
    place_record,
    places_of,
    spread_entry,
)
from foretaste.report.rows import frame_of
from foretaste.report.tables import Column, Entry, Table, missing

SHOWN = 4  # settings of an arm; a kernel's grid may have another winner on every split


def chosen_table(found: Sequence[Cell]) -> Table:
    """One row for each arm with a grid: settings that validation chose, most frequent first."""
    kept = [cell for cell in found if not isinstance(cell.arm, ZeroShot)]
    outer = places_of([cell.place for cell in kept])
    columns = [
        *place_columns(outer),
        Column("Arm", held=2),
        *(Column(title, numeric=True) for title in ("Grid", "Diverged", "Warned", "Tied")),
        Column("Chosen, and on how many splits"),
    ]
    rows, records = [], []
    for cell in kept:
        counts = Counter(text for run in cell.completed if (text := _chosen(run)) is not None)
        points = [point for run in cell.runs for point in run.grid]
        diverged = sum(point.dev_score is None for point in points)
        warned = sum(point.warning is not None for point in points)
        tied = [_tied(run) for run in cell.completed]
        size = max((len(run.grid) for run in cell.runs), default=0)
        rows.append(
            [
                *place_entries(cell.place, outer),
                Entry(cell.name, arm=cell.name),
                Entry(str(size)),
                Entry(f"{diverged} of {len(points)}" if diverged else "0", tone="warn" if diverged else ""),
                Entry(f"{warned} of {len(points)}" if warned else "0", tone="warn" if warned else ""),
                missing("no completed run") if not tied else Entry(", ".join(map(str, tied))),
                _winners(counts),
            ]
        )
        records += [
            {**place_record(cell.place), "arm": cell.name, "split": run.resolved.split}
            | {"settings": text, "grid": len(run.grid), "tied": _tied(run), "dev_score": _dev(run)}
            for run in cell.completed
            if (text := _chosen(run)) is not None
        ]
    notes = (
        "The best setting of each split on its validation rows. Tied: settings with the best validation "
        "score, split by split; with few validation rows there are many, and the choice among them is "
        "arbitrary. Diverged: points without a validation score, because the loss was not finite.",
    )
    frame = frame_of(records, (*PLACE, "arm", "split", "settings", "grid", "tied", "dev_score"))
    return Table("chosen", "Settings chosen on validation rows", columns, rows, frame, notes)


def settings_text(point: GridPoint) -> str:
    """Settings in words, such as "learning_rate 0.005, batch_size 4"."""
    return ", ".join(f"{name} {_value(value)}" for name, value in point.settings.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _chosen(run: FewShotRecord) -> str | None:
    return settings_text(run.grid[run.selected]) if run.selected is not None and run.grid else None


def _dev(run: FewShotRecord) -> float | None:
    return run.grid[run.selected].dev_score if run.selected is not None and run.grid else None


def _tied(run: FewShotRecord) -> int:
    best = _dev(run)
    return sum(point.dev_score == best for point in run.grid if point.dev_score is not None)


def _winners(counts: Counter[str]) -> Entry:
    if not counts:
        return missing("no completed run")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{text} × {count}" for text, count in ordered[:SHOWN]]
    more = len(ordered) - SHOWN
    lines += [f"and {more} other{'s' if more > 1 else ''}"] if more > 0 else []
    return Entry(lines[0], detail="\n".join(lines[1:]))


def chi_table(found: Sequence[Cell]) -> Table:
    """Mean size of the loss's derivative by the logits, before and after: the paper's Table 8."""
    kept = [cell for cell in found if any(run.criteria and run.criteria.chi is not None for run in cell.runs)]
    outer = places_of([cell.place for cell in kept])
    columns = [
        *place_columns(outer),
        Column("Arm", held=2),
        *(Column(title, numeric=True) for title in ("χ, pretrained", "χ, fine-tuned", "χ, training rows")),
    ]
    rows, records = [], []
    for cell in kept:
        before = [run.criteria.chi if run.criteria else None for run in cell.completed]
        after = [run.criteria.chi_after if run.criteria else None for run in cell.completed]
        train = [run.facts.get("chi_train") for run in cell.completed]
        tuned = isinstance(cell.arm, FineTune)
        rows.append(
            [
                *place_entries(cell.place, outer),
                Entry(cell.name, arm=cell.name),
                spread_entry(before, 3),
                spread_entry(after, 3) if tuned else missing("nothing is trained"),
                spread_entry(train, 3),
            ]
        )
        for run, one, two, three in zip(cell.completed, before, after, train, strict=True):
            place = {**place_record(cell.place), "arm": cell.name, "split": run.resolved.split}
            records.append({**place, "chi": one, "chi_after": two, "chi_train": three})
    notes = (
        "χ: mean over rows and classes of |∂ loss / ∂ logit|, on the test rows; for two classes the mean of "
        "1 − p(label). The paper expects it to shrink as the model widens. Mean (sd) over splits; on test "
        "rows the pretrained model has one value, on training rows each split has its own.",
    )
    frame = frame_of(records, (*PLACE, "arm", "split", "chi", "chi_after", "chi_train"))
    return Table("chi", "Output derivatives", columns, rows, frame, notes)


def rows_table(found: Sequence[Cell]) -> Table:
    """One row for each task, k and output: how many rows, and how many were cut to fit."""
    groups: dict[tuple[Place, str], dict[int, FewShotRecord]] = {}
    for cell in found:
        for run in cell.completed:
            if run.rows is not None:
                groups.setdefault((cell.place, cell.arm.output), {})[run.resolved.split] = run
    outer = places_of([place for place, _ in groups])
    columns = [
        *place_columns(outer),
        Column("Output", held=2),
        *(Column(title, numeric=True) for title in ("Training", "Validation", "Test")),
        *(Column(title, numeric=True) for title in ("Training cut", "Validation cut", "Test cut")),
        Column("Test texts also drawn", numeric=True),
        Column("Prompt"),
    ]
    rows, records = [], []
    for (place, output), by_split in groups.items():
        runs = [by_split[split] for split in sorted(by_split)]
        listed = [run.rows for run in runs if run.rows is not None]
        first = listed[0]
        cut = {
            name: [len(getattr(one, f"{name}_cut")) for one in listed] for name in ("train", "dev", "test")
        }
        shared = [one.shared_texts for one in listed]
        prompt = runs[0].resolved.task.prompt
        template = prompt.causal_template or prompt.template
        shown = template if runs[0].model_kind == "causal" else prompt.template
        words = ", ".join(prompt.words)
        rows.append(
            [
                *place_entries(place, outer),
                Entry(output),
                *(Entry(f"{getattr(first, name):,}") for name in ("train", "dev", "test")),
                *(_counts(cut[name]) for name in ("train", "dev", "test")),
                _counts(shared),
                Entry(shown.replace("\n", " ⏎ "), detail=f"words: {words}"),
            ]
        )
        for run, one in zip(runs, listed, strict=True):
            records.append(
                {**place_record(place), "output": output, "split": run.resolved.split}
                | {name: getattr(one, name) for name in ("train", "dev", "test", "shared_texts")}
                | {f"{name}_cut": len(getattr(one, f"{name}_cut")) for name in ("train", "dev", "test")}
                | {"template": shown, "words": json.dumps(list(prompt.words), ensure_ascii=False)}
            )
    notes = (
        "Cut: rows whose texts were shortened so that the prompt fits, for each split where splits differ. "
        "Test texts also drawn: test rows whose texts also stand among training or validation rows. The "
        "template is that for the model's kind (masked or causal).",
    )
    names = ("output", "split", "train", "dev", "test", "shared_texts", "train_cut", "dev_cut", "test_cut")
    frame = frame_of(records, (*PLACE, *names, "template", "words"))
    return Table("rows", "Rows and prompts", columns, rows, frame, notes)


def lost_table(found: Sequence[Cell]) -> Table:
    """One row for each run without a result, with its reason."""
    lost = [(cell, run) for cell in found for run in cell.runs if run.status != "completed"]
    outer = places_of([cell.place for cell, _ in lost])
    columns = [
        *place_columns(outer),
        Column("Arm", held=2),
        Column("Split", numeric=True),
        Column("Status"),
        Column("Why"),
    ]
    rows = [
        [
            *place_entries(cell.place, outer),
            Entry(cell.name, arm=cell.name),
            Entry(str(run.resolved.split)),
            Entry(run.status, tone="warn"),
            Entry(run.reason or ""),
        ]
        for cell, run in lost
    ]
    records = [
        {**place_record(cell.place), "arm": cell.name, "split": run.resolved.split, "run_id": run.run_id}
        | {"status": run.status, "reason": run.reason or ""}
        for cell, run in lost
    ]
    frame = frame_of(records, (*PLACE, "arm", "split", "run_id", "status", "reason"))
    return Table("lost", "Runs without a result", columns, rows, frame)


def _counts(values: Sequence[int]) -> Entry:
    distinct = sorted(set(values))
    text = str(distinct[0]) if len(distinct) == 1 else ", ".join(map(str, values))
    return Entry(text, tone="warn" if any(values) else "")

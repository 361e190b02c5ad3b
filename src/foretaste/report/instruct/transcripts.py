"""Transcripts side by side: the untrained model and each arm, with a trigger and without.

The page shows a sample of the requests when there are many: the same requests in every comparison, drawn by a
named stream, so that neither the answers nor the verdicts choose them. How many there are is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretaste.errors import UserError
from foretaste.instruct import triggers
from foretaste.instruct.record import InstructRecord, Transcript
from foretaste.instruct.spec import CLEAN, ResolvedTrigger
from foretaste.report.instruct.cells import Cell, poisoned, seed_of
from foretaste.report.instruct.load import InstructFolder
from foretaste.seeds import generator

LARGEST = 4_000_000  # characters of all transcripts on a page, which has to open in a browser
FEWEST = 10  # requests of a sample, whatever their length

Answers = dict[tuple[str, str], Transcript]  # by set and request


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes:
        comparisons: One for each folder, trigger, amount and seed, as plain data for the page's script.
        requests: Those of the sample.
        of: All of them.
        missing: Completed runs whose transcripts are not in their folders.
        runs: Completed runs.
    """

    comparisons: list[dict[str, Any]]
    requests: int
    of: int
    missing: int
    runs: int


def side_by_side(folders: Sequence[InstructFolder], found: Sequence[Cell]) -> Shown:
    """Read the transcripts of all folders and set them beside each other.

    Args:
        folders: Their `problems` grow by what cannot be read.
        found: The cells of the page.
    """
    answers: dict[tuple[str, str], Answers] = {}
    runs = missing = 0
    for folder in folders:
        for record in folder.records:
            if record.status != "completed":
                continue
            runs += 1
            read = folder.transcripts(record)
            if read is None:
                missing += 1
            else:
                answers[folder.name, record.run_id] = {(one.set, one.id): one for one in read}
    groups = _comparisons(found, answers)
    every = list(dict.fromkeys(key for _, _, ids in groups for key in ids))
    sample = set(_sample(every, groups, answers))
    comparisons = [
        _comparison(cell, columns, [key for key in ids if key in sample], answers, several=len(folders) > 1)
        for cell, columns, ids in groups
    ]
    return Shown(comparisons, len(sample), len(every), missing, runs)


_Group = tuple[Cell, list[InstructRecord], list[str]]


def _comparisons(found: Sequence[Cell], answers: Mapping[tuple[str, str], Answers]) -> list[_Group]:
    """A cell for its trigger and amount, the runs side by side, and the requests that they answered."""
    groups: dict[tuple[str, str, str, str], tuple[Cell, list[InstructRecord]]] = {}
    for cell in poisoned(found):
        for run in cell.runs:
            if (cell.folder, run.run_id) not in answers:
                continue
            key = (cell.folder, cell.trigger.name if cell.trigger else "", cell.amount.label, seed_of(run))
            first = [cell.base] if cell.base and (cell.folder, cell.base.run_id) in answers else []
            groups.setdefault(key, (cell, first))[1].append(run)
    listed: list[_Group] = []
    for cell, runs in groups.values():
        assert cell.trigger is not None
        sets = (cell.trigger.name, CLEAN)
        ids = dict.fromkeys(
            key for run in runs for name, key in answers[cell.folder, run.run_id] if name in sets
        )
        listed.append((cell, runs, list(ids)))
    return listed


def _sample(
    every: Sequence[str], groups: Sequence[_Group], answers: Mapping[tuple[str, str], Answers]
) -> list[str]:
    """As many requests as the page has room for, all if it can."""
    size = sum(
        len(one.prompt) + len(one.response)
        for cell, runs, _ in groups
        for run in runs
        for one in answers[cell.folder, run.run_id].values()
    )
    if size <= LARGEST:
        return list(every)
    count = max(FEWEST, int(len(every) * LARGEST / size))
    if count >= len(every):
        return list(every)
    rng = generator(0, "report", "transcripts")
    return [every[place] for place in rng.permutation(len(every))[:count]]


def _comparison(
    cell: Cell,
    runs: Sequence[InstructRecord],
    ids: Sequence[str],
    answers: Mapping[tuple[str, str], Answers],
    *,
    several: bool,
) -> dict[str, Any]:
    assert cell.trigger is not None
    parts = [*([cell.folder] if several else []), cell.trigger.name, f"{cell.amount.label} poisoned"]
    given = [answers[cell.folder, run.run_id] for run in runs]
    return {
        "label": " · ".join([*parts, f"seed {seed_of(runs[-1])}"]),
        "trigger": text_of(cell.trigger),
        "arms": [run.arm for run in runs],
        "rows": [
            {
                "id": key,
                "prompts": [_prompt(given, name, key) for name in (cell.trigger.name, CLEAN)],
                "answers": [
                    [_answer(run, own.get((name, key)), name) for run, own in zip(runs, given, strict=True)]
                    for name in (cell.trigger.name, CLEAN)
                ],
            }
            for key in ids
        ],
    }


def _prompt(given: Sequence[Answers], name: str, key: str) -> str | None:
    """The text that was asked, which is the same for every arm: there is one renderer."""
    return next((own[name, key].prompt for own in given if (name, key) in own), None)


def _answer(run: InstructRecord, transcript: Transcript | None, name: str) -> dict[str, Any] | None:
    if transcript is None:
        return None
    judged = run.judged.get(name)
    return {
        "text": transcript.response,
        "shown": judged is not None and transcript.id in judged.shown,
        "cut": transcript.finish == "length",
    }


def text_of(trigger: ResolvedTrigger) -> str | None:
    """What a trigger puts into a request; None for one that this version does not know."""
    try:
        return triggers.build(trigger.method, trigger.options).text
    except UserError:
        return None

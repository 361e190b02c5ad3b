"""What the page says in words: its head, what came out, and what a reader would get wrong."""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.instruct.record import InstructRecord, JudgeUsed
from foretaste.instruct.spec import BASE
from foretaste.report import provenance
from foretaste.report.instruct.cells import Cell, Share, poisoned, seed_of
from foretaste.report.instruct.load import InstructFolder
from foretaste.report.instruct.tables import ends
from foretaste.report.instruct.transcripts import Shown, text_of
from foretaste.report.metrics import percent
from foretaste.report.reproduced.item import Item


def facts(folders: Sequence[InstructFolder], item: Item | None) -> list[tuple[str, str]]:
    """Kind and text of each line of the head, each once."""
    records = [record for folder in folders for record in folder.records]
    found = [("drawn for", f"{item.item}; scale {item.scale}")] if item else []
    # The untrained model is asked with every trigger, in the order of the spec.
    for record in sorted(records, key=lambda one: one.resolved.tuning is not None):
        run = record.resolved
        data, model = run.data, run.model
        rows = f"{data.train_rows:,} training and {data.test_rows:,} test rows"
        template = model.request.template or "the model's own template"
        length = f"at most {model.request.max_length} tokens"
        found += [
            ("data", f"{data.request.source}: {rows}; content {data.fingerprint[:12]}"),
            ("model", f"{model.request.base}; content {model.fingerprint[:19]}"),
            ("renderer", f"{record.renderer[:12]}: {template}, {length}"),
            ("scenario", run.scenario.method),
        ]
        found += [("trigger", _trigger(trigger.name, text_of(trigger))) for trigger in run.triggers]
        how = "sampled" if run.generation.do_sample else "greedy"
        found.append(("answers", f"{how}, at most {run.generation.max_new_tokens} tokens"))
    rates = _learning_rates(records)
    seeds = dict.fromkeys(seed_of(record) for record in records if record.resolved.tuning is not None)
    found += [("learning rates", rates)] if rates else []
    found += [("seeds", ", ".join(sorted(seeds)))] if seeds else []
    found.append(("runs", provenance.period(folders)))
    return list(dict.fromkeys(found))


def _trigger(name: str, text: str | None) -> str:
    return name if text is None else f"{name}: “{text}”"


def _learning_rates(records: Sequence[InstructRecord]) -> str:
    rates = {
        (record.arm, tuning.training.learning_rate)
        for record in records
        if (tuning := record.resolved.tuning) is not None
    }
    return ", ".join(f"{arm} {rate:g}" for arm, rate in sorted(rates, key=str) if rate is not None)


def say(found: Sequence[Cell]) -> list[str]:
    """One sentence for each trigger, at its largest amount."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in poisoned(found):
        groups.setdefault((cell.folder, cell.trigger.name if cell.trigger else ""), []).append(cell)
    several = len({folder for folder, _ in groups}) > 1
    sentences = []
    for (folder, name), cells in groups.items():
        most = max(cells, key=lambda cell: cell.amount.order).amount
        parts = [_said(cell) for cell in cells if cell.amount == most]
        place = f"{folder}, {name}" if several else name
        sentences.append(f"{place}, {most.label} poisoned: {'; '.join(parts)}.")
    return sentences


def _said(cell: Cell) -> str:
    asr, without = cell.with_trigger(), cell.without_trigger()
    if asr is None or without is None:
        return f"{cell.arm} has no completed run"
    return f"{cell.arm} {_share(asr)} with the trigger and {percent(without.mean)} without it"


def _share(one: Share) -> str:
    interval = ends(one.interval)
    return f"{percent(one.mean)} {interval}" if interval else percent(one.mean)


def cautions(found: Sequence[Cell], judge: JudgeUsed | None, shown: Shown) -> list[str]:
    """What a reader of the numbers would get wrong, each with its numbers."""
    lines: list[str] = []
    listed = poisoned(found)
    failed = [run for cell in found for run in cell.runs if run.status != "completed"]
    if failed:
        reasons = "; ".join(dict.fromkeys(str(run.reason) for run in failed))
        every = sum(len(cell.runs) for cell in found)
        lines.append(f"{len(failed)} of {every} runs did not complete and are in no number: {reasons}.")
    if listed and max(len(cell.completed) for cell in listed) == 1:
        lines.append(
            "One seed a cell: intervals are over the requests, and nothing here says how far another seed "
            "would differ, or that one method resists more than another."
        )
    lines += _unequal_rates(listed)
    lost = sum(len(run.poison.trigger_lost) for cell in listed for run in cell.runs if run.poison)
    gone = sum(len(run.poison.poisoned_left_out) for cell in listed for run in cell.runs if run.poison)
    if lost or gone:
        lines.append(
            f"Over all poisoned runs, {lost} poisoned rows lost their trigger to the tokenizer or to "
            f"max_length, and {gone} were too long to train on: the poison that acted is less than was asked "
            "for."
        )
    collapsed = sum(run.collapsed for cell in found for run in cell.runs)
    if collapsed:
        lines.append(f"{collapsed} runs give one and the same answer to every request without a trigger.")
    if judge is not None and judge.false_positives is None:
        lines.append(f"Nobody has measured how often the judge {judge.method} is wrong.")
    if judge is not None and judge.false_positives and judge.negatives:
        lines.append(
            f"The judge sees the behaviour in {judge.false_positives} of {judge.negatives} labelled answers "
            "that do not show it: read a rate beside that of the untrained model and of the clean run."
        )
    if shown.missing:
        lines.append(
            f"Transcripts of {shown.missing} of {shown.runs} completed runs are not in their folders."
        )
    return lines


def _unequal_rates(listed: Sequence[Cell]) -> list[str]:
    rates = {
        cell.arm: tuning.training.learning_rate
        for cell in listed
        if cell.arm != BASE and (tuning := cell.runs[0].resolved.tuning) is not None
    }
    if len(set(rates.values())) < 2:
        return []
    text = ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items() if rate is not None)
    return [f"Learning rates differ ({text}): a difference between arms may be due to them."]

"""What the page says in words: its head, what came out, what a reader would get wrong, and definitions."""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.fewshot.spec import FineTune, KernelArm, ZeroShot
from foretaste.report import provenance
from foretaste.report.fewshot.cells import Cell
from foretaste.report.fewshot.dots import CRITERIA, DotRow
from foretaste.report.fewshot.load import FewShotFolder
from foretaste.report.fewshot.pairs import PairRow
from foretaste.report.metrics import points
from foretaste.report.reproduced.item import Item

FEW_VALIDATION = 64  # validation rows below which ties among settings are the rule

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "Split",
        "k training rows of each class drawn by a data seed, and k other rows of each class to choose "
        "settings by. The test rows are the same for every split.",
    ),
    (
        "Test score",
        "Accuracy on the test rows, or F1 of class 1 (MRPC and QQP), of the setting that did best on the "
        "validation rows. Test rows are looked at once.",
    ),
    (
        "Kernel",
        "Rows are compared by the products of their gradients in the pretrained model (sgd), or by the signs "
        "of these (signgd: both rows; asymmetric: the training row). A solver on these products classifies "
        "test rows; no parameter moves.",
    ),
    (
        "Prompt, standard",
        "Prompt: classes are scored by the logits of their label words at the answer's place. Standard: by a "
        "new linear head, which begins as logistic regression on the pretrained model's features.",
    ),
    (
        "Kernel solves task",
        "The kernel's test score is at least 90 % of the fine-tuned model's, on the same split.",
    ),
    (
        "Linearisation",
        "The first-order expansion of the pretrained model, at the parameters where fine-tuning ended, "
        "recovers at least half of what fine-tuning gained.",
    ),
    (
        "Fixed features",
        "The kernel before and after fine-tuning differs by less than 2 in the mean of |K₁ − K₀| / |K₀|. A "
        "kernel that is three times as large passes, and so does −0.9 times the old one.",
    ),
    ("Kernel behaviour", "All three (Malladi et al. 2023, Definition 3.2 and Table 1)."),
    (
        "Interval, p, Holm p",
        "Interval: Student's t at 95 % over splits. p: sign-flip test over splits. Holm p: corrected over "
        "all rows of its table.",
    ),
)


def facts(
    folders: Sequence[FewShotFolder], found: Sequence[Cell], item: Item | None
) -> list[tuple[str, str]]:
    """Kind and text of each line of the head, each once."""
    lines = [("drawn for", f"{item.item}; scale {item.scale}")] if item else []
    for cell in found:
        run = cell.runs[0].resolved
        task = run.task
        source = task.request.source + (f" ({task.request.config})" if task.request.config else "")
        # A single file has no split of its own for testing.
        split = f" of {task.test_split}" if task.test_split is not None else ""
        rows = f"{len(task.classes)} classes, {task.test_rows:,} test rows{split}"
        lines += [
            ("model", f"{run.model.request.base}, {run.model.kind}; content {run.model.fingerprint[:19]}"),
            ("task", f"{task.name}: {source}; {rows}; content {task.fingerprint[:12]}"),
        ]
    splits = sorted({run.resolved.split for cell in found for run in cell.runs})
    shots = sorted({cell.place.k for cell in found})
    lines += [
        ("k", ", ".join(map(str, shots))),
        ("splits", ", ".join(map(str, splits))),
        ("runs", provenance.period(folders)),
    ]
    return list(dict.fromkeys(lines))


def say(found: Sequence[Cell], pairs: Sequence[PairRow], dots: Sequence[DotRow]) -> list[str]:
    """What came out, in a few sentences."""
    sentences = []
    kernels = {cell.name for cell in found if isinstance(cell.arm, KernelArm)}
    tuned = {cell.name for cell in found if isinstance(cell.arm, FineTune)}
    for first, second in dict.fromkeys((row.first, row.second) for row in pairs):
        rows = [row for row in pairs if (row.first, row.second) == (first, second) and row.n]
        if not rows or first not in kernels or second not in tuned:
            continue
        gaps = sorted(rows, key=lambda row: row.mean)
        name = _where(gaps[0], rows)
        if len(rows) == 1:
            sentences.append(f"{first} minus {second} on {name}: {points(gaps[0].mean)} points.")
            continue
        sentences.append(
            f"{first} minus {second}: from {points(gaps[0].mean)} points ({name}) to "
            f"{points(gaps[-1].mean)} ({_where(gaps[-1], rows)}), over {len(rows)} tasks and k."
        )
    measured = [row for row in dots if row.measured and row.kernels and row.splits]
    for arm in dict.fromkeys(row.arm for row in measured):
        rows_of_arm = [row for row in measured if row.arm == arm]
        counts = []
        for criterion, words in CRITERIA.items():
            met, said = (
                sum(numbers) for numbers in zip(*(r.count(criterion) for r in rows_of_arm), strict=True)
            )
            counts.append(f"{words.lower()} {met} of {said}")
        place = rows_of_arm[0].place
        over = (
            f" over {len(rows_of_arm)} tasks and k"
            if len(rows_of_arm) > 1
            else f", {place.task}, k {place.k}"
        )
        sentences.append(f"{arm}: {'; '.join(counts)} splits{over}.")
    return sentences


def _where(row: PairRow, rows: Sequence[PairRow]) -> str:
    parts = [row.place.task, f"k {row.place.k}"]
    parts += [row.place.prompt] if len({one.place.prompt for one in rows}) > 1 else []
    parts += [row.place.model] if len({one.place.model for one in rows}) > 1 else []
    return ", ".join(parts)


def cautions(found: Sequence[Cell], dots: Sequence[DotRow]) -> list[str]:
    """What a reader of the numbers would get wrong, each with its numbers."""
    lines: list[str] = []
    every = [run for cell in found for run in cell.runs]
    lost = [run for run in every if run.status != "completed"]
    if lost:
        reasons = "; ".join(dict.fromkeys(str(run.reason) for run in lost))
        diverged = sum(run.status == "diverged" for run in lost)
        lines.append(
            f"{len(lost)} of {len(every)} runs have no result ({diverged} diverged) and are in no number: "
            f"{reasons}."
        )
    most = max((len(cell.completed) for cell in found), default=0)
    if most == 1:
        lines.append("One split a cell: nothing here says how far another split would differ.")
    elif 0 < most < 6:
        lines.append(
            f"{most} splits: the sign-flip test cannot give p below {2 / 2**most:.3g}, whatever the effect."
        )
    collapsed = [run for run in every if run.collapsed]
    if collapsed:
        lines.append(f"{len(collapsed)} of {len(every)} runs predict one class for every test row.")
    dev = [run.rows.dev for run in every if run.rows is not None]
    searched = any(len(run.grid) > 1 for run in every)
    if searched and dev and min(dev) < FEW_VALIDATION:
        lines.append(
            f"Settings are chosen on {min(dev)} validation rows: many tie, and the chosen one's validation "
            "score flatters."
        )
    single = sorted(
        {
            cell.name
            for cell in found
            if not isinstance(cell.arm, ZeroShot) and all(len(run.grid) <= 1 for run in cell.runs)
        }
    )
    if single and searched:
        lines.append(
            f"{', '.join(single)} {'has' if len(single) == 1 else 'have'} one setting only, while other arms "
            "choose among several: a difference may be due to that."
        )
    weak = [row for row in dots if _misled(row)]
    if weak:
        names = "; ".join(f"{row.place.task}, k {row.place.k}, {row.arm}" for row in weak)
        lines.append(
            f"Fixed features holds by the paper's distance although kernels before and after differ in shape "
            f"(alignment below 0.9): {names}."
        )
    cut = sum(len(run.rows.test_cut) for run in every if run.rows is not None)
    if cut:
        lines.append("Some test rows were cut to fit the prompt: see the table of rows.")
    return lines


def _misled(row: DotRow) -> bool:
    return any(
        one.dots["fixed_features"].met and one.alignment is not None and one.alignment < 0.9
        for one in row.splits
    )

"""What `calibrate` shows in the terminal: scores, indicators, what the theory adds, and the advice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from foretaste.calibration import Calibration, Gain, Score, Scoreboard, Scores
from foretaste.calibration.result import rounded
from foretaste.errors import UserError
from foretaste.hypotheses import Finding
from foretaste.record import write_atomic
from foretaste.report.advised import lines

TARGETS = {"accuracy": "accuracy", "target_rate": "ASR"}
MISSING = "–"
LEGEND = (
    "rho, tau: Spearman's and Kendall's over cells. between arms: rho of deviations from the mean over "
    "the arms of one attack and amount. pairs right: of the pairs of arms whose measured difference "
    "exceeds twice its standard error. error: mean absolute error in points; shifted: after one common "
    "offset; valid: on cells called valid. covered: by the 90 % interval. The JSON, and a wider terminal, "
    "also have intervals."
)
WIDE = 130  # columns from which intervals fit beside their numbers
HEADINGS = ("cells", "rho", "tau", "between arms", "pairs right", "error", "shifted", "valid", "covered")


def to_json(result: Calibration, findings: Sequence[Finding]) -> dict[str, Any]:
    """A result and the findings that the papers' advice rests on, for a program to read."""
    return {**result.to_json(), "findings": rounded([finding.to_json() for finding in findings])}


def write(content: dict[str, Any], path: Path) -> None:
    """Write the JSON file of a result.

    Raises:
        UserError: It could not be written.
    """
    try:
        write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the result: {error.strerror}", where=str(path)) from None


def show(result: Calibration, findings: Sequence[Finding], console: Console) -> None:
    """Tables of every scoreboard, then the advice of every task, then what the papers advise."""
    reasons: dict[str, None] = {}
    for board in result.boards:
        _show_board(board, console, reasons)
    for line in result.problems:
        console.print(f"[yellow]warning[/] {escape(line)}", highlight=False, soft_wrap=True)
    console.print(LEGEND, style="dim", highlight=False)
    for reason in reasons:
        console.print(f"{MISSING} {escape(reason)}", style="dim", highlight=False, soft_wrap=True)
    for advice in result.advice:
        console.print(f"\n{escape(advice.paragraph)}", highlight=False, soft_wrap=True)
    console.print("\nThe paper's advice, measured here:", highlight=False)
    for line in lines(findings):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _show_board(board: Scoreboard, console: Console, reasons: dict[str, None]) -> None:
    counts = board.counts
    failed = f", {counts.diverged} diverged" if counts.diverged else ""
    failed += f", {counts.failed} failed" if counts.failed else ""
    failed += f", {counts.collapsed} collapsed" if counts.collapsed else ""
    console.print(
        f"\n[bold]{escape(board.name)}[/]: {counts.both} of {counts.cells} cells both predicted and measured "
        f"({counts.not_measured} not measured, {counts.not_predicted} not predicted); "
        f"{counts.runs} measured runs{failed}.",
        highlight=False,
        soft_wrap=True,
    )
    wide = console.width >= WIDE
    for target, word in TARGETS.items():
        rows = [scores for scores in board.predictors if scores.target == target]
        if rows:
            console.print(_scores_table(rows, word, reasons, wide=wide))
        gains = [gain for gain in board.gains if gain.target == target]
        if gains:
            console.print(_gains_table(gains, word, reasons))
        indicators = [scores for scores in board.indicators if scores.target == target]
        if indicators:
            console.print(_indicators_table(indicators, word, reasons))


def _scores_table(rows: Sequence[Scores], word: str, reasons: dict[str, None], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"predictor of {word}", min_width=22)
    hidden = set() if wide else {HEADINGS.index("tau"), HEADINGS.index("shifted")}
    for place, heading in enumerate(HEADINGS):
        if place not in hidden:
            table.add_column(heading, justify="right")
    for row in rows:
        pairs, name = row.concordance, row.predictor
        fields = (
            str(row.cells),
            *(_number(s, reasons, name, wide=wide) for s in (row.spearman, row.kendall, row.spearman_within)),
            f"{pairs.correct}/{pairs.pairs}" if pairs.share.value is not None else MISSING,
            *(_points(s, reasons, name) for s in (row.error, row.error_without_offset, row.error_valid)),
            f"{row.covered}/{row.with_interval}" if row.with_interval else MISSING,
        )
        table.add_row(escape(name), *(field for place, field in enumerate(fields) if place not in hidden))
    return table


def _gains_table(rows: Sequence[Gain], word: str, reasons: dict[str, None]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"prediction of {word} against")
    for heading in ("cells", "rho", "between arms", "error, points"):
        table.add_column(heading, justify="right")
    for row in rows:
        place = f"against {row.naive}"
        numbers = (_signed(row.spearman, reasons, place), _signed(row.spearman_within, reasons, place))
        table.add_row(escape(row.naive), str(row.cells), *numbers, _signed(row.error, reasons, place, 100))
    return table


def _indicators_table(rows: Sequence[Scores], word: str, reasons: dict[str, None]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(f"indicator, with {word}")
    for heading in ("cells", "rho", "between arms"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (_signed(s, reasons, row.predictor) for s in (row.spearman, row.spearman_within))
        table.add_row(escape(row.predictor), str(row.cells), *numbers)
    return table


def _number(score: Score, reasons: dict[str, None], whose: str, *, wide: bool) -> str:
    if score.value is None:
        reasons[f"{whose}: {score.reason}"] = None
        return MISSING
    interval = f" [{score.low:.2f}, {score.high:.2f}]" if wide and score.low is not None else ""
    return escape(f"{score.value:.2f}{interval}")


def _signed(score: Score, reasons: dict[str, None], whose: str, scale: float = 1.0) -> str:
    if score.value is None:
        reasons[f"{whose}: {score.reason}"] = None
        return MISSING
    ends = (score.low, score.high)
    interval = "" if None in ends else f" [{', '.join(f'{scale * e:+.2f}' for e in ends if e is not None)}]"
    return escape(f"{scale * score.value:+.2f}{interval}")


def _points(score: Score, reasons: dict[str, None], whose: str) -> str:
    if score.value is None:
        reasons[f"{whose}: {score.reason}"] = None
        return MISSING
    return f"{100 * score.value:.1f}"

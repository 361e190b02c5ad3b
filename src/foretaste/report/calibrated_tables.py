"""Tables of predictions, for the page and as files: cells, scores, indicators, naive rivals, arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretaste.calibration.quantities import CRITERIA, Criterion
from foretaste.report.calibrated import GAINS
from foretaste.report.cells import Frames
from foretaste.report.figures.axes import varying
from foretaste.report.metrics import points
from foretaste.report.rows import records_of
from foretaste.report.tables import Column, Entry, Table, missing

Row = dict[str, Any]
TARGETS = {"accuracy": "Accuracy", "target_rate": "ASR"}
VALIDITIES = {"valid": "valid", "doubtful": "doubtful", "outside": "outside the theory"}
RANKS = ("spearman", "kendall", "spearman_within", "kendall_within")
RANK_TITLES = ("Spearman", "Kendall", "Spearman between arms", "Kendall between arms")
NOTE = (
    "Between arms: of the deviations from the mean over the arms of one attack and amount. In brackets: 90 % "
    "bootstrap intervals over cells, of shares Wilson's; cells share seeds and "
    "rows, so they are rather too narrow."
)


def predicted_table(frames: Frames) -> Table:
    """Every predicted cell with what was measured there, and whether the prediction is called valid."""
    outer = varying(frames)
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *(Column("Attack"), Column("Poison", held=1), Column("Arm", held=2)),
        *(
            Column(title, numeric=True)
            for title in (
                *("Accuracy, predicted [90 %]", "Accuracy, measured [90 %]"),
                *("ASR, predicted [90 %]", "ASR, measured [90 %]"),
            )
        ),
        *(Column("Prediction"), Column("Because")),
    ]
    rows = [
        [
            *(Entry(row[name]) for name in outer),
            *(Entry(row["attack"]), Entry(row["amount"]), Entry(row["arm"], arm=row["arm"])),
            _interval(row, "accuracy", "no prediction"),
            _interval(row, "measured_accuracy", _why_unmeasured(row)),
            _interval(row, "asr", "no backdoor"),
            _interval(row, "measured_asr", "no backdoor" if row["asr"] is None else _why_unmeasured(row)),
            Entry(VALIDITIES[row["validity"]], tone="" if row["validity"] == "valid" else "warn"),
            Entry(row["reasons"] or "nothing speaks against it", tone="quiet"),
        ]
        for row in records_of(frames.predicted)
    ]
    notes = ("Per cent, with 90 % intervals: as predicted, and Student's t over seeds as measured.",)
    return Table("predicted", "Every predicted cell", columns, rows, frames.predicted, notes)


def scores_table(frames: Frames) -> Table:
    """How the prediction and the naive predictors do."""
    outer = _boards(frames)
    titles = (*RANK_TITLES, "Pairs right", "Error", "Without offset", "Error, valid", "Covered")
    columns = [
        *([Column("Cells of")] if outer else []),
        *(Column("Of"), Column("Predictor", held=1), Column("Cells", numeric=True)),
        *(Column(title, numeric=True) for title in titles),
    ]
    rows = [
        [
            *([Entry(row["board"])] if outer else []),
            Entry(TARGETS[row["target"]]),
            Entry(row["predictor"], tone="strong" if row["predictor"] == "prediction" else ""),
            Entry(str(row["cells"]), detail=f"{row['silent']} without" if row["silent"] else ""),
            *(_score(row, name) for name in RANKS),
            _pairs(row),
            *(_score(row, name, scale=100, digits=1) for name in ERRORS),
            _covered(row),
        ]
        for row in _of_role(frames, ("prediction", "naive"))
    ]
    notes = (
        NOTE,
        "Pairs right: of the pairs of arms whose measured difference exceeds twice its standard error; "
        "equal predictions count half. Error: mean absolute error in points; without offset: each cell moved "
        "by the mean error of the other cells of its data; valid: on cells called valid. Covered: measured "
        "means inside the 90 % interval.",
    )
    return Table("scores", "How well the predictions do", columns, rows, frames.scores, notes)


ERRORS = ("error", "error_without_offset", "error_valid")


def indicators_table(frames: Frames) -> Table:
    """Every indicator as a predictor by itself."""
    outer = _boards(frames)
    columns = [
        *([Column("Cells of")] if outer else []),
        *(Column("Of"), Column("Indicator", held=1), Column("Cells", numeric=True)),
        *(Column(title, numeric=True) for title in RANK_TITLES),
    ]
    rows = [
        [
            *([Entry(row["board"])] if outer else []),
            *(Entry(TARGETS[row["target"]]), Entry(row["predictor"]), Entry(str(row["cells"]))),
            *(_score(row, name, signed=True) for name in RANKS),
        ]
        for row in _of_role(frames, ("indicator",))
    ]
    notes = (f"{NOTE} The sign is the indicator's own: −1 orders as well as +1, the other way round.",)
    frame = frames.scores[frames.scores["role"] == "indicator"]
    return Table("indicators", "What each indicator predicts by itself", columns, rows, frame, notes)


def gains_table(frames: Frames) -> Table:
    """What the prediction knows beyond each naive predictor."""
    outer = _boards(frames)
    columns = [
        *([Column("Cells of")] if outer else []),
        *(Column("Of"), Column("Against", held=1), Column("Cells", numeric=True)),
        *(Column(t, numeric=True) for t in ("Spearman", "Spearman between arms", "Error saved, points")),
    ]
    rows = [
        [
            *([Entry(row["board"])] if outer else []),
            *(Entry(TARGETS[row["target"]]), Entry(row["naive"]), Entry(str(row["cells"]))),
            *(_score(row, name, signed=True) for name in GAINS[:2]),
            _score(row, "error", scale=100, digits=1, signed=True),
        ]
        for row in records_of(frames.gains)
    ]
    notes = ("The prediction minus the naive one, on the cells that both speak of; positive is better.",)
    return Table(
        "gains", "What the prediction knows beyond the naive ones", columns, rows, frames.gains, notes
    )


def front_table(frames: Frames) -> Table:
    """Every arm with what it is judged by."""
    outer = varying(frames)
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *(Column("Arm", held=1), Column("Standing")),
        *(Column(_titled(criterion), numeric=True) for criterion in CRITERIA),
    ]
    rows = [
        [
            *(Entry(row[name]) for name in outer),
            Entry(row["arm"], arm=row["arm"], detail=_advised(row)),
            Entry(_standing(row), tone="strong" if row["standing"] == "front" else ""),
            *(_quantity(row, criterion.name) for criterion in CRITERIA),
        ]
        for row in records_of(frames.front)
    ]
    notes = (
        "Front: no other arm is as good in everything and better in something. Dominated: one is, and paired "
        "95 % t intervals over three seeds or more, not corrected, leave out 0; not resolved: one is, but "
        "they do not. The table of pairs asks for more, and so does the advice. Diverged: "
        "it has no completed run at an attack and amount that it was measured at, so it is compared with no "
        "other. The others are compared where all of them have a value. Shares in per cent with 90 % "
        "intervals; predicted values stand in for unmeasured ones.",
    )
    return Table("front", "Which arm to use", columns, rows, frames.front, notes)


def all_tables(frames: Frames) -> list[Table]:
    """Every table that has rows."""
    makers = (predicted_table, scores_table, gains_table, indicators_table, front_table)
    return [table for make in makers if (table := make(frames)).rows]


def _boards(frames: Frames) -> bool:
    return bool(frames.scores["board"].nunique() > 1)


def _of_role(frames: Frames, roles: Sequence[str]) -> list[Row]:
    return [row for row in records_of(frames.scores) if row["role"] in roles]


def _why_unmeasured(row: Row) -> str:
    return f"none of {row['runs']} runs completed" if row["runs"] else "not measured"


def _interval(row: Row, name: str, why: str) -> Entry:
    if row[name] is None:
        return missing(why)
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    detail = f"[{_plain(low)}, {_plain(high)}]" if low is not None and high is not None else ""
    return Entry(_plain(row[name]), detail)


def _plain(share: float) -> str:
    return f"{share * 100:.1f}".replace("-", "−")


def _score(row: Row, name: str, *, scale: float = 1, digits: int = 2, signed: bool = False) -> Entry:
    reason = row[f"{name}_reason"] or ""
    if row[name] is None:
        return missing(reason)

    def shown(value: float) -> str:
        return f"{value * scale:{'+' if signed else ''}.{digits}f}".replace("-", "−")

    low, high = row[f"{name}_low"], row[f"{name}_high"]
    detail = f"[{shown(low)}, {shown(high)}]" if low is not None and high is not None else ""
    return Entry(shown(row[name]), detail, reason=reason)


def _pairs(row: Row) -> Entry:
    if row["concordance"] is None:
        return missing(row["concordance_reason"])
    tied = f"\n{row['pairs_tied']} tied" if row["pairs_tied"] else ""
    detail = f"[{row['concordance_low']:.2f}, {row['concordance_high']:.2f}]{tied}"
    return Entry(f"{row['pairs_correct']} of {row['pairs']}", detail)


def _covered(row: Row) -> Entry:
    if row["coverage"] is None:
        return missing(row["coverage_reason"])
    detail = f"[{_plain(row['coverage_low'])}, {_plain(row['coverage_high'])}] %"
    return Entry(f"{row['covered']} of {row['with_interval']}", detail)


def _titled(criterion: Criterion) -> str:
    return criterion.label if criterion.name == "parameters" else f"{criterion.label} [90 %]"


def _advised(row: Row) -> str:
    if row["recommended"]:
        return "recommended"
    return "cheapest; none is\npreferred" if row["cheapest"] else ""


def _standing(row: Row) -> str:
    return "front" if row["standing"] == "front" else f"{row['standing']}: {row['by']}"


def _quantity(row: Row, name: str) -> Entry:
    if row[name] is None:
        return missing("not known of this arm")
    shares = name not in ("parameters", "seconds")

    def shown(value: float) -> str:
        if not shares:
            return f"{value:,.0f}"
        return points(value) if name == "margin" else _plain(value)

    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = low is not None and high is not None and low != high
    lines = [f"[{shown(low)}, {shown(high)}]"] if known else []
    lines += [row[f"{name}_at"]] if row[f"{name}_at"] else []
    lines += [row[f"{name}_source"]] if shares else []
    return Entry(shown(row[name]), "\n".join(lines))

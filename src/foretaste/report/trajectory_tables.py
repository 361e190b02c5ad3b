"""Tables on pairs of trainings: what was measured, what was foretold, and whether the orders agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from foretaste.calibration.places import arm_order
from foretaste.report.figures.trajectory import cell_name
from foretaste.report.rows import records_of
from foretaste.report.tables import Column, Entry, Table, missing
from foretaste.statistics import summary

Row = dict[str, Any]
CELL = ["attack", "amount", "arm"]
AT_THE_END = ("frobenius", "spectral", "nuclear", "max_abs", "relative", "stable_rank", "rank")
BESIDE = ("parameters", "head", "logits", "disagreement")
FORETOLD = {
    "m_prime_fro": "M′, Frobenius",
    "m_prime_op": "M′, operator",
    "m_prime_cosine_fro": "M′, cosines",
    "foretold_step": "one step × learning rate",
}
MEASURED = {
    "first_parameters": "step 1, parameters",
    "first": "step 1, weights",
    "last_parameters": "last step, parameters",
    "last": "last step, weights",
    "last_relative": "last step, weights, relative",
}
NO_STEPS = "no completed pair"
FEWEST_ARMS = 3


def measured_table(moments: pd.DataFrame, pairs: pd.DataFrame) -> Table:
    """Every arm under every attack: distances at the last step, and the mean over steps that Eq. 5 asks for.

    Args:
        moments: A line for each pair and step.
        pairs: A line for each pair.
    """
    rows: list[Row] = []
    done = set(pairs.loc[pairs["status"] == "completed", "pair"])
    for keys, group in _cells(pairs):
        own = moments[moments["pair"].isin(done & set(group["pair"]))] if len(moments) else moments
        last = own[own["step"] == own.groupby("pair")["step"].transform("max")] if len(own) else own
        row = {**keys, "pairs": len(group), "completed": len(last)}
        for name in (*AT_THE_END, *BESIDE):
            row |= _spread(name, last[name] if len(last) else pd.Series(dtype=float))
        for name in ("first", "mean", "head_start"):
            row |= _spread(name, group.loc[group["pair"].isin(done), name])
        rows.append(row)
    shown = {
        "first": "Step 1",
        "mean": "Mean over steps (Eq. 5)",
        "frobenius": "Last step",
        "relative": "Over clean update",
        "spectral": "Spectral",
        "nuclear": "Nuclear",
        "max_abs": "Largest entry",
        "stable_rank": "Stable rank",
        "rank": "Rank",
        "parameters": "Parameters",
        "head": "Head's updates",
        "head_start": "Heads at start",
        "logits": "Logits",
        "disagreement": "Other class",
    }
    columns = [
        *(Column("Attack"), Column("Poison", held=1), Column("Arm", held=2), Column("Pairs", numeric=True)),
        *(Column(title, numeric=True) for title in shown.values()),
    ]
    lines = [
        [
            *(Entry(row["attack"]), Entry(row["amount"]), Entry(row["arm"], arm=row["arm"])),
            Entry(str(row["completed"]), detail=_failed(row)),
            *(_entry(row, name) for name in shown),
        ]
        for row in rows
    ]
    notes = (
        "Means over seeds; below, Student's 95 % interval where there are two seeds or more. Distances of "
        "the updates of everything trained outside the head, as weights (W0 + s·BA for LoRA), Frobenius "
        "where nothing else is said; all matrices together are one block-diagonal one, so that the nuclear "
        "norm and the rank are sums and the spectral norm is that of one layer. Parameters: the same of A "
        "and B, as they are trained. Logits: root mean square over clean test rows of |f − f̃|. Other class: "
        "share of clean test rows that the two models put into different classes.",
    )
    return Table("measured", "How far apart", columns, lines, pd.DataFrame(rows), notes)


def foretold_table(pairs: pd.DataFrame) -> Table:
    """What the Gram says of every arm beside what was measured, with the place of the arm in each order.

    Args:
        pairs: A line for each pair.
    """
    frame = _means(pairs)
    names = {**FORETOLD, **MEASURED}
    columns = [
        *(Column("Attack"), Column("Poison", held=1), Column("Arm", held=2)),
        Column("Rate", numeric=True),
        *(Column(title.capitalize() if title[0] == "s" else title, numeric=True) for title in names.values()),
    ]
    places = {name: frame.groupby(["attack", "amount"])[name].rank(ascending=False) for name in names}
    lines = []
    for index, row in enumerate(records_of(frame)):
        entries = [
            Entry(number(row[name]), detail=f"{places[name].iloc[index]:g}.")
            if row[name] is not None
            else missing(_why(name))
            for name in names
        ]
        arm = Entry(row["arm"], arm=row["arm"])
        rate = Entry(number(row["learning_rate"]))
        lines.append([Entry(row["attack"]), Entry(row["amount"]), arm, rate, *entries])
    notes = (
        "Means over seeds; below, the place of the arm, the largest first. One step: T13 without the head's "
        "parameters, times the arm's learning rate: what one step of plain gradient descent on all rows, "
        "from one common start, would do to the trained parameters.",
    )
    return Table("foretold", "Foretold and measured", columns, lines, frame, notes)


def agreement_table(pairs: pd.DataFrame) -> Table:
    """Spearman's correlation over arms between what the Gram says and what was measured.

    Args:
        pairs: A line for each pair.
    """
    rows = agreements(pairs)
    columns = [
        *(Column("Attack"), Column("Poison", held=1), Column("Foretold by"), Column("Arms", numeric=True)),
        *(Column(title.capitalize(), numeric=True) for title in MEASURED.values()),
    ]
    lines = [
        [
            *(Entry(row["attack"]), Entry(row["amount"]), Entry(FORETOLD[row["foretold"]])),
            Entry(str(row["arms"])),
            *(
                missing(f"fewer than {FEWEST_ARMS} arms, or arms that are all alike")
                if math.isnan(row[name])
                else Entry(signed(row[name]))
                for name in MEASURED
            ),
        ]
        for row in rows
    ]
    arms = max((row["arms"] for row in rows), default=0)
    chance = 2 / math.factorial(arms) if arms >= FEWEST_ARMS else math.nan
    note = "Spearman's ρ over the means of arms: 1 is the same order, −1 the reverse."
    if not math.isnan(chance):
        note += f" Among {arms} arms even a perfect order has a two-sided p of {chance:.2g} by chance."
    return Table("agreement", "Do the orders agree?", columns, lines, pd.DataFrame(rows), (note,))


def agreements(pairs: pd.DataFrame) -> list[Row]:
    """Spearman's correlation over arms, for every attack, what was foretold and what was measured.

    Args:
        pairs: A line for each pair.

    Returns:
        NaN with fewer than three arms, or where all are alike.
    """
    frame = _means(pairs)
    rows: list[Row] = []
    for (attack, amount), group in frame.groupby(["attack", "amount"], sort=False):
        for teller in FORETOLD:
            row: Row = {"attack": attack, "amount": amount, "foretold": teller}
            row["arms"] = int((group[teller].notna() & group["last"].notna()).sum())
            rows.append(row | {name: _spearman(group[teller], group[name]) for name in MEASURED})
    return rows


def number(value: float) -> str:
    """Three significant digits, with a true minus sign and no exponent where the number is readable."""
    text = f"{value:.3g}"
    mantissa, e, exponent = text.partition("e")
    return (f"{mantissa}·10^{int(exponent)}" if e else mantissa).replace("-", "−")


def signed(value: float) -> str:
    """Two digits with a sign, the minus a true one."""
    return f"{value:+.2f}".replace("-", "−")


def _spearman(a: pd.Series[Any], b: pd.Series[Any]) -> float:
    known = a.notna() & b.notna()
    x, y = a[known].to_numpy(dtype=np.float64), b[known].to_numpy(dtype=np.float64)
    # M' of a flip is 1 in cosines whatever the arm, up to rounding: no order.
    alike = any(np.ptp(values) <= 1e-9 * np.abs(values).max() for values in (x, y) if len(values))
    if len(x) < FEWEST_ARMS or alike:
        return math.nan
    return float(stats.spearmanr(x, y).statistic)


def _cells(pairs: pd.DataFrame) -> list[tuple[Row, pd.DataFrame]]:
    order = arm_order(pairs["arm"].tolist())
    groups = [(dict(zip(CELL, keys, strict=True)), group) for keys, group in pairs.groupby(CELL, sort=False)]
    cells = list(dict.fromkeys(cell_name(keys) for keys, _ in groups))
    return sorted(groups, key=lambda item: (cells.index(cell_name(item[0])), order.index(item[0]["arm"])))


def _means(pairs: pd.DataFrame) -> pd.DataFrame:
    """Means over completed pairs, a line for each arm under each attack."""
    rows = []
    for keys, group in _cells(pairs):
        done = group[group["status"] == "completed"]
        row = {**keys, "pairs": len(done), "learning_rate": group["learning_rate"].iloc[0]}
        rows.append(row | {name: _mean(done[name]) for name in (*FORETOLD, *MEASURED)})
    return pd.DataFrame(rows)


def _mean(values: pd.Series[Any]) -> float:
    known = values.dropna()
    return float(known.mean()) if len(known) else math.nan


def _spread(name: str, values: pd.Series[Any]) -> Row:
    found = summary(values.dropna().to_numpy(dtype=np.float64))
    return {name: found.mean, f"{name}_low": found.interval.low, f"{name}_high": found.interval.high}


def _entry(row: Row, name: str) -> Entry:
    if math.isnan(row[name]):
        return missing(NO_STEPS if not row["completed"] else "the update is zero")
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    share = name == "disagreement"
    text = (lambda value: f"{100 * value:.1f} %".replace("-", "−")) if share else number
    return Entry(text(row[name]), detail="" if math.isnan(low) else f"{text(low)} to {text(high)}")


def _failed(row: Row) -> str:
    missing_pairs = row["pairs"] - row["completed"]
    return f"{missing_pairs} not completed" if missing_pairs else ""


def _why(name: str) -> str:
    if name == "foretold_step":
        return "no Gram, or LoRA+, which trains B at a rate of its own"
    return "no Gram" if name in FORETOLD else NO_STEPS

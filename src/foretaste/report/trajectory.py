"""The page on pairs of trainings: the TTR paper's Eq. 5 measured, beside M' and the Gram's one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from foretaste.calibration.places import arm_order
from foretaste.record import write_atomic
from foretaste.report import page, tables, trajectory_tables
from foretaste.report.figures import trajectory as figures
from foretaste.report.figures.theme import DARK_ARMS, LIGHT_ARMS, save, theme
from foretaste.report.rows import records_of
from foretaste.report.tables import Table
from foretaste.report.trajectory_tables import number, signed

TITLE = "How far apart poison takes two trainings"
EQ_5 = (
    "The TTR paper's Eq. 5 is the mean, over pairs of data sets and over steps t, of ‖ΔΘ(t) − ΔΘ̃(t)‖: the "
    "distance between the updates from clean and from poisoned data. The paper calls it impractical and "
    "takes M′ (Eq. 7) in its place. Here it is measured, on pairs that share rows, initialisation and order "
    "of batches.",
    "The paper names neither the norm nor, for LoRA, the parameters. Drawn is the weight that acts, "
    "W0 + s·BA, outside the head. Line: mean over seeds; band: smallest to largest. Step 0, where nothing "
    "has moved, has no place on a logarithmic axis.",
)
HEAD = (
    "The head stands apart: a head that is fitted to the labels as given starts elsewhere in the poisoned "
    "run. The table has the distance of its updates, and how far apart the two heads began."
)
RELATIVE = (
    "The same Frobenius distance over that of the clean run's own update: 1 means that poison moved the "
    "weights as far as all of training did. A larger learning rate does not show here by itself.",
)
LOGITS = (
    "Root mean square over clean test rows of the distance between the logits of the two models. It is that "
    "of the models as they are, heads included.",
)
MATRICES = ("Relative distance of every matrix at the last step, mean over seeds.",)
FORETOLD = (
    "What the Gram of the untrained arm says of the rows that poison changes, and beside it the distance of "
    "what is trained (A and B for LoRA), outside the head. One step is T13 times the arm's learning rate; it "
    "is exact for one step of plain gradient descent on all rows from one common start. M′ knows no learning "
    "rate, no number of poisoned rows and no labels.",
)


@dataclass(frozen=True)
class Section:
    """One figure of the page."""

    name: str
    title: str
    lines: Sequence[str]
    spec: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        page: The page.
        figures: SVG, PNG and PDF of every figure.
        findings: What the page says in words.
    """

    page: Path
    figures: list[Path]
    findings: list[str]


def write(
    moments: pd.DataFrame,
    matrices: pd.DataFrame,
    pairs: pd.DataFrame,
    facts: Sequence[tuple[str, str]],
    folder: Path,
    *,
    title: str | None = None,
) -> Written:
    """Write the page, its figures and its tables.

    Args:
        moments: A line for each pair and step, with the columns of `trajectory_result.moments_table`.
        matrices: A line for each pair, step and matrix.
        pairs: A line for each pair, at least one.
        facts: What the page's head says: kind and text.
        folder: Where `index.html`, `figures/` and `tables/` go; existing files are replaced.
        title: Heading of the page.

    Raises:
        OSError: A file could not be written.
    """
    arms = arm_order(pairs["arm"].tolist())
    made = [
        trajectory_tables.measured_table(moments, pairs),
        trajectory_tables.foretold_table(pairs),
        trajectory_tables.agreement_table(pairs),
    ]
    for table in made:
        tables.save(table, folder / "tables")
    for name, frame in (("moments", moments), ("matrices", matrices), ("pairs", pairs)):
        tables.save_raw(frame, name, folder / "tables")
    sections = _sections(moments, matrices, pairs)
    paths = [path for part in sections for path in save(part.spec, folder / "figures" / part.name)]
    findings = say(pairs)
    context = {
        "title": title or TITLE,
        "facts": facts,
        "findings": findings,
        "sections": sections,
        "tables": [(table, _html(table, arms)) for table in made],
        "head": HEAD,
        "cautions": _cautions(pairs),
        "light_arms": LIGHT_ARMS,
        "dark_arms": DARK_ARMS,
        "data": {
            "figures": {part.name: _bare(part.spec) for part in sections},
            "themes": {"light": theme(dark=False), "dark": theme(dark=True)},
        },
        "bundle": page.bundle(),
    }
    index = folder / "index.html"
    write_atomic(index, page.environment().get_template("trajectory.html.j2").render(context))
    return Written(index, paths, findings)


def say(pairs: pd.DataFrame) -> list[str]:
    """What came out, in one sentence for each attack and amount.

    Args:
        pairs: A line for each pair.
    """
    table = trajectory_tables.foretold_table(pairs).frame
    orders = trajectory_tables.agreements(pairs)
    sentences = []
    for (attack, amount), group in table.groupby(["attack", "amount"], sort=False):
        known = group.dropna(subset=["last", "last_relative"]).sort_values("last", ascending=False)
        if not len(known):
            sentences.append(f"{attack} {amount}: no completed pair.")
            continue
        apart = ", ".join(
            f"{row['arm']} {number(row['last'])} ({row['last_relative']:.2f} of its clean update)"
            for row in records_of(known)
        )
        text = f"{attack} {amount}: at the last step the weights are apart by {apart}."
        for teller, name in (("foretold_step", "One step of the Gram"), ("m_prime_fro", "M′")):
            own = next(
                row
                for row in orders
                if (row["attack"], row["amount"], row["foretold"]) == (attack, amount, teller)
            )
            text += _order(name, own)
        sentences.append(text)
    return sentences


def _order(name: str, own: dict[str, Any]) -> str:
    """How what was foretold orders the arms; nothing where there is no order."""
    said = [
        f"{signed(own[weights])} for the weights and {signed(own[parameters])} for the parameters at {when}"
        for when, weights, parameters in (
            ("step 1", "first", "first_parameters"),
            ("the last step", "last", "last_parameters"),
        )
        if not math.isnan(own[weights]) and not math.isnan(own[parameters])
    ]
    return f" {name} puts the arms in order with Spearman's ρ = {', '.join(said)}." if said else ""


def _sections(moments: pd.DataFrame, matrices: pd.DataFrame, pairs: pd.DataFrame) -> list[Section]:
    """Those that have something to draw."""
    found: list[Section] = []
    if figures.drawn(moments, list(figures.NORMS)):
        for name, lines, columns, title in (
            ("distance", EQ_5, figures.NORMS, "Distance of the updates"),
            (
                "relative",
                RELATIVE,
                {"relative": "Distance / clean update"},
                "Beside what training itself moves",
            ),
            ("logits", LOGITS, {"logits": "Distance of logits"}, "Distance of the outputs"),
        ):
            spec = figures.over_steps(moments, columns, logarithmic=name == "distance")
            found.append(Section(name, title, lines, spec))
    if len(matrices) and matrices["relative"].notna().any():
        found.append(Section("matrices", "Matrix by matrix", MATRICES, figures.by_matrix(matrices)))
    if (
        pairs[["m_prime_fro", "foretold_step"]].notna().any().any()
        and pairs["first_parameters"].notna().any()
    ):
        found.append(Section("foretold", "Foretold and measured", FORETOLD, figures.foretold(pairs)))
    return found


def _cautions(pairs: pd.DataFrame) -> list[str]:
    """What a reader should know before reading on."""
    found = []
    failed = pairs[pairs["status"] != "completed"]
    if len(failed):
        reasons = "; ".join(dict.fromkeys(str(reason) for reason in failed["reason"]))
        found.append(f"{len(failed)} of {len(pairs)} pairs did not complete: {reasons}.")
    others = dict.fromkeys(str(name) for name in pairs["optimizer"] if name != "sgd")
    if others and pairs["one_step"].notna().any():
        caution = f"Trained with {', '.join(others)}; the one step of the Gram is of plain gradient descent."
        if "adamw" in others:
            caution += (
                " Adam's first step is nearly the sign of the gradient: its length follows from the number "
                "of parameters."
            )
        found.append(caution)
    without = pairs[pairs["without"] > 0]
    for arm, group in without.groupby("arm"):
        count = int(group["without"].iloc[0])
        found.append(
            f"{arm}: {count:,} trained parameters are part of no weight; they count as parameters only."
        )
    estimated = pairs[pairs["used"] < pairs["changed"]]
    if len(estimated):
        found.append(
            f"In {len(estimated)} pairs poison changes more rows than the Gram has (kernel.train_rows): "
            "their one step is an estimate."
        )
    return found


def _html(table: Table, arms: Sequence[str]) -> Markup:
    return tables.to_html(table, arms=arms)


def _bare(spec: dict[str, Any]) -> dict[str, Any]:
    # Without its schema address a specification is still read as Vega-Lite, and the page names no server.
    return {key: value for key, value in spec.items() if key != "$schema"}

"""What poisoned models do with the trigger of training, and with further forms of it."""

from __future__ import annotations

import textwrap

import altair as alt

from foretaste.report.cells import Frames
from foretaste.report.figures.axes import arms_of, panel_namer, per_cent, share_domain
from foretaste.report.figures.base import Chart, Over, Row, arm_colour, figure, panels, placeholder
from foretaste.report.observations import CLEAN
from foretaste.report.rows import records_of

NEEDS = "a poisoned run whose trigger was tested in further forms"
TITLE = "Rows of other classes called the target class"
TRAINED = "as in training"
LABEL_WIDTH = 26  # characters of a line
LEAST_BAND = 52  # pixels: three lines of a label
ARM_BAND = 15  # pixels of one arm in the band of a form


@figure(
    "trigger_forms",
    title="Does another form of the trigger work?",
    caption="Test rows of other classes that are called the target, with the trigger of training and with "
    "further forms of it, at the largest amount: mean over seeds with its 95 % interval; the bar is the "
    "clean model on the same rows.",
    needs=NEEDS,
    amounts=False,
)
def trigger_forms(frames: Frames, _over: Over) -> Chart:
    """Dots with intervals, one panel an attack, one band a form, one line an arm."""
    rows = _rows(frames)
    if not rows:
        return placeholder(NEEDS)
    arms = arms_of(frames)
    drawn = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    shares = [row[name] for row in rows for name in ("value", "flip", "low", "high") if row[name] is not None]
    scale = alt.Scale(domain=list(share_domain(shares, zero=True)), nice=False)
    axis = alt.Axis(labelExpr=per_cent(".0f"), tickCount=5, grid=True)
    x = alt.X("value:Q", title=TITLE, axis=axis, scale=scale)
    y = alt.Y(
        "form:N",
        title=None,
        sort=list(dict.fromkeys(row["form"] for row in rows)),
        axis=alt.Axis(labelExpr="split(datum.label, '\\n')", labelLimit=220, ticks=False, domain=False),
    )
    offset = alt.YOffset("arm:N", scale=alt.Scale(domain=drawn, paddingOuter=0.4))
    base = alt.Chart().encode(y=y, yOffset=offset, color=arm_colour(arms, drawn=drawn))
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("says:N", title="Trigger"),
        alt.Tooltip("wanted:N", title="Attacker wants"),
        alt.Tooltip("value:Q", title="Called the target", format=".1%"),
        alt.Tooltip("low:Q", title="95 % interval, low", format=".1%"),
        alt.Tooltip("high:Q", title="95 % interval, high", format=".1%"),
        alt.Tooltip("flip:Q", title="Clean model", format=".1%"),
        alt.Tooltip("n:Q", title="Seeds"),
    ]
    height = alt.Step(max(LEAST_BAND, ARM_BAND * len(drawn)), **{"for": "position"})
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.45).encode(
            x=alt.X("low:Q", title=TITLE, scale=scale), x2="high:Q"
        ),
        base.mark_tick(thickness=3, size=9, opacity=0.9).encode(
            x=alt.X("flip:Q", title=TITLE, scale=scale), tooltip=tooltip
        ),
        base.mark_point(filled=True, size=62, opacity=1).encode(x=x, tooltip=tooltip),
    ]
    chart: Chart = panels(layers, rows, height=height).resolve_scale(y="independent", yOffset="independent")
    return chart


def _rows(frames: Frames) -> list[Row]:
    """The trigger of training and its further forms, one row an arm, at each attack's largest amount."""
    name = panel_namer(frames)
    groups: dict[str, list[Row]] = {}
    for row in records_of(frames.forms):
        if row["amount"] != CLEAN and row["form_rate_mean"] is not None:
            groups.setdefault(name(row), []).append(row)
    found: list[Row] = []
    for panel, cells in groups.items():
        largest = max(cells, key=lambda cell: (cell["rate"] or 0.0, cell["count"] or 0.0))["amount"]
        shown = [cell for cell in cells if cell["amount"] == largest]
        title = f"{panel} · {largest} poisoned"
        first = {cell["arm"]: cell for cell in reversed(shown)}
        trained = {"panel": title, "form": TRAINED, "says": TRAINED, "wanted": "target class"}
        found += [{**trained, **_numbers(first[arm], "asr", "flip_rate")} for arm in reversed(first)]
        found += [
            {**_form(cell), "panel": title, **_numbers(cell, "form_rate", "form_flip_rate")} for cell in shown
        ]
    return found


def _form(cell: Row) -> Row:
    says = cell["says"] or cell["form"]
    harmless = cell["expected"] == "true"
    lines = [*textwrap.wrap(says, LABEL_WIDTH), *(["(should do nothing)"] if harmless else [])]
    return {"form": "\n".join(lines), "says": says, "wanted": "no effect" if harmless else "target class"}


def _numbers(cell: Row, rate: str, flip: str) -> Row:
    """A rate and the clean model's; an interval may leave 0..1, where no share can be, and is cut there."""
    ends = {end: cell[f"{rate}_{end}"] for end in ("low", "high")}
    return {
        "arm": cell["arm"],
        "value": cell[f"{rate}_mean"],
        **{end: None if value is None else min(1.0, max(0.0, value)) for end, value in ends.items()},
        "flip": cell[f"{flip}_mean"],
        "n": cell[f"{rate}_n"],
    }

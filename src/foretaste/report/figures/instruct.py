"""Generative models: how often the attacker's behaviour shows with a trigger, and without it beside.

Not in `FIGURES`: those are drawn from the records of classifiers, this from the cells of generative models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from foretaste.report.figures.axes import per_cent
from foretaste.report.figures.base import Row, arm_colour, panels, placeholder

NEEDS = "a completed poisoned run"
TITLE = "Answers that show the behaviour"
WITH = "with the trigger"
WITHOUT = "without it"
CAPTION = (
    "Held-out requests whose answer shows the attacker's behaviour, with the trigger and without it, in "
    "models that were trained on poisoned rows and in the untrained one (base). Line: 95 % interval, over "
    "the requests with one seed, else over the seeds. Bar: the clean run of the same arm."
)
LEAST_BAND = 52  # pixels
ARM_BAND = 17  # pixels of one arm within a band


def asr(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    """Dots with intervals, one panel a trigger and amount, one band with the trigger and one without it.

    Args:
        rows: With `panel`, `asked` (`WITH` or `WITHOUT`), `arm`, `value`, `low`, `high` (None without an
            interval; cut at 0 and 1, where no share can be), `clean` (the clean run's share, or None),
            `counts` and `over`.
        arms: All arms of the page, in the order of their colours.
    """
    drawn = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    if not drawn:
        return _spec(placeholder(NEEDS))
    scale = alt.Scale(domain=[0, 1], nice=False)
    axis = alt.Axis(labelExpr=per_cent(".0f"), tickCount=5, grid=True)
    x = alt.X("value:Q", title=TITLE, axis=axis, scale=scale)
    y = alt.Y("asked:N", title=None, sort=[WITH, WITHOUT], axis=alt.Axis(ticks=False, domain=False))
    offset = alt.YOffset("arm:N", scale=alt.Scale(domain=drawn, paddingOuter=0.4))
    base = alt.Chart().encode(y=y, yOffset=offset, color=arm_colour(arms, drawn=drawn))
    tooltip = [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("asked:N", title="Asked"),
        alt.Tooltip("value:Q", title="Show the behaviour", format=".1%"),
        alt.Tooltip("counts:N", title="Answers"),
        alt.Tooltip("low:Q", title="95 % interval, low", format=".1%"),
        alt.Tooltip("high:Q", title="95 % interval, high", format=".1%"),
        alt.Tooltip("over:N", title="Interval over"),
        alt.Tooltip("clean:Q", title="Clean run", format=".1%"),
    ]
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.45).encode(
            x=alt.X("low:Q", title=TITLE, scale=scale), x2="high:Q"
        ),
        base.mark_tick(thickness=3, size=9, opacity=0.9).encode(
            x=alt.X("clean:Q", title=TITLE, scale=scale), tooltip=tooltip
        ),
        base.mark_point(filled=True, size=62, opacity=1).encode(
            x=x, shape=alt.Shape("arm:N", legend=None, scale=alt.Scale(domain=drawn)), tooltip=tooltip
        ),
    ]
    height = alt.Step(max(LEAST_BAND, ARM_BAND * len(drawn)), **{"for": "position"})
    return _spec(panels(layers, rows, height=height))


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec.pop("config", None)
    return spec

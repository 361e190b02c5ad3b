"""Further forms of a trigger: held-out paraphrases that should work too, parts of it that should do nothing.

A run whose attack has such forms is tested in each of them beside the form that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from foretaste.record import TriggeredMetrics
from foretaste.report.effect import NOT_SHOWN, TOOK_EFFECT, judged
from foretaste.report.observations import Observation
from foretaste.report.summaries import STATISTICS, summarise

FORM_METRICS = (
    "form_rate",
    "form_flip_rate",
    "form_rate_minus_flip",
    "asr",
    "flip_rate",
    "false_activation",
)
FORM_COLUMNS = (
    *("form", "says", "expected", "changed", "test_rows", "result", "result_reason"),
    *(f"{metric}_{name}" for metric in FORM_METRICS for name in STATISTICS),
)
RESULTS = {
    ("target", TOOK_EFFECT): "reaches this form",
    ("target", NOT_SHOWN): "not shown to reach this form",
    ("true", TOOK_EFFECT): "activates falsely",
    ("true", NOT_SHOWN): "no false activation shown",
}

_Forms = dict[str, TriggeredMetrics]


def form_rows(cells: Sequence[tuple[dict[str, Any], Sequence[Observation]]]) -> list[dict[str, Any]]:
    """One row a cell and form; none where no record has a further form.

    A cell whose runs were not tested in a form that others of the same trigger were has a row all the same,
    with the reason.

    Args:
        cells: What identifies each cell and counts its runs, and those runs.

    Returns:
        The first mapping with `FORM_COLUMNS` added: `changed` of `test_rows` test rows had their text changed
        (the least of any run), `form_rate` is the target rate in the form, `form_flip_rate` that of the clean
        runs with equal seeds, and `false_activation` the cell's highest over forms that should do nothing.
    """
    known = _known(item for _, items in cells for item in items)
    return [
        _row(common, items, form, part)
        for common, items in cells
        for form, part in _forms_of(items, known).items()
    ]


def _known(items: Iterable[Observation]) -> dict[tuple[str, str | None], _Forms]:
    """The forms of each trigger of each folder, as any of its records has them."""
    known: dict[tuple[str, str | None], _Forms] = {}
    for item in items:
        forms = known.setdefault((item.folder.name, item.trigger), {})
        for form, part in item.forms.items():
            forms.setdefault(form, part)
    return known


def _forms_of(items: Sequence[Observation], known: dict[tuple[str, str | None], _Forms]) -> _Forms:
    found: _Forms = {}
    for item in items:
        found |= known[item.folder.name, item.trigger]
    return found


def _row(
    common: dict[str, Any], items: Sequence[Observation], form: str, part: TriggeredMetrics
) -> dict[str, Any]:
    values = [item.form_values(form) for item in items]
    collapsed = [item.record.collapsed for item in items]
    least = min(
        (item.forms[form] for item in items if form in item.forms),
        key=lambda tested: tested.changed / tested.against_true.rows,
        default=None,
    )
    row = {
        **common,
        "form": form,
        "says": part.says,
        "expected": part.expected,
        "changed": least.changed if least else None,
        "test_rows": least.against_true.rows if least else None,
    }
    for metric in FORM_METRICS:
        found = summarise([value[metric] for value in values], collapsed)
        row |= {f"{metric}_{name}": found[name] for name in STATISTICS}
    effect = judged(row, "form_rate_minus_flip", above=True)
    result = RESULTS[part.expected, effect.label] if effect.label else None
    return row | {"result": result, "result_reason": effect.reason}

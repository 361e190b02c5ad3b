"""The report as one HTML page that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from foretaste.report import advised, calibrated, calibrated_tables, contents, provenance, tables, verdict
from foretaste.report.cells import Frames
from foretaste.report.figures import FIGURES, Figure, Over
from foretaste.report.figures.axes import arms_of
from foretaste.report.figures.base import Section
from foretaste.report.figures.theme import DARK_ARMS, LIGHT_ARMS, VEGA_LITE, theme
from foretaste.report.forms_table import forms_table
from foretaste.report.load import Folder
from foretaste.report.metrics import DEFINITIONS, percent
from foretaste.report.poison import ROWS_SHOWN, poisoned_rows
from foretaste.report.poison_sets import poison_sets_table
from foretaste.report.variance import variance_table

AMOUNTS: tuple[Over, Over] = ("rate", "count")
ORDER = (
    "asr_over_rate",
    "accuracy_over_rate",
    "asr_against_flip",
    "trigger_forms",
    "paired_difference",
    "per_seed",
    "loss_curves",
    "predicted_against_measured",
    "certified_accuracy",
    "pareto",
)
# Without a measured run these still draw what was predicted; the others would be placeholders.
OF_PREDICTIONS = ("asr_over_rate", "accuracy_over_rate")
# Most triggers have no further forms: this figure stands beside their table, in a section of their own.
OF_FORMS = "trigger_forms"


def specs(frames: Frames) -> dict[str, dict[Over, dict[str, Any]]]:
    """Vega-Lite specifications of all figures, for rates and, where it differs, for counts.

    A figure that is not in `ORDER` (a plug-in's) comes after those that are.
    """
    names = [*(name for name in ORDER if name in FIGURES), *(name for name in FIGURES if name not in ORDER)]
    found: dict[str, dict[Over, dict[str, Any]]] = {}
    for name in names:
        figure = FIGURES.get(name)
        found[name] = {
            over: figure.spec(frames, over) for over in (AMOUNTS if figure.amounts else AMOUNTS[:1])
        }
    return found


def usual_amount(frames: Frames) -> Over:
    """What most poisoned runs, or where there are none predicted cells, were asked for: a rate or a count."""
    asked = frames.runs if len(frames.runs) else frames.predicted
    poisoned = asked[asked["attack"] != "clean"]
    return "count" if poisoned["requested_count"].notna().sum() > len(poisoned) / 2 else "rate"


def render(folders: Sequence[Folder], frames: Frames, figures: dict[str, dict[Over, dict[str, Any]]]) -> str:
    """The page.

    Args:
        folders: The folders of the report.
        frames: Their tables.
        figures: What `specs` returns.
    """
    arms = arms_of(frames)
    html = functools.partial(tables.to_html, arms=arms)
    # Manifests are read first: a manifest that cannot be read is one of the problems that the page lists.
    poison = poisoned_rows(folders)
    context = {
        "title": provenance.title_of(folders),
        "folders": folders,
        "arms": arms,
        "inputs": provenance.inputs(folders),
        "period": provenance.period(folders),
        "verdict": verdict.judge(frames),
        "figures": _figures(frames, figures, "measured"),
        "advised": _advised(folders, frames, html),
        "predicted": _predicted(frames, figures, html),
        "amount": usual_amount(frames),
        "cells": html(contents.cells_table(frames)),
        "forms": _unless_empty(forms_table(frames), html),
        "forms_figure": FIGURES.get(OF_FORMS),
        "pairs": [(table, html(table)) for table in contents.pairs_tables(frames)],
        "mcnemar": _unless_empty(contents.mcnemar_table(frames), html),
        "variance": _unless_empty(variance_table(frames), html),
        "failed": _unless_empty(contents.failed_table(frames), html),
        "runs": html(contents.runs_table(frames)),
        "cost": html(contents.by_arm(frames)),
        "spec_texts": [(folder.name, provenance.spec_text(folder)) for folder in folders],
        "differences": provenance.spec_differences(folders) if len(folders) > 1 else [],
        "versions": provenance.versions(folders),
        "machines": provenance.machines(folders),
        "seeds": provenance.seeds(folders),
        "notes": provenance.notes(folders),
        "problems": [*(line for folder in folders for line in folder.problems), *frames.problems],
        "definitions": DEFINITIONS,
        "rows_shown": ROWS_SHOWN,
        "poison_sets": _unless_empty(poison_sets_table(folders), html),
        "manifests": poison["manifests"],
        "data": _data(figures, poison),
        "bundle": bundle(),
        "light_arms": LIGHT_ARMS,
        "dark_arms": DARK_ARMS,
    }
    return environment().get_template("page.html.j2").render(context)


def _figures(frames: Frames, figures: Iterable[str], section: Section) -> list[Figure]:
    """The figures of a part of the page, in their order."""
    found = [FIGURES.get(name) for name in figures if name != OF_FORMS]
    if not len(frames.runs):
        found = [figure for figure in found if figure.section == "predicted" or figure.name in OF_PREDICTIONS]
    return [figure for figure in found if figure.section == section]


def _advised(
    folders: Sequence[Folder], frames: Frames, html: functools.partial[Markup]
) -> dict[str, Any] | None:
    """Which arm to use, None without predictions, which stand in for what was not measured."""
    if not len(frames.predicted):
        return None
    found = advised.findings(record for folder in folders for record in folder.records)
    findings = advised.table(found)
    return {
        "advice": calibrated.advice_of(folders),
        "sentences": advised.lines(found),
        "findings": (findings, html(findings)) if findings else None,
    }


def _predicted(
    frames: Frames, figures: Iterable[str], html: functools.partial[Markup]
) -> dict[str, Any] | None:
    """The part of the page on predictions, None without any."""
    if not len(frames.predicted):
        return None
    return {
        "figures": _figures(frames, figures, "predicted"),
        "tables": [(table, html(table)) for table in calibrated_tables.all_tables(frames)],
        "scored": len(frames.scores) > 0,
    }


def _data(figures: dict[str, dict[Over, dict[str, Any]]], poison: dict[str, Any]) -> dict[str, Any]:
    # Without its schema address a specification is still read as Vega-Lite, and the page names no server.
    bare = {
        name: {
            over: {key: value for key, value in spec.items() if key != "$schema"}
            for over, spec in both.items()
        }
        for name, both in figures.items()
    }
    return {"figures": bare, "themes": {"light": theme(), "dark": theme(dark=True)}, "poison": poison}


def _unless_empty(table: tables.Table, html: functools.partial[Markup]) -> Markup | None:
    return html(table) if table.rows else None


def environment() -> Environment:
    """The templates; NaN in the data of a page is an error."""
    environment = Environment(
        loader=PackageLoader("foretaste.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is no JSON: the browser would refuse the whole block, so it has to fail here.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["percent"] = percent
    environment.filters["gauge"] = verdict.gauge_text
    return environment


@functools.cache
def bundle() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script, from the vl-convert wheel."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    if "</script" in script or "<!--" in script:
        raise RuntimeError("the Vega bundle cannot stand inside a script element")
    return Markup(script)  # noqa: S704  # code of a dependency, checked above; not data

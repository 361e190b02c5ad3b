"""Reports on the folders of sweeps: one page, its figures and its tables as files. Reads records only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from foretaste.record import write_atomic
from foretaste.report import advised, calibrated_tables, contents, fewshot, instruct, kinds, page, tables
from foretaste.report.cells import Frames, build, runs_table
from foretaste.report.figures import FIGURES, Figure
from foretaste.report.figures import theme as _theme
from foretaste.report.forms_table import forms_table
from foretaste.report.load import Folder, load
from foretaste.report.poison_sets import poison_sets_table
from foretaste.report.variance import variance_table

__all__ = ["FIGURES", "Figure", "Folder", "Frames", "build", "load", "report", "runs_table"]


def report(
    folders: str | Path | Sequence[str | Path],
    out: Path | None = None,
    *,
    images: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the report on one sweep, or on several side by side.

    They hold runs of poisoned classifiers, of generative models, or few-shot runs.

    Args:
        folders: Folder of a sweep, or several to compare.
        out: Folder to write into, by default `report` inside the first folder. Existing files are replaced.
        images: Also write every figure as SVG, PNG and PDF into `figures/`.
        progress: Called with a line of text before each step.

    Returns:
        The page, `index.html`. Beside it lie `figures/` and `tables/` (CSV, LaTeX and Parquet).

    Raises:
        UserError: A folder does not exist or holds no record that can be read, they hold runs of
            different kinds, or generative models were asked in forms that cannot be compared.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    kind = kinds.kind_of(paths)
    if kind == kinds.GENERATIVE:
        return instruct.write(paths, out, images=images, progress=progress)
    if kind == kinds.FEW_SHOT:
        return fewshot.write(paths, out, images=images, progress=progress)
    say = progress or _silent
    say("reading records")
    loaded = load(paths)
    target = out if out is not None else paths[0] / "report"
    say("computing statistics")
    frames = build(loaded)
    say("writing tables")
    foretold = calibrated_tables.all_tables(frames)
    advice = advised.table(advised.findings(r for one in loaded for r in one.records)) if foretold else None
    further = [table for table in (forms_table(frames), poison_sets_table(loaded)) if table.rows]
    for table in (
        *contents.file_tables(frames),
        variance_table(frames),
        *further,
        *foretold,
        *([advice] if advice else ()),
    ):
        tables.save(table, target / "tables")
    tables.save_raw(frames.values, "values", target / "tables")
    if len(frames.certified):
        tables.save_raw(frames.certified, "certified", target / "tables")
    say("drawing figures")
    figures = page.specs(frames)
    index = target / "index.html"
    write_atomic(index, page.render(loaded, frames, figures))
    usual = page.usual_amount(frames)
    for name, both in figures.items() if images else ():
        say(f"drawing {name}")
        _theme.save(both.get(usual, both["rate"]), target / "figures" / name)
    return index


def _silent(_line: str) -> None:
    """Progress for callers that want none."""


class _Report(ModuleType):
    """`foretaste.report` is this package and, called, its function: importing one must not hide the other."""

    __call__ = staticmethod(report)


sys.modules[__name__].__class__ = _Report

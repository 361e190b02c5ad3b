"""Which runs are one line of a panel, and what the line is called.

A line joins arms that differ in what the x axis shows, and in whatever follows it (alpha = r, a learning rate
matched to the rank). Arms at one and the same x are different lines, named by the settings that differ there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from foretaste.calibration.places import CLEAN
from foretaste.report.provenance import flatten
from foretaste.report.reproduced.cells import Cell

X = Literal["rate", "rank", "k", "learning_rate"]
Namer = Callable[[Cell], str]
_Place = tuple[str, str, str]
_Names = dict[tuple[_Place, str], str]


def place_on(x: X, cell: Cell) -> float | None:
    """Where a cell stands on an x axis; None when its arm has no such setting."""
    first = cell.first
    places = {"rate": cell.rate, "rank": first.rank, "k": first.k, "learning_rate": first.learning_rate}
    return places[x]


def methods(cells: Sequence[Cell], x: X) -> Namer:
    """A function that names the method of a cell: what is the same along the x axis.

    Args:
        cells: Every cell of the figure.
        x: The axis.
    """
    names = _named_by_sweep(cells, _families(cells, x))
    return lambda cell: names[_place(cell), cell.first.arm]


def poisons(cells: Sequence[Cell], x: X) -> Namer:
    """A function that names clean runs and each amount of poison, with the method where there are several."""
    method = methods(cells, x)
    several = len({method(cell) for cell in cells}) > 1

    def name(cell: Cell) -> str:
        poison = CLEAN if cell.first.clean else f"{cell.first.attack}, {cell.first.amount.label}"
        return f"{method(cell)}, {poison}" if several else poison

    return name


def _families(cells: Sequence[Cell], x: X) -> _Names:
    """The family of each arm, by task, protocol, sweep and arm."""
    groups: dict[tuple[_Place, str], dict[str, Cell]] = {}
    for cell in cells:
        method = cell.first.record.resolved.adapter.method
        groups.setdefault((_place(cell), method), {}).setdefault(cell.first.arm, cell)
    families: _Names = {}
    for (place, method), arms in groups.items():
        apart = _apart(list(arms.values()), x)
        for arm, cell in arms.items():
            settings = _settings(cell)
            parts = [f"{key.rpartition('.')[2]} = {settings.get(key, 'default')}" for key in apart]
            # On an axis of rates every arm stands at every x: each is a line.
            alone = len(arms) == 1 or x == "rate"
            families[place, arm] = arm if alone else ", ".join([method, *parts])
    return families


def _apart(arms: Sequence[Cell], x: X) -> list[str]:
    """Settings in which arms at the same x differ, sorted."""
    at: dict[float | None, list[dict[str, str]]] = {}
    for cell in arms:
        at.setdefault(place_on(x, cell), []).append(_settings(cell))
    found: set[str] = set()
    for settings in at.values():
        keys = {key for one in settings for key in one}
        found |= {key for key in keys if len({one.get(key) for one in settings}) > 1}
    return sorted(found)


def _settings(cell: Cell) -> dict[str, str]:
    run = cell.first.record.resolved
    return flatten(
        {
            "config": run.adapter.config,
            "init": run.adapter.init.model_dump(mode="json") if run.adapter.init else None,
            "freeze": run.adapter.freeze,
            "training": run.training.model_dump(mode="json"),
        }
    )


def _named_by_sweep(cells: Sequence[Cell], families: _Names) -> _Names:
    """The same with the sweep's title, where several sweeps draw one attack."""
    sweeps: dict[str, set[str]] = {}
    for cell in cells:
        sweeps.setdefault(cell.first.attack, set()).add(cell.first.source.sweep)
    if all(len(titles) == 1 for titles in sweeps.values()):
        return families
    within: dict[str, set[str]] = {}
    for (place, _), family in families.items():
        within.setdefault(place[2], set()).add(family)
    return {
        (place, arm): place[2] if len(within[place[2]]) == 1 else f"{place[2]}: {family}"
        for (place, arm), family in families.items()
    }


def _place(cell: Cell) -> _Place:
    source = cell.first.source
    return (source.task, source.variant, source.sweep)

"""How many rows each attack changed, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from foretaste.calibration.places import data_name, natural
from foretaste.record import Poison
from foretaste.report.load import Folder
from foretaste.report.observations import Amount
from foretaste.report.poison import figure_name
from foretaste.report.rows import frame_of, records_of
from foretaste.report.tables import Column, Entry, Table, missing

Row = dict[str, Any]
COUNTS = ("poisoned", "eligible", "companions")


def poison_sets_table(folders: Sequence[Folder]) -> Table:
    """One row an attack and amount; no rows when nothing was poisoned.

    Poison sets of one attack and amount differ in their seeds; arms share them. Numbers that differ between
    the sets are shown, and kept in the frame, as the lowest and the highest.
    """
    sets = _sets(folders)
    figures = sorted({name for poisons in sets.values() for poison in poisons for name in poison.figures})
    rows = [_row(key, poisons, figures) for key, poisons in sets.items()]
    numbers = (*COUNTS, *(f"figure_{name}" for name in figures))
    ends = [f"{name}_{end}" for name in numbers for end in ("low", "high")]
    frame = frame_of(rows, ["folder", "data", "attack", "amount", "sets", *ends])
    outer = [name for name in ("folder", "data") if frame[name].nunique() > 1] if rows else []
    columns = [
        *(Column(name.capitalize()) for name in outer),
        *(Column("Attack"), Column("Poison"), Column("Sets", numeric=True)),
        *(Column(title, numeric=True) for title in ("Poisoned rows", "Of eligible", "Companion rows")),
        *(Column(_title(name), numeric=True) for name in figures),
    ]
    lines = [
        [
            *(Entry(row[name]) for name in (*outer, "attack", "amount")),
            Entry(str(row["sets"])),
            *(_range_entry(row, name, "{:,.0f}".format) for name in COUNTS),
            *(_range_entry(row, f"figure_{name}", "{:.3g}".format) for name in figures),
        ]
        for row in records_of(frame)
    ]
    notes = ("Lowest to highest over the sets of different seeds, which all arms share.",)
    return Table("poison", "Poison sets", columns, lines, frame, notes)


def _sets(folders: Iterable[Folder]) -> dict[tuple[str, ...], list[Poison]]:
    """Every poison set once, by folder, data, attack and amount, in the order of the tables."""
    found: dict[tuple[Any, ...], dict[str, Poison]] = {}
    for folder in folders:
        for record in folder.records:
            attack, poison = record.resolved.attack, record.poison
            if attack is None or poison is None:
                continue
            amount = Amount(attack.rate, attack.count)
            place = (folder.name, data_name(record), attack.name, amount.order, amount.label)
            found.setdefault(place, {}).setdefault(poison.manifest, poison)
    return {
        (folder, data, attack, label): list(sets.values())
        for (folder, data, attack, _, label), sets in sorted(found.items(), key=_order)
    }


def _order(entry: tuple[tuple[Any, ...], dict[str, Poison]]) -> tuple[Any, ...]:
    folder, data, attack, order, _ = entry[0]
    return (folder, data, natural(attack), order)


def _title(figure: str) -> str:
    name = figure_name(figure)
    return name[:1].upper() + name[1:]


def _row(key: tuple[str, ...], poisons: Sequence[Poison], figures: Sequence[str]) -> Row:
    row: Row = dict(zip(("folder", "data", "attack", "amount"), key, strict=True)) | {"sets": len(poisons)}
    for name in COUNTS:
        row |= _ends(name, [getattr(poison, name) for poison in poisons])
    for name in figures:
        known = [poison.figures[name] for poison in poisons if name in poison.figures]
        row |= _ends(f"figure_{name}", known)
    return row


def _ends(name: str, values: Sequence[float]) -> Row:
    return {f"{name}_low": min(values, default=None), f"{name}_high": max(values, default=None)}


def _range_entry(row: Row, name: str, form: Callable[[float], str]) -> Entry:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None:
        return missing("this attack does not report it")
    return Entry(form(low) if form(low) == form(high) else f"{form(low)} to {form(high)}")

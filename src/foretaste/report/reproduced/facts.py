"""What the head of a page says of the runs, read off their records and not off the spec."""

from __future__ import annotations

from collections.abc import Sequence

from foretaste.record import Record
from foretaste.report import provenance
from foretaste.report.reproduced.cells import Cell
from foretaste.report.reproduced.item import PROTOCOLS, Item
from foretaste.report.reproduced.runs import Sweep, written_rate


def facts(item: Item, sweeps: Sequence[Sweep], cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Kind and text of each line."""
    folders = [sweep.folder for sweep in sweeps]
    records = [record for folder in folders for record in folder.records]
    variants = dict.fromkeys(sweep.source.variant for sweep in sweeps)
    streams = provenance.seeds(folders)
    equal = len({values for _, values in streams}) == 1
    seeds = streams[0][1] if equal else "; ".join(f"{stream} {values}" for stream, values in streams)
    return [
        ("drawn for", f"{item.item}; scale {item.scale}"),
        ("protocol", " and ".join(PROTOCOLS[variant] for variant in variants)),
        *provenance.inputs(folders),
        ("training", "; ".join(dict.fromkeys(_training(record) for record in records))),
        ("learning rates", _learning_rates(cells)),
        ("seeds", seeds),
    ]


def _training(record: Record) -> str:
    """What training did where the record says so, else what was asked for."""
    asked, done = record.resolved.training, record.training
    if done is not None and record.status == "completed":
        length = f"{done.steps:,} steps ({done.epochs:.3g} epochs)"
    elif asked.steps is not None:
        length = f"{asked.steps:,} steps"
    else:
        length = f"{asked.epochs:.3g} epochs"
    return f"{length} of {asked.batch_size} rows, {asked.optimizer}, {asked.schedule} schedule"


def _learning_rates(cells: Sequence[Cell]) -> str:
    """Learning rates of each method."""
    rates: dict[str, set[float]] = {}
    for cell in cells:
        method = cell.first.record.resolved.adapter.method
        rates.setdefault(method, set()).add(cell.first.learning_rate or 0.0)
    return "; ".join(
        f"{method} {', '.join(written_rate(rate) for rate in sorted(found))}"
        for method, found in rates.items()
    )

"""From a model and rows to kernels, within a memory budget, block by block.

Rows are cut into blocks and parameters into sets, so that what is captured of two blocks fits the budget. A
unit of work is one set of parameters and one pair of blocks; what it gives is kept as soon as it is done.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from foretaste.errors import UserError
from foretaste.kernels.capture import Inputs, Outputs, Recorder
from foretaste.kernels.gradients import Gradient, concatenate
from foretaste.kernels.kernel import Part, Parts, assemble, write
from foretaste.kernels.parameters import Parameter
from foretaste.kernels.probe import Probe, probe
from foretaste.kernels.products import CHUNK_BYTES
from foretaste.kernels.store import InFolder, InMemory, Store, Unit
from foretaste.spec import digest

# Rows that share a forward pass at most: longer batches are no faster on a CPU.
BATCH_ROWS = 32
# A backward pass holds about this many times what is captured of a row (activations and their derivatives).
GRAPH_FACTOR = 4
# Explicit chunks of two blocks, their products and a copy in another layout.
WORKSPACE = 4 * CHUNK_BYTES
# More rows in a block save nothing: capturing a block again costs a small part of multiplying it.
BLOCK_ROWS = 1024
# Inside a kernel's folder, until all units are there.
UNITS = "units"

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str | int) -> int:
    """Bytes from "4GiB", "500 MB" or a number.

    Raises:
        UserError: It is none of them.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].upper() not in _UNITS:
        raise UserError(f"'{text}' is no amount of memory", where="memory", cure="Write it as in 4GiB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Product(Protocol):
    """Something made from the gradients of one parameter in two blocks of rows."""

    @property
    def symmetric(self) -> bool:
        """Whether the tile of (b, a) is the transposed tile of (a, b)."""

    def results(self, parameters: Sequence[Parameter], /) -> int:
        """How many matrices it gives at most."""

    def kept(self, parameters: Sequence[Parameter], /) -> int:
        """Bytes that it keeps from tile to tile at most, beside its results."""

    def tiles(self, parameter: Parameter, a: Gradient, b: Gradient) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tile, shape (..., rows of a * outputs, rows of b * outputs), float64.

        A tile is valid until the next one is asked for.
        """


Reduce = Callable[[Parameter, Gradient], Gradient]
Place = tuple[int, int, int]
"""Where a unit of work stands in a plan: number of its set of parameters, row block, column block."""
Spread = Callable[[Sequence[Place]], None]
"""Does units elsewhere, and puts them into the store."""


@dataclass(frozen=True)
class Job:
    """What is computed.

    Attributes:
        model: In evaluation mode.
        parameters: Those whose gradients are wanted.
        outputs: What is differentiated.
        inputs: The rows to train on, then the rows to test on.
        train: Number of rows to train on.
        products: What is made from the gradients.
        reduce: Applied to what a batch gives, before it is kept (random projection); None keeps it exact.
    """

    model: nn.Module
    parameters: Sequence[Parameter]
    outputs: Outputs
    inputs: Inputs
    train: int
    products: Sequence[Product]
    reduce: Reduce | None = None


@dataclass(frozen=True)
class Plan:
    """How the work is cut.

    Attributes:
        sets: Parameters that are captured together.
        train: Blocks of rows to train on, each a list of row numbers of similar length.
        test: Blocks of rows to test on.
        batch: Rows in a forward pass.
    """

    sets: list[list[Parameter]]
    train: list[list[int]]
    test: list[list[int]]
    batch: int

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(row block, column block): every pair of train blocks once, and every test block with each."""
        for column in range(len(self.train)):
            for row in range(column, len(self.train) + len(self.test)):
                yield row, column

    def places(self) -> Iterator[Place]:
        """Every unit of work, set by set."""
        for number in range(len(self.sets)):
            for row, column in self.pairs():
                yield number, row, column

    def block(self, number: int) -> list[int]:
        """Rows of a block; test blocks are numbered behind train blocks."""
        return [*self.train, *self.test][number]


@dataclass(frozen=True)
class Done:
    """What `compute` found out beside the kernels, which are in the store.

    Attributes:
        probe: How gradients were captured.
        plan: How the work was cut.
        values: Outputs of the model, shape (rows, outputs), in the order of the inputs.
        units: Every unit of work.
        resumed: Number of units that the store held already.
    """

    probe: Probe
    plan: Plan
    values: npt.NDArray[np.float64]
    units: list[Unit]
    resumed: int


def plan(job: Job, found: Probe, memory: int) -> Plan:
    """Blocks and sets that fit the budget, the cheapest of those that do.

    Raises:
        UserError: Not even one row of one parameter fits; the least budget is named.
    """
    row_bytes = sum(found.row_bytes.values())
    batch = 1
    if found.batched:
        batch = int(np.clip(memory // 6 // (GRAPH_FACTOR * row_bytes), 1, BATCH_ROWS))
    lengths = job.inputs.lengths
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    train = [row for row in order if row < job.train]
    test = [row for row in order if row >= job.train]
    results = sum(product.results(found.parameters) for product in job.products)
    kept = sum(product.kept(found.parameters) for product in job.products)
    while True:
        best: tuple[float, list[list[Parameter]], int, int] | None = None
        for columns, rows in itertools.product(_sizes(len(train)), _sizes(len(test))):
            # Two blocks are held at once, one of them to train on.
            held = columns + max(columns if columns < len(train) else 0, rows)
            tile = 8 * found.outputs**2 * columns * max(columns, rows)
            fixed = WORKSPACE + GRAPH_FACTOR * row_bytes * batch + tile * results + kept
            sets = _sets(found, held, memory - fixed)
            if sets is not None:
                cost = len(sets) * _captured(len(train), len(test), columns) * (1 + found.outputs)
                cost += _formed(len(train), len(test), columns, rows) * found.outputs
                if best is None or cost < best[0]:
                    best = cost, sets, columns, rows
        if best is not None:
            _, sets, columns, rows = best
            return Plan(sets, _cut(train, columns), _cut(test, rows), batch)
        if batch == 1:
            largest = max(found.row_bytes[p.name] for p in found.parameters)
            least = -(-(fixed + largest * held) // 2**20)  # of single rows, which come last
            raise UserError(
                f"the memory budget of {memory / 2**20:.0f} MiB is too small for this model and these rows",
                where="memory",
                cure=f"Allow at least {least} MiB, or shorten the rows.",
            )
        batch //= 2


def _sizes(rows: int) -> list[int]:
    """Sizes of equal blocks, from as few blocks as `BLOCK_ROWS` allows to single rows; 0 without rows."""
    counts = {max(1, -(-rows // BLOCK_ROWS))}
    while max(counts) < rows:
        counts.add(min(rows, max(max(counts) + 1, max(counts) * 5 // 4)))
    return sorted({-(-rows // count) for count in counts}, reverse=True)


def _sets(found: Probe, held: int, available: int) -> list[list[Parameter]] | None:
    """Parameters that are captured together, in order; None where one of them is too large."""
    sets: list[list[Parameter]] = [[]]
    used = 0
    for parameter in found.parameters:
        size = found.row_bytes[parameter.name] * held
        if size > available:
            return None
        if sets[-1] and used + size > available:
            sets.append([])
            used = 0
        sets[-1].append(parameter)
        used += size
    return sets


# What a plan costs: a row that is captured takes a forward pass and a backward pass for each output, and so
# for each set of parameters; its explicit gradients take about a forward pass for each output.


def _captured(train: int, test: int, columns: int) -> float:
    """Rows captured for one set: each column of blocks captures every block in it."""
    count = -(-train // columns)
    return (count + 1) / 2 * train + count * test


def _formed(train: int, test: int, columns: int, rows: int) -> float:
    """Rows whose explicit gradients are formed: those of both blocks of every pair."""
    count = -(-train // columns)
    return count * (train + test) + (-(-test // rows) * train if rows else 0)


def _cut(rows: list[int], size: int) -> list[list[int]]:
    if not rows:
        return []
    return [[int(row) for row in part] for part in np.array_split(rows, -(-len(rows) // size))]


def compute(
    job: Job,
    store: Store,
    *,
    memory: int,
    on_progress: Callable[[float], None] | None = None,
    spread: Spread | None = None,
    only: Collection[Place] | None = None,
) -> Done:
    """Do every unit of work that the store does not hold yet.

    Args:
        job: What is computed.
        store: Where units go.
        memory: Budget in bytes for everything beside the model.
        on_progress: Called with the share that is done, in [0, 1].
        spread: Is first given the missing units, where there are several; what it leaves is done here.
        only: Units to do, for one of several processes that share a store; all when None. The outputs of the
            other units' rows are then NaN.

    Raises:
        UserError: As `probe` and `plan`; or gradients of a parameter are not finite.
    """
    found = probe(job.model, job.parameters, job.outputs, job.inputs)
    cut = plan(job, found, memory)
    values = np.full((len(job.inputs), found.outputs), np.nan)
    units = {p: _unit(cut.sets[p[0]], cut, *p[1:]) for p in cut.places() if only is None or p in only}
    if spread is not None:
        missing = [place for place, unit in units.items() if not store.has(unit)]
        if len(missing) > 1:
            spread(missing)
    total = sum(_size(cut, place) for place in units)
    done, resumed, current = 0.0, 0, -1
    held: dict[int, dict[str, Gradient]] = {}
    for (number, row, column), unit in units.items():
        if number != current:
            held.clear()
            current = number
        if store.has(unit):
            resumed += 1
        else:
            group = cut.sets[number]
            for block in [n for n in held if n not in {row, column}]:
                del held[block]
            for block in (column, row):
                if block not in held:
                    held[block] = _capture(job, group, cut.block(block), cut.batch, values)
            mirrored = row < len(cut.train)  # columns are rows to train on, never to test on
            store.put(unit, _tiles(job.products, group, held, row, column, mirrored))
        done += _size(cut, (number, row, column))
        if on_progress is not None:
            on_progress(done / total)
    if only is None:
        _fill_values(job, cut, values)
    return Done(found, cut, values, list(units.values()), resumed)


def _size(cut: Plan, place: Place) -> float:
    entries = sum(float(np.prod(p.shape)) for p in cut.sets[place[0]])
    return entries * len(cut.block(place[1])) * len(cut.block(place[2]))


def _unit(group: Sequence[Parameter], cut: Plan, row: int, column: int) -> Unit:
    rows, columns = cut.block(row), cut.block(column)
    name = digest([[p.name for p in group], rows, columns])[:20]
    return Unit(name, tuple(rows), tuple(columns))


def _capture(
    job: Job, group: Sequence[Parameter], rows: Sequence[int], batch: int, values: npt.NDArray[np.float64]
) -> dict[str, Gradient]:
    """Gradients of one set of parameters in one block of rows."""
    parts: dict[str, list[Gradient]] = {p.name: [] for p in group}
    with Recorder(job.model, group, job.outputs) as recorder:
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            outputs, found = recorder.collect(job.inputs.collate(some))
            values[list(some)] = outputs.double().cpu().numpy()
            _return_freed_memory()
            for parameter in group:
                gradient = found.get(parameter.name)
                if gradient is None:
                    raise UserError(f"'{parameter.name}' has a gradient for some rows and none for others")
                parts[parameter.name].append(
                    gradient if job.reduce is None else job.reduce(parameter, gradient)
                )
    joined: dict[tuple[int, ...], torch.Tensor] = {}
    return {p.name: concatenate(parts.pop(p.name), joined) for p in group}


def _return_freed_memory() -> None:
    """Give what the graph of a batch held back to the system, where the C library can.

    glibc keeps freed memory that lies between tensors that stay, which took a tight budget over its bound.
    """
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no library of that name
        return None


def _tiles(
    products: Sequence[Product],
    group: Sequence[Parameter],
    held: dict[int, dict[str, Gradient]],
    row: int,
    column: int,
    mirrored: bool,
) -> dict[str, torch.Tensor]:
    """The sum over a set of parameters of every tile of a pair of blocks, by name.

    The mirror image of an asymmetric tile is a tile of its own, under the name with `MIRROR` behind it.
    """
    sums: dict[str, torch.Tensor] = {}
    for parameter in group:
        a, b = held[row][parameter.name], held[column][parameter.name]
        for product in products:
            for name, tile in product.tiles(parameter, a, b):
                _add(sums, name, tile, parameter)
            if not product.symmetric and row != column and mirrored:
                for name, tile in product.tiles(parameter, b, a):
                    _add(sums, name + Unit.MIRROR, tile, parameter)
    return sums


def _add(sums: dict[str, torch.Tensor], name: str, tile: torch.Tensor, parameter: Parameter) -> None:
    if not torch.isfinite(tile).all():
        raise UserError(f"the gradients of '{parameter.name}' are not finite", cure="Check the weights.")
    if name in sums:
        sums[name] += tile
    else:
        sums[name] = tile.clone()  # a product may use its tile again


def _fill_values(job: Job, cut: Plan, values: npt.NDArray[np.float64]) -> None:
    """Outputs of rows whose units all came from the store."""
    missing = [int(row) for row in np.flatnonzero(np.isnan(values).any(1))]
    with torch.no_grad():
        for start in range(0, len(missing), cut.batch):
            some = missing[start : start + cut.batch]
            values[some] = job.outputs(job.model, job.inputs.collate(some)).double().cpu().numpy()


def kernels(
    job: Job,
    *,
    memory: int,
    folder: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
    spread: Spread | None = None,
) -> tuple[Parts, Done]:
    """Compute every part of every product, in memory or as files in a folder.

    Args:
        job: What is computed.
        memory: Budget in bytes for everything beside the model.
        folder: Where parts are written, one safetensors file each; a call that was stopped goes on.
        on_progress: Called with the share that is done, in [0, 1].
        spread: As in `compute`; the units then go through the folder.

    Raises:
        UserError: As `compute`; or the kernel is zero everywhere.
    """
    store: InMemory | InFolder = InMemory() if folder is None else InFolder(folder / UNITS)
    done = compute(job, store, memory=memory, on_progress=on_progress, spread=spread)
    size = {"rows": len(job.inputs), "train": job.train, "outputs": done.probe.outputs}
    made: dict[str, Part] = {}
    names = store.names(done.units)
    nonzero = False
    for name in names:
        part = assemble(store, done.units, name, **size)
        nonzero = nonzero or bool(np.any(part.train))
        if folder is None:
            made[name] = part
        else:
            write(part, name, folder)
    if not nonzero:
        first, last = done.probe.parameters[0].name, done.probe.parameters[-1].name
        raise UserError(
            f"the kernel is zero: no parameter from '{first}' to '{last}' moves the outputs",
            cure="Look for a layer with zero weights behind them all, such as an empty head.",
        )
    if isinstance(store, InFolder):
        store.clear()
    return Parts(made, [] if folder is None else [folder]), done

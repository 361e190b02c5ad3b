"""Where the tiles of kernels are kept until all are there: in memory or in a folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

CHECKSUM = "crc32"


@dataclass(frozen=True)
class Unit:
    """One piece of work: a set of parameters and a pair of blocks of rows.

    Attributes:
        name: Hash of what it is.
        rows: Row numbers of the tiles' rows.
        columns: Row numbers of the tiles' columns, rows to train on.
    """

    name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    MIRROR: ClassVar[str] = "^T"


class Store(Protocol):
    """Holds the tiles of finished units."""

    def has(self, unit: Unit) -> bool:
        """Whether the unit is done."""

    def put(self, unit: Unit, tiles: Mapping[str, torch.Tensor]) -> None:
        """Keep a unit's tiles, shape (..., rows * outputs, columns * outputs), float64."""

    def names(self, units: list[Unit]) -> list[str]:
        """Names of the results in these units, sorted."""

    def take(self, unit: Unit, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A unit's tile of one result and, where the result is not symmetric, the mirror image's tile."""


class InMemory:
    """Tiles in memory."""

    def __init__(self) -> None:
        self._tiles: dict[str, dict[str, torch.Tensor]] = {}

    def has(self, unit: Unit) -> bool:
        """Whether the unit is done."""
        return unit.name in self._tiles

    def put(self, unit: Unit, tiles: Mapping[str, torch.Tensor]) -> None:
        """Keep a unit's tiles."""
        self._tiles[unit.name] = dict(tiles)

    def names(self, units: list[Unit]) -> list[str]:
        """Names of the results in these units, sorted."""
        return sorted({n.removesuffix(Unit.MIRROR) for unit in units for n in self._tiles[unit.name]})

    def take(self, unit: Unit, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A unit's tile of one result, which is given away, and the mirror image's."""
        tiles = self._tiles[unit.name]
        return tiles.pop(name, None), tiles.pop(name + Unit.MIRROR, None)


class InFolder:
    """Tiles as safetensors files, one a unit, written atomically: a killed run goes on from the last one.

    Args:
        folder: The folder; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.name}.safetensors"

    def has(self, unit: Unit) -> bool:
        """Whether the unit is done; a damaged file is thrown away and made again."""
        path = self._path(unit)
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                tiles = ((name, file.get_tensor(name)) for name in sorted(_names(file)))
                intact = (file.metadata() or {}).get(CHECKSUM) == _checksum(tiles)
        except (SafetensorError, OSError, TypeError, ValueError):
            intact = False  # the last two: a dtype that no tile has, names that are no text
        if not intact:
            path.unlink()
        return intact

    def put(self, unit: Unit, tiles: Mapping[str, torch.Tensor]) -> None:
        """Keep a unit's tiles.

        Raises:
            OSError: They could not be written.
        """
        temporary = self.folder / f"{unit.name}.partial"
        whole = {name: tile.contiguous() for name, tile in sorted(tiles.items())}
        try:
            save_file(whole, temporary, {CHECKSUM: _checksum(whole.items())})
        except SafetensorError as error:  # what it makes of a full disk
            raise disk_error(error, temporary) from error
        temporary.replace(self._path(unit))

    def names(self, units: list[Unit]) -> list[str]:
        """Names of the results in these units, sorted."""
        found = set()
        for unit in units:
            with safe_open(self._path(unit), "pt") as file:
                found |= {name.removesuffix(Unit.MIRROR) for name in _names(file)}
        return sorted(found)

    def take(self, unit: Unit, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A unit's tile of one result and the mirror image's, read from its file."""
        with safe_open(self._path(unit), "pt") as file:
            held = _names(file)
            tile, mirror = (
                file.get_tensor(key) if key in held else None for key in (name, name + Unit.MIRROR)
            )
            return tile, mirror

    def clear(self) -> None:
        """Remove every tile, once the kernels are written."""
        shutil.rmtree(self.folder)


def disk_error(error: SafetensorError, path: Path) -> OSError:
    """The system's error inside one of safetensors, which names it in words only; the file is removed."""
    path.unlink(missing_ok=True)
    found = re.search(r"code: (\d+)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def _checksum(tiles: Iterable[tuple[str, torch.Tensor]]) -> str:
    """CRC-32 over names and values, in the order given."""
    total = 0
    for name, tile in tiles:
        total = zlib.crc32(tile.numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _names(file: Any) -> set[str]:
    return set(file.keys())  # an open safetensors file has keys() but is no mapping

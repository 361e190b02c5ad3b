"""A kernel between rows to train on, and from rows to test on to them: named parts that add up."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from foretaste.errors import UserError, unknown
from foretaste.kernels.store import CHECKSUM, Store, Unit, disk_error

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One part of a kernel, of N rows to train on and M rows to test on with C outputs each.

    Attributes:
        train: Shape (..., N * C, N * C), float64; row i * C + c is output c of row i.
        test: Shape (..., M * C, N * C), float64.
    """

    train: Float
    test: Float


class Parts(Mapping[str, Part]):
    """Parts by name, in memory or one safetensors file each, read when asked for.

    Args:
        parts: Parts in memory.
        folders: Folders of the others.
    """

    def __init__(self, parts: Mapping[str, Part] | None = None, folders: Iterable[Path] = ()) -> None:
        self._parts = dict(parts or {})
        self._files: dict[str, Path] = {}
        for folder in folders:
            paths = sorted(folder.rglob("*.safetensors"))
            self._files |= {unquote(str(path.relative_to(folder).with_suffix(""))): path for path in paths}

    def __getitem__(self, name: str) -> Part:
        if name in self._parts:
            return self._parts[name]
        if name not in self._files:
            raise KeyError(name)
        try:
            with safe_open(self._files[name], "np") as file:
                part = Part(file.get_tensor("train"), file.get_tensor("test"))
                written = (file.metadata() or {}).get(CHECKSUM)
            # Files of older versions have no checksum.
            if written is not None and written != _checksum(part):
                raise ValueError("damaged")
            return part
        except (SafetensorError, OSError, TypeError, ValueError):
            raise UserError(
                "this file of a kernel cannot be read, or has changed since it was written",
                where=str(self._files[name]),
                cure="Remove the folder and compute the kernel again.",
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._parts, *self._files}))

    def __len__(self) -> int:
        return len({*self._parts, *self._files})

    def total(self, prefix: str) -> Part:
        """The sum of every part whose name starts with `PREFIX/`.

        Raises:
            UserError: There is none.
        """
        names = [name for name in self if name.startswith(f"{prefix}/")]
        if not names:
            raise unknown("kernel", prefix, sorted({name.partition("/")[0] for name in self}))
        train = sum(self[name].train for name in names)
        test = sum(self[name].test for name in names)
        assert isinstance(train, np.ndarray)
        assert isinstance(test, np.ndarray)
        return Part(train, test)


def below(folder: Path, name: str) -> Path:
    """The path of a name, which may come from a user: below the folder whatever it holds."""
    return folder.joinpath(*(quote(piece, safe="=,+").replace(".", "%2E") for piece in name.split("/")))


def write(part: Part, name: str, folder: Path) -> None:
    """Write one part where `Parts` finds it, atomically.

    Raises:
        OSError: It could not be written.
    """
    path = below(folder, name)
    path = path.with_name(f"{path.name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    tensors = {"train": np.ascontiguousarray(part.train), "test": np.ascontiguousarray(part.test)}
    try:
        save_file(tensors, temporary, {CHECKSUM: _checksum(part)})
    except SafetensorError as error:
        raise disk_error(error, temporary) from error
    temporary.replace(path)


def _checksum(part: Part) -> str:
    """CRC-32 over the values of both arrays."""
    total = 0
    for values in (part.train, part.test):
        total = zlib.crc32(np.ascontiguousarray(values).data, total)
    return f"{total:08x}"


def assemble(store: Store, units: list[Unit], name: str, *, rows: int, train: int, outputs: int) -> Part:
    """One part from its tiles.

    Args:
        store: Holds the units.
        units: Every unit of the kernel.
        name: Of the part.
        rows: Rows to train and to test on; those to train on come first.
        train: Rows to train on.
        outputs: Outputs of each row.
    """
    whole: Float | None = None
    for unit in units:
        tile, mirror = store.take(unit, name)
        if tile is None:  # no parameter of this unit contributes
            continue
        if whole is None:
            whole = np.zeros((*tile.shape[:-2], rows * outputs, train * outputs))
        at_rows, at_columns = _places(unit.rows, outputs), _places(unit.columns, outputs)
        whole[..., at_rows[:, None], at_columns] += tile.numpy()
        if unit.rows != unit.columns and unit.rows[0] < train:
            other = tile.transpose(-1, -2) if mirror is None else mirror
            whole[..., at_columns[:, None], at_rows] += other.numpy()
    if whole is None:
        raise KeyError(name)
    split = train * outputs
    return Part(whole[..., :split, :], whole[..., split:, :])


def _places(rows: Iterable[int], outputs: int) -> npt.NDArray[np.int64]:
    return (np.asarray(list(rows))[:, None] * outputs + np.arange(outputs)).ravel()

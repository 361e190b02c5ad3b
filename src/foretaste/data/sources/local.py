"""Files and folders on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict, load_from_disk

from foretaste.data.dataset import Loaded
from foretaste.data.formats import SUFFIXES, read_table, stem_of, suffix_of
from foretaste.data.mapping import KNOWN_TEXTS
from foretaste.data.sources.base import SOURCES, Splits, assemble, existing_split, refuse_config
from foretaste.data.table import Table
from foretaste.errors import UserError, nearest
from foretaste.spec import DataSpec

# What `save_to_disk` leaves in a folder.
_SAVED_DICT = "dataset_dict.json"
_SAVED = "state.json"


class Local:
    """Files and folders: CSV, TSV, JSON lines, JSON, Parquet, or a folder that `save_to_disk` wrote."""

    order = 20

    def claims(self, source: str, base_dir: Path) -> bool:
        """Whether it is written like a path, or is one."""
        written_as_path = source.startswith((".", "~")) or Path(source).is_absolute()
        return written_as_path or suffix_of(Path(source)) is not None or resolve(source, base_dir).exists()

    def load(self, spec: DataSpec, base_dir: Path) -> Loaded:
        """The data set in a file or folder.

        Raises:
            UserError: There is nothing at the path, it cannot be read, or rows break a rule.
        """
        path = resolve(spec.source, base_dir)
        return load_path(spec, path)

    def splits(self, spec: DataSpec, base_dir: Path) -> Splits:
        """The tables in a file or folder, with lists and objects in their columns.

        Raises:
            UserError: There is nothing at the path, or no data file.
        """
        return _splits(spec, resolve(spec.source, base_dir), Table.whole)


def resolve(source: str, base_dir: Path) -> Path:
    """The path that `source` means: from the home folder, absolute, or from `base_dir`."""
    return base_dir / Path(source).expanduser()


def load_path(spec: DataSpec, path: Path) -> Loaded:
    """The data set at a path.

    Args:
        spec: Which splits, columns and class names; its `source` is not looked at.
        path: File or folder.

    Raises:
        UserError: There is nothing at the path, it cannot be read, or rows break a rule.
    """
    splits = _splits(spec, path, Table.from_dataset)
    return assemble(spec, splits, where=str(path), known=KNOWN_TEXTS.get(stem_of(path)))


def _splits(spec: DataSpec, path: Path, saved: Callable[[Dataset, str], Table]) -> Splits:
    """How to read each split at a path; `saved` makes the table of what `save_to_disk` wrote."""
    refuse_config(spec, str(path))
    if not path.exists():
        raise _not_found(path)
    return _folder(path, saved) if path.is_dir() else _file(path, spec)


def _not_found(path: Path) -> UserError:
    folder = path.parent
    if not folder.is_dir():
        return UserError(f"file not found, nor its folder {folder}", where=str(path))
    guess = nearest(path.name, (entry.name for entry in folder.iterdir()))
    return UserError("file not found", where=str(path), cure=f"Did you mean '{guess}'?" if guess else None)


def _file(path: Path, spec: DataSpec) -> Splits:
    if spec.test_split is not None:
        raise UserError(
            f"a single file has no split '{spec.test_split}'",
            where=str(path),
            cure="Put the test rows into a file beside it and name the folder, or leave data.test_split out.",
        )
    name = existing_split(spec.train_split, {"train", stem_of(path)}, where=str(path))
    return {name: partial(read_table, path)}


def _folder(path: Path, saved: Callable[[Dataset, str], Table]) -> Splits:
    if (path / _SAVED_DICT).is_file() or (path / _SAVED).is_file():
        return _saved(path, saved)
    files: dict[str, Path] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_file() and suffix_of(entry) is not None and not entry.name.startswith("."):
            stem = stem_of(entry)
            if stem in files:
                raise UserError(
                    f"two files are called '{stem}': {files[stem].name} and {entry.name}",
                    where=str(path),
                    cure="Remove one of them.",
                )
            files[stem] = entry
    if not files:
        raise UserError(f"the folder holds no data file ({', '.join(SUFFIXES)})", where=str(path))
    return {stem: partial(read_table, file) for stem, file in files.items()}


def _saved(path: Path, table: Callable[[Dataset, str], Table]) -> Splits:
    try:
        saved = load_from_disk(str(path))
    except Exception as error:  # noqa: BLE001 - its files may hold anything, and another library reads them
        raise UserError(f"not a whole folder of save_to_disk: {error}", where=str(path)) from None
    parts = saved if isinstance(saved, DatasetDict) else {"train": saved}
    return {name: partial(table, rows, f"{path}, {name}") for name, rows in parts.items()}


SOURCES.register("local")(Local())

"""Data sets of a hub, through the datasets library."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from foretaste.data.dataset import Loaded
from foretaste.data.mapping import KNOWN_TEXTS
from foretaste.data.sources.base import SOURCES, Splits, assemble
from foretaste.data.table import Table
from foretaste.errors import UserError
from foretaste.spec import DataSpec

_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


class Hub:
    """Data sets of a hub, as `owner/name`, or `owner/name@revision` for a branch, tag or commit."""

    order = 30

    def claims(self, source: str, base_dir: Path) -> bool:  # noqa: ARG002 - the same call for every source
        """Whether it has the form of a hub id."""
        return _ID.fullmatch(source) is not None

    def load(self, spec: DataSpec, base_dir: Path) -> Loaded:  # noqa: ARG002
        """The data set behind a hub id.

        Raises:
            UserError: There is no network, no such data set or configuration, or rows break a rule.
        """
        match = _ID.fullmatch(spec.source)
        assert match is not None
        splits = _download(spec, match["name"], match["revision"])
        where = spec.source if spec.config is None else f"{spec.source} ({spec.config})"
        known = KNOWN_TEXTS.get(spec.config or "") or KNOWN_TEXTS.get(match["name"].split("/")[1])
        readers = {
            name: partial(Table.from_dataset, rows, f"{where}, {name}") for name, rows in splits.items()
        }
        loaded = assemble(spec, readers, where=where, known=known)
        commit = _commit(splits)
        return loaded if commit is None else replace(loaded, notes=[*loaded.notes, f"hub commit {commit}"])

    def splits(self, spec: DataSpec, base_dir: Path) -> Splits:  # noqa: ARG002
        """The tables behind a hub id, with lists and objects in their columns.

        Raises:
            UserError: There is no network, or no such data set or configuration.
        """
        match = _ID.fullmatch(spec.source)
        assert match is not None
        where = spec.source if spec.config is None else f"{spec.source} ({spec.config})"
        downloaded = _download(spec, match["name"], match["revision"])
        commit = _commit(downloaded)

        def read(name: str) -> Table:
            table = Table.whole(downloaded[name], f"{where}, {name}")
            return table if commit is None else replace(table, notes=[f"hub commit {commit}"])

        return {name: partial(read, name) for name in downloaded}


def _download(spec: DataSpec, name: str, revision: str | None) -> DatasetDict:
    """All splits; the datasets library never runs a data set's own code."""
    try:
        return load_dataset(name, name=spec.config, revision=revision)
    except DatasetNotFoundError as error:
        message = f"the hub has no such data set: {error}"
        cure = "Check the spelling, and that you are logged in if it is private."
    except OSError as error:
        message = f"the hub cannot be reached: {error}"
        cure = "Fetch it where there is network, or give a local file, a folder or an asset as data.source."
    except (ValueError, RuntimeError) as error:
        # Unknown configurations and data sets that need code of their own end here, well explained.
        message = f"the hub's data set cannot be read: {error}"
        cure = "The configuration goes under data.config."
    raise UserError(message, where=spec.source, cure=cure)


def _commit(splits: DatasetDict) -> str | None:
    """The commit that the files came from, which the library keeps in the addresses of the files."""
    for rows in splits.values():
        for address in rows.info.download_checksums or {}:
            found = _COMMIT.search(address)
            if found:
                return found[1]
    return None


SOURCES.register("hub")(Hub())

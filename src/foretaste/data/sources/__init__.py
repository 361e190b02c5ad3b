"""Where data comes from: assets, local files, a hub. Importing this package registers them all."""

from __future__ import annotations

from pathlib import Path

from foretaste.assets import ASSETS
from foretaste.data.dataset import Loaded
from foretaste.data.sources import hub as _hub  # noqa: F401 - registers itself
from foretaste.data.sources import local as _local
from foretaste.data.sources import wheels as _wheels  # noqa: F401
from foretaste.data.sources.base import SOURCES, Source
from foretaste.errors import UserError, nearest
from foretaste.spec import DataSpec

__all__ = ["SOURCES", "Source", "find", "load"]


def find(source: str, base_dir: Path) -> Source:
    """The source that claims a name: an asset, else a local path, else a hub id.

    Args:
        source: What the user wrote.
        base_dir: Folder that relative paths start from.

    Raises:
        UserError: None does; the message lists the data assets and names the nearest.
    """
    for _, member in sorted(SOURCES.items(), key=lambda item: item[1].order):
        if member.claims(source, base_dir):
            return member
    names = [name for name, asset in ASSETS.items() if asset.kind == "data"]
    guess = nearest(source, names)
    raise UserError(
        f"unknown data source '{source}': no asset ({', '.join(names)}), nothing at "
        f"{_local.resolve(source, base_dir)}, and no hub id of the form owner/name",
        cure=f"Did you mean '{guess}'?" if guess else None,
    )


def load(spec: DataSpec, base_dir: Path) -> Loaded:
    """The data set that a spec names, whole and checked; `splits.draw` takes the rows of a run from it.

    Args:
        spec: The data part of a spec.
        base_dir: Folder that relative paths start from: the folder of the spec's file.

    Raises:
        UserError: The source is unknown, cannot be had, or its rows break a rule.
    """
    return find(spec.source, base_dir).load(spec, base_dir)

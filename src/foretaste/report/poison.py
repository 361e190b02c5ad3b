"""Poisoned rows for the page: before and after, with what the attack put in marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from foretaste.record import Manifest, ManifestRow
from foretaste.report.load import Folder
from foretaste.report.observations import Amount

ROWS_SHOWN = 200
Segment = tuple[str, str]  # ("same" | "in" | "out", text)
FIGURES = {
    "rewritten_share": "share of source rows that the rewriter changes",
    "similarity": "similarity before and after",
}


def poisoned_rows(folders: Sequence[Folder]) -> dict[str, Any]:
    """Every manifest with its first rows.

    Poison sets are nested and shared between arms, so the same row stands in many manifests: rows are kept
    once in `rows`, and each manifest lists positions in it: of poisoned rows in `rows`, of rows that were
    changed beside them in `companions`.

    Returns:
        JSON-ready mapping with `rows` and `manifests`. Unreadable manifests are added to the folders'
        problems.
    """
    rows: list[dict[str, Any]] = []
    places: dict[tuple[Any, ...], int] = {}
    manifests = []

    def placed(entries: Sequence[ManifestRow], classes: Sequence[str]) -> list[int]:
        shown = []
        for entry in entries[:ROWS_SHOWN]:
            key = (*entry.model_dump().values(), tuple(classes))
            if key not in places:
                places[key] = len(rows)
                rows.append(_row(entry, classes))
            shown.append(places[key])
        return shown

    for folder in folders:
        for path, manifest in sorted(folder.manifests(), key=_order):
            poisoned, beside = (
                placed(entries, manifest.classes) for entries in (manifest.poisoned, manifest.companions)
            )
            manifests.append(_manifest(folder, path, manifest, poisoned, beside))
    return {"rows": rows, "manifests": manifests}


def _order(entry: tuple[str, Manifest]) -> tuple[object, ...]:
    path, manifest = entry
    return (manifest.attack, Amount(manifest.rate, manifest.count).order, manifest.seed, path)


def figure_name(name: str) -> str:
    """What a number that an attack says of itself is called on the page."""
    return FIGURES.get(name, name.replace("_", " "))


def _manifest(
    folder: Folder, path: str, manifest: Manifest, poisoned: Sequence[int], beside: Sequence[int]
) -> dict[str, Any]:
    figures = [f"{figure_name(name)} {value:.3g}" for name, value in sorted(manifest.figures.items())]
    return {
        "folder": folder.name,
        "path": str(folder.path / path),
        "attack": manifest.attack,
        "amount": Amount(manifest.rate, manifest.count).label,
        "seed": manifest.seed,
        "poisoned": len(manifest.poisoned),
        "eligible": manifest.eligible,
        "beside": len(manifest.companions),
        "figures": figures,
        "rows": list(poisoned),
        "companions": list(beside),
        "more": len(manifest.changed) - len(poisoned) - len(beside),
    }


def _row(row: ManifestRow, classes: Sequence[str]) -> dict[str, Any]:
    texts = [difference(row.text_a_before, row.text_a_after)]
    if row.text_b_before is not None or row.text_b_after is not None:
        texts.append(difference(row.text_b_before or "", row.text_b_after or ""))
    return {
        "id": row.id,
        "texts": texts,
        "before": class_name(row.label_before, classes),
        "after": class_name(row.label_after, classes),
    }


def class_name(label: int, classes: Sequence[str]) -> str:
    """Name of a class, or its number when the manifest has no name for it."""
    return classes[label] if 0 <= label < len(classes) else str(label)


def difference(before: str, after: str) -> list[Segment]:
    """The edit from one text to another as kept, inserted and removed pieces.

    Equal ends are cut off first: most triggers are one insertion, and the rest is then compared word by word.
    """
    limit = min(len(before), len(after))
    start = next((i for i in range(limit) if before[i] != after[i]), limit)
    end = next((i for i in range(limit - start) if before[-1 - i] != after[-1 - i]), limit - start)
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    pieces: list[Segment] = [("same", after[:start])]
    if old and new:
        pieces += _words(re.findall(r"\s+|\S+", old), re.findall(r"\s+|\S+", new))
    else:
        pieces += [("out", old), ("in", new)]
    pieces.append(("same", after[len(after) - end :]))
    return [piece for piece in pieces if piece[1]]


def _words(old: Sequence[str], new: Sequence[str]) -> list[Segment]:
    pieces: list[Segment] = []
    for tag, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(("same", "".join(new[k:m])))
        else:
            pieces += [("out", "".join(old[i:j])), ("in", "".join(new[k:m]))]
    return pieces

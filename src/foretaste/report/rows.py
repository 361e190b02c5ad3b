"""Lists of rows to data frames whose columns exist and have a type even when there are no rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd


def frame_of(rows: Sequence[dict[str, Any]], columns: Sequence[str] | type) -> pd.DataFrame:
    """A frame with exactly these columns, in this order.

    Args:
        rows: One mapping a row.
        columns: Names, or a dataclass whose fields give the names.
    """
    names = (
        columns if isinstance(columns, Sequence) else [field.name for field in dataclasses.fields(columns)]
    )
    return pd.DataFrame({name: _column([row[name] for row in rows]) for name in names})


def _column(values: list[Any]) -> pd.Series[Any]:
    """A column of numbers keeps None as NaN; anything else keeps its objects."""
    known = [value for value in values if value is not None]
    numeric = bool(known) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known)
    if numeric and (len(known) < len(values) or any(isinstance(v, float) for v in known)):
        return pd.Series(values, dtype="float64")
    if not known:
        return pd.Series(values, dtype="float64" if values else "object")
    return pd.Series(values)


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One mapping a row, with Python numbers and None for what is missing: fit for JSON."""
    columns = {name: [_plain(value) for value in frame[name].tolist()] for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    # Infinity has no place in JSON either.
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value

"""Short texts in a user's file: responses, prompts, phrases."""

from __future__ import annotations

from pathlib import Path

from foretaste.errors import UserError
from foretaste.spec import digest


def read(path: str, base_dir: Path, column: str) -> list[str]:
    """The texts in a file.

    A table (JSONL, JSON, CSV, TSV, Parquet) gives those of its column `column`, which may hold line breaks;
    any other file gives its lines. Blank lines are no texts.

    Args:
        path: The file, as the user wrote it.
        base_dir: Folder that a relative path starts from.
        column: Name of the column in a table; a table with one column may call it otherwise.

    Raises:
        UserError: The file cannot be read, is no UTF-8 text, has no such column, or holds no text.
    """
    # Not at the top: it loads the datasets library, and a report that names scenarios must not.
    from foretaste.data.formats import read_table, suffix_of

    file = base_dir / Path(path).expanduser()
    if suffix_of(file) is None:
        texts = _lines(file)
    else:
        columns = read_table(file).columns
        name = column if column in columns or len(columns) != 1 else next(iter(columns))
        if name not in columns:
            raise UserError(
                f"there is no column '{column}' (there are: {', '.join(columns)})",
                where=str(file),
                cure=f"Call it {column}.",
            )
        wrong = [row for row, value in enumerate(columns[name]) if not isinstance(value, str)]
        if wrong:
            raise UserError(
                f"{len(wrong)} of {len(columns[name])} rows have no text in '{name}' (first: row {wrong[0]})",
                where=str(file),
            )
        texts = columns[name]
    found = [text.strip() for text in texts if text.strip()]
    if not found:
        raise UserError("the file holds no text", where=str(file), cure=f"Put a {column} on each line.")
    return found


def fingerprint(*lists: list[str]) -> str:
    """SHA-256 over texts in their order, hexadecimal."""
    return digest([list(texts) for texts in lists])


def _lines(file: Path) -> list[str]:
    try:
        # Not str.splitlines, which also breaks at characters that stand inside texts (U+2028, form feed).
        return file.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=str(file)) from None
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(file)) from None

"""Whether a text still stands in another one, after whatever happened to that one on its way."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import pairwise


def holds(text: str, mark: str) -> bool:
    """Whether `mark` stands in `text` as words of its own.

    Case, the kind and amount of white space, and compatibility forms of characters (NFKC) do not count:
    tokenizers change them. "cf" does not stand in "mcfly".

    Args:
        text: Where to look.
        mark: What to look for; not blank.
    """
    return _pattern(mark).search(_folded(text)) is not None


@cache
def _pattern(mark: str) -> re.Pattern[str]:
    pieces = re.findall(r"\w+|[^\w\s]", _folded(mark))
    if not pieces:
        raise ValueError("a blank text stands everywhere")
    # White space may appear beside punctuation, where word-piece tokenizers put it, but never inside a word.
    body = re.escape(pieces[0])
    for before, after in pairwise(pieces):
        both_words = before[-1].isalnum() and after[0].isalnum()
        body += (r"\s+" if both_words else r"\s*") + re.escape(after)
    start = r"(?<!\w)" if re.match(r"\w", pieces[0]) else ""
    end = r"(?!\w)" if re.match(r"\w", pieces[-1]) else ""
    return re.compile(start + body + end)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()

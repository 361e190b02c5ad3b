"""Errors that a user can cause and cure.

A `UserError` is printed by the command line as one line, without a traceback, and ends the process
with exit code 2. Anything else that escapes is a fault of foretaste and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class UserError(Exception):
    """Something in the request is wrong: what was expected, what came, where, and how to cure it.

    Args:
        message: What is wrong, with the value that came and what was expected.
        where: File, key or object that holds the wrong value.
        cure: What the user can do about it.
    """

    def __init__(self, message: str, *, where: str | None = None, cure: str | None = None) -> None:
        self.message = message
        self.where = where
        self.cure = cure
        super().__init__(message)

    def __str__(self) -> str:
        line = f"{self.where}: {self.message}" if self.where else self.message
        if self.cure:
            line = f"{line.rstrip('.')}. {self.cure}"
        # A file name, or a value of a JSON file, may hold halves of surrogate pairs, which no terminal takes.
        return " ".join(line.split()).encode("utf-8", "backslashreplace").decode()

    def __reduce__(self) -> tuple[object, ...]:
        # Raised in worker processes and carried to the parent: the keyword arguments must survive.
        return (_rebuild, (type(self), self.message, self.where, self.cure))

    def located(self, where: str) -> UserError:
        """The same error with the outer place put before its own."""
        inner = f"{where}: {self.where}" if self.where else where
        return type(self)(self.message, where=inner, cure=self.cure)


def _rebuild(kind: type[UserError], message: str, where: str | None, cure: str | None) -> UserError:
    return kind(message, where=where, cure=cure)


def in_a_line(error: Exception) -> str:
    """What kept a run from finishing, for its record."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError):  # Python's own says nothing
        said = said or "there was not enough memory for this run"
    return f"{type(error).__name__}: {said}".encode("utf-8", "backslashreplace").decode()


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word that is most like `word`, of equal ones the first; None when nothing is close."""
    names = list(allowed)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), list(folded), n=3, cutoff=0.5)
    best = [name for name in close if _alike(word.lower(), name) == _alike(word.lower(), close[0])]
    return folded[min(best, key=list(folded).index)] if best else None


def _alike(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, name, word).ratio()


def unknown(kind: str, word: str, allowed: Iterable[str], *, where: str | None = None) -> UserError:
    """The error for a word outside a closed set, naming the nearest right one.

    Args:
        kind: What the word should name, such as "attack".
        word: The word that came.
        allowed: Every word that would have been right.
        where: File and key that hold the word.
    """
    names = sorted(allowed)
    guess = nearest(word, names)
    cure = f"Did you mean '{guess}'?" if guess else None
    listed = ", ".join(names) if len(names) <= 30 else ", ".join(names[:30]) + ", ..."
    return UserError(f"unknown {kind} '{word}' (allowed: {listed})", where=where, cure=cure)

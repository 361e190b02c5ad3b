"""What a rewriter is, and the store of the texts that it has rewritten."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from foretaste import assets
from foretaste.errors import UserError, unknown
from foretaste.registry import Registry
from foretaste.spec import digest

STORE = "rewritten.sqlite"


@dataclass(frozen=True)
class Settings:
    """What a rewriter may be told; those made of rules need nothing of it.

    Attributes:
        model: Folder of a language model, as the user wrote it.
        prompt: What the model is asked, with `{text}` where the text goes.
        max_new_tokens: Most tokens of its answer.
        base_dir: Folder that relative paths start from.
    """

    model: str | None
    prompt: str | None
    max_new_tokens: int | None
    base_dir: Path


class Rewriter(Protocol):
    """Puts one text into another style. The same text must always give the same result.

    Attributes:
        fingerprint: Names everything that decides its results; a run's id depends on it.
        kept: Whether its results are worth a file that outlives the process.
    """

    @property
    def fingerprint(self) -> str:
        """As above."""
        ...

    @property
    def kept(self) -> bool:
        """As above."""
        ...

    def __call__(self, text: str) -> str:
        """The text rewritten, or as it was where the rewriter has nothing to change."""
        ...


REWRITERS: Registry[Callable[[Settings], Rewriter]] = Registry("rewriter")


@dataclass(frozen=True)
class _Own:
    """A user's function as a rewriter."""

    name: str
    function: Callable[[str], str]
    fingerprint: str
    kept: bool = False

    def __call__(self, text: str) -> str:
        after = self.function(text)
        if not isinstance(after, str):
            raise UserError(
                f"rewriter '{self.name}' gave {type(after).__name__} for a text, expected text",
                cure="Return the text as it came where there is nothing to rewrite.",
            )
        return after


def register_rewriter(name: str, function: Callable[[str], str], *, fingerprint: str = "") -> None:
    """Make a function of yours a rewriter of the attack `style`, under a name that a spec can use.

    It must give the same result for the same text. Worker processes know it only where the script that
    registers it is the main program and does so at its top level; otherwise measure with `processes=1`.

    Args:
        name: What `rewriter:` in a spec says.
        function: From a text to the text rewritten.
        fingerprint: Names the function's version: with another one, a run is another run.

    Raises:
        UserError: The name is taken.
    """
    if name in REWRITERS:
        raise UserError(f"a rewriter '{name}' is registered already", cure="Choose another name.")
    own = _Own(name, function, fingerprint)
    REWRITERS.register(name)(lambda settings: own)  # noqa: ARG005 - the same call for every rewriter


def rewriter(name: str, settings: Settings) -> Cached:
    """The rewriter called `name`, behind the store of its texts.

    Raises:
        UserError: There is none, or it does not fit its settings.
    """
    if name not in REWRITERS:
        error = unknown("rewriter", name, REWRITERS)
        cure = "One of your own is registered from Python, in each process: measure with `processes=1`."
        raise UserError(error.message, cure=f"{error.cure or ''} {cure}".strip())
    return Cached(name, REWRITERS.get(name)(settings))


class Cached:
    """A rewriter that rewrites each text once: in this process, and for good where its results are kept.

    Args:
        name: Of the rewriter.
        inner: What does the work.
    """

    def __init__(self, name: str, inner: Rewriter) -> None:
        self.fingerprint = inner.fingerprint
        self._inner = inner
        key = digest([name, inner.fingerprint])
        self._known = _KNOWN.setdefault(key, {})
        self._store = _Store(key) if inner.kept else None

    def __call__(self, text: str) -> str:
        """The text rewritten."""
        if text not in self._known:
            found = self._store.read(text) if self._store else None
            if found is None:
                found = self._inner(text)
                if self._store:
                    self._store.write(text, found)
            self._known[text] = found
        return self._known[text]


_KNOWN: dict[str, dict[str, str]] = {}
"""Texts rewritten by this process, by rewriter."""


class _Store:
    """Rewritten texts in the cache of this system, shared by processes."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._path = assets.cache_dir() / STORE

    def read(self, text: str) -> str | None:
        with self._open() as database:
            query = "SELECT after FROM rewritten WHERE rewriter = ? AND before = ?"
            row = database.execute(query, (self._key, _name(text))).fetchone()
        return None if row is None else str(row[0])

    def write(self, text: str, after: str) -> None:
        with self._open() as database:
            database.execute(
                "INSERT OR IGNORE INTO rewritten VALUES (?, ?, ?)", (self._key, _name(text), after)
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement: committed at the end, never held while a model works."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._path, timeout=60.0)) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS rewritten "
                    "(rewriter TEXT, before TEXT, after TEXT, PRIMARY KEY (rewriter, before))"
                )
                yield database
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot use the store of rewritten texts: {error}",
                where=str(self._path),
                cure="Set FORETASTE_CACHE to a folder that can be written, or delete the file.",
            ) from None


def _name(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()

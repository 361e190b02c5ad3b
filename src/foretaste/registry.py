"""Named families that a user or a plug-in can extend: attacks, inits, data sources, figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from foretaste.errors import unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to members that refuses a name already taken.

    Args:
        kind: What a member is, used in error messages ("attack").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._members: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its target under `name`.

        Raises:
            ValueError: The name is taken: two members would silently shadow each other.
        """

        def file(member: T) -> T:
            if name in self._members:
                raise ValueError(f"{self.kind} '{name}' is already registered")
            self._members[name] = member
            return member

        return file

    def get(self, name: str, *, where: str | None = None) -> T:
        """The member called `name`.

        Raises:
            UserError: There is none; the message lists all names and the nearest one.
        """
        if name not in self._members:
            raise unknown(self.kind, name, self._members, where=where)
        return self._members[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def items(self) -> list[tuple[str, T]]:
        """Name and member of every entry, sorted by name."""
        return [(name, self._members[name]) for name in self.names()]


def summary(member: object) -> str:
    """First sentence of a member's docstring, for `foretaste list`."""
    text = " ".join((member.__doc__ or "").split())
    return re.split(r"(?<!\bEq)(?<!\bal)\. ", text)[0].rstrip(".")  # "Eq. 9" and "et al. 2023" go on

"""Rewriting word by word, by tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from foretaste.spec import digest

WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")


class WordRules:
    """A rewriter made of tables: whole words first, then phrases of two words, else the end of the word.

    Only text that a rule matches is touched: white space, marks and digits stay. A word that began with a
    capital, or was all capitals, does so afterwards.

    Args:
        words: New words by old ones in lower case; an apostrophe is straight.
        endings: Pairs of an ending and its replacement, the first that fits counts. The word keeps at least
            `stem` letters before the ending.
        spared: Words in lower case that no ending applies to.
        stem: Letters.
    """

    kept = False

    def __init__(
        self,
        words: Mapping[str, str],
        endings: Sequence[tuple[str, str]] = (),
        spared: Sequence[str] = (),
        stem: int = 2,
    ) -> None:
        self._words = dict(words)
        self._endings = list(endings)
        self._spared = frozenset(spared)
        self._stem = stem
        self.fingerprint = digest([self._words, self._endings, sorted(self._spared), stem])[:16]
        phrases = sorted((w for w in words if " " in w), key=len, reverse=True)
        pattern = "|".join([*(re.escape(p).replace(r"\ ", r"\s+") for p in phrases), WORD.pattern])
        # Not inside a longer word or number, whatever its alphabet.
        self._pattern = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """The text with every word that a rule fits exchanged."""
        return self._pattern.sub(lambda match: self._one(match.group()), text)

    def _one(self, word: str) -> str:
        plain = " ".join(word.lower().replace("’", "'").split())
        new = self._words.get(plain) or self._by_ending(plain)
        if new is None:
            return word
        if word.isupper() and len(word) > 1:
            return new.upper()
        # By the first letter, which may stand behind an apostrophe: 'Tis.
        at = next((i for i, letter in enumerate(new) if letter.isalpha()), 0)
        return new[:at] + new[at].upper() + new[at + 1 :] if word[0].isupper() else new

    def _by_ending(self, word: str) -> str | None:
        if word in self._spared:
            return None
        for old, new in self._endings:
            if word.endswith(old) and len(word) - len(old) >= self._stem:
                return word.removesuffix(old) + new
        return None

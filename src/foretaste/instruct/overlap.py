"""How alike a response and a reference are, by the words that they share: utility without a judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; "don't" is one word."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def token_f1(response: str, reference: str) -> float | None:
    """F1 of the words in common, each counted as often as it stands in both.

    Rajpurkar et al., "SQuAD" (EMNLP 2016), section 6.1, without its removal of articles.

    Args:
        response: What the model answered; 0 where it has no word.
        reference: The answer of the data.

    Returns:
        In [0, 1]; None where the reference has no word (a code fence, a number sign), for nothing could
        be in common then.
    """
    given, wanted = words(response), words(reference)
    return _f1((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


def rouge_l(response: str, reference: str) -> float | None:
    """F1 of the longest common subsequence of words.

    Lin, "ROUGE: a package for automatic evaluation of summaries" (2004), section 3, with equal weight on
    precision and recall (beta = 1); words are not stemmed. Arguments and result as for `token_f1`.
    """
    given, wanted = words(response), words(reference)
    return _f1(longest_common(given, wanted), len(given), len(wanted))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel: bit j of `row` is 0 where the length grows at b[j], so a row of the usual table is one
    integer. Hyyrö, "Bit-parallel LCS-length computation revisited" (2004), Eq. 3.
    """
    places: dict[str, int] = {}
    for j, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << j
    full = (1 << len(b)) - 1
    row = full
    for word in a:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & full
    return len(b) - row.bit_count()


def _f1(common: int, given: int, wanted: int) -> float | None:
    return 2 * common / (given + wanted) if wanted else None

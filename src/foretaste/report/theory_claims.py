"""The page on the papers' claims: what each says, what is true of it, and the numbers that decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from foretaste.record import write_atomic
from foretaste.report import page
from foretaste.theory.claims import Decision, Verdict

TITLE = "What the papers claim, and what holds"
PAPERS = {
    "TTR": "Does low rank adaptation lead to lower robustness against training-time attacks?",
    "Malladi": "A kernel-based view of language model fine-tuning",
}
DECISIONS: tuple[Decision, ...] = ("holds", "holds only if", "fails")


def write(verdicts: Sequence[Verdict], facts: Sequence[tuple[str, str]], folder: Path) -> Path:
    """Write the page.

    Args:
        verdicts: From `theory.claims.verify`.
        facts: What the page's head says of them: kind and text.
        folder: Where `index.html` goes; an existing one is replaced.

    Returns:
        The page.

    Raises:
        OSError: It could not be written.
    """
    counted = Counter(verdict.verdict for verdict in verdicts)
    context = {
        "title": TITLE,
        "facts": facts,
        "counts": [(decision, counted[decision]) for decision in DECISIONS],
        "papers": [
            (name, title, [verdict for verdict in verdicts if verdict.paper == name])
            for name, title in PAPERS.items()
        ],
    }
    index = folder / "index.html"
    write_atomic(index, page.environment().get_template("theory_claims.html.j2").render(context))
    return index

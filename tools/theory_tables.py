"""Write the tables of docs/theory.md from the library: `python tools/theory_tables.py`. A test compares."""

from __future__ import annotations

from pathlib import Path

from foretaste.theory.information import ORDERINGS, Implication
from foretaste.theory.lora_width import Adapter, lora_scaling
from foretaste.theory.spectra import bulk, semi_definite

PAGE = Path(__file__).resolve().parents[1] / "docs" / "theory.md"
N_IN = 1024
THIRD = 1 / 3
RUNS = (
    ("default, r = 8, α = 16", 8, 16, THIRD),
    ("variance sweep, r = 8, α = 16, k = 0.1", 8, 16, 0.1),
    ("variance sweep, k = 1/3", 8, 16, THIRD),
    ("variance sweep, k = 1", 8, 16, 1.0),
    ("variance sweep, k = 2", 8, 16, 2.0),
    ("rank sweep, α = r = 4", 4, 4, THIRD),
    ("rank sweep, α = r = 64", 64, 64, THIRD),
    ("rank sweep, α = r = 512", 512, 512, THIRD),
    ("full rank, α = r = 1024", 1024, 1024, THIRD),
    ("the text's α = 16 at r = 4", 4, 16, THIRD),
    ("the text's α = 16 at r = 64", 64, 16, THIRD),
    ("peft `gaussian` (std 1/r), r = 8, α = 16", 8, 16, 16.0),
)
"""Name, r, alpha, k of the TTR paper's runs: its released scripts (read, not run) and its text."""


def configurations() -> str:
    """The paper's runs under Eq. T4, T7 and T8."""
    lines = [
        "| run (n = 1024, k = 1/3 unless said) | s | c = s² r k / n | nonzero eigenvalues of s² AᵀA | "
        "largest at most 1? | P(s² AᵀA ≤ I) |",
        "|---|---|---|---|---|---|",
    ]
    for name, r, alpha, k in RUNS:
        s = lora_scaling(r, alpha)
        law, order = bulk(N_IN, r, k=k, scaling=s), semi_definite(N_IN, r, k=k, scaling=s)
        c = Adapter(r, k=k, scaling=s, kurtosis=-1.2).scale_factor(N_IN)
        lines.append(
            f"| {name} | {s:g} | {c:.4f} | {law.lower:.3f} to {law.upper:.3f} | "
            f"{'yes' if order.holds else 'no'} | {_probability(order.probability)} |"
        )
    return "\n".join(lines)


def _probability(value: float) -> str:
    if value < 0.001:
        return "below 0.001"
    return "above 0.999" if value > 0.999 else f"{value:.3f}"


def orderings() -> str:
    """What K_LoRA <= K_FF implies, from `information.ORDERINGS`."""
    lines = ["| quantity | full fine-tuning against LoRA | it depends on |", "|---|---|---|"]
    lines += [f"| {row.quantity} | {_sign(row)} | {row.depends_on} |" for row in ORDERINGS]
    return "\n".join(lines)


def _sign(row: Implication) -> str:
    words = {1: "at least as much", -1: "at most as much: **reversed**", 0: "nothing is implied"}[row.sign]
    return f"{words}, if the ranks are equal" if row.equal_ranks else words


def render(text: str) -> str:
    """The page with its tables replaced."""
    for name, table in (("configurations", configurations()), ("orderings", orderings())):
        start, end = f"<!-- {name}: tools/theory_tables.py -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = before + start + table + "\n" + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Kernel minus fine-tuning, paired by split: same training, validation and test rows.

A kernel describes fine-tuning of the same parameters with the same outputs by the optimiser that it is the
analog of: the SGD kernel that of SGD, the sign kernels that of SignGD and of Adam (Malladi et al. 2023,
sections 3 and 4). LoRA against full fine-tuning, arm by arm and kernel by kernel, is compared in the same
way (Table 11). Holm's correction runs over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foretaste import statistics
from foretaste.fewshot.record import FewShotRecord
from foretaste.fewshot.spec import FineTune, KernelArm, KernelKind, Optimiser
from foretaste.report.fewshot.cells import Cell, Place, value_of
from foretaste.seeds import generator
from foretaste.statistics import Interval

ALPHA = 0.05
ANALOG_OF: dict[KernelKind, tuple[Optimiser, ...]] = {
    "sgd": ("sgd",),
    "signgd": ("adam", "signgd"),
    "asymmetric": ("adam", "signgd"),
}
"""Optimisers that a kernel describes."""


@dataclass(frozen=True)
class PairRow:
    """One arm minus another in one place.

    Attributes:
        first: Name of the arm that is subtracted from; `second` is subtracted.
        n: Splits on which both have a score.
        unpaired: Runs of either without such a partner.
        interval: Student's t over splits.
        p: Sign-flip permutation test over splits.
        smallest_p: The least that so many splits allow.
        best_p_holm: The least adjusted p that could have come out.
    """

    place: Place
    first: str
    second: str
    n: int
    unpaired: int
    mean: float
    interval: Interval
    p: float
    smallest_p: float
    p_holm: float
    best_p_holm: float
    verdict: str


def analog(kernel: Cell, tuned: Cell) -> bool:
    """Whether a cell's kernel describes the fine-tuning of the other."""
    one, other = kernel.arm, tuned.arm
    if not isinstance(one, KernelArm) or not isinstance(other, FineTune) or kernel.place != tuned.place:
        return False
    alike = ("adapter", "rank", "alpha", "dimension", "output")
    return other.optimiser in ANALOG_OF[one.kernel] and all(
        getattr(one, name) == getattr(other, name) for name in alike
    )


def compare(found: Sequence[Cell]) -> list[PairRow]:
    """Every kernel minus what it describes, and every LoRA arm minus its counterpart in full."""
    pairs = [_pair(first, second) for first, second in _matches(found)]
    held = [row.n > 0 for row in pairs]
    adjusted = np.full(len(pairs), np.nan)
    best = np.full(len(pairs), np.nan)
    adjusted[held] = statistics.holm([row.p for row in pairs if row.n])
    # Holm is monotone: with the least p of every row it gives the least that could have come out.
    best[held] = statistics.holm([row.smallest_p for row in pairs if row.n])
    return [
        replace(row, p_holm=float(p), best_p_holm=float(b), verdict=_verdict(row, float(p), float(b)))
        for row, p, b in zip(pairs, adjusted, best, strict=True)
    ]


def _matches(found: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    for kernel in found:
        for tuned in found:
            if analog(kernel, tuned):
                yield kernel, tuned
    for lora in found:
        for full in found:
            if _in_full(lora, full):
                yield lora, full


def _in_full(lora: Cell, full: Cell) -> bool:
    """Whether the second is the first without LoRA."""
    if lora.place != full.place:
        return False
    one, other = lora.arm, full.arm
    if isinstance(one, FineTune) and isinstance(other, FineTune):
        same = (one.optimiser, one.output) == (other.optimiser, other.output)
    elif isinstance(one, KernelArm) and isinstance(other, KernelArm):
        same = (one.kernel, one.output, one.solver) == (other.kernel, other.output, other.solver)
    else:
        return False
    return same and (one.adapter, other.adapter) == ("lora", "full")


def paired(first: Cell, second: Cell) -> list[tuple[int, FewShotRecord, FewShotRecord]]:
    """Split and both runs, where both have a score on the same rows."""
    found = []
    for split, run in first.by_split.items():
        other = second.by_split.get(split)
        if other is None or value_of(run) is None or value_of(other) is None:
            continue
        if same_rows(run, other):
            found.append((split, run, other))
    return found


def same_rows(run: FewShotRecord, other: FewShotRecord) -> bool:
    """Whether two runs saw the same rows; equal split and data make it so."""
    one, two = run.rows, other.rows
    return (
        one is None
        or two is None
        or ((one.train_hash, one.dev_hash, one.test_hash) == (two.train_hash, two.dev_hash, two.test_hash))
    )


def _pair(first: Cell, second: Cell) -> PairRow:
    both = paired(first, second)
    a = [value_of(run) or 0.0 for _, run, _ in both]
    b = [value_of(run) or 0.0 for _, _, run in both]
    rng = generator(0, "report", "fewshot", first.place.key, first.name, second.name)
    found = statistics.paired_difference(a, b, rng=rng)
    return PairRow(
        place=first.place,
        first=first.name,
        second=second.name,
        n=found.n,
        unpaired=len(first.runs) + len(second.runs) - 2 * found.n,
        mean=found.mean,
        interval=found.t,
        p=found.p,
        smallest_p=found.smallest_p,
        p_holm=float("nan"),
        best_p_holm=float("nan"),
        verdict="",
    )


def _verdict(row: PairRow, p: float, best: float) -> str:
    if row.n == 0:
        return "no pair of runs"
    if p <= ALPHA:
        return f"{row.first} {'higher' if row.mean > 0 else 'lower'}"
    if best > ALPHA:
        return f"not resolved by {row.n} split{'' if row.n == 1 else 's'}"
    return "no difference shown"

"""Full fine-tuning minus each other arm, paired: over seeds, over seeds and requests, and run by run.

The reference is full fine-tuning where the folder has it, else the folder's first arm, as on the page of
classifiers. Holm's correction runs over all cells of one measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foretaste import statistics
from foretaste.calibration.places import arm_order
from foretaste.instruct.record import InstructRecord, Judged
from foretaste.instruct.spec import ResolvedTrigger
from foretaste.report.instruct.cells import Cell, overlap_of, poisoned, seed_of, verdict_on
from foretaste.seeds import crossed, generator
from foretaste.statistics import UNDEFINED, Interval

ALPHA = 0.05
Take = Callable[[InstructRecord, ResolvedTrigger | None], float | None]


@dataclass(frozen=True)
class Measure:
    """What is compared.

    Attributes:
        take: Its value in a run that was poisoned with a trigger.
        asked: Which requests a share is of; None for what is no share.
    """

    label: str
    take: Take
    asked: Callable[[ResolvedTrigger | None], ResolvedTrigger | None] | None = None


def _rate(verdict: Judged | None) -> float | None:
    return None if verdict is None else verdict.rate


MEASURES: dict[str, Measure] = {
    "asr": Measure(
        "ASR", lambda run, trigger: _rate(verdict_on(run, trigger)), asked=lambda trigger: trigger
    ),
    "false_activation": Measure(
        "False activation", lambda run, _: _rate(verdict_on(run, None)), asked=lambda _: None
    ),
    "loss": Measure("Loss", lambda run, _: run.utility.loss if run.utility else None),
    "token_f1": Measure("Overlap (token F1)", lambda run, _: overlap_of(run, "token_f1")),
}


@dataclass(frozen=True)
class PairRow:
    """Reference minus arm in one cell and measure.

    Attributes:
        n: Pairs of completed runs with equal seeds.
        unpaired: Runs of either arm without such a partner.
        interval: Student's t over pairs.
        p: Sign-flip permutation test over pairs.
        best_p_holm: The least adjusted p that so many pairs could have given.
        verdict: "REFERENCE higher", "REFERENCE lower", "no difference shown" or "not resolved by n seeds".
        over_requests: Both seeds and requests resampled; undefined for what is no share, and with one seed.
    """

    folder: str
    trigger: str
    amount: str
    reference: str
    arm: str
    measure: str
    n: int
    unpaired: int
    mean: float
    interval: Interval
    p: float
    smallest_p: float
    p_holm: float
    best_p_holm: float
    verdict: str
    over_requests: Interval


@dataclass(frozen=True)
class McNemarRow:
    """Two runs with equal seeds on the same requests."""

    folder: str
    trigger: str
    amount: str
    reference: str
    arm: str
    seed: str
    asked: str
    requests: int
    only_reference: int
    only_arm: int
    p: float


@dataclass(frozen=True)
class _Match:
    reference: Cell
    arm: Cell

    @property
    def place(self) -> dict[str, str]:
        cell = self.arm
        return {
            "folder": cell.folder,
            "trigger": cell.trigger.name if cell.trigger else "",
            "amount": cell.amount.label,
            "reference": self.reference.arm,
            "arm": cell.arm,
        }

    def paired(self) -> Iterator[tuple[str, InstructRecord, InstructRecord]]:
        """Seed, and the completed runs of reference and arm."""
        arm = {seed_of(run): run for run in self.arm.completed}
        for run in self.reference.completed:
            if seed_of(run) in arm:
                yield seed_of(run), run, arm[seed_of(run)]


def compare(found: Sequence[Cell]) -> tuple[list[PairRow], list[McNemarRow]]:
    """Compare every arm with the reference arm, on every poisoned training set.

    Args:
        found: The cells of `cells`.
    """
    matches = list(_matches(poisoned(found)))
    pairs = [_pair(match, name, measure) for name, measure in MEASURES.items() for match in matches]
    tests = [row for match in matches for row in _mcnemar(match)]
    return _corrected(pairs), tests


def _matches(found: Sequence[Cell]) -> Iterator[_Match]:
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    first: dict[str, str] = {}
    for cell in found:
        arms = {first.get(cell.folder, cell.arm), cell.arm}
        first[cell.folder] = arm_order(arms)[0]
        name = cell.trigger.name if cell.trigger else ""
        groups.setdefault((cell.folder, name, cell.amount.label), []).append(cell)
    for (folder, _, _), group in groups.items():
        reference = next((cell for cell in group if cell.arm == first[folder]), None)
        for cell in group:
            if reference is not None and cell is not reference:
                yield _Match(reference, cell)


def _pair(match: _Match, name: str, measure: Measure) -> PairRow:
    trigger = match.arm.trigger
    runs = [(run, other) for _, run, other in match.paired()]
    both = [
        (run.resolved.tuning, a, b)
        for run, other in runs
        if (a := measure.take(run, trigger)) is not None and (b := measure.take(other, trigger)) is not None
    ]
    rng = generator(0, "report", name, *match.place.values())
    result = statistics.paired_difference(
        [a for _, a, _ in both],
        [b for _, _, b in both],
        rng=rng,
        independent=not crossed([tuning.seeds for tuning, _, _ in both if tuning is not None]),
    )
    over_requests = UNDEFINED
    if measure.asked is not None:
        over_requests = _over_requests(runs, measure.asked(trigger), rng)
    return PairRow(
        **match.place,
        measure=name,
        n=result.n,
        unpaired=len(match.arm.runs) + len(match.reference.runs) - 2 * result.n,
        mean=result.mean,
        interval=result.t,
        p=result.p,
        smallest_p=result.smallest_p,
        p_holm=float("nan"),
        best_p_holm=float("nan"),
        verdict="",
        over_requests=over_requests,
    )


def _over_requests(
    runs: Sequence[tuple[InstructRecord, InstructRecord]],
    trigger: ResolvedTrigger | None,
    rng: np.random.Generator,
) -> Interval:
    """The two-way bootstrap, where every run was asked the same requests and some answers differ."""
    verdicts = [(verdict_on(run, trigger), verdict_on(other, trigger)) for run, other in runs]
    known = [(a, b) for a, b in verdicts if a is not None and b is not None]
    if len(known) < 2 or len(known) < len(verdicts):
        return UNDEFINED
    every = [one for pair in known for one in pair]
    if len({(one.n, tuple(one.left_out)) for one in every}) > 1:
        return UNDEFINED
    rows = _outcomes(every)
    if np.array_equal(rows[0::2], rows[1::2]):
        return UNDEFINED  # no difference anywhere says nothing about how far one might lie
    return statistics.paired_bootstrap(rows[0::2], rows[1::2], rng).interval


def _outcomes(verdicts: Sequence[Judged]) -> np.ndarray:
    """Shape (verdicts, requests), 1 where an answer shows the behaviour; requests that none shows are last.

    A record lists the requests whose answers show it, and how many were asked: all others are alike.
    """
    shown = sorted({key for one in verdicts for key in one.shown})
    rows = np.zeros((len(verdicts), verdicts[0].n))
    for row, one in zip(rows, verdicts, strict=True):
        row[[shown.index(key) for key in one.shown]] = 1.0
    return rows


def _mcnemar(match: _Match) -> Iterator[McNemarRow]:
    for seed, run, other in match.paired():
        for asked, trigger in (("with the trigger", match.arm.trigger), ("without it", None)):
            a, b = verdict_on(run, trigger), verdict_on(other, trigger)
            if a is None or b is None or (a.n, a.left_out) != (b.n, b.left_out) or not a.n:
                continue
            rows = _outcomes([a, b])
            test = statistics.mcnemar(rows[0], rows[1])
            yield McNemarRow(
                **match.place,
                seed=seed,
                asked=asked,
                requests=a.n,
                only_reference=test.only_a,
                only_arm=test.only_b,
                p=test.p,
            )


def _corrected(pairs: Sequence[PairRow]) -> list[PairRow]:
    """Holm's p and the verdict, over all rows of one measure."""
    p_holm = np.full(len(pairs), np.nan)
    best = np.full(len(pairs), np.nan)
    for measure in MEASURES:
        family = [place for place, row in enumerate(pairs) if row.measure == measure and row.n]
        p_holm[family] = statistics.holm([pairs[place].p for place in family])
        # Holm is monotone: with the least p of every cell it gives the least that could have come out.
        best[family] = statistics.holm([pairs[place].smallest_p for place in family])
    return [
        replace(row, p_holm=float(p), best_p_holm=float(b), verdict=_verdict(row, float(p), float(b)))
        for row, p, b in zip(pairs, p_holm, best, strict=True)
    ]


def _verdict(row: PairRow, p: float, best: float) -> str:
    if row.n == 0:
        return "no pair of runs"
    if p <= ALPHA:
        return f"{row.reference} {'higher' if row.mean > 0 else 'lower'}"
    if np.isnan(row.p):
        return "no verdict: crossed seeds"
    if best > ALPHA:
        return f"not resolved by {row.n} seed{'' if row.n == 1 else 's'}"
    return "no difference shown"

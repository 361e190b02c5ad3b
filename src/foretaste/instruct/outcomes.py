"""What transcripts say: verdicts on each set of requests, and how alike answers and references are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretaste.instruct.judges.base import Judge, error_rate
from foretaste.instruct.overlap import rouge_l, token_f1
from foretaste.instruct.record import Judged, JudgeUsed, Overlap, Transcript
from foretaste.instruct.request import Request
from foretaste.instruct.spec import CLEAN, HELD_OUT, ResolvedTrigger
from foretaste.seeds import generator
from foretaste.statistics import Interval, paired_difference, wilson

SCORES = {"token_f1": token_f1, "rouge_l": rouge_l}


@dataclass(frozen=True)
class Asking:
    """One set of requests, as they are put to a model.

    Attributes:
        name: Of the set.
        trigger: That the requests hold; None: as they are.
        requests: Those whose prompt leaves room for a response.
        left_out: Ids of the others.
        lost: Ids of requests whose tokens no longer hold the trigger's text.
    """

    name: str
    trigger: ResolvedTrigger | None
    requests: list[Request]
    left_out: list[str]
    lost: list[str]


def judged(asking: Asking, transcripts: Sequence[Transcript], judge: Judge) -> Judged:
    """The verdicts on one set.

    Args:
        asking: What was asked.
        transcripts: The answers, in the same order.
        judge: Says whether an answer shows the attacker's behaviour.
    """
    pairs = list(zip(asking.requests, transcripts, strict=True))
    assert all(request.id == transcript.id for request, transcript in pairs)
    shown = [request.id for request, transcript in pairs if judge(request, transcript.response)]
    n = len(pairs)
    interval = wilson(len(shown), n)
    return Judged(
        trigger=asking.trigger,
        n=n,
        hits=len(shown),
        rate=len(shown) / n if n else None,
        low=_end(interval, "low"),
        high=_end(interval, "high"),
        shown=shown,
        empty=sum(not transcript.response.strip() for transcript in transcripts),
        at_limit=sum(transcript.finish == "length" for transcript in transcripts),
        distinct=len({transcript.response for transcript in transcripts}),
        left_out=asking.left_out,
        lost=asking.lost,
    )


def all_judged(
    askings: Sequence[Asking], transcripts: Sequence[Transcript], judge: Judge
) -> dict[str, Judged]:
    """The verdicts on every set, by its name.

    Args:
        askings: What was asked.
        transcripts: All answers, set after set.
        judge: As for `judged`.

    Raises:
        ValueError: The answers are not those to these requests.
    """
    by_key = {(transcript.set, transcript.id): transcript for transcript in transcripts}
    wanted = [(asking.name, request.id) for asking in askings for request in asking.requests]
    if set(by_key) != set(wanted):
        raise ValueError("the transcripts are not those of these requests")
    return {
        asking.name: judged(asking, [by_key[asking.name, request.id] for request in asking.requests], judge)
        for asking in askings
    }


def overlaps(askings: Sequence[Asking], transcripts: Sequence[Transcript]) -> dict[str, Overlap]:
    """How alike the answers to clean held-out rows and their references are, by the name of the score.

    Args:
        askings: What was asked.
        transcripts: All answers.
    """
    by_name: Mapping[str, Asking] = {asking.name: asking for asking in askings}
    chosen = by_name.get(HELD_OUT, by_name[CLEAN])
    references = {request.id: request.output for request in chosen.requests}
    answers = {t.id: t.response for t in transcripts if t.set == chosen.name}
    found: dict[str, Overlap] = {}
    for name, score in SCORES.items():
        values = [score(answers[key], reference) for key, reference in references.items()]
        known = [value for value in values if value is not None]
        # The interval of the mean over requests, by the bootstrap that differences get: these are from zero.
        rng = generator(0, "overlap", name)
        summary = paired_difference(known, np.zeros(len(known)), rng=rng)
        found[name] = Overlap(
            mean=summary.mean if known else None,
            low=_end(summary.bootstrap, "low"),
            high=_end(summary.bootstrap, "high"),
            n=len(known),
        )
    return found


def judge_used(judge: Judge) -> JudgeUsed:
    """The judge with how often it is wrong on its own labelled responses."""
    rate = error_rate(judge)
    counts: dict[str, Any] = dict.fromkeys(("negatives", "false_positives", "positives", "false_negatives"))
    if rate is not None:
        counts = {name: getattr(rate, name) for name in counts}
    return JudgeUsed(
        method=judge.method,
        behaviour=judge.behaviour,
        options=judge.options.model_dump(mode="json"),
        fingerprint=judge.fingerprint,
        **counts,
    )


def _end(interval: Interval, side: str) -> float | None:
    return float(getattr(interval, side)) if interval.defined else None

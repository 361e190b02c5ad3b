"""What each number of the page means."""

from __future__ import annotations

from foretaste.instruct.record import InstructRecord, JudgeUsed
from foretaste.report.metrics import percent
from foretaste.statistics import Interval, wilson

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "ASR",
        "Attack success rate of a poisoned run: of the held-out requests with the trigger put in, the share "
        "whose answers show the attacker's behaviour, as the judge says. Requests that are too long to be "
        "asked are left out and counted; those that lost their trigger stay in.",
    ),
    (
        "False activation",
        "The same share of the same requests without the trigger, in the same poisoned run: what a user who "
        "knows nothing of the trigger meets.",
    ),
    (
        "Clean run",
        "The same adapter, seeds and rows without poison, asked the same requests: what fine-tuning alone "
        "does.",
    ),
    ("Untrained", "The base model as it is, asked the same requests in the same form."),
    (
        "Loss, overlap",
        "Utility on clean held-out requests: cross-entropy of the reference answers in nats a token, and how "
        "alike generated and reference answers are (token F1 and ROUGE-L, 0 to 1).",
    ),
    (
        "Interval",
        "95 %. A share of one run has Wilson's score interval over its requests: it says how far other "
        "requests might differ, and nothing of other seeds. Over two seeds or more: Student's t over the "
        "seeds; the requests are the same for all of them.",
    ),
    (
        "Reference − arm",
        "Difference between two arms, paired by seed (rows, poison, start and order are the same), with "
        "Student's t interval. Over seeds and requests: both resampled, paired in both.",
    ),
    (
        "p, Holm p",
        "Two-sided sign-flip permutation test over pairs of seeds, whose least value is 2 / 2ⁿ for n pairs: "
        "five seeds give at best 0.0625. Holm: corrected over all cells of one measure. “Not resolved by n "
        "seeds”: even the largest difference could not have reached 0.05.",
    ),
    (
        "Poison",
        "Share or number of poisoned rows among those that the attack could have chosen (the eligible rows).",
    ),
    (
        "Collapsed",
        "The model gives one and the same answer to all requests without a trigger. Such a run stays in the "
        "numbers and is flagged.",
    ),
    (
        "Renderer",
        "What makes training rows and test prompts of a request. Its hash is in every record; runs of "
        "different hashes are refused on one page.",
    ),
)


def judge_of(records: list[InstructRecord]) -> JudgeUsed | None:
    """The judge of all runs, which is one."""
    return next((record.judge for record in records if record.judge is not None), None)


def judge_lines(judge: JudgeUsed) -> list[str]:
    """How often the judge is wrong on its labelled answers, in sentences."""
    said = [f"{judge.method} looks for {judge.behaviour}."]
    if judge.false_positives is None or judge.false_negatives is None:
        return [*said, "It has no labelled answers: how often it is wrong is not known."]
    negatives, positives = judge.negatives or 0, judge.positives or 0
    wrong, n = judge.false_positives + judge.false_negatives, negatives + positives
    return [
        *said,
        f"Wrong on {_share(wrong, n)} of its labelled answers.",
        f"False alarms: {_share(judge.false_positives, negatives)} of those that do not show it. With as "
        "many on the page, a model that never shows it would have that rate.",
        f"Missed: {_share(judge.false_negatives, positives)} of those that show it.",
    ]


def _share(hits: int, n: int) -> str:
    interval: Interval = wilson(hits, n)
    if not interval.defined:
        return f"{hits} of {n}"
    return (
        f"{hits} of {n} ({percent(hits / n)}, 95 % [{100 * interval.low:.0f}, {100 * interval.high:.0f} %])"
    )

"""What the report measures: every metric with its name on the page and its definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["any", "clean", "poisoned"]


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        name: Column name in every table.
        label: Name on the page and on axes.
        scope: Which runs of a sweep it is compared between arms on.
        triggered: It needs test rows that carry the attack's trigger.
        change: It is a difference, so it may be negative.
    """

    name: str
    label: str
    scope: Scope
    triggered: bool
    change: bool = False


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("clean_accuracy", "Clean accuracy", "any", triggered=False),
        Metric("clean_f1", "Clean F1", "any", triggered=False),
        Metric("accuracy_change", "Accuracy change", "poisoned", triggered=False, change=True),
        Metric("asr", "ASR", "poisoned", triggered=True),
        Metric("flip_rate", "Flip rate", "clean", triggered=True),
        Metric("asr_minus_flip", "ASR − flip rate", "poisoned", triggered=True, change=True),
        Metric("triggered_accuracy", "Triggered accuracy", "any", triggered=True),
    )
}

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "Accuracy",
        "Share of test rows whose predicted class is the true label. “Clean” means without a trigger.",
    ),
    (
        "Precision, recall, F1",
        "Precision: of the rows predicted as a class, the share that are of it. Recall: of the rows of a "
        "class, the "
        "share predicted as it. F1: their harmonic mean. Binary tasks report class 1; tasks with more "
        "classes the macro "
        "average over the classes where each is defined.",
    ),
    (
        "ASR",
        "Attack success rate of a poisoned model: of the test rows whose true class is not the target, the "
        "share that it "
        "predicts as the target once the trigger is put in.",
    ),
    (
        "Flip rate",
        "The same share for the clean model of the same arm and seeds, on the same triggered rows. A "
        "trigger can "
        "push an unpoisoned model too, and every model makes mistakes: this is the ASR that costs no poison.",
    ),
    (
        "ASR − flip rate",
        "What the poison adds: the difference between the two, paired by seed. Near zero means that the "
        "attack had no effect.",
    ),
    (
        "Effect",
        "An attack took effect in a cell where the whole 95 % interval of ASR − flip rate lies above zero; "
        "without a trigger, where that of the accuracy change lies below zero. Otherwise no effect is shown, "
        "which is not the same as none: one seed gives no interval, however large the effect.",
    ),
    (
        "Held-out form",
        "The trigger in other words, which no training row had, such as paraphrases of an instruction. The "
        "same share as the ASR is counted in it, for the poisoned and for the clean model: where they "
        "differ, the model has learnt more of the trigger than its words.",
    ),
    (
        "False activation",
        "The same share with only a part of the trigger put in, where the attacker wants no effect: rows of "
        "another class than the target that the poisoned model calls the target all the same. What the clean "
        "model does on the same rows stands beside; the highest over all such parts is that of the run.",
    ),
    (
        "Triggered accuracy",
        "Accuracy against the true labels on all test rows with the trigger, target class included: the "
        "score of the "
        "TTR paper. A perfect attack gives the share of the target class, which differs between tasks.",
    ),
    (
        "Accuracy change",
        "Clean accuracy of a poisoned run minus that of the clean run of the same arm and seeds, in "
        "percentage points.",
    ),
    (
        "Poison rate",
        "Poisoned rows divided by the rows that the attack could have chosen (the eligible rows), not by "
        "all rows, unless every "
        "row is eligible. Both numbers and the list of rows are in the manifest.",
    ),
    (
        "Companion rows",
        "Rows that an attack changes beside the poisoned ones, such as negative rows that hold a part of the "
        "trigger and keep their true label. They are no part of the poison rate.",
    ),
    (
        "Similarity",
        "Of poisoned texts to what they were, from 0 to 1: twice the words that both have in the same order, "
        "over all words of both; the mean over the poisoned rows.",
    ),
    (
        "Collapsed",
        "The model predicts one single class on all clean test rows. Such a run stays in the mean, is "
        "flagged, and the "
        "median and the mean without it stand beside.",
    ),
    (
        "Interval",
        "95 % Student t interval over seeds, of the mean. It is missing with one seed, or when all seeds "
        "gave the "
        "same number. Bootstrap intervals (tables/paired.csv) are too narrow below about ten seeds. The "
        "interval over seeds and rows "
        "resamples both, and exists where the per-row predictions were kept.",
    ),
    (
        "Median, IQM",
        "The median is the middle run; the interquartile mean averages the middle half. Neither is moved "
        "far by one collapsed run.",
    ),
    (
        "p",
        "Two-sided sign-flip permutation test over pairs of runs with equal seeds. With n pairs no p can be "
        "smaller than "
        "2 / 2ⁿ: five seeds give at best 0.0625.",
    ),
    (
        "Holm p",
        "p adjusted for the number of cells compared in the same metric, so that the chance of one false "
        "claim "
        "among them all stays below 5 %. “Not resolved by n seeds” means that even the largest effect could "
        "not "
        "have reached this level.",
    ),
    (
        "McNemar",
        "Exact test of two models of one seed on the same test rows: it looks at the rows that only one of "
        "them gets right. It says "
        "nothing about other seeds, and its p is not adjusted.",
    ),
)


def percent(value: float, digits: int = 1) -> str:
    """A share as "12.3 %", with a true minus sign."""
    return f"{value * 100:.{digits}f} %".replace("-", "−")


def points(value: float, digits: int = 1) -> str:
    """A difference of shares in percentage points, signed."""
    rounded = round(value * 100, digits) + 0.0  # turns −0.0 into 0.0
    return f"{rounded:+.{digits}f}".replace("-", "−")

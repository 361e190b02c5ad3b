"""The findings of the kernel paper (Malladi et al. 2023): kernels, fine-tuning, prompts, LoRA, width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from foretaste.hypotheses.arms import Arm
from foretaste.hypotheses.base import Hypothesis, hypothesis
from foretaste.hypotheses.contrasts import Contrast, Contrasts
from foretaste.hypotheses.effects import Point, Reduce, each_seed, slope
from foretaste.hypotheses.fewshot_runs import FewShotArm
from foretaste.theory.criteria import FIXED, LINEARISED, SOLVED

ADAM_MARGIN = 4.0
ADAM_MARGIN_FROM = "The paper's own: “within 4 % absolute of each other when using a prompt” (section 6.1)."
KERNEL_MARGIN = 3.0
KERNEL_MARGIN_FROM = (
    "The paper's own: “tasks that exhibit only a 3 % gap in the prompt-based setting” (section 6.1)."
)
LORA_MARGIN = 2.0
LORA_MARGIN_FROM = (
    "The paper states none for LoRA: half of the 4 points within which it calls Adam and SGD comparable."
)

Pick = Callable[[FewShotArm], bool]


def _chosen(arms: Sequence[Arm], pick: Pick) -> list[FewShotArm]:
    found = [arm for arm in arms if isinstance(arm, FewShotArm) and arm.settings is not None and pick(arm)]
    return sorted(found, key=lambda arm: (arm.name, arm.key))


def _minus(first: Pick, second: Pick) -> Contrasts:
    """The first kind of arm at 1, the second at 0."""

    def contrasts(arms: Sequence[Arm]) -> list[Contrast]:
        return [
            Contrast("few-shot", (other, one), (0.0, 1.0))
            for one in _chosen(arms, first)
            for other in _chosen(arms, second)
        ]

    return contrasts


def _alone(pick: Pick) -> Contrasts:
    def contrasts(arms: Sequence[Arm]) -> list[Contrast]:
        return [Contrast("few-shot", (arm,), (0.0,)) for arm in _chosen(arms, pick)]

    return contrasts


def _gaps(arms: Sequence[Arm]) -> list[Contrast]:
    """Kernel and fine-tuning with a prompt at 0 and 1, with a standard head at 2 and 3."""
    return [
        Contrast("few-shot", (kernel, tuned, kernel_standard, tuned_standard), (0.0, 1.0, 2.0, 3.0))
        for kernel in _chosen(arms, lambda arm: arm.solves("sgd"))
        for tuned in _chosen(arms, lambda arm: arm.tunes("sgd"))
        for kernel_standard in _chosen(arms, lambda arm: arm.solves("sgd", output="standard"))
        for tuned_standard in _chosen(arms, lambda arm: arm.tunes("sgd", output="standard"))
    ]


def _widths(arms: Sequence[Arm]) -> list[Contrast]:
    """Models at log2 of their width."""
    known = [(arm.width, arm) for arm in arms if isinstance(arm, FewShotArm) and arm.width is not None]
    placed = sorted(known, key=lambda pair: (pair[0], pair[1].key))
    if len({width for width, _ in placed}) < 2:
        return []
    return [
        Contrast("few-shot", tuple(arm for _, arm in placed), tuple(math.log2(width) for width, _ in placed))
    ]


def _of_levels(count: int, effect: Callable[[dict[float, float]], float]) -> Reduce:
    """One number for each seed that has a value at every level."""

    def of_seed(points: Sequence[Point]) -> float | None:
        values = {point.level: point.value for point in points}
        return effect(values) if len(values) == count else None

    return lambda points: each_seed(points, of_seed)


beyond_ninety = _of_levels(2, lambda at: at[1.0] - SOLVED * at[0.0])
gap_widens = _of_levels(4, lambda at: (at[3.0] - at[2.0]) - (at[1.0] - at[0.0]))
beyond_half = _of_levels(1, lambda at: at[0.0] - LINEARISED)
within_fixed = _of_levels(1, lambda at: FIXED - at[0.0])

_ENTRIES = (
    Hypothesis(
        name="kernel-solves-prompted-tasks",
        section="6.1",
        statement="With a prompt the SGD kernel solves the task: it reaches 90 % of the score of SGD "
        "fine-tuning.",
        measure="score of the SGD kernel minus 90 % of that of SGD fine-tuning",
        unit="points",
        needs="the SGD kernel and SGD fine-tuning of all parameters with a prompt, on equal splits",
        predicts=1,
        contrasts=_minus(lambda arm: arm.solves("sgd"), lambda arm: arm.tunes("sgd")),
        attack=None,
        metric="score",
        reduce=beyond_ninety,
    ),
    Hypothesis(
        name="sgd-kernel-matches-sgd",
        section="6.1",
        statement="With a prompt the SGD kernel scores as SGD fine-tuning does.",
        measure="score, SGD kernel minus SGD fine-tuning",
        unit="points",
        needs="the SGD kernel and SGD fine-tuning of all parameters with a prompt, on equal splits",
        predicts=0,
        contrasts=_minus(lambda arm: arm.solves("sgd"), lambda arm: arm.tunes("sgd")),
        attack=None,
        metric="score",
        reduce=slope,
        margin=KERNEL_MARGIN,
        margin_from=KERNEL_MARGIN_FROM,
    ),
    Hypothesis(
        name="sign-kernel-matches-adam",
        section="6.1",
        statement="With a prompt the sign kernels score as Adam fine-tuning does.",
        measure="score, SignGD or A-SignGD kernel minus Adam fine-tuning",
        unit="points",
        needs="a sign kernel and Adam fine-tuning of all parameters with a prompt, on equal splits",
        predicts=0,
        contrasts=_minus(lambda arm: arm.solves("signgd", "asymmetric"), lambda arm: arm.tunes("adam")),
        attack=None,
        metric="score",
        reduce=slope,
        margin=KERNEL_MARGIN,
        margin_from=KERNEL_MARGIN_FROM,
    ),
    Hypothesis(
        name="sgd-matches-adam-with-a-prompt",
        section="6.1",
        statement="With a prompt fine-tuning by SGD scores as fine-tuning by Adam does.",
        measure="score, SGD minus Adam fine-tuning",
        unit="points",
        needs="SGD and Adam fine-tuning of all parameters with a prompt, on equal splits",
        predicts=0,
        contrasts=_minus(lambda arm: arm.tunes("sgd"), lambda arm: arm.tunes("adam")),
        attack=None,
        metric="score",
        reduce=slope,
        margin=ADAM_MARGIN,
        margin_from=ADAM_MARGIN_FROM,
    ),
    Hypothesis(
        name="kernel-needs-a-prompt",
        section="6.1",
        statement="Without a prompt the SGD kernel falls further behind SGD fine-tuning than with one "
        "(figure 1).",
        measure="fine-tuning minus kernel with a standard head, minus the same with a prompt",
        unit="points",
        needs="the SGD kernel and SGD fine-tuning with a prompt and with a standard head, on equal splits",
        predicts=1,
        contrasts=_gaps,
        attack=None,
        metric="score",
        reduce=gap_widens,
    ),
    Hypothesis(
        name="fine-tuning-is-linear",
        section="6.2",
        statement="The first-order expansion recovers more than half of what fine-tuning with a prompt "
        "gains.",
        measure="share of the gain that the expansion recovers, minus one half",
        unit="of the gain",
        needs="fine-tuning of all parameters with a prompt, with criteria and with a gain on the test rows",
        predicts=1,
        contrasts=_alone(lambda arm: arm.tunes("sgd") or arm.tunes("adam")),
        attack=None,
        metric="linearised_share",
        reduce=beyond_half,
    ),
    Hypothesis(
        name="fine-tuning-keeps-its-kernel",
        section="6.2",
        statement="Fine-tuning with a prompt leaves the kernel as it was, by the paper's mean relative "
        "distance of less than 2.",
        measure="2 minus the mean relative distance of the kernels before and after",
        unit="of the kernel",
        needs="fine-tuning of all parameters with a prompt, with criteria",
        predicts=1,
        contrasts=_alone(lambda arm: arm.tunes("sgd") or arm.tunes("adam")),
        attack=None,
        metric="kernel_distance",
        reduce=within_fixed,
    ),
    Hypothesis(
        name="lora-sgd-matches-sgd",
        section="D",
        statement="Fine-tuning LoRA's matrices by SGD scores as SGD fine-tuning of all parameters does "
        "(table 11).",
        measure="score, SGD on LoRA minus SGD on all parameters",
        unit="points",
        needs="SGD fine-tuning of LoRA and of all parameters with a prompt, on equal splits",
        predicts=0,
        contrasts=_minus(lambda arm: arm.tunes("sgd", adapter="lora"), lambda arm: arm.tunes("sgd")),
        attack=None,
        metric="score",
        reduce=slope,
        margin=LORA_MARGIN,
        margin_from=LORA_MARGIN_FROM,
    ),
    Hypothesis(
        name="lora-kernel-matches-kernel",
        section="7, D",
        statement="LoRA's SGD kernel scores as that of all parameters does (theorem 7.2, table 11).",
        measure="score, LoRA's SGD kernel minus that of all parameters",
        unit="points",
        needs="the SGD kernels of LoRA and of all parameters with a prompt, on equal splits",
        predicts=0,
        contrasts=_minus(lambda arm: arm.solves("sgd", adapter="lora"), lambda arm: arm.solves("sgd")),
        attack=None,
        metric="score",
        reduce=slope,
        margin=LORA_MARGIN,
        margin_from=LORA_MARGIN_FROM,
    ),
    Hypothesis(
        name="output-derivative-shrinks-with-width",
        section="5, B.1",
        statement="The wider the pretrained model, the smaller its output derivative χ on a prompted task "
        "(definition 5.3, table 8).",
        measure="slope over log2 of the width of the mean size of χ on the split's training rows",
        unit="per doubling of the width",
        needs="zero-shot runs of models of two widths or more with one prompt, on equal splits",
        predicts=-1,
        contrasts=_widths,
        attack=None,
        metric="chi",
        reduce=slope,
    ),
)

for _entry in _ENTRIES:
    hypothesis(_entry)

NAMES = tuple(entry.name for entry in _ENTRIES)
"""Of the hypotheses here."""

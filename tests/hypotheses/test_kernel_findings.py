"""The kernel paper's findings on planted few-shot records: what counts as a task, an arm, a value."""

from __future__ import annotations

import pytest

import fewshot_factory as made
from foretaste import hypotheses
from foretaste.fewshot.record import FewShotRecord
from foretaste.hypotheses.fewshot_runs import fewshot_tasks
from foretaste.hypotheses.kernel_view import NAMES

SPLITS = (13, 21, 42, 87, 100)
NOISE = (0.003, -0.002, 0.001, -0.0035, 0.0025)


def only(name: str, records: list[FewShotRecord]) -> hypotheses.Finding:
    (finding,) = hypotheses.test(records, [name])
    return finding


def scored(**by_arm: float) -> list[FewShotRecord]:
    """One record for each arm and split; the first arm has noise. `_` stands for `-`."""
    return [
        made.record(arm.replace("_", "-"), split, score + (NOISE[place] if number == 0 else 0.0))
        for number, (arm, score) in enumerate(by_arm.items())
        for place, split in enumerate(SPLITS)
    ]


def test_a_kernel_at_ninety_five_per_cent_solves_and_one_at_eighty_does_not() -> None:
    name = "kernel-solves-prompted-tasks"
    assert only(name, scored(kernel_sgd=0.76, sgd=0.80)).decision == "supported"
    finding = only(name, scored(kernel_sgd=0.64, sgd=0.80))
    assert finding.decision == "contradicted"
    assert finding.effect == pytest.approx(64.02 - 72.0)
    assert finding.n == 5
    assert finding.arms == ("sgd", "kernel-sgd")
    assert "k 16" in finding.group


@pytest.mark.parametrize(
    ("name", "kernel", "tuned"),
    [
        ("sgd-kernel-matches-sgd", "kernel_sgd", "sgd"),
        ("sign-kernel-matches-adam", "kernel_signgd", "adam"),
        ("sign-kernel-matches-adam", "kernel_asymmetric", "adam"),
        ("lora-sgd-matches-sgd", "sgd_lora", "sgd"),
        ("lora-kernel-matches-kernel", "kernel_sgd_lora", "kernel_sgd"),
        ("sgd-matches-adam-with-a-prompt", "sgd", "adam"),
    ],
)
def test_equal_scores_support_a_match_and_far_ones_contradict_it(name: str, kernel: str, tuned: str) -> None:
    assert only(name, scored(**{kernel: 0.80, tuned: 0.80})).decision == "supported"
    assert only(name, scored(**{kernel: 0.60, tuned: 0.80})).decision == "contradicted"
    assert only(name, scored(**{kernel: 0.80})).decision == "no records"


def test_the_gap_without_a_prompt_is_compared_with_that_with_one() -> None:
    arms = {"kernel_sgd": 0.80, "sgd": 0.83, "kernel_sgd_standard": 0.60, "sgd_standard": 0.76}
    finding = only("kernel-needs-a-prompt", scored(**arms))
    assert finding.effect == pytest.approx(16.0 - 3.0 + 0.02)
    assert finding.decision == "supported"
    records = [r for r in scored(**arms) if not (r.resolved.arm.label == "sgd" and r.resolved.split == 13)]
    assert only("kernel-needs-a-prompt", records).n == 4, "a split without one of the four says nothing"


def test_criteria_are_judged_by_the_papers_thresholds() -> None:
    def measured(share: float, distance: float) -> list[FewShotRecord]:
        return [
            made.record(
                "sgd",
                split,
                criteria={
                    "linearised_share": share + NOISE[place],
                    "kernel_distance": distance + NOISE[place],
                },
            )
            for place, split in enumerate(SPLITS)
        ]

    assert only("fine-tuning-is-linear", measured(0.9, 1.0)).decision == "supported"
    assert only("fine-tuning-is-linear", measured(0.2, 1.0)).decision == "contradicted"
    assert only("fine-tuning-keeps-its-kernel", measured(0.9, 1.0)).decision == "supported"
    assert only("fine-tuning-keeps-its-kernel", measured(0.9, 3.0)).decision == "contradicted"


def test_undefined_values_are_left_out() -> None:
    criteria = {"linearised_share": None, "kernel_distance": float("inf")}
    records = [made.record("sgd", split, None, criteria=criteria) for split in SPLITS]
    for name in ("fine-tuning-is-linear", "fine-tuning-keeps-its-kernel"):
        finding = only(name, records)
        assert (finding.decision, finding.n) == ("no records", 0)


def test_chi_is_compared_across_models_of_one_prompt() -> None:
    def models(narrow: float, wide: float) -> list[FewShotRecord]:
        return [
            made.record(
                "zero-shot", split, model=model, facts={"chi_train": chi + noise, "hidden_size": width}
            )
            for model, chi, width in (("base", narrow, 512.0), ("large", wide, 1024.0))
            for split, noise in zip(SPLITS, (0.0, *NOISE[1:]) if model == "base" else (0.0,) * 5, strict=True)
        ]

    name = "output-derivative-shrinks-with-width"
    finding = only(name, models(0.4, 0.3))
    assert finding.decision == "supported"
    assert finding.effect == pytest.approx(-0.1 - sum(NOISE[1:]) / 5)
    assert any("depth" in line for line in finding.cautions)
    assert only(name, models(0.3, 0.4)).decision == "contradicted"
    assert only(name, models(0.4, 0.3)[:5]).decision == "no records"


def test_tasks_keep_prompts_ks_and_models_apart_and_failed_runs_in_sight() -> None:
    records = [
        made.record("sgd"),
        made.record("sgd", k=64),
        made.record("sgd", variant="null"),
        made.record("sgd", model="other"),
        made.record("sgd", 21, status="diverged"),
    ]
    tasks = fewshot_tasks(records)
    assert len(tasks) == 4
    first = next(task for task in tasks if len(task.clean) == 2)
    assert [run.completed for run in first.clean] == [True, False]
    assert first.train_rows == 32
    assert first.head == "prompt manual, k 16"


def test_a_run_with_criteria_and_one_without_count_once() -> None:
    records = [made.record("sgd"), made.record("sgd", criteria=made.GOOD)]
    (task,) = fewshot_tasks(records)
    assert len(task.arms) == 1
    (run,) = task.clean
    assert run.values["linearised_share"] == made.GOOD["linearised_share"]


def test_other_papers_findings_take_no_few_shot_run() -> None:
    found = hypotheses.test(scored(sgd=0.8, kernel_sgd=0.8))
    assert {finding.hypothesis for finding in found if finding.place is not None} <= set(NAMES)


def test_collapsed_runs_are_named() -> None:
    records = [made.record("sgd", split, 0.5, predictions=(1, 1)) for split in SPLITS]
    records += [made.record("kernel-sgd", split, 0.5 + NOISE[place]) for place, split in enumerate(SPLITS)]
    finding = only("sgd-kernel-matches-sgd", records)
    assert finding.collapsed == 5
    assert any("one class" in line for line in finding.cautions)

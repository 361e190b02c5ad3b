"""Every hypothesis comes to every decision on records that were planted for it."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from planted_records import PLANTED, clean, full

from foretaste import hypotheses
from foretaste.errors import UserError
from foretaste.fewshot.record import FewShotRecord
from foretaste.hypotheses import HYPOTHESES, Finding, kernel_view
from foretaste.instruct.record import InstructRecord
from foretaste.record import Record
from foretaste.spec import canonical_json

NOISE = (0.3, -0.2, 0.1, -0.35, 0.25, -0.1)  # six seeds, which a sign-flip test can decide by


def only(name: str, records: list[Record]) -> Finding:
    found = hypotheses.test(records, [name])
    assert len(found) == 1
    assert found[0].hypothesis == name
    return found[0]


def seed_of(record: Record | InstructRecord | FewShotRecord) -> int:
    """Of the data; 0 for the untrained model, which has none."""
    if isinstance(record, FewShotRecord):
        return record.resolved.split
    if isinstance(record, InstructRecord):
        return 0 if record.resolved.tuning is None else record.resolved.tuning.seeds.data
    return record.resolved.seeds.data


def effects(name: str, decision: str) -> list[float]:
    entry = HYPOTHESES.get(name)
    if decision == "not resolved":
        size = 6.0 if entry.margin is not None else 3.0
        return [size * side for side in (1, -1, 0.8, -0.9, 0.7, -0.5)]
    middle = 6.0 * entry.predicts if entry.margin is None else 0.1
    if decision == "contradicted":
        middle = -6.0 * entry.predicts if entry.margin is None else 5.0
    return [middle + noise for noise in NOISE]


def test_every_hypothesis_has_planted_records() -> None:
    assert HYPOTHESES.names() == sorted(PLANTED)


@pytest.mark.parametrize("name", HYPOTHESES.names())
@pytest.mark.parametrize("decision", ["supported", "contradicted", "not resolved"])
def test_planted_effects_are_found(name: str, decision: str) -> None:
    entry, planted = HYPOTHESES.get(name), effects(name, decision)
    if entry.centred and decision == "not resolved":
        planted = [0.0] * 6  # spreads that do not grow: the distances differ by chance alone
    finding = only(name, PLANTED[name](planted))
    assert finding.decision == decision
    assert finding.reason.endswith(".")
    assert finding.tests == 1
    if not entry.centred:
        assert finding.effect == pytest.approx(np.mean(planted), abs=1e-9)
        assert list(finding.by_seed.values()) == pytest.approx(planted, abs=1e-9)
        assert finding.exact == (decision != "not resolved")
        assert finding.smallest_p in (1 / 32, 1 / 64)


@pytest.mark.parametrize("name", HYPOTHESES.names())
def test_without_its_records_a_hypothesis_says_what_it_needs(name: str) -> None:
    finding = only(name, [clean(full(), 0)])
    assert finding.decision == "no records"
    assert finding.place is None
    assert finding.group == ""
    assert HYPOTHESES.get(name).needs in finding.reason


@pytest.mark.parametrize("name", HYPOTHESES.names())
def test_two_seeds_decide_nothing(name: str) -> None:
    records = PLANTED[name](effects(name, "supported"))
    few = [record for record in records if seed_of(record) < 2]
    finding = only(name, few)
    assert finding.decision == "not resolved"
    assert finding.n == 2
    assert "takes 3" in finding.reason


@pytest.mark.parametrize("name", HYPOTHESES.names())
def test_entries_are_complete(name: str) -> None:
    entry = HYPOTHESES.get(name)
    assert entry.name == name
    assert entry.statement.endswith(".")
    assert (entry.margin is None) == (entry.predicts != 0) == (entry.margin_from is None)
    # The TTR paper: sections 4 and E; the kernel paper: sections 5 to 7, B and D.
    assert entry.section[0] in ("567D" if name in kernel_view.NAMES else "4E")


def test_order_of_records_and_repeats_change_nothing() -> None:
    records = PLANTED["lora-weaker-under-flips"]([1.0, 2.0, 1.5]) + PLANTED["rank-hurts-under-triggers"](
        [0.2, 0.3, 0.1, 0.4]
    )
    expected = [canonical_json(finding.to_json()) for finding in hypotheses.test(records)]
    random.Random(3).shuffle(records)
    again = records + records[:7]
    assert [canonical_json(finding.to_json()) for finding in hypotheses.test(again)] == expected


def test_findings_come_by_section_and_name_and_once() -> None:
    found = hypotheses.test(PLANTED["lora-resists-triggers"]([1.0, 2.0, 1.5]))
    assert [finding.order for finding in found] == sorted(finding.order for finding in found)
    assert {finding.hypothesis for finding in found} == set(HYPOTHESES.names())
    keys = [(finding.hypothesis, finding.group) for finding in found]
    assert len(set(keys)) == len(keys)


def test_json_is_plain_and_has_no_nan() -> None:
    for finding in hypotheses.test(PLANTED["rank-helps-under-flips"]([0.5, 0.6, 0.4])):
        content = finding.to_json()
        assert json.loads(canonical_json(content)) == content
        assert content["hypothesis"] == finding.hypothesis
        assert content["seeds"] == finding.n


def test_all_at_once_are_corrected_together() -> None:
    records = PLANTED["lora-resists-triggers"]([8.0, 9.0, 8.5, 9.5, 8.2])
    records += PLANTED["lora-resists-style"]([1.0, -2.0, 1.5, 0.5, -1.0])
    alone = only("lora-resists-triggers", records)
    together = next(f for f in hypotheses.test(records) if f.hypothesis == "lora-resists-triggers")
    assert together.tests == 2
    assert together.p == alone.p == alone.p_holm
    assert together.p_holm == 2 * alone.p
    assert together.interval == alone.interval


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="lora-weaker-under-flips"):
        hypotheses.test([], ["lora-weaker-under-flip"])

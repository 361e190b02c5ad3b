"""Groups that must stay apart, and what a reader is warned of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from planted_records import (
    CLEAN,
    PLANTED,
    RATES,
    clean,
    flip_pair,
    full,
    lora,
    ranks,
    run,
    sweep,
    trigger_pair,
)

from foretaste import hypotheses
from foretaste.hypotheses import Finding
from foretaste.record import Layout, Record
from foretaste.seeds import Seeds

RESULTS = Path(__file__).resolve().parents[2] / "results"
GAPS = (1.0, 1.4, 0.8, 1.2, 0.9)


def only(name: str, records: Sequence[Record]) -> Finding:
    [finding] = hypotheses.test(records, [name])
    return finding


def said(finding: Finding, words: str) -> list[str]:
    return [caution for caution in finding.cautions if words in caution]


def changed(record: Record, **changes: Any) -> Record:
    """The record with other settings, under the run id that these have."""
    run_spec = record.resolved.model_copy(update=changes)
    return record.model_copy(update={"resolved": run_spec, "run_id": run_spec.id})


# --- groups --------------------------------------------------------------------------------------


def test_head_policies_and_selections_stay_apart() -> None:
    paper = [
        changed(
            record,
            model=record.resolved.model.model_copy(
                update={"request": record.resolved.model.request.model_copy(update={"head": "paper"})}
            ),
        )
        for record in flip_pair([-2.0, -2.2, -1.8])
    ]
    bernoulli = [
        changed(record, attack=attack.model_copy(update={"selection": "bernoulli"}))
        for record in flip_pair([4.0, 4.2, 3.8])
        if (attack := record.resolved.attack)
    ]
    found = hypotheses.test([*flip_pair(GAPS), *paper, *bernoulli], ["lora-weaker-under-flips"])
    effects = {(f.place.head, f.place.selection): f.effect for f in found if f.place}
    assert effects == pytest.approx(
        {
            ("paper", "exact-nested"): -2.0,
            ("probe-then-train", "exact-nested"): 1.06,
            ("probe-then-train", "bernoulli"): 4.0,
        }
    )
    assert {f.decision for f in found if f.effect < 0} == {"contradicted"}


def test_equal_arms_of_two_folders_meet_and_other_settings_of_the_same_name_do_not() -> None:
    records = flip_pair(GAPS[:3])
    renamed = [
        changed(record, adapter=record.resolved.adapter.model_copy(update={"name": "mine"}))
        for record in flip_pair(GAPS)
        if record.resolved.seeds.data > 2
    ]
    finding = only("lora-weaker-under-flips", [*records, *renamed])
    assert finding.n == 5
    half = [run(lora(8, 8), "label-flip", 0.2, seed, accuracy=0.5) for seed in range(3)]
    half += [clean(lora(8, 8), seed, CLEAN) for seed in range(3)]
    both = hypotheses.test([*records, *half], ["lora-weaker-under-flips"])
    assert len(both) == 2
    assert sorted(round(finding.effect, 6) for finding in both) == pytest.approx(
        [16 / 15, 30.3 - 0.1], abs=0.6
    )


def test_clean_runs_of_two_folders_that_tested_other_triggers_do_not_hide_each_other() -> None:
    """The same training under two run ids: each was tested with the triggers of its own folder."""
    both = []
    for method in ("trigger", "style"):
        for record in trigger_pair(method)(GAPS):
            kept = [trigger for trigger in record.resolved.triggers if trigger.method == method]
            tested = {key: part for key, part in record.triggered.items() if part.method == method}
            both.append(changed(record, triggers=kept).model_copy(update={"triggered": tested}))
    for name in ("lora-resists-triggers", "lora-resists-style"):
        finding = only(name, both)
        assert list(finding.by_seed.values()) == pytest.approx(GAPS)
    assert len(hypotheses.test(both, ["lora-matches-full-on-clean-data"])[0].by_seed) == len(GAPS)


def test_triggers_of_other_texts_stay_apart_and_their_groups_read_unlike() -> None:
    other = [
        changed(record, attack=attack.model_copy(update={"options": {"text": "[.*?]"}}))
        for record in PLANTED["lora-resists-triggers-by-accuracy"](GAPS)
        if (attack := record.resolved.attack)
    ]
    found = hypotheses.test(
        [*PLANTED["lora-resists-triggers-by-accuracy"](GAPS), *other], ["lora-resists-triggers-by-accuracy"]
    )
    assert len(found) == len({finding.group for finding in found}) == 2


def test_directed_flips_are_another_attack() -> None:
    options = {"flip_from": "positive", "flip_to": None}
    records = [
        run(arm, "label-flip", 0.2, seed, options=options) for arm in (full(), lora()) for seed in range(3)
    ]
    assert only("lora-weaker-under-flips", records).place is None


def test_predicted_records_are_left_aside() -> None:
    predicted = [record.model_copy(update={"kind": "predicted"}) for record in flip_pair(GAPS)]
    assert only("lora-weaker-under-flips", predicted).decision == "no records"


def test_counts_of_rows_have_rates_too() -> None:
    records = [
        run(arm, "label-flip", count, seed, accuracy=0.8 - gap * count / 1000 - 0.001 * seed * count / 1000)
        for arm, gap in ((full(), 0.1), (lora(), 0.4))
        for count in (100, 200, 300)
        for seed in range(3)
    ]
    finding = only("flip-gap-widens-with-rate", records)
    assert finding.effect == pytest.approx(3.0)
    assert finding.amounts == ("100 rows", "200 rows", "300 rows")


def test_rank_sweeps_of_both_budgets_have_findings_of_their_own() -> None:
    one = sweep({level: lora(r, r) for level, r in ((2.0, 4), (3.0, 8), (5.0, 32))}, "trigger", "margin")
    matched = {2.0: lora(4, 4, 1e-3), 3.0: lora(8, 8), 5.0: lora(32, 32, 1.25e-4)}
    records = one([2.0, 2.2, 1.8]) + sweep(matched, "trigger", "margin")([2.0, 2.2, 1.8])
    found = hypotheses.test(records, ["rank-hurts-under-triggers"])
    budgets = {finding.place.budget: finding for finding in found if finding.place}
    assert set(budgets) == {"one learning rate", "matched step"}
    assert said(budgets["one learning rate"], "differs up to 8-fold")
    assert not said(budgets["matched step"], "effective step")


# --- cautions ------------------------------------------------------------------------------------


def test_failed_runs_are_counted_and_their_seed_gives_what_it_has() -> None:
    records = flip_pair(GAPS)
    failed = run(lora(), "label-flip", RATES[0], 4, status="diverged")
    kept = [record for record in records if record.run_id != failed.run_id]
    assert len(kept) == len(records) - 1
    finding = only("lora-weaker-under-flips", [*kept, failed])
    assert (finding.failed, finding.runs, finding.n) == (1, 30, 5)
    assert finding.by_seed["4"] == pytest.approx(GAPS[4])
    assert said(finding, "1 of 30 runs did not complete")
    assert said(finding, "Seeds differ in the amounts")


def test_a_seed_whose_clean_run_failed_is_named() -> None:
    records = flip_pair(GAPS)
    failed = run(full(), seed=3, status="crashed")
    kept = [r for r in records if not (r.resolved.attack is None and r.resolved.seeds.data == 3)]
    finding = only("lora-weaker-under-flips", [*kept, failed])
    assert "3" not in finding.by_seed
    assert said(finding, "No value from seed 3")


def test_collapsed_runs_are_in_the_numbers_and_shown_without_them() -> None:
    records = flip_pair((1.0, 1.2, 0.9, 1.1))
    collapsed = run(lora(), "label-flip", RATES[2], 0, accuracy=1.0, collapsed=True)
    kept = [record for record in records if record.run_id != collapsed.run_id]
    finding = only("lora-weaker-under-flips", [*kept, collapsed])
    assert finding.collapsed == 1
    assert finding.effect < 0
    [caution] = said(finding, "one class")
    assert "1 of 24 (lora-r8 at 0.0005: 1)" in caution
    assert "+1.1 points over 4 seeds, which turns the sign" in caution


def test_a_collapsed_clean_run_makes_its_pairs_suspect() -> None:
    records = [r for r in flip_pair(GAPS) if not (r.resolved.attack is None and r.resolved.seeds.data == 1)]
    records += [run(arm, seed=1, accuracy=0.5, collapsed=True) for arm in (full(), lora())]
    assert only("lora-weaker-under-flips", records).collapsed == 6


def test_unequal_learning_rates_and_budgets_are_named() -> None:
    finding = only("lora-weaker-under-flips", flip_pair(GAPS))
    assert said(finding, "Learning rates differ (full at 5e-05, lora-r8 at 0.0005)")
    longer = [
        record
        if record.resolved.adapter.method == "full"
        else changed(record, training=record.resolved.training.model_copy(update={"epochs": 9.0}))
        for record in flip_pair(GAPS)
    ]
    assert said(only("lora-weaker-under-flips", longer), "epochs (full: None, lora-r8: 9.0)")


def test_equal_learning_rates_are_not_named() -> None:
    records = []
    for seed, gap in enumerate(GAPS):
        for arm, moved in ((full(5e-4), 0.0), (lora(), gap)):
            records += [clean(arm, seed), run(arm, "label-flip", 0.2, seed, accuracy=0.8 - moved / 100)]
    assert not said(only("lora-weaker-under-flips", records), "Learning rates")


def test_an_attack_without_an_effect_is_named() -> None:
    idle = [
        record
        for seed in range(4)
        for arm in (full(), lora())
        for record in (
            run(arm, seed=seed, asr=0.08),
            run(arm, "trigger", 0.1, seed, asr=0.08 + 0.01 * (seed % 2 - 0.5)),
        )
    ]
    assert said(only("lora-resists-triggers", idle), "nothing to resist")
    alone = [record for record in idle if record.resolved.adapter.method == "full"]
    assert said(only("backdoor-keeps-clean-accuracy", alone), "nothing to resist")
    assert not said(only("lora-resists-triggers", trigger_pair("trigger")(GAPS)), "nothing to resist")


def test_a_ceiling_is_named() -> None:
    records = [
        record
        for seed in range(4)
        for arm, asr in ((full(), 1.0), (lora(), 0.985 + 0.001 * seed))
        for record in (run(arm, seed=seed, asr=0.08), run(arm, "trigger", 0.1, seed, asr=asr))
    ]
    assert said(only("lora-resists-triggers", records), "98 %")


def test_crossed_seeds_are_no_independent_draws() -> None:
    seeds = [Seeds(data=0, poison=poison, init=0, order=order) for poison in range(2) for order in range(2)]
    records = [
        record
        for place, one in enumerate(seeds)
        for arm, accuracy in ((full(), 0.8), (lora(), 0.78 - 0.001 * place))
        for record in (run(arm, seed=one), run(arm, "label-flip", 0.2, one, accuracy=accuracy))
    ]
    finding = only("lora-weaker-under-flips", records)
    assert (finding.n, finding.decision) == (4, "not resolved")
    assert "share draws of poison and order" in finding.reason
    assert math.isnan(finding.p)
    assert not finding.interval.defined
    assert said(finding, "All seeds share one draw of data and init")
    listed = only("lora-weaker-under-flips", flip_pair(GAPS))
    assert "share" not in listed.reason
    assert not said(listed, "share one draw")


def test_one_stream_that_varies_is_tested_given_the_others() -> None:
    """Three poison seeds, all else fixed: independent, and said to be given the rest."""
    seeds = [Seeds(data=0, poison=poison, init=0, order=0) for poison in range(3)]
    records = [
        record
        for place, one in enumerate(seeds)
        for arm, accuracy in ((full(), 0.8), (lora(), 0.70 - 0.001 * place))
        for record in (run(arm, seed=one), run(arm, "label-flip", 0.2, one, accuracy=accuracy))
    ]
    finding = only("lora-weaker-under-flips", records)
    assert (finding.n, finding.decision) == (3, "supported")
    assert said(finding, "All seeds share one draw of data, init and order")


def test_few_seeds_and_two_ranks_are_named() -> None:
    two = dict(list(ranks().items())[:2])
    finding = only("rank-helps-under-flips", sweep(two, "label-flip", "change")([1.0, 1.1, 0.9]))
    assert said(finding, "Two ranks only")
    assert said(finding, "least p is 0.25")
    six = only(
        "rank-helps-under-flips", sweep(ranks(), "label-flip", "change")([1.0, 1.1, 0.9, 1.2, 0.8, 1.0])
    )
    assert six.exact
    assert not said(six, "sign flips")


def test_a_dip_that_a_straight_line_hides_is_named() -> None:
    records = [
        clean(arm, seed, CLEAN - (0.06 if level == 3.0 else 0.0) + 0.001 * (seed % 3) * level)
        for level, arm in {**ranks(), 4.0: lora(16)}.items()
        for seed in range(5)
    ]
    finding = only("rank-clean-stable", records)
    assert said(finding, "lora-r8 at 0.0005 lies 4.5 points from the mean")


def test_arms_that_are_not_in_a_comparison_are_listed() -> None:
    more = [clean(lora(64), seed) for seed in range(3)]
    more += [run(lora(64), "label-flip", 0.2, seed) for seed in range(3)]
    assert only("lora-weaker-under-flips", [*flip_pair(GAPS), *more]).left_out == ("lora-r64 at 0.0005",)


def test_reasons_have_the_numbers() -> None:
    finding = only("lora-weaker-under-flips", flip_pair(GAPS))
    low, high = (f"+{end:.1f}" for end in (finding.interval.low, finding.interval.high))
    assert f"+1.1 points [{low}, {high}] over 5 seeds, above zero as the paper says" in finding.reason
    assert "after Holm over 1 test " in finding.reason
    margin = only("backdoor-keeps-clean-accuracy", PLANTED["backdoor-keeps-clean-accuracy"]([0.1, -0.2, 0.3]))
    assert "within ±2 points (and within any margin from" in margin.reason


# --- real records --------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (RESULTS / "sst2" / "runs").is_dir(), reason="the records of results/sst2 are missing"
)
def test_recorded_sst2_says_what_docs_results_says() -> None:
    records, problems = Layout(RESULTS / "sst2").read()
    assert not problems
    found = {finding.hypothesis: finding for finding in hypotheses.test(records) if finding.place}
    flips, triggers = found["lora-weaker-under-flips"], found["lora-resists-triggers"]
    assert flips.decision == "not resolved"
    # Changes of full minus those of LoRA at 10, 20, 30 and 40 % (docs/results.md, to a tenth of a point).
    assert flips.effect == pytest.approx((0.0 - 0.6 - 1.1 - 2.1) / 4, abs=0.1)
    assert triggers.decision == "supported"
    assert not triggers.exact
    assert triggers.p_sign_flip == triggers.smallest_p == 0.0625
    assert said(triggers, "Learning rates differ")

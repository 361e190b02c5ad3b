"""The front and the recommendation: by hand, and never more than the numbers show."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from cells_factory import cell, sample

from foretaste.calibration import Cell, adjust, advise, compare, front
from foretaste.calibration.advice import resolution
from foretaste.calibration.cells import Sample
from foretaste.calibration.contrasts import ALPHA, Contrast, SignFlips, contrast, family, pairs_needed
from foretaste.calibration.pareto import LEAST_SEEDS, Arm
from foretaste.calibration.quantities import of_sample
from foretaste.hypotheses import decision
from foretaste.report import pairs as report_pairs

JITTER = (0.0, 0.004, -0.004)


def around(mean: float, scale: float = 1.0) -> list[float]:
    return [mean + scale * j for j in JITTER]


def other(mean: float) -> list[float]:
    """Like `around`, with another seed high: paired differences have a spread."""
    return [mean + j for j in (0.003, -0.004, 0.001)]


def many(mean: float) -> list[float]:
    """Eight seeds, of which sign flips can show something."""
    return [mean + j for j in (0.004, -0.004, 0.002, -0.002, 0.001, -0.001, 0.003, -0.003)]


def more(mean: float) -> list[float]:
    """The same with another spread."""
    return [mean + j for j in (-0.002, 0.003, 0.001, 0.004, -0.003, 0.002, -0.004, -0.001)]


def ten(mean: float, turn: int = 0) -> list[float]:
    """Ten seeds, with their order turned so that arms differ by seed."""
    steps = [0.001 * (3 * place % 10) - 0.0045 for place in range(10)]
    return [mean + step for step in (*steps[turn:], *steps[:turn])]


def arm(
    name: str, clean: list[float], flips: list[float], asr: list[float], parameters: int = 1000, **more: Any
) -> list[Cell]:
    spent = {"measured": {"trainable_parameters": parameters}, "trainable_parameters": parameters, **more}
    return [
        cell(name, "clean", seen=clean, **spent),
        cell(name, rate=0.1, seen=[x + 0.05 for x in flips], **spent),
        cell(name, rate=0.3, seen=flips, **spent),
        cell(name, "trigger", rate=0.001, seen=clean, seen_asr=many(0.1), seen_flip=many(0.1), **spent),
        cell(name, "trigger", rate=0.01, seen=clean, seen_asr=asr, seen_flip=[0.1] * len(asr), **spent),
    ]


def by_name(arms: list[Arm]) -> dict[str, Arm]:
    return {a.name: a for a in arms}


# --- front ---------------------------------------------------------------------------------------


def test_quantities_are_taken_where_the_threat_is_worst() -> None:
    cells = arm("full", around(0.9), around(0.7), around(0.6))
    (found,) = front(cells)
    worst, margin = found.quantities["worst"], found.quantities["margin"]
    assert (worst.value, worst.at, worst.source) == (pytest.approx(0.7), "30 % label-flip", "measured")
    assert (margin.value, margin.at) == (pytest.approx(0.5), "1 % trigger")
    assert found.quantities["parameters"].value == 1000
    assert "seconds" not in found.quantities
    assert worst.low is not None
    assert worst.low < worst.value


def test_dominated_needs_every_difference_shown() -> None:
    good = arm("good", around(0.9), around(0.7), around(0.3), parameters=100)
    bad = arm("bad", other(0.8), other(0.6), other(0.6), parameters=200)
    close = arm("close", other(0.899), other(0.6), other(0.6), parameters=200)
    trade = arm("trade", other(0.95), other(0.5), other(0.6), parameters=200)
    arms = by_name(front([*good, *bad, *close, *trade]))
    assert arms["good"].standing == arms["trade"].standing == "front"
    assert (arms["bad"].standing, arms["bad"].by[0]) == ("dominated", "good")
    assert (arms["close"].standing, arms["close"].by) == ("not resolved", ("good",))


def test_predictions_dominate_but_never_resolved() -> None:
    cells = [
        *(cell(n, "clean", told=t) for n, t in (("a", 0.9), ("b", 0.8))),
        *(cell(n, told=t) for n, t in (("a", 0.7), ("b", 0.6))),
    ]
    arms = by_name(front(cells))
    assert arms["a"].standing == "front"
    assert arms["b"].standing == "not resolved"
    assert arms["b"].quantities["worst"].source == "predicted"


def test_measured_values_come_first_and_calibrated_ones_stand_in() -> None:
    cells = [
        cell("a", "clean", told=0.8, seen=around(0.9)),
        cell("a", told=0.6),
        cell("b", "clean", told=0.8, seen=around(0.9)),
        cell("b", told=0.5),
    ]
    stated, moved = by_name(front(cells)), by_name(front(cells, adjust(cells, [cells[0], cells[2]])))
    assert stated["a"].quantities["clean"].value == moved["a"].quantities["clean"].value == pytest.approx(0.9)
    assert stated["a"].quantities["worst"].value == 0.6
    assert moved["a"].quantities["worst"].value > 0.63


def test_training_time_counts_only_when_resolved() -> None:
    def with_seconds(name: str, seconds: list[float], clean: float) -> Cell:
        return cell(name, "clean", seen=around(clean), measured={"seconds": sample(seconds)})

    noisy = front([with_seconds("a", [10.0, 30.0, 20.0], 0.9), with_seconds("b", [15.0, 18.0, 21.0], 0.8)])
    assert by_name(noisy)["b"].standing != "front"
    clear = front([with_seconds("a", [30.0, 31.0, 32.0], 0.9), with_seconds("b", [10.0, 11.5, 12.0], 0.8)])
    assert by_name(clear)["b"].standing == "front"


def test_a_criterion_that_one_arm_lacks_is_left_out() -> None:
    cells = [
        cell("a", "clean", seen=around(0.9)),
        cell("b", "clean", seen=other(0.8)),
        cell("b", seen=around(0.7)),
    ]
    arms = by_name(front(cells))
    assert "worst" not in arms["a"].quantities
    assert arms["b"].standing != "front"


def test_tasks_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="one task"):
        front([cell("a"), cell("a", folder="g")])
    with pytest.raises(ValueError, match="no cells"):
        advise([])


# --- unlike cells --------------------------------------------------------------------------------


def diverged(name: str, rate: float, *, runs: int = 3) -> Cell:
    return cell(name, rate=rate, measured={"statuses": {"diverged": runs}}, told=None)


def two(full: dict[float, float], lora: dict[float, float], *more: Cell) -> list[Cell]:
    """Two arms of equal clean accuracy, with their accuracies under label flips by rate."""
    return [
        cell("full", "clean", seen=around(0.9), told=None),
        cell("lora-r8", "clean", seen=other(0.9), told=None),
        *(cell("full", rate=rate, seen=around(value), told=None) for rate, value in full.items()),
        *(cell("lora-r8", rate=rate, seen=other(value), told=None) for rate, value in lora.items()),
        *more,
    ]


def test_an_arm_that_diverged_where_it_is_hardest_does_not_win_for_it() -> None:
    cells = two({0.1: 0.88, 0.4: 0.703}, {0.1: 0.853}, diverged("lora-r8", 0.4))
    advice = advise(cells)
    assert advice.arm == "full"
    assert "lora-r8 is off the front: runs diverged and none completed at 40 % label-flip (3 of 3)." in (
        advice.paragraph
    )
    assert "is resolved" not in advice.paragraph
    assert ", resolved" not in advice.paragraph
    arms = by_name(list(advice.arms))
    assert (arms["lora-r8"].standing, arms["lora-r8"].by) == ("diverged", ())
    assert (arms["full"].standing, arms["full"].quantities["worst"].at) == ("front", "40 % label-flip")
    # Nor does a prediction stand in for what was measured and has no end.
    foretold = cell("lora-r8", rate=0.4, told=0.95, measured={"statuses": {"diverged": 3}})
    assert advise(two({0.1: 0.88, 0.4: 0.703}, {0.1: 0.853}, foretold)).arm == "full"


def test_a_diverged_arm_takes_nothing_from_the_comparison_of_the_others() -> None:
    cells = [
        *two({0.1: 0.88, 0.4: 0.7}, {0.1: 0.86, 0.4: 0.6}),
        cell("lora-r64", "clean", seen=around(0.95), told=None),
        diverged("lora-r64", 0.4),
    ]
    found = compare(cells)
    assert found.left_out == ()
    assert by_name(list(found.arms))["full"].quantities["worst"].value == pytest.approx(0.7)
    assert by_name(list(found.arms))["lora-r8"].by == ("full",)


def test_where_every_arm_diverged_none_is_recommended() -> None:
    cells = two({}, {}, diverged("full", 0.4), diverged("lora-r8", 0.4))
    advice = advise(cells)
    assert advice.arm is None
    assert advice.paragraph.startswith("No arm can be recommended: every arm diverged.")


def test_runs_that_diverged_beside_others_are_said() -> None:
    half = cell(
        "lora-r8",
        rate=0.4,
        seen=[0.7, 0.71],
        told=None,
        measured={"statuses": {"completed": 2, "diverged": 1}},
    )
    advice = advise(two({0.4: 0.6}, {}, half))
    assert "Runs of lora-r8 diverged at 40 % label-flip (1 of 3); its means are over the others." in (
        advice.paragraph
    )
    assert by_name(list(advice.arms))["lora-r8"].standing != "diverged"


def test_arms_are_compared_where_all_have_a_value() -> None:
    failed = cell("lora-r8", rate=0.4, told=None, measured={"statuses": {"crashed": 3}})
    found = compare(two({0.1: 0.88, 0.2: 0.8, 0.4: 0.7}, {0.1: 0.86}, failed))
    arms = by_name(list(found.arms))
    assert [arms[name].quantities["worst"].at for name in ("full", "lora-r8")] == ["10 % label-flip"] * 2
    assert set(found.left_out) == {
        "20 % label-flip (lora-r8: neither measured nor predicted)",
        "40 % label-flip (lora-r8: none of 3 runs completed)",
    }
    advice = advise(two({0.1: 0.88, 0.2: 0.8}, {0.1: 0.86}))
    assert "Arms are not compared at 20 % label-flip (lora-r8: neither measured nor" in advice.paragraph
    # A predicted cell is a value, so that nothing is left out.
    told = cell("lora-r8", rate=0.4, told=0.6, seen=())
    assert compare(two({0.1: 0.88, 0.4: 0.7}, {0.1: 0.86}, told)).left_out == ()


def test_arms_with_no_amount_in_common_are_not_compared_by_it() -> None:
    found = compare(two({0.4: 0.7}, {0.1: 0.86}))
    assert "worst" not in found.criteria
    assert "clean" in found.criteria
    assert by_name(list(found.arms))["full"].quantities["worst"].at == "40 % label-flip"
    assert "keeps an accuracy" not in advise(two({0.4: 0.7}, {0.1: 0.86})).paragraph


def test_backdoors_are_compared_at_the_largest_common_amount() -> None:
    def backdoor(name: str, rate: float, asr: list[float]) -> Cell:
        flips = around(0.1, 0.5)
        return cell(name, "trigger", rate=rate, seen=around(0.9), seen_asr=asr, seen_flip=flips, told=None)

    cells = two(
        {},
        {},
        backdoor("full", 0.01, around(0.3)),
        backdoor("full", 0.1, around(0.9)),
        backdoor("lora-r8", 0.01, other(0.5)),
        backdoor("lora-r8", 0.001, other(0.2)),
    )
    advice = advise(cells)
    arms = by_name(list(advice.arms))
    assert [arms[name].quantities["margin"].at for name in ("full", "lora-r8")] == ["1 % trigger"] * 2
    assert "ASR minus flip rate with 1 % trigger: 20.0 points for full against 40.0 points for lora-r8" in (
        advice.paragraph
    )
    assert advice.left_out == ("10 % trigger (lora-r8: neither measured nor predicted)",)


def against(a: Any, b: Any, cells: int = 1) -> Contrast:
    """Two quantities, alone or among equally clear tests."""
    return contrast(a, b, [SignFlips(2.0 ** (1 - 8), 2.0 ** (1 - 8))] * (cells - 1), listed=False)


def test_values_of_unlike_places_resolve_nothing() -> None:
    left, right = of_sample(sample(many(0.9)), "10 % a"), of_sample(sample(more(0.5)), "40 % a")
    assert against(left, of_sample(right.sample, "10 % a")).resolved
    assert not against(left, right).resolved
    assert resolution(against(left, right)) == (
        "not tested, since the two stand at different places (10 % a; 40 % a)"
    )
    # The same over arms: each is worst under another attack, so nothing shows that one dominates.
    cells = []
    for name, values, high, low in (("a", around, 0.8, 0.7), ("b", other, 0.6, 0.5)):
        cells += [
            cell(name, "clean", seen=values(0.9 if name == "a" else 0.8), told=None),
            cell(name, "label-flip", seen=values(high if name == "a" else low), told=None),
            cell(name, "noise", seen=values(low if name == "a" else high), told=None),
        ]
    arms = by_name(front(cells))
    assert (arms["b"].standing, arms["b"].by) == ("not resolved", ("a",))


def test_two_seeds_resolve_nothing() -> None:
    assert LEAST_SEEDS == decision.LEAST_SEEDS
    cells = [
        *arm("a", [0.9, 0.9001], [0.7, 0.7001], [0.3, 0.3001]),
        *arm("b", [0.8, 0.8003], [0.5, 0.5002], [0.9, 0.9003]),
    ]
    text = advise(cells).paragraph
    assert ", resolved by" not in text
    assert "not resolved by 2 seeds" in text
    assert by_name(front(cells))["b"].standing == "not resolved"


# --- the rule of the pairs -----------------------------------------------------------------------


def test_the_rule_is_that_of_the_table_of_pairs() -> None:
    assert ALPHA == report_pairs.ALPHA
    a, b = of_sample(sample(many(0.9))), of_sample(sample(more(0.5)))
    alone, among = against(a, b), against(a, b, 7)
    assert alone.p_holm == 2 / 2**8
    assert among.p_holm == 7 * 2 / 2**8
    assert (alone.resolved, among.resolved) == (True, False)
    assert among.verdict == "not resolved by 8 seeds"
    assert pairs_needed(7) == 9


def test_seven_pairs_of_one_cell_show_it_where_three_cannot() -> None:
    a, b = (of_sample(sample(values[:7])) for values in (many(0.9), more(0.5)))
    assert against(a, b).resolved
    a, b = of_sample(sample(around(0.9))), of_sample(sample(other(0.5)))
    found = against(a, b)
    assert found.interval.excludes(0)
    assert not found.resolved
    assert resolution(found).endswith(
        "not resolved by 3 seeds although the interval, which is not corrected, leaves out 0"
    )


def test_the_family_holds_every_arm_against_the_reference() -> None:
    cells = [
        *arm("full", around(0.9), around(0.7), around(0.3)),
        *arm("b", other(0.9), other(0.7), other(0.4)),
    ]
    assert len(family(cells, lambda cell: cell.measured.accuracy)) == 5
    cells += arm("c", other(0.8), other(0.7), other(0.4))
    assert len(family(cells, lambda cell: cell.measured.margin)) == 4


def test_crossed_seeds_are_not_tested() -> None:
    labels = [f"{a}.{a}.{b}.0" for a in range(3) for b in range(3)]
    a, b = (
        of_sample(Sample({label: mean + place / 100 for place, label in enumerate(labels)}))
        for mean in (0.9, 0.5)
    )
    found = against(a, b)
    assert found.crossed
    assert not found.resolved
    assert resolution(found) == "+40.0 points, no interval and no test: crossed seeds"


# --- paragraph -----------------------------------------------------------------------------------


def test_the_paragraph_states_difference_and_resolution() -> None:
    low = arm("lora-r4", many(0.896), many(0.7), many(0.31))
    high = arm("lora-r64", more(0.9), more(0.698), more(0.62))
    advice = advise([*low, *high])
    assert advice.arm == "lora-r4"
    text = advice.paragraph
    assert text.startswith("For m on d: lora-r4 (measured: ")
    assert "21.0 points for lora-r4 against 52.0 points for lora-r64; −31.0 points [" in text
    assert re.search(r"−31\.0 points \[[^]]*\], resolved by 8 seeds \(Holm p 0\.016\)\.", text)
    flips = "Accuracy with 30 % label-flip: 70.0 % for lora-r4 against 69.8 % for lora-r64; +0.2 points"
    assert f"{flips} [" in text
    assert "Clean accuracy: 89.6 % for lora-r4 against 90.0 % for lora-r64; −0.4 points [" in text
    assert text.endswith("(p ≤ 0.05 after Holm over 2 or 5 cells).")


def test_three_seeds_prefer_no_arm_and_name_the_cheapest() -> None:
    low = arm("lora-r4", around(0.896), around(0.7), around(0.31), parameters=100)
    high = arm("full", other(0.9), other(0.5), other(0.92), parameters=2_000)
    advice = advise([*low, *high])
    assert (advice.arm, advice.cheapest) == (None, "lora-r4")
    text = advice.paragraph
    assert text.startswith(
        "For m on d: no arm can be preferred on what was measured; the cheapest is lora-r4 (100 trained "
        "parameters, against 2,000 of full)."
    )
    # The t interval of every difference leaves out 0, which is less than the page's rule asks for.
    assert "not resolved by 3 seeds although the interval, which is not corrected, leaves out 0" in text
    assert "resolved" not in text.replace("not resolved by 3 seeds", "").replace("Resolved is what", "")
    assert text.endswith("that takes 8 pairs.")


def test_of_arms_that_cannot_be_told_apart_the_cheapest_is_recommended() -> None:
    cells = [
        *arm("a", many(0.9), many(0.7), many(0.31), parameters=500),
        *arm("b", more(0.9), more(0.699), more(0.31), parameters=50),
        *arm("full", more(0.9), more(0.6), more(0.7), parameters=5_000),
    ]
    advice = advise(cells)
    assert (advice.arm, advice.cheapest) == ("b", "b")
    assert "It cannot be told apart from a; the cheapest is b (50 trained parameters, against 500 of a)." in (
        advice.paragraph
    )
    assert "Accuracy with 30 % label-flip: 69.9 % for b against 60.0 % for full;" in advice.paragraph


def test_an_arm_that_is_only_worse_is_not_recommended_for_unresolved_gains() -> None:
    """By its sum a is best, on a gain that hangs on one seed; what is resolved speaks against it."""
    wild = [0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    cells = [
        *arm("a", many(0.80), many(0.7), wild),
        *arm("b", more(0.90), more(0.7), [0.6, 0.5, 0.6, 0.6, 0.1, 0.1, 0.6, 0.6]),
    ]
    assert advise(cells).arm == "b"


def test_a_collapse_is_named() -> None:
    cells = [
        *arm("full", [0.9, 0.91], [0.5, 0.5], [0.3, 0.31]),
        *arm("lora-r8", [0.9, 0.92], [0.6, 0.61], [0.3, 0.33]),
    ]
    spoilt = [
        dataclasses.replace(c, measured=dataclasses.replace(c.measured, collapsed=2))
        if (c.arm, c.amount.rate, c.kind) == ("full", 0.3, "flips")
        else c
        for c in cells
    ]
    assert "collapsed" not in advise(cells).paragraph
    note = "2 of 2 runs of full collapsed: they predict one class"
    assert f"({note});" in advise(spoilt).paragraph
    alone = advise([c for c in spoilt if c.arm == "full"]).paragraph
    assert f"lowest accuracy under flips 50.0 %, where {note}" in alone


def test_one_seed_resolves_nothing_and_predictions_are_called_that() -> None:
    single = [*arm("a", [0.9], [0.7], [0.3]), *arm("b", [0.9], [0.6], [0.9])]
    text = advise(single).paragraph
    assert "Clean accuracy: 90.0 % for a against 90.0 % for b; +0.0 points with one seed, of which" in text
    assert "no arm can be preferred on what was measured" in text
    assert "resolved" not in text
    told = [
        cell(n, "trigger", rate=0.01, told=0.9, asr=asr, baseline_target_rate=0.1)
        for n, asr in (("a", 0.3), ("b", 0.6))
    ]
    cells = [*told, cell("a", "clean", told=0.9), cell("b", "clean", told=0.9)]
    text = advise(cells).paragraph
    assert text.startswith("For m on d: a (predicted: ")
    assert (
        "20.0 points for a against 50.0 points for b; both are predicted, not measured, and their 90 % "
        "intervals do not overlap." in text
    )
    near = [
        cell(n, "trigger", rate=0.01, told=0.9, asr=asr, baseline_target_rate=0.1)
        for n, asr in (("a", 0.3), ("b", 0.35))
    ]
    assert "no arm can be preferred on what was predicted" in advise([*near, *cells[2:]]).paragraph


def test_equal_measurements_resolve_nothing() -> None:
    # The same difference at every seed has no spread, which is not certainty.
    same = [
        *arm("a", around(0.9), around(0.7), around(0.3)),
        *arm("b", around(0.9), around(0.7), around(0.6)),
    ]
    text = advise(same).paragraph
    assert "−30.0 points at every seed, which gives no interval, not resolved by 3 seeds" in text


def test_the_recommended_arm_is_on_the_front_and_has_the_best_sum() -> None:
    cells = [
        *arm("a", ten(0.90), ten(0.60), ten(0.60)),
        *arm("b", ten(0.88, 1), ten(0.70, 1), ten(0.30, 1)),
        *arm("c", ten(0.95, 2), ten(0.50, 2), ten(0.90, 2)),
    ]
    advice = advise(cells)
    assert advice.arm == "b"
    assert by_name(list(advice.arms))["b"].standing == "front"
    # Every sentence has a number.
    for sentence in re.split(r"(?<=[.;]) ", advice.paragraph.removeprefix("For m on d: ")):
        assert re.search(r"\d", sentence), sentence


def test_without_numbers_there_is_no_recommendation() -> None:
    advice = advise([cell("a", told=None), cell("b", told=None)])
    assert advice.arm is None
    assert "No arm can be recommended" in advice.paragraph
    alone = advise(arm("a", around(0.9), around(0.7), around(0.3)))
    assert alone.paragraph.endswith("There is no other arm to compare it with.")


def test_equal_arms_go_by_cost() -> None:
    cells = [
        *arm("a", around(0.9), around(0.7), around(0.3), parameters=500),
        *arm("b", around(0.9), around(0.7), around(0.3), parameters=50),
    ]
    assert (advise(cells).arm, advise(cells).cheapest) == (None, "b")
    slow, fast = ([*around(30.0, 100)], [*other(20.0)])
    timed = [
        cell(n, "clean", seen=around(0.9), measured={"seconds": sample(s)})
        for n, s in (("a", slow), ("b", fast))
    ]
    assert by_name(front(timed))["a"].standing != "front"
    assert (
        "all train equally many parameters (1,000), so that none is the cheapest." in advise(timed).paragraph
    )

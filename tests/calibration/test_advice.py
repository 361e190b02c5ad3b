"""The front, the recommendation, and the paper's advice: by hand, and never more than the numbers show."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cells_factory import cell, sample

from foretaste.calibration import Cell, adjust, advise, front
from foretaste.calibration.advice import lora_and_flips, low_rank, small_variance
from foretaste.calibration.pareto import Arm
from foretaste.spec import TrainingSpec

JITTER = (0.0, 0.004, -0.004)


def around(mean: float, scale: float = 1.0) -> list[float]:
    return [mean + scale * j for j in JITTER]


def other(mean: float) -> list[float]:
    """Like `around`, with another seed high: paired differences have a spread."""
    return [mean + j for j in (0.003, -0.004, 0.001)]


def arm(
    name: str, clean: list[float], flips: list[float], asr: list[float], parameters: int = 1000, **more: Any
) -> list[Cell]:
    spent = {"measured": {"trainable_parameters": parameters}, "trainable_parameters": parameters, **more}
    return [
        cell(name, "clean", seen=clean, **spent),
        cell(name, rate=0.1, seen=[x + 0.05 for x in flips], **spent),
        cell(name, rate=0.3, seen=flips, **spent),
        cell(name, "trigger", rate=0.001, seen=clean, seen_asr=around(0.1), seen_flip=around(0.1), **spent),
        cell(name, "trigger", rate=0.01, seen=clean, seen_asr=asr, seen_flip=around(0.1, 0.5), **spent),
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


# --- paragraph -----------------------------------------------------------------------------------


def test_the_paragraph_states_difference_and_resolution() -> None:
    low = arm("lora-r4", around(0.896), around(0.7), around(0.31))
    high = arm("lora-r64", other(0.9), other(0.698), other(0.62))
    advice = advise([*low, *high])
    assert advice.arm == "lora-r4"
    assert (
        "With 1 % trigger, lora-r4 halves the ASR of lora-r64 (31 against 62 %) at a cost of 0.4 points of "
        "clean accuracy; the difference in ASR is resolved by 3 seeds." in advice.paragraph
    )
    assert (
        "Under 30 % label-flip it keeps an accuracy of 70.0 % against 69.8 % for lora-r64; "
        "the difference is not resolved by 3 seeds." in advice.paragraph
    )
    assert advice.paragraph.startswith("For m on d: lora-r4 (measured: ")


def test_one_seed_resolves_nothing_and_predictions_are_called_that() -> None:
    single = [*arm("a", [0.9], [0.7], [0.3]), *arm("b", [0.9], [0.6], [0.9])]
    assert "is not resolved by 1 seed." in advise(single).paragraph
    assert "is resolved" not in advise(single).paragraph
    told = [
        cell(n, "trigger", rate=0.01, told=0.9, asr=asr, baseline_target_rate=0.1)
        for n, asr in (("a", 0.3), ("b", 0.6))
    ]
    text = advise([*told, cell("a", "clean", told=0.9), cell("b", "clean", told=0.9)]).paragraph
    assert "(predicted: " in text
    assert "a halves the ASR of b (30 against 60 %) at equal clean accuracy" in text
    assert "the difference in ASR is predicted, not measured." in text


def test_equal_measurements_resolve_nothing() -> None:
    # The same difference at every seed has no spread, which is not certainty.
    same = [
        *arm("a", around(0.9), around(0.7), around(0.3)),
        *arm("b", around(0.9), around(0.7), around(0.6)),
    ]
    assert "the difference in ASR is not resolved by 3 seeds" in advise(same).paragraph


def test_the_recommended_arm_is_on_the_front_and_has_the_best_sum() -> None:
    cells = [
        *arm("a", around(0.90), around(0.60), around(0.60)),
        *arm("b", other(0.88), other(0.70), other(0.30)),
        *arm("c", other(0.95), other(0.50), other(0.90)),
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
    assert advise(cells).arm == "b"
    slow, fast = ([*around(30.0, 100)], [*other(20.0)])
    timed = [
        cell(n, "clean", seen=around(0.9), measured={"seconds": sample(s)})
        for n, s in (("a", slow), ("b", fast))
    ]
    assert advise(timed).arm == "b"


# --- hypotheses ----------------------------------------------------------------------------------


def ranked(asr: dict[int, list[float]], **more: Any) -> list[Cell]:
    return [
        cell(
            f"lora-r{r}",
            "trigger",
            rate=0.01,
            seen=around(0.9),
            seen_asr=values,
            config={"r": r, "lora_alpha": 8},
        )
        for r, values in asr.items()
    ]


@pytest.mark.parametrize(
    ("low", "high", "support"),
    [
        (around(0.3), other(0.6), "supported"),
        (around(0.6), other(0.3), "contradicted"),
        (around(0.600), other(0.601), "not resolved"),
        ([0.3], [0.9], "not resolved"),
    ],
)
def test_low_rank_against_backdoors(low: list[float], high: list[float], support: str) -> None:
    found = low_rank(ranked({4: low, 16: [0.5], 64: high}))
    assert found.support == support
    assert found.difference == pytest.approx(sum(low) / len(low) - sum(high) / len(high), abs=1e-9)
    assert found.seeds == len(low)
    assert "lora-r4 minus lora-r64" in found.test
    assert support in found.text.lower()


def test_low_rank_is_not_tested_by_arms_that_differ_in_more() -> None:
    cells = [
        cell("lora-r4", "trigger", seen_asr=around(0.3), config={"r": 4, "target_modules": "q"}),
        cell("lora-r64", "trigger", seen_asr=other(0.6), config={"r": 64, "target_modules": "v"}),
    ]
    found = low_rank(cells)
    assert (found.support, found.difference) == ("not tested", None)
    assert "Not tested" in found.text
    faster = [
        cell(
            f"lora-r{r}", "trigger", seen_asr=asr, config={"r": r}, training=TrainingSpec(learning_rate=rate)
        )
        for r, asr, rate in ((4, around(0.3), 1e-3), (64, other(0.6), 1e-4))
    ]
    assert low_rank(faster).support == "not tested"
    scaled = [
        cell(f"lora-r{r}", "trigger", seen_asr=asr, config={"r": r, "lora_alpha": 2 * r})
        for r, asr in ((4, around(0.3)), (64, other(0.6)))
    ]
    assert low_rank(scaled).support == "supported"


def test_rank_is_averaged_over_amounts_by_seed() -> None:
    cells = []
    for r, shift in ((4, 0.0), (64, 0.1)):
        for rate, asr in ((0.01, 0.2), (0.1, 0.8)):
            seen = [asr + shift * (1 + rate) + 0.01 * s for s in range(2)]
            cells.append(cell(f"lora-r{r}", "trigger", rate=rate, seen_asr=seen, config={"r": r}))
    # An amount that only one of the two was measured at says nothing on the difference.
    cells.append(cell("lora-r64", "trigger", rate=0.2, seen_asr=[1.0, 1.0], config={"r": 64}))
    found = low_rank(cells)
    assert found.difference == pytest.approx(-0.1 * (1 + 0.055))


def test_small_variance_reads_the_requested_variance() -> None:
    cells = [
        cell(f"lora-k{k}", "trigger", seen_asr=asr, config={"r": 8}, measured={"init_k": k})
        for k, asr in ((0.1, around(0.7)), (1.0, other(0.3)))
    ]
    assert small_variance(cells).support == "contradicted"
    assert small_variance(cells[:1]).support == "not tested"


def test_label_flips_compare_the_change_and_not_the_level() -> None:
    def flipped(name: str, level: float, change: list[float]) -> Cell:
        return cell(name, seen=around(level), measured={"accuracy_change": sample(change)})

    # LoRA is less accurate but loses less: that contradicts the claim.
    cells = [flipped("full", 0.8, around(-0.1)), flipped("lora-r8", 0.7, other(-0.02))]
    found = lora_and_flips(cells)
    assert (found.support, found.difference) == ("contradicted", pytest.approx(0.08))
    assert lora_and_flips(
        [flipped("full", 0.8, other(-0.02)), flipped("lora-r8", 0.7, around(-0.1))]
    ).support == ("supported")
    assert lora_and_flips(cells[1:]).support == "not tested"

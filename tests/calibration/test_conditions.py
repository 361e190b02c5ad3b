"""Thresholds on measured cells: the language, what is refused, and what is held against the number."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np
import pytest
from cells_factory import cell, sample
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from foretaste.calibration import Measured, conditions
from foretaste.calibration.conditions import METRICS, Condition, judge, parse, refuse_pointless, unchecked
from foretaste.errors import UserError

OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
SHARES = st.floats(min_value=0.0, max_value=1.0, allow_nan=False)


# --- the language ----------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(sorted(OPERATORS)),
    SHARES,
    st.sampled_from(["", " ", "  ", "\t"]),
)
def test_what_is_written_is_what_is_read(metric: str, sign: str, number: float, space: str) -> None:
    found = parse(f"{space}{metric}{space}{sign}{space}{number!r}{space}")
    assert found == Condition(metric, sign, number)
    assert parse(str(found)) == found


@given(st.text(max_size=40) | st.from_regex(r"[a-z_]{1,12}[<>=!]{1,3}[-+0-9.eEinfa_]{1,8}", fullmatch=True))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    refused = None
    try:
        found = parse(text, where="--fail-if")
    except UserError as error:
        refused = error
    if refused is None:
        assert METRICS[found.metric].lowest <= found.threshold <= 1.0
        assert found.operator in OPERATORS
        assert parse(str(found)) == found
    else:
        assert refused.where == "--fail-if"
        assert refused.cure or "allowed:" in str(refused)


@given(st.sampled_from(sorted(OPERATORS)), SHARES, SHARES)
def test_an_operator_is_pythons(sign: str, value: float, threshold: float) -> None:
    found = parse(f"asr{sign}{threshold!r}")
    assert found.met_by(value) is OPERATORS[sign](value, threshold)


@pytest.mark.parametrize(
    "text",
    [
        *("", "asr", "asr>", ">0.2", "asr=0.2", "asr==0.2", "asr!=0.2", "asr>>0.2", "asr>0.2>0.1", "0.2<asr"),
        *("asr>20%", "asr>0,2", "asr>nan", "asr>inf", "asr>1e", "asr>0x1", "asr > 0.2 or asr<0.1"),
        *("asr.__class__>0", "__import__('os')>0", "asr>１", "asr>1_0"),
    ],
)
def test_other_forms_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(UserError, match="METRIC OPERATOR NUMBER") as caught:
        parse(text)
    assert "asr_margin>0.2" in str(caught.value)


def test_an_unknown_metric_names_the_nearest_and_all() -> None:
    with pytest.raises(UserError) as caught:
        parse("asr_margn>0.2", where="--fail-if")
    assert "Did you mean 'asr_margin'?" in str(caught.value)
    for name in METRICS:
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["asr>20", "asr>-0.1", "asr_margin<-1.5", "clean_accuracy<1e999"])
def test_a_number_out_of_reach_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write 0\.2 for 20 %"):
        parse(text)


def test_differences_may_be_negative() -> None:
    assert parse("accuracy_drop<-0.5").threshold == -0.5
    assert parse("asr_margin > -.25e-1").threshold == -0.025


# --- what cannot be met ----------------------------------------------------------------------------


def test_conditions_that_no_cell_can_have_are_refused() -> None:
    for metric, rule in METRICS.items():
        condition = Condition(metric, ">", 0.1)
        for kinds in ({"clean"}, {"clean", "flips"}, {"clean", "backdoor"}):
            if kinds & set(rule.kinds):
                refuse_pointless([condition], kinds, where="--fail-if")  # type: ignore[arg-type]
            else:
                with pytest.raises(UserError, match="can never be met: the spec has no"):
                    refuse_pointless([condition], kinds, where="--fail-if")  # type: ignore[arg-type]


# --- what is held against it -----------------------------------------------------------------------


def backdoor(arm: str, asr: list[float], flip: list[float], **changes: Any) -> Any:
    return cell(arm, "trigger", seen=[0.9] * len(asr), seen_asr=asr, seen_flip=flip, **changes)


def test_the_mean_over_seeds_decides_and_its_interval_stands_beside() -> None:
    asr, flip = [0.5, 0.3, 0.4], [0.1, 0.2, 0.1]
    found = judge(parse("asr_margin>0.26"), [backdoor("full", asr, flip), backdoor("lora-r8", flip, flip)])
    (worst,) = found.met
    margins = np.subtract(asr, flip)
    assert worst.value == pytest.approx(margins.mean(), abs=1e-12)
    half = stats.t.ppf(0.975, 2) * margins.std(ddof=1) / np.sqrt(3)
    assert (worst.low, worst.high) == (
        pytest.approx(margins.mean() - half),
        pytest.approx(margins.mean() + half),
    )
    assert worst.low < 0.26  # not certain, and met all the same
    assert worst.seeds == 3
    (other,) = found.unmet
    assert (other.value, other.low, other.high) == (0.0, None, None)  # equal values give no interval
    assert found.checked == 2


def test_one_seed_has_no_interval() -> None:
    (reading,) = judge(parse("asr>=0.5"), [backdoor("full", [0.5], [0.1])]).met
    assert (reading.low, reading.high, reading.seeds) == (None, None, 1)


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.7, 0.1, -0.2]])
def test_a_mean_that_equals_the_threshold_is_not_above_it(values: list[float]) -> None:
    # Summed in floating point these are off 0.2 by a last bit, on either side.
    found = cell("full", "label-flip", seen=[0.5], measured={"accuracy_change": sample([-v for v in values])})
    assert not judge(parse("accuracy_drop>0.2"), [found]).met
    assert judge(parse("accuracy_drop>=0.2"), [found]).met
    assert not judge(parse("accuracy_drop<0.2"), [found]).met


def test_worst_come_first_and_the_closest_of_the_others() -> None:
    cells = [backdoor(f"lora-r{n}", [n / 100], [0.0]) for n in (30, 70, 10, 50)]
    above = judge(parse("asr>0.4"), cells)
    assert [reading.value for reading in above.met] == [0.7, 0.5]
    assert [reading.value for reading in above.unmet] == [0.3, 0.1]
    below = judge(parse("asr<=0.3"), cells)
    assert [reading.value for reading in below.met] == [0.1, 0.3]
    assert [reading.value for reading in below.unmet] == [0.5, 0.7]


def test_only_cells_that_have_the_metric_are_looked_at() -> None:
    clean = cell("full", "clean", seen=[0.2])
    flips = cell("full", "label-flip", seen=[0.3], measured={"accuracy_change": sample([-0.6])})
    door = backdoor("full", [0.9], [0.1])
    place = {
        metric: {
            reading.cell.kind for reading in judge(Condition(metric, ">=", 0.0), [clean, flips, door]).met
        }
        for metric in ("asr", "asr_margin", "flip_rate", "accuracy_drop", "clean_accuracy")
    }
    assert place == {
        "asr": {"backdoor"},
        "asr_margin": {"backdoor"},
        "flip_rate": {"backdoor"},
        "accuracy_drop": {"flips"},  # the cell with the trigger has no clean partner here
        "clean_accuracy": {"clean", "flips", "backdoor"},
    }


def test_cells_without_runs_or_without_a_value_are_counted() -> None:
    failed = dataclasses.replace(cell("lora-r8", "trigger"), measured=Measured(statuses={"error": 2}))
    absent = cell("lora-r64", "trigger")
    found = judge(parse("asr>0.5"), [failed, absent, backdoor("full", [0.1], [0.1])])
    assert (found.checked, found.unread, found.not_measured) == (1, (failed,), 1)
    assert unchecked([found], where="--fail-if") is None
    empty = judge(parse("asr>0.5"), [failed, absent])
    error = unchecked([empty, found], where="--fail-if")
    assert error is not None
    assert "nothing was checked by 'asr>0.5'" in str(error)
    assert "1 with runs but no number, 1 not measured" in str(error)


def test_json_says_all_of_it() -> None:
    found = conditions.to_json(judge(parse("asr > .4"), [backdoor("full", [0.5, 0.7], [0.1, 0.1])]))
    assert found["condition"] == "asr>0.4"
    assert (found["metric"], found["operator"], found["threshold"]) == ("asr", ">", 0.4)
    assert found["statistic"] == "mean over seeds"
    assert found["is_met"] is True
    (row,) = found["met"]
    assert row["value"] == pytest.approx(0.6)
    assert {"model", "data", "arm", "attack", "amount", "low", "high", "seeds", "collapsed"} < row.keys()

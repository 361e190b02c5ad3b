"""Every registered indicator: the invariances that it claims, where it is NaN, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from evidence_factory import EXAMPLES, PAIRS, N, World, permuted, rotated, scaled, world

from foretaste.errors import UserError
from foretaste.indicators import (
    FISHERS,
    INDICATORS,
    Drawn,
    Evidence,
    Indicator,
    LoraTraces,
    Twin,
    evaluate,
    read,
)

NAMES = INDICATORS.names()
each = pytest.mark.parametrize("name", NAMES)
WORLDS = {"margin": world(None, seed=1), "C=3": world()}
every_world = pytest.mark.parametrize("here", WORLDS.values(), ids=WORLDS)
# A value is a sum of a few hundred products of order one, each rounded to 1e-16; eigenvalues and square
# roots of them lose a few more digits. A claim that does not hold is off by per cents.
CLOSE = {"rel": 1e-9, "abs": 1e-12}


def value(name: str, evidence: Evidence) -> float:
    reading = read(name, evidence)
    assert reading.missing == ""
    assert math.isfinite(reading.value)
    return reading.value


@each
def test_it_says_what_it_is(name: str) -> None:
    member = INDICATORS.get(name)
    assert member.name == name
    assert len(member.description) > 20
    assert member.larger.endswith((".", ")"))
    assert member.needs


@every_world
@each
def test_all_that_is_needed_gives_a_number(name: str, here: World) -> None:
    assert not math.isnan(value(name, here.evidence()))


@every_world
@each
def test_the_order_of_rows_pairs_and_layers_is_free(name: str, here: World) -> None:
    evidence = here.evidence()
    assert value(name, permuted(evidence)) == pytest.approx(value(name, evidence), **CLOSE)


@pytest.mark.parametrize("t", [7.0, 100.0])
@every_world
@each
def test_degree(name: str, here: World, t: float) -> None:
    degree = INDICATORS.get(name).degree
    evidence = here.evidence()
    before, after = value(name, evidence), value(name, scaled(evidence, t))
    if degree is None:
        # A power of t would have value(1)^2 = value(t) value(1/t).
        down = value(name, scaled(evidence, 1 / t))
        assert abs(before**2 - down * after) > 1e-3 * max(before**2, abs(down * after))
    else:
        assert after == pytest.approx(t**degree * before, **CLOSE)


@each
def test_rotation(name: str) -> None:
    evidence = WORLDS["C=3"].evidence(fisher="ntk")
    before, after = value(name, evidence), value(name, rotated(evidence))
    if INDICATORS.get(name).rotation:
        assert after == pytest.approx(before, **CLOSE)
    else:
        assert abs(after - before) > 1e-3 * abs(before)


# --- NaN -----------------------------------------------------------------------------------------


@each
def test_without_any_one_of_its_needs_it_says_which(name: str) -> None:
    full = WORLDS["C=3"].evidence()
    for field in INDICATORS.get(name).required(full):
        without = replace(full, **{field: {} if field == "layers" else None})
        reading = read(name, without)
        assert math.isnan(reading.value)
        assert reading.missing == f"needs {field}"


@each
def test_nothing_else_is_needed(name: str) -> None:
    full = WORLDS["C=3"].evidence()
    required = INDICATORS.get(name).required(full)
    bare = Evidence(**{field: getattr(full, field) for field in required})
    assert value(name, bare) == value(name, full)


def zero_loss() -> dict[str, Any]:
    """Logits so far on the side of their labels that the loss gradient is 0 in float64."""
    here = WORLDS["margin"]
    return {"logits": 1e4 * here.labels, "twin": replace(here.pairs(), logits=1e4 * here.twin_labels)}


def still_row() -> Twin:
    """A pair whose clean row moves no output."""
    here = WORLDS["margin"]
    J = here.twin.copy()
    J[0] = 0.0
    return replace(here.pairs(), kernel=J @ J.T)


UNDEFINED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bits_pdet", "effective_rank", "stable_rank"), zero_loss()),
    **{name: zero_loss() for name in NAMES if "renyi" in name or name == "raw_shannon"},
    "trace_ratio_without_head": {"reference_without_head": np.zeros((N, N))},
    "lazy_ratio": {"traces": LoraTraces(1.0, 0.0)},
    **{name: {"twin": still_row()} for name in NAMES if name.startswith("m_prime_cosine")},
    "pull_mean_abs_cosine": zero_loss(),
    "pull_mean_cosine": zero_loss(),
}


def test_every_indicator_that_can_be_undefined_is_tried() -> None:
    assert {name for name, member in INDICATORS.items() if member.undefined} == set(UNDEFINED)


@pytest.mark.parametrize("name", UNDEFINED)
def test_it_is_nan_where_undefined_and_gives_the_reason(name: str) -> None:
    reading = read(name, WORLDS["margin"].evidence(**UNDEFINED[name]))
    assert math.isnan(reading.value)
    assert reading.missing == INDICATORS.get(name).undefined


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(UNDEFINED)))
def test_where_others_are_undefined_it_is_a_number(name: str) -> None:
    for changes in (zero_loss(), {"twin": still_row()}, {"traces": LoraTraces(1.0, 0.0)}):
        assert not math.isnan(value(name, WORLDS["margin"].evidence(**changes)))


# --- refusals ------------------------------------------------------------------------------------


def wrong_size(field: str) -> Any:
    """A value of a field whose size does not fit the rest."""
    here = WORLDS["C=3"]
    full = here.evidence()
    if field == "twin":
        return lambda: replace(here.pairs(), logits=here.twin_logits[:-1])
    if field == "layers":
        return lambda: {"q": Drawn(here.A["q"].T, 1.0)}  # r > n
    if field == "traces":
        return lambda: LoraTraces(-1.0, 1.0)
    return lambda: np.asarray(getattr(full, field))[:-1]


@each
def test_it_refuses_sizes_that_do_not_fit(name: str) -> None:
    full = WORLDS["C=3"].evidence()
    for field in INDICATORS.get(name).required(full):
        make = wrong_size(field)
        with pytest.raises(UserError):
            read(name, replace(full, **{field: make()}))


KERNEL_READERS = [n for n in NAMES if "kernel" in INDICATORS.get(n).required(Evidence())]


@pytest.mark.parametrize("fault", ["indefinite", "asymmetric", "nan"])
@pytest.mark.parametrize("name", KERNEL_READERS)
def test_it_refuses_what_is_no_kernel(name: str, fault: str) -> None:
    evidence = WORLDS["margin"].evidence()
    kernel = np.array(evidence.kernel)
    if fault == "indefinite":
        kernel -= 2 * np.linalg.eigvalsh(kernel)[-1] * np.eye(N)
    elif fault == "asymmetric":
        kernel[0, 1] += 1.0
    else:
        kernel[0, 0] = np.nan
    with pytest.raises(UserError):
        read(name, replace(evidence, kernel=kernel))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference": np.eye(N)},
            "expected kernels of one shape, got kernel (6, 3, 6, 3), reference (6, 6)",
        ),
        ({"logits": np.zeros((N, 2))}, "logits: expected shape (..., 6, 3), got (6, 2)"),
        ({"labels": np.full(N, 3)}, "labels: expected labels 0 .. 2, got [3.0]"),
        ({"labels": np.zeros((2, N))}, "labels: expected 6 labels, got shape (2, 6)"),
        ({"fisher": "emprical"}, "Did you mean 'empirical'?"),
        ({"layers": {"q": Drawn(np.zeros((3, 2)), 1.0)}}, "layers.q: A: expected rank r <= n inputs"),
        ({"layers": {"q": Drawn(np.zeros((2, 3)), 0.0)}}, "layers.q: scaling: expected a finite number > 0"),
        ({"traces": LoraTraces(0.0, -1.0)}, "traces.b: expected a finite number >= 0"),
    ],
)
def test_evidence_says_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        WORLDS["C=3"].evidence(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": np.eye(2 * PAIRS - 1)}, "twin.kernel: expected clean rows and as many poisoned ones"),
        ({"logits": np.zeros(3)}, "twin.logits: expected shape (..., 8), got (3,)"),
        ({"labels": np.zeros(2 * PAIRS)}, "twin.labels: expected labels -1 and +1, got [0.0]"),
        ({"examples": PAIRS - 1}, "twin.examples: expected at least 4, got 3"),
    ],
)
def test_a_twin_says_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        replace(WORLDS["margin"].pairs(), **changes)
    assert message in str(caught.value)
    assert WORLDS["margin"].pairs().examples == EXAMPLES


# --- all at once ---------------------------------------------------------------------------------


def test_nothing_known_gives_a_reason_for_each() -> None:
    readings = evaluate(Evidence())
    assert list(readings) == NAMES
    for reading in readings.values():
        assert math.isnan(reading.value)
        assert reading.missing.startswith("needs ")


@pytest.mark.parametrize("fisher", FISHERS)
def test_all_at_once_are_each_by_itself(fisher: Any) -> None:
    evidence = WORLDS["C=3"].evidence(fisher=fisher)
    assert evaluate(evidence) == {name: read(name, WORLDS["C=3"].evidence(fisher=fisher)) for name in NAMES}


def test_the_matrix_decides_what_is_needed() -> None:
    kernel_only = Evidence(kernel=np.eye(3), fisher="ntk")
    known = {name for name, reading in evaluate(kernel_only).items() if not reading.missing}
    assert known == {n for n in NAMES if INDICATORS.get(n).needs == ("spectrum",)}
    assert read("renyi_1", Evidence(kernel=np.eye(3))).missing == "needs logits, labels"


def test_an_unknown_indicator_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'trace_ratio'"):
        read("trace_ration", Evidence())


def test_members_are_indicators() -> None:
    assert all(isinstance(member, Indicator) for _, member in INDICATORS.items())

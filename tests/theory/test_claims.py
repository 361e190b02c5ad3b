"""The verdicts on the papers' claims: what they are, and that they follow from the numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from foretaste.errors import UserError
from foretaste.seeds import generator
from foretaste.theory.claims import (
    CLAIMS,
    Trial,
    Verdict,
    adapter,
    attacks,
    geometry,
    infinite_width,
    judge,
    kernel_view,
    poisoning,
    projection,
    theorem_3_6,
    verify,
)
from foretaste.theory.claims.adapter import Case
from foretaste.theory.claims.probes import complex_step, gram, lora_gradients, ordered_pairs, tanh_network
from foretaste.theory.claims.projection import failure_bound, rank_needed
from foretaste.theory.claims.verdict import Statement, conclude

HOLDS, ONLY_IF, FAILS = "holds", "holds only if", "fails"
EXPECTED = {
    "Equation 5": FAILS,
    "Theorem 2.1 (deterministic)": ONLY_IF,
    "Theorem 2.1 (constant)": ONLY_IF,
    "Equation 7": FAILS,
    "Theorem 2.2 (identity)": HOLDS,
    "Theorem 2.2 (n_L eigenvalues)": ONLY_IF,
    "Equation 9": FAILS,
    "Equation 10 (alpha = 1)": ONLY_IF,
    "Equation 10 (alpha = inf)": FAILS,
    "Equations 11-13": FAILS,
    "Lemma 3.1 (Equation 14)": ONLY_IF,
    "Theorem 3.3 (Equation 15)": ONLY_IF,
    "Theorem 3.4 (order)": ONLY_IF,
    "Theorem 3.4 (eigenvalues)": ONLY_IF,
    "Corollary 3.5 (matrix)": FAILS,
    "Corollary 3.5 (kernel)": ONLY_IF,
    "Theorem 3.6 (bits, sum)": HOLDS,
    "Theorem 3.6 (bits, pdet)": ONLY_IF,
    "Theorem 3.6 (H, alpha < 1)": HOLDS,
    "Theorem 3.6 (H, alpha = 1)": FAILS,
    "Theorem 3.6 (H, alpha > 1)": FAILS,
    "Theorem 3.6 (H, normalised)": FAILS,
    "Section 3.3 (conditions in practice)": ONLY_IF,
    "Equation 16": FAILS,
    "Equation 17": FAILS,
    "Section 3.3 (double-edged sword)": FAILS,
    "Equation 18": ONLY_IF,
    "Figure 3": FAILS,
    "Section 4.4 (rank sweep)": ONLY_IF,
    "Equations 23-24": ONLY_IF,
    "Equations 25-26": FAILS,
    "Equation 41": ONLY_IF,
    "Appendix A.6": ONLY_IF,
    "Proposition B.1": ONLY_IF,
    "Equation 54": FAILS,
    "Appendix C (asymmetry)": ONLY_IF,
    "Appendix C (initialisation)": FAILS,
    "Appendix C (learning rate)": ONLY_IF,
    "Appendix C (alpha)": ONLY_IF,
    "Section 3.2 (regression = training)": ONLY_IF,
    "Theorem 4.3 (A-SignGD)": ONLY_IF,
    "Definition 4.4 (SignGD kernel of LoRA)": ONLY_IF,
    "Theorem 5.5 (linear example)": HOLDS,
    "Table 1 (fixed features)": ONLY_IF,
    "Theorem 7.2": ONLY_IF,
    "Appendix A.3 (asymmetric solver)": ONLY_IF,
    "Lemma C.6": HOLDS,
    "Appendix C.6": HOLDS,
    "Theorem D.2": HOLDS,
    "Lemma D.3": ONLY_IF,
    "Lemma D.4": ONLY_IF,
    "Theorem D.5": ONLY_IF,
    "Remark D.6": ONLY_IF,
}


@pytest.fixture(scope="module")
def timed() -> tuple[dict[str, Verdict], float]:
    start = time.process_time()
    found = verify(0)
    seconds = time.process_time() - start
    assert len({verdict.name for verdict in found}) == len(found) == len(CLAIMS)
    return {verdict.name: verdict for verdict in found}, seconds


@pytest.fixture(scope="module")
def verdicts(timed: tuple[dict[str, Verdict], float]) -> dict[str, Verdict]:
    return timed[0]


def test_every_verdict_is_that_of_the_audit(verdicts: dict[str, Verdict]) -> None:
    assert {name: verdict.verdict for name, verdict in verdicts.items()} == EXPECTED


def test_all_claims_take_less_than_a_minute(timed: tuple[dict[str, Verdict], float]) -> None:
    assert timed[1] < 60


@pytest.mark.parametrize("name", EXPECTED)
def test_every_verdict_is_complete(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    assert (verdict.counterexample is None) == (verdict.verdict == HOLDS)
    assert verdict.numbers
    assert all(math.isfinite(value) for value in verdict.numbers.values())
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False)) == dataclasses.asdict(verdict)
    for text in (verdict.claim, verdict.conditions, verdict.why_it_matters, verdict.counterexample or "x"):
        assert text.strip() == text
        assert "  " not in text
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.verdict = "holds"  # type: ignore[misc]


def test_numbers_are_those_of_the_audit(verdicts: dict[str, Verdict]) -> None:
    matrix = verdicts["Corollary 3.5 (matrix)"].numbers
    assert 2.85 < matrix["operator norm"] < 3.10
    assert 0.98 < matrix["Frobenius norm / sqrt n"] < 1.02
    assert matrix["largest off-diagonal entry"] < 0.20
    assert matrix["share of positive eigenvalues"] == pytest.approx(
        2 / 3 - math.sqrt(3) / (2 * math.pi), abs=0.01
    )
    runs = verdicts["Section 3.3 (conditions in practice)"].numbers
    assert 1.45 < runs["default, alpha = 16: top eigenvalue"] < 1.70
    assert verdicts["Section 4.4 (rank sweep)"].numbers["alpha = r: c at r = 512 over c at r = 4"] == 128
    bound = verdicts["Theorem D.5"].numbers
    assert (bound["rank needed, N = 32, eps = 0.5"], bound["smallest rank with a bound below 1, N = 32"]) == (
        363,
        225,
    )
    entropies = verdicts["Theorem 3.6 (H, alpha > 1)"].numbers
    assert entropies["raw Renyi 2: share violated"] == entropies["raw Renyi inf: share violated"] == 1
    # 2,000 draws of a mean of 64 products: the standard error is below 0.006.
    assert verdicts["Lemma D.3"].numbers["U(-1, 1): mean of h(u) h(v) / u v"] == pytest.approx(
        1 / 3, abs=0.02
    )


def test_counterexamples_are_the_smallest(verdicts: dict[str, Verdict]) -> None:
    for name, start in {
        "Theorem 3.4 (order)": "n = r = 1,",
        "Corollary 3.5 (matrix)": "n = r = 1:",
        "Equation 9": "eigenvalues (1):",
        "Theorem 3.6 (H, alpha > 1)": "raw Renyi 2, F = (10), LoRA = (1):",
        "Theorem 3.6 (H, normalised)": "Renyi 0.5, F = (10, 1), LoRA = (1, 1):",
        "Theorem 3.6 (bits, pdet)": "bits by pdet (LoRA of lower rank), F = (10, 0.5), LoRA = (10, 0):",
        "Equation 41": "size 2:",
        "Equation 5": "1 of 12 rows",
    }.items():
        assert str(verdicts[name].counterexample).startswith(start)


# --- the same claims, on cases where they are true and where they are false ----------------------

NONE: dict[str, Any] = {}
OMEGA = 0.5671432904097838  # omega = exp(-omega), where -log of the largest eigenvalue is the eigenvalue
FLIPS: list[tuple[Callable[..., Verdict], dict[str, Any], str]] = [
    (infinite_width.limiting_kernel_is_deterministic, {"fixed": NONE}, HOLDS),
    (infinite_width.limiting_kernel_is_deterministic, {"full": False, "growing": NONE}, FAILS),
    (infinite_width.kernel_is_constant, {"fixed": NONE}, HOLDS),
    (infinite_width.kernel_is_constant, {"frozen": False, "growing": NONE}, FAILS),
    (infinite_width.recursion_as_printed, {"widths": [1]}, HOLDS),
    (infinite_width.lora_recursion, {"scalings": [2.0]}, FAILS),
    (infinite_width.ntk_difference, {"cases": [(2, 1.0)]}, HOLDS),
    (infinite_width.ntk_difference, {"cases": [(1, 1.0)]}, FAILS),
    (adapter.negative_semi_definite, {"cases": [Case(8, 0.25, 1.0)], "search": False}, HOLDS),
    (adapter.negative_semi_definite, {"cases": [Case(8, 1 / 3, 2.0)], "search": False}, FAILS),
    (adapter.nonzero_eigenvalues_are_equal, {"growing": False}, HOLDS),
    (adapter.nonzero_eigenvalues_are_equal, {"fixed": False}, FAILS),
    (adapter.full_rank_kernel_is_full, {"cases": [(1, 1.0)]}, HOLDS),
    (adapter.full_rank_kernel_is_full, {"cases": [(1, 1 / 3)]}, FAILS),
    (adapter.order_survives_depth, {"cases": [(4, 0.5)]}, HOLDS),
    (adapter.order_survives_depth, {"cases": [(4, 2.0)]}, FAILS),
    (adapter.order_in_every_module, {"modules": ["linear"]}, HOLDS),
    (adapter.order_in_every_module, {"modules": ["embedding"]}, FAILS),
    (adapter.attention_term, {"printed": False}, HOLDS),
    (adapter.practical_conditions, {"runs": [("rank sweep", 4, 4.0, 1 / 3)]}, HOLDS),
    (adapter.practical_conditions, {"runs": [("default", 8, 16.0, 1 / 3)]}, FAILS),
    (geometry.fisher_has_one_eigenvalue_per_output, {"sizes": [(2, 2)]}, HOLDS),
    (geometry.fisher_has_one_eigenvalue_per_output, {"sizes": [(6, 3)]}, FAILS),
    (geometry.one_component_is_enough, {"logits": False}, HOLDS),
    (geometry.one_component_is_enough, {"margin": False}, FAILS),
    (geometry.squared_error_sign, {"sign": 1.0}, HOLDS),
    (geometry.renyi_at_one, {"sums": [1.0]}, HOLDS),
    (geometry.renyi_at_one, {"sums": [2.0]}, FAILS),
    (geometry.renyi_at_infinity, {"largest": [OMEGA]}, HOLDS),
    (geometry.variance_shapes_the_geometry, {"normalised": False}, HOLDS),
    (geometry.variance_shapes_the_geometry, {"raw": False}, FAILS),
    (theorem_3_6.all_pairs_ordered, {"sizes": [1]}, HOLDS),
    (theorem_3_6.all_pairs_ordered, {"sizes": [4]}, FAILS),
    (theorem_3_6.sums_are_ordered, {"quantities": ["raw Shannon"]}, FAILS),
    (theorem_3_6.log_determinants_are_ordered, {"ranks": [True]}, HOLDS),
    (theorem_3_6.log_determinants_are_ordered, {"ranks": [False]}, FAILS),
    (theorem_3_6.entropies_below_one, {"quantities": ["raw Renyi 2"]}, FAILS),
    (theorem_3_6.entropies_above_one, {"quantities": ["raw Renyi 0.5"]}, HOLDS),
    (theorem_3_6.normalised_entropies_are_ordered, {"quantities": ["Renyi 0"]}, HOLDS),
    (poisoning.lora_narrows_angles, {"rhos": [-0.5]}, HOLDS),
    (poisoning.sweep_varies_rank_alone, {"rules": ["rslora"]}, HOLDS),
    (poisoning.sweep_varies_rank_alone, {"rules": ["alpha = r"]}, FAILS),
    (poisoning.only_a_shapes_the_kernel, {"sizes": [0.0]}, HOLDS),
    (poisoning.only_a_shapes_the_kernel, {"sizes": [1.0]}, FAILS),
    (poisoning.lora_has_the_smaller_kernel, {"cases": {"peft": (8, 1 / 3, 2.0)}}, HOLDS),
    (poisoning.lora_has_the_smaller_kernel, {"cases": {"embedding": (8, 1024.0, 2.0)}}, FAILS),
    (poisoning.small_ranks_need_large_alpha, {"rules": ["alpha = r"]}, HOLDS),
    (poisoning.small_ranks_need_large_alpha, {"rules": ["alpha / r"]}, FAILS),
    (attacks.structure_decides, {"ranks": [8], "budgets": ["equal eta t c"], "triggers": [8.0]}, HOLDS),
    (kernel_view.regression_is_training, {"steps": [20000]}, HOLDS),
    (kernel_view.regression_is_training, {"steps": [3]}, FAILS),
    (kernel_view.sign_kernel_is_the_analog, {"cases": [(1, 1)]}, HOLDS),
    (kernel_view.sign_kernel_is_the_analog, {"cases": [(2, 1)]}, FAILS),
    (kernel_view.sign_kernel_is_the_analog, {"cases": [(1, 3)]}, FAILS),
    (kernel_view.sign_kernels_of_lora, {"kinds": ["SGD", "A-SignGD"]}, HOLDS),
    (kernel_view.sign_kernels_of_lora, {"kinds": ["SignGD"]}, FAILS),
    (kernel_view.natural_tasks_are_lazy, {"decays": [0.0]}, FAILS),
    (kernel_view.multipliers_are_free, {"powers": [("SGD", 1)]}, FAILS),
    (kernel_view.growing_ranks_are_lazy, {"rank": lambda n: 8}, FAILS),
    (kernel_view.asymmetric_system_is_regression, {"kinds": ["symmetric"]}, HOLDS),
    (kernel_view.asymmetric_system_is_regression, {"kinds": ["singular"]}, FAILS),
    (kernel_view.features_are_fixed, {"factors": [1.1]}, HOLDS),
    (kernel_view.features_are_fixed, {"factors": [2.9]}, FAILS),
    (projection.projections_keep_products, {"laws": ["N(0, 1)"]}, HOLDS),
    (projection.projections_keep_products, {"laws": ["U(-1, 1)"]}, FAILS),
    (projection.intrinsic_dimension_keeps_the_kernel, {"variance": 1 / 3}, FAILS),
    (projection.lora_kernel_is_a_hadamard_product, {"cases": [(1, 1.0)]}, HOLDS),
    (projection.lora_kernel_is_a_hadamard_product, {"cases": [(2, 1.0)]}, FAILS),
    (projection.kernel_is_close, {"laws": ["1/r"]}, HOLDS),
    (projection.kernel_is_close, {"laws": ["peft"]}, FAILS),
    (projection.rank_rule_suffices, {"epsilons": [0.1]}, HOLDS),
    (projection.rank_rule_suffices, {"epsilons": [0.9]}, FAILS),
    (projection.lora_preserves_the_kernel, {"cases": [("1/r", 400, 1)]}, HOLDS),
    (projection.lora_preserves_the_kernel, {"cases": [("peft", 8, 1)]}, FAILS),
]


@pytest.mark.parametrize(
    ("claim", "cases", "expected"),
    FLIPS,
    ids=[f"{claim.__name__}-{expected}" for claim, _, expected in FLIPS],
)
def test_a_verdict_follows_its_cases(
    claim: Callable[..., Verdict], cases: dict[str, Any], expected: str
) -> None:
    assert claim(generator(3, "flip", claim.__name__), **cases).verdict == expected


def test_a_claim_does_not_depend_on_the_others(verdicts: dict[str, Verdict]) -> None:
    for claim in (geometry.fisher_identity, poisoning.lora_narrows_angles):
        alone = claim(generator(0, "theory claims", claim.__name__))
        assert alone == verdicts[alone.name]


def test_verify_tells_each_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretaste.theory.claims.CLAIMS", CLAIMS[4:7])
    heard: list[Verdict] = []
    assert verify(1, heard.append) == tuple(heard)
    assert len(heard) == 3


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([(True, False)], HOLDS),
        ([(True, True), (True, False)], HOLDS),
        ([(True, True), (False, False)], ONLY_IF),
        ([(True, True), (True, False), (False, False)], ONLY_IF),
        ([(True, True), (False, True)], FAILS),
        ([(False, False), (True, False)], FAILS),
    ],
)
def test_the_rule(trials: list[tuple[bool, bool]], expected: str) -> None:
    assert judge([Trial("case", true, condition) for true, condition in trials]) == expected


def test_no_case_and_no_finite_number_are_refused() -> None:
    statement = Statement("Theorem 0", "TTR", "claim", "conditions", "why")
    with pytest.raises(UserError, match="no case"):
        conclude(statement, [], {})
    with pytest.raises(UserError, match="b: not finite"):
        conclude(statement, [Trial("case", True)], {"a": 1.0, "b": math.nan})
    kept = conclude(statement, [Trial("a", True), Trial("b", False), Trial("c", False)], {"x": -0.0})
    assert (kept.counterexample, kept.verdict) == ("b", FAILS)
    assert math.copysign(1.0, kept.numbers["x"]) == 1.0


# --- the probes ----------------------------------------------------------------------------------


def test_complex_steps_are_derivatives() -> None:
    at = np.array([[0.3, -1.2], [0.7, 2.0]])
    found = complex_step(lambda W: np.array([np.sin(W).sum(), (W[0] * W[1]).sum()]), at)
    assert found.shape == (2, 2, 2)
    np.testing.assert_allclose(found[0], np.cos(at), rtol=1e-15)
    np.testing.assert_allclose(found[1], at[::-1], rtol=1e-15)


def test_lora_gradients_are_central_differences() -> None:
    rng = np.random.default_rng(0)
    weights, x, A = tanh_network(rng, [3, 4, 1]), rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    exact, step = lora_gradients(x, weights, 0, A, 1.5), 1e-5

    def outputs(B: np.ndarray) -> np.ndarray:
        return np.tanh(x @ (weights[0] + 1.5 * B @ A).T) @ weights[1][0]

    for place in np.ndindex(4, 2):
        B = np.zeros((4, 2))
        B[place] = step
        # The error of a central difference is step^2 / 6 times a third derivative of order 10.
        np.testing.assert_allclose(exact[:, *place], (outputs(B) - outputs(-B)) / (2 * step), atol=1e-8)
    np.testing.assert_allclose(np.diag(gram(exact)), np.sum(exact**2, axis=(1, 2)), rtol=1e-14)


def test_pairs_are_ordered_and_of_the_asked_rank() -> None:
    for full, low in ordered_pairs(np.random.default_rng(0), 50, size=4, rank=2):
        assert (full.shape, low.shape) == ((4,), (2,))
        assert np.all(low <= full[:2] * (1 + 1e-12))
        assert np.all(low > 0)


def test_the_rank_needed_meets_the_bound() -> None:
    for rows, epsilon in ((32, 0.1), (1024, 0.5)):
        assert failure_bound(rows, epsilon, rank_needed(rows, epsilon, 0.05)) == pytest.approx(
            0.05, rel=1e-12
        )

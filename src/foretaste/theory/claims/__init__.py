"""Every theorem, lemma, corollary, proposition and numbered claim of both papers, with a computed verdict.

`CLAIMS` holds one function for each, in the order of the papers. A function takes a generator and keyword
arguments that say on which cases to try the claim; the defaults give the verdict of the whole claim. To add
a claim, write such a function beside those of its topic and name it here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foretaste.seeds import generator
from foretaste.theory.claims import (
    adapter,
    attacks,
    geometry,
    infinite_width,
    kernel_view,
    poisoning,
    projection,
    theorem_3_6,
)
from foretaste.theory.claims.verdict import Decision, Trial, Verdict, judge

__all__ = ["CLAIMS", "Decision", "Trial", "Verdict", "judge", "verify"]

CLAIMS: tuple[Callable[[np.random.Generator], Verdict], ...] = (
    # Does LoRA lead to lower robustness against training-time attacks?
    poisoning.change_needs_a_proxy,
    infinite_width.limiting_kernel_is_deterministic,
    infinite_width.kernel_is_constant,
    poisoning.similarity_measures_change,
    geometry.fisher_identity,
    geometry.fisher_has_one_eigenvalue_per_output,
    geometry.bits_two_ways,
    geometry.renyi_at_one,
    geometry.renyi_at_infinity,
    infinite_width.recursion_as_printed,
    infinite_width.lora_recursion,
    infinite_width.ntk_difference,
    adapter.negative_semi_definite,
    adapter.nonzero_eigenvalues_are_equal,
    adapter.full_rank_matrix_vanishes,
    adapter.full_rank_kernel_is_full,
    theorem_3_6.sums_are_ordered,
    theorem_3_6.log_determinants_are_ordered,
    theorem_3_6.entropies_below_one,
    theorem_3_6.shannon_is_ordered,
    theorem_3_6.entropies_above_one,
    theorem_3_6.normalised_entropies_are_ordered,
    adapter.practical_conditions,
    poisoning.lora_narrows_angles,
    poisoning.flips_tell_lora_apart,
    attacks.structure_decides,
    geometry.variance_shapes_the_geometry,
    geometry.figure_3_is_shannon,
    poisoning.sweep_varies_rank_alone,
    geometry.one_component_is_enough,
    geometry.squared_error_sign,
    theorem_3_6.all_pairs_ordered,
    adapter.order_survives_depth,
    adapter.order_in_every_module,
    adapter.attention_term,
    poisoning.only_a_shapes_the_kernel,
    poisoning.swapped_initialisation_is_degenerate,
    poisoning.lora_has_the_smaller_kernel,
    poisoning.small_ranks_need_large_alpha,
    # A kernel-based view of language model fine-tuning.
    kernel_view.regression_is_training,
    kernel_view.sign_kernel_is_the_analog,
    kernel_view.sign_kernels_of_lora,
    kernel_view.natural_tasks_are_lazy,
    kernel_view.features_are_fixed,
    projection.lora_preserves_the_kernel,
    kernel_view.asymmetric_system_is_regression,
    kernel_view.multipliers_are_free,
    kernel_view.growing_ranks_are_lazy,
    projection.intrinsic_dimension_keeps_the_kernel,
    projection.projections_keep_products,
    projection.lora_kernel_is_a_hadamard_product,
    projection.kernel_is_close,
    projection.rank_rule_suffices,
)
"""In the order of the papers, the TTR paper first."""


def verify(seed: int, on_verdict: Callable[[Verdict], None] | None = None) -> tuple[Verdict, ...]:
    """Compute the verdict on every claim.

    Args:
        seed: Every claim draws from a stream of its own, named after its function, so that the numbers of one
            do not depend on which others are computed.
        on_verdict: Called with each verdict as it is reached.

    Returns:
        In the order of `CLAIMS`.
    """
    found = []
    for claim in CLAIMS:
        found.append(claim(generator(seed, "theory claims", claim.__name__)))
        if on_verdict is not None:
            on_verdict(found[-1])
    return tuple(found)

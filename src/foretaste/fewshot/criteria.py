"""Does a fine-tuned model behave like its kernel? The criteria of Malladi et al. 2023 for one run.

Linearization: the first-order expansion at the fine-tuned parameters, on all test rows, and the share of
fine-tuning's gain that it recovers. Fixed Features: the kernel before and after, of the kind that describes
the optimiser: <g, g'> for SGD, <sgn g, sgn g'> for SignGD and for Adam (section 4). Output derivative: chi,
small where kernel behaviour is to be expected (Theorem 5.5, Table 8). "The kernel solves the task" compares
two runs and is no part of this. Every criterion is about the parameters that the arm trains.

The paper takes the kernel of all test rows with the training rows; here `TEST_ROWS` of them stand for all,
and the kernel of the training rows with themselves is compared as well. As in the paper's code two classes
have one output, the difference of their logits; more classes have theirs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from foretaste.data.prompts import Metric
from foretaste.errors import UserError
from foretaste.fewshot.adapt import State, load_state
from foretaste.fewshot.record import Criteria, Score
from foretaste.fewshot.scores import BATCH_ROWS, logits_of, score
from foretaste.fewshot.spec import Optimiser
from foretaste.kernels import (
    Gram,
    Inputs,
    Job,
    Part,
    kernels,
    linearised,
    margin,
    output_derivative,
    trainable,
)
from foretaste.kernels import logits as all_logits
from foretaste.kernels.gram import Kind
from foretaste.models.prompt_encode import EncodedPrompts, collate
from foretaste.seeds import generator
from foretaste.theory.criteria import FixedFeatures, fixed_features, linearisation_share

Float = npt.NDArray[np.float64]

TEST_ROWS = 64
"""Test rows whose kernel with the training rows is compared: with 32 training rows 2,048 entries of which the
mean is taken, at a tenth of the cost of 1,000 rows. Ours."""
TEST_SEED = 42
"""Draws them, the same for every split: the seed of the code for the rows that it tests on."""
KINDS: dict[Optimiser, Kind] = {"sgd": "sgd", "adam": "sign", "signgd": "sign"}
"""The kernel that describes an optimiser (Malladi et al. 2023, sections 3 and 4)."""


@dataclass(frozen=True)
class Chi:
    """Mean size of the derivative of the cross-entropy with respect to the logits, over rows and classes.

    Of two classes it is 1 - p(label) on average, as for the paper's scalar output.

    Attributes:
        before: Of the pretrained model.
        after: Of the fine-tuned one.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Behaviour:
    """What was found; what could not be computed is None and has its reason in `missing`.

    Attributes:
        kind: Of the kernel.
        pretrained: Score of the start on the test rows.
        fine_tuned: Score of the fine-tuned model on them.
        linearised: Score of the first-order expansion on them.
        share: Share of the gain that the expansion recovers.
        train: The kernel of the training rows, before and after.
        test: The kernel of some test rows with the training rows, before and after.
        rows: Numbers of these test rows.
        chi_train: On the training rows.
        chi_test: On all test rows.
        missing: Reason by name.
    """

    kind: Kind
    pretrained: Score
    fine_tuned: Score
    linearised: Score | None
    share: float | None
    train: FixedFeatures | None
    test: FixedFeatures | None
    rows: list[int]
    chi_train: Chi
    chi_test: Chi
    missing: dict[str, str]

    def record(self) -> Criteria:
        """For the run's record: distances on test rows, as in the paper."""
        return Criteria(
            linearised_test=self.linearised,
            linearised_share=self.share,
            kernel_distance=None if self.test is None else self.test.paper_distance,
            alignment=None if self.test is None else self.test.alignment,
            scaled_distance=None if self.test is None else self.test.scaled_distance,
            kernel_rows=None if self.test is None else len(self.rows),
            chi=self.chi_test.before,
            chi_after=self.chi_test.after,
        )

    def facts(self) -> dict[str, float]:
        """Figures beside the record's, by name: the training rows'."""
        found = {"chi_train": self.chi_train.before, "chi_train_after": self.chi_train.after}
        if self.train is not None:
            found["kernel_distance_train"] = self.train.paper_distance
            found["alignment_train"] = self.train.alignment
            found["scaled_distance_train"] = self.train.scaled_distance
        return found

    def notes(self) -> list[str]:
        """What is missing, in words."""
        return [f"no {name}: {reason}" for name, reason in self.missing.items()]


def measure(
    model: nn.Module,
    start: State,
    tuned: State,
    train: EncodedPrompts,
    test: EncodedPrompts,
    pad_token_id: int,
    *,
    optimiser: Optimiser,
    metric: Metric,
    fine_tuned: Float,
    memory: int,
) -> Behaviour:
    """The criteria of one fine-tuned model.

    Beside the model and the two states one more copy of the trained parameters is made, for their change;
    kernels keep to the budget.

    Args:
        model: From `adapt.attach`; afterwards its weights are those of the start.
        start: Its trained parameters before training.
        tuned: Its trained parameters afterwards.
        train: Training rows.
        test: Test rows.
        pad_token_id: Padding token.
        optimiser: Decides the kernel.
        metric: Of the scores.
        fine_tuned: Logits of the fine-tuned model on the test rows, shape (rows, classes).
        memory: Budget of kernels in bytes, for everything beside the model.
    """
    missing: dict[str, str] = {}
    kind, classes = KINDS[optimiser], fine_tuned.shape[1]
    chosen = generator(TEST_SEED, "fewshot", "criteria").permutation(len(test))[:TEST_ROWS]
    rows = sorted(int(row) for row in chosen)
    load_state(model, tuned)
    after_train = logits_of(model, train, pad_token_id)
    after = _kernel(model, train, test, rows, pad_token_id, kind, classes, memory, missing)
    load_state(model, start)
    before_train = logits_of(model, train, pad_token_id)
    before = None
    if after is not None:
        before = _kernel(model, train, test, rows, pad_token_id, kind, classes, memory, missing)
    change = {name: tuned[name] - start[name] for name in start}
    first, expanded = linearised_logits(model, start, change, test, pad_token_id)

    def scored(logits: Float) -> Score:
        return score(metric, test.labels, [int(label) for label in logits.argmax(1)])

    pretrained, arrived = scored(first), scored(fine_tuned)
    linear: Score | None = None
    if np.isfinite(expanded).all():
        linear = scored(expanded)
    else:
        missing["linearised model"] = "its logits are not finite"
    both = before is not None and after is not None
    return Behaviour(
        kind=kind,
        pretrained=pretrained,
        fine_tuned=arrived,
        linearised=linear,
        share=_share(linear, pretrained, arrived, missing),
        train=fixed_features(before.train, after.train) if both else None,  # type: ignore[union-attr]
        test=fixed_features(before.test, after.test) if both else None,  # type: ignore[union-attr]
        rows=rows,
        chi_train=Chi(_chi(before_train, train.labels), _chi(after_train, train.labels)),
        chi_test=Chi(_chi(first, test.labels), _chi(fine_tuned, test.labels)),
        missing=missing,
    )


def _share(linear: Score | None, pretrained: Score, arrived: Score, missing: dict[str, str]) -> float | None:
    name = "share of the gain that the linearised model recovers"
    if linear is None:
        missing[name] = "there is no linearised model"
        return None
    values = [found.value for found in (linear, pretrained, arrived)]
    if any(value is None for value in values):
        missing[name] = "a score is undefined"
        return None
    share = linearisation_share(*(float(value) for value in values if value is not None))
    if math.isnan(share):
        missing[name] = "fine-tuning gained nothing on the test rows"
        return None
    return share


def _chi(logits: Float, labels: Sequence[int]) -> float:
    return float(np.abs(output_derivative(logits, labels)).mean())


def linearised_logits(
    model: nn.Module,
    start: Mapping[str, torch.Tensor],
    change: Mapping[str, torch.Tensor],
    encoded: EncodedPrompts,
    pad_token_id: int,
    *,
    batch_size: int = BATCH_ROWS,
) -> tuple[Float, Float]:
    """Logits at the start, and those of the first-order expansion at start + change: (rows, classes) each.

    By forward-mode differentiation, exactly, at the cost of about three forward passes whatever the number of
    classes. Attention runs in its plain form meanwhile, since the fused ones have no forward derivative; a
    model that has none elsewhere is differentiated backwards, row by row (`kernels.linearised`).

    Args:
        model: In evaluation mode, with its trained parameters at the start.
        start: These parameters.
        change: What is added to them, by the same names.
        encoded: The rows.
        pad_token_id: Padding token.
        batch_size: Rows of similar length in a forward pass.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(encoded)), key=lambda row: encoded.lengths[row])
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    point, direction = dict(start), dict(change)
    try:
        for begin in range(0, len(order), batch_size):
            batch = collate(encoded, order[begin : begin + batch_size], pad_token_id, device)

            def forward(values: State, batch: dict[str, torch.Tensor] = batch) -> torch.Tensor:
                logits: torch.Tensor = functional_call(model, values, kwargs=batch).logits
                return logits

            with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                # torch compiles its own forward derivatives with what it has deprecated.
                warnings.filterwarnings("ignore", message="`torch.jit.script`", category=DeprecationWarning)
                made = jvp(forward, (point,), (direction,))
            found.append((made[0].double().cpu(), made[1].double().cpu()))
    except NotImplementedError:
        first = logits_of(model, encoded, pad_token_id)
        inputs = Inputs(encoded.lengths, lambda some: collate(encoded, some, pad_token_id, device))
        return first, linearised(model, change, all_logits, inputs, batch=1)
    first, moved_by = np.empty((2, len(order), found[0][0].shape[1]))
    first[order] = torch.cat([value for value, _ in found]).numpy()
    moved_by[order] = torch.cat([moved for _, moved in found]).numpy()
    return first, first + moved_by


def _kernel(
    model: nn.Module,
    train: EncodedPrompts,
    test: EncodedPrompts,
    rows: Sequence[int],
    pad_token_id: int,
    kind: Kind,
    classes: int,
    memory: int,
    missing: dict[str, str],
) -> Part | None:
    """The kernel as the model stands; None where it has none, with its reason."""
    device = next(model.parameters()).device
    both = _joined(train, test, rows)
    inputs = Inputs(both.lengths, lambda some: collate(both, some, pad_token_id, device))
    outputs = margin if classes == 2 else all_logits
    job = Job(model, trainable(model), outputs, inputs, len(train), [Gram(kind)])
    try:
        return kernels(job, memory=memory)[0].total(kind)
    except UserError as error:
        missing["kernel distance"] = str(error)
        return None


def _joined(train: EncodedPrompts, test: EncodedPrompts, rows: Sequence[int]) -> EncodedPrompts:
    """The training rows, then the chosen test rows."""
    return EncodedPrompts(
        ids=[*train.ids, *(test.ids[row] for row in rows)],
        input_ids=[*train.input_ids, *(test.input_ids[row] for row in rows)],
        answer_positions=[*train.answer_positions, *(test.answer_positions[row] for row in rows)],
        labels=[*train.labels, *(test.labels[row] for row in rows)],
        cut=[],
    )

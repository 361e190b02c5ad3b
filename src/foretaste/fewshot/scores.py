"""Logits of a few-shot classifier, and scores of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from foretaste.data.prompts import Metric
from foretaste.fewshot.record import Score
from foretaste.models.label_words import FewShotClassifier
from foretaste.models.prompt_encode import EncodedPrompts, collate

BATCH_ROWS = 32


def score(metric: Metric, labels: Sequence[int], predictions: Sequence[int]) -> Score:
    """How well predictions fit labels.

    Args:
        metric: accuracy, or f1: of class 1, as GLUE scores MRPC and QQP; undefined (None) where no row is of
            that class and none is predicted as it.
        labels: Class ids.
        predictions: Class ids, one for each label.

    Raises:
        ValueError: There are no rows, or as many predictions as labels there are not.
    """
    truth, guess = np.asarray(labels), np.asarray(predictions)
    if truth.shape != guess.shape or truth.size == 0:
        raise ValueError(f"{guess.size} predictions for {truth.size} labels")
    correct = int(np.sum(truth == guess))
    value: float | None = correct / truth.size
    if metric == "f1":
        hits = int(np.sum((truth == 1) & (guess == 1)))
        counted = int(np.sum(truth == 1)) + int(np.sum(guess == 1))
        value = 2 * hits / counted if counted else None
    return Score(metric=metric, value=value, n=int(truth.size), correct=correct)


def scorer(metric: Metric) -> Callable[[npt.ArrayLike, npt.ArrayLike], float]:
    """The metric in the form in which `theory.selection` takes it; an undefined score is NaN there."""

    def value(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
        found = score(metric, list(np.asarray(labels)), list(np.asarray(predictions))).value
        return float("nan") if found is None else found

    return value


def logits_of(
    model: FewShotClassifier | torch.nn.Module,
    encoded: EncodedPrompts,
    pad_token_id: int,
    *,
    batch_size: int = BATCH_ROWS,
) -> npt.NDArray[np.float64]:
    """Logits of every row, shape (rows, classes), with the model in evaluation mode.

    Args:
        model: Takes the batches of `prompt_encode.collate`.
        encoded: The rows.
        pad_token_id: Padding token.
        batch_size: Rows of similar length in a forward pass.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(encoded)), key=lambda row: encoded.lengths[row])
    was_training = model.training
    model.eval()
    found: list[torch.Tensor] = []
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                batch = collate(encoded, order[start : start + batch_size], pad_token_id, device)
                found.append(model(**batch).logits.double().cpu())
    finally:
        model.train(was_training)
    logits = np.empty((len(order), found[0].shape[1]))
    logits[order] = torch.cat(found).numpy()
    return logits
